"""ComfyUI's layers as the core's models take them: with its attention, and open to the core's faster convolutions."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor


class UsesWeightsInPlace:
    """Says when a layer's forward would use its weights as they are, neither cast nor patched on the way."""

    comfy_cast_weights: bool
    weight_function: list[Any]
    bias_function: list[Any]

    def uses_weights_in_place(self) -> bool:
        return not (self.comfy_cast_weights or self.weight_function or self.bias_function)


def host_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The host's attention on ``[B, N, heads * d]``, whichever kernel the user started ComfyUI with."""
    return optimized_attention(q, k, v, heads=heads)


def core_operations(operations: Any, **more: Any) -> Any:
    """ComfyUI's layers as ``operations`` of the core's models; convolutions get :class:`UsesWeightsInPlace`.

    Args:
        operations: one of ComfyUI's namespaces of layers, such as ``comfy.ops.disable_weight_init``.
        more: further attributes of the namespace, such as ``attention_function``.
    """
    layers = {name: type(name, (UsesWeightsInPlace, getattr(operations, name)), {}) for name in ("Conv2d", "Conv3d")}
    return type(operations.__name__, (operations,), {**layers, **more})
