"""The one wire of a chain: a LATENT with one more entry, the trajectory that the next clip reuses.

``{"samples": [B, 4, T, h, w], "vidrd_trajectory": Prior}``. The samples are the video so far or a single clip,
unscaled as on every LATENT wire. The trajectory is in the sampler's own space (scaled, variance-exploding), on
the CPU. A node reads its LATENT once, into a :class:`VideoLatent`.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.interchange import FACTOR
from .native.model import VidRDModel, same_model

logger = logging.getLogger(__name__)

KEY = "vidrd_trajectory"
CHANNELS = 4
CLIP_FRAMES = 8  # of a clip that continues a video which does not say its clip length


@dataclass(frozen=True)
class Prior:
    """What a sampling node adds to its LATENT.

    Args:
        trajectory: of the last clip. Its context holds "model", "sampler", "scheduler", "steps", "sigmas", "clip_index"
            and "seeds" (those that this video's noise was drawn from), and, where it was sampled here, "cfg",
            "scaling_factor" and "reuse". Sampled here, it keeps all frames of all steps, so that any overlap, beta and
            order can follow.
        tail_frames: how many of the last frames of the samples belong to that clip.
        tail_hashes: of those frames, one per video of the batch; others mean that the samples were changed since.
        positive: the conditioning that the clip was sampled with, by which it is inverted where its trajectory cannot
            be used; None where it is not known.
        negative: likewise.
    """

    trajectory: Trajectory
    tail_frames: int
    tail_hashes: tuple[str, ...]
    positive: Any = None
    negative: Any = None

    @property
    def context(self) -> dict[str, Any]:
        return dict(self.trajectory.context)

    def of(self, samples: Tensor) -> Prior | None:
        """This, for the videos in ``samples``: all of the batch or some, in any order. None where one was changed."""
        if samples.shape[2] < self.tail_frames:
            return None
        hashes = video_hashes(samples, self.tail_frames)
        if hashes == self.tail_hashes:
            return self
        if any(one not in self.tail_hashes for one in hashes):
            return None
        videos = [self.tail_hashes.index(one) for one in hashes]
        places = ", ".join(str(video + 1) for video in videos)
        logger.info("Of the %d videos sampled together, number %s is continued.", len(self.tail_hashes), places)
        positive, negative = (picked_conditioning(given, videos) for given in (self.positive, self.negative))
        return Prior(picked(self.trajectory, videos), self.tail_frames, hashes, positive, negative)

    def is_of(self, model: VidRDModel) -> bool:
        """Whether this model made the trajectory."""
        return same_model(model.fingerprint, str(self.trajectory.context.get("model", "")))

    def check_model(self, model: VidRDModel) -> None:
        """Raise ``ValueError`` where the trajectory is another model's."""
        if not self.is_of(model):
            raise ValueError(
                "the prior was made by another model than the one connected: connect the model that made it, or set "
                "prior_trajectory to invert or noise, so that it is made anew for this model"
            )


@dataclass(frozen=True)
class VideoLatent:
    """A LATENT, read and checked.

    Args:
        samples: ``[B, 4, T, h, w]``, unscaled, on the CPU in float32.
        prior: the trajectory of its videos; None where it has none, or one that no longer fits its samples.
        stored: what it came with, whether it fits or not.
    """

    samples: Tensor
    prior: Prior | None = None
    stored: Prior | None = None

    @classmethod
    def read(cls, latent: dict[str, Any], name: str) -> VideoLatent:
        """Read a LATENT.

        Args:
            name: of the input, for messages.

        Raises:
            ValueError: an image's latents, other channels, or a noise mask.
        """
        check_layout(latent, name)
        stored: Prior | None = latent.get(KEY)
        prior = None if stored is None else stored.of(latent["samples"])
        if stored is not None and prior is None:
            logger.warning("The latents were changed after they were sampled, so their stored trajectory is not used.")
        return cls(latent["samples"].detach().float().cpu(), prior, stored)

    @classmethod
    def made(
        cls, samples: Tensor, trajectory: Trajectory, tail_frames: int, positive: Any = None, negative: Any = None
    ) -> VideoLatent:
        """The LATENT of samples whose last frames are those of a trajectory."""
        prior = Prior(trajectory, tail_frames, video_hashes(samples, tail_frames), positive, negative)
        return cls(samples, prior, prior)

    def to_wire(self) -> dict[str, Any]:
        """What goes on a LATENT wire."""
        return {"samples": self.samples} if self.stored is None else {"samples": self.samples, KEY: self.stored}

    def following(self, samples: Tensor, tail_frames: int) -> VideoLatent:
        """Samples that end with this one's last clip, with its trajectory."""
        assert self.prior is not None
        return VideoLatent.made(samples, self.prior.trajectory, tail_frames, self.prior.positive, self.prior.negative)

    @cached_property
    def is_empty(self) -> bool:
        """Whether it is all zeros, an Empty VidRD Latent."""
        return not torch.count_nonzero(self.samples)

    @property
    def is_image(self) -> bool:
        """Whether it is a single frame that no video of ours ends with, such as an encoded image."""
        return self.samples.shape[2] == 1 and self.stored is None

    @property
    def context(self) -> dict[str, Any]:
        """How its last clip was made, also where the trajectory no longer fits; empty where nothing is known."""
        return {} if self.stored is None else self.stored.context

    def known_positive(self, model: VidRDModel) -> Any:
        """The conditioning that its last clip was sampled with, also where the trajectory no longer fits.

        None where none is stored, where another model made the clip, and where nobody knows which video of a batch is
        left.
        """
        if self.stored is None or not self.stored.is_of(model):
            return None
        known = self.prior or self.stored
        is_one_of_many = any(len(text) > 1 for text, _ in known.positive or ())
        return None if is_one_of_many and len(self.samples) != len(known.tail_hashes) else known.positive

    def clip_length(self, clip_frames: int) -> int:
        """Frames of the clip that is to follow: those asked for, else the prior's, else 8 or as many as there are.

        An image is followed by a clip of any length: those asked for, else 8.

        Raises:
            ValueError: the video is shorter than what was asked for.
        """
        frames = self.samples.shape[2]
        if self.is_image:
            return clip_frames or CLIP_FRAMES
        if clip_frames > frames:
            raise ValueError(
                f"clip_frames is {clip_frames} but prior has {frames} frames, and a clip can only follow one of its "
                f"own length: set clip_frames to at most {frames}, or to 0"
            )
        known = CLIP_FRAMES if self.stored is None else self.stored.trajectory.num_frames
        return clip_frames or min(known, frames)

    def last_clip(self, clip_frames: int) -> Tensor:
        """The frames ``[B, 4, N, h, w]`` that the next clip follows; of an image a still clip."""
        length = self.clip_length(clip_frames)
        return self.samples.repeat(1, 1, length, 1, 1) if self.is_image else self.samples[:, :, -length:]


def picked(trajectory: Trajectory, videos: list[int]) -> Trajectory:
    """The trajectory of some videos of a batch.

    Video b of a batch draws its noise from a clip's seed + b. A video that changes its place has drawn from what is,
    counted from its new place, another seed.
    """
    shifts = sorted({video - place for place, video in enumerate(videos)})
    seeds = [seed + shift for seed in trajectory.context.get("seeds", []) for shift in shifts]
    return replace(
        trajectory,
        noise=trajectory.noise[videos],
        states=[state[videos] for state in trajectory.states],
        context={**trajectory.context, "seeds": seeds},
    )


def picked_conditioning(conditioning: Any, videos: list[int]) -> Any:
    """The conditioning of some videos of a batch; text states ``[B, M, D]`` of fewer videos repeat, as in ComfyUI."""
    if conditioning is None:
        return None
    return [[text if len(text) == 1 else text[[v % len(text) for v in videos]], more] for text, more in conditioning]


def video_hashes(samples: Tensor, frames: int) -> tuple[str, ...]:
    """For each video of the batch a hash of the shape and of the last ``frames`` frames."""
    return tuple(tail_hash(video[None], frames) for video in samples)


def tail_hash(samples: Tensor, frames: int) -> str:
    """A hash of the shape and of the last ``frames`` frames."""
    tail = samples[:, :, samples.shape[2] - frames :].detach().float().cpu().contiguous()
    digest = hashlib.sha256(str(list(tail.shape)).encode())
    digest.update(tail.numpy().tobytes())
    return digest.hexdigest()


def check_layout(latent: dict[str, Any], name: str) -> None:
    """Raise ``ValueError`` for an image's latents, other channels, or a noise mask."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim != 5:
        shape = "nested" if getattr(samples, "is_nested", False) else list(samples.shape)
        raise ValueError(
            f"{name} holds an image's latents, {shape}; expected a video's, "
            f"[batch, {CHANNELS}, frames, height, width]: use Empty VidRD Latent, or encode frames with VidRD's VAE"
        )
    if samples.shape[1] != CHANNELS:
        raise ValueError(
            f"{name} has {samples.shape[1]} channels, {list(samples.shape)}; VidRD's latents have {CHANNELS}: it comes "
            "from another model family, encode the frames with VidRD's VAE"
        )
    if latent.get("noise_mask") is not None:
        raise ValueError(
            f"{name} carries a noise mask, which would undo the guidance of the overlap frames: remove "
            "Set Latent Noise Mask"
        )


def empty(batch: int, frames: int, height: int, width: int) -> Tensor:
    """Zeros ``[B, 4, T, h, w]`` for pixels of ``height`` and ``width``.

    Raises:
        ValueError: a size is not a multiple of 8.
    """
    if height % FACTOR or width % FACTOR:
        raise ValueError(f"size is {width}x{height}; expected multiples of {FACTOR}")
    import comfy.model_management

    shape = (batch, CHANNELS, frames, height // FACTOR, width // FACTOR)
    return torch.zeros(shape, device=comfy.model_management.intermediate_device())
