"""What the next clip follows: the trajectory that a prior brings along or one that is made for it; its schedule."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.interchange import STORED_SIGMAS
from .any_model.families import Family, family_of
from .any_model.noise import ModelNoise
from .latents import Prior, VideoLatent
from .planning import check_other_class, num_latents
from .rebuild import DEFAULT_METHOD, full_trajectory, rebuild
from .samplers import check_sampler, noise_levels
from .schedules import USUAL_SCHEDULE, Models, Overrides, Schedule, usual_schedule
from .words import AUTO, INVERT

logger = logging.getLogger(__name__)


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
    usual = usual_schedule(model, family)
    schedule = overrides.schedule(prior.context, usual) if known is None else known[0]
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
