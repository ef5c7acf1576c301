"""A long job: a video whose finished clips are kept in a state folder, so that it can be stopped at any moment.

The folder holds ``settings.json`` (what the clips were made with), and for each finished clip its latents
(``clip_00000.safetensors``) and what the next clip goes on from (``state_00000.safetensors``, for
:meth:`VideoState.load`).
Every file appears whole or not at all, and a clip counts once its latents are there. So the same call, made again after
a crash, goes on after the last finished clip, and its video is the one that an unbroken run would have written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .denoising import ALWAYS, Interval, check_interval, interval_context, interval_of
from .pipeline import VidRDPipeline
from .schedulers import scheduler_context
from .seeds import clip_seed
from .state import Clip, SamplingSettings, VideoState, read_tensors, sync_and_replace, write_tensors

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

logger = logging.getLogger(__name__)

SETTINGS_FORMAT = "vidrd-job-1"
CLIP_FORMAT = "vidrd-clip-1"
SETTINGS = "settings.json"
OWN_FILES = re.compile(r"(settings\.json|(clip|state)_\d{5,}\.safetensors|start\.safetensors)(\.partial)?")


class JobError(ValueError):
    """A state folder does not fit what is asked of it; the message names the difference and the remedy."""


@dataclass(frozen=True)
class Plan:
    """A video to be made.

    Args:
        prompts: one per clip.
        sampling: how clips are sampled.
        seed: from which the clips' seeds are derived.
        clip_seeds: clip index -> a seed that replaces the derived one.
        start: the state to go on from, of another video; clip indices count on from there.
        guidance_interval: the share of the steps, from and to, in which guidance runs; None: all of them, or those of
            ``start``.
    """

    prompts: Sequence[str]
    sampling: SamplingSettings
    seed: int = 0
    clip_seeds: Mapping[int, int] = field(default_factory=dict)
    start: VideoState | None = None
    guidance_interval: Interval | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("the plan has no prompts; give one per clip")
        check_interval(self.interval)

    @property
    def interval(self) -> Interval:
        """The guidance interval that holds."""
        if self.guidance_interval is not None:
            return self.guidance_interval
        return ALWAYS if self.start is None else interval_of(self.start.trajectory.context)

    @property
    def first(self) -> int:
        """Index of the first clip."""
        return 0 if self.start is None else self.start.clip_index + 1

    def seed_of(self, index: int) -> int:
        chosen = self.clip_seeds.get(index)
        return clip_seed(self.base_seed, index) if chosen is None else chosen

    @property
    def base_seed(self) -> int:
        return self.seed if self.start is None else self.start.seeds[0]


class JobFolder:
    """The state folder of a job.

    Raises:
        JobError: it holds something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"{self.path} is a file; a state folder is a folder, choose another name")
        stranger = next((p.name for p in self._entries() if not OWN_FILES.fullmatch(p.name)), None)
        if stranger is not None and not (self.path / SETTINGS).is_file():
            raise JobError(f"{self.path} holds other files ({stranger}); choose a new or empty folder")

    def _entries(self) -> list[Path]:
        return sorted(self.path.iterdir()) if self.path.is_dir() else []

    def read(self) -> dict[str, Any]:
        """The settings; empty where no job was begun."""
        path = self.path / SETTINGS
        if not path.is_file():
            return {}
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise JobError(f"{path} is broken ({error}); delete the folder or choose another") from error
        if not isinstance(settings, dict) or settings.get("format") != SETTINGS_FORMAT:
            raise JobError(f"{path} is not a VidRD job's ({SETTINGS_FORMAT}); choose another folder")
        return settings

    def write(self, **changes: Any) -> None:
        """Change entries of the settings, at once."""
        self.path.mkdir(parents=True, exist_ok=True)
        settings = {"format": SETTINGS_FORMAT, **self.read(), **changes}
        partial = self.path / f"{SETTINGS}.partial"
        partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        sync_and_replace(partial, self.path / SETTINGS)

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

    def save(self, clip: Clip) -> None:
        """Keep a finished clip: its state first, since the latents are what makes it count."""
        assert clip.state is not None
        clip.state.save(self.state_path(clip.index))
        values = {"index": clip.index, "prompt": clip.prompt, "seeds": clip.seeds}
        metadata = {"format": CLIP_FORMAT, "clip": json.dumps(values, ensure_ascii=False)}
        write_tensors(self.clip_path(clip.index), {"latents": clip.latents}, metadata)

    def load(self, index: int) -> Clip:
        """A finished clip, without its state."""
        path = self.clip_path(index)
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != CLIP_FORMAT:
            raise JobError(f"{path} is not a clip of a VidRD job; delete it, and the clip will be made again")
        return Clip(tensors["latents"], **json.loads(metadata["clip"]))

    def drop_from(self, index: int) -> None:
        """Forget the clips from ``index`` on; the last goes first, so that what remains is always a whole beginning."""
        for path in sorted(self.path.glob("clip_*.safetensors"), reverse=True):
            if path >= self.clip_path(index):
                path.unlink()
                path.with_name(path.name.replace("clip_", "state_")).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything a job wrote here."""
        for path in self._entries():
            if OWN_FILES.fullmatch(path.name) and path.name != SETTINGS:
                path.unlink()
        (self.path / SETTINGS).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete everything a job wrote here, and the folder where nothing else is in it."""
        self.clear()
        if self.path.is_dir() and not self._entries():
            self.path.rmdir()


