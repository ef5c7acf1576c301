"""Media as bytes: clips as MP4 and images as JPEG or PNG for a shard, and back; frames fitted to a size.

Frames are uint8 ``[T, H, W, 3]`` (RGB).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from ..video.ffmpeg import FFMPEG_ERRORS
from ..video.formats import VideoError

_BT709 = 1  # AVCOL_PRI_BT709 and AVCOL_TRC_BT709
# What a file that is damaged, of another kind or of absurd sizes may raise while it is read.
FILE_ERRORS = (*FFMPEG_ERRORS, VideoError, ValueError, MemoryError, OverflowError)

_AVX2 = 11  # OpenCV's number of the feature
_MAX_PIXELS = 256 * 2**20  # of one image; more is an attack or a mistake


def encode_mp4(frames: np.ndarray, fps: float, quality: float) -> bytes:
    """Encode ``[T, H, W, 3]`` with even H and W as h264 in MP4; quality 0 (smallest) to 10 (best).

    The same frames give the same bytes on every machine with the same FFmpeg. The encoder runs in one thread, since
    x264 decides differently, and says so inside the file, for another number of threads.
    """
    import cv2

    count, height, width = frames.shape[:3]
    if count == 0 or height % 2 or width % 2:
        raise ValueError(f"h264 takes at least one frame of even height and width, got {list(frames.shape)}")
    buffer = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1001)
    # bitexact leaves out dates, so the same frames give the same bytes.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = cast(Any, container.add_stream("libx264", rate=rate))
        context = stream.codec_context
        context.time_base = 1 / rate
        context.bit_rate = 0
        context.thread_count = 1
        context.height, context.width, context.pix_fmt = height, width, "yuv420p"
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries = context.color_trc = _BT709
        context.options = {"crf": f"{40 - 3 * quality:.1f}", "preset": "medium", "threads": "1"}
        # x264's AVX-512 code reads memory that nobody set (see video/ffmpeg.py, which asks torch what the processor
        # has; preparation loads no torch).
        if cv2.checkHardwareSupport(_AVX2):
            context.options["x264-params"] = "asm=avx2"
        for index, frame in enumerate(frames):
            timed = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            timed.pts, timed.time_base = index, 1 / rate
            timed = timed.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            for packet in stream.encode(timed):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return buffer.getvalue()


def decode_mp4(data: bytes, start: int = 0, count: int | None = None) -> np.ndarray:
    """Frames ``start`` to ``start + count`` (default: all the rest) of an MP4, ``[T, H, W, 3]``.

    Raises:
        ValueError: the data are no video, are damaged, or end before ``start + count``.
    """
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            frames = list(_frames(container, start, count))
    except (*FFMPEG_ERRORS, IndexError) as error:
        raise ValueError(f"not a readable MP4 ({error})") from error
    if not frames or (count is not None and len(frames) < count):
        raise ValueError(f"frames {start} to {start + (count or 1)} were asked for, the video ends after {len(frames)}")
    return np.stack(frames)


def _frames(container: Any, start: int, count: int | None) -> Iterator[np.ndarray]:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    for index, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise ValueError(f"frame {index} is damaged")
        if index >= start:
            yield frame.to_ndarray(format="rgb24")
        if count is not None and index + 1 >= start + count:
            return


def encode_image(image: np.ndarray, suffix: str, quality: float) -> bytes:
    """Encode ``[H, W, 3]`` as ``jpg`` (quality 0 to 10) or ``png``."""
    buffer = io.BytesIO()
    if suffix == "jpg":
        Image.fromarray(image).save(buffer, "JPEG", quality=round(50 + 4.8 * quality), subsampling=0)
    elif suffix == "png":
        Image.fromarray(image).save(buffer, "PNG")
    else:
        raise ValueError(f"images are stored as jpg or png, got {suffix!r}")
    return buffer.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """An image file of any format of Pillow's, upright, transparent parts on white, as ``[H, W, 3]``.

    Raises:
        ValueError: the data are no image, are cut off, or claim more than 256 megapixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise ValueError(f"claims {opened.width}x{opened.height} pixels")
            image = _eight_bit(ImageOps.exif_transpose(opened))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({error})") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits as 8; Pillow's own conversion makes all but the darkest of them white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def fit(frames: np.ndarray, height: int, width: int, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Scale ``[T, H, W, 3]`` until it just covers ``height`` x ``width`` pixels, then cut off what stands over.

    place: where the cut-out lies, (vertical, horizontal) from 0 (top, left) to 1 (bottom, right).
    """
    import cv2

    _, old_height, old_width = frames.shape[:3]
    scale = max(height / old_height, width / old_width)
    scaled = max(height, round(old_height * scale)), max(width, round(old_width * scale))
    top, left = round((scaled[0] - height) * place[0]), round((scaled[1] - width) * place[1])
    if scaled != (old_height, old_width):
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        frames = np.stack([cv2.resize(frame, scaled[::-1], interpolation=method) for frame in frames])
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])
