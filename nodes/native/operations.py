"""ComfyUI's layers as the core's models take them: with its attention, and open to the core's faster convolutions."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor


class Ready:
    """Says when a layer's forward would use its weights as they are, neither cast nor patched on the way."""

    comfy_cast_weights: bool
    weight_function: list[Any]
    bias_function: list[Any]

    def weights_are_ready(self) -> bool:
        return not (self.comfy_cast_weights or self.weight_function or self.bias_function)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The host's attention on ``[B, N, heads * d]``, whichever kernel the user started ComfyUI with."""
    return optimized_attention(q, k, v, heads=heads)


def ready(operations: Any, **more: Any) -> Any:
    """A namespace of ComfyUI's layers whose convolutions have :class:`Ready`, with ``more`` added."""
    layers = {name: type(name, (Ready, getattr(operations, name)), {}) for name in ("Conv2d", "Conv3d")}
    return type(operations.__name__, (operations,), {**layers, **more})
