"""Make a trajectory for latents that have none: a user's own video, or another sampler's output."""

from __future__ import annotations

import math
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.seeds import clip_noise, clip_seed

METHODS = ("invert", "noise")
DEFAULT_METHOD = "invert"


def rebuild(
    model: Any, positive: Any, negative: Any, clip: Tensor, sigmas: Tensor, seed: int, method: str
) -> tuple[Tensor, list[Tensor]]:
    """The noise and the states that ``clip`` might have been denoised from.

    Args:
        positive: conditioning that says what ``clip`` shows; it alone guides the inversion.
        clip: unscaled latents ``[B, C, N, h, w]``.
        method: "invert": DDIM inversion, one U-Net pass per step without classifier-free guidance. "noise": the clip
            plus known noise at every level; free.

    Returns:
        Unit-variance noise ``[B, C, N, h, w]`` and one state per step, in the sampler's space.
    """
    if method == "noise":
        return known_noise(model, clip, sigmas, seed)
    return invert(model, positive, negative, clip, sigmas)


def known_noise(model: Any, clip: Tensor, sigmas: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Forward diffusion with one noise for all levels: ``x(sigma) = x0 + sigma * n``."""
    noise = clip_noise([clip_seed(seed, -1) + b for b in range(clip.shape[0])], clip.shape)
    clean = model.model.process_latent_in(clip)
    return noise, [clean + float(sigma) * noise for sigma in sigmas[:-1]]


def invert(model: Any, positive: Any, negative: Any, clip: Tensor, sigmas: Tensor) -> tuple[Tensor, list[Tensor]]:
    """DDIM inversion (arXiv 2010.02502, section 4.3), with the noise predicted where each step arrives.

    Taking the prediction at the arrival instead of the departure makes each step the inverse of the Euler step that
    sampling takes there, up to one fixed-point iteration.
    """
    states: list[Tensor] = []
    rising = sigmas[:-1].flip(0)

    def sample(inner: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, **_: Any) -> Tensor:
        ones = x.new_ones(x.shape[0])

        def direction(at: Tensor, sigma: Tensor) -> Tensor:
            return (at - inner(at, sigma * ones, **(extra_args or {}))) / sigma

        slope, before = direction(x, sigmas[0]), torch.zeros_like(sigmas[0])
        for step, sigma in enumerate(sigmas):
            slope = direction(x + slope * (sigma - before), sigma)
            x, before = x + slope * (sigma - before), sigma
            states.append(x.detach().to("cpu", copy=True))
            if callback is not None:
                callback({"x": x, "denoised": x - slope * sigma, "i": step, "sigma": sigma, "sigma_hat": sigma})
        return x

    comfy.sample.sample_custom(
        model,
        torch.zeros_like(clip),
        1.0,
        comfy.samplers.KSAMPLER(sample),
        rising,
        positive,
        negative,
        clip,
        callback=latent_preview.prepare_callback(model, len(rising)),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=0,
    )
    states.reverse()
    return states[0] / math.sqrt(1 + float(sigmas[0]) ** 2), states


def states_at(sigmas: Tensor, visited: Tensor, states: list[Tensor], clean: Tensor, noise: Tensor) -> list[Tensor]:
    """The states at the levels ``sigmas[:-1]`` of a clip that was denoised from ``visited[0]`` on only.

    Above that level they are those that the given video would have passed. Below, they lie on the straight line between
    the two states around them, which is what Euler and DDIM walk; other samplers nearly do.

    Args:
        visited: the descending levels ``[S + 1]`` that the clip was denoised along, ending in 0.
        states: the states at them, the last one being the denoised clip.
        clean: the given video; ``noise`` was added to it.
    """
    levels = visited.tolist()
    found = []
    for sigma in sigmas[:-1].tolist():
        if sigma > levels[0]:
            found.append(clean + sigma * noise)
            continue
        step = max(s for s, level in enumerate(levels[:-1]) if level >= sigma)
        share = (levels[step] - sigma) / (levels[step] - levels[step + 1])
        found.append(torch.lerp(states[step], states[step + 1], share))
    return found


def full_trajectory(noise: Tensor, states: list[Tensor], context: dict[str, Any]) -> Trajectory:
    """A trajectory that any later overlap, beta and order can be served from: every frame of every step."""
    everything = ReuseSettings(overlap_frames=noise.shape[2], guidance_beta=1.0)
    return Trajectory(noise, states, everything, len(states), context)
