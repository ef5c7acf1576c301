"""A long job: a video whose finished clips are kept in a state folder, so that it can be stopped at any moment.

The same call, made again after a crash, continues after the last finished clip, and its video is bit-identical to that
of an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..models.fingerprints import same_model
from ..pipeline import Goals, VidRDPipeline
from ..sampling.schedulers import scheduler_context
from ..sampling.seeds import clip_seed
from ..sampling.settings import SamplingSettings
from ..sampling.state import Clip, VideoState
from .folder import SETTINGS, JobError, JobFolder, latents_digest

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from ..video import VideoWriter

logger = logging.getLogger(__name__)

MODELS = ("unet", "vae", "text_encoder")  # of a pipeline, known by their fingerprints
TEXT_DTYPE = "text_encoder_dtype"


@dataclass(frozen=True)
class Advice:
    """What a caller can do about a folder of other settings, and about one whose clips differ; it ends the message."""

    settings: str = "Set them back or choose another state folder"
    clips: str = "Set it back, choose another state folder, or open the job with redo"


@dataclass(frozen=True)
class Plan:
    """A video to be made.

    Args:
        prompts: one per clip. Where all clips still to be made have the prompt of the clip before, its stored text
            states are used, so that a video made from a user's own text states, whose prompt is "", can be continued.
        sampling: how clips are sampled.
        seed: from which the clips' seeds are derived.
        clip_seeds: clip index -> a seed that replaces the derived one.
        start: the state of another video that this one continues; clip indices count on from there.
        goals: what its first and last frames are to be.
    """

    prompts: Sequence[str]
    sampling: SamplingSettings
    seed: int = 0
    clip_seeds: Mapping[int, int] = field(default_factory=dict)
    start: VideoState | None = None
    goals: Goals = field(default_factory=Goals)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("the plan has no prompts; give one per clip")

    @property
    def first(self) -> int:
        """Index of the first clip."""
        return 0 if self.start is None else self.start.clip_index + 1

    @property
    def last(self) -> int:
        """Index of the last clip."""
        return self.first + len(self.prompts) - 1

    @property
    def num_frames(self) -> int:
        """Frames of the whole video; of a loop that is not made yet, as many as they can be."""
        sampling = self.sampling
        return self.goals.num_added(len(self.prompts), sampling.num_frames, sampling.reuse, self.start is None)

    def first_clips(self, number: int) -> Plan:
        """The plan of the first clips alone; the end, which is the last clip's goal, is not one of fewer."""
        goals = self.goals if number == len(self.prompts) else self.goals.without_end()
        return replace(self, prompts=self.prompts[:number], goals=goals)

    def beginning(self, num_frames: int) -> Plan:
        """The plan without the clips that the first ``num_frames`` frames of the video show nothing of."""
        number = 1
        while number < len(self.prompts) and self.first_clips(number).num_frames < num_frames:
            number += 1
        return self.first_clips(number)

    def goal_of(self, index: int) -> str:
        """A text that tells the goals of a clip apart; "" where it has none."""
        return self.goals.describe(index == 0, index == self.last, self.sampling.reuse, self.sampling.num_frames)

    def as_made(self, folder: JobFolder) -> Plan:
        """The plan, of a loop that is finished with as many frames as it was made with."""
        if not self.goals.loop or self.num_finished(folder) < len(self.prompts):
            return self
        return replace(self, goals=replace(self.goals, repeated=folder.load(self.last).skipped[1]))

    def num_finished(self, folder: JobFolder) -> int:
        """How many of the plan's clips are in its folder, counted from the first."""
        return min(folder.num_finished(), len(self.prompts))

    def seed_of(self, index: int) -> int:
        chosen = self.clip_seeds.get(index)
        return clip_seed(self.base_seed, index) if chosen is None else chosen

    @property
    def base_seed(self) -> int:
        return self.seed if self.start is None else self.start.seeds[0]


