"""Files that appear whole or not at all, whatever interrupts the writing, and locks between processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:  # the processes that prepare media need no torch, and would each take seconds to load it
    from torch import Tensor


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` for the length of a ``with`` block; gives False at once where another process does.

    The system releases it when the process ends in whatever way.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Keep other processes from doing the same work for the length of a ``with`` block; the lock file goes with it.

    Args:
        path: of the lock file.
        what: the work, for the message.

    Raises:
        ValueError: another process is at it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_locked = False
    try:
        with hold(path) as is_locked:
            if not is_locked:
                raise ValueError(
                    f"{what}: another process is doing that. Wait until it has ended, or choose another folder"
                )
            yield
    finally:
        if is_locked:
            with suppress(OSError):  # Windows: where another process is just looking
                path.unlink()


@contextmanager
def replacing(path: str | Path, keep_suffix: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; what is written there replaces ``path`` when the block ends without an error.

    So ``path`` holds the old or the whole new content at any moment. Folders that are missing are made.

    Args:
        keep_suffix: whether the path ends as ``path`` does (``chart.partial.png`` instead of ``chart.png.partial``),
            for writers that take the format from the name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}" if keep_suffix else f"{path.name}.partial")
    try:
        yield partial
        sync_and_replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that ``path`` holds the old or the whole new content at any moment."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, line breaks as they are, so that ``path`` holds the old or the whole new text at any moment."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Write JSON so that ``path`` holds the old or the whole new text at any moment.

    Args:
        indent: spaces of each level; None: all in one line.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys, separators=separators) + "\n"
    # A file name can hold bytes that are no UTF-8 (lone surrogates): they are left as JSON's escapes.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that ``path`` holds the old or the whole new content at any moment.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save_file

    try:
        with replacing(path) as partial:
            partial.touch()
            usual = partial.stat().st_mode  # safetensors lets nobody but the owner read its files
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial, dict(metadata))
            partial.chmod(usual)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}); is the disk full?") from error


def sync_and_replace(partial: Path, path: Path) -> None:
    """Give a finished file its final name, its content on the disk first, so that a power cut leaves no empty file."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: the file is broken or no safetensors.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a state file (.safetensors)")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies: a file that is mapped into memory cannot be replaced on Windows.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); it is broken or not a state") from error
    return tensors, metadata
