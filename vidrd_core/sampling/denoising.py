"""Denoise one clip through the U-Net, steered by the clip before (arXiv 2309.03549)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models.unet import VidRDUNet
from ..reuse.settings import ReuseSettings
from ..reuse.trajectory import Trajectory, TrajectoryRecorder, guide
from .guidance import rescale_guidance
from .schedulers import state_scales

Interval = tuple[float, float]
ALWAYS: Interval = (0.0, 1.0)


def denoise_clip(
    unet: VidRDUNet,
    scheduler: Any,
    noise: Tensor,
    text: Tensor,
    negative: Tensor | None,
    guidance_scale: float,
    settings: ReuseSettings,
    past: Trajectory | None = None,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    context: dict[str, Any] | None = None,
    guidance_interval: Interval = ALWAYS,
    split_guidance: bool = False,
    guidance_rescale: float = 0.0,
) -> tuple[Tensor, Trajectory]:
    """Denoise one clip, steered by the trajectory of the one before.

    Args:
        scheduler: with its timesteps set.
        noise: unit-variance noise ``[B, C, N, h, w]`` on the model's device.
        text, negative: states ``[B, M, D]``; no classifier-free guidance where ``negative`` is None.
        past: the trajectory of the clip before, or None for a first clip.
        on_step: called after each step with (step, timestep, latents); may return other latents, or raise to stop.
        guidance_interval: the share of the steps, from and to, in which guidance runs; the prompt alone in the others.
        guidance_rescale: strength of :func:`vidrd_core.sampling.guidance.rescale_guidance`, 0 (off) to 1.
        split_guidance: run the halves of guidance one after the other, in about half the memory.

    Returns:
        The latents ``[B, C, N, h, w]`` and the trajectory for the next clip.
    """
    timesteps = scheduler.timesteps
    scales = state_scales(scheduler) if past is not None and settings.guidance_lead else None
    recorder = TrajectoryRecorder(noise, settings, len(timesteps), context)
    latents = noise * scheduler.init_noise_sigma
    both = text if negative is None or split_guidance else torch.cat((negative, text))
    for step, timestep in enumerate(timesteps):
        # DSG, and what the next clip will be guided by.
        latents = guide(latents, None if past is None else past.guidance(step, settings, scales))
        recorder.record(step, latents)

        # Predict the noise. Some schedulers return the prediction's precision; the latents stay in theirs.
        model_input = scheduler.scale_model_input(latents, timestep).to(text.dtype)
        if negative is None or not is_guided(step, len(timesteps), guidance_interval):
            predicted = unet(model_input, timestep, text).sample.to(latents.dtype)
        else:
            if split_guidance:
                uncond, cond = (unet(model_input, timestep, half).sample.to(latents.dtype) for half in (negative, text))
            else:
                doubled = torch.cat((model_input, model_input))
                uncond, cond = unet(doubled, timestep, both).sample.to(latents.dtype).chunk(2)
            predicted = uncond + guidance_scale * (cond - uncond)
            if guidance_rescale:
                predicted = rescale_guidance(predicted, cond, guidance_rescale)

        latents = scheduler.step(predicted, timestep, latents).prev_sample
        if on_step is not None:
            changed = on_step(step, timestep, latents)
            latents = latents if changed is None else changed
    return latents, recorder.finish()


def is_guided(step: int, num_steps: int, interval: Interval) -> bool:
    """Whether classifier-free guidance runs at ``step``."""
    return interval[0] <= step / num_steps < interval[1]


def check_interval(interval: Interval) -> Interval:
    """The interval as two numbers; ``ValueError`` unless 0 <= from <= to <= 1."""
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"guidance_interval is {tuple(interval)}; expected two shares of the steps, 0 <= from <= to <= 1"
        )
    return float(interval[0]), float(interval[1])


def interval_context(interval: Interval) -> dict[str, str]:
    """What a trajectory says of the interval: nothing where guidance always runs, as in videos of before it existed."""
    return {} if interval == ALWAYS else {"guidance_interval": f"{interval[0]:g} {interval[1]:g}"}


def interval_of(context: Any) -> Interval:
    """The interval that :func:`interval_context` wrote."""
    first, last = (float(part) for part in context.get("guidance_interval", "0 1").split())
    return first, last
