"""Corrections of drift and seams, as pure functions on latents ``[B, C, T, H, W]``.

None of them is part of the released method; training/evaluate.py measures what each one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every channel, ``[B, C, 1, 1, 1]``."""

    mean: Tensor
    deviation: Tensor


def channel_statistics(latents: Tensor) -> Statistics:
    """Per video and channel, over frames and pixels."""
    dims = (2, 3, 4)
    return Statistics(latents.mean(dims, keepdim=True), latents.std(dims, keepdim=True))


def match_statistics(latents: Tensor, wanted: Statistics, strength: float = 1.0) -> Tensor:
    """Move every channel's mean and standard deviation towards ``wanted`` (those of clip 1, at the same step).

    Args:
        strength: 0 leaves the latents as they are, 1 gives them exactly the wanted statistics.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; expected 0 (off) to 1 (all the way)")
    found = channel_statistics(latents)
    matched = (latents - found.mean) * (wanted.deviation / found.deviation.clamp(min=1e-6)) + wanted.mean
    return latents + strength * (matched - latents)


def soft_weight(step: int, num_steps: int, beta: float) -> float:
    """Weight of the past at ``step``: 1 through the first ``beta * S`` steps, then falling linearly to 0 at the end."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}; expected 0 to 1, the share of fully guided steps")
    hard = beta * num_steps
    return 1.0 if step < hard else max(0.0, (num_steps - step) / (num_steps - hard + 1e-9))


def soft_guide(latents: Tensor, past: Tensor | None, weight: float) -> Tensor:
    """Blend the first frames with ``past`` ``[B, C, m, H, W]``; weight 1 overwrites them as DSG does."""
    if past is None or not past.shape[2] or weight == 0:
        return latents
    count = past.shape[2]
    mixed = torch.lerp(latents[:, :, :count], past.to(latents), weight)
    return torch.cat((mixed, latents[:, :, count:]), dim=2)
