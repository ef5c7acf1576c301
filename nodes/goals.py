"""Goals of a clip: the latents that it arrives at, as a replay of its last frames along the straight line to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.goal import GoalSettings, choices, close, closing
from ..vidrd_core.reuse.replay import Pace, PastClip, Recording, Replay
from ..vidrd_core.reuse.settings import ReuseSettings
from .any_model.families import Family
from .any_model.noise import ModelNoise
from .latents import VideoLatent


def goal_latents(family: Family, video: VideoLatent, batch: int, name: str = "goal") -> Tensor:
    """The first latents ``[B, C, K, h, w]`` of a video that a clip is to arrive at, unscaled.

    A temporal VAE makes the first latent of a video of one frame. At a clip's end, latents hold several, so a goal of
    such a family begins with the second one.

    Args:
        batch: B, videos that are sampled.
        name: of the input, for messages.

    Raises:
        ValueError: there is nothing to arrive at.
    """
    if video.is_empty:
        raise ValueError(f"{name} is empty: connect the latents of an image or a clip (VAE Encode), or nothing")
    first = 1 if family.layout.is_temporal else 0
    found = video.samples[:, :, first : first + GoalSettings.frames]
    if not found.shape[2]:
        r = family.layout.frames_per_latent
        raise ValueError(
            f"{name} is one image, whose latent in {family.name} is of the kind that begins a video, while each at a "
            f"clip's end holds {r} frames: encode a clip of at least {r + 1} frames (RepeatImageBatch makes one of an "
            "image)"
        )
    if len(found) not in (1, batch):
        raise ValueError(f"{name} holds {len(found)} videos but {batch} are sampled: give one, or one for each")
    return found.expand(batch, -1, -1, -1, -1)


def goal_replay(model: Any, family: Family, noise: ModelNoise, latents: Tensor, pace: Pace) -> Replay:
    """The last frames of a clip, steered along the straight line from its own noise to a goal (``D = x0``)."""
    settings = GoalSettings().reuse(latents.shape[2])
    if not family.is_vidrd:
        settings = replace(settings, cleaner_overlap=family.settings().cleaner_overlap)
    clean = model.model.process_latent_in(latents)
    return Replay(PastClip(Recording(), clean, None, noise), settings, pace)


def check_room(family: Family, overlap: int, goal: Tensor, size: tuple[int, ...]) -> None:
    """Raise ``ValueError`` where a clip of ``size`` ``[N, h, w]`` with an overlap has no room for a goal."""
    word = "latents" if family.layout.is_temporal else "frames"
    if goal.shape[3:] != size[1:]:
        raise ValueError(
            f"goal is {list(goal.shape[3:])} latents high and wide but the video is {list(size[1:])}: scale the image "
            "or clip to the video's size before it is encoded"
        )
    if overlap + goal.shape[2] >= size[0]:
        raise ValueError(
            f"the clip has {size[0]} {word}, of which {overlap} repeat the prior and {goal.shape[2]} are the goal's, "
            "so that none would be new: choose a smaller overlap_frames or a longer clip"
        )


def loop_start(family: Family, video: VideoLatent, samples: Tensor) -> Tensor:
    """What the last clip of a loop arrives at: the first latents of the whole video, of which it repeats some or all.

    Args:
        video: what the last clip follows.
        samples: of the whole video, or its first clip.

    Raises:
        ValueError: the family has sound, whose loop nothing here closes.
    """
    if video.sound is not None:
        raise ValueError(
            f"loop is on, but {family.name} samples sound with the video, whose end would not join its beginning: "
            "set loop to false"
        )
    if family.is_vidrd:
        return samples[:, :, : video.clip_length(0)]
    return goal_latents(family, VideoLatent(samples, layout=family.layout), len(samples), "the video's beginning")


def closing_reuse(family: Family, prior: VideoLatent, clip_frames: int, reuse: ReuseSettings) -> ReuseSettings:
    """How the last clip of a loop reuses the one before, in a video whose clips are chained by ``reuse``.

    Args:
        prior: what it follows, or the empty latent that the video begins with.
        clip_frames: N, as it was asked for; 0: the prior's.
    """
    if not family.is_vidrd:
        return reuse
    return closing(reuse, prior.samples.shape[2] if prior.is_empty else prior.clip_length(clip_frames))


def close_loop(
    family: Family,
    prior: VideoLatent,
    clip_frames: int,
    overlap: int,
    beginning: Tensor,
    make: Callable[[Tensor], VideoLatent],
) -> tuple[VideoLatent, int]:
    """The last clip of a loop, and how many latents of the beginning it ends with.

    Of a VidRD model it is made several times, to arrive where the motion is most even
    (:func:`vidrd_core.reuse.goal.close`); other families' clips take longer, and are made once.

    Args:
        prior: what it follows.
        clip_frames: N, as it was asked for; 0: the prior's.
        overlap: M, the latents that repeat the prior's, of :func:`closing_reuse`.
        beginning: of :func:`loop_start`.
        make: the clip that arrives at a goal.
    """
    if not family.is_vidrd:
        return make(beginning), beginning.shape[2]
    counts = choices(prior.clip_length(clip_frames), overlap)
    tried = (lambda count: make(beginning[:, :, :count])), (lambda clip: clip.samples)
    count, clip = close(*tried, beginning, overlap, counts)
    return clip, count


def cut_loop(family: Family, pieces: list[Tensor], repeated: int) -> tuple[VideoLatent, VideoLatent]:
    """A loop and its last clip, cut where they repeat the beginning.

    Without a trajectory, as nothing follows its end but itself. Of a family with a temporal VAE the last frame that is
    left shows what the first one shows.

    Args:
        pieces: what each clip adds, ``[B, C, T, h, w]``.
        repeated: latents at the end that the beginning has already.
    """
    last = pieces[-1][:, :, : pieces[-1].shape[2] - repeated]
    whole = torch.cat([*pieces[:-1], last], dim=2)
    return VideoLatent(whole, layout=family.layout), VideoLatent(last, layout=family.layout)
