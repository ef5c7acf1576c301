"""Sample a first clip, and grow a video by the clip that reuses the one before."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.noise import initial_noise, progressive_noise
from ..vidrd_core.reuse.presets import find_preset
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.interchange import STORED_SIGMAS
from ..vidrd_core.sampling.seeds import clip_noise, clip_seed
from .latents import Prior, VideoLatent
from .native.model import vidrd_model
from .rebuild import DEFAULT_METHOD, full_trajectory, rebuild, states_at
from .steering import check_sampler, denoise_clip, noise_levels, state_scales
from .words import AUTO, CUSTOM, FROM_PRIOR

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How a clip is denoised."""

    steps: int
    sampler: str
    scheduler: str

    def sigmas(self, model: Any) -> Tensor:
        return noise_levels(model, self.steps, self.sampler, self.scheduler)

    def log_other_count(self, sigmas: Tensor) -> None:
        """Log it where the scheduler made another number of steps than was asked for, as ddim_uniform does."""
        if len(sigmas) - 1 != self.steps:
            made = len(sigmas) - 1
            logger.info("%s makes %d steps of %d, as in the stock KSampler.", self.scheduler, made, self.steps)

    def context(self, model: Any, sigmas: Tensor, clip_index: int, seeds: list[int], **known: Any) -> dict[str, Any]:
        """What a trajectory remembers of how its clip was made, and which seeds its video has used so far."""
        inner = vidrd_model(model)
        return {
            "model": inner.fingerprint,
            "scaling_factor": float(inner.latent_format.scale_factor),
            "steps": self.steps,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "sigmas": [float(s) for s in sigmas],
            "clip_index": clip_index,
            "seeds": seeds,
            **known,
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
        known = {name: value for name, value in known.items() if value != STORED_SIGMAS}
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
                    f"{made} was made with {name} {known}, this node asks for {asked}: set {name} to {unset} to "
                    f"continue as before, or {change}"
                )


def reuse_settings(preset: str, chosen: ReuseSettings, prior: VideoLatent, clip_frames: int) -> ReuseSettings:
    """The settings of a node: a preset's, for clips as long as those of ``prior``, or the chosen ones.

    Args:
        preset: "custom" or a name of :data:`vidrd_core.reuse.presets.PRESETS`.

    Raises:
        ValueError: a value does not fit.
    """
    if preset == CUSTOM:
        return chosen
    # An empty latent is as long as the clips that it begins.
    num_frames = prior.samples.shape[2] if prior.is_empty else prior.clip_length(clip_frames)
    return find_preset(preset).reuse.fitted(num_frames)


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
    latent: VideoLatent,
    seed: int,
    schedule: Schedule,
    cfg: float,
    denoise: float = 1.0,
    progressive_alpha: float = 0.0,
) -> VideoLatent:
    """A first clip.

    Args:
        denoise: 1 starts from pure noise, of the size of ``latent`` whatever is in it; less starts from ``latent`` with
            noise. (The stock KSampler adds what is in the latent at 1 too, so that a clip's states would be those of
            another noise than the one that the next clip reuses.)

    Raises:
        ValueError: the latents, the model or the sampler do not fit.
    """
    vidrd_model(model)
    check_sampler(schedule.sampler)
    start = latent.samples
    if denoise < 1 and latent.is_empty:
        raise ValueError(f"denoise is {denoise} but LATENT is empty: set denoise to 1, or encode a video to start from")
    if denoise >= 1 and not latent.is_empty:
        logger.info("denoise is 1, so only the size of LATENT counts: set it below 1 to start from the video in it.")
        start = torch.zeros_like(start)
    sigmas = noise_levels(model, schedule.steps, schedule.sampler, schedule.scheduler, denoise)
    schedule.log_other_count(sigmas)
    noise = progressive_noise(unit_noise(seed, tuple(start.shape)), progressive_alpha)
    samples, states = denoise_clip(model, positive, negative, noise, start, sigmas, schedule.sampler, cfg, seed)
    if denoise < 1:  # what follows is denoised from pure noise, in as many steps
        clean, end = model.model.process_latent_in(start), model.model.process_latent_in(samples)
        levels = schedule.sigmas(model)
        states = states_at(levels, sigmas, [*states, end], clean, noise)
        sigmas = levels
    context = schedule.context(model, sigmas, 0, [seed], cfg=cfg)
    trajectory = full_trajectory(noise, states, context)
    return VideoLatent.made(samples, trajectory, samples.shape[2], positive, negative)


