"""The ``vidrd`` command: generate, extend, convert, info, evaluate.

Everything heavy is imported by the command that needs it, so that ``vidrd --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..reuse.presets import find_preset
from .extending import extended_plan
from .inputs import RELEASED, check_clip_seeds, read_prompts, repeat_last, sampling_settings
from .models import DEMO, load_pipeline, model_path
from .outputs import check_outputs, save_image

if TYPE_CHECKING:
    from ..jobs.folder import JobFolder
    from ..jobs.job import Advice, Plan
    from ..pipeline import VidRDPipeline

logger = logging.getLogger(__name__)

DEFAULT_CLIPS = 4
FAILED, INTERRUPTED = 1, 130  # exit codes; 2 is argparse's, for a wrong command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    # Users' mistakes end in one line. What is not theirs keeps its traceback, which is what a report needs.
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        say("stopped")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if options.verbose:
            logger.exception("the traceback, because of --verbose")
        say(f"error: {error}")
        return FAILED
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        say(
            f"error: {error}\nUse --dtype float16, --split-guidance, --offload model, --storage fp8, fewer --frames, "
            "or a smaller --width and --height"
        )
        return FAILED


# -- commands ----------------------------------------------------------------------------------------------------------


def generate(options: argparse.Namespace) -> int:
    """Make a video, or go on with one that was stopped; or many."""
    if options.videos:
        from .videos import generate_videos

        return generate_videos(options)
    from ..jobs.folder import JobFolder, default_folder
    from ..jobs.job import Plan, check_job, open_job

    prompts = read_prompts(options.prompt, options.prompts)
    prompts = repeat_last(prompts, _number_of_clips(options.clips, prompts))
    clip_seeds = dict(options.clip_seed)
    check_clip_seeds(clip_seeds, len(prompts))
    check_outputs(options)
    folder = JobFolder(options.state or default_folder(options.output))
    pipe, defaults = load(options)
    sampling, fps = sampling_settings(options, defaults, pipe), fps_of(options, defaults)
    plan = Plan(prompts, sampling, options.seed, clip_seeds)
    check_job(pipe, plan, folder.path, options.output, fps)
    with folder.locked():
        if options.restart:
            folder.clear()
        open_job(folder.path, pipe, plan, options.redo, _advice_for("generate"))
        folder.write(loading=_absolute(_loading(options)), extended_from=None)
        return _run(pipe, folder, plan, options, fps)


def extend(options: argparse.Namespace) -> int:
    """Make more clips of a video: of a state folder, or from a single state file."""
    from ..jobs.folder import JobError, JobFolder, default_folder
    from ..jobs.job import Plan, check_job, open_job
    from ..sampling.state import VideoState

    source = Path(options.source)
    if not source.exists():
        raise JobError(f"{source} does not exist; expected a state folder or a state file (.safetensors)")
    prompts = read_prompts(options.prompt, options.prompts, required=False)
    home = _home_of(source)
    settings = home.read() if home else {}
    if source.is_dir() and options.state:
        raise JobError(f"--state {options.state} does not go with a state folder: {source} itself is extended")
    check_outputs(options)
    loading = _loading_of(options, source, settings)
    pipe, defaults = load(options, loading, settings)
    fps = fps_of(options, {**defaults, **_stored_fps(settings)})
    if home is not None and source.is_dir():
        with home.locked():
            plan, before = extended_plan(home, prompts, options.clips)
            check_job(pipe, plan, home.path, options.output, fps)
            # Only clips after the video that is extended can differ: an earlier job left them.
            open_job(home.path, pipe, plan, redo=True, advice=_advice_for("extend"))
            home.write(extended_from=before)
            return _run(pipe, home, plan, options, fps)
    state = VideoState.load(source)
    number = options.clips or max(1, len(prompts))
    plan = Plan(repeat_last(prompts or [state.prompt], number), state.sampling, start=state)
    folder = JobFolder(options.state or default_folder(options.output))
    check_job(pipe, plan, folder.path, options.output, fps)
    with folder.locked():
        open_job(folder.path, pipe, plan, advice=_advice_for("extend from a file"))
        folder.write(loading=loading)
        return _run(pipe, folder, plan, options, fps)


def convert(options: argparse.Namespace) -> int:
    """Write a model folder from checkpoints of any layout."""
    import torch

    from ..checkpoints import convert as convert_checkpoint

    dtype = None if options.dtype == "keep" else getattr(torch, options.dtype)
    sources = options.source if len(options.source) > 1 else options.source[0]
    folder = convert_checkpoint(
        sources, options.output, base=options.base, vae=options.vae, tokenizer=options.tokenizer, dtype=dtype
    )
    say(f"wrote the model folder {folder}")
    return 0


def info(options: argparse.Namespace) -> int:
    """Say what files and folders are."""
    from .describe import describe

    for path in options.path:
        sys.stdout.write(describe(model_path(path)) + "\n")
    return 0


# -- running a job -----------------------------------------------------------------------------------------------------


def _run(pipe: VidRDPipeline, folder: JobFolder, plan: Plan, options: argparse.Namespace, fps: float) -> int:
    from ..jobs.job import run_job

    finished = plan.num_finished(folder)
    if finished:
        say(f"{finished} of {len(plan.prompts)} clips are finished in {folder.path}")
    # One's own bars for loading and denoising, none in a log file.
    pipe.set_progress_bar_config(disable=True if options.quiet else None, leave=False)

    def metadata(made: Plan) -> dict[str, Any]:
        return video_metadata(pipe, made, fps, options)

    with_sheet = options.contact_sheet is not None
    with stop_on_signal() as should_stop:
        result = run_job(
            pipe, folder, plan, options.output, fps, metadata=metadata, with_sheet=with_sheet, should_stop=should_stop
        )
    if result.sheet is not None:
        save_image(result.sheet, Path(options.contact_sheet))
        say(f"wrote {options.contact_sheet}")
    if result.clips:
        say(f"wrote {options.output}: {result.clips} clips, {result.frames} frames, {result.frames / fps:.1f} s")
    if result.is_complete:
        return 0
    kept = "what is finished was kept" if result.clips else "no clip was finished"
    say(f"stopped after {result.clips} of {result.planned} clips; {kept}. {run_again(options)} to go on")
    return INTERRUPTED


def run_again(options: argparse.Namespace) -> str:
    """What to do after a stop: the same command, but one that forgets what is finished would begin anew once more."""
    return "Run the same command again" + (" without --restart" if getattr(options, "restart", False) else "")


def _advice_for(command: str) -> Advice:
    from ..jobs.job import Advice

    if command == "generate":
        return Advice(
            "Set them back, choose another --output or --state, or begin anew with --restart",
            "Set it back, choose another --output or --state, make the clips from there on again with --redo, or begin "
            "anew with --restart",
        )
    if command == "extend":
        return Advice("Leave out the options that changed them, or name the model that made the video with --model")
    advice = "Choose another --output or --state, or delete that folder"
    return Advice(advice, advice)


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
        "settings": plan.sampling.to_json(),
        **({} if plan.start is None else {"first_clip_frames": plan.sampling.num_new_frames}),
        "fps": fps,
    }


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C (and a polite kill) asks to stop after the current step; a second Ctrl-C stops at once."""
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


