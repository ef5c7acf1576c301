"""Images as video: a virtual camera pans and zooms over a still picture, so that image-text pairs can train motion.

VidRD composes its training data of captioned video and of images panned and zoomed at random positions and speeds
(project page). Ranges of speed and zoom are not published: the defaults here are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_DRAWS = 7  # random numbers per image, always all of them, so that no setting shifts the draws of the next image


@dataclass(frozen=True)
class PanZoomSettings:
    """How the camera may move. Speeds are per frame of the result."""

    min_speed: float = 0.005  # pan per frame, in widths of the visible window
    max_speed: float = 0.04
    max_zoom_speed: float = 0.03  # growth or shrinking of the window per frame, as a share of its size
    zoom_probability: float = 0.7  # that the camera zooms at all; in and out are equally likely
    min_zoom: float = 1.0  # 1: the window is the largest of the wanted aspect ratio that fits into the image
    max_zoom: float = 2.0
    max_upscale: float = 1.5  # pixels of the result per pixel of the image; limits the zoom into small images

    def __post_init__(self) -> None:
        if not 0 <= self.min_speed <= self.max_speed:
            raise ValueError(f"speeds must satisfy 0 <= min <= max, got {self.min_speed} and {self.max_speed}")
        if not 0 <= self.max_zoom_speed < 1:
            raise ValueError(f"max_zoom_speed must be in [0, 1), got {self.max_zoom_speed}")
        if not 0 <= self.zoom_probability <= 1:
            raise ValueError(f"zoom_probability must be in [0, 1], got {self.zoom_probability}")
        if not 1 <= self.min_zoom <= self.max_zoom:
            raise ValueError(f"zooms must satisfy 1 <= min <= max, got {self.min_zoom} and {self.max_zoom}")
        if not self.max_upscale >= 1:
            raise ValueError(f"max_upscale must be at least 1, got {self.max_upscale}")


def pan_and_zoom(
    images: Tensor,
    num_frames: int,
    size: tuple[int, int],
    generator: torch.Generator | Sequence[torch.Generator],
    settings: PanZoomSettings | None = None,
) -> Tensor:
    """Videos ``[B, 3, T, h, w]`` of a camera moving over ``images [B, 3, H, W]``, same range, dtype and device.

    size: (h, w) in pixels, no larger than the images.
    generator: on the CPU, one for all images or one for each; the same seed moves alike on any device, and with one
        generator per image also in any batch.
    The camera travels at constant speed in a straight line. The result is filtered against aliasing, positions are not
    rounded to pixels, and no sample is taken outside the image.
    Raises ValueError for shapes that do not fit.
    """
    settings = settings or PanZoomSettings()
    _check(images, num_frames, size)
    count, (height, width) = images.shape[0], images.shape[-2:]
    windows = camera_windows(count, num_frames, (height, width), size, generator, settings)
    largest = _largest_window((height, width), size)
    zoom = _zoom_limits(largest, size, settings)[1]
    # Detail that even the closest view cannot show is filtered away once, not per frame. Twice the needed resolution
    # is kept, since interpolating at the pixel grid itself would blur frames that fall between its points.
    reduction = max(1.0, largest[0] / (zoom * size[0] * 2))
    reduced = images.float()
    if reduction > 1:
        target = (math.ceil(height / reduction), math.ceil(width / reduction))
        reduced = F.interpolate(reduced, target, mode="bilinear", antialias=True, align_corners=False)
    factor = max(1, math.ceil(largest[0] / reduction / size[0]))
    frames = [_view(reduced, windows[:, t], size, factor) for t in range(num_frames)]
    return torch.stack(frames, dim=2).to(images.dtype)


def camera_windows(
    count: int,
    num_frames: int,
    image_size: tuple[int, int],
    size: tuple[int, int],
    generator: torch.Generator | Sequence[torch.Generator],
    settings: PanZoomSettings | None = None,
) -> Tensor:
    """What the camera sees: ``[B, T, 4]`` float64 on the CPU, (top, left, height, width) as shares of the image.

    First and last window lie inside the image and those between are interpolated linearly, hence inside too: position
    and width of a window linear in time is a camera that flies at constant speed.
    """
    settings = settings or PanZoomSettings()
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise ValueError(f"expected one generator, or one for each of the {count} images, got {len(generators)}")
    ends = [_first_and_last(g, num_frames, image_size, size, settings) for g in generators]
    first = torch.tensor([e[0] for e in ends], dtype=torch.float64)
    last = torch.tensor([e[1] for e in ends], dtype=torch.float64)
    time = torch.linspace(0, 1, num_frames, dtype=torch.float64)[None, :, None]
    return first[:, None] + (last - first)[:, None] * time


def _check(images: Tensor, num_frames: int, size: tuple[int, int]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be floating-point [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    height, width = images.shape[-2:]
    if min(size) < 1 or size[0] > height or size[1] > width:
        raise ValueError(
            f"a {width}x{height} image is smaller than the wanted {size[1]}x{size[0]}; "
            "drop such images (the preparation's smallest size) or lower the size"
        )


def _largest_window(image_size: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """(height, width) in pixels of the largest window with the aspect ratio of `size` inside the image."""
    scale = min(image_size[0] / size[0], image_size[1] / size[1])
    return size[0] * scale, size[1] * scale


def _zoom_limits(largest: tuple[float, float], size: tuple[int, int], settings: PanZoomSettings) -> tuple[float, float]:
    high = min(settings.max_zoom, settings.max_upscale * largest[0] / size[0])
    return min(settings.min_zoom, high), high


def _first_and_last(
    generator: torch.Generator,
    num_frames: int,
    image_size: tuple[int, int],
    size: tuple[int, int],
    settings: PanZoomSettings,
) -> tuple[list[float], list[float]]:
    """First and last window of one image, as shares of the image; draws from the generator."""
    zoom_at, zoom_by, inwards, angle, speed, down, right = torch.rand(
        _DRAWS, generator=generator, dtype=torch.float64
    ).tolist()
    image = (float(image_size[0]), float(image_size[1]))
    largest = _largest_window(image_size, size)
    low, high = _zoom_limits(largest, size, settings)
    start = low * (high / low) ** zoom_at
    # One number says whether and how fast the camera zooms.
    share = 1 - zoom_by / settings.zoom_probability if zoom_by < settings.zoom_probability else 0.0
    growth = (1 + share * settings.max_zoom_speed) ** ((num_frames - 1) * (1 if inwards < 0.5 else -1))
    zooms = (start, min(max(start * growth, low), high))
    windows = [(largest[0] / z, largest[1] / z) for z in zooms]
    step = settings.min_speed + speed * (settings.max_speed - settings.min_speed)
    distance = step * (num_frames - 1) * (windows[0][1] + windows[1][1]) / 2
    travel = (distance * math.sin(2 * math.pi * angle), distance * math.cos(2 * math.pi * angle))
    # A way that is too long for the image is shortened, not bent: the direction stays uniform.
    rooms = [image[i] - (windows[0][i] + windows[1][i]) / 2 for i in range(2)]
    shorten = min([1.0, *(room / abs(way) for room, way in zip(rooms, travel, strict=True) if abs(way) > room)])
    result: tuple[list[float], list[float]] = ([], [])
    for axis, draw in enumerate((down, right)):
        way = travel[axis] * shorten
        a, b = (w[axis] / 2 for w in windows)
        lowest, highest = max(a, b - way), min(image[axis] - a, image[axis] - b - way)
        centre = lowest + draw * max(highest - lowest, 0.0)
        result[0].append((centre - a) / image[axis])
        result[1].append((centre + way - b) / image[axis])
    for end, window in zip(result, windows, strict=True):
        end.extend(window[i] / image[i] for i in range(2))
    return result


def _view(images: Tensor, windows: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    """The windows ``[B, 4]`` of the images at `size`; each pixel is the mean of factor x factor samples."""
    top, left, height, width = windows.to(images.device, torch.float32)[..., None].unbind(1)
    rows, columns = (
        (torch.arange(n * factor, device=images.device, dtype=torch.float32) + 0.5) / (n * factor) for n in size
    )
    # In the coordinates of grid_sample -1 and 1 are the outer edges of the image (align_corners=False).
    y = (top + rows * height) * 2 - 1
    x = (left + columns * width) * 2 - 1
    shape = (images.shape[0], size[0] * factor, size[1] * factor)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    # Border padding: the bicubic kernel reaches one pixel further than the sample, which lies inside.
    view = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    view = F.avg_pool2d(view, factor) if factor > 1 else view
    # Bicubic interpolation overshoots at edges.
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return torch.minimum(torch.maximum(view, low), high)
