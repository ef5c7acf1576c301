"""Frames on IMAGE wires."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from einops import rearrange

if TYPE_CHECKING:
    from torch import Tensor


def decoded(vae: Any, samples: Tensor) -> Tensor:
    """Frames ``[T, H, W, 3]`` of latents as on a wire, of several videos one after the other."""
    return rearrange(vae.decode(samples), "... h w c -> (...) h w c")


def in_colour(images: Tensor) -> Tensor:
    """Frames ``[T, H, W, 3]`` of those with 1 to 4 channels: grey ones in all three, transparency left out."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].expand(*images.shape[:-1], 3)
