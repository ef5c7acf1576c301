"""Sample a first clip, and grow a video by the clip that reuses the one before."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.noise import initial_noise, progressive_noise
from ..vidrd_core.reuse.presets import find_preset
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.seeds import clip_noise, clip_seed
from .latents import KEY, known_context, known_positive, prior_of, video_samples, with_prior
from .native.model import vidrd_model
from .rebuild import DEFAULT_METHOD, full_trajectory, rebuild, states_at
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

    def tell(self, sigmas: Tensor) -> None:
        """Say so where the scheduler made another number of steps than was asked for, as ddim_uniform does."""
        if len(sigmas) - 1 != self.steps:
            made = len(sigmas) - 1
            logger.info("%s makes %d steps of %d, as in the stock KSampler.", self.scheduler, made, self.steps)

    def context(self, model: Any, sigmas: Tensor, clip_index: int, seeds: list[int]) -> dict[str, Any]:
        """What a trajectory remembers of how its clip was made, and which seeds its video has used so far."""
        return {
            "model": vidrd_model(model).fingerprint,
            "steps": self.steps,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "sigmas": [float(s) for s in sigmas],
            "clip_index": clip_index,
            "seeds": seeds,
        }


RELEASED_SCHEDULE = Schedule(50, "ddim", "ddim_uniform")


@dataclass(frozen=True)
class Overrides:
    """What a node asks for in place of what the prior was made with; the defaults leave it all to the prior."""

    steps: int = 0
    sampler: str = FROM_PRIOR
    scheduler: str = FROM_PRIOR
    prior_trajectory: str = AUTO
    clip_frames: int = 0

    def schedule(self, known: Mapping[str, Any]) -> Schedule:
        """The schedule that was asked for; the rest as in the context ``known``, else as released."""
        asked: dict[str, Any] = {"steps": self.steps, "sampler": self.sampler, "scheduler": self.scheduler}
        chosen = {name: value for name, value in asked.items() if value not in (0, FROM_PRIOR)}
        return Schedule(**{n: chosen.get(n, known.get(n, released)) for n, released in vars(RELEASED_SCHEDULE).items()})

    def check(self, trajectory: Trajectory, made: str, change: str) -> None:
        """Raise ``ValueError`` where something is asked for that ``trajectory`` does not fit.

        Args:
            made: what the trajectory is of, for the message.
            change: how to get what was asked for.
        """
        context = trajectory.context
        for name, asked, known, unset in (
            ("steps", self.steps, context["steps"], 0),
            ("sampler", self.sampler, context["sampler"], FROM_PRIOR),
            ("scheduler", self.scheduler, context["scheduler"], FROM_PRIOR),
            ("clip_frames", self.clip_frames, trajectory.num_frames, 0),
        ):
            if asked not in (unset, known):
                raise ValueError(
                    f"{made} was made with {name} {known}, this node asks for {asked}: set {name} to {unset} to go on "
                    f"as before, or {change}"
                )


def reuse_settings(preset: str, chosen: tuple[Any, ...], latent: dict[str, Any], clip_frames: int) -> ReuseSettings:
    """The settings of a node: a preset's, for clips as long as those of ``latent``, or the chosen ones.

    Args:
        preset: "custom" or a name of :data:`vidrd_core.reuse.presets.PRESETS`.
        chosen: the fields of :class:`ReuseSettings`, in their order.

    Raises:
        ValueError: a value does not fit.
    """
    if preset == CUSTOM:
        return ReuseSettings(*chosen)
    samples = video_samples(latent, "prior")
    begins = not torch.count_nonzero(samples)  # an empty latent is as long as the clips that it begins
    return find_preset(preset).reuse.fitted(samples.shape[2] if begins else clip_length(latent, samples, clip_frames))


def clip_length(latent: dict[str, Any], video: Tensor, clip_frames: int) -> int:
    """Frames of the clip that is to follow: those asked for, else the prior's, else 8 or as many as there are.

    Raises:
        ValueError: the video is shorter than what was asked for.
    """
    frames = video.shape[2]
    if clip_frames > frames:
        raise ValueError(
            f"clip_frames is {clip_frames} but prior has {frames} frames, and a clip can only follow one of its own "
            f"length: set clip_frames to at most {frames}, or to 0"
        )
    known = latent[KEY].trajectory.num_frames if KEY in latent else CLIP_FRAMES
    return clip_frames or min(known, frames)


def fresh_seed(seed: int, clip_index: int, used: Collection[int]) -> int:
    """``seed``, or where the video has used it already one derived from it, since equal noise would not mix to 1."""
    chosen = seed
    while chosen in used:
        chosen = clip_seed(seed, clip_index)
        clip_index += 1
    return chosen


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
    """The LATENT of a first clip.

    Args:
        denoise: 1 starts from pure noise, of the size of ``latent`` whatever is in it; less starts from ``latent`` with
            noise. (The stock KSampler adds what is in the latent at 1 too, so that a clip's states would be those of
            another noise than the one that the next clip reuses.)

    Raises:
        ValueError: the latents, the model or the sampler do not fit.
    """
    vidrd_model(model)
    check_sampler(schedule.sampler)
    start = video_samples(latent, "LATENT")
    if denoise < 1 and not torch.count_nonzero(start):
        raise ValueError(f"denoise is {denoise} but LATENT is empty: set denoise to 1, or encode a video to start from")
    if denoise >= 1 and torch.count_nonzero(start):
        logger.info("denoise is 1, so only the size of LATENT counts: set it below 1 to start from the video in it.")
        start = torch.zeros_like(start)
    sigmas = noise_levels(model, schedule.steps, schedule.sampler, schedule.scheduler, denoise)
    schedule.tell(sigmas)
    noise = progressive_noise(unit_noise(seed, tuple(start.shape)), progressive_alpha)
    samples, states = denoise_clip(model, positive, negative, noise, start, sigmas, schedule.sampler, cfg, seed)
    if denoise < 1:  # what follows is denoised from pure noise, in as many steps
        clean, end = model.model.process_latent_in(start), model.model.process_latent_in(samples)
        levels = schedule.sigmas(model)
        states = states_at(levels, sigmas, [*states, end], clean, noise)
        sigmas = levels
    context = schedule.context(model, sigmas, 0, [seed])
    return with_prior(samples, full_trajectory(noise, states, context), samples.shape[2], positive)


def next_clip(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    cfg: float,
    settings: ReuseSettings,
    overrides: Overrides = Overrides(),
    prior_positive: Any = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The clip that follows ``latent``: LATENTs of the video so far and of the new clip.

    Args:
        prior_positive: conditioning that says what ``latent`` shows, for its inversion where it has no trajectory that
            can be used. None takes what its last clip was sampled with, where that is known, else ``negative``.

    Raises:
        ValueError: the prior, the model, the settings or the sampler do not fit.
    """
    vidrd_model(model)
    video = video_samples(latent, "prior")
    if not torch.count_nonzero(video):
        raise ValueError("prior is empty: sample a first clip before it can be continued")
    past = past_trajectory(model, prior_positive, negative, latent, video, seed, settings, overrides)
    schedule = Schedule(past.context["steps"], past.context["sampler"], past.context["scheduler"])
    sigmas = torch.tensor(past.context["sigmas"])
    scales = state_scales(model, sigmas)

    index, used = past.context["clip_index"] + 1, past.context.get("seeds", [])
    seed = fresh_seed(seed, index, used)
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
    trajectory = full_trajectory(noise, states, schedule.context(model, sigmas, index, [*used, seed]))
    joined = clip[:, :, settings.trim_frames :]
    tail = joined.shape[2]
    past_of = (trajectory, tail, positive)
    return with_prior(torch.cat((video, joined), dim=2), *past_of), with_prior(clip, *past_of)


