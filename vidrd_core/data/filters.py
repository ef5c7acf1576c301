"""Which clips and images are good enough to train on: size, brightness, motion, and how much text is in the picture.

Every check is a measurement with a limit, so that its strength can be set; a limit of 0 turns it off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOO_SMALL, TOO_SHORT, TOO_STATIC, TOO_DARK, TEXT_HEAVY = (
    "too small",
    "too short",
    "too static",
    "too dark",
    "text-heavy",
)
CAPTION_TOO_LONG = "caption too long"

_MOTION_SIDE = 64  # pixels, the shorter side at which motion is measured: noise of the camera averages out
_TEXT_SIDE = 320  # pixels, the longer side at which text is looked for


@dataclass(frozen=True)
class FilterSettings:
    """The limits; the values are our own."""

    min_side: int = 200  # pixels, shorter side of the source
    min_motion: float = 0.5  # mean change of a pixel from frame to frame, in levels of 0 to 255; 0: off
    min_brightness: float = 16.0  # mean level of a clip or image, 0 to 255; 0: off
    max_text: float = 0.15  # share of the picture that looks like lines of text, 0 to 1; 0: off
    max_caption: int = 2000  # letters; 0: off

    def __post_init__(self) -> None:
        if min(self.min_side, self.min_motion, self.min_brightness, self.max_text, self.max_caption) < 0:
            raise ValueError(f"limits are 0 (off) or above, got {self}")


def check_size(settings: FilterSettings, height: int, width: int) -> str | None:
    """Why a source of ``height`` x ``width`` pixels is refused, or None."""
    return TOO_SMALL if min(height, width) < settings.min_side else None


def check_frames(settings: FilterSettings, frames: np.ndarray) -> str | None:
    """Why uint8 ``[T, H, W, 3]`` is refused, or None. A single frame has no motion to check."""
    if settings.min_brightness and brightness(frames) < settings.min_brightness:
        return TOO_DARK
    if settings.min_motion and len(frames) > 1 and motion(frames) < settings.min_motion:
        return TOO_STATIC
    if settings.max_text and text_share(frames) > settings.max_text:
        return TEXT_HEAVY
    return None


def brightness(frames: np.ndarray) -> float:
    """Mean luma (BT.601) of uint8 ``[T, H, W, 3]``, 0 to 255."""
    return float(frames.reshape(-1, 3).mean(0) @ np.array([0.299, 0.587, 0.114]))


def motion(frames: np.ndarray) -> float:
    """Mean absolute change of the small grey picture from frame to frame, in levels of 0 to 255, T > 1."""
    import cv2

    height, width = frames.shape[1:3]
    scale = min(1.0, _MOTION_SIDE / min(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA).astype(np.int16)
        for frame in frames
    ]
    return float(np.abs(np.diff(np.stack(grey), axis=0)).mean())


def text_share(frames: np.ndarray) -> float:
    """Share of the picture, 0 to 1, that looks like lines of text; the largest of the first, middle and last frame.

    Letters are strong edges close together in rows: edges are closed sideways to bars, and bars of the shape and
    density of a line of text are counted. This is a measure by shape, not a reader: fences, blinds or brickwork can
    count as text, and large single letters, steep or handwritten text can be missed.
    """
    chosen = {0, len(frames) // 2, len(frames) - 1}
    return max(_text_share(frames[index]) for index in sorted(chosen))


def _text_share(frame: np.ndarray) -> float:
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = min(1.0, _TEXT_SIDE / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    edges = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    strong = (edges > max(40, cv2.threshold(edges, 0, 255, cv2.THRESH_OTSU)[0])).astype(np.uint8)
    bars = cv2.morphologyEx(strong, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_RECT, (9, 1)))
    covered = 0
    _, _, boxes, _ = cv2.connectedComponentsWithStats(bars, connectivity=4)
    for left, top, w, h, area in boxes[1:]:
        if not (5 <= h <= grey.shape[0] / 4 and w >= 2 * h and area >= 0.5 * w * h):
            continue
        inside = strong[top : top + h, left : left + w]
        # Every letter brings at least two edges to a row; the rim of a plain bar only two in all.
        crossings = np.abs(np.diff(inside.astype(np.int8), axis=1)).sum(1).mean()
        if crossings >= max(4.0, w / h):
            covered += w * h
    return covered / grey.size
