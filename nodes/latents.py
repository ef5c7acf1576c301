"""The one wire of a chain: a LATENT with one more entry, the trajectory that the next clip reuses.

``{"samples": ..., "vidrd_trajectory": Prior}``. The samples are the video so far or a single clip, unscaled as on every
LATENT wire and laid out as the model has them (:mod:`.any_model.layouts`). The trajectory is in the sampler's own space
(scaled, with noise), on the CPU. A node reads its LATENT once, into a :class:`VideoLatent`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.trajectory import Trajectory, frames_hash
from ..vidrd_core.sampling.interchange import FACTOR
from .any_model.families import NATIVE, Family
from .any_model.layouts import Layout, layout_of
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
            "scaling_factor" and "reuse". Of VidRD's clips it keeps all frames of all steps, so that any overlap, beta
            and order can follow. Of other families' it holds "family", "format", "layout", "frames_per_latent" and
            "process" in place of "model".
        tail_frames: how many of the last frames of the samples belong to that clip.
        tail_hashes: of those frames, one per video of the batch; others mean that the samples were changed since.
        positive: the conditioning that the clip was sampled with, by which it is inverted where its trajectory cannot
            be used; None where it is not known.
        negative: likewise.
        sound: the trajectory of the sound that was sampled with the clip; None where there is none.
    """

    trajectory: Trajectory
    tail_frames: int
    tail_hashes: tuple[str, ...]
    positive: Any = None
    negative: Any = None
    sound: Trajectory | None = None

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
        sound = None if self.sound is None else picked(self.sound, videos)
        return Prior(picked(self.trajectory, videos), self.tail_frames, hashes, positive, negative, sound)

    def is_of(self, inner: Any) -> bool:
        """Whether this model made the trajectory; of other families than VidRD, one with the same latents."""
        if isinstance(inner, VidRDModel):
            return same_model(inner.fingerprint, str(self.trajectory.context.get("model", "")))
        return self.trajectory.context.get("format") == type(inner.latent_format).__name__

    def check_model(self, inner: Any) -> None:
        """Raise ``ValueError`` where the trajectory is another model's."""
        if self.is_of(inner):
            return
        made_by = self.trajectory.context.get("family", NATIVE.name)
        if not isinstance(inner, VidRDModel) or made_by != NATIVE.name:
            raise ValueError(
                f"the prior was made with {made_by}, whose latents {type(inner).__name__} cannot read: continue it "
                f"with a {made_by} model, or decode it, encode the frames with this model's VAE and continue these"
            )
        raise ValueError(
            "the prior was made by another model than the one connected: connect the model that made it, or set "
            "prior_trajectory to invert or noise, so that it is made anew for this model"
        )


