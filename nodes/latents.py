"""The one wire of a chain: a LATENT with one more entry, the trajectory that the next clip reuses.

``{"samples": [B, 4, T, h, w], "vidrd_trajectory": Prior}``. The samples are the video so far or a single clip,
unscaled as on every LATENT wire. The trajectory is in the sampler's own space (scaled, variance-exploding), on
the CPU.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse import Trajectory
from .native.model import VidRDModel, same_model

logger = logging.getLogger(__name__)

KEY = "vidrd_trajectory"
CHANNELS = 4
FACTOR = 8  # pixels per latent


@dataclass(frozen=True)
class Prior:
    """What a sampling node adds to its LATENT.

    Args:
        trajectory: of the last clip. Its context holds "model", "sampler", "scheduler", "steps", "sigmas" and
            "clip_index"; it keeps all frames of all steps, so that any overlap, beta and order can follow.
        tail_frames: how many of the last frames of the samples belong to that clip.
        tail_hash: of those frames; others mean that the samples were changed since.
    """

    trajectory: Trajectory
    tail_frames: int
    tail_hash: str

    @property
    def context(self) -> dict[str, Any]:
        return dict(self.trajectory.context)

    def fits(self, samples: Tensor) -> bool:
        """Whether the samples still end with the clip that the trajectory belongs to."""
        return samples.shape[2] >= self.tail_frames and tail_hash(samples, self.tail_frames) == self.tail_hash

    def check_model(self, model: VidRDModel) -> None:
        """Raise ``ValueError`` where the trajectory is another model's."""
        made_by = str(self.trajectory.context.get("model", ""))
        if not same_model(model.fingerprint, made_by):
            raise ValueError(
                "the prior was made by another model than the one connected: connect the model that made it, or set "
                "prior_trajectory to invert or noise, so that it is made anew for this model"
            )


def tail_hash(samples: Tensor, frames: int) -> str:
    """A hash of the shape and of the last ``frames`` frames."""
    tail = samples[:, :, samples.shape[2] - frames :].detach().float().cpu().contiguous()
    digest = hashlib.sha256(str(list(tail.shape)).encode())
    digest.update(tail.numpy().tobytes())
    return digest.hexdigest()


def with_prior(samples: Tensor, trajectory: Trajectory, tail_frames: int) -> dict[str, Any]:
    """A LATENT that can be continued."""
    prior = Prior(trajectory, tail_frames, tail_hash(samples, tail_frames))
    return {"samples": samples, KEY: prior}


def prior_of(latent: dict[str, Any]) -> Prior | None:
    """The trajectory of a LATENT, or None where it has none or one that no longer fits its samples."""
    prior = latent.get(KEY)
    if prior is None:
        return None
    if not prior.fits(latent["samples"]):
        logger.warning("The latents were changed after they were sampled, so their stored trajectory is not used.")
        return None
    return prior


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
