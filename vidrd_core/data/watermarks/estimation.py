"""Estimate a watermark from many videos of one size by gradient statistics.

What the videos show changes from one to the next, so at a pixel their gradients have the median zero. A watermark is at
the same place in all of them and moves that median (Dekel et al., CVPR 2017, section 3.1). The matte follows from the
gradients by solving Poisson's equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..captioning.key_frames import read_candidates

MIN_VIDEOS = 12  # fewer say too little: their own edges would pass for a watermark
_MEDIAN_ERROR = 1.2533 * 1.4826  # standard error of a median, in median absolute deviations, times sqrt(n)
_NOISE_AREA = 15  # pixels; the spread of gradients is averaged over such a square
_NOISE_FLOOR = 0.15  # levels of 255: rounding, where all videos are black
_RAYLEIGH_MEDIAN = 1.1774  # of the length of a vector of two standard normal numbers
_STRIP = 64  # rows whose medians are taken at a time


@dataclass(frozen=True)
class EstimationSettings:
    """When a recurring gradient is a watermark."""

    frames_per_video: int = 5  # evenly spaced; their median leaves what stands still in the video
    max_videos: int = 200  # of one size; more take memory and add little
    strong: float = 10.0  # standard errors from which the median gradient of a pixel is no chance
    weak: float = 3.5  # and from which a pixel that touches such ones belongs to them
    agreement: float = 6.0  # standard errors from which the videos agree about a connected part as a whole
    min_pixels: int = 12  # of a connected part
    min_videos: int = 20  # of one size; of fewer no watermark is estimated

    def __post_init__(self) -> None:
        if self.frames_per_video < 1 or self.max_videos < self.min_videos or self.min_videos < MIN_VIDEOS:
            raise ValueError(
                f"frames_per_video must be at least 1 and {MIN_VIDEOS} <= min_videos <= max_videos, got "
                f"{self.frames_per_video}, {self.min_videos} and {self.max_videos}"
            )
        if not 0 < self.weak <= self.strong or self.agreement <= 0 or self.min_pixels < 1:
            raise ValueError(
                "0 < weak <= strong, agreement above 0 and min_pixels of at least 1 are needed, got "
                f"{self.weak}, {self.strong}, {self.agreement} and {self.min_pixels}"
            )


@dataclass(frozen=True)
class Watermark:
    """What recurs over videos of one size."""

    mask: np.ndarray  # bool [H, W]; nothing set: there is none
    gradient: np.ndarray  # float32 [2, H, W], levels of 255 to the pixel below and to the right; 0 off the watermark
    matte: np.ndarray  # float32 [H, W], how much brighter the watermark makes a picture, levels of 255
    videos: int  # that it was estimated from

    def __bool__(self) -> bool:
        return bool(self.mask.any())

    def presence(self, gradient: np.ndarray) -> float:
        """About 1 for a video with this watermark and 0 for one without, from :func:`video_gradient`.

        The factor of the watermark's gradient that explains the video's best in the sense of least squares.
        """
        power = float(np.square(self.gradient, dtype=np.float64).sum())
        if power == 0 or gradient.shape != self.gradient.shape:
            return 0.0
        return float((gradient.astype(np.float64) * self.gradient).sum() / power)


def video_gradient(path: Path, frames: int) -> np.ndarray:
    """The gradient that stays over a video: median over `frames` frames, float16 [2, H, W]. VideoError if broken."""
    images = read_candidates(path, frames, side=1 << 20).images
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise ValueError(f"{path}: changes its size on the way ({sorted(s[1::-1] for s in sizes)})")
    return np.median([brightness_gradient(image) for image in images], axis=0).astype(np.float16)


def brightness_gradient(image: np.ndarray) -> np.ndarray:
    """Differences of brightness to the pixel below and to the right, float32 [2, H, W]; zero at the far edges."""
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gradient = np.zeros((2, *grey.shape), np.float32)
    gradient[0, :-1] = np.diff(grey, axis=0)
    gradient[1, :, :-1] = np.diff(grey, axis=1)
    return gradient


def estimate(gradients: Sequence[np.ndarray], settings: EstimationSettings) -> Watermark:
    """The watermark of the videos with these gradients, from :func:`video_gradient`; an empty mask if there is none.

    It must be in the same place in more than half of the videos. ValueError for too few of them or for several sizes.
    """
    if len(gradients) < settings.min_videos:
        raise ValueError(
            f"{len(gradients)} videos are too few to tell a watermark from what they show; "
            f"{settings.min_videos} of one size are needed"
        )
    if len({gradient.shape for gradient in gradients}) > 1:
        raise ValueError(f"videos must have one size, got {sorted({g.shape[1:] for g in gradients})} (height, width)")
    median, error = _median_and_error(gradients)
    score = np.sqrt(np.square(median / error).sum(0))
    # Gradients of pictures are no normal numbers; the bulk of the pixels, which show no watermark, sets the scale.
    score = score / max(float(np.median(score)) / _RAYLEIGH_MEDIAN, 0.5)
    edges = _agreed_parts(_connected_edges(score, settings), median, gradients, settings.agreement)
    kept = np.where(_grown(edges, 2), median, 0).astype(np.float32)
    matte = solve_poisson(kept)
    mask = _filled(edges, matte)
    return Watermark(mask, np.where(_grown(mask, 2), kept, 0), np.where(mask, matte, 0), len(gradients))


def solve_poisson(gradient: np.ndarray) -> np.ndarray:
    """The picture ``[H, W]`` with this gradient in the sense of least squares, zero around; by sine transform."""
    from scipy import fft

    height, width = gradient.shape[1:]
    down = np.diff(gradient[0], axis=0, prepend=0)
    right = np.diff(gradient[1], axis=1, prepend=0)
    rows = 2 * np.cos(np.pi * np.arange(1, height + 1) / (height + 1)) - 2
    columns = 2 * np.cos(np.pi * np.arange(1, width + 1) / (width + 1)) - 2
    spectrum = fft.dstn((down + right).astype(np.float64), type=1) / (rows[:, None] + columns[None])
    return fft.idstn(spectrum, type=1).astype(np.float32)


def _median_and_error(gradients: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Median over the videos and its standard error, float32 [2, H, W]."""
    import cv2

    shape = gradients[0].shape
    median, spread = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for top in range(0, shape[1], _STRIP):
        strip = np.stack([gradient[:, top : top + _STRIP] for gradient in gradients]).astype(np.float32)
        median[:, top : top + _STRIP] = np.median(strip, axis=0)
        spread[:, top : top + _STRIP] = np.median(np.abs(strip - median[:, top : top + _STRIP]), axis=0)
    area = (_NOISE_AREA, _NOISE_AREA)
    error = np.stack([cv2.blur(part, area) for part in spread]) * _MEDIAN_ERROR / np.sqrt(len(gradients))
    return median, np.maximum(error, _NOISE_FLOOR)


