"""Seeded noise: every clip has its own seed, and the same seed gives the same clip in any batch, on any device."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

MAX_SEED = 2**63 - 1


def clip_seed(seed: int, clip_index: int) -> int:
    """The seed of a clip, derived from the video's: 0 to 2**63 - 1, the first clip's is the video's own."""
    if clip_index == 0:
        return seed & MAX_SEED
    digest = hashlib.sha256(f"{seed}:{clip_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & MAX_SEED


def fresh_seed(seed: int, clip_index: int, used: Collection[int]) -> int:
    """``seed``, or where the video has used it already one derived from it, since equal noise would not mix to 1."""
    chosen = seed
    while chosen in used:
        chosen = clip_seed(seed, clip_index)
        clip_index += 1
    return chosen


def clip_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Unit-variance noise ``[B, C, T, h, w]``, float32 on the CPU; each video of a batch has a seed of its own."""
    generators = [torch.Generator().manual_seed(seed & MAX_SEED) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape[1:]), generator=generator) for generator in generators])
