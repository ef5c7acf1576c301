"""Run a job for a command: progress, what the video says about itself, Ctrl-C, and messages."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .loading import absolute, loading_of_options
from .outputs import save_image

if TYPE_CHECKING:
    from ..jobs.folder import JobFolder
    from ..jobs.job import Advice, Plan
    from ..pipeline import VidRDPipeline

FAILED, INTERRUPTED = 1, 130  # exit codes; 2 is argparse's, for a wrong command line


def start(
    pipe: VidRDPipeline,
    folder: JobFolder,
    plan: Plan,
    options: argparse.Namespace,
    fps: float,
    around: tuple[Iterable[Any], Iterable[Any]] = ((), ()),
) -> int:
    """:func:`run` in a state folder that the options begin, or go on with; returns the exit code.

    Raises:
        ValueError: the video cannot be made or written, or the folder is another one's.
    """
    from ..jobs.job import check_job, open_job

    check_job(pipe, plan, folder.path, options.output, fps)
    with folder.locked():
        if options.restart:
            folder.clear()
        open_job(folder.path, pipe, plan, options.redo, advice_for("generate"))
        folder.write(loading=absolute(loading_of_options(options)), extended_from=None)
        return run(pipe, folder, plan, options, fps, around)


def run(
    pipe: VidRDPipeline,
    folder: JobFolder,
    plan: Plan,
    options: argparse.Namespace,
    fps: float,
    around: tuple[Iterable[Any], Iterable[Any]] = ((), ()),
) -> int:
    """Make the clips that are missing and write the video; returns the exit code.

    Args:
        around: frames of other videos before and after it, as of :func:`vidrd_core.jobs.job.run_job`.

    Raises:
        ValueError: another process writes the same video.
    """
    from ..files import alone

    output = Path(options.output)
    with alone(output.with_name(f"{output.name}.lock"), f"write {output}"):
        return _run(pipe, folder, plan, options, fps, around)


def _run(
    pipe: VidRDPipeline,
    folder: JobFolder,
    plan: Plan,
    options: argparse.Namespace,
    fps: float,
    around: tuple[Iterable[Any], Iterable[Any]],
) -> int:
    from ..jobs.job import run_job

    finished = plan.num_finished(folder)
    if finished:
        say(f"{finished} of {len(plan.prompts)} clips are finished in {folder.path}")
    # None: progress bars in a terminal, none in a log file.
    pipe.set_progress_bar_config(disable=True if options.quiet else None, leave=False)

    def metadata(written: Plan) -> dict[str, Any]:
        return video_metadata(pipe, written, fps, options)

    with_sheet = options.contact_sheet is not None
    with stop_on_signal() as should_stop:
        result = run_job(
            pipe, folder, plan, options.output, fps, metadata=metadata, with_sheet=with_sheet, should_stop=should_stop,
            around=around,
        )  # fmt: skip
    if result.sheet is not None:
        save_image(result.sheet, Path(options.contact_sheet))
        say(f"wrote {options.contact_sheet}")
    if result.clips:
        frames = result.frames + result.frames_around
        say(f"wrote {options.output}: {result.clips} clips, {frames} frames, {frames / fps:.1f} s")
    if result.is_complete:
        return 0
    kept = "what is finished was kept" if result.clips else "no clip was finished"
    say(f"stopped after {result.clips} of {result.planned} clips; {kept}. {run_again(options)} to continue")
    return INTERRUPTED


def run_again(options: argparse.Namespace) -> str:
    """What to do after a stop: the same command, but without --restart, which would delete the finished clips."""
    return "Run the same command again" + (" without --restart" if getattr(options, "restart", False) else "")


def video_metadata(pipe: VidRDPipeline, plan: Plan, fps: float, options: argparse.Namespace) -> dict[str, Any]:
    """What the video file says about how it was made; the same job always gives the same text."""
    import diffusers
    import torch

    from ..models.fingerprints import short_name
    from ..sampling.schedulers import scheduler_context

    sampler = scheduler_context(pipe.scheduler)
    return {
        "software": f"vidrd {__version__}",
        "versions": {"vidrd": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "model": {
            "name": Path(str(options.model)).name if options.model else None,
            "unet": short_name(pipe.fingerprint_of("unet")),
        },
        "scheduler": sampler.pop("scheduler"),
        "scheduler_settings": sampler,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "seed": plan.base_seed,
        "clips": [
            {"prompt": prompt, "seed": plan.seed_of(plan.first + number)} for number, prompt in enumerate(plan.prompts)
        ],
        # Where a bridge's seams are does not follow from its clips alone, so vidrd evaluate finds no "settings" there.
        ("sampling" if plan.goals.joins else "settings"): plan.sampling.to_json(),
        **({"goals": goals_of_video(plan, options)} if plan.goals else {}),
        **({} if plan.start is None else {"first_clip_frames": plan.sampling.num_new_frames}),
        "fps": fps,
    }


def goals_of_video(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """Which frames were given, by the names of their files."""
    names = ("start_image", "end_image", "first", "second")
    given = {name: Path(path).name for name in names if (path := getattr(options, name, None)) is not None}
    return {**given, "loop": plan.goals.loop, "joins": plan.goals.joins}


def advice_for(command: str) -> Advice:
    """What a user of a command can do about a state folder that does not fit."""
    from ..jobs.job import Advice

    if command == "generate":
        return Advice(
            "Set them back, choose another --output or --state, or start over with --restart",
            "Set it back, choose another --output or --state, make the clips from there on again with --redo, or start "
            "over with --restart",
        )
    if command == "extend":
        return Advice("Leave out the options that changed them, or name the model that made the video with --model")
    advice = "Choose another --output or --state, or delete that folder"
    return Advice(advice, advice)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (SIGINT) or SIGTERM asks to stop after the current step; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set
        return

    def on_signal(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping after this step, finished clips are kept; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    """Write a message to standard error; standard output is for results only."""
    sys.stderr.write(f"vidrd: {text}\n")
    sys.stderr.flush()