def _connected_edges(score: np.ndarray, settings: EstimationSettings) -> np.ndarray:
    """Pixels above the weak threshold in connected parts that reach the strong one and are large enough."""
    import cv2

    _, labels, facts, _ = cv2.connectedComponentsWithStats((score > settings.weak).astype(np.uint8), connectivity=8)
    strong = np.zeros(len(facts), bool)
    # One pixel can be chance where there are hundreds of thousands.
    sure, counts = np.unique(labels[score > settings.strong], return_counts=True)
    strong[sure[counts >= 3]] = True
    strong &= facts[:, cv2.CC_STAT_AREA] >= settings.min_pixels
    strong[0] = False
    return strong[labels]


def _agreed_parts(
    edges: np.ndarray, median: np.ndarray, gradients: Sequence[np.ndarray], agreement: float
) -> np.ndarray:
    """The connected parts whose gradient most of the videos have, in about the same strength.

    Where some videos happen to have edges of one direction, the median moves too, but then each video shows another
    multiple of it, or none. That is asked of the part as a whole, where no single pixel's noise counts.
    """
    import cv2

    count, labels = cv2.connectedComponents(edges.astype(np.uint8), connectivity=8)
    agreed = np.zeros(count, bool)
    for part in range(1, count):
        inside = labels == part
        wanted = median[:, inside]
        power = np.square(wanted).sum()
        factors = np.array([(g[:, inside].astype(np.float32) * wanted).sum() / power for g in gradients])
        middle = np.median(factors)
        error = _MEDIAN_ERROR * np.median(np.abs(factors - middle)) / np.sqrt(len(gradients))
        agreed[part] = middle > agreement * max(error, 1e-6)
    return agreed[labels]


def _filled(edges: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """The pixels between the edges: of each part those whose matte is a good share of the part's strongest."""
    import cv2

    mask = np.zeros(edges.shape, bool)
    closed = cv2.morphologyEx(edges.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in contours:
        part = np.zeros(edges.shape, np.uint8)
        cv2.drawContours(part, [contour], -1, 1, cv2.FILLED)
        inside = _grown(part > 0, 1)
        strength = np.abs(matte)[inside]
        mask |= inside & (np.abs(matte) > 0.4 * np.quantile(strength, 0.9))
    return mask


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    import cv2

    size = 2 * pixels + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0
