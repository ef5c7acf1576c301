"""From a video file to clips: the wanted frame rate, length and size, never across a cut, in bounded memory."""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..video.formats import VideoError
from ..video.reading import FileSource, at_rate
from .media import fit

_DETECTION_SIDE = 256  # pixels of the longer side at which cuts are looked for; about PySceneDetect's own choice
_LONGEST_FRAME = 600.0  # seconds; damaged times can ask for one frame to be repeated for years


@dataclass(frozen=True)
class ClipSettings:
    """What a clip of the data set is. The values are our own; the paper states none but 256x256 and 8 frames."""

    fps: float = 4.0  # as the released model
    frames: int = 16  # at most, per clip; longer than a training clip, so that its start varies
    min_frames: int = 8
    height: int = 256  # pixels, even
    width: int = 256
    aspect: str = "crop"  # "crop": cut to height x width; "keep": keep the aspect, at about as many pixels
    crop: str = "center"  # or "random", from the seed
    per_video: int = 1  # clips of one video at most, spread at random over its length
    # Cuts, as PySceneDetect's detectors find them; the two thresholds of AdaptiveDetector are its own defaults.
    adaptive_threshold: float = 3.0  # a cut changes so many times more than the frames around it; 0: no cuts
    min_content_val: float = 15.0  # and at least so much, of 255, on average over hue, saturation and brightness
    fade_threshold: int = 12  # mean level, 0 to 255, below which a video has faded to black; 0: no fades
    quality: float = 8.0  # of MP4 and JPEG, 0 to 10
    image_side: int = 512  # pixels; larger images are scaled down until their shorter side is this
    image_format: str = "jpg"  # or png

    REPLACED = {"cut_threshold": "adaptive_threshold, a ratio: 3 is usual, 0 looks for no cut"}  # former settings

    def __post_init__(self) -> None:
        if not self.fps > 0 or not 1 <= self.min_frames <= self.frames or self.per_video < 1:
            raise ValueError(
                "fps must be above 0, min_frames from 1 to frames, per_video at least 1, got "
                f"{self.fps}, {self.min_frames}, {self.frames}, {self.per_video}"
            )
        if min(self.height, self.width) < 8 or self.height % 2 or self.width % 2 or self.image_side < 8:
            raise ValueError(f"sizes must be even and at least 8 pixels, got {self.height}x{self.width}")
        if min(self.adaptive_threshold, self.min_content_val, self.fade_threshold) < 0:
            raise ValueError(
                "adaptive_threshold, min_content_val and fade_threshold must be at least 0, got "
                f"{self.adaptive_threshold}, {self.min_content_val} and {self.fade_threshold}"
            )
        for name, value, known in (
            ("aspect", self.aspect, ("crop", "keep")),
            ("crop", self.crop, ("center", "random")),
            ("image_format", self.image_format, ("jpg", "png")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class Window:
    """Successive frames of one shot, at the wanted rate and size."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    start: float  # seconds from the start of the file
    source_size: tuple[int, int]  # height and width of the file's frames


def target_size(settings: ClipSettings, height: int, width: int) -> tuple[int, int]:
    """Height and width of a clip from frames of ``height`` x ``width`` pixels; multiples of 8 where aspect is kept."""
    if settings.aspect == "crop":
        return settings.height, settings.width
    scale = (settings.height * settings.width / (height * width)) ** 0.5
    return max(8, round(height * scale / 8) * 8), max(8, round(width * scale / 8) * 8)


def windows(
    path: Path,
    settings: ClipSettings,
    start: float | None = None,
    end: float | None = None,
    place: tuple[float, float] = (0.5, 0.5),
) -> Iterator[Window]:
    """Every stretch of ``min_frames`` to ``frames`` frames between two cuts, one after the other, none twice.

    start, end: seconds of the file to look at. place: of the crop, as in :func:`~vidrd_core.data.media.fit`.
    Memory is that of one window. VideoError for a file that is broken, also where it breaks off later.
    """
    source = FileSource(path)
    _check_duration(path, 1 / float(source.fps))
    first = start or 0.0
    timed = _shots(_plausible(path, source.frames(first), first), settings, first, end)
    held: list[np.ndarray] = []
    shot, began, size = 0, 0.0, (0, 0)
    # `at_rate` repeats and drops what it is given without looking at it: here frames with the number of their shot.
    for count, (number, frame) in enumerate(at_rate(timed, settings.fps, source.fps)):  # type: ignore[arg-type]
        if held and (number != shot or len(held) == settings.frames):
            if len(held) >= settings.min_frames:
                yield Window(np.stack(held), began, size)
            held = []
        if not held:
            shot, began, size = int(number), first + count / settings.fps, frame.shape[:2]
        held.append(fit(frame[None], *target_size(settings, *size), place)[0])
    if len(held) >= settings.min_frames:
        yield Window(np.stack(held), began, size)


def choose(found: Iterable[Window], count: int, length: int, draw: random.Random) -> list[Window]:
    """``count`` of the windows at random, in their order; the others are not held.

    Those of ``length`` frames are all equally likely; shorter ones only fill up what these leave.
    """
    kept: dict[bool, list[Window]] = {True: [], False: []}
    seen = {True: 0, False: 0}
    for window in found:
        whole = len(window.frames) >= length
        seen[whole] += 1
        if len(kept[whole]) < count:
            kept[whole].append(window)
        elif (slot := draw.randrange(seen[whole])) < count:
            kept[whole][slot] = window
    return sorted((kept[True] + kept[False])[:count], key=lambda window: window.start)


def _plausible(
    path: Path, timed: Iterator[tuple[float, np.ndarray]], start: float
) -> Iterator[tuple[float, np.ndarray]]:
    """The frames as they come. VideoError where one from ``start`` on is shown for longer than a video would."""
    before = start
    for now, frame in timed:
        _check_duration(path, now - before)
        before = max(now, start)
        yield now, frame


def _check_duration(path: Path, seconds: float) -> None:
    if seconds > _LONGEST_FRAME:
        raise VideoError(f"{path}: shows one frame for {seconds:g} s; its times are damaged")


def _shots(
    timed: Iterator[tuple[float, np.ndarray]], settings: ClipSettings, start: float, end: float | None
) -> Iterator[tuple[float, tuple[int, np.ndarray]]]:
    """Frames from ``start`` to ``end`` seconds, their time from ``start`` and the number of their shot.

    Hard cuts and fades separate shots. Fast motion does not, and of dissolves only few are found.
    """
    detector = _CutDetector(settings)
    waiting: collections.deque[tuple[float, np.ndarray]] = collections.deque()
    shot = number = 0
    for timed_frame in itertools.chain(_between(timed, start, end), itertools.repeat(None, detector.DELAY)):
        if timed_frame is not None:
            waiting.append(timed_frame)
        if not waiting:
            return
        detector.add(waiting[-1][1])
        if len(waiting) > detector.DELAY or timed_frame is None:
            now, frame = waiting.popleft()
            shot += number in detector.cuts
            number += 1
            yield now - start, (shot, frame)


class _CutDetector:
    """PySceneDetect's detectors, frame by frame.

    It must be given the last frame ``DELAY`` times more: of a frame it is known only ``DELAY`` frames later whether it
    is the first one after a cut. ``cuts`` holds the numbers of these frames, from 0.
    """

    DELAY = 2  # window_width of AdaptiveDetector: the frames before and after that a change is compared with

    def __init__(self, settings: ClipSettings):
        self.cuts: set[int] = set()
        self._detectors: list[Any] = []
        self._size = (0, 0)
        self._number = -self.DELAY
        if settings.adaptive_threshold:
            from scenedetect.detectors import AdaptiveDetector, ThresholdDetector

            self._detectors = [
                AdaptiveDetector(settings.adaptive_threshold, 1, self.DELAY, settings.min_content_val),
                ThresholdDetector(settings.fade_threshold, min_scene_len=1, fade_bias=1.0),  # a shot begins after black
            ]

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, uint8 ``[H, W, 3]``, of any size."""
        if not self._detectors:
            return
        import cv2
        from scenedetect import FrameTimecode

        first = self._number < 0
        if first:
            scale = min(1.0, _DETECTION_SIDE / max(frame.shape[:2]))
            self._size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
        small = cv2.resize(np.ascontiguousarray(frame), self._size, interpolation=cv2.INTER_AREA)
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        # The first frame several times, else a cut within the first DELAY frames would be missed.
        for _ in range(self.DELAY + 1 if first else 1):
            for detector in self._detectors:
                cuts = detector.process_frame(FrameTimecode(self._number + self.DELAY, 1.0), small)
                self.cuts.update(cut.frame_num - self.DELAY for cut in cuts)
            self._number += 1


def _between(
    timed: Iterator[tuple[float, np.ndarray]], start: float, end: float | None
) -> Iterator[tuple[float, np.ndarray]]:
    late = itertools.dropwhile(lambda pair: pair[0] < start, timed)
    return itertools.takewhile(lambda pair: end is None or pair[0] < end, late)
