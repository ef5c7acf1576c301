"""Add a LoRA of the U-Net to its weights, once and for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..weight_files import CheckpointError, open_weights

PREFIX, DOWN, UP = "unet.", ".lora_A.weight", ".lora_B.weight"


def merge_lora(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights with ``B A`` of each layer of a LoRA added, as :func:`vidrd_core.train.lora.save_lora` writes them.

    Args:
        state: the U-Net's tensors in our names; left as they are, and shared where the LoRA has no such layer.
        path: of the safetensors file.

    Raises:
        CheckpointError: it cannot be read, or is a LoRA of another model.
    """
    stored = open_weights(path).tensors()
    layers = [name.removeprefix(PREFIX).removesuffix(DOWN) for name in stored if name.endswith(DOWN)]
    merged = dict(state)
    for layer in layers:
        down, up, name = stored[f"{PREFIX}{layer}{DOWN}"], stored.get(f"{PREFIX}{layer}{UP}"), f"{layer}.weight"
        weight = state.get(name)
        if weight is None or up is None or (up.shape[0], down[0].numel()) != (weight.shape[0], weight[0].numel()):
            raise CheckpointError(
                f"{path} is no LoRA of this model: its layer {layer} does not fit; take one made for it"
            )
        change = up.float().flatten(1) @ down.float().flatten(1)
        merged[name] = (weight.float() + change.reshape(weight.shape)).to(weight.dtype)
    if not layers:
        raise CheckpointError(
            f"{path} holds no layers of a LoRA (names ending in {DOWN}): take one made for this model"
        )
    return merged