def made_with(pipe: VidRDPipeline, plan: Plan) -> dict[str, Any]:
    """What all clips of a job share; a clip made with anything else would not fit the others."""
    models = {name: pipe.fingerprint_of(name) for name in MODELS if getattr(pipe, name) is not None}
    stored = next(parameter.dtype for parameter in pipe.unet.parameters() if parameter.ndim > 1)
    storage = {} if stored == pipe.unet.dtype else {"storage": str(stored).removeprefix("torch.")}
    return {
        "seed": plan.base_seed,
        "sampling": plan.sampling.to_json(),
        "scheduler": scheduler_context(pipe.scheduler),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        **storage,
        **({} if pipe.text_encoder is None else {TEXT_DTYPE: str(pipe.text_encoder.dtype).removeprefix("torch.")}),
        "start": None if plan.start is None else _digest(plan.start),
        **models,
    }


START = "v3"  # marks a digest of all of a start state; earlier versions' were of its noise alone, or had other names


def _digest(state: VideoState) -> str:
    """A hash of all that decides what follows a state but its model, which is compared by itself."""
    past = state.trajectory
    settings = {
        "sampling": state.sampling.to_json(),
        "num_joined": state.num_joined,
        "seeds": state.seeds,
        "clip_index": state.clip_index,
        "prompt": state.prompt,
        "trajectory": past.metadata(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    tensors = {"tail": state.tail, "text": state.text, "negative": state.negative, **past.tensors()}
    for name, tensor in tensors.items():
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{START}:{digest.hexdigest()[:32]}"


def check_job(pipe: VidRDPipeline, plan: Plan, folder: str | Path, output: str | os.PathLike[str], fps: float) -> None:
    """Find out whether a job can be made before anything is changed, so that a refused setting costs no finished clip.

    Raises:
        ValueError: a setting cannot be; the message names it.
        OSError: the state folder cannot be written, or a disk is too small.
    """
    from ..video import estimate_bytes, probe_output

    sampling = plan.sampling
    pipe.check_sampling(sampling, len(plan.prompts), plan.start, plan.goals)
    probe_output(output, estimate_bytes(output, plan.num_frames, sampling.height, sampling.width), fps)
    check_space(folder, pipe, plan)


def open_job(
    path: str | Path, pipe: VidRDPipeline, plan: Plan, redo: bool = False, advice: Advice | None = None
) -> JobFolder:
    """Begin a job in a new folder, or continue the one in it; without a finished clip, its settings do not matter.

    Args:
        redo: make clips again from the first one on whose prompt or seed differs, instead of refusing.
        advice: what the caller can do about a folder that is refused.

    Raises:
        JobError: the folder's clips were made with other settings.
    """
    folder, advice = JobFolder(path), advice or Advice()
    settings, made = folder.read(), made_with(pipe, plan)
    if not settings and folder.num_finished():
        raise JobError(
            f"{folder.path} holds clips but no {SETTINGS}, so what they were made with is not known. Put that file "
            "back, delete the folder or choose another"
        )
    if not folder.num_finished():
        if folder.clip_path(plan.first).is_file() and folder.state_path(plan.first).is_file():
            first = settings.get("first", 0)
            raise JobError(
                f"{folder.path / SETTINGS} says that the clips begin at {first}, but clip {plan.first} is there. Put "
                "the right file back, delete the folder or choose another"
            )
        folder.clear()
        settings = {}
    if settings:
        before = {**settings["made"], "start": _known_start(folder, settings["made"].get("start"))}
        differences = compare(before, json.loads(json.dumps(made)))
        if settings.get("first", 0) != plan.first:
            differences.insert(0, f"it begins at clip {settings.get('first', 0)} and not at {plan.first}")
        if differences:
            raise JobError(f"{folder.path} was made with other settings: {'; '.join(differences)}. {advice.settings}")
    factor, sampling = pipe.vae.spatial_factor, plan.sampling
    size = (sampling.num_frames, sampling.height // factor, sampling.width // factor)
    changed = _first_changed_clip(folder, plan, size)
    if changed is not None:
        index, difference = changed
        if not redo:
            raise JobError(f"{folder.path}: clip {index} {difference}. {advice.clips}")
        folder.drop_from(index)
    if not settings and plan.start is not None:
        plan.start.save(folder.start_path)
    folder.write(made=made, first=plan.first)
    return folder


def _known_start(folder: JobFolder, digest: str | None) -> str | None:
    """The digest of the state that a folder's clips continue, also where it is an earlier version's.

    The first were of the noise alone, which other videos of the same seed share; the folder holds the state itself.

    Raises:
        JobError: it no longer does.
    """
    if digest is None or digest.startswith(f"{START}:"):
        return digest
    try:
        return _digest(VideoState.load(folder.start_path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"{folder.path} was begun by an earlier version, and which state its clips continue is not known without "
            f"{folder.start_path.name} ({error}). Put that file back or choose another state folder; the clips stay"
        ) from error


def compare(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences of two nested settings, in words."""
    differences = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if key == TEXT_DTYPE and key not in before:  # earlier versions did not keep it
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if key == "scheduler" and old.get(key) != new.get(key):  # all else follows from that
                old, new = ({key: settings.get(key)} for settings in (old, new))
            differences += compare(old, new, f"{key} " if key == "scheduler" else "")
        elif key in MODELS and isinstance(old, str) and isinstance(new, str) and same_model(old, new):
            continue
        elif old != new:
            is_model = key in (*MODELS, "start")
            differences.append(f"the {key} is another one" if is_model else f"{prefix}{key} was {old!r} and is {new!r}")
    return differences


def _first_changed_clip(folder: JobFolder, plan: Plan, size: Sequence[int]) -> tuple[int, str] | None:
    """The first finished clip that is not the plan's, and how it differs; ``size`` of latents: ``[N, h, w]``."""
    before: Clip | None = None
    for number, prompt in enumerate(plan.prompts[: folder.num_finished()]):
        index = plan.first + number
        clip, after = folder.load_linked(index)
        found = list(clip.latents.shape[2:])
        if clip.prompt != prompt:
            return index, f"was made with the prompt {clip.prompt!r}, not {prompt!r}"
        if clip.seeds != [plan.seed_of(index)]:
            return index, f"was made with the seed {clip.seeds[0]}, not {plan.seed_of(index)}"
        if clip.goal != plan.goal_of(index):
            return index, f"was made with {clip.goal or 'no goal'}, not {plan.goal_of(index) or 'no goal'}"
        if clip.index != index or found != list(size):
            return index, f"is another video's: it says clip {clip.index}, latents {found}, not {index}, {list(size)}"
        if before is not None and after not in (None, latents_digest(before)):
            return index, f"did not continue clip {index - 1} as it is now: one of the two is another video's or edited"
        before = clip
    return None


def _check_state(state: VideoState, clip: Clip, end: torch.Tensor, folder: JobFolder, plan: Plan) -> None:
    """Raise :class:`JobError` unless ``state`` is the one after ``clip``, the last finished one of the plan's video.

    Args:
        end: the last latents of the video so far, ``[B, C, T, h, w]``.
    """
    frames = min(end.shape[2], state.tail.shape[2])
    same = (
        (state.clip_index, state.prompt, state.seeds) == (clip.index, clip.prompt, [plan.base_seed])
        and compare(state.sampling.to_json(), plan.sampling.to_json()) == []
        and torch.equal(state.tail[:, :, -frames:].float(), end[:, :, -frames:].float())
    )
    if not same:
        raise JobError(
            f"{folder.state_path(clip.index)} is not the state after clip {clip.index} of this video: it says clip "
            f"{state.clip_index}, prompt {state.prompt!r}, seed {state.seeds}, or was edited. Put the right file back, "
            f"or delete it and {folder.clip_path(clip.index).name} to make the clip again"
        )


def make_clips(
    pipe: VidRDPipeline, folder: JobFolder, plan: Plan, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Clip]:
    """Yield all clips of a job in order: the finished ones from the folder, the others as they are made and saved.

    Args:
        should_stop: asked after every denoising step; once it says True no more clips are made. Those that are
            finished come nevertheless, so that a video never gets shorter.
    """
    finished = plan.num_finished(folder)
    clip: Clip | None = None
    end = None if plan.start is None else plan.start.tail
    for number in range(finished):
        clip = folder.load(plan.first + number)
        joined = clip.joined(plan.sampling.reuse)
        end = joined if end is None else torch.cat((end, joined), dim=2)[:, :, -2 * plan.sampling.num_frames :]
        yield clip
    if finished == len(plan.prompts) or should_stop():
        return

    def on_step(running: Any, *_: Any) -> None:
        running.interrupt = should_stop()

    state = folder.load_state(plan.first + finished - 1) if finished else plan.start
    if state is not None and clip is not None and end is not None:
        _check_state(state, clip, end, folder, plan)
    if state is not None:
        state.check_model(pipe.fingerprint_of("unet"))
    if finished:
        logger.info("continuing after %d finished clips in %s", finished, folder.path)
    folder.drop_from(plan.first + finished)  # clips behind a gap continued another clip
    rest = range(finished, len(plan.prompts))
    prompts = [plan.prompts[number] for number in rest]
    stream = pipe.stream(
        None if state is not None and set(prompts) == {state.prompt} else prompts,
        plan.sampling,
        len(rest),
        state=state,
        seed=plan.base_seed,
        clip_seeds=[plan.clip_seeds.get(plan.first + number) for number in rest],
        callback_on_step_end=on_step,
        goals=plan.goals,
        beginning=folder.load(0).latents if finished and plan.first == 0 else None,
    )
    for clip in stream:
        folder.save(clip)
        clip.state = None
        yield clip
        if should_stop():
            return


@dataclass
class JobResult:
    """How far a job came."""

    clips: int  # in the video
    planned: int
    frames: int  # in the video
    sheet: Image | None = None
    frames_around: int = 0  # of other videos, before and after these

    @property
    def is_complete(self) -> bool:
        return self.clips == self.planned


def run_job(
    pipe: VidRDPipeline,
    folder: JobFolder,
    plan: Plan,
    output: str | Path,
    fps: float,
    *,
    metadata: Callable[[Plan], Mapping[str, Any]] | None = None,
    with_sheet: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    around: tuple[Iterable[np.ndarray], Iterable[np.ndarray]] = ((), ()),
) -> JobResult:
    """Make the clips that are missing and write the video of all, in memory that does not grow with their number.

    Stopped early, it writes what is finished. Where nothing is, no video is written and ``clips`` is 0.

    Args:
        output, fps: as for :class:`vidrd_core.video.VideoWriter`.
        metadata: gives what the file says about how a plan's video was made: the whole one, or as far as it came. The
            number of its frames is added.
        with_sheet: also make a contact sheet.
        should_stop: asked after every denoising step; True stops.
        around: frames of other videos, uint8 ``[T, H, W, 3]`` each, that are written before these and, once all are
            there, after them.
    """
    from ..video import VideoWriter, to_uint8

    plan = plan.as_made(folder)
    folder.write(complete=False, planned=list(plan.prompts), fps=fps)
    result = JobResult(0, len(plan.prompts), 0)
    rows = _SheetRows(plan) if with_sheet else None
    finished = plan.num_finished(folder)
    finished_frames = plan.first_clips(finished).num_frames if finished else 0

    def described(num_frames: int) -> dict[str, Any] | None:
        return None if metadata is None else {**metadata(plan.beginning(num_frames)), "frames": num_frames}

    def counted(clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            result.clips += 1
            yield clip

    @contextmanager
    def writing() -> Iterator[VideoWriter]:
        with VideoWriter(output, fps, metadata=described(plan.num_frames)) as writer:
            try:
                yield writer
            finally:  # whatever happens, frames that were written stay playable
                if result.frames < finished_frames and Path(output).exists():
                    writer.discard()
                elif result.frames < plan.num_frames and (shorter := described(result.frames)) is not None:
                    writer.describe(shorter)

    pieces = pipe.decode_clips(counted(make_clips(pipe, folder, plan, should_stop)), plan.sampling, plan.start)
    with ExitStack() as stack:
        writer: VideoWriter | None = None
        for piece in pieces:
            frames = to_uint8(piece)
            if writer is None:  # no file before there are frames
                writer = stack.enter_context(writing())
                result.frames_around += _written(writer, around[0])
            writer.write(frames)
            result.frames += len(frames)
            if rows is not None:
                rows.add(frames)
        if writer is not None and result.is_complete and result.frames == plan.num_frames:
            result.frames_around += _written(writer, around[1])
            if around != ((), ()) and (whole := described(result.frames)) is not None:
                writer.describe({**whole, "frames": result.frames + result.frames_around})
    if rows is not None and result.clips:
        result.sheet = rows.render()
    if result.is_complete:
        folder.write(complete=True)
    return result


def _written(writer: VideoWriter, pieces: Iterable[np.ndarray]) -> int:
    """Write frames; how many they are."""
    before = writer.frames_written
    for frames in pieces:
        writer.write(frames)
    return writer.frames_written - before


class _SheetRows:
    """Cuts a stream of frames into the rows of a contact sheet, one per clip."""

    def __init__(self, plan: Plan):
        from ..video import ContactSheet

        self._sheet = ContactSheet()
        self._plan = plan
        self._row = 0
        self._frames: list[np.ndarray] = []

    def add(self, frames: np.ndarray) -> None:
        for frame in frames:
            self._frames.append(frame)
            if len(self._frames) == self._row_length():
                self._finish_row()

    def render(self) -> Image:
        if self._frames:
            self._finish_row()
        return self._sheet.render()

    def _row_length(self) -> int:
        sampling, goals = self._plan.sampling, self._plan.goals
        whole = self._row == 0 and self._plan.start is None
        is_last = self._row + 1 == len(self._plan.prompts)
        trimmed = 0 if whole else goals.reuse_of(sampling.reuse, is_last, sampling.num_frames).trim_frames
        return sampling.num_frames - trimmed - sum(goals.skipped(whole, is_last))

    def _finish_row(self) -> None:
        import numpy as np

        self._sheet.add_row(np.stack(self._frames), self._plan.prompts[self._row])
        self._row += 1
        self._frames = []


def check_space(folder: str | Path, pipe: VidRDPipeline, plan: Plan) -> None:
    """Raise ``OSError`` where the state folder cannot be written or its disk is too small for the job."""
    path = Path(folder)
    sampling, factor = plan.sampling, pipe.vae.spatial_factor
    # Latents, noise, the tail of up to two clips; and the guided states.
    frames = 4 * sampling.num_frames + sampling.reuse.overlap_frames * max(
        sampling.reuse.steered_steps(sampling.num_inference_steps), default=0
    )
    frame_bytes = 4 * pipe.unet.config["in_channels"] * (sampling.height // factor) * (sampling.width // factor)
    needed = len(plan.prompts) * (frames * frame_bytes + (1 << 20))
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{path}: up to {needed / 2**20:.0f} MiB are needed for the clips' states but the disk has "
            f"{free / 2**20:.0f} MiB left; free some space or choose another state folder"
        )
    trial = path / f"{SETTINGS}.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: the state folder cannot be written ({error.strerror or error}); choose another one"
        ) from error
