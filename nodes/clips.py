"""Sample a first clip, and grow a video by the clip that reuses the one before."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.presets import find_preset
from ..vidrd_core.reuse import ReuseSettings, Trajectory, initial_noise, progressive_noise
from ..vidrd_core.seeds import clip_noise
from .latents import prior_of, video_samples, with_prior
from .native.model import vidrd_model
from .rebuild import DEFAULT_METHOD, METHODS, full_trajectory, rebuild
from .steering import check_sampler, denoise_clip, noise_levels, state_scales
from .words import AUTO, CUSTOM, FROM_PRIOR

logger = logging.getLogger(__name__)

CLIP_FRAMES = 8  # of a clip that continues a video which does not say its clip length


@dataclass(frozen=True)
class Schedule:
    """How a clip is denoised."""

    steps: int
    sampler: str
    scheduler: str

    def sigmas(self, model: Any) -> Tensor:
        return noise_levels(model, self.steps, self.sampler, self.scheduler)

    def context(self, model: Any, sigmas: Tensor, clip_index: int) -> dict[str, Any]:
        """What a trajectory remembers of how its clip was made."""
        return {
            "model": vidrd_model(model).fingerprint,
            "steps": self.steps,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "sigmas": [float(s) for s in sigmas],
            "clip_index": clip_index,
        }


RELEASED_SCHEDULE = Schedule(50, "ddim", "ddim_uniform")


def reuse_settings(preset: str, chosen: tuple[Any, ...], latent: dict[str, Any], clip_frames: int) -> ReuseSettings:
    """The settings of a node: a preset's, for clips as long as those of ``latent``, or the chosen ones.

    Args:
        preset: "custom" or a name of :data:`vidrd_core.presets.PRESETS`.
        chosen: the fields of :class:`ReuseSettings`, in their order.

    Raises:
        ValueError: a value does not fit.
    """
    if preset == CUSTOM:
        return ReuseSettings(*chosen)
    prior = prior_of(latent)
    if prior is not None and not clip_frames:
        return find_preset(preset).reuse(prior.trajectory.num_frames)
    samples = video_samples(latent, "prior")
    begins = not torch.count_nonzero(samples)  # an empty latent is as long as the clips that it begins
    return find_preset(preset).reuse(samples.shape[2] if begins else clip_frames or CLIP_FRAMES)


def unit_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of a clip: the first video of a batch from ``seed``, the next from ``seed + 1``, ..."""
    return clip_noise([seed + b for b in range(shape[0])], shape)


def first_clip(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    schedule: Schedule,
    cfg: float,
    denoise: float = 1.0,
    progressive_alpha: float = 0.0,
) -> dict[str, Any]:
    """The LATENT of a first clip. ``denoise`` below 1 starts from ``latent`` instead of pure noise.

    Raises:
        ValueError: the latents, the model or the sampler do not fit.
    """
    vidrd_model(model)
    check_sampler(schedule.sampler)
    start = video_samples(latent, "LATENT")
    if denoise < 1 and not torch.count_nonzero(start):
        raise ValueError(f"denoise is {denoise} but LATENT is empty: set denoise to 1, or encode a video to start from")
    sigmas = noise_levels(model, schedule.steps, schedule.sampler, schedule.scheduler, denoise)
    noise = progressive_noise(unit_noise(seed, tuple(start.shape)), progressive_alpha)
    samples, states = denoise_clip(model, positive, negative, noise, start, sigmas, schedule.sampler, cfg, seed)
    if denoise < 1:  # the levels above the start are those that the given video would have passed
        schedule = Schedule(int(schedule.steps / denoise), schedule.sampler, schedule.scheduler)
        all_sigmas = schedule.sigmas(model)
        clean = model.model.process_latent_in(start)
        states = [clean + float(s) * noise for s in all_sigmas[: len(all_sigmas) - len(sigmas)]] + states
        sigmas = all_sigmas
    context = schedule.context(model, sigmas, 0)
    return with_prior(samples, full_trajectory(noise, states, context), samples.shape[2])


