"""Denoise one clip, steered by the clip before (arXiv 2309.03549) and towards goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..reuse.goal import Goal
from ..reuse.settings import ReuseSettings
from ..reuse.trajectory import Trajectory, TrajectoryRecorder, steer
from .schedulers import state_coefficients, state_scales

Denoiser = Callable[[Tensor, Tensor, float], Tensor]  # latents, timestep, share of the steps done -> prediction


def denoise_clip(
    denoiser: Denoiser,
    scheduler: Any,
    noise: Tensor,
    settings: ReuseSettings,
    past: Trajectory | None = None,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    goals: Sequence[Goal] = (),
) -> tuple[Tensor, Trajectory]:
    """Denoise one clip, steered by the trajectory of the one before.

    Args:
        denoiser: what predicts the noise, such as :class:`vidrd_core.sampling.guidance.GuidedDenoiser`.
        scheduler: a diffusers scheduler with its timesteps set.
        noise: unit-variance noise ``[B, C, N, h, w]`` on the model's device.
        past: the trajectory of the clip before, or None for a first clip.
        on_step: called after each step with (step, timestep, latents); may return other latents, or raise to stop.
        goals: frames of this clip that follow paths of their own.

    Returns:
        The latents ``[B, C, N, h, w]`` and the trajectory for the next clip.
    """
    timesteps = scheduler.timesteps
    scales = state_scales(scheduler) if goals or (past is not None and settings.cleaner_overlap) else None
    coefficients = state_coefficients(scheduler) if goals else []
    for goal in goals:
        goal.check(noise.shape[2], 0 if past is None else settings.overlap_frames)
        noise = goal.start(noise)
    recorder = TrajectoryRecorder(noise, settings, len(timesteps))
    latents = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(timesteps):
        # DSG, and what the next clip will be steered by.
        latents = steer(latents, None if past is None else past.overlap_at(step, settings, scales))
        for goal in goals:
            latents = goal.write(latents, goal.at(step, len(timesteps), noise, coefficients, scales or []))
        recorder.record(step, latents)

        # Some schedulers return the prediction's precision; the latents stay in theirs.
        predicted = denoiser(scheduler.scale_model_input(latents, timestep), timestep, step / len(timesteps))
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        if on_step is not None:
            changed = on_step(step, timestep, latents)
            latents = latents if changed is None else changed
    for goal in goals:
        latents = goal.finish(latents, len(timesteps))
    return latents, recorder.finish()
