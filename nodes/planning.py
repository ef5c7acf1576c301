"""Plan a clip for the family of its model: length, overlap, lead-in, and the clip before that it is steered along."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.presets import find_preset
from ..vidrd_core.reuse.replay import LevelPace, PastClip, Recording, Replay, StepPace
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from .any_model.families import Family
from .any_model.noise import ModelNoise
from .goals import check_room, goal_latents, goal_replay
from .latents import VideoLatent
from .steering import ClipPlan, Track
from .words import AUTO, CUSTOM, ON

logger = logging.getLogger(__name__)


def read_latent(latent: dict[str, Any], name: str, model: Any, family: Family) -> VideoLatent:
    """A LATENT for a MODEL."""
    latent_format = model.model.latent_format
    video = VideoLatent.read(latent, name, family, latent_format.latent_channels)
    if family.is_vidrd or video.is_empty or video.stored is not None:
        return video
    blank = latent_format.process_out(torch.zeros_like(video.samples))
    return replace(video, is_blank=torch.allclose(video.samples, blank, atol=1e-5))


def read_goal(latent: dict[str, Any], model: Any, family: Family, batch: int) -> Tensor:
    """The latents that a clip is to arrive at, as :func:`nodes.goals.goal_latents`; a video's sound is left out."""
    if not getattr(latent["samples"], "is_nested", False):
        family = replace(family, layout=family.layout.of_video_alone())
    return goal_latents(family, read_latent(latent, "goal", model, family), batch)


def num_latents(family: Family, prior: VideoLatent, clip_frames: int) -> int:
    """Latents of a clip: of the frames asked for, else as the latent to begin or the prior's last clip, else usual."""
    if clip_frames:
        return family.layout.num_latents(clip_frames)
    if prior.begins:
        return prior.samples.shape[2]
    known = prior.prior or prior.stored
    return family.layout.num_latents(family.clip_frames) if known is None else known.trajectory.num_frames


def room(family: Family, prior: VideoLatent) -> int:
    """Latents at the prior's end that an overlap can repeat: not the one of a video's first frame, unless it is all."""
    held = prior.samples.shape[2]
    room = held - 1 if family.layout.is_temporal and held > 1 else held
    recorded = None if prior.prior is None else prior.prior.trajectory
    return room if recorded is None or not recorded.states else min(room, recorded.states[0].shape[2])


def lead_in(family: Family, prior: VideoLatent) -> int:
    """Latents before the overlap; none where the prior is an image, whose latent is of the kind that begins a clip."""
    return 0 if prior.samples.shape[2] == 1 else family.lead_in