def next_clip(
    model: Any,
    positive: Any,
    negative: Any,
    prior: VideoLatent,
    seed: int,
    cfg: float,
    settings: ReuseSettings,
    overrides: Overrides = Overrides(),
    prior_positive: Any = None,
) -> tuple[VideoLatent, VideoLatent]:
    """The clip that follows ``prior``: the video so far and the new clip.

    Args:
        prior_positive: conditioning that says what ``prior`` shows, for its inversion where it has no trajectory that
            can be used. None takes what its last clip was sampled with, where that is known, else ``negative``.

    Raises:
        ValueError: the prior, the model, the settings or the sampler do not fit.
    """
    vidrd_model(model)
    if prior.is_empty:
        raise ValueError("prior is empty: sample a first clip before it can be continued")
    if overrides.prior_trajectory == AUTO and prior.prior is not None:
        past = checked_trajectory(model, prior.prior, settings, overrides)
    else:
        past = rebuilt_trajectory(model, prior_positive, negative, prior, seed, settings, overrides)
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
        lambda step: past.overlap_at(step, settings, scales),
    )
    context = schedule.context(model, sigmas, index, [*used, seed], cfg=cfg, reuse=asdict(settings))
    joined = clip[:, :, settings.trim_frames :]
    past_of = (full_trajectory(noise, states, context), joined.shape[2], positive, negative)
    video = torch.cat((prior.samples, joined), dim=2)
    return VideoLatent.made(video, *past_of), VideoLatent.made(clip, *past_of)


def rebuilt_trajectory(
    model: Any,
    prior_positive: Any,
    negative: Any,
    prior: VideoLatent,
    seed: int,
    settings: ReuseSettings,
    overrides: Overrides,
) -> Trajectory:
    """A trajectory made for the last frames of a video that has none, or whose own is not to be used.

    Raises:
        ValueError: the sampler cannot be steered, or the settings do not fit.
    """
    schedule = overrides.schedule(prior.context)
    check_sampler(schedule.sampler)
    clip = prior.last_clip(overrides.clip_frames)
    if prior.is_image:
        logger.warning("prior is an image, so the new clip follows a still clip of it, of %d frames.", clip.shape[2])
    settings.check(clip.shape[2])
    sigmas = schedule.sigmas(model)
    method = DEFAULT_METHOD if overrides.prior_trajectory == AUTO else overrides.prior_trajectory
    source, its_name = inversion_source(model, prior_positive, negative, prior)
    logger.info(
        "The prior's trajectory is rebuilt (%s) for its last %d frames, with %d steps of %s, %s.",
        f"{method} by {its_name}" if method == "invert" else method,
        clip.shape[2], len(sigmas) - 1, schedule.sampler, schedule.scheduler,
    )  # fmt: skip
    if not overrides.steps and "steps" not in prior.context:
        logger.warning(
            "The prior does not say its number of steps, so %d are %s: set steps to the number that it was sampled in.",
            len(sigmas) - 1, "inverted and sampled" if method == "invert" else "sampled",
        )  # fmt: skip
    noise, states = rebuild(model, source, negative, clip, sigmas, seed, method)
    return full_trajectory(noise, states, schedule.context(model, sigmas, 0, prior.context.get("seeds", [])))


def checked_trajectory(model: Any, prior: Prior, settings: ReuseSettings, overrides: Overrides) -> Trajectory:
    """The trajectory that a LATENT brings along.

    Raises:
        ValueError: it was made by another model, sampler or schedule, or does not fit the settings.
    """
    prior.check_model(vidrd_model(model))
    trajectory, context = prior.trajectory, prior.context
    trajectory.check(settings)
    overrides.check(trajectory, "the prior", "set prior_trajectory to invert or noise to change it from here on")
    before = torch.tensor(context["sigmas"])
    if context["scheduler"] == STORED_SIGMAS:
        highest = float(model.get_model_object("model_sampling").sigma_max)
        fits = float(before.max()) <= highest * 1.001
    else:
        sigmas = noise_levels(model, context["steps"], context["sampler"], context["scheduler"])
        fits = sigmas.shape == before.shape and torch.allclose(sigmas, before, rtol=1e-4)
    if not fits:
        raise ValueError(
            "the prior was sampled with other noise levels than this model now has: remove the node that changes the "
            "model's sampling, or set prior_trajectory to invert or noise"
        )
    return trajectory


def inversion_source(model: Any, given: Any, negative: Any, prior: VideoLatent) -> tuple[Any, str]:
    """The conditioning by which a video is inverted, and how the log calls it.

    Not the new clip's: that would lead the old frames towards what they do not show.
    """
    if given is not None:
        return given, "prior_positive"
    known = prior.known_positive(vidrd_model(model))
    return (known, "its own prompt") if known is not None else (negative, "negative, as its own prompt is not known")