@dataclass(frozen=True)
class VideoLatent:
    """A LATENT, read and checked.

    Args:
        samples: ``[B, C, T, h, w]``, unscaled, on the CPU in float32.
        prior: the trajectory of its videos; None where it has none, or one that no longer fits its samples.
        stored: what it came with, whether it fits or not.
        layout: of the samples on the wire.
        noise_mask: that it carries, as on the wire.
        is_blank: whether it holds what its format makes of zeros, as some empty latents do.
        sound: of the video, ``[B, C, T, bins]``, for models that sample both; None for others.
    """

    samples: Tensor
    prior: Prior | None = None
    stored: Prior | None = None
    layout: Layout = NATIVE.layout
    noise_mask: Tensor | None = None
    is_blank: bool = False
    sound: Tensor | None = None

    @classmethod
    def read(cls, latent: dict[str, Any], name: str, family: Family | None = None, channels: int = 0) -> VideoLatent:
        """Read a LATENT.

        Args:
            name: of the input, for messages.
            family: of the model that is to go on from it; None: the one that the LATENT says it is of.
            channels: of that model's latents; 0: not known.

        Raises:
            ValueError: an image's latents, other channels, or, for VidRD, a noise mask.
        """
        stored: Prior | None = latent.get(KEY)
        context = {} if stored is None else stored.context
        layout = layout_of(context) if family is None else family.layout
        native = "format" not in context if family is None else family.is_vidrd
        samples, sound = split_sound(latent["samples"], name, layout)
        if native:
            check_layout(latent, name)
        else:
            samples = fitted(samples, name, layout, family, channels or samples.shape[1])
        video = layout.to_video(samples)
        prior = None if stored is None else stored.of(video)
        if stored is not None and prior is None:
            logger.warning("The latents were changed after they were sampled, so their stored trajectory is not used.")
        video = video.detach().float().cpu()
        sound = None if sound is None else sound.detach().float().cpu()
        return cls(video, prior, stored, layout, latent.get("noise_mask"), sound=sound)

    @classmethod
    def made(
        cls,
        samples: Tensor,
        trajectory: Trajectory,
        tail_frames: int,
        positive: Any = None,
        negative: Any = None,
        layout: Layout = NATIVE.layout,
        sound: tuple[Tensor, Trajectory] | None = None,
    ) -> VideoLatent:
        """The LATENT of samples whose last frames are those of a trajectory, with their sound and its trajectory."""
        heard, recorded = (None, None) if sound is None else sound
        prior = Prior(trajectory, tail_frames, video_hashes(samples, tail_frames), positive, negative, recorded)
        return cls(samples, prior, prior, layout, sound=heard)

    def on_wire(self) -> Any:
        """The samples as they go on a wire."""
        if self.sound is None:
            return self.layout.from_video(self.samples)
        from comfy.nested_tensor import NestedTensor  # of ComfyUI's versions that have models with sound

        return NestedTensor([self.samples, self.sound])

    def to_wire(self) -> dict[str, Any]:
        """What goes on a LATENT wire."""
        wire = {"samples": self.on_wire()}
        return wire if self.stored is None else {**wire, KEY: self.stored}

    def following(self, samples: Tensor, tail_frames: int, sound: Tensor | None = None) -> VideoLatent:
        """Samples, and sound, that end with this one's last clip, with its trajectory."""
        assert self.prior is not None
        texts = self.prior.positive, self.prior.negative
        heard = None if sound is None or self.prior.sound is None else (sound, self.prior.sound)
        return VideoLatent.made(samples, self.prior.trajectory, tail_frames, *texts, self.layout, heard)

    @cached_property
    def is_empty(self) -> bool:
        """Whether it is the latent of an empty latent node."""
        return self.is_blank or not torch.count_nonzero(self.samples)

    @property
    def begins(self) -> bool:
        """Whether a video begins with it: empty, or an image-to-video node's, with some frames given and masked."""
        return self.is_empty or (self.noise_mask is not None and self.stored is None)

    @property
    def is_image(self) -> bool:
        """Whether it is a single frame that no video of ours ends with, such as an encoded image."""
        return self.samples.shape[2] == 1 and self.stored is None

    @property
    def context(self) -> dict[str, Any]:
        """How its last clip was made, also where the trajectory no longer fits; empty where nothing is known."""
        return {} if self.stored is None else self.stored.context

    def known_positive(self, model: Any) -> Any:
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
        predictions=[prediction[videos] for prediction in trajectory.predictions],
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
    return frames_hash(samples[:, :, samples.shape[2] - frames :])


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


def split_sound(samples: Any, name: str, layout: Layout) -> tuple[Any, Tensor | None]:
    """The video and the sound of what is on a wire.

    Raises:
        ValueError: the model samples video alone and there is sound, or the other way round.
    """
    is_nested = getattr(samples, "is_nested", False)
    if layout.name == "audio":
        if not is_nested:
            raise ValueError(
                f"{name} holds no sound, but the model samples video and sound together: connect an empty audio latent "
                "to it (LTXVConcatAVLatent)"
            )
        video, sound = samples.unbind()[:2]
        return video, sound
    if is_nested and layout.is_temporal:
        raise ValueError(f"{name} holds video and sound in one: connect the video's latents alone")
    return samples, None


def fitted(samples: Any, name: str, layout: Layout, family: Family | None, channels: int) -> Tensor:
    """The samples of a LATENT as a model takes them; empty ones of another family get its channels, as in KSampler.

    Raises:
        ValueError: an image's latents, or other channels.
    """
    model = "this model" if family is None else family.name
    is_empty = not torch.count_nonzero(samples)
    expected = (
        "[frames, channels, height, width]" if layout.name == "batch" else "[batch, channels, frames, height, width]"
    )
    if is_empty and layout.name != "batch" and samples.ndim == 4:
        samples = samples.unsqueeze(2)
    if samples.ndim != (4 if layout.name == "batch" else 5):
        raise ValueError(
            f"{name} is {list(samples.shape)}; {model} has latents of {expected}: use the empty latent node of this "
            "family, or encode frames with its VAE"
        )
    if samples.shape[1] == channels:
        return samples
    if is_empty:
        return samples.new_zeros((len(samples), channels, *samples.shape[2:]))
    raise ValueError(
        f"{name} has {samples.shape[1]} channels, {list(samples.shape)}; {model}'s latents have {channels}: it comes "
        "from another model family, decode it, encode the frames with this model's VAE and continue these"
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
