"""Write videos frame by frame in bounded memory: MP4 (h264), WebM (VP9), GIF, or a folder of PNGs.

Everything goes to a neighbour (`out.partial.mp4`) that takes the final name when it is complete, so the final name
never holds a broken video. After Ctrl-C or any other exception what was written so far is finished and kept.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL.PngImagePlugin import PngInfo

from .ffmpeg import FFMPEG_ERRORS, Encoder, commented_path
from .formats import (
    DEFAULT_QUALITY,
    FRAME_NAME,
    VideoError,
    absolute,
    check_frame_folder,
    clear_frame_folder,
    format_of,
    frame_rate,
    metadata_to_text,
    partial_path,
    probe_output,
    replaced_path,
)
from .frames import each_as_uint8

logger = logging.getLogger(__name__)


class VideoWriter:
    """A video that grows with every `write`; use it in a `with` block.

    path: `.mp4` (h264, yuv420p), `.webm` (VP9), `.gif` (loops for ever), or no suffix for a folder of PNGs
        (`frame_00000.png` ...). An existing file is replaced at the end. So is a folder of an older run, as a whole,
        hence frames of two runs never mix; a folder that holds anything else is refused.
    fps: frames per second, above 0; at most 50 for GIF, 240 otherwise.
    metadata: JSON-serialisable, stored inside the file (container comment, GIF comment, PNG text of the first frame).
    quality: 0 (smallest) to 10 (best) for MP4 and WebM; the others have no such choice.

    MP4 and WebM store colour at half resolution and need even sizes: an odd width or height gets one more pixel, a
    copy of the last column or row. GIF and PNG keep odd sizes. The same frames give the same file in every run on one
    machine, however they are cut into `write` calls. Raises VideoError, before anything is written, when the output
    cannot be written, and where writing fails; nothing but that error comes of a full disk.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction,
        *,
        metadata: Mapping[str, Any] | None = None,
        quality: float = DEFAULT_QUALITY,
    ) -> None:
        self.path = absolute(path)
        self.frames_written = 0
        self._format = format_of(self.path)
        self.fps = frame_rate(self.path, fps)
        if not 0 <= quality <= 10:
            raise VideoError(f"{self.path}: quality must be 0 to 10, got {quality}")
        self._quality = quality
        self._comment = metadata_to_text(metadata) if metadata is not None else None
        probe_output(self.path)
        self._partial = partial_path(self.path)
        self._size: tuple[int, ...] | None = None
        self._sink: Encoder | _PngFolder | None = None
        self._closed = False
        # Ctrl-C arrives in the main thread only. Encoding in another one means that it never falls between a packet
        # leaving the encoder and reaching the file, nor into the finishing of the file.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="video-writer")

    def write(self, frames: np.ndarray) -> None:
        """Append `[T, H, W, 3]` frames, uint8 or float in [0, 1]; every frame of a video has the same size."""
        if self._closed:
            raise VideoError(f"{self.path}: already closed, no more frames can be written")
        for frame in each_as_uint8(np.asarray(frames)):
            self._worker.submit(self._add, frame).result()

    def describe(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata of a video that is not closed, whose content differs from what was planned."""
        self._comment = metadata_to_text(metadata)

    def close(self) -> None:
        """Finish the video and give it its final name. VideoError if nothing was written."""
        self._end(self._finish)

    def discard(self) -> None:
        """Abandon the video: what already has its final name stays as it was."""
        self._end(self._abandon)

    def _end(self, work: Callable[[], None]) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._worker.submit(work).result()
        finally:
            self._worker.shutdown(wait=False)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or self._closed:
            self.close()
            return
        try:
            self.close()
        except VideoError as second:
            # The exception being handled is the cause and must reach the caller.
            logger.warning("nothing could be kept of the interrupted video: %s", second)
        else:
            logger.warning("interrupted: the first %d frames are kept in %s", self.frames_written, self.path)

    def _add(self, frame: np.ndarray) -> None:
        if self._size is None:
            self._size = frame.shape[:2]
        if frame.shape[:2] != self._size:
            raise VideoError(f"{self.path}: frames are {_wh(self._size)} so far, got one of {_wh(frame.shape)}")
        try:
            if self._sink is None and self._format.container is None:
                self._sink = _PngFolder(self._partial, self.fps, self._comment)
            elif self._sink is None:
                self._sink = Encoder(self._partial, self._format, self.fps, self._size, self._comment, self._quality)
            self._sink.add(frame)
        except FFMPEG_ERRORS as error:
            raise VideoError(
                f"{self.path}: writing frame {self.frames_written} failed ({error}); is the disk full?"
            ) from error
        self.frames_written += 1

    def _finish(self) -> None:
        if self._sink is None or self.frames_written == 0:
            _discard(self._partial)
            raise VideoError(f"{self.path}: no frames were written")
        try:
            self._sink.finish(self._comment)
        except FFMPEG_ERRORS as error:
            _discard(self._partial)
            raise VideoError(f"{self.path}: finishing the video failed ({error}); is the disk full?") from error
        try:
            publish = _replace_folder if self._format.container is None else os.replace
            publish(self._partial, self.path)
        except OSError as error:
            raise VideoError(
                f"{self.path}: cannot be replaced ({error.strerror or error}), is it open in another program? "
                f"The finished video is {self._partial}"
            ) from error

    def _abandon(self) -> None:
        if self._sink is not None:
            self._sink.abandon()
        _discard(self._partial)


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float | Fraction,
    metadata: Mapping[str, Any] | None = None,
    *,
    quality: float = DEFAULT_QUALITY,
) -> None:
    """Write `[T, H, W, 3]` frames, or an iterable of such arrays, in one go; see `VideoWriter` for everything else."""
    with VideoWriter(path, fps, metadata=metadata, quality=quality) as writer:
        for chunk in [frames] if isinstance(frames, np.ndarray) else frames:
            writer.write(chunk)


def _discard(partial: Path) -> None:
    commented_path(partial).unlink(missing_ok=True)
    shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


class _PngFolder:
    """`frame_00000.png` ...; the first one carries the frame rate and the metadata."""

    def __init__(self, partial: Path, fps: Fraction, comment: str | None) -> None:
        clear_frame_folder(partial)
        partial.mkdir()
        self._partial, self._fps, self._comment, self._count = partial, fps, comment, 0

    def add(self, frame: np.ndarray) -> None:
        self._save(self._count, frame)
        self._count += 1

    def finish(self, comment: str | None) -> None:
        if comment != self._comment:
            self._comment = comment
            self._save(0, iio.imread(self._path(0), plugin="pillow"))

    def abandon(self) -> None:
        """Every frame is a file of its own: nothing is open."""

    def _save(self, number: int, frame: np.ndarray) -> None:
        text = PngInfo()
        if number == 0:
            text.add_text("fps", str(self._fps))
            if self._comment is not None:
                text.add_text("Comment", self._comment)
        try:
            with self._path(number).open("wb") as file:
                iio.imwrite(file, frame, plugin="pillow", extension=".png", pnginfo=text)
        except OSError:
            self._path(number).unlink(missing_ok=True)  # the torso that a full disk leaves
            raise

    def _path(self, number: int) -> Path:
        return self._partial / FRAME_NAME.format(number)


def _wh(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _replace_folder(partial: Path, path: Path) -> None:
    check_frame_folder(path)
    old = replaced_path(path)
    clear_frame_folder(old)
    if path.exists():
        os.replace(path, old)
    os.replace(partial, path)
    clear_frame_folder(old)
