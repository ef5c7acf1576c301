"""Read videos and their metadata: any file that FFmpeg decodes, or a folder of PNGs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageOps

from .ffmpeg import FileSource, read_comment
from .ffmpeg import open_media as open_media  # they have always been found here
from .ffmpeg import stream_duration as stream_duration
from .formats import FRAME_PATTERN, VideoError, absolute, text_to_metadata


@dataclass(frozen=True)
class VideoClip:
    """Frames with their rate."""

    frames: np.ndarray  # uint8 [T, H, W, 3], T >= 1
    fps: float


def read_video(
    path: str | os.PathLike[str],
    *,
    max_frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> VideoClip:
    """Read a video file or a folder of PNGs.

    max_frames: stop after so many frames (counted after `fps` has been applied).
    size: (height, width) in pixels: each frame is cropped around its centre to that aspect ratio and resized.
    fps: give the frames that a player shows at these instants, repeating or dropping frames. None keeps the frames as
        they are. For a folder of PNGs that does not say its rate, this is taken as its rate.
    Raises FileNotFoundError, and VideoError naming the file for anything broken, cut off, or without a frame.
    """
    path = absolute(path)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1 or None, got {max_frames}")
    if size is not None and min(size) < 1:
        raise ValueError(f"size must be (height, width) of at least 1 pixel, got {size}")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps must be above 0 or None, got {fps}")
    source = _open(path, fps)
    timed = source.frames()
    images = (frame for _, frame in timed) if fps is None else at_rate(timed, fps, source.fps)
    if size is not None:
        images = (np.asarray(ImageOps.fit(Image.fromarray(image), (size[1], size[0]))) for image in images)
    frames = list(itertools.islice(images, max_frames))
    if not frames:
        raise VideoError(f"{path}: holds no frame that can be decoded; the file is broken or empty")
    return VideoClip(np.stack(frames), float(source.fps if fps is None else fps))


def iterate_video(path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """Yield the frames of a video file or a folder of PNGs, uint8 [H, W, 3], one at a time in memory.

    Raises FileNotFoundError, and VideoError naming the file for anything broken or without a frame; for what is cut off
    or damaged further on, when its frames have come so far.
    """
    path = absolute(path)
    source = _open(path, None)
    frames = source.images() if isinstance(source, _PngSource) else (frame for _, frame in source.frames())
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{path}: holds no frame that can be decoded; the file is broken or empty")
    return itertools.chain([first], frames)


def read_rate(path: str | os.PathLike[str]) -> float | None:
    """Frames per second of a video file or a folder of PNGs; None where the PNGs do not say.

    Raises FileNotFoundError, and VideoError naming the file for what is no video.
    """
    path = absolute(path)
    source = _open(path, None)
    try:
        return float(source.fps)
    except VideoError:
        if path.is_dir():
            return None
        raise


def _open(path: Path, fps: float | None) -> FileSource | _PngSource:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such video")
    return _PngSource(path, fps) if path.is_dir() else FileSource(path)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `VideoWriter` stored in a video file or a folder of PNGs; empty for a video that carries none.

    Raises FileNotFoundError, and VideoError for what is not a video at all.
    """
    path = absolute(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such video")
    if path.is_dir():
        return text_to_metadata(_pillow(iio.immeta, _png_names(path)[0]).get("Comment"))
    return text_to_metadata(read_comment(path))


class _PngSource:
    """A folder of PNGs in the order of their names."""

    def __init__(self, folder: Path, fps: float | None) -> None:
        self._folder, self._names = folder, _png_names(folder)
        text = _pillow(iio.immeta, self._names[0]).get("fps")
        try:
            rate = Fraction(text) if text else None
        except (ValueError, ZeroDivisionError):
            rate = None
        if rate is None and fps is not None:
            rate = Fraction(fps).limit_denominator(1001)
        self._rate = rate

    @property
    def fps(self) -> Fraction:
        if self._rate is None:
            raise VideoError(f"{self._folder}: these PNGs do not say their frame rate; pass fps")
        return self._rate

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (seconds since the first frame, uint8 [H, W, 3])."""
        fps = float(self.fps)
        return ((index / fps, frame) for index, frame in enumerate(self.images()))

    def images(self) -> Iterator[np.ndarray]:
        size = None
        for name in self._names:
            frame = _pillow(iio.imread, name, mode="RGB")
            size = size or frame.shape
            if frame.shape != size:
                raise VideoError(f"{name}: is {frame.shape[1]}x{frame.shape[0]}, the frames before {size[1]}x{size[0]}")
            yield frame


def _png_names(folder: Path) -> list[Path]:
    names = sorted(entry for entry in folder.iterdir() if entry.suffix.lower() == ".png")
    if not names:
        raise VideoError(f"{folder}: holds no PNG files")
    numbers = [FRAME_PATTERN.fullmatch(name.name) for name in names]
    if all(numbers):
        names.sort(key=lambda name: int(name.stem.removeprefix("frame_")))
        for expected, name in enumerate(names, int(names[0].stem.removeprefix("frame_"))):
            if int(name.stem.removeprefix("frame_")) != expected:
                raise VideoError(f"{folder}: frame {expected} is missing (the next one is {name.name})")
    return names


def _pillow(read: Callable[..., Any], path: Path, **options: Any) -> Any:
    """What a function of imageio reads with Pillow; VideoError for what Pillow cannot read."""
    try:
        return read(path, plugin="pillow", **options)
    except (OSError, SyntaxError) as error:
        raise VideoError(f"{path}: is not a readable image ({error})") from error


def at_rate(
    timed: Iterable[tuple[float, np.ndarray]], fps: float, source_fps: float | Fraction
) -> Iterator[np.ndarray]:
    """Yield the frame on show at 0, 1/fps, 2/fps ... seconds, until the end of the last one."""
    count, shown, now = 0, None, 0.0
    # Files round their times, GIF to 1/100 s: an instant this close to a change belongs to the later frame.
    slack = 0.1 / max(fps, float(source_fps))
    for now, frame in timed:
        while shown is not None and count / fps < now - slack:
            yield shown
            count += 1
        shown = frame
    while shown is not None and count / fps < now + 1 / float(source_fps) - slack:
        yield shown
        count += 1
