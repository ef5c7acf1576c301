"""What is asked of FFmpeg, through PyAV: opening files, decoding from any instant on, encoding.

imageio's PyAV plugin reaches none of this: it gives frames without their times, its writer passes no options to an
encoder and tags no colours, scales what it filters to 640x480, and, when it is collected after a full disk, calls the
muxer once more, which can end the process.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.filter
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from .formats import VideoError, VideoFormat

# A file that ends this much before its header says is cut off; less is rounding and players' edit lists.
_MISSING_SECONDS, _MISSING_SHARE = 0.25, 0.05
# Containers that give every frame a time of its own and say truly which are key frames; in others a jump can lose some.
_ENTERED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_BACK = (0.0, 2.0, 10.0)  # seconds to jump in front of what is wanted, where less landed behind it
_ENCODER_THREADS = 4  # not the number of cores, since x264 decides differently for another number
_BT709 = 1  # AVCOL_PRI_BT709 and AVCOL_TRC_BT709

FFMPEG_ERRORS = (OSError, av.FFmpegError)


def open_media(path: Path) -> Any:
    """PyAV's container of a file with a video stream.

    Raises:
        VideoError: it cannot be read, or holds no video.
    """
    try:
        container = av.open(
            os.fspath(path),
            metadata_errors="replace",
            # A playlist must not reach out to other machines.
            container_options={"protocol_whitelist": "file"},
        )
    except FFMPEG_ERRORS as error:
        raise VideoError(f"{path}: is not a video that can be read ({error})") from error
    # "tty" takes any text file for a terminal recording, "concat" is a list of other files.
    if container.format.name in ("tty", "concat") or not container.streams.video:
        container.close()
        raise VideoError(f"{path}: holds no video")
    return container


def stream_duration(container: Any, stream: Any) -> float:
    """Seconds of video the header promises; 0 where it says nothing about the video stream itself."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / av.time_base
    return 0.0


def read_comment(path: Path) -> str | None:
    """The comment among the metadata of a container; None where it has none."""
    with open_media(path) as container:
        # Matroska writes its tags in capitals.
        return next((value for key, value in container.metadata.items() if key.lower() == "comment"), None)


class FileSource:
    """A file that FFmpeg decodes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_media(path) as container:
            stream: Any = container.streams.video[0]
            self._is_gif = container.format.name == "gif"
            self._promised = stream_duration(container, stream)
            if self._is_gif:
                rate = _gif_rate(container, stream)
            else:
                rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        if not rate:
            raise VideoError(f"{path}: says no frame rate; convert it to MP4 first")
        self.fps = Fraction(rate)

    def frames(self, start: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (seconds since the first frame, upright uint8 [H, W, 3]) of the frames from `start` seconds on.

        Decodes from the last key frame before `start` where the file can be entered there, else from its beginning; the
        frames are the same. VideoError if the file is damaged or breaks off in what is decoded.
        """
        first = last = None
        try:
            for frame in self._decoded(start):
                last = frame.time if frame.time is not None else (0.0 if last is None else last + 1 / float(self.fps))
                first = last if first is None else first
                if frame.is_corrupt:
                    raise VideoError(f"{self._path}: is damaged {last - first:.2f} s in; copy it again or repair it")
                if last - first >= start:
                    yield last - first, np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        except av.FFmpegError as error:
            after = f"{(last or 0.0):.2f} s"
            raise VideoError(f"{self._path}: breaks off after {after} ({error}); copy it again") from error
        if first is None or last is None:
            return
        missing = self._promised - (last - first + 1 / float(self.fps))
        if missing > max(_MISSING_SECONDS, 2 / float(self.fps), _MISSING_SHARE * self._promised) or (
            self._is_gif and not _gif_is_whole(self._path)
        ):
            raise VideoError(f"{self._path}: is cut off: the video ends after {last - first:.2f} s; copy it again")

    def _decoded(self, start: float) -> Iterator[Any]:
        """The first frame, from which times count, then all others, or those from a key frame before `start` on."""
        with open_media(self._path) as container:
            frames = _decode(container)
            first = next(frames, None)
            if first is None:
                return
            yield first
            if start <= 0 or first.pts is None:
                yield from frames
                return
        with open_media(self._path) as container:
            entered = _enter(container, first.pts, start)
            if entered is not None:
                yield from entered
                return
        with open_media(self._path) as container:
            yield from itertools.islice(_decode(container), 1, None)