def made_with(pipe: VidRDPipeline, plan: Plan) -> dict[str, Any]:
    """What all clips of a job share; a clip made with anything else would not fit the others."""
    names = ("unet", "vae", "text_encoder")
    models = {name: pipe.fingerprint_of(name) for name in names if getattr(pipe, name) is not None}
    stored = next(parameter.dtype for parameter in pipe.unet.parameters() if parameter.ndim > 1)
    storage = {} if stored == pipe.unet.dtype else {"storage": str(stored).removeprefix("torch.")}
    return {
        "seed": plan.base_seed,
        "sampling": plan.sampling.to_json(),
        "scheduler": scheduler_context(pipe.scheduler) | interval_context(plan.interval),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        **storage,
        "start": None if plan.start is None else _digest(plan.start),
        **models,
    }


def _digest(state: VideoState) -> str:
    return hashlib.sha256(state.trajectory.noise.contiguous().numpy().tobytes()).hexdigest()[:12]


def open_job(path: str | Path, pipe: VidRDPipeline, plan: Plan, redo: bool = False) -> JobFolder:
    """Begin a job in a new folder, or take up the one that is there.

    Args:
        redo: make clips again from the first one on whose prompt or seed differs, instead of refusing.

    Raises:
        JobError: the folder's clips were made with other settings.
    """
    folder = JobFolder(path)
    settings, made = folder.read(), made_with(pipe, plan)
    if settings:
        differences = compare(settings["made"], json.loads(json.dumps(made)))
        if settings.get("first", 0) != plan.first:
            differences.insert(0, f"it begins at clip {settings.get('first', 0)} and not at {plan.first}")
        if differences:
            raise JobError(
                f"{folder.path} was made with other settings: {'; '.join(differences)}. "
                "Set them back, choose another state folder, or begin anew with --restart"
            )
    changed = _first_changed_clip(folder, plan)
    if changed is not None:
        index, difference = changed
        if not redo:
            raise JobError(
                f"{folder.path}: clip {index} was made with {difference}. Set it back, choose another state "
                "folder, or make the clips from there on again with --redo"
            )
        folder.drop_from(index)
    if not settings and plan.start is not None:
        plan.start.save(folder.start_path)
    folder.write(made=made, first=plan.first)
    return folder


