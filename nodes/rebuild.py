"""Make a trajectory for latents that have none: a user's own video, or another sampler's output."""

from __future__ import annotations

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
from .any_model.families import family_of
from .any_model.noise import ModelNoise
from .words import INVERT, STRAIGHT

DEFAULT_METHOD = INVERT


def rebuild(
    model: Any, noise: ModelNoise, positive: Any, negative: Any, clip: Tensor, sigmas: Tensor, seed: int, method: str
) -> tuple[Tensor, list[Tensor]]:
    """The noise and the states that ``clip`` might have been denoised from.

    Args:
        noise: how it enters the model's samples.
        positive: conditioning that says what ``clip`` shows; it alone guides the inversion.
        clip: unscaled latents ``[B, C, N, h, w]``.
        method: "invert": DDIM inversion, one pass of the network per step without classifier-free guidance. "noise":
            the clip plus known noise at every level, the straight line; free.

    Returns:
        Unit-variance noise ``[B, C, N, h, w]`` and one state per step, in the sampler's space.
    """
    if method == STRAIGHT:
        return known_noise(model, noise, clip, sigmas, seed)
    return invert(model, noise, positive, negative, clip, sigmas)


def known_noise(model: Any, noise: ModelNoise, clip: Tensor, sigmas: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Forward diffusion with one noise for all levels."""
    unit = clip_noise([clip_seed(seed, -1) + b for b in range(clip.shape[0])], clip.shape)
    clean = model.model.process_latent_in(clip)
    return unit, [noise.mix(float(sigma), unit, clean) for sigma in sigmas[:-1]]


def invert(
    model: Any, noise: ModelNoise, positive: Any, negative: Any, clip: Tensor, sigmas: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """DDIM inversion (arXiv 2010.02502, section 4.3), with the noise predicted where each step arrives.

    Taking the prediction at the arrival instead of the departure makes each step the inverse of the Euler step that
    sampling takes there, up to one fixed-point iteration. The way is ``dx / dsigma = (x - D) / sigma`` for models that
    add noise and for flow models alike.
    """
    states: list[Tensor] = []
    layout = family_of(model).layout
    rising = sigmas.flip(0)  # from 0, where the state is the clip itself whatever the model does with noise

    def sample(inner: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, **_: Any) -> Tensor:
        ones = x.new_ones(x.shape[0])

        def direction(at: Tensor, sigma: Tensor) -> Tensor:
            return (at - inner(at, sigma * ones, **(extra_args or {}))) / sigma

        slope = direction(x, sigmas[1])
        for step, (before, sigma) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            slope = direction(x + slope * (sigma - before), sigma)
            x = x + slope * (sigma - before)
            states.append(layout.to_video(x).detach().to("cpu", copy=True))
            if callback is not None:
                callback({"x": x, "denoised": x - slope * sigma, "i": step, "sigma": sigma, "sigma_hat": sigma})
        return torch.zeros_like(x)  # not the state: ComfyUI would divide it by 1 - sigma, which may be 0

    on_wire = layout.from_video(clip)
    comfy.sample.sample_custom(
        model,
        torch.zeros_like(on_wire),
        1.0,
        comfy.samplers.KSAMPLER(sample),
        rising,
        positive,
        negative,
        on_wire,
        callback=latent_preview.prepare_callback(model, len(rising) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=0,
    )
    states.reverse()
    return noise.unit_noise_at_start(states[0], float(sigmas[0])), states


def full_trajectory(noise: Tensor, states: list[Tensor], context: dict[str, Any]) -> Trajectory:
    """A trajectory that any later overlap, beta and order can be served from: every frame of every step."""
    everything = ReuseSettings(overlap_frames=noise.shape[2], guidance_beta=1.0)
    return Trajectory(noise, states, everything, len(states), context, calls=list(context["sigmas"][: len(states)]))
