"""Frame-level noise reversion (FNR), past-dependent noise sampling (PNS) and the progressive noise prior.

Pure functions on noise ``[B, C, T, H, W]`` (arXiv 2309.03549, section "Iterative Denoising"). Notation: N frames per
clip, M overlap frames, S denoising steps, ``z[s]`` the latents before step s; s = 0 is the noisiest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .settings import ReuseSettings


def source_frames(settings: ReuseSettings, num_frames: int) -> Tensor:
    """FNR: for each frame of the next clip the frame of the last one that it reuses, ``[N]``.

    "reverse": j takes N-1-j. "forward": j takes N-M+j, and the frames beyond the end run backwards from there, so
    that every new frame has a noise of its own and none of the overlap's is used twice.
    """
    settings.check(num_frames)
    frames = torch.arange(num_frames)
    if settings.order == "reverse":
        return num_frames - 1 - frames
    overlap = settings.overlap_frames
    return torch.cat((frames[num_frames - overlap :], frames[: num_frames - overlap].flip(0)))


def initial_noise(past: Tensor, fresh: Tensor, settings: ReuseSettings) -> Tensor:
    """FNR and PNS: the noise ``z'[0]`` a clip starts from, ``[B, C, N, H, W]`` of unit variance.

    Overlap frames are the past's, reordered. The others mix ``a / sqrt(1 + a^2)`` of the past with
    ``1 / sqrt(1 + a^2)`` of ``fresh``, which keeps the variance at 1 for every a.

    Args:
        past: the noise ``z[0]`` of the last clip.
        fresh: unit-variance noise of the same shape; its overlap frames go unused.
    """
    if past.shape != fresh.shape:
        raise ValueError(f"past noise is {list(past.shape)}, fresh noise {list(fresh.shape)}; expected equal shapes")
    reordered = past[:, :, source_frames(settings, past.shape[2]).to(past.device)]
    angle = math.atan(settings.noise_alpha)  # sin = a / sqrt(1 + a^2), cos = 1 / sqrt(1 + a^2), also at infinity
    mixed = math.sin(angle) * reordered + (math.cos(angle) if math.isfinite(settings.noise_alpha) else 0.0) * fresh
    overlap = settings.overlap_frames
    return torch.cat((reordered[:, :, :overlap], mixed[:, :, overlap:]), dim=2)


def progressive_noise(fresh: Tensor, alpha: float) -> Tensor:
    """Progressive noise prior in one clip (arXiv 2305.10474, equation 3): each frame's noise grows from the last one's.

    ``e[0] = n[0]``, ``e[j] = a / sqrt(1 + a^2) * e[j-1] + 1 / sqrt(1 + a^2) * n[j]``; the variance stays 1.

    Args:
        fresh: independent unit-variance noise n ``[B, C, N, H, W]``.
        alpha: a; 0 leaves the noise as it is, infinity gives all frames the first one's.
    """
    if not alpha >= 0:
        raise ValueError(f"progressive noise alpha is {alpha}; expected 0 (independent frames) or more")
    if alpha == 0:
        return fresh
    angle = math.atan(alpha)
    frames = [fresh[:, :, 0]]
    for frame in fresh.unbind(2)[1:]:
        frames.append(math.sin(angle) * frames[-1] + (math.cos(angle) if math.isfinite(alpha) else 0.0) * frame)
    return torch.stack(frames, dim=2)