def past_trajectory(
    model: Any,
    prior_positive: Any,
    negative: Any,
    latent: dict[str, Any],
    video: Tensor,
    seed: int,
    settings: ReuseSettings,
    overrides: Overrides,
) -> Trajectory:
    """The trajectory that a LATENT brings along, or one rebuilt for it.

    Raises:
        ValueError: it was made by another model, sampler or schedule, or does not fit the settings.
    """
    method = overrides.prior_trajectory
    prior = prior_of(latent) if method == AUTO else None
    if prior is None:
        known = known_context(latent)
        schedule = overrides.schedule(known)
        check_sampler(schedule.sampler)
        clip = video[:, :, -clip_length(latent, video, overrides.clip_frames) :]
        settings.check(clip.shape[2])
        sigmas = schedule.sigmas(model)
        method = DEFAULT_METHOD if method == AUTO else method
        source, its_name = inversion_source(model, prior_positive, negative, latent)
        logger.info(
            "The prior's trajectory is rebuilt (%s) for its last %d frames, with %d steps of %s, %s.",
            f"{method} by {its_name}" if method == "invert" else method,
            clip.shape[2], len(sigmas) - 1, schedule.sampler, schedule.scheduler,
        )  # fmt: skip
        noise, states = rebuild(model, source, negative, clip, sigmas, seed, method)
        return full_trajectory(noise, states, schedule.context(model, sigmas, 0, known.get("seeds", [])))

    prior.check_model(vidrd_model(model))
    trajectory = prior.trajectory
    settings.check(trajectory.num_frames)
    context = trajectory.context
    overrides.check(trajectory, "the prior", "set prior_trajectory to invert or noise to change it from here on")
    sigmas = noise_levels(model, context["steps"], context["sampler"], context["scheduler"])
    before = torch.tensor(context["sigmas"])
    if sigmas.shape != before.shape or not torch.allclose(sigmas, before, rtol=1e-4):
        raise ValueError(
            "the prior was sampled with other noise levels than this model now has: remove the node that changes the "
            "model's sampling, or set prior_trajectory to invert or noise"
        )
    return trajectory


def inversion_source(model: Any, given: Any, negative: Any, latent: dict[str, Any]) -> tuple[Any, str]:
    """The conditioning by which a LATENT is inverted, and how the log calls it.

    Not the new clip's: that would lead the old frames towards what they do not show.
    """
    if given is not None:
        return given, "prior_positive"
    known = known_positive(latent, vidrd_model(model))
    return (known, "its own prompt") if known is not None else (negative, "negative, as its own prompt is not known")