def _decode(container: Any) -> Iterator[Any]:
    stream = container.streams.video[0]
    if not stream.codec_context.is_open:
        stream.thread_type = "AUTO"
    return container.decode(stream)


def _enter(container: Any, begin: int, start: float) -> Iterator[Any] | None:
    """The frames from the last key frame before `start` seconds; None where no such frame is found after the first.

    begin: presentation time of the first frame, in the time base of the stream.
    """
    stream = container.streams.video[0]
    wanted = begin + math.floor(start / stream.time_base)
    for back in _BACK if container.format.name in _ENTERED else ():
        try:
            container.seek(wanted - round(back / stream.time_base), stream=stream)
            frames = _decode(container)
            # Before the key frame come pictures that lean on what was left out.
            key = next((frame for frame in frames if frame.key_frame), None)
        except FFMPEG_ERRORS:
            return None
        if key is None or key.pts is None or key.pts <= begin:
            return None
        if key.pts <= wanted:
            return itertools.chain([key], frames)
    return None


def _gif_rate(container: Any, stream: Any) -> Fraction | None:
    """Frames per second of a GIF, from all its delays.

    They are whole 1/100 s, so 8 fps alternate between 12 and 13 and FFmpeg, which goes by the first, says 8.33. A whole
    rate that explains the total up to that rounding is taken for the true one.
    """
    ticks = [packet.duration for packet in container.demux(stream) if packet.duration]
    if not ticks:
        return None
    seconds = sum(ticks) * Fraction(stream.time_base)
    rate = len(ticks) / seconds
    whole = max(1, round(rate))
    return Fraction(whole) if abs(len(ticks) / Fraction(whole) - seconds) <= Fraction(1, 100) else rate


def _gif_is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 64), os.SEEK_END)
        return file.read().rstrip(b"\0").endswith(b";")


