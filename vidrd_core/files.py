"""Files that appear whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that ``path`` holds the old or the whole new content at any moment.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        usual = partial.stat().st_mode  # safetensors lets nobody but the owner read its files
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, dict(metadata))
        partial.chmod(usual)
        sync_and_replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}); is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


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