def next_clip(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    cfg: float,
    settings: ReuseSettings,
    steps: int = 0,
    sampler: str = FROM_PRIOR,
    scheduler: str = FROM_PRIOR,
    prior_trajectory: str = AUTO,
    clip_frames: int = 0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The clip that follows ``latent``: LATENTs of the video so far and of the new clip.

    Raises:
        ValueError: the prior, the model, the settings or the sampler do not fit.
    """
    vidrd_model(model)
    video = video_samples(latent, "prior")
    if not torch.count_nonzero(video):
        raise ValueError("prior is empty: sample a first clip before it can be continued")
    past = past_trajectory(
        model,
        positive,
        negative,
        latent,
        video,
        seed,
        settings,
        steps,
        sampler,
        scheduler,
        prior_trajectory,
        clip_frames,
    )
    schedule = Schedule(past.context["steps"], past.context["sampler"], past.context["scheduler"])
    sigmas = torch.tensor(past.context["sigmas"])
    scales = state_scales(model, sigmas)

    noise = initial_noise(past.noise, unit_noise(seed, tuple(past.noise.shape)), settings)
    clip, states = denoise_clip(
        model,
        positive,
        negative,
        noise,
        torch.zeros_like(noise),
        sigmas,
        schedule.sampler,
        cfg,
        seed,
        lambda step: past.guidance(step, settings, scales),
    )
    trajectory = full_trajectory(noise, states, schedule.context(model, sigmas, past.context["clip_index"] + 1))
    joined = clip[:, :, settings.trim_frames :]
    tail = joined.shape[2]
    return with_prior(torch.cat((video, joined), dim=2), trajectory, tail), with_prior(clip, trajectory, tail)


def past_trajectory(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    video: Tensor,
    seed: int,
    settings: ReuseSettings,
    steps: int,
    sampler: str,
    scheduler: str,
    prior_trajectory: str,
    clip_frames: int,
) -> Trajectory:
    """The trajectory that a LATENT brings along, or one rebuilt for it.

    Raises:
        ValueError: it was made by another model, sampler or schedule, or does not fit the settings.
    """
    prior = prior_of(latent) if prior_trajectory == AUTO else None
    if prior is None:
        known = {
            k: v
            for k, v in {"steps": steps, "sampler": sampler, "scheduler": scheduler}.items()
            if v not in (0, FROM_PRIOR)
        }
        schedule = Schedule(**{**RELEASED_SCHEDULE.__dict__, **known})
        check_sampler(schedule.sampler)
        clip = video[:, :, -(clip_frames or CLIP_FRAMES) :]
        settings.check(clip.shape[2])
        sigmas = schedule.sigmas(model)
        method = prior_trajectory if prior_trajectory in METHODS else DEFAULT_METHOD
        logger.info("The prior has no trajectory; it is rebuilt for its last %d frames (%s).", clip.shape[2], method)
        noise, states = rebuild(model, positive, negative, clip, sigmas, seed, method)
        return full_trajectory(noise, states, schedule.context(model, sigmas, 0))

    prior.check_model(vidrd_model(model))
    trajectory = prior.trajectory
    settings.check(trajectory.num_frames)
    context = trajectory.context
    check_same("steps", steps, context["steps"], 0)
    check_same("sampler", sampler, context["sampler"], FROM_PRIOR)
    check_same("scheduler", scheduler, context["scheduler"], FROM_PRIOR)
    check_same("clip_frames", clip_frames, trajectory.num_frames, 0)
    sigmas = noise_levels(model, context["steps"], context["sampler"], context["scheduler"])
    before = torch.tensor(context["sigmas"])
    if sigmas.shape != before.shape or not torch.allclose(sigmas, before, rtol=1e-4):
        raise ValueError(
            "the prior was sampled with other noise levels than this model now has: remove the node that changes the "
            "model's sampling, or set prior_trajectory to invert or noise"
        )
    return trajectory


def check_same(name: str, wanted: Any, prior: Any, unset: Any) -> None:
    """Raise ``ValueError`` where a setting is overridden by something that the prior's trajectory does not fit."""
    if wanted not in (unset, prior):
        raise ValueError(
            f"the prior was made with {name} {prior}, this node asks for {wanted}: set {name} to {unset} to go on as "
            "before, or set prior_trajectory to invert or noise to change it from here on"
        )
