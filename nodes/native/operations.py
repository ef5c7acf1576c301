"""ComfyUI's layers as the core's models take them: with its attention, and open to the core's faster convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.attention as kernels
import comfy.model_management
from comfy.cli_args import args
from torch import Tensor


class UsesWeightsInPlace:
    """Says when a layer's forward would use its weights as they are, neither cast nor patched on the way."""

    comfy_cast_weights: bool
    weight_function: list[Any]
    bias_function: list[Any]

    def uses_weights_in_place(self) -> bool:
        return not (self.comfy_cast_weights or self.weight_function or self.bias_function)


def host_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The host's attention on ``[B, N, heads * d]``."""
    return host_kernel()(q, k, v, heads=heads)


def host_kernel() -> Callable[..., Tensor]:
    """The kernel that the user started ComfyUI with; on a CPU, where the user chose none, torch's own.

    There ComfyUI computes attention in slices (``attention_sub_quad``), which saves memory that a CPU has and takes
    longer: benchmarks/README.md, "In ComfyUI".
    """
    sliced = kernels.optimized_attention is kernels.attention_sub_quad
    if sliced and not args.use_quad_cross_attention and comfy.model_management.cpu_mode():
        return kernels.attention_pytorch
    return kernels.optimized_attention


def core_operations(operations: Any, **more: Any) -> Any:
    """ComfyUI's layers as ``operations`` of the core's models; convolutions get :class:`UsesWeightsInPlace`.

    Args:
        operations: one of ComfyUI's namespaces of layers, such as ``comfy.ops.disable_weight_init``.
        more: further attributes of the namespace, such as ``attention_function``.
    """
    layers = {name: type(name, (UsesWeightsInPlace, getattr(operations, name)), {}) for name in ("Conv2d", "Conv3d")}
    return type(operations.__name__, (operations,), {**layers, **more})
