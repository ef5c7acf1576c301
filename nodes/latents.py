"""The one wire of a chain: a LATENT with one more entry, the trajectory that the next clip reuses.

``{"samples": [B, 4, T, h, w], "vidrd_trajectory": Prior}``. The samples are the video so far or a single clip,
unscaled as on every LATENT wire. The trajectory is in the sampler's own space (scaled, variance-exploding), on
the CPU.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.trajectory import Trajectory
from .native.model import VidRDModel, same_model

logger = logging.getLogger(__name__)

KEY = "vidrd_trajectory"
CHANNELS = 4
FACTOR = 8  # pixels per latent


@dataclass(frozen=True)
class Prior:
    """What a sampling node adds to its LATENT.

    Args:
        trajectory: of the last clip. Its context holds "model", "sampler", "scheduler", "steps", "sigmas", "clip_index"
            and "seeds" (those that this video's noise was drawn from); it keeps all frames of all steps, so that any
            overlap, beta and order can follow.
        tail_frames: how many of the last frames of the samples belong to that clip.
        tail_hashes: of those frames, one per video of the batch; others mean that the samples were changed since.
        positive: the conditioning that the clip was sampled with, by which it is inverted where its trajectory cannot
            be used; None where it is not known.
    """

    trajectory: Trajectory
    tail_frames: int
    tail_hashes: tuple[str, ...]
    positive: Any = None

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
        logger.info("Of the %d videos sampled together, number %s goes on.", len(self.tail_hashes), places)
        positive = picked_conditioning(self.positive, videos)
        return Prior(picked(self.trajectory, videos), self.tail_frames, hashes, positive)

    def check_model(self, model: VidRDModel) -> None:
        """Raise ``ValueError`` where the trajectory is another model's."""
        made_by = str(self.trajectory.context.get("model", ""))
        if not same_model(model.fingerprint, made_by):
            raise ValueError(
                "the prior was made by another model than the one connected: connect the model that made it, or set "
                "prior_trajectory to invert or noise, so that it is made anew for this model"
            )


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


def with_prior(samples: Tensor, trajectory: Trajectory, tail_frames: int, positive: Any = None) -> dict[str, Any]:
    """A LATENT that can be continued."""
    return {"samples": samples, KEY: Prior(trajectory, tail_frames, video_hashes(samples, tail_frames), positive)}


def prior_of(latent: dict[str, Any]) -> Prior | None:
    """The trajectory of a LATENT's videos, or None where it has none or one that no longer fits its samples."""
    stored: Prior | None = latent.get(KEY)
    if stored is None:
        return None
    prior = stored.of(latent["samples"])
    if prior is None:
        logger.warning("The latents were changed after they were sampled, so their stored trajectory is not used.")
    return prior


def known_context(latent: dict[str, Any]) -> dict[str, Any]:
    """What a LATENT tells of how it was made, also where its trajectory no longer fits; empty where nothing is."""
    return latent[KEY].context if KEY in latent else {}


def known_positive(latent: dict[str, Any], model: VidRDModel) -> Any:
    """The conditioning that the last clip of a LATENT was sampled with, also where its trajectory no longer fits.

    None where none is stored, where another model made the clip, and where nobody knows which video of a batch is left.
    """
    stored: Prior | None = latent.get(KEY)
    if stored is None or not same_model(model.fingerprint, str(stored.context.get("model", ""))):
        return None
    prior = stored.of(latent["samples"]) or stored
    is_one_of_many = any(len(text) > 1 for text, _ in prior.positive or ())
    return None if is_one_of_many and len(latent["samples"]) != len(prior.tail_hashes) else prior.positive


def video_samples(latent: dict[str, Any], name: str) -> Tensor:
    """The samples ``[B, 4, T, h, w]`` of a LATENT, on the CPU in float32.

    Raises:
        ValueError: an image's latents, other channels, or a noise mask.
    """
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
    return samples.detach().float().cpu()


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
