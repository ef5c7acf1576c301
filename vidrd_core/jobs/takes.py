"""The takes of a timeline on disk: finished clips, each found again by a hash of what made it, never overwritten.

A folder of a run holds, in ``takes``, for each take its state (``<id>.safetensors``, for ``vidrd extend`` too), a video
to look at (``<id>.mp4``), a picture of it (``<id>.jpg``) and what it is (``<id>.json``, written last: with it the take
counts as finished); in ``videos`` the joined videos; in ``timelines`` what was connected when a timeline last ran.
Needs no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import hold, write_json
from .timeline import TAKE_ID

FORMAT = "vidrd-take-1"
VIDEO_FORMAT = "vidrd-timeline-video-1"
TIMELINE_FORMAT = "vidrd-timeline-run-1"
KEPT_VIDEOS = 8  # joined videos; older ones are deleted, since they are joined again from their takes
PATIENCE = 0.5  # seconds between two looks whether another process has finished a take


class TakeFolder:
    """The folder of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.takes_path = self.path / "takes"
        self.videos_path = self.path / "videos"

    def file(self, take: str, suffix: str) -> Path:
        """One of the files of a take: ``.safetensors``, ``.mp4``, ``.jpg``, ``.json``.

        Raises:
            ValueError: that is no name of a take.
        """
        if not TAKE_ID.fullmatch(take):
            raise ValueError(f"{take!r} is no take; expected 16 digits of 0-9 and a-f")
        return self.takes_path / f"{take}{suffix}"

    def records(self) -> dict[str, dict[str, Any]]:
        """Take id -> what it is, of all finished takes; a file that is broken or none of ours is left out."""
        found = {}
        for path in sorted(self.takes_path.glob("*.json")):
            record = _read(path, FORMAT)
            if record and TAKE_ID.fullmatch(path.stem):
                found[path.stem] = record
        return found

    def record(self, take: str) -> dict[str, Any]:
        """What a finished take is.

        Raises:
            ValueError: there is none of that name, or its record is broken.
        """
        path = self.file(take, ".json")
        record = _read(path, FORMAT)
        if not record:
            raise ValueError(f"{path} is gone or broken: delete the take, and the next run makes it again")
        return record

    def is_finished(self, take: str) -> bool:
        return self.file(take, ".json").is_file() and self.file(take, ".safetensors").is_file()

    def finish(self, take: str, record: Mapping[str, Any]) -> None:
        """Let a take count as finished, whose files were written."""
        write_json(self.file(take, ".json"), {"format": FORMAT, "made": time.time(), **record})

    def delete(self, take: str) -> bool:
        """Delete a take; its seed and prompt make it again. Gives whether there was one."""
        record = self.file(take, ".json")
        was_there = record.is_file()
        for suffix in (".json", ".safetensors", ".mp4", ".jpg", ".lock"):
            self.file(take, suffix).unlink(missing_ok=True)
        if was_there:
            write_json(self.path / "deleted.json", {"last": take, "time": time.time_ns()})
        return was_there

    def deletions(self) -> str:
        """Changes with every deletion, after which a node has to look again what is there."""
        path = self.path / "deleted.json"
        return str(path.stat().st_mtime_ns) if path.is_file() else ""

    @contextmanager
    def making(self, take: str, wait: Callable[[float], Any] = time.sleep) -> Iterator[bool]:
        """Be the only process that makes a take, for the length of a ``with`` block.

        Where another one does, this waits until it has ended. Gives whether the take is still to be made.

        Args:
            wait: called with the seconds between two looks; may raise to stop.
        """
        path = self.file(take, ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with hold(path) as is_ours:
                if is_ours:
                    yield not self.is_finished(take)
                    break
            wait(PATIENCE)
        if self.is_finished(take):  # nobody makes it again, so that nobody needs the lock
            _unlink(path)

    def video_file(self, name: str) -> Path:
        """A joined video by its name.

        Raises:
            ValueError: that is no name of one.
        """
        if not TAKE_ID.fullmatch(name):
            raise ValueError(f"{name!r} is no video of a timeline; expected 16 digits of 0-9 and a-f")
        return self.videos_path / f"{name}.mp4"

    def video(self, name: str) -> dict[str, Any]:
        """What a joined video is; empty where it is not there."""
        path = self.video_file(name)
        return _read(path.with_suffix(".json"), VIDEO_FORMAT) if path.is_file() else {}

    def finish_video(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep a joined video that was written, and the most recent of the others."""
        write_json(self.video_file(name).with_suffix(".json"), {"format": VIDEO_FORMAT, **record})
        kept = sorted(self.videos_path.glob("*.json"), key=_time, reverse=True)
        kept = [path for path in kept if TAKE_ID.fullmatch(path.stem)]
        for path in kept[KEPT_VIDEOS:]:
            for suffix in (".json", ".mp4", ".seams"):
                _unlink(path.with_suffix(suffix))

    def remember(self, timeline: str, clips: Collection[str], values: Mapping[str, Any]) -> None:
        """Keep what was connected when a timeline ran.

        Args:
            timeline: a name for it, that of its first clip.
            clips: all of its clips.
        """
        path = self.path / "timelines" / f"{timeline}.json"
        write_json(path, {"format": TIMELINE_FORMAT, "clips": sorted(clips), "time": time.time(), **values})

    def remembered(self, clips: Collection[str]) -> dict[str, Any]:
        """What was connected when a timeline with any of these clips ran last, else when any did; empty: none did."""
        known = [_read(path, TIMELINE_FORMAT) for path in (self.path / "timelines").glob("*.json")]
        known = [values for values in known if values]

        def rank(values: Mapping[str, Any]) -> tuple[bool, float]:
            return bool({*clips} & {*values.get("clips", ())}), float(values.get("time", 0))

        return max(known, key=rank, default={})


def _read(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object of a format; empty where the file is gone, broken or of another."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and values.get("format") == kind else {}


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process deleted it
        return 0


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # Windows keeps files that another process has open
        return
