"""What Reuse: Prepare hands to Reuse: Join around a sampler node of the user's own."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.sampling.interchange import STORED_SIGMAS
from .any_model.families import Family, family_of
from .clips import joined, sampled
from .latents import KEY, VideoLatent
from .planning import (
    check_other_class,
    describe,
    empty_latent,
    first_plan,
    next_plan,
    num_latents,
    read_latent,
    reuse_settings,
    shapes_of,
)
from .schedules import Models, Schedule
from .steering import Session
from .words import AUTO

logger = logging.getLogger(__name__)

SESSION = "vidrd_session"  # in Prepare's LATENT, which sampler nodes hand on


@dataclass
class Prepared:
    """One prepared clip: the wire between Prepare and Join.

    Args:
        models: the patched MODEL, and the second expert's, or None.
        latent: empty, of the clip's shape, as on a wire.
        trim: latents of the clip that are not joined.
        settings: of the reuse; None for a first clip.
    """

    family: Family
    prior: VideoLatent
    session: Session
    models: tuple[Any, Any]
    latent: dict[str, Any] = field(repr=False)
    trim: int
    settings: ReuseSettings | None
    report: str


def prepare(
    model: Any,
    model_low: Any,
    prior: dict[str, Any],
    preset: str,
    chosen: ReuseSettings,
    prior_trajectory: str,
    clip_frames: int,
    tell_levels: str,
) -> Prepared:
    """Patch the models for the clip that follows ``prior``; an empty one begins a video.

    Raises:
        ValueError: the prior, the model or the settings do not fit.
    """
    family = family_of(model)
    video = read_latent(prior, "prior", model, family)
    Models(model, model_low).check()
    settings = None
    if video.begins:
        latents = family.layout.num_latents(clip_frames) if clip_frames else video.samples.shape[2]
        latent = {key: value for key, value in prior.items() if key != KEY}
        if latents == video.samples.shape[2]:
            plan, trim = first_plan(model, family, *shapes_of(video)), 0
            latent["samples"] = video.on_wire()
        else:
            if video.sound is not None or not video.is_empty:
                raise ValueError(
                    f"clip_frames is {clip_frames} but prior holds {family.layout.num_frames(video.samples.shape[2])} "
                    "frames to begin with: set it to 0, or the length in the node that made prior"
                )
            plan, trim = first_plan(model, family, (video.samples.shape[1], latents, *video.samples.shape[3:])), 0
            latent = {"samples": empty_latent(plan, len(video.samples)).on_wire()}
    else:
        settings = reuse_settings(preset, chosen, family, video, clip_frames, model)
        known = video.prior if prior_trajectory == AUTO else None
        if known is not None:
            known.check_model(model.model)
            check_other_class(known.context, model)
        latents = num_latents(family, video, clip_frames)
        past = None if known is None else known.trajectory
        if past is None and family.is_vidrd:
            raise ValueError(
                "prior has no trajectory that can be followed: connect LATENT of Sample First Clip, Reuse and Diffuse "
                "or Reuse: Join; a VidRD video that was not recorded is continued by Reuse and Diffuse"
            )
        plan = next_plan(model, family, video, past, settings, latents, tell_levels)
        trim = plan.video.lead_in + settings.trim_frames
        latent = {"samples": empty_latent(plan, len(video.samples)).on_wire()}
    session = Session(plan)
    models = session.attach(model), None if model_low is None else session.attach(model_low)
    report = describe(plan, trim, preset)
    logger.info("%s.", report)
    made = Prepared(family, video, session, models, latent, trim, settings, report)
    latent[SESSION] = made
    return made


def join(latent: dict[str, Any], prepared: Prepared) -> tuple[VideoLatent, VideoLatent, str]:
    """The video so far and the clip that was sampled, and a report.

    Raises:
        ValueError: the latent is not the clip that was sampled.
    """
    # ComfyUI may have dropped Prepare's outputs and kept the sampler's, which then bring along their own session.
    own = latent.get(SESSION)
    if own is not None and prepared.session.samples is None:
        prepared = own
    session, family, prior = prepared.session, prepared.family, prepared.prior
    if session.samples is None:
        raise ValueError(
            "nothing was sampled with Reuse: Prepare's MODEL: connect it to the sampler (or its guider) whose LATENT "
            "comes here"
        )
    clip, made = sampled(latent["samples"], family.layout), session.plan.streams(session.samples)
    if clip.samples.shape != made[0].shape:
        raise ValueError(
            f"LATENT is {list(clip.samples.shape)} but the sampler made {list(made[0].shape)}: connect the sampler's "
            "own LATENT, of the graph between this Prepare and this Join"
        )
    if session.sigmas[-1] > 0:
        raise ValueError(
            f"the clip is not finished, it still holds noise of level {session.sigmas[-1]:.3g}: connect the last of "
            "the samplers"
        )
    fits = torch.allclose(clip.samples, made[0], rtol=1e-3, atol=1e-3)
    context = prior.context if prepared.settings is not None else {}
    index = context.get("clip_index", -1) + 1
    seeds = [*context.get("seeds", []), *([] if session.seed is None else [session.seed])]
    sigmas = torch.tensor(session.sigmas)
    schedule = Schedule(len(sigmas) - 1, session.sampler, STORED_SIGMAS, tuple(session.sigmas))
    reuse = {} if prepared.settings is None else {"reuse": asdict(prepared.settings)}
    known = schedule.context(prepared.models[0], family, sigmas, index, seeds, **reuse)
    start = None if prepared.settings is None else prior
    video, alone = joined(start, clip, prepared.trim, session, known, None, None)
    if not fits:
        logger.warning(
            "The clip was changed after it was sampled, so its recorded denoising is not used for the next one: put "
            "what changes it behind Reuse: Join."
        )
        video, alone = (replace(one, prior=None, stored=None) for one in (video, alone))
    return video, alone, prepared.report