def _loading_of(options: argparse.Namespace, source: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Which model, scheduler and so on: those that made the video, unless the command names others."""
    loading = dict(settings.get("loading") or {})
    if options.model is not None:
        loading.update(model=options.model, base=options.base, vae=options.vae)
    if options.scheduler is not None:
        loading.update(scheduler=options.scheduler, scheduler_options=None)
    if not loading.get("model"):
        raise ValueError(f"{source} does not say which model made it; name it with --model")
    options.model = loading["model"]
    return _absolute(loading)


def load(
    options: argparse.Namespace, loading: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> tuple[VidRDPipeline, dict[str, Any]]:
    """The pipeline that the options ask for, and its model's defaults.

    Args:
        loading: model, scheduler and so on, where a state folder knows them.
        settings: of that folder.
    """
    from ..runtime.memory import MemoryOptions

    made = (settings or {}).get("made", {})
    storage = options.storage or ("fp8" if "storage" in made else "same")
    memory = MemoryOptions(options.offload, storage, options.split_guidance)
    pipe, defaults = load_pipeline(
        **(_loading(options) if loading is None else loading),
        dtype=_dtype_of(options, settings or {}),
        device=options.device,
        memory=None if memory == MemoryOptions() else memory,
        background_decoding=options.background_decoding,
        compile_mode=options.compile_mode,
    )
    return pipe, defaults


def _loading(options: argparse.Namespace) -> dict[str, Any]:
    """Model and scheduler as ``generate`` was told: a sampler by name goes before the preset's."""
    chosen: dict[str, Any] = {"scheduler": options.scheduler}
    if options.preset and options.scheduler is None:
        preset = find_preset(options.preset)
        chosen = {"scheduler": preset.scheduler, "scheduler_options": dict(preset.scheduler_options) or None}
    return {"model": options.model, "base": options.base, "vae": options.vae, **chosen}


def _dtype_of(options: argparse.Namespace, settings: dict[str, Any]) -> str:
    return settings["made"]["dtype"] if options.dtype == "auto" and "made" in settings else options.dtype


def _home_of(source: Path) -> JobFolder | None:
    """The state folder that ``source`` is, or lies in."""
    from ..jobs.folder import JobError, JobFolder

    if source.is_dir():
        folder = JobFolder(source)
        if not folder.read():
            raise JobError(f"{source} is no state folder: settings.json is missing")
        return folder
    try:
        folder = JobFolder(source.parent)
        return folder if folder.read() else None
    except JobError:  # a state file may lie anywhere
        return None


def _stored_fps(settings: dict[str, Any]) -> dict[str, float]:
    return {"fps": settings["fps"]} if "fps" in settings else {}


def _absolute(loading: dict[str, Any]) -> dict[str, Any]:
    """Paths that still hold when the command is called from another folder."""
    kept = {k: v for k, v in loading.items() if v is not None}
    return {k: v if k not in ("model", "base", "vae") or v == DEMO else os.path.abspath(v) for k, v in kept.items()}


# -- small parts -------------------------------------------------------------------------------------------------------


def _number_of_clips(clips: int | None, prompts: Sequence[str]) -> int:
    return clips or (len(prompts) if len(prompts) > 1 else DEFAULT_CLIPS)


def fps_of(options: argparse.Namespace, defaults: dict[str, Any]) -> float:
    return float(options.fps if options.fps is not None else {**RELEASED, **defaults}["fps"])


def say(text: str) -> None:
    """Tell the user; standard output is for results only."""
    sys.stderr.write(f"vidrd: {text}\n")
    sys.stderr.flush()


# -- the command line --------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from .evaluate import evaluate
    from .parser import build

    return build(generate=generate, extend=extend, convert=convert, info=info, evaluate=evaluate)
