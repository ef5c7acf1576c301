"""The state folder of a long job.

It holds ``settings.json`` (what the clips were made with), and for each finished clip its latents
(``clip_00000.safetensors``, with a hash of those of the clip before) and the state that the next clip continues
(``state_00000.safetensors``, for :meth:`VideoState.load`).
Every file is written atomically, and a clip counts as finished once its latents are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..files import hold, read_tensors, write_json, write_tensors
from ..sampling.settings import with_interval_of
from ..sampling.state import Clip, VideoState

SETTINGS_FORMAT = "vidrd-job-1"
CLIP_FORMAT = "vidrd-clip-1"
SETTINGS = "settings.json"
LOCK = "job.lock"
OWN_FILES = re.compile(r"(settings\.json|(clip|state)_\d{5,}\.safetensors|start\.safetensors)(\.partial)?|job\.lock")


LOADING = {"model", "base", "vae", "scheduler", "scheduler_options"}
FITS: dict[str, Callable[[Any], bool]] = {  # what entries of the settings can be
    "made": lambda v: (
        isinstance(v, dict) and isinstance(v.get("sampling"), dict) and isinstance(v.get("scheduler"), dict)
    ),
    "first": lambda v: type(v) is int and 0 <= v < 10**9,
    "planned": lambda v: isinstance(v, list) and all(isinstance(prompt, str) for prompt in v),
    "complete": lambda v: isinstance(v, bool),
    "fps": lambda v: type(v) in (int, float) and 0 < v < 1e6,
    "loading": lambda v: isinstance(v, dict) and set(v) <= LOADING,
    "extended_from": lambda v: v is None or (type(v) is int and v >= 1),
    "videos": lambda v: isinstance(v, list) and all(isinstance(x, dict) and {"prompts", "seed"} <= set(x) for x in v),
}


class JobError(ValueError):
    """A state folder does not fit what is asked of it; the message names the difference and says what to do."""


def read_settings(path: Path, kind: str, owner: str) -> dict[str, Any]:
    """The JSON settings of a folder, as this version writes them; empty where there is no file.

    Args:
        kind: the "format" that they must name.
        owner: what they must belong to, for the message.

    Raises:
        JobError: the file is broken or belongs to something else.
    """
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path} is broken ({error}); delete its folder or choose another") from error
    if not isinstance(settings, dict) or settings.get("format") != kind:
        raise JobError(f"{path} does not belong to {owner} ({kind}); choose another folder")
    try:
        odd = [
            f"{key} is {settings[key]!r:.60}"
            for key, fits in FITS.items()
            if key in settings and not fits(settings[key])
        ]
        if odd:
            raise ValueError(", ".join(odd))
        return with_current_made(settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(
            f"{path} is broken ({type(error).__name__}: {error}); put the right file back, delete its folder or choose "
            "another"
        ) from error


def with_current_made(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a folder, with what its clips were made with as this version writes it."""
    made = settings.get("made")
    if not made:
        return settings
    sampling, scheduler = with_interval_of(made["sampling"], made["scheduler"])
    return {**settings, "made": {**made, "sampling": sampling, "scheduler": scheduler}}


