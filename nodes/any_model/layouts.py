"""How a model family lays the frames of a video out in its latents.

Inside this pack latents are ``[B, C, T, h, w]``. A layout brings what is on a LATENT wire and in a sampler to that
form and back, and knows how many pixel frames a latent holds. Temporal VAEs make the first latent of one frame and
every other of r frames, so latent 0 is of another kind than those that follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Latents with a time axis of their own, ``[B, C, T, h, w]``.

    Args:
        frames_per_latent: r, of every latent but the first, which holds one frame.
    """

    frames_per_latent: int = 1
    name = "video"

    @property
    def is_temporal(self) -> bool:
        """Whether a latent holds several frames, whose order is then part of it."""
        return self.frames_per_latent > 1

    @property
    def orders(self) -> tuple[str, ...]:
        """In which an overlap may follow the last clip; motion inside a latent always runs forward."""
        return ("forward",) if self.is_temporal else ("reverse", "forward")

    def to_video(self, latents: Tensor) -> Tensor:
        """``[B, C, T, h, w]`` of what is on a wire or in a sampler."""
        return latents

    def from_video(self, video: Tensor) -> Tensor:
        """What is on a wire or in a sampler of ``[B, C, T, h, w]``."""
        return video

    def streams(self, latents: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """What a sampler holds, as views: the video ``[B, C, T, h, w]``, and what is packed with it.

        Args:
            shapes: of the streams, without the batch.
        """
        return [self.to_video(latents)]

    def packed(self, streams: Sequence[Tensor]) -> Tensor:
        """What a sampler holds, of its streams."""
        return self.from_video(streams[0])

    def of_video_alone(self) -> Layout:
        """The layout of the video without the sound that a model samples with it."""
        return self

    def num_latents(self, frames: int) -> int:
        """Latents of a clip of so many frames."""
        return (frames - 1) // self.frames_per_latent + 1

    def num_frames(self, latents: int) -> int:
        """Frames of a clip of so many latents."""
        return (latents - 1) * self.frames_per_latent + 1

    def num_added(self, latents: int, before: int) -> int:
        """Frames of a video of so many latents that come after its first ``before`` ones."""
        return self.num_frames(latents) - (self.num_frames(before) if before else 0)

    def overlap_latents(self, frames: int) -> int:
        """Latents, none of them a clip's first, that hold at least so many frames."""
        return -(-frames // self.frames_per_latent)


@dataclass(frozen=True)
class FramesInBatch(Layout):
    """Frames in the place of the batch, ``[T, C, h, w]``: AnimateDiff, Stable Video Diffusion, ModelScope."""

    name = "batch"

    def to_video(self, latents: Tensor) -> Tensor:
        return rearrange(latents, "t c h w -> 1 c t h w")

    def from_video(self, video: Tensor) -> Tensor:
        if len(video) != 1:
            raise ValueError(f"{len(video)} videos in one batch; this model family samples one video at a time")
        return rearrange(video, "1 c t h w -> t c h w")


@dataclass(frozen=True)
class WithAudio(Layout):
    """A video and its sound, nested on a wire, packed ``[B, 1, n]`` in a sampler: LTX-2.

    The sound is ``[B, C, T, bins]``, with a time axis of its own.
    """

    name = "audio"

    def streams(self, latents: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        parts = latents.split([math.prod(shape) for shape in shapes], dim=-1)
        return [part.view(len(latents), *shape) for part, shape in zip(parts, shapes, strict=True)]

    def of_video_alone(self) -> Layout:
        return Layout(self.frames_per_latent)

    def packed(self, streams: Sequence[Tensor]) -> Tensor:
        return torch.cat([rearrange(stream, "b ... -> b 1 (...)") for stream in streams], dim=-1)


LAYOUTS = {"video": Layout, "batch": FramesInBatch, "audio": WithAudio}


def layout_of(context: Mapping[str, Any]) -> Layout:
    """The layout that a trajectory's context names; VidRD's where it names none."""
    return LAYOUTS[context.get("layout", Layout.name)](context.get("frames_per_latent", 1))
