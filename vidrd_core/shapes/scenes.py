"""The moving-shapes data set: rendered, captioned video of any length with a known ground truth.

One bright shape moves over a dark background and wraps around at the edges of the frame, so that every clip has a true
continuation. :func:`draw_scene` samples a :class:`Scene`; :func:`render` makes its frames from any time on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 64  # pixels, height and width of a frame
SPEED = 2.5  # pixels per frame of the straight motions and along the orbit
ORBIT_RADIUS = 15.0  # pixels
BOUNCE_HEIGHT = 12.0  # pixels
BOUNCE_PERIOD = 8.0  # frames from floor to floor

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 45, 45),
    "green": (60, 205, 80),
    "blue": (75, 115, 255),
    "yellow": (250, 225, 60),
    "purple": (185, 80, 235),
    "cyan": (60, 225, 230),
    "orange": (255, 145, 35),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[float, float]] = {  # unit steps (x, y), y down
    "moves left": (-1.0, 0.0),
    "moves right": (1.0, 0.0),
    "moves up": (0.0, -1.0),
    "moves down": (0.0, 1.0),
    "moves diagonally up and left": (-math.sqrt(0.5), -math.sqrt(0.5)),
    "moves diagonally up and right": (math.sqrt(0.5), -math.sqrt(0.5)),
    "moves diagonally down and left": (-math.sqrt(0.5), math.sqrt(0.5)),
    "moves diagonally down and right": (math.sqrt(0.5), math.sqrt(0.5)),
}
MOTIONS = (*DIRECTIONS, "orbits the center", "bounces up and down", "stays still")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "dark blue": (25, 35, 95),
    "dark green": (20, 70, 40),
    "gray": (85, 85, 90),
    "brown": (85, 55, 30),
    "black": (14, 14, 18),
}
KINDS = ("background", "gradient", "striped background", "checkered background")


@dataclass(frozen=True)
class Scene:
    """One shape and its motion. Position in pixels, phase in radians or frames as the motion needs it."""

    color: str
    shape: str
    motion: str
    background: str
    kind: str
    x: float
    y: float
    phase: float  # 0 to 1, of an orbit or a bounce
    radius: float  # pixels

    @property
    def caption(self) -> str:
        """For example "a red circle moves left over a dark blue background"."""
        kind = self.kind.split(" ")
        ground = f"{kind[0]} {self.background} {kind[1]}" if len(kind) == 2 else f"{self.background} {kind[0]}"
        return f"a {self.color} {self.shape} {self.motion} over a {ground}"

    @property
    def held_out(self) -> bool:
        """Whether this combination of colour, shape and motion belongs to the test split (one in seven)."""
        color, shape, motion = list(COLORS).index(self.color), SHAPES.index(self.shape), MOTIONS.index(self.motion)
        return (color * 3 + shape * 5 + motion) % 7 == 0

    def centers(self, times: Tensor) -> Tensor:
        """True centre ``[T, 2]`` (x, y in pixels, within the frame) at ``times`` in frames."""
        if self.motion in DIRECTIONS:
            step_x, step_y = DIRECTIONS[self.motion]
            x, y = self.x + SPEED * step_x * times, self.y + SPEED * step_y * times
        elif self.motion == "orbits the center":
            angle = 2 * math.pi * self.phase + times * (SPEED / ORBIT_RADIUS)
            x, y = SIZE / 2 + ORBIT_RADIUS * angle.cos(), SIZE / 2 + ORBIT_RADIUS * angle.sin()
        elif self.motion == "bounces up and down":
            height = (math.pi * (times / BOUNCE_PERIOD + self.phase)).sin().abs()
            x, y = torch.full_like(times, self.x), self.y + BOUNCE_HEIGHT * (0.5 - height)
        else:
            x, y = torch.full_like(times, self.x), torch.full_like(times, self.y)
        return torch.stack((x, y), dim=1) % SIZE


def _pick(options: Sequence[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator))]


def draw_scene(generator: torch.Generator, split: str = "train") -> Scene:
    """A random scene of ``split`` "train" or "test", which share no combination of colour, shape and motion."""
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
    while True:
        x, y, phase, size = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        scene = Scene(
            color=_pick(list(COLORS), generator),
            shape=_pick(SHAPES, generator),
            motion=_pick(MOTIONS, generator),
            background=_pick(list(BACKGROUNDS), generator),
            kind=_pick(KINDS, generator),
            x=x * SIZE,
            y=y * SIZE,
            phase=phase,
            radius=9.0 + 2.0 * size,
        )
        if scene.held_out == (split == "test"):
            return scene


def signed_distance(shape: str, dx: Tensor, dy: Tensor, radius: Tensor | float) -> Tensor:
    """Distance in pixels to the outline of a shape at the origin, negative inside; ``dy`` points down."""
    if shape == "circle":
        return torch.hypot(dx, dy) - radius
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - radius * 0.88
    if shape == "triangle":
        # Three half planes at distance r/2 from the centroid of an equilateral triangle that points up.
        slanted = 0.5 * (math.sqrt(3.0) * dx.abs() - dy)
        return torch.maximum(dy, slanted) - radius * 0.6
    wide = torch.maximum(dx.abs() - radius * 1.1, dy.abs() - radius * 0.37)
    tall = torch.maximum(dx.abs() - radius * 0.37, dy.abs() - radius * 1.1)
    return torch.minimum(wide, tall)


def shape_mask(shape: str, centers: Tensor, radius: float, size: int = SIZE) -> Tensor:
    """Coverage 0 to 1 of a shape, antialiased and wrapped at the edges: ``[T, 2] -> [T, H, W]``."""
    axis = torch.arange(size, dtype=torch.float32, device=centers.device) + 0.5
    scale = SIZE / size
    half = SIZE / 2
    dx = (axis * scale - centers[:, :1].float() + half) % SIZE - half
    dy = (axis * scale - centers[:, 1:].float() + half) % SIZE - half
    distance = signed_distance(shape, dx[:, None, :], dy[:, :, None], radius) / scale
    return (0.5 - distance).clamp(0, 1)


def draw_background(background: str, kind: str, size: int = SIZE) -> Tensor:
    """``[3, H, W]`` in 0 to 1."""
    color = torch.tensor(BACKGROUNDS[background]) / 255
    axis = (torch.arange(size) + 0.5) * (SIZE / size)
    x, y = axis[None, :], axis[:, None]
    if kind == "gradient":
        light = (1.45 - 0.95 * y / SIZE).expand(size, size)
    elif kind == "striped background":
        light = 1.0 + 0.3 * torch.sin((x + y) * (2 * math.pi / 16)).mul(3).clamp(-1, 1)
    elif kind == "checkered background":
        light = 1.0 + 0.3 * (torch.sin(x * (2 * math.pi / 32)) * torch.sin(y * (2 * math.pi / 32))).mul(8).clamp(-1, 1)
    else:
        light = torch.ones(size, size)
    return (color[:, None, None] * light).clamp(0, 1)


def render(
    scenes: Sequence[Scene], num_frames: int, start: Sequence[int] | int = 0, size: int = SIZE, speed: float = 1.0
) -> Tensor:
    """Frames of scenes: ``[B, 3, T, size, size]`` in [-1, 1], from frame ``start`` (one for all or one each).

    Args:
        speed: of every motion, as a share of the data set's own: 0.4 makes :data:`SPEED` 1 pixel per frame.
    """
    starts = [start] * len(scenes) if isinstance(start, int) else start
    clips = []
    for scene, first in zip(scenes, starts, strict=True):
        times = torch.arange(first, first + num_frames, dtype=torch.float64) * speed
        mask = shape_mask(scene.shape, scene.centers(times), scene.radius, size)
        color = torch.tensor(COLORS[scene.color])[:, None, None, None] / 255
        ground = draw_background(scene.background, scene.kind, size)[:, None]
        clips.append(ground + (color - ground) * mask)
    return torch.stack(clips) * 2 - 1
