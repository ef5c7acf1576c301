"""The image conditioning of the next clip: what image-to-video models are given beside the noisy latents.

It belongs to one clip: the last clip's would pull the next one back to where the video began. So the overlap's clean
latents take their place in it, and the user's image stays in latent 0, before them, as an anchor.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

IMAGE, MASK = "concat_latent_image", "concat_mask"
# Conditioning along the video's time, which only the user can give for the new clip's stretch of it.
ALONG_TIME = (
    "vace_frames", "vace_mask", "control_video", "camera_conditions", "pose_video_latent", "face_video_pixels",
    "audio_embed", "reference_motion", "keyframe_idxs", "time_dim_concat", "humo_audio",
)  # fmt: skip


def renewed(conds: dict[str, list[dict[str, Any]]], overlap: Tensor, lead_in: int, num_latents: int) -> Any:
    """The conditionings of a guider with the overlap in their images.

    Args:
        conds: name -> conditionings, as ComfyUI's guiders hold them; left as they are.
        overlap: unscaled latents ``[B, C, M, h, w]`` of the overlap, in the new clip's order.
        lead_in: latents of the clip before the overlap, or before its last ones where these are given.
        num_latents: of the clip.
    """
    return {name: [_renewed(one, overlap, lead_in, num_latents) for one in listed] for name, listed in conds.items()}


def _renewed(cond: dict[str, Any], overlap: Tensor, lead_in: int, num_latents: int) -> dict[str, Any]:
    left = [key for key in ALONG_TIME if cond.get(key) is not None]
    if left:
        logger.info("The conditioning's %s stay as they are: give the new clip's own.", ", ".join(left))
    image = cond.get(IMAGE)
    if image is None:
        return cond
    if image.ndim == 5 and image.shape[2] == 1 < num_latents:  # the user's image alone: nothing stands behind it
        image = torch.nn.functional.pad(image, (0, 0, 0, 0, 0, num_latents - 1))
    if image.ndim == 4:  # of a single frame: what the clip begins with
        return {**cond, IMAGE: overlap[:, :, 0].to(image)} if torch.count_nonzero(image) and not lead_in else cond
    if image.shape[2] != num_latents or image.shape[3:] != overlap.shape[3:] or image.shape[1] % overlap.shape[1]:
        logger.warning(
            "The conditioning's image latents are %s, which do not fit a clip of %d latents like %s: they stay as they "
            "are. Give the image-to-video node the clip's length and size.",
            list(image.shape), num_latents, list(overlap.shape),
        )  # fmt: skip
        return cond
    held = slice(lead_in, lead_in + overlap.shape[2])
    image = image.clone()
    image[:, : overlap.shape[1], held] = overlap.to(image)[: len(image)]
    mask = cond.get(MASK)
    mask = image.new_ones((1, 1, *image.shape[2:])) if mask is None else mask.clone()
    mask[:, :, held] = 0
    return {**cond, IMAGE: image, MASK: mask}
