"""How a model family lays the frames of a video out in its latents.

Inside this pack latents are ``[B, C, T, h, w]``. A layout brings what is on a LATENT wire and in a sampler to that
form and back, and knows how many pixel frames a latent holds. Temporal VAEs make the first latent of one frame and
every other of r frames, so latent 0 is of another kind than those that follow.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def num_latents(self, frames: int) -> int:
        """Latents of a clip of so many frames."""
        return (frames - 1) // self.frames_per_latent + 1

    def num_frames(self, latents: int) -> int:
        """Frames of a clip of so many latents."""
        return (latents - 1) * self.frames_per_latent + 1

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


LAYOUTS = {"video": Layout, "batch": FramesInBatch}


def layout_named(name: str, frames_per_latent: int = 1) -> Layout:
    """The layout that a file or a trajectory names."""
    return LAYOUTS[name](frames_per_latent)
