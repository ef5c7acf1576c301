"""A rule-based tracker for the moving-shapes data set: colour, shape and centre per frame, motion per clip.

Backgrounds are dark and shapes bright, so a shape is where the brightest channel exceeds a threshold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .scenes import BOUNCE_HEIGHT, BOUNCE_PERIOD, COLORS, DIRECTIONS, ORBIT_RADIUS, SHAPES, SIZE, SPEED, shape_mask

BRIGHT = 0.64  # of the brightest channel, 0 to 1; backgrounds stay below 0.55, shapes reach 0.8
MIN_AREA = 60  # bright pixels that count as a shape; the smallest shape has about 150
MAX_RESIDUAL = 2.5  # pixels, root mean square, up to which a path counts as a motion
NOTHING = "nothing"


@dataclass(frozen=True)
class Track:
    """What the tracker found in a clip of T frames; ``NOTHING`` and NaN where it found no shape."""

    colors: list[str]
    shapes: list[str]
    centers: Tensor  # [T, 2], x and y in pixels
    speed: float = 1.0  # of the motions, as a share of the data set's own

    def __getitem__(self, frames: slice) -> Track:
        return Track(self.colors[frames], self.shapes[frames], self.centers[frames], self.speed)

    @property
    def color(self) -> str:
        """The colour found in most frames."""
        return Counter(self.colors).most_common(1)[0][0]

    @property
    def shape(self) -> str:
        """The shape found in most frames."""
        return Counter(self.shapes).most_common(1)[0][0]

    @property
    def motion(self) -> str:
        """The motion whose path fits the centres best, or ``NOTHING`` where none fits."""
        return classify_motion(self.centers, self.speed)


def track(frames: Tensor, speed: float = 1.0) -> Track:
    """Track the shape in ``[3, T, H, W]``, values -1 to 1, H = W = 64; ``speed`` as in :func:`.scenes.render`."""
    if frames.ndim != 4 or frames.shape[0] != 3 or frames.shape[2:] != (SIZE, SIZE):
        raise ValueError(f"frames are {list(frames.shape)}; expected [3, T, {SIZE}, {SIZE}]")
    pixels = (frames.detach().float().cpu().clamp(-1, 1) + 1) / 2
    found = [_detect(pixels[:, t]) for t in range(pixels.shape[1])]
    colors, shapes, centers = zip(*found, strict=True)
    return Track(list(colors), list(shapes), torch.stack(centers), speed)


def _detect(pixels: Tensor) -> tuple[str, str, Tensor]:
    """Colour, shape and centre in one frame ``[3, H, W]``, values 0 to 1."""
    bright = pixels.amax(0)
    mask = bright > BRIGHT
    if int(mask.sum()) < MIN_AREA:
        return NOTHING, NOTHING, torch.full((2,), math.nan)
    center = _circular_center(mask)
    # The brightest half of the shape is its inside: outlines mix with the background.
    inside = mask & (bright >= bright[mask].median())
    color = pixels[:, inside].mean(1)
    distances = {name: float((color - torch.tensor(rgb) / 255).square().sum()) for name, rgb in COLORS.items()}
    return min(distances, key=distances.__getitem__), _best_shape(mask, center), center


def _circular_center(mask: Tensor) -> Tensor:
    """Centre of mass (x, y) of a mask ``[H, W]`` that wraps around at its edges."""
    angles = (torch.arange(SIZE) + 0.5) * (2 * math.pi / SIZE)
    center = []
    for weights in (mask.sum(0).float(), mask.sum(1).float()):
        angle = torch.atan2((weights * angles.sin()).sum(), (weights * angles.cos()).sum())
        center.append(angle * (SIZE / (2 * math.pi)) % SIZE)
    return torch.stack(center)


@lru_cache(maxsize=1)
def _templates() -> tuple[list[str], Tensor]:
    """Every shape at the origin in several sizes, ``[K, H, W]``."""
    names = [shape for shape in SHAPES for _ in range(13)]
    radii = [7.0 + 0.5 * i for i in range(13)] * len(SHAPES)
    masks = [shape_mask(n, torch.tensor([[SIZE / 2, SIZE / 2]]), r)[0] > 0.5 for n, r in zip(names, radii, strict=True)]
    return names, torch.stack(masks)


def _best_shape(mask: Tensor, center: Tensor) -> str:
    """The shape whose template, moved to ``center``, overlaps the mask best (intersection over union)."""
    names, templates = _templates()
    shift = (SIZE / 2 - center).round().int().tolist()
    moved = mask.roll((shift[1], shift[0]), (0, 1))
    union = (templates | moved).sum((1, 2))
    return names[int(((templates & moved).sum((1, 2)) / union).argmax())]


def wrapped(difference: Tensor) -> Tensor:
    """Displacements where the frame wraps around: -32 to 32 pixels."""
    return (difference + SIZE / 2) % SIZE - SIZE / 2


def _residual(centers: Tensor, path: Tensor, free: bool = True) -> float:
    """Root mean square distance of centres and a path ``[T, 2]``, which may be shifted as a whole where ``free``."""
    difference = wrapped(centers - path)
    if free:
        difference = wrapped(difference - difference[0])
        difference = difference - difference.mean(0)
    return float(difference.square().sum(1).mean().sqrt())


def classify_motion(centers: Tensor, speed: float = 1.0) -> str:
    """The motion that a path ``[T, 2]`` follows, or ``NOTHING``; T of at least 4, of at least 4 / ``speed`` if slow."""
    if bool(torch.isnan(centers).any()):
        return NOTHING
    times = torch.arange(len(centers), dtype=torch.float32) * speed
    zero = torch.zeros_like(times)
    fits = {"stays still": _residual(centers, torch.stack((zero, zero), 1))}
    for name, (step_x, step_y) in DIRECTIONS.items():
        fits[name] = _residual(centers, torch.stack((times * step_x, times * step_y), 1) * SPEED)
    phases = torch.arange(128) / 128  # finer than a fifth of a pixel along the path
    fits["bounces up and down"] = min(
        _residual(centers, torch.stack((zero, -BOUNCE_HEIGHT * (math.pi * (times / BOUNCE_PERIOD + p)).sin().abs()), 1))
        for p in phases
    )
    angles = [2 * math.pi * p + times * (SPEED / ORBIT_RADIUS) for p in phases]
    fits["orbits the center"] = min(
        _residual(centers, SIZE / 2 + ORBIT_RADIUS * torch.stack((a.cos(), a.sin()), 1), free=False) for a in angles
    )
    best = min(fits, key=fits.__getitem__)
    return best if fits[best] <= MAX_RESIDUAL else NOTHING


def seam_jump(before: Track, after: Track) -> float:
    """Distance in pixels from a clip's last centre to the next clip's first; NaN where either has none."""
    return float(wrapped(after.centers[0] - before.centers[-1]).norm())


def mean_step(tracks: Sequence[Track]) -> float:
    """Mean distance in pixels between neighbouring frames inside clips."""
    steps = torch.cat([wrapped(track.centers.diff(dim=0)).norm(dim=1) for track in tracks])
    return float(steps[~steps.isnan()].mean())
