"""Take a known watermark out of frames: paint it over from its surroundings, or cut the picture beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MARGIN = 16  # pixels around the mask that inpainting is given


@dataclass(frozen=True)
class Rectangle:
    """Part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """That part of a frame ``[H, W, 3]``."""
        return frame[self.top : self.top + self.height, self.left : self.left + self.width]


def inpaint(frame: np.ndarray, mask: np.ndarray, grow: int = 2, radius: float = 3.0) -> np.ndarray:
    """The frame, uint8 ``[H, W, 3]``, with the masked pixels filled from what surrounds them (Telea 2004).

    grow: pixels that the mask is widened by, for the soft edge and what video compression has smeared.
    radius: pixels around each that its colour is taken from.
    """
    import cv2

    if frame.shape[:2] != mask.shape:
        raise ValueError(f"frame and mask must have one size, got {frame.shape[:2]} and {mask.shape}")
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1))
    wide = cv2.dilate(mask.astype(np.uint8), kernel)
    filled = np.ascontiguousarray(frame).copy()
    count, _, facts, _ = cv2.connectedComponentsWithStats(cv2.dilate(wide, np.ones((_MARGIN, _MARGIN), np.uint8)))
    for left, top, width, height, _ in facts[1:count].tolist():
        # Only around the mask: OpenCV would look at every pixel of the frame.
        rows = slice(max(0, top - _MARGIN), top + height + _MARGIN)
        place = (rows, slice(max(0, left - _MARGIN), left + width + _MARGIN))
        filled[place] = cv2.inpaint(np.ascontiguousarray(filled[place]), wide[place], radius, cv2.INPAINT_TELEA)
    return filled


def largest_clear(mask: np.ndarray, grow: int = 2) -> Rectangle:
    """The largest rectangle without a masked pixel, with even sides and `grow` pixels away from the mask.

    Largest rectangle under a histogram, row by row. ValueError where the mask leaves no such rectangle.
    """
    import cv2

    kernel = np.ones((2 * grow + 1, 2 * grow + 1), np.uint8)
    free = cv2.dilate(mask.astype(np.uint8), kernel) == 0
    heights = np.zeros(mask.shape[1], np.int64)
    best = Rectangle(0, 0, 0, 0)
    for row, line in enumerate(free):
        heights = np.where(line, heights + 1, 0)
        stack: list[tuple[int, int]] = []  # column from which a rectangle of that height begins
        for column, height in enumerate([*heights.tolist(), 0]):
            begin = column
            while stack and stack[-1][1] >= height:
                begin, tall = stack.pop()
                found = Rectangle(row + 1 - tall, begin, tall // 2 * 2, (column - begin) // 2 * 2)
                if found.height * found.width > best.height * best.width:
                    best = found
            stack.append((begin, height))
    if not best.height * best.width:
        raise ValueError("the watermark leaves no part of the picture free; inpaint it instead")
    return best