class JobFolder:
    """The state folder of a job.

    Raises:
        JobError: it holds something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"{self.path} is a file; a state folder is a folder, choose another name")
        other = next((p.name for p in self._entries() if not OWN_FILES.fullmatch(p.name)), None)
        if other is not None and not (self.path / SETTINGS).is_file():
            raise JobError(f"{self.path} holds other files ({other}); choose a new or empty folder")

    def _entries(self) -> list[Path]:
        return sorted(self.path.iterdir()) if self.path.is_dir() else []

    def read(self) -> dict[str, Any]:
        """The settings; empty where there is no job yet."""
        return read_settings(self.path / SETTINGS, SETTINGS_FORMAT, "a VidRD job")

    def write(self, **changes: Any) -> None:
        """Change entries of the settings, at once."""
        write_json(self.path / SETTINGS, {"format": SETTINGS_FORMAT, **self.read(), **changes}, indent=2)

    def clip_path(self, index: int) -> Path:
        return self.path / f"clip_{index:05d}.safetensors"

    def state_path(self, index: int) -> Path:
        return self.path / f"state_{index:05d}.safetensors"

    @property
    def start_path(self) -> Path:
        return self.path / "start.safetensors"

    def num_finished(self) -> int:
        """How many clips are there, counted from the first."""
        first = self.read().get("first", 0)
        index = first
        while self.clip_path(index).is_file() and self.state_path(index).is_file():
            index += 1
        return index - first

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder for the length of a ``with`` block.

        Raises:
            JobError: another process is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with hold(self.path / LOCK) as is_locked:
            if not is_locked:
                raise JobError(
                    f"{self.path} is in use: another process makes its clips. Wait until that has ended, "
                    "or choose another output and state folder"
                )
            yield

    def save(self, clip: Clip) -> None:
        """Save a finished clip: its state first, since the clip counts as finished once its latents are there.

        Raises:
            JobError: its latents hold NaN or infinity; nothing of it is saved.
        """
        assert clip.state is not None
        if not clip.latents.isfinite().all():
            raise JobError(
                f"clip {clip.index} came out as NaN or infinity and was not saved: "
                "use float32 or bfloat16 in place of float16, or a lower guidance scale"
            )
        clip.state.save(self.state_path(clip.index))
        values: dict[str, Any] = {"index": clip.index, "prompt": clip.prompt, "seeds": clip.seeds}
        if clip.goal:
            values |= {"goal": clip.goal, "skipped": list(clip.skipped), "trim": clip.trim}
        metadata = {"format": CLIP_FORMAT, "clip": json.dumps(values, ensure_ascii=False)}
        if self.clip_path(clip.index - 1).is_file():
            metadata["after"] = latents_digest(self.load(clip.index - 1))
        write_tensors(self.clip_path(clip.index), {"latents": clip.latents}, metadata)

    def load(self, index: int) -> Clip:
        """A finished clip, without its state.

        Raises:
            JobError: its file is broken.
        """
        return self.load_linked(index)[0]

    def load_linked(self, index: int) -> tuple[Clip, str | None]:
        """A finished clip and the :func:`latents_digest` of the one that it continued, where that is known.

        Raises:
            JobError: its file is broken.
        """
        path = self.clip_path(index)
        with _advice_on_broken_file(path):
            tensors, metadata = read_tensors(path)
            if metadata.get("format") != CLIP_FORMAT:
                raise ValueError(f"{path} is not a clip of a VidRD job")
            clip = Clip(tensors["latents"], **json.loads(metadata["clip"]))
            if clip.latents.ndim != 5 or not clip.seeds:
                raise ValueError(f"latents of shape {list(clip.latents.shape)} and seeds {clip.seeds} are no clip's")
            return clip, metadata.get("after")

    def load_state(self, index: int) -> VideoState:
        """The state after a finished clip.

        Raises:
            JobError: its file is broken.
        """
        path = self.state_path(index)
        with _advice_on_broken_file(path):
            return VideoState.load(path)

    def drop_from(self, index: int) -> None:
        """Delete the clips from ``index`` on, the last one first, so that an interruption leaves no gap."""
        for path in sorted(self.path.glob("clip_*.safetensors"), reverse=True):
            if path >= self.clip_path(index):
                path.unlink()
                path.with_name(path.name.replace("clip_", "state_")).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything a job wrote here but the lock, which may be held."""
        for path in self._entries():
            if OWN_FILES.fullmatch(path.name) and path.name not in (SETTINGS, LOCK):
                path.unlink()
        (self.path / SETTINGS).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete everything a job wrote here, and the folder where nothing else is in it."""
        self.clear()
        (self.path / LOCK).unlink(missing_ok=True)
        if self.path.is_dir() and not self._entries():
            self.path.rmdir()


def latents_digest(clip: Clip) -> str:
    """A hash of a clip's latents."""
    values = clip.latents.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {list(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


@contextmanager
def _advice_on_broken_file(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JobError(
            f"{path} is broken ({error}); delete it and run the command that made it once more to make the clip again"
        ) from error


def default_folder(output: str | os.PathLike[str]) -> Path:
    """Where a job keeps its clips by default: ``out.mp4.state`` beside ``out.mp4``."""
    output = Path(output)
    return output.with_name(f"{output.name}.state")
