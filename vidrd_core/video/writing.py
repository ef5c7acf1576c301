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
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import av
import av.filter
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .formats import (
    DEFAULT_QUALITY,
    FRAME_NAME,
    VideoError,
    VideoFormat,
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

_BT709 = 1  # AVCOL_PRI_BT709 and AVCOL_TRC_BT709


class VideoWriter:
    """A video that grows with every `write`; use it in a `with` block.

    path: `.mp4` (h264, yuv420p), `.webm` (VP9), `.gif` (loops for ever), or no suffix for a folder of PNGs
        (`frame_00000.png` ...). An existing file is replaced at the end. So is a folder of an older run, as a whole,
        hence frames of two runs never mix; a folder that holds anything else is refused.
    fps: frames per second, above 0; at most 50 for GIF, 240 otherwise.
    metadata: JSON-serialisable, stored inside the file (container comment, GIF comment, PNG text of the first frame).
    quality: 0 (smallest) to 10 (best) for MP4 and WebM; the others have no such choice.

    MP4 and WebM store colour at half resolution and need even sizes: an odd width or height gets one more pixel, a
    copy of the last column or row. GIF and PNG keep odd sizes. The same frames always give the same file, however they
    are cut into `write` calls. Raises VideoError, before anything is written, when the output cannot be written.
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
        self._sink: _Sink | None = None
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
        """Replace the metadata of a video that is not closed, where it turned out another one than was announced."""
        self._comment = metadata_to_text(metadata)

    def close(self) -> None:
        """Finish the video and give it its final name. VideoError if nothing was written."""
        self._end(self._finish)

    def discard(self) -> None:
        """Give the video up: what already has its final name stays as it was."""
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
            # The exception under way is the cause and must reach the caller.
            logger.warning("nothing could be kept of the interrupted video: %s", second)
        else:
            logger.warning("interrupted: the first %d frames are kept in %s", self.frames_written, self.path)

    def _add(self, frame: np.ndarray) -> None:
        if self._size is None:
            self._size = frame.shape[:2]
        if frame.shape[:2] != self._size:
            raise VideoError(f"{self.path}: frames are {_wh(self._size)} so far, got one of {_wh(frame.shape)}")
        try:
            if self._sink is None:
                self._sink = _open_sink(self._partial, self._format, self.fps, self._comment, self._quality, self._size)
            self._sink.add(frame)
        except (OSError, av.FFmpegError) as error:
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
        except (OSError, av.FFmpegError) as error:
            _discard(self._partial)
            raise VideoError(f"{self.path}: finishing the video failed ({error}); is the disk full?") from error
        try:
            self._sink.publish(self.path)
        except OSError as error:
            raise VideoError(
                f"{self.path}: cannot be replaced ({error.strerror or error}), is it open in another program? "
                f"The finished video is {self._partial}"
            ) from error

    def _abandon(self) -> None:
        with suppress(OSError, av.FFmpegError):
            if self._sink is not None:
                self._sink.finish(self._comment)
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
    shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


class _Sink(Protocol):
    """One output under way."""

    def add(self, frame: np.ndarray) -> None: ...  # uint8 [H, W, 3]

    def finish(self, comment: str | None) -> None: ...  # complete the partial output, with this metadata

    def publish(self, path: Path) -> None: ...  # give it its final name


def _open_sink(
    partial: Path, kind: VideoFormat, fps: Fraction, comment: str | None, quality: float, size: tuple[int, ...]
) -> _Sink:
    if kind.container is None:
        return _PngFolder(partial, fps, comment)
    if kind.suffix == ".gif":
        return _Gif(partial, kind, fps, size)
    return _Yuv420(partial, kind, fps, comment, quality, size)


class _Container:
    """Frames to one stream of a container file; subclasses choose the pixel format."""

    def __init__(self, partial: Path, kind: VideoFormat, fps: Fraction, comment: str | None) -> None:
        self._partial = partial
        self._kind = kind
        self._container = _create(partial, kind)
        self._written_comment = comment
        if comment is not None:
            self._container.metadata["comment"] = comment
        # The type of a stream follows from the codec's name, which PyAV's annotations know as literals only.
        self._stream = cast(Any, self._container.add_stream(str(kind.codec), rate=fps))
        self._stream.codec_context.time_base = 1 / fps
        self._stream.bit_rate = 0
        self._time_base = 1 / fps
        self._count = 0

    def _timed(self, frame: np.ndarray) -> av.VideoFrame:
        timed = av.VideoFrame.from_ndarray(frame, format="rgb24")
        timed.pts, timed.time_base = self._count, self._time_base
        self._count += 1
        return timed

    def _encode(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def finish(self, comment: str | None) -> None:
        self._encode(None)
        self._container.close()
        if comment is not None and comment != self._written_comment:
            _replace_comment(self._partial, self._kind, comment)

    def publish(self, path: Path) -> None:
        os.replace(self._partial, path)


def _create(path: Path, kind: VideoFormat) -> av.container.OutputContainer:
    return av.open(os.fspath(path), "w", format=kind.container, container_options=dict(kind.container_options))


def _replace_comment(path: Path, kind: VideoFormat, comment: str) -> None:
    """Copy the packets into a file with another comment: muxers write theirs before the first packet."""
    commented = _commented_path(path)
    with av.open(os.fspath(path)) as source, _create(commented, kind) as target:
        target.metadata["comment"] = comment
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:  # the last one only says that there are no more
                packet.stream = stream
                target.mux(packet)
    os.replace(commented, path)


def _commented_path(path: Path) -> Path:
    return path.with_name(path.name + ".commented")


class _Yuv420(_Container):
    """MP4 and WebM: BT.709 in limited range, said so in the file, since players guess differently where it is not."""

    def __init__(
        self,
        partial: Path,
        kind: VideoFormat,
        fps: Fraction,
        comment: str | None,
        quality: float,
        size: tuple[int, ...],
    ) -> None:
        super().__init__(partial, kind, fps, comment)
        self._padding = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
        context = self._stream.codec_context
        context.height, context.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        context.pix_fmt = "yuv420p"
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries = context.color_trc = _BT709
        if kind.codec == "libx264":
            context.options = {"crf": f"{40 - 3 * quality:.1f}", "preset": "medium"}
        else:
            context.options = {"crf": f"{55 - 4.5 * quality:.0f}", "deadline": "good", "cpu-used": "4"}

    def add(self, frame: np.ndarray) -> None:
        padded = self._timed(np.pad(frame, self._padding, mode="edge"))
        self._encode(
            padded.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC,
            )
        )


class _Gif(_Container):
    """GIF with a palette of its own for every frame, so that it can be written as frames come."""

    def __init__(self, partial: Path, kind: VideoFormat, fps: Fraction, size: tuple[int, ...]) -> None:
        super().__init__(partial, kind, fps, None)
        context = self._stream.codec_context
        context.height, context.width = size[0], size[1]
        context.pix_fmt = "pal8"
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=size[1], height=size[0], format=av.VideoFormat("rgb24"), time_base=self._time_base
        )
        split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        use, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        self._graph = graph

    def add(self, frame: np.ndarray) -> None:
        self._graph.push(self._timed(frame))
        self._drain()

    def _drain(self) -> None:
        while True:
            try:
                frame = self._graph.pull()
            except (BlockingIOError, EOFError):
                return
            self._encode(frame)  # type: ignore[arg-type]

    def finish(self, comment: str | None) -> None:
        self._graph.push(None)
        self._drain()
        super().finish(None)
        if comment is not None:
            _insert_gif_comment(self._partial, comment)


def _insert_gif_comment(path: Path, comment: str) -> None:
    """Put a comment extension (GIF89a, section 24) before the first frame; the muxer of FFmpeg writes none."""
    payload = comment.encode("utf-8")
    commented = _commented_path(path)
    with path.open("rb") as source, commented.open("wb") as target:
        header = source.read(13)
        table = 3 << ((header[10] & 7) + 1) if header[10] & 0x80 else 0
        target.write(header + source.read(table) + b"\x21\xfe")
        for start in range(0, len(payload), 255):
            block = payload[start : start + 255]
            target.write(bytes([len(block)]) + block)
        target.write(b"\0")
        shutil.copyfileobj(source, target, 1 << 20)
    os.replace(commented, path)


class _PngFolder:
    """`frame_00000.png` ...; the first one carries the frame rate and the metadata."""

    def __init__(self, partial: Path, fps: Fraction, comment: str | None) -> None:
        clear_frame_folder(partial)
        partial.mkdir()
        self._partial = partial
        self._fps = fps
        self._comment = comment
        self._count = 0

    def add(self, frame: np.ndarray) -> None:
        self._save(self._count, Image.fromarray(frame))
        self._count += 1

    def finish(self, comment: str | None) -> None:
        # A full disk leaves a torso of the frame that did not fit.
        self._path(self._count).unlink(missing_ok=True)
        if comment != self._comment:
            self._comment = comment
            with Image.open(self._path(0)) as first:
                first.load()
            self._save(0, first)

    def _save(self, number: int, image: Image.Image) -> None:
        text = PngInfo()
        if number == 0:
            text.add_text("fps", str(self._fps))
            if self._comment is not None:
                text.add_text("Comment", self._comment)
        image.save(self._path(number), pnginfo=text)

    def _path(self, number: int) -> Path:
        return self._partial / FRAME_NAME.format(number)

    def publish(self, path: Path) -> None:
        check_frame_folder(path)
        old = replaced_path(path)
        clear_frame_folder(old)
        if path.exists():
            os.replace(path, old)
        os.replace(self._partial, path)
        clear_frame_folder(old)


def _wh(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
