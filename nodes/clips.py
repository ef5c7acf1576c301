"""Sample a first clip, and grow a video by the clip that reuses the one before."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..vidrd_core.reuse.noise import progressive_noise
from ..vidrd_core.reuse.replay import PastClip
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.interchange import STORED_SIGMAS
from ..vidrd_core.sampling.seeds import clip_noise, clip_seed
from .any_model.families import Family, family_of
from .any_model.noise import ModelNoise
from .latents import Prior, VideoLatent
from .planning import check_other_class, describe, first_plan, next_plan, num_latents, recording
from .rebuild import DEFAULT_METHOD, full_trajectory, rebuild
from .samplers import check_sampler, noise_levels
from .schedules import NO_OVERRIDES, USUAL_SCHEDULE, Models, Overrides, Schedule
from .steering import ClipPlan, Session
from .words import AUTO, INVERT

logger = logging.getLogger(__name__)


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


def wire_noise(seed: int, empty: Tensor, family: Family) -> Tensor:
    """Noise of a clip as the family lays it out: VidRD's by videos, others' as every stock sampler node draws it."""
    return unit_noise(seed, tuple(empty.shape)) if family.is_vidrd else comfy.sample.prepare_noise(empty, seed)


def denoise(
    models: Models,
    session: Session,
    positive: Any,
    negative: Any,
    noise: Tensor,
    start: Tensor,
    sigmas: Tensor,
    sampler: str,
    cfg: float,
    seed: int,
    noise_mask: Tensor | None = None,
) -> Tensor:
    """Sample one clip, by one model or by two experts one after the other.

    Args:
        noise: unit-variance, laid out as on a wire; ``start`` likewise, unscaled, zeros where there is nothing.

    Returns:
        Unscaled latents, as on a wire, on the CPU.

    Raises:
        ValueError: the sampler cannot be steered, or the models do not fit.
    """
    check_sampler(sampler)
    switch = models.switch(len(sigmas) - 1)
    samples = start
    for model, first, last in ((models.high, 0, switch), (models.low, switch, len(sigmas) - 1)):
        if first == last:
            continue
        samples = comfy.sample.sample_custom(
            session.attach(model),
            torch.zeros_like(noise) if first else noise,
            cfg,
            comfy.samplers.sampler_object(sampler),
            sigmas[first : last + 1],
            positive,
            negative,
            samples,
            noise_mask=noise_mask,
            callback=latent_preview.prepare_callback(model, last - first),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
    return samples.detach().float().cpu()


def first_clip(
    models: Models,
    positive: Any,
    negative: Any,
    latent: VideoLatent,
    seed: int,
    schedule: Schedule,
    cfg: float,
    denoise_share: float = 1.0,
    progressive_alpha: float = 0.0,
) -> VideoLatent:
    """A first clip.

    Args:
        denoise_share: 1 starts from pure noise, of the size of ``latent``; less starts from ``latent`` with noise. A
            VidRD clip then starts from noise whatever is in the latent. (The stock KSampler adds it, so that a clip's
            states would be those of another noise than the one that the next clip reuses.) Other families' latents may
            hold an image that the clip begins with, and go to the sampler as they are.

    Raises:
        ValueError: the latents, the model or the sampler do not fit.
    """
    model = models.high
    family = family_of(model)
    check_sampler(schedule.sampler)
    start = latent.samples
    if denoise_share < 1 and latent.is_empty:
        raise ValueError(
            f"denoise is {denoise_share} but LATENT is empty: set denoise to 1, or encode a video to start from"
        )
    if family.is_vidrd and denoise_share >= 1 and not latent.is_empty:
        logger.info("denoise is 1, so only the size of LATENT counts: set it below 1 to start from the video in it.")
        start = torch.zeros_like(start)
    sigmas = schedule.sigmas(model, denoise_share)
    schedule.log_other_count(sigmas)
    layout = family.layout
    on_wire = layout.from_video(start)
    noise = layout.to_video(wire_noise(seed, on_wire, family))
    noise = layout.from_video(progressive_noise(noise, progressive_alpha))
    plan = first_plan(model, family, start.shape[2])
    session = Session(plan)
    made = denoise(
        models, session, positive, negative, noise, on_wire, sigmas, schedule.sampler, cfg, seed, latent.noise_mask
    )
    samples = layout.to_video(made)
    context = schedule.context(model, family, sigmas, 0, [seed], cfg=cfg, **switched(models))
    trajectory = session.trajectory(context)
    if denoise_share < 1:  # what follows is denoised from pure noise, in as many steps
        trajectory = completed(model, trajectory, samples, schedule.sigmas(model), plan)
    return VideoLatent.made(samples, trajectory, samples.shape[2], positive, negative, layout)


def switched(models: Models) -> dict[str, Any]:
    """What a trajectory remembers of a second expert."""
    return {} if models.low is None else {"switch_at_step": models.switch_at_step}


def completed(model: Any, trajectory: Trajectory, samples: Tensor, levels: Tensor, plan: ClipPlan) -> Trajectory:
    """The trajectory, at all of the schedule's levels, of a clip that was denoised from a video with noise.

    Above the level where that began, its states are those that the given video would have passed.
    """
    end = model.model.process_latent_in(samples)[:, :, samples.shape[2] - plan.kept :]
    clip = PastClip(recording(trajectory), end, trajectory.noise, plan.noise)
    back = torch.arange(plan.kept, 0, -1)
    calls = [float(level) for level in levels[:-1]]
    states = [clip.state(sigma, back).to(plan.dtype) for sigma in calls]
    context = {**trajectory.context, "sigmas": [float(level) for level in levels]}
    return replace(trajectory, states=states, predictions=[], calls=calls, num_steps=len(calls), context=context)


def next_clip(
    models: Models,
    positive: Any,
    negative: Any,
    prior: VideoLatent,
    seed: int,
    cfg: float,
    settings: ReuseSettings,
    overrides: Overrides = NO_OVERRIDES,
    prior_positive: Any = None,
    sigmas: Tensor | None = None,
    tell_levels: str = AUTO,
    preset: str = AUTO,
) -> tuple[VideoLatent, VideoLatent, str]:
    """The clip that follows ``prior``: the video so far, the new clip, and what it keeps and adds in words.

    Args:
        prior_positive: conditioning that says what ``prior`` shows, for its inversion where it has no trajectory that
            can be used. None takes what its last clip was sampled with, where that is known, else ``negative``.
        sigmas: noise levels ``[S + 1]`` in place of the prior's; not for VidRD.

    Raises:
        ValueError: the prior, the model, the settings or the sampler do not fit.
    """
    model = models.high
    family = family_of(model)
    if prior.is_empty:
        raise ValueError("prior is empty: sample a first clip before it can be continued")
    if prior.begins:
        raise ValueError(
            "prior has a noise mask and no trajectory, as the latents that an image-to-video clip begins with: sample "
            "a first clip from it before it can be continued"
        )
    past, tail = followed(models, prior_positive, negative, prior, seed, settings, overrides, sigmas)
    context = prior.context if past is None else past.context
    schedule, levels = next_schedule(model, family, context, overrides, sigmas)
    latents = (
        past.num_frames if family.is_vidrd and past is not None else num_latents(family, prior, overrides.clip_frames)
    )
    plan = next_plan(model, family, prior, past, settings, latents, tell_levels, tail)

    index, used = context.get("clip_index", -1) + 1, context.get("seeds", [])
    seed = fresh_seed(seed, index, used)
    shape = (len(prior.samples), prior.samples.shape[1], latents, *prior.samples.shape[3:])
    empty = family.layout.from_video(torch.zeros(shape))
    session = Session(plan)
    if "switch_at_step" in context and models.low is not None and not models.switch_at_step:
        models = replace(models, switch_at_step=context["switch_at_step"])
    noise = wire_noise(seed, empty, family)
    made = denoise(models, session, positive, negative, noise, empty, levels, schedule.sampler, cfg, seed)
    clip = family.layout.to_video(made)
    known = {"cfg": cfg, "reuse": asdict(settings), **switched(models)}
    trajectory = session.trajectory(schedule.context(model, family, levels, index, [*used, seed], **known))
    trim = plan.lead_in + settings.trim_frames
    report = describe(plan, trim, preset)
    if not family.is_vidrd:
        logger.info("%s.", report)
    return (*joined(prior, clip, trim, trajectory, positive, negative, family), report)


def joined(
    prior: VideoLatent, clip: Tensor, trim: int, trajectory: Trajectory, positive: Any, negative: Any, family: Family
) -> tuple[VideoLatent, VideoLatent]:
    """The video so far and the new clip, both with the new trajectory.

    Args:
        trim: latents at the start of the clip that repeat the prior or only lead in.
    """
    new = clip[:, :, trim:]
    video = torch.cat((prior.samples, new), dim=2)
    past_of = (positive, negative, family.layout)
    return (
        VideoLatent.made(video, trajectory, new.shape[2], *past_of),
        VideoLatent.made(clip, trajectory, new.shape[2], *past_of),
    )


def next_schedule(
    model: Any, family: Family, context: Any, overrides: Overrides, sigmas: Tensor | None
) -> tuple[Schedule, Tensor]:
    """How the next clip is denoised: as its prior was, unless something else is asked for."""
    if family.is_vidrd:
        if sigmas is not None:
            raise ValueError("SIGMAS cannot change the steps of a VidRD video: disconnect it, or begin a new video")
        sampler = context["sampler"] or overrides.schedule({}).sampler
        schedule = Schedule(context["steps"], sampler, context["scheduler"])
        return schedule, torch.tensor(context["sigmas"])
    chosen = overrides.schedule(context, USUAL_SCHEDULE)
    if sigmas is not None:
        schedule = Schedule.of_levels(sigmas, chosen.sampler)
        return schedule, schedule.sigmas(model)
    if context.get("scheduler") == STORED_SIGMAS and overrides.steps == 0:
        return Schedule.of_levels(torch.tensor(context["sigmas"]), chosen.sampler), torch.tensor(context["sigmas"])
    check_sampler(chosen.sampler)
    levels = chosen.sigmas(model)
    chosen.log_other_count(levels)
    return chosen, levels


def followed(
    models: Models,
    prior_positive: Any,
    negative: Any,
    prior: VideoLatent,
    seed: int,
    settings: ReuseSettings,
    overrides: Overrides,
    sigmas: Tensor | None = None,
) -> tuple[Trajectory | None, Tensor | None]:
    """The trajectory that the next clip follows, and the latents that it ends with where they are not the prior's.

    None for the trajectory: the straight line, of families whose inversion was not asked for.
    """
    model = models.high
    family = family_of(model)
    if overrides.prior_trajectory == AUTO and prior.prior is not None:
        return checked_trajectory(model, prior.prior, settings, overrides), None
    if family.is_vidrd:
        tail = prior.last_clip(overrides.clip_frames)
        past = rebuilt_trajectory(model, prior_positive, negative, prior, seed, settings, overrides, tail)
        return past, tail
    if overrides.prior_trajectory != INVERT:
        return None, None
    schedule, levels = next_schedule(model, family, prior.context, overrides, sigmas)
    tail = prior.samples[:, :, -min(prior.samples.shape[2], num_latents(family, prior, overrides.clip_frames)) :]
    past = rebuilt_trajectory(
        model, prior_positive, negative, prior, seed, settings, overrides, tail, (schedule, levels)
    )
    return past, None


def rebuilt_trajectory(
    model: Any,
    prior_positive: Any,
    negative: Any,
    prior: VideoLatent,
    seed: int,
    settings: ReuseSettings,
    overrides: Overrides,
    clip: Tensor,
    known: tuple[Schedule, Tensor] | None = None,
) -> Trajectory:
    """A trajectory made for the last frames of a video that has none, or whose own is not to be used.

    Args:
        clip: these frames.
        known: the schedule of the clip that is to follow, where it is not what the overrides say.

    Raises:
        ValueError: the sampler cannot be steered, or the settings do not fit.
    """
    family = family_of(model)
    schedule = overrides.schedule(prior.context) if known is None else known[0]
    check_sampler(schedule.sampler)
    if prior.is_image:
        logger.warning("prior is an image, so the new clip follows a still clip of it, of %d frames.", clip.shape[2])
    if family.is_vidrd:
        settings.check(clip.shape[2])
    sigmas = schedule.sigmas(model) if known is None else known[1]
    method = DEFAULT_METHOD if overrides.prior_trajectory == AUTO else overrides.prior_trajectory
    source, its_name = inversion_source(model, prior_positive, negative, prior)
    logger.info(
        "The prior's trajectory is rebuilt (%s) for its last %d frames, with %d steps of %s, %s.",
        f"{method} by {its_name}" if method == INVERT else method,
        clip.shape[2], len(sigmas) - 1, schedule.sampler, schedule.scheduler,
    )  # fmt: skip
    if not overrides.steps and "steps" not in prior.context and known is None:
        logger.warning(
            "The prior does not say its number of steps, so %d are %s: set steps to the number that it was sampled in.",
            len(sigmas) - 1, "inverted and sampled" if method == INVERT else "sampled",
        )  # fmt: skip
    noise = ModelNoise(model, unit_start=family.is_vidrd)
    of_clip, states = rebuild(model, noise, source, negative, clip, sigmas, seed, method)
    context = schedule.context(model, family, sigmas, 0, prior.context.get("seeds", []))
    return full_trajectory(of_clip, states, context)


def checked_trajectory(model: Any, prior: Prior, settings: ReuseSettings, overrides: Overrides) -> Trajectory:
    """The trajectory that a LATENT brings along.

    Raises:
        ValueError: it was made by another model, sampler or schedule, or does not fit the settings.
    """
    prior.check_model(model.model)
    trajectory, context = prior.trajectory, prior.context
    if not family_of(model).is_vidrd:
        check_other_class(context, model)
        return trajectory
    settings.check(trajectory.num_frames)
    if not trajectory.calls:  # recorded by steps, and only what the settings of its own time needed
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
    known = prior.known_positive(model.model)
    return (known, "its own prompt") if known is not None else (negative, "negative, as its own prompt is not known")
