"""Flicker and PSNR of decoded clips against the original ones."""

from __future__ import annotations

import torch
from torch import Tensor


def flicker(output: Tensor, target: Tensor) -> Tensor:
    """Frame-difference error: mean absolute error of the change from frame to frame, pixels ``[B, 3, T, H, W]``."""
    if output.shape[2] < 2:
        raise ValueError("a single frame cannot flicker: give clips of at least 2 frames")
    return (output.float().diff(dim=2) - target.float().diff(dim=2)).abs().mean()


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels of pixels in [-1, 1], the mean over the clips of ``[B, 3, T, H, W]``."""
    error = (output.float().clamp(-1, 1) - target.float()).square().flatten(1).mean(1)
    return (10 * torch.log10(4.0 / error.clamp(min=1e-12))).mean()
