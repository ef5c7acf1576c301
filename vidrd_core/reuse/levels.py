"""Noise levels that models of every kind share, and what share of Stable Diffusion's steps each of them is.

A level is the share of noise in ``(1 - level) * data + level * noise``: sigma of a flow model, ``sigma / (1 + sigma)``
of a model that adds ``sigma * noise``. DSG's beta and the cleaner overlap are shares of the steps of Stable Diffusion's
noise schedule, which VidRD was made for; a flow model with a large shift spends most of its steps near pure noise,
where the same shares would mean something else. Through levels they mean the same for every model.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

TIMESTEPS = 1000
FIRST_BETA, LAST_BETA = 0.00085, 0.012  # of Stable Diffusion, "scaled linear"


@functools.cache
def reference_levels() -> Tensor:
    """Levels of Stable Diffusion from pure data to its last timestep, ``[1001]``, ascending; float64."""
    betas = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    sigmas = ((1 - kept) / kept) ** 0.5
    return torch.cat((torch.zeros(1, dtype=torch.float64), sigmas / (1 + sigmas)))


def level_at(progress: float) -> float:
    """The noise level after a share of Stable Diffusion's steps, 0 (its noisiest, 0.94) to 1 (clean, 0)."""
    place = (1 - min(max(progress, 0.0), 1.0)) * TIMESTEPS
    levels = reference_levels()
    below = min(int(place), TIMESTEPS - 1)
    return float(torch.lerp(levels[below], levels[below + 1], place - below))


def level_between(before: float, after: float, share: float) -> float:
    """The noise level a share of the way from one to another, in steps of Stable Diffusion's schedule."""
    if not share:
        return before
    start, end = progress_at(before), progress_at(after)
    return level_at(start + share * (end - start))


def progress_at(level: float) -> float:
    """The share of Stable Diffusion's steps that are done at a noise level; 0 at levels above its noisiest."""
    levels = reference_levels()
    above = int(torch.searchsorted(levels, torch.tensor(level, dtype=torch.float64)))
    if above == 0:
        return 1.0
    if above > TIMESTEPS:
        return 0.0
    share = (level - float(levels[above - 1])) / float(levels[above] - levels[above - 1])
    return 1 - (above - 1 + share) / TIMESTEPS
