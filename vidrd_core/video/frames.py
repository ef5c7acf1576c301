"""Frames as arrays: from the core's tensors and from floats to the uint8 `[T, H, W, 3]` that files hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Resampling and dithering overshoot a little; anything further out is another convention, not rounding.
_FLOAT_TOLERANCE = 0.01


def to_uint8(frames: torch.Tensor) -> np.ndarray:
    """Convert pixels of the core to frames of a file, rounding to the nearest of the 256 levels.

    frames: `[1, 3, T, H, W]` or `[3, T, H, W]` in [-1, 1], any float dtype and device. Values outside are clamped,
    since a decoder overshoots. Returns uint8 `[T, H, W, 3]`. Raises ValueError for another shape or for NaN.
    """
    shape = tuple(frames.shape)
    if frames.ndim == 5 and shape[0] == 1:
        frames = frames[0]
    if frames.ndim != 4 or frames.shape[0] != 3:
        raise ValueError(
            f"frames must be [1, 3, T, H, W] or [3, T, H, W], got {list(shape)}; convert one video at a time"
        )
    levels = frames.detach().float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    if bool(levels.isnan().any()):
        raise ValueError("frames contain NaN: the model's output is broken (float16 overflow is the usual reason)")
    return levels.byte().permute(1, 2, 3, 0).contiguous().cpu().numpy()


def each_as_uint8(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of `[T, H, W, 3]`, uint8 or float in [0, 1], as contiguous uint8 `[H, W, 3]`.

    One at a time, so that converting floats takes the memory of one frame. Raises ValueError before the first frame for
    a wrong shape or dtype, and at the frame concerned for values outside [0, 1].
    """
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be [T, H, W, 3], got {list(frames.shape)}")
    if frames.dtype != np.uint8 and not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"frames must be uint8 in 0..255 or float in [0, 1], got {frames.dtype}")
    return (_frame_as_uint8(frame) for frame in frames)


def _frame_as_uint8(frame: np.ndarray) -> np.ndarray:
    if frame.dtype == np.uint8:
        return np.ascontiguousarray(frame)
    low, high = float(frame.min()), float(frame.max())
    # Written so that NaN, which compares false, is refused as well.
    if not (low >= -_FLOAT_TOLERANCE and high <= 1.0 + _FLOAT_TOLERANCE):
        raise ValueError(
            f"float frames must lie in [0, 1], got {low:.3g} to {high:.3g}; convert tensors in [-1, 1] with to_uint8"
        )
    return np.rint(frame.clip(0.0, 1.0).astype(np.float32) * 255.0).astype(np.uint8)
