"""Denoise one clip, steered by the clip before (arXiv 2309.03549) and towards goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..reuse.goal import Goal
from ..reuse.settings import ReuseSettings
from ..reuse.states import SamplerStates
from ..reuse.trajectory import Trajectory, TrajectoryRecorder, steer
from .schedulers import sampler_states

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
    for goal in goals:
        goal.check(noise.shape[2], 0 if past is None else settings.overlap_frames)
        noise = goal.start(noise)
    steering = _Steering(settings, past, goals, noise, len(timesteps), sampler_states(scheduler))
    recorder = TrajectoryRecorder(noise, settings, len(timesteps))
    latents = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(timesteps):
        # DSG, and what the next clip will be steered by.
        latents = steering.shown(latents, step)
        recorder.record(step, steering.held(latents, step))

        # Some schedulers return the prediction's precision; the latents stay in theirs.
        predicted = denoiser(scheduler.scale_model_input(latents, timestep), timestep, step / len(timesteps))
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        if on_step is not None:
            changed = on_step(step, timestep, latents)
            latents = latents if changed is None else changed
    for goal in goals:
        latents = goal.finish(latents, len(timesteps))
    recorder.record(len(timesteps), steering.held(latents, len(timesteps)))
    return latents, recorder.finish()


@dataclass(frozen=True)
class _Steering:
    """What overwrites frames of a clip: its overlap with the one before, and its goals."""

    settings: ReuseSettings
    past: Trajectory | None
    goals: Sequence[Goal]
    noise: Tensor
    num_steps: int
    sampler: SamplerStates

    def shown(self, latents: Tensor, step: int) -> Tensor:
        """What the model sees before a step; overwrites ``latents`` in place."""
        if self.past is not None:
            latents = steer(latents, self.past.overlap_at(step, self.settings, self.sampler))
        for goal in self.goals:
            latents = goal.write(latents, goal.at(step, self.num_steps, self.noise, self.sampler))
        return latents

    def held(self, latents: Tensor, step: int) -> Tensor:
        """``z[step]`` as the next clip is steered by it: what is shown cleaner stays on its own way all the same."""
        if self.past is not None and self.settings.cleaner_overlap:
            latents = steer(latents.clone(), self.past.held_at(step, self.settings))
        for goal in self.goals:
            latents = goal.write(latents.clone(), goal.held_at(step, self.num_steps, self.noise, self.sampler))
        return latents