class _Disk(io.FileIO):
    """A new file that keeps its first failed write for `check` and takes no more from then on.

    FFmpeg never learns of it: a muxer that is called once more after a failed write, be it by PyAV when it collects
    the container, may read memory it has freed, and take the process with it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(os.fspath(path), "wb")
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self._failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = error
        return len(data)

    def check(self) -> None:
        """Raise the OSError of the write that failed, if one did."""
        if self._failure is not None:
            raise self._failure


class _Output:
    """A container file that is being written. After an error of `mux` only `close` may follow."""

    def __init__(self, path: Path, kind: VideoFormat, comment: str | None) -> None:
        self._disk = _Disk(path)
        # bitexact leaves out random ids and dates, so the same frames give the same file.
        options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if kind.container == "mp4" else {})
        self.container = av.open(self._disk, "w", format=kind.container, container_options=options)
        if comment is not None:
            self.container.metadata["comment"] = comment

    def mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            self.container.mux(packet)
            self._disk.check()

    def close(self) -> None:
        try:
            self.container.close()
        finally:
            self._disk.close()
            self._disk.check()  # which is why anything else failed


class Encoder:
    """Frames to the one stream of an MP4, WebM or GIF file. After an error it raises that error and does nothing else.

    MP4 and WebM are BT.709 in limited range and say so, since players guess differently where a file does not.

    size: height and width of the frames; odd ones get one more row or column in MP4 and WebM, a copy of the last.
    comment: the metadata, as `finish` will probably want them.
    quality: 0 (smallest) to 10 (best), for MP4 and WebM.
    """

    def __init__(
        self, path: Path, kind: VideoFormat, fps: Fraction, size: tuple[int, ...], comment: str | None, quality: float
    ) -> None:
        self._path, self._kind = path, kind
        self._written_comment = None if kind.codec == "gif" else comment
        self._output = _Output(path, kind, self._written_comment)
        self._failure: Exception | None = None
        self._time_base, self._count = 1 / fps, 0
        odd = (0, 0) if kind.codec == "gif" else (size[0] % 2, size[1] % 2)
        self._padding = ((0, odd[0]), (0, odd[1]), (0, 0))
        # The type of a stream follows from the codec's name, which PyAV's annotations know as literals only.
        self._stream = cast(Any, self._output.container.add_stream(str(kind.codec), rate=fps))
        context = self._stream.codec_context
        context.time_base, context.bit_rate = self._time_base, 0
        context.height, context.width = size[0] + odd[0], size[1] + odd[1]
        if kind.codec == "gif":
            context.pix_fmt = "pal8"
            self._converted = _palette_for_each(size, self._time_base)
            return
        context.pix_fmt, context.thread_count = "yuv420p", _ENCODER_THREADS
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries = context.color_trc = _BT709
        context.options = _x264_options(quality) if kind.codec == "libx264" else _vp9_options(quality)
        self._converted = _yuv420

    def add(self, frame: np.ndarray) -> None:
        """Append uint8 [H, W, 3]."""
        timed = av.VideoFrame.from_ndarray(np.pad(frame, self._padding, mode="edge"), format="rgb24")
        timed.pts, timed.time_base = self._count, self._time_base
        self._count += 1
        self._encode(self._converted(timed))

    def finish(self, comment: str | None) -> None:
        """Write what the encoder still holds and complete the file, with this comment."""
        self._encode(itertools.chain(self._converted(None), [None]))
        self._output.close()
        if comment is not None and comment != self._written_comment:
            copy = _copy_gif if self._kind.codec == "gif" else _copy_packets
            copy(self._path, commented_path(self._path), self._kind, comment)
            os.replace(commented_path(self._path), self._path)

    def abandon(self) -> None:
        """Close the file as it is."""
        with suppress(*FFMPEG_ERRORS):
            self._output.close()

    def _encode(self, frames: Iterable[av.VideoFrame | None]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            for frame in frames:
                self._output.mux(self._stream.encode(frame))
        except FFMPEG_ERRORS as error:
            self._failure = error
            self.abandon()
            raise


def _x264_options(quality: float) -> dict[str, str]:
    import torch

    options = {"crf": f"{40 - 3 * quality:.1f}", "preset": "medium"}
    # x264's AVX-512 code weighs macroblocks by memory that nobody set, so that equal frames gave different files; its
    # AVX2 code does not, at the same speed and size.
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        options["x264-params"] = "asm=avx2"
    return options


def _vp9_options(quality: float) -> dict[str, str]:
    return {"crf": f"{55 - 4.5 * quality:.0f}", "deadline": "good", "cpu-used": "4"}


def _yuv420(frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    if frame is not None:
        bt709: dict[str, Any] = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
        yield frame.reformat(format="yuv420p", interpolation=Interpolation.BICUBIC, **bt709)


def _palette_for_each(
    size: tuple[int, ...], time_base: Fraction
) -> Callable[[av.VideoFrame | None], Iterator[av.VideoFrame]]:
    """What gives every frame a palette of its own, so that a GIF can be written as frames come; None comes last."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=size[1], height=size[0], format=av.VideoFormat("rgb24"), time_base=time_base)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()

    def converted(frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        graph.push(frame)
        while True:
            try:
                yield cast(av.VideoFrame, graph.pull())
            except (BlockingIOError, EOFError):
                return

    return converted


def commented_path(path: Path) -> Path:
    """Where a copy of a finished file with another comment is made."""
    return path.with_name(path.name + ".commented")


def _copy_packets(path: Path, target: Path, kind: VideoFormat, comment: str) -> None:
    """Copy an MP4 or WebM with another comment, which a muxer writes before the first packet."""
    output = _Output(target, kind, comment)
    try:
        with open_media(path) as source:
            stream = output.container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:  # the last one only says that there are no more
                    packet.stream = stream
                    output.mux([packet])
    finally:
        output.close()


def _copy_gif(path: Path, target: Path, kind: VideoFormat, comment: str) -> None:
    """Copy a GIF with a comment extension (GIF89a, section 24) before its first frame; FFmpeg's muxer writes none."""
    payload = comment.encode("utf-8")
    with path.open("rb") as source, target.open("wb") as commented:
        header = source.read(13)
        table = 3 << ((header[10] & 7) + 1) if header[10] & 0x80 else 0
        commented.write(header + source.read(table) + b"\x21\xfe")
        for block in (payload[start : start + 255] for start in range(0, len(payload), 255)):
            commented.write(bytes([len(block)]) + block)
        commented.write(b"\0")
        shutil.copyfileobj(source, commented, 1 << 20)
