"""Many videos into one folder, by any number of processes on any number of machines that share it.

The folder holds ``videos.json`` (what the videos are made of and with), the finished videos ``00000.mp4`` ..., and for
each unfinished one a state folder ``00000.state`` (:mod:`vidrd_core.jobs`) and a lock ``00000.lock``. A process makes a
video only while it holds that video's lock, which the system releases when the process ends in whatever way: so no
video is made twice, a killed run continues where it was, with the same or another number of processes, and a video that
fails does not stop the others. A video's seed is the run's plus its number, so that any process makes the same video.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..files import hold, write_json
from ..sampling.settings import SamplingSettings
from .folder import JobError, JobFolder, read_settings
from .job import Advice, Plan, check_space, compare, made_with, open_job, run_job

if TYPE_CHECKING:
    from ..pipeline import VidRDPipeline

logger = logging.getLogger(__name__)

FORMAT = "vidrd-videos-1"
SETTINGS = "videos.json"
SUFFIXES = {"mp4": ".mp4", "webm": ".webm", "gif": ".gif", "png": ""}
MAX_FAILURES = 3  # in a row: then the cause is not a single video


@dataclass(frozen=True)
class Video:
    """One video of a run: its number, the prompts of its clips, its seed."""

    index: int
    prompts: tuple[str, ...]
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {"prompts": list(self.prompts), "seed": self.seed}


def number_videos(prompts: Sequence[Sequence[str]], seed: int) -> list[Video]:
    """Videos in order; the first has the seed ``seed``, each further one a seed one higher."""
    return [Video(index, tuple(clips), seed + index) for index, clips in enumerate(prompts)]


class VideosFolder:
    """Where the videos of a run go.

    Args:
        path: of the folder.
        kind: of the videos, a name of :data:`SUFFIXES`.

    Raises:
        JobError: ``path`` is a file.
    """

    def __init__(self, path: str | Path, kind: str = "mp4"):
        self.path = Path(path)
        self.kind = kind
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"{self.path} is a file; many videos need a folder, choose another name")

    def output(self, index: int) -> Path:
        return self.path / f"{index:05d}{SUFFIXES[self.kind]}"

    def state(self, index: int) -> JobFolder:
        return JobFolder(self.path / f"{index:05d}.state")

    def read(self) -> dict[str, Any]:
        """What an earlier run wrote; empty where there was none."""
        return read_settings(self.path / SETTINGS, FORMAT, "a run of many videos")

    def open(self, made: Mapping[str, Any], videos: Sequence[Video], redo: bool = False, restart: bool = False) -> None:
        """Begin a run, or continue the one in the folder, also with more or fewer videos at the end than before.

        Args:
            made: what all videos share, see :func:`vidrd_core.jobs.job.made_with`.
            redo: make the videos again whose prompts have changed, instead of refusing.
            restart: delete all videos that were made here.

        Raises:
            JobError: the folder's videos were made with other settings or prompts.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        made = json.loads(json.dumps({**made, "kind": self.kind}))
        with FileLock(self.path / "videos.lock"):
            before = self.read()
            listed = before.get("videos", [])
            if restart:
                VideosFolder(self.path, before.get("made", made)["kind"]).delete(range(len(listed)))
                before, listed = {}, []
            differences = compare(before["made"], made) if before else []
            if differences:
                raise JobError(
                    f"{self.path} was made with other settings: {'; '.join(differences)}. "
                    "Set them back, choose another folder, or start over with --restart"
                )
            wanted = [video.to_json() for video in videos]
            changed = [n for n, (old, new) in enumerate(zip(listed, wanted)) if old != new]
            if changed and not redo:
                old, new = listed[changed[0]], wanted[changed[0]]
                raise JobError(
                    f"{self.path}: {len(changed)} videos have changed; number {changed[0]} had the prompts "
                    f"{old['prompts']} and has {new['prompts']}. Set them back, choose another folder, or make the "
                    "changed ones again with --redo"
                )
            self.delete(changed)
            settings = {"format": FORMAT, "made": made, "videos": wanted + listed[len(wanted) :]}
            write_json(self.path / SETTINGS, settings)

    def delete(self, indices: Sequence[int] | range) -> None:
        """Delete videos and their states."""
        from ..video.formats import clear_frame_folder

        for index in indices:
            output = self.output(index)
            if output.is_dir():
                clear_frame_folder(output)
            output.unlink(missing_ok=True)
            self.state(index).remove()

    def is_finished(self, index: int) -> bool:
        """Whether the video is complete; the state folder of one that is not says so."""
        if not self.output(index).exists():
            return False
        state = self.state(index).read()
        return not state or bool(state.get("complete"))

    @contextmanager
    def claim(self, index: int) -> Iterator[bool]:
        """Lock a video for the length of a ``with`` block; gives whether this process is to make it."""
        if self.is_finished(index):
            yield False
            return
        lock = self.path / f"{index:05d}.lock"
        with hold(lock) as is_locked:
            yield is_locked and not self.is_finished(index)  # another process may just have finished it
            done = is_locked and self.is_finished(index)
        if done:
            lock.unlink(missing_ok=True)


