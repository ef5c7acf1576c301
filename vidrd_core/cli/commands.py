"""The commands that make videos and model folders, and ``vidrd info``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .extending import extended_plan
from .goals import check_given, goals_of
from .inputs import DEFAULT_CLIPS, check_clip_seeds, read_prompts, repeat_last, sampling_settings
from .loading import fps_of, load, loading_of_state, stored_fps
from .models import model_path
from .outputs import check_outputs
from .running import advice_for, run, say, start

if TYPE_CHECKING:
    from ..jobs.folder import JobFolder


def generate(options: argparse.Namespace) -> int:
    """Make a video, or continue one that was stopped; or make many."""
    if options.videos:
        from .videos import generate_videos

        return generate_videos(options)
    from ..jobs.folder import JobFolder, default_folder
    from ..jobs.job import Plan

    prompts = read_prompts(options.prompt, options.prompts)
    prompts = repeat_last(prompts, _number_of_clips(options.clips, prompts))
    clip_seeds = dict(options.clip_seed)
    check_clip_seeds(clip_seeds, len(prompts))
    check_given(options)
    check_outputs(options)
    folder = JobFolder(options.state or default_folder(options.output))
    pipe, defaults = load(options)
    sampling, fps = sampling_settings(options, defaults, pipe), fps_of(options, defaults)
    plan = Plan(prompts, sampling, options.seed, clip_seeds, goals=goals_of(options, pipe, sampling))
    return start(pipe, folder, plan, options, fps)


def extend(options: argparse.Namespace) -> int:
    """Make more clips of a video: of a state folder, or from a single state file."""
    from ..jobs.folder import JobError, JobFolder, default_folder
    from ..jobs.job import Plan, check_job, open_job
    from ..sampling.state import VideoState

    source = Path(options.source)
    if not source.exists():
        raise JobError(f"{source} does not exist; expected a state folder or a state file (.safetensors)")
    prompts = read_prompts(options.prompt, options.prompts, required=False)
    job = _job_of(source)
    settings = job.read() if job else {}
    if source.is_dir() and options.state:
        raise JobError(f"--state {options.state} does not go with a state folder: {source} itself is extended")
    check_outputs(options)
    state = None if source.is_dir() else VideoState.load(source)
    loading = loading_of_state(options, source, settings, state)
    pipe, defaults = load(options, loading, settings)
    fps = fps_of(options, {**defaults, **stored_fps(settings)})
    if state is None:
        assert job is not None  # _job_of raises for a folder that is none
        with job.locked():
            plan, before = extended_plan(job, prompts, options.clips)
            check_job(pipe, plan, job.path, options.output, fps)
            # Only clips after the video that is extended can differ: an earlier job left them.
            open_job(job.path, pipe, plan, redo=True, advice=advice_for("extend"))
            job.write(extended_from=before)
            return run(pipe, job, plan, options, fps)
    number = options.clips or max(1, len(prompts))
    plan = Plan(repeat_last(prompts or [state.prompt], number), state.sampling, start=state)
    folder = JobFolder(options.state or default_folder(options.output))
    check_job(pipe, plan, folder.path, options.output, fps)
    with folder.locked():
        open_job(folder.path, pipe, plan, advice=advice_for("extend from a file"))
        folder.write(loading=loading)
        return run(pipe, folder, plan, options, fps)


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
    """Describe files and folders."""
    from .describe import describe

    for path in options.path:
        sys.stdout.write(describe(model_path(path)) + "\n")
    return 0


def _job_of(source: Path) -> JobFolder | None:
    """The state folder that ``source`` is, or in which it lies; None for a state file elsewhere."""
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


def _number_of_clips(clips: int | None, prompts: Sequence[str]) -> int:
    return clips or (len(prompts) if len(prompts) > 1 else DEFAULT_CLIPS)
