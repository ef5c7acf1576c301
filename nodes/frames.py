"""Frames on IMAGE wires."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def in_colour(images: Tensor) -> Tensor:
    """Frames ``[T, H, W, 3]`` of those with 1 to 4 channels: grey ones in all three, transparency left out."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].expand(*images.shape[:-1], 3)
