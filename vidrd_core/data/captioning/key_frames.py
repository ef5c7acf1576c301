"""Key frames: the few frames of a video that a model is shown, sharp ones that differ from each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...video.ffmpeg import FFMPEG_ERRORS
from ...video.formats import VideoError
from ...video.reading import open_media, stream_duration

_SEEK_SECONDS = 8.0  # decoding on is faster than seeking, up to about this far
_DESCRIBED = 96  # pixels of the longer side, of the copy that sharpness and likeness are judged by
_BINS = 4  # of the colour histogram, per channel
_CELLS = 8  # rows and columns of the brightness layout
_LIKENESS_WIDTH = 0.25  # distance between frames at which they begin to count as different
_NEW_INFORMATION = 0.02  # share of a frame's own weight that it must add to those chosen, else it is left out


@dataclass(frozen=True)
class Frames:
    """Frames of a video with the times they are shown at."""

    images: list[np.ndarray]  # uint8 [H, W, 3], RGB
    seconds: list[float]  # from the start of the file

    def __len__(self) -> int:
        return len(self.images)


def key_frames(
    path: Path, count: int, candidates: int = 24, side: int = 512, start: float | None = None, end: float | None = None
) -> Frames:
    """At most `count` key frames of a video file, in the order of time; fewer where the video shows no more.

    They are chosen from `candidates` evenly spaced frames between `start` and `end` (seconds; None: all of the file),
    and are no longer than `side` pixels. Raises VideoError for a file that cannot be decoded.
    """
    found = read_candidates(path, candidates, side, start, end)
    chosen = choose(found.images, count)
    return Frames([found.images[i] for i in chosen], [found.seconds[i] for i in chosen])


def choose(frames: list[np.ndarray], count: int) -> list[int]:
    """Indices, ascending, of at most `count` frames that are sharp, neither black nor white, and unlike each other.

    The most likely set under a determinantal point process with kernel ``q_i q_j S_ij``: quality times likeness
    (Kulesza and Taskar 2012, arXiv 1207.6083; used for summaries of video by Gong et al., NIPS 2014), found by the
    greedy algorithm of Chen et al. 2018 (arXiv 1709.05135). A frame that adds nothing new is not taken.
    """
    if count < 1:
        raise ValueError(f"at least one key frame is needed, got {count}")
    quality, features = _describe(frames)
    distance = np.square(features[:, None] - features[None]).sum(-1)
    kernel = quality[:, None] * quality[None] * np.exp(-distance / (2 * _LIKENESS_WIDTH**2))
    remaining = kernel.diagonal().copy()
    rows: list[np.ndarray] = []
    chosen: list[int] = []
    while len(chosen) < min(count, len(frames)):
        best = int(np.argmax(remaining))
        if remaining[best] <= _NEW_INFORMATION * kernel[best, best]:
            break
        chosen.append(best)
        # One more row of the Cholesky factor; what is left of the diagonal is each frame's new information.
        row = kernel[best] - sum((r[best] * r for r in rows), np.zeros(len(frames)))
        rows.append(row / np.sqrt(remaining[best]))
        remaining = remaining - np.square(rows[-1])
        remaining[chosen] = -np.inf
    return sorted(chosen)


def _describe(frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Quality ``[N]`` in (0, 1] and unit feature vectors ``[N, D]`` of colours and layout."""
    import cv2

    sharpness, exposure, features = [], [], []
    for frame in frames:
        scale = min(1.0, _DESCRIBED / max(frame.shape[:2]))
        size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
        small = cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        sharpness.append(float(cv2.Laplacian(grey, cv2.CV_32F).var()))
        # Contrast falls to nothing in fades to black or white.
        exposure.append(min(1.0, float(grey.std()) / 0.15))
        colours = cv2.calcHist([small], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3).ravel() / grey.size
        layout = cv2.resize(grey, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).ravel()
        features.append(np.concatenate([np.sqrt(colours), (layout - layout.mean()) * 2 / _CELLS]))
    # Sharpness depends on what is shown, so only the comparison within the video says anything.
    relative = np.array(sharpness) / max(float(np.quantile(sharpness, 0.9)), 1e-9)
    quality = np.sqrt(relative.clip(0, 1) * np.array(exposure)).clip(0.02, 1.0)
    return quality, np.stack(features)


def read_candidates(path: Path, count: int, side: int, start: float | None = None, end: float | None = None) -> Frames:
    """`count` evenly spaced frames between `start` and `end`, or all if there are fewer. VideoError if none."""
    if count < 1 or side < 1:
        raise ValueError(f"count and side must be at least 1, got {count} and {side}")
    first = start or 0.0
    with open_media(path) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            # A stream that is the only one need not say its length itself; with sound the file's is close enough.
            length = stream_duration(container, stream) or (container.duration or 0) / av.time_base
            last = min(end if end is not None else length, length)
            if length > 0 and last > first:
                found = _at_times(container, stream, np.linspace(first, last, 2 * count + 1)[1::2].tolist(), side)
            else:
                found = _every_nth(container, stream, count, side, first, end)
        except FFMPEG_ERRORS as error:
            raise VideoError(f"{path}: cannot be decoded ({error})") from error
    if not len(found):
        raise VideoError(f"{path}: holds no frame that can be decoded from {first:g} s on")
    return found


def _at_times(container: Any, stream: Any, times: list[float], side: int) -> Frames:
    """The frames shown at the given times (seconds, ascending); jumps over long stretches instead of decoding them."""
    found = Frames([], [])
    begin = float((stream.start_time or 0) * stream.time_base)
    now = 0.0
    frames = container.decode(stream)
    for wanted in times:
        if wanted - now > _SEEK_SECONDS:
            container.seek(round((wanted + begin) / stream.time_base), stream=stream)
            frames = container.decode(stream)
        for frame in frames:
            now = (frame.time or 0.0) - begin
            if not frame.is_corrupt and now + _length(frame, stream) > wanted:
                found.images.append(_image(frame, side))
                found.seconds.append(round(now, 3))
                break
    return found


def _every_nth(container: Any, stream: Any, count: int, side: int, first: float, end: float | None) -> Frames:
    """`count` to 2 `count` evenly spaced frames of a video of unknown length: every second goes when there are more."""
    found, step = Frames([], []), 1
    for index, frame in enumerate(container.decode(stream)):
        now = frame.time if frame.time is not None else index / float(stream.average_rate or 25)
        if end is not None and now >= end:
            break
        if now < first or index % step or frame.is_corrupt:
            continue
        found.images.append(_image(frame, side))
        found.seconds.append(round(now, 3))
        if len(found) >= 2 * count:
            found, step = Frames(found.images[::2], found.seconds[::2]), step * 2
    return found


def _length(frame: Any, stream: Any) -> float:
    """Seconds that a frame is shown."""
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return 1 / float(stream.average_rate or 25)


def _image(frame: Any, side: int) -> np.ndarray:
    scale = min(1.0, side / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