@dataclass
class BatchResult:
    """What a process made."""

    made: int = 0
    clips: int = 0
    seconds: float = 0.0
    skipped: int = 0  # finished before, or made by another process
    stopped: bool = False
    failures: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchSettings:
    """How the videos of a run are made: everything but their prompts and seeds.

    Args:
        metadata: gives what a video's file says about how it was made.
        keep_states: keep the state folders of finished videos, so that `vidrd extend` can continue them.
        index, count: number of this process, and how many there are; they decide only with which video each one begins.
    """

    pipe: VidRDPipeline
    sampling: SamplingSettings
    fps: float
    metadata: Callable[[Plan], Mapping[str, Any]] | None = None
    keep_states: bool = False
    index: int = 0
    count: int = 1

    def plan(self, video: Video) -> Plan:
        return Plan(video.prompts, self.sampling, video.seed)

    def made(self, videos: Sequence[Video]) -> dict[str, Any]:
        """What all videos of the run share; their seeds are listed with their prompts."""
        shared = made_with(self.pipe, self.plan(videos[0]))
        return {**{key: value for key, value in shared.items() if key not in ("seed", "start")}, "fps": self.fps}


def make_videos(
    folder: VideosFolder,
    videos: Sequence[Video],
    batch: BatchSettings,
    should_stop: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = logger.info,
) -> BatchResult:
    """Make the videos that no other process has made or is making; returns when none is left for this one.

    A video that fails is left for a later run, and the next one made; the third failure in a row is raised.
    """
    result, began, failures_in_a_row = BatchResult(), time.monotonic(), 0
    first = batch.index * len(videos) // batch.count  # so that processes begin far apart
    for video in (*videos[first:], *videos[:first]):
        if should_stop():
            result.stopped = True
            break
        with folder.claim(video.index) as is_claimed:
            if not is_claimed:
                result.skipped += 1
                continue
            try:
                clips = _make_video(folder, video, batch, should_stop)
            except (ValueError, OSError) as error:
                result.failures[video.index] = str(error)
                report(f"video {video.index} failed: {error}")
                failures_in_a_row += 1
                if failures_in_a_row == MAX_FAILURES:
                    raise
                continue
        failures_in_a_row = 0
        result.clips += clips
        result.seconds = time.monotonic() - began
        if folder.is_finished(video.index):
            result.made += 1
            report(f"wrote {folder.output(video.index)} ({result.clips / result.seconds:.3g} clips per second)")
    result.stopped = result.stopped or should_stop()
    return result


def _make_video(folder: VideosFolder, video: Video, batch: BatchSettings, should_stop: Callable[[], bool]) -> int:
    """Make one video; returns how many clips it has now."""
    plan, state = batch.plan(video), folder.state(video.index)
    check_space(state.path, batch.pipe, plan)
    advice = f"Delete {state.path} to make the video again"
    job = open_job(state.path, batch.pipe, plan, advice=Advice(advice, advice))
    output = folder.output(video.index)
    result = run_job(batch.pipe, job, plan, output, batch.fps, metadata=batch.metadata, should_stop=should_stop)
    if result.is_complete and not batch.keep_states:
        job.remove()
    return result.clips
