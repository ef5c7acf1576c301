"""``vidrd generate --videos``: many videos, by one process or by those that accelerate launched."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .inputs import DEFAULT_CLIPS, read_videos, sampling_settings
from .loading import fps_of, load
from .models import default_device
from .running import FAILED, INTERRUPTED, run_again, say, stop_on_signal, video_metadata


@dataclass(frozen=True)
class Process:
    """This process among those that were launched together: its number and how many there are."""

    index: int = 0
    count: int = 1
    device: str | None = None  # its own, where there are several
    state: Any = None  # accelerate's

    @contextmanager
    def main_first(self) -> Iterator[bool]:
        """Run a ``with`` block in the first process before the others run it; says whether this is the first."""
        if self.state is None:
            yield True
            return
        with self.state.main_process_first():
            yield bool(self.state.is_main_process)
        self.state.destroy_process_group()  # each process may end before the others from here on


def launched_process(device: str) -> Process:
    """The process as `accelerate launch` or `torchrun` started it; the only one where neither did.

    Args:
        device: the value of --device.

    Raises:
        ValueError: there are several processes and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Process()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ValueError(f"several processes need accelerate ({error}): pip install accelerate") from error
    state = PartialState(cpu=device == "cpu" or (device == "auto" and default_device() == "cpu"))
    return Process(state.process_index, state.num_processes, str(state.device), state)


def generate_videos(options: argparse.Namespace) -> int:
    """Make every video of a file into a folder."""
    from ..jobs.batch import BatchSettings, VideosFolder, make_videos, number_videos
    from ..video import estimate_bytes, probe_output

    _check(options)
    folder = VideosFolder(options.output, options.format)
    videos = number_videos(read_videos(options.videos, options.clips, DEFAULT_CLIPS), options.seed)
    probe = folder.output(len(videos))  # a name that no video has
    probe_output(probe, fps=options.fps)
    process = launched_process(options.device)
    if process.device is not None and options.device == "auto":
        options.device = process.device
    pipe, defaults = load(options)
    sampling = sampling_settings(options, defaults, pipe)
    fps = fps_of(options, defaults)
    batch = BatchSettings(
        pipe,
        sampling,
        fps,
        lambda plan: video_metadata(pipe, plan, fps, options),
        options.keep_states,
        process.index,
        process.count,
    )
    pipe.check_sampling(sampling, len(videos[0].prompts))
    missing = [video for video in videos if options.restart or not folder.is_finished(video.index)]
    frames = sum(batch.plan(video).num_frames for video in missing)
    probe_output(probe, estimate_bytes(probe, frames, sampling.height, sampling.width), fps)
    with process.main_first() as is_first:
        folder.open(batch.made(videos), videos, redo=options.redo, restart=options.restart and is_first)
    finished = sum(folder.is_finished(video.index) for video in videos)
    if is_first and finished:
        say(f"{finished} of {len(videos)} videos are finished in {folder.path}")
    pipe.set_progress_bar_config(disable=True if options.quiet or not is_first else None, leave=False)
    prefix = f"process {process.index}: " if process.count > 1 else ""
    with stop_on_signal() as should_stop:
        result = make_videos(folder, videos, batch, should_stop, lambda text: say(prefix + text))
    say(
        f"{prefix}made {result.made} of {len(videos)} videos, {result.skipped} were finished or made by other processes"
    )
    if result.stopped:
        say(f"stopped; what is finished was kept. {run_again(options)} to continue")
        return INTERRUPTED
    if result.failures:
        say(f"error: videos {', '.join(map(str, result.failures))} failed. {run_again(options)} to try them again")
        return FAILED
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("prompt", "prompts", "state", "contact_sheet", "clip_seed", "start_image", "end_image", "loop"):
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} goes with one video and not with --videos; leave it out")
    if Path(options.output).suffix:
        raise ValueError(
            f"--output {options.output} looks like a file; --videos needs a folder, and --format says what is in it"
        )
