"""Which clips ``vidrd extend`` makes of a state folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .inputs import repeat_last

if TYPE_CHECKING:
    from ..jobs.folder import JobFolder
    from ..jobs.job import Plan


def extended_plan(folder: JobFolder, prompts: Sequence[str], clips: int | None) -> tuple[Plan, int]:
    """The plan of a state folder's video with more clips, and how many it had before.

    An extension that was interrupted is continued, not made twice.

    Raises:
        JobError: the folder has no clip, or an unfinished job of another kind.
    """
    from ..jobs.folder import JobError
    from ..jobs.job import Plan
    from ..sampling.settings import SamplingSettings
    from ..sampling.state import VideoState

    settings = folder.read()
    if not folder.num_finished():
        raise JobError(f"{folder.path} has no finished clip to continue; generate a video first")
    number = clips or max(1, len(prompts))
    base = _clips_before(folder, settings, prompts, number)
    made, first = settings["made"], settings["first"]
    kept = [folder.load(first + n) for n in range(base)]
    texts = [clip.prompt for clip in kept]
    if any(clip.goal for clip in kept):
        raise JobError(
            f"{folder.path} has clips that were steered to given frames "
            f"({next(clip.goal for clip in kept if clip.goal)}), which are not kept in it: extend the state file "
            f"{folder.state_path(first + base - 1)} instead"
        )
    start = VideoState.load(folder.start_path) if folder.start_path.is_file() else None
    plan = Plan(
        [*texts, *repeat_last(prompts or texts[-1:], number)],
        SamplingSettings.from_json(made["sampling"]),
        made["seed"],
        start=start,
    )
    # Seeds that a user chose are in the clips; a folder does not list them a second time.
    chosen = {clip.index: clip.seeds[0] for clip in kept if clip.seeds[0] != plan.seed_of(clip.index)}
    return replace(plan, clip_seeds=chosen), base


def _clips_before(folder: JobFolder, settings: dict[str, Any], prompts: Sequence[str], number: int) -> int:
    """How many clips the video has that is extended: those of the last job, whatever else the folder still holds."""
    from ..jobs.folder import JobError

    finished = folder.num_finished()
    planned = settings.get("planned") or [""] * finished
    begun = settings.get("extended_from")
    if settings.get("complete") and finished >= len(planned):
        return len(planned)
    if begun is not None and planned[begun:] == repeat_last(prompts or [planned[begun - 1]], number):
        return int(begun)
    if finished >= len(planned):  # only its file was not finished
        return len(planned)
    raise JobError(
        f"{folder.path} has an unfinished job ({finished} of {len(planned)} clips): finish it with the command that "
        f"began it, or extend the state file {folder.state_path(settings['first'] + finished - 1)}"
    )
