"""What an output path means: its format, whether it can be written now, and the metadata text that goes inside."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

FRAME_NAME = "frame_{:05d}.png"
# https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file
_WINDOWS_FORBIDS = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)\s*(\.|$)', re.IGNORECASE)
FRAME_PATTERN = re.compile(r"frame_(\d{5,})\.png")

# libx264 and libvpx have no common scale: both lines give "visually lossless" at 8 and small files at 3.
DEFAULT_QUALITY = 8.0


class VideoError(ValueError):
    """A video cannot be written or read; the message names the file and says what to do."""


@dataclass(frozen=True)
class VideoFormat:
    """How one suffix is written."""

    suffix: str
    container: str | None = None  # libavformat muxer; None is a folder of PNGs
    codec: str | None = None  # libavcodec encoder
    bytes_per_pixel: float = 3.0  # a generous bound, for the disk check only
    max_fps: float = 240.0


FORMATS = {
    ".mp4": VideoFormat(".mp4", "mp4", "libx264", bytes_per_pixel=0.25),
    ".webm": VideoFormat(".webm", "webm", "libvpx-vp9", bytes_per_pixel=0.25),
    # Browsers slow a GIF down whose frames last less than 2/100 s.
    ".gif": VideoFormat(".gif", "gif", "gif", bytes_per_pixel=1.0, max_fps=50.0),
    "": VideoFormat(""),
}


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path, so that `.`, a later chdir, or a name such as `concat:x` cannot change what is meant."""
    return Path(os.path.abspath(path))


def format_of(path: Path) -> VideoFormat:
    """The format that the suffix of `path` names; VideoError for an unknown one."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise VideoError(
            f"{path}: unknown suffix {path.suffix!r}; use .mp4, .webm or .gif, "
            "or a name without a suffix for a folder of PNGs"
        )
    return FORMATS[suffix]


def partial_path(path: Path) -> Path:
    """The neighbour that is written first: `out.partial.mp4` for `out.mp4`. The name is fixed, so a rerun cleans up."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def replaced_path(path: Path) -> Path:
    """Where an older folder of PNGs waits while the new one takes its name."""
    return path.with_name(f"{path.name}.replaced")


def estimate_bytes(path: str | os.PathLike[str], num_frames: int, height: int, width: int) -> int:
    """A generous size in bytes of a video of `num_frames` frames of `height` x `width` pixels, for `probe_output`."""
    return int(num_frames * height * width * format_of(absolute(path)).bytes_per_pixel) + 65536


def frame_rate(path: Path, fps: float | Fraction) -> Fraction:
    """The rate that a video at `path` is written with; VideoError for one that its format cannot have."""
    kind = format_of(path)
    rate = Fraction(fps).limit_denominator(1001) if math.isfinite(fps) else Fraction(0)
    if not 0 < rate <= kind.max_fps:
        name = kind.suffix or "a folder of PNGs"
        raise VideoError(f"{path}: fps must be above 0 and at most {kind.max_fps:g} for {name}, got {fps}")
    return rate


def probe_output(path: str | os.PathLike[str], estimated_bytes: int = 0, fps: float | Fraction | None = None) -> None:
    """Find out before long work whether a video can be written to `path`; makes its folder if need be.

    Checks the suffix, the rate (where `fps` is given), the encoder in the installed PyAV, the folder, the right to
    write into it, what already has that name, and that the disk has `estimated_bytes` left. Raises VideoError,
    which names the reason and says what to do.
    """
    check_name(Path(path))  # as it was given: Windows' abspath hides what is odd about it
    path = absolute(path)
    kind = format_of(path)
    if fps is not None:
        frame_rate(path, fps)
    _check_encoder(path, kind)
    _check_target(path, kind)
    check_writable(path)
    free = shutil.disk_usage(path.parent).free
    if free < max(estimated_bytes, 1):
        raise VideoError(
            f"{path}: about {_size(estimated_bytes)} are needed but the disk has {_size(free)} left; "
            "free some space, make fewer or smaller frames, or choose another disk"
        )


def check_name(path: Path, windows: bool = os.name == "nt") -> None:
    """VideoError for a name that cannot be: on Windows it would be a device's, or become a stream of another file."""
    names = [name for name in (path.parts[1:] if path.anchor else path.parts) if name != ".."]
    odd = next((name for name in names if "\0" in name or (windows and _WINDOWS_FORBIDS.search(name))), None)
    if odd is not None:
        raise VideoError(f"{path}: {odd!r} cannot be the name of a file or folder on this system; choose another name")


def clear_frame_folder(folder: Path) -> None:
    """Delete a folder of PNGs of ours, if it is there; VideoError rather than deleting anything else."""
    if folder.exists():
        check_frame_folder(folder)
        shutil.rmtree(folder)


def check_frame_folder(folder: Path) -> None:
    """VideoError unless `folder`, where it exists, is a folder that holds nothing but frames an earlier run wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise VideoError(f"{folder}: is a file, a folder of PNGs is to be written; add a suffix such as .mp4 or rename")
    other = next((entry.name for entry in folder.iterdir() if not FRAME_PATTERN.fullmatch(entry.name)), None)
    if other is not None:
        raise VideoError(f"{folder}: holds other files ({other}) and will not be replaced; name a new or empty folder")


def metadata_to_text(metadata: Mapping[str, Any]) -> str:
    """The metadata as one JSON text that every container can hold. Raises VideoError if JSON cannot express it.

    JSON has no infinity: such numbers become the text "inf", "-inf" or "nan", which `float` reads.
    """
    try:
        text = json.dumps(_finite(dict(metadata)), ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise VideoError(f"metadata must be plain JSON values (text, numbers, lists, dictionaries): {error}") from error
    # A shell can hand over bytes that are no UTF-8 (lone surrogates); JSON's own escape for them is what this leaves.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def text_to_metadata(text: str | None) -> dict[str, Any]:
    """The inverse of `metadata_to_text`; an empty dictionary for a comment that is not ours (no JSON object)."""
    try:
        metadata = json.loads(text or "{}")
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def has_encoder(codec: str) -> bool:
    """Whether the installed PyAV can encode `codec`, a name of libavcodec's."""
    import av.codec

    try:
        av.codec.Codec(codec, "w")
    except ValueError:  # av.codec.codec.UnknownCodecError is one
        return False
    return True


def _check_encoder(path: Path, kind: VideoFormat) -> None:
    if kind.codec is not None and not has_encoder(kind.codec):
        raise VideoError(
            f"{path}: the installed PyAV has no {kind.codec} encoder; install the wheel "
            "(pip install --only-binary :all: av) or choose another of .mp4, .webm, .gif and a folder of PNGs"
        )


def _check_target(path: Path, kind: VideoFormat) -> None:
    if kind.container is None:
        for folder in (path, partial_path(path), replaced_path(path)):
            check_frame_folder(folder)
    elif path.is_dir():
        raise VideoError(f"{path}: is a folder; add a file name")


def check_writable(path: Path) -> None:
    """VideoError where no file can be written to `path`, an absolute one; makes its folder if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoError(
            f"{path}: its folder cannot be made ({error.strerror or error}); choose another output"
        ) from error
    # Access bits say little on Windows and on network disks: only trying shows it.
    trial = path.with_name(f"{partial_path(path).name}.probe")
    try:
        trial.touch()
        trial.unlink(missing_ok=True)  # another process may try at the same moment
        if path.is_file():
            with path.open("ab"):
                pass
    except OSError as error:
        raise VideoError(f"{path}: cannot be written ({error.strerror or error}); choose another output") from error


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