def compare(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences of two nested settings, in words."""
    differences = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differences += compare(old, new, f"{key} " if key == "scheduler" else "")
        elif old != new:
            is_model = key in ("unet", "vae", "text_encoder", "start")
            differences.append(f"the {key} is another one" if is_model else f"{prefix}{key} was {old!r} and is {new!r}")
    return differences


def _first_changed_clip(folder: JobFolder, plan: Plan) -> tuple[int, str] | None:
    for number, prompt in enumerate(plan.prompts[: folder.num_finished()]):
        index = plan.first + number
        clip = folder.load(index)
        if clip.prompt != prompt:
            return index, f"the prompt {clip.prompt!r}, not {prompt!r}"
        if clip.seeds != [plan.seed_of(index)]:
            return index, f"the seed {clip.seeds[0]}, not {plan.seed_of(index)}"
    return None


def make_clips(
    pipe: VidRDPipeline, folder: JobFolder, plan: Plan, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Clip]:
    """Yield all clips of a job in order: the finished ones from the folder, the others as they are made and saved.

    Args:
        should_stop: asked after every denoising step; once it says True no more clips come.
    """
    finished = min(folder.num_finished(), len(plan.prompts))
    for number in range(finished):
        if should_stop():
            return
        yield folder.load(plan.first + number)
    if finished == len(plan.prompts) or should_stop():
        return

    def on_step(running: Any, *_: Any) -> None:
        running.interrupt = should_stop()

    state = VideoState.load(folder.state_path(plan.first + finished - 1)) if finished else plan.start
    if state is not None:
        state.check_model(pipe.fingerprint_of("unet"))
    if finished:
        logger.info("going on after %d finished clips in %s", finished, folder.path)
    rest = range(finished, len(plan.prompts))
    stream = pipe.stream(
        [plan.prompts[number] for number in rest],
        plan.sampling,
        len(rest),
        state=state,
        seed=plan.base_seed,
        clip_seeds=[plan.clip_seeds.get(plan.first + number) for number in rest],
        callback_on_step_end=on_step,
        guidance_interval=plan.interval,
    )
    for clip in stream:
        folder.save(clip)
        clip.state = None
        yield clip
        if should_stop():
            return


@dataclass
class JobResult:
    """What became of a job."""

    clips: int  # in the video
    planned: int
    frames: int
    sheet: Image | None = None

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
    metadata: Mapping[str, Any] | None = None,
    with_sheet: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> JobResult:
    """Make the clips that are missing and write the video of all, in memory that does not grow with their number.

    Stopped early, it writes what is finished. Where nothing is, no video is written and ``clips`` is 0.

    Args:
        output, fps, metadata: as for :class:`vidrd_core.video.VideoWriter`.
        with_sheet: also make a contact sheet.
        should_stop: asked after every denoising step; True stops.
    """
    from .video import VideoWriter, to_uint8

    folder.write(complete=False)
    result = JobResult(0, len(plan.prompts), 0)
    rows = _SheetRows(plan) if with_sheet else None

    def counted(clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            result.clips += 1
            yield clip

    pieces = pipe.decode_clips(counted(make_clips(pipe, folder, plan, should_stop)), plan.sampling, plan.start)
    with ExitStack() as stack:  # whatever happens, frames that were written stay playable
        writer: VideoWriter | None = None
        for piece in pieces:
            frames = to_uint8(piece)
            if writer is None:  # before there are frames there is nothing worth a file
                writer = stack.enter_context(VideoWriter(output, fps, metadata=metadata))
            writer.write(frames)
            result.frames += len(frames)
            if rows is not None:
                rows.add(frames)
    if rows is not None and result.clips:
        result.sheet = rows.render()
    if result.is_complete:
        folder.write(complete=True)
    return result


class _SheetRows:
    """Cuts a stream of frames into the rows of a contact sheet, one per clip."""

    def __init__(self, plan: Plan):
        from .video import ContactSheet

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
        sampling = self._plan.sampling
        whole = self._row == 0 and self._plan.start is None
        return sampling.num_frames - (0 if whole else sampling.reuse.trim_frames)

    def _finish_row(self) -> None:
        import numpy as np

        self._sheet.add_row(np.stack(self._frames), self._plan.prompts[self._row])
        self._row += 1
        self._frames = []


def check_space(folder: str | Path, pipe: VidRDPipeline, plan: Plan) -> None:
    """Raise ``OSError`` where the state folder cannot be written or its disk is too small for the job."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    trial = path / f"{SETTINGS}.partial"
    trial.touch()
    trial.unlink()
    sampling, factor = plan.sampling, pipe.vae.spatial_factor
    # Latents, noise, the tail of up to two clips; and the guided states.
    frames = 4 * sampling.num_frames + sampling.reuse.overlap_frames * max(
        sampling.reuse.guided_steps(sampling.num_inference_steps), default=0
    )
    frame_bytes = 4 * pipe.unet.config["in_channels"] * (sampling.height // factor) * (sampling.width // factor)
    needed = len(plan.prompts) * (frames * frame_bytes + (1 << 20))
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            f"{path}: up to {needed / 2**20:.0f} MiB are needed for the clips' states but the disk has "
            f"{free / 2**20:.0f} MiB left; free some space or choose another state folder"
        )


def default_folder(output: str | os.PathLike[str]) -> Path:
    """Where a job keeps its clips unless told otherwise: ``out.state`` beside ``out.mp4``."""
    output = Path(output)
    return output.with_name(f"{output.stem}.state")
