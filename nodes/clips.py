"""Sample a first clip, and grow a video by the clip that reuses the one before."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..vidrd_core.reuse.noise import progressive_noise
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.seeds import clip_noise, fresh_seed
from .any_model.families import Family, family_of
from .any_model.layouts import Layout
from .following import followed, next_schedule
from .latents import VideoLatent, split_sound
from .planning import (
    describe,
    empty_latent,
    first_plan,
    next_plan,
    num_latents,
    past_clip,
    shapes_of,
)
from .progress import prepare_callback
from .samplers import check_sampler
from .schedules import NO_OVERRIDES, Models, Overrides, Schedule
from .steering import ClipPlan, Session
from .words import AUTO

logger = logging.getLogger(__name__)


def unit_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of a clip: the first video of a batch from ``seed``, the next from ``seed + 1``, ..."""
    return clip_noise([seed + b for b in range(shape[0])], shape)


def wire_noise(seed: int, empty: Any, family: Family) -> Any:
    """Noise of a clip as on a wire: VidRD's drawn by videos, others' as every stock sampler node draws it."""
    return unit_noise(seed, tuple(empty.shape)) if family.is_vidrd else comfy.sample.prepare_noise(empty, seed)


def denoise(
    models: Models,
    session: Session,
    positive: Any,
    negative: Any,
    noise: Any,
    start: Any,
    sigmas: Tensor,
    sampler: str,
    cfg: float,
    seed: int,
    noise_mask: Any = None,
) -> Any:
    """Sample one clip, by one model or by two experts one after the other.

    Args:
        noise: unit-variance, laid out as on a wire; ``start`` likewise, unscaled, zeros where there is nothing.

    Returns:
        Unscaled latents, as on a wire, on the CPU.

    Raises:
        ValueError: the sampler cannot be steered, or the models do not fit.
    """
    check_sampler(sampler)
    models.check()
    switch = models.switch(len(sigmas) - 1)
    samples = start
    for model, first, last in ((models.high, 0, switch), (models.low, switch, len(sigmas) - 1)):
        if first == last:
            continue
        samples = comfy.sample.sample_custom(
            session.attach(model),
            noise * 0 if first else noise,
            cfg,
            comfy.samplers.sampler_object(sampler),
            sigmas[first : last + 1],
            positive,
            negative,
            samples,
            noise_mask=noise_mask,
            callback=prepare_callback(model, first, last, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
    return samples


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
    latent = replace(latent, samples=start)
    on_wire = latent.on_wire()
    noise = wire_noise(seed, on_wire, family)
    if progressive_alpha:
        if latent.sound is not None:
            raise ValueError("progressive_alpha is for video alone, this model samples sound with it: set it to 0")
        noise = layout.from_video(progressive_noise(layout.to_video(noise), progressive_alpha))
    plan = first_plan(model, family, *shapes_of(latent))
    session = Session(plan)
    made = denoise(
        models, session, positive, negative, noise, on_wire, sigmas, schedule.sampler, cfg, seed, latent.noise_mask
    )
    clip = sampled(made, layout)
    context = schedule.context(model, family, sigmas, 0, [seed], cfg=cfg, **switched(models))
    trajectory = session.trajectory(context)
    if denoise_share < 1:  # what follows is denoised from pure noise, in as many steps
        trajectory = completed(model, trajectory, clip.samples, schedule.sigmas(model), plan)
    texts = positive, negative
    sound = None if clip.sound is None else (clip.sound, session.trajectory(context, 1))
    return VideoLatent.made(clip.samples, trajectory, clip.samples.shape[2], *texts, layout, sound)


def sampled(made: Any, layout: Layout) -> VideoLatent:
    """What a sampler made, from a wire; without a trajectory."""
    video, sound = split_sound(made, "LATENT", layout)
    sound = None if sound is None else sound.detach().float().cpu()
    return VideoLatent(layout.to_video(video).detach().float().cpu(), layout=layout, sound=sound)


def switched(models: Models) -> dict[str, Any]:
    """What a trajectory remembers of a second expert."""
    return {} if models.low is None else {"switch_at_step": models.switch_at_step}


def completed(model: Any, trajectory: Trajectory, samples: Tensor, levels: Tensor, plan: ClipPlan) -> Trajectory:
    """The trajectory, at all of the schedule's levels, of a clip that was denoised from a video with noise.

    Above the level where that began, its states are those that the given video would have passed.
    """
    kept = plan.video.kept
    end = model.model.process_latent_in(samples)[:, :, samples.shape[2] - kept :]
    clip = past_clip(trajectory, end, plan.noise)
    back = torch.arange(kept, 0, -1)
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
    goal: Tensor | None = None,
) -> tuple[VideoLatent, VideoLatent, str]:
    """The clip that follows ``prior``: the video so far, the new clip, and what it keeps and adds in words.

    Args:
        prior_positive: conditioning that says what ``prior`` shows, for its inversion where it has no trajectory that
            can be used. None takes what its last clip was sampled with, where that is known, else ``negative``.
        sigmas: noise levels ``[S + 1]`` in place of the prior's; not for VidRD.
        goal: what the clip arrives at, of :func:`nodes.goals.goal_latents`.

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
    plan = next_plan(model, family, prior, past, settings, latents, tell_levels, tail, goal)

    index, used = context.get("clip_index", -1) + 1, context.get("seeds", [])
    seed = fresh_seed(seed, index, used)
    empty = empty_latent(plan, len(prior.samples)).on_wire()
    session = Session(plan)
    if "switch_at_step" in context and models.low is not None and not models.switch_at_step:
        models = replace(models, switch_at_step=context["switch_at_step"])
    noise = wire_noise(seed, empty, family)
    made = denoise(models, session, positive, negative, noise, empty, levels, schedule.sampler, cfg, seed)
    clip = sampled(made, family.layout)
    known = {"cfg": cfg, "reuse": asdict(settings), **switched(models)}
    context = schedule.context(model, family, levels, index, [*used, seed], **known)
    trim = plan.video.lead_in + settings.trim_frames
    report = describe(plan, trim, preset)
    if not family.is_vidrd:
        logger.info("%s.", report)
    return (*joined(prior, clip, trim, session, context, positive, negative), report)


def joined(
    prior: VideoLatent | None,
    clip: VideoLatent,
    trim: int,
    session: Session,
    context: dict[str, Any],
    positive: Any,
    negative: Any,
) -> tuple[VideoLatent, VideoLatent]:
    """The video so far and the new clip, both with the new trajectory.

    Args:
        prior: None: the clip begins the video.
        trim: latents at the start of the clip that repeat the prior or only lead in.
        context: of the new trajectory.
    """
    tail = clip.samples.shape[2] - trim
    cut = sound_trim(session.plan)
    trajectory = session.trajectory({**context, "sound_trim": cut} if cut else context)
    of_sound = None if clip.sound is None else session.trajectory(context, 1)

    def recorded(one: VideoLatent) -> VideoLatent:
        sound = None if one.sound is None or of_sound is None else (one.sound, of_sound)
        return VideoLatent.made(one.samples, trajectory, tail, positive, negative, clip.layout, sound)

    return recorded(clip if prior is None else extended(prior, clip, trim, cut)), recorded(clip)


def sound_trim(plan: ClipPlan) -> int:
    """Latents at the start of a clip's sound that repeat the prior's."""
    replays = [track.replay for track in plan.tracks[1:]]
    return sum(replay.settings.overlap_frames for replay in replays if replay is not None)


def extended(prior: VideoLatent, clip: VideoLatent, trim: int, cut: int) -> VideoLatent:
    """A video with a clip at its end, without the clip's first ``trim`` latents and ``cut`` of its sound."""
    samples = torch.cat((prior.samples, clip.samples[:, :, trim:]), dim=2)
    sound = None
    if prior.sound is not None and clip.sound is not None:
        sound = torch.cat((prior.sound, clip.sound[:, :, cut:]), dim=2)
    return VideoLatent(samples, layout=clip.layout, sound=sound)
