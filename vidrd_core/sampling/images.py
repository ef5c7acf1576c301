"""Images and clips that a user gives, as the frames that the VAE encodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

Images = Union["Image.Image", Sequence["Image.Image"], np.ndarray, Tensor]


def pixels_of(images: Images, height: int, width: int) -> Tensor:
    """Frames ``[B, 3, T, height, width]`` in [-1, 1], float32, scaled and cropped around the centre.

    Args:
        images: a PIL image or several, the frames of a clip; an array ``[H, W, 3]`` or ``[T, H, W, 3]``, uint8 or
            floats in [0, 1]; or a tensor ``[3, H, W]``, ``[3, T, H, W]`` or ``[B, 3, T, H, W]`` in [-1, 1].

    Raises:
        ValueError: something else, or no frame.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Tensor):
        frames = images.detach().float().cpu()
        frames = frames[:, None] if frames.ndim == 3 else frames
        frames = frames[None] if frames.ndim == 4 else frames
        if frames.ndim != 5 or frames.shape[1] != 3 or not frames.numel():
            raise ValueError(
                f"the given frames are a tensor {list(images.shape)}; expected [3, H, W], [3, T, H, W] or "
                "[B, 3, T, H, W] in [-1, 1]"
            )
        return fitted(frames, height, width)
    if isinstance(images, np.ndarray):
        frames_of_clip = images[None] if images.ndim == 3 else images
        if frames_of_clip.ndim != 4 or frames_of_clip.shape[3] != 3 or not frames_of_clip.size:
            raise ValueError(
                f"the given frames are an array {list(images.shape)}; expected [H, W, 3] or [T, H, W, 3], uint8 or "
                "floats in [0, 1]"
            )
        scale = 255.0 if frames_of_clip.dtype == np.uint8 else 1.0
        values = torch.from_numpy(np.array(frames_of_clip)).float() / scale
        return fitted(rearrange(values, "t h w c -> 1 c t h w") * 2 - 1, height, width)
    given: list[Any] = list(images)
    if not given or not all(isinstance(image, Image.Image) for image in given):
        raise ValueError("the given frames are neither PIL images nor an array or a tensor of them")
    arrays = [np.asarray(ImageOps.fit(image.convert("RGB"), (width, height))) for image in given]
    return pixels_of(np.stack(arrays), height, width)


def fitted(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames ``[B, 3, T, H, W]``, cropped around the centre to the wanted aspect ratio and resized."""
    old_height, old_width = frames.shape[3:]
    if (old_height, old_width) == (height, width):
        return frames
    scale = max(height / old_height, width / old_width)
    tall, wide = min(old_height, round(height / scale)), min(old_width, round(width / scale))
    top, left = (old_height - tall) // 2, (old_width - wide) // 2
    flat = rearrange(frames[:, :, :, top : top + tall, left : left + wide], "b c t h w -> (b t) c h w")
    resized = torch.nn.functional.interpolate(flat, (height, width), mode="bilinear", antialias=True)
    return rearrange(resized, "(b t) c h w -> b c t h w", b=len(frames)).clamp(-1, 1)