def reuse_settings(
    preset: str, chosen: ReuseSettings, family: Family, prior: VideoLatent, clip_frames: int, model: Any
) -> ReuseSettings:
    """The settings of a node, its frames counted in latents.

    Args:
        preset: "auto", "custom" or a name of :data:`vidrd_core.reuse.presets.PRESETS`.
        chosen: what a node's own inputs say, for "custom"; overlap and trim in frames.
        model: says for "auto" how a VidRD model's folder wants its clips chained.

    Raises:
        ValueError: a value does not fit.
    """
    if family.is_vidrd:
        if preset == CUSTOM:
            return chosen
        known = model.model.reuse if preset == AUTO else None
        settings = known or find_preset("paper" if preset == AUTO else preset).reuse
        # An empty latent is as long as the clips that it begins.
        return settings.fitted(prior.samples.shape[2] if prior.is_empty else prior.clip_length(clip_frames))
    layout = family.layout
    before = 0 if prior.begins else lead_in(family, prior)
    if preset == CUSTOM:
        if chosen.order not in layout.orders:
            raise ValueError(
                f"order is {chosen.order}, but a latent of {family.name} holds {layout.frames_per_latent} frames, "
                "whose motion would still run forward: set order to forward, or preset to auto"
            )
        if not layout.is_temporal:
            return chosen
        overlap = layout.overlap_latents(chosen.overlap_frames)
        return replace(chosen, overlap_frames=overlap, trim_frames=overlap)
    if preset == "paper":
        if layout.is_temporal:
            raise ValueError(
                f"the preset paper reverses the overlap, but a latent of {family.name} holds "
                f"{layout.frames_per_latent} frames, whose motion would still run forward: set preset to auto"
            )
        settings = find_preset(preset).reuse
    else:
        settings = family.settings()
    clip = num_latents(family, prior, clip_frames) - before
    overlap = max(1, min(settings.overlap_frames, clip - 1, clip * 5 // 8))
    if not prior.begins:
        overlap = min(overlap, room(family, prior))
    return replace(settings, overlap_frames=overlap, trim_frames=overlap if settings.trim_frames else 0)


def first_plan(model: Any, family: Family, *shapes: Sequence[int]) -> ClipPlan:
    """A clip that is only recorded.

    Args:
        shapes: of its streams, ``(C, N, h, w)`` and, where it has sound, ``(C, N, bins)``.
    """
    noise = ModelNoise(model, unit_start=family.is_vidrd)
    tracks = tuple(Track(tuple(shape), kept=num_kept(family, shape[1])) for shape in shapes)
    return ClipPlan(family, noise, tracks, **recording_of(family))


def shapes_of(latent: VideoLatent) -> list[torch.Size]:
    """The shapes of a latent's streams, without the batch."""
    return [stream.shape[1:] for stream in (latent.samples, latent.sound) if stream is not None]


def num_kept(family: Family, latents: int) -> int:
    """How many of a clip's last latents are recorded for the next one.

    All where any of them may be repeated; of a temporal VAE's clips, whose states are large, the last half.
    """
    return -(-latents // 2) if family.layout.is_temporal else latents


def recording_of(family: Family) -> dict[str, Any]:
    """How a clip is recorded: other families' large states in 16 bits, which a replay ends on all the same."""
    return {} if family.is_vidrd else {"dtype": torch.float16}


def next_plan(
    model: Any,
    family: Family,
    prior: VideoLatent,
    past: Trajectory | None,
    settings: ReuseSettings,
    latents: int,
    tell_levels: str = AUTO,
    tail: Tensor | None = None,
    goal: Tensor | None = None,
) -> ClipPlan:
    """A clip that follows ``prior``.

    Args:
        past: its last clip's trajectory; None: it is followed along the straight line from noise.
        settings: frames in latents.
        latents: N, of the new clip.
        tell_levels: "auto": the network is told that the overlap is cleaner where it was trained for that; "on", "off".
        tail: unscaled latents that the new clip follows, where they are not the prior's own last ones.
        goal: unscaled latents ``[B, C, K, h, w]`` that it arrives at.

    Raises:
        ValueError: the settings do not fit, or the prior is another family's.
    """
    before = lead_in(family, prior)
    settings.check(latents - before)
    overlap = settings.overlap_frames
    tail = prior.samples if tail is None else tail
    if not family.is_vidrd and overlap > room(family, prior):
        raise ValueError(
            f"the overlap is {overlap} latents, but the prior has {room(family, prior)} that can be repeated: choose a "
            "smaller overlap_frames"
        )
    noise = ModelNoise(model, unit_start=family.is_vidrd)
    context = {} if past is None else past.context
    check_process(context, noise, family)
    end = tail[:, :, tail.shape[2] - max(overlap, 1) :]
    clean = model.model.process_latent_in(end)
    clip = past_clip(past, clean, noise)
    pace = StepPace(context["sigmas"]) if family.is_vidrd else LevelPace(noise)
    replay = Replay(clip, settings, pace)
    tells = family.tells_by_default if tell_levels == AUTO else tell_levels == ON
    if tells and not family.tells:
        raise ValueError(
            f"tell_levels is on, but the network of {family.name} takes one timestep for all frames: set it to "
            "auto or off"
        )
    shape = (end.shape[1], latents, *end.shape[3:])
    arriving = None
    if goal is not None:
        check_room(family, before + overlap, goal, shape[1:])
        arriving = goal_replay(model, family, noise, goal, pace)
    tracks = [Track(shape, replay, clip.noise, before, num_kept(family, latents), arriving)]
    if prior.sound is not None:
        tracks.append(sound_track(prior, past is not None, settings, latents, before, noise, family))
    return ClipPlan(
        family,
        noise,
        tuple(tracks),
        None if family.is_vidrd or not overlap else end[:, :, end.shape[2] - replay.back],
        None if family.is_vidrd else goal,
        tells=tells and (settings.cleaner_overlap > 0 or arriving is not None),
        seeds=tuple(context.get("seeds", ())),
        **recording_of(family),
    )


def sound_track(
    prior: VideoLatent,
    is_recorded: bool,
    settings: ReuseSettings,
    latents: int,
    before: int,
    noise: ModelNoise,
    family: Family,
) -> Track:
    """The sound of a clip that follows ``prior``: it repeats what is heard while the trimmed frames are seen.

    Its length is counted from the video's beginning, so that sound and picture do not drift apart.
    """
    layout, heard = family.layout, prior.sound
    assert heard is not None
    past = prior.prior.sound if is_recorded and prior.prior is not None else None
    seen = layout.num_frames(prior.samples.shape[2])
    rate = heard.shape[2] / seen  # sound latents per frame
    length = round(rate * layout.num_frames(latents))
    added = (latents - before - settings.trim_frames) * layout.frames_per_latent
    overlap = heard.shape[2] + length - round(rate * (seen + added))
    overlap = max(1, min(overlap, length - 1, heard.shape[2]))
    kept = length if past is None else min(past.states[0].shape[2], length)
    overlap = min(overlap, kept)
    of_sound = replace(settings, overlap_frames=overlap, trim_frames=overlap)
    clip = past_clip(past, heard[:, :, heard.shape[2] - overlap :], noise)
    replay = Replay(clip, of_sound, LevelPace(noise))
    # All is kept: sound is small, and what the next clip repeats of it need not be its last half.
    return Track((heard.shape[1], length, *heard.shape[3:]), replay, clip.noise, 0, length)


def past_clip(trajectory: Trajectory | None, end: Tensor, noise: ModelNoise) -> PastClip:
    """A clip to follow, of its trajectory; one that was recorded by steps has one call a step.

    Args:
        trajectory: None: it was not recorded.
        end: its denoised last latents, in the sampler's space.
    """
    if trajectory is None:
        return PastClip(Recording(), end, None, noise)
    sigmas = trajectory.calls or trajectory.context["sigmas"][: len(trajectory.states)]
    return PastClip(Recording(list(sigmas), trajectory.states, trajectory.predictions), end, trajectory.noise, noise)


def check_process(context: Any, noise: ModelNoise, family: Family) -> None:
    """Raise ``ValueError`` where noise entered the prior in another way than it does here."""
    known = context.get("process")
    if known is not None and known != noise.kind:
        raise ValueError(
            f"the prior's states are of another kind ({known}) than {family.name}'s here ({noise.kind}): remove the "
            "node that changes the model's sampling, or set prior_trajectory to noise"
        )


def check_other_class(context: Any, model: Any) -> None:
    """Log it where another model of the family goes on: a replay needs the latents' format, not the same weights."""
    known, name = context.get("model"), type(model.model).__name__
    if known is not None and known != name:
        logger.info("The prior was made with %s and is continued with %s, whose latents are the same.", known, name)


def describe(plan: ClipPlan, trim: int, preset: str) -> str:
    """What a clip keeps and adds, in frames and in latents, for the user."""
    family, layout, added = plan.family, plan.family.layout, plan.video.num_latents - trim
    track = plan.video
    if track.replay is None:
        frames = layout.num_frames(track.num_latents)
        return f"{family.name}: a first clip of {counted(frames, track.num_latents, layout.is_temporal)}, recorded"
    settings = track.replay.settings
    r = layout.frames_per_latent
    overlap = settings.overlap_frames
    keeps = 1 if track.lead_in == 0 and layout.is_temporal else overlap * r
    parts = [
        f"{family.name} ({preset}): keeps {counted(keeps, overlap, layout.is_temporal)}, adds "
        f"{counted(added * r, added, layout.is_temporal)}"
    ]
    if settings.cleaner_overlap:
        told = "and the model is told so" if plan.tells else "the model is not told"
        parts.append(f"overlap shown cleaner than the new frames ({settings.cleaner_overlap:g}), {told}")
    if track.goal is not None:
        count = track.goal.settings.overlap_frames
        parts.append(f"ends with {counted(count * r, count, layout.is_temporal)} of the goal")
    if not track.replay.past.recording.sigmas:
        parts.append("the prior was not recorded, so its straight line from noise is followed")
    if family.decoding:
        parts.append(family.decoding)
    return "; ".join(parts)


def counted(frames: int, latents: int, in_latents: bool) -> str:
    words = f"{frames} frame{'s' if frames != 1 else ''}"
    return f"{words} ({latents} latent{'s' if latents != 1 else ''})" if in_latents else words


def empty_latent(plan: ClipPlan, batch: int) -> VideoLatent:
    """An empty latent of a planned clip."""
    streams = [torch.zeros((batch, *track.shape)) for track in plan.tracks]
    return VideoLatent(streams[0], layout=plan.family.layout, sound=streams[1] if len(streams) > 1 else None)
