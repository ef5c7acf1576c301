"""Make the video of a timeline: every clip is a take on disk, and only those that are missing are made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import comfy.model_management
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..vidrd_core.jobs.takes import TakeFolder
from ..vidrd_core.jobs.timeline import FINISHED, LOST, Planned, Settings, Surroundings, Timeline, plan
from ..vidrd_core.reuse.settings import ReuseSettings
from . import states
from .any_model.families import family_of
from .clips import first_clip, next_clip
from .files import output_path
from .frames import decoded
from .goals import close_loop, closing_reuse, cut_loop, loop_start
from .identity import as_json, conditioning_hash, json_hash, model_identity
from .latents import VideoLatent
from .many import encode, start_of
from .planning import lead_in, num_latents, reuse_settings
from .progress import making
from .schedules import NO_OVERRIDES, Models, Overrides, first_schedule
from .timeline_files import write_take_video, write_video_of
from .words import AUTO, FROM_PRIOR, REUSE_PRESETS

logger = logging.getLogger(__name__)

PROBE = "a probe of the text encoder: a cat walks over a red bridge at night"  # known by how it is encoded
RUNNING = "running"

Tell = Callable[[str, str, str], None]  # clip id, state, take


@dataclass(frozen=True)
class Request:
    """What the node was asked for.

    Args:
        prior: the video that is continued; None: a new one of the settings' size.
        fps: of the videos to look at.
        sigmas, tell_levels: as of :func:`nodes.clips.next_clip`.
    """

    models: Models
    text_encoder: Any
    vae: Any
    timeline: Timeline
    settings: Settings
    run_name: str
    prior: VideoLatent | None = None
    fps: float = 8.0
    sigmas: Tensor | None = None
    tell_levels: str = AUTO


@dataclass(frozen=True)
class Made:
    """A timeline's video: frames ``[T, H, W, 3]`` in 0 to 1, latents, and a report."""

    images: Tensor
    video: VideoLatent
    report: str


@dataclass(frozen=True)
class Piece:
    """What a clip adds to the video, unscaled."""

    samples: Tensor
    sound: Tensor | None
    new_frames: int


def make_video(request: Request, tell: Tell = lambda *_: None) -> Made:
    """Make what is missing of a timeline's video, and join it.

    Args:
        tell: called when a clip begins and when it is finished.

    Raises:
        ValueError: something does not fit; finished clips are kept.
    """
    maker = Maker(request)
    takes, timeline = maker.takes, request.timeline
    ids = [clip.id for clip in timeline.clips]
    around = maker.surroundings()
    remembered = {"settings": asdict(request.settings), "around": asdict(around), "fps": request.fps}
    takes.remember(timeline.shown()[0].id, ids, remembered)
    planned = plan(timeline, request.settings, around, takes.records(), takes.is_finished)
    maker.check(planned)
    lines, made = [], 0
    for number, one in enumerate(planned):
        comfy.model_management.throw_exception_if_processing_interrupted()
        before = planned[number - 1].take if number else None
        did = "kept, locked" if one.clip.lock and one.state == FINISHED else "kept"
        if one.state != FINISHED:
            with takes.making(one.take, _wait) as is_missing:
                if is_missing:
                    tell(one.clip.id, RUNNING, one.take)
                    with making(number + 1, len(planned)):
                        maker.make(one, before, number)
                    made, did = made + 1, "made"
            tell(one.clip.id, FINISHED, one.take)
        record = maker.add(one.take)
        shown = f"seed {record['seed']}, {record['new_frames']} new frames, {record['prompt'] or 'no prompt'}"
        lines.append(f"clip {number + 1}: {did}, {shown}")
        if not one.joins and record["follows"] != before:
            lines.append(f"    it was made after another take than clip {number}'s, so that the seam may show")
    if request.settings.loop and not planned[-1].closes:
        lines.append("    it is locked to a take that does not arrive at the beginning, so that the video is no loop")
    return maker.joined(planned, [*lines, f"{made} made, {len(planned) - made} kept"])


class Maker:
    """Makes the clips of a request one after the other.

    Raises:
        ValueError: the models do not fit, or the run's name.
    """

    def __init__(self, request: Request):
        self.request = request
        self.model = request.models.high
        self.family = family_of(self.model)
        request.models.check()
        if not request.run_name.strip():
            raise ValueError("run_name is empty, but takes are kept under it: give the run a name, such as my_film")
        self.takes = TakeFolder(output_path(request.run_name))
        self.start = self.beginning()
        self.fresh = self.start.begins
        if len(self.start.samples) != 1:
            raise ValueError(
                f"prior holds {len(self.start.samples)} videos side by side; a timeline is one video: choose one with "
                "Latent From Batch, or set batch_size to 1"
            )
        negative = encode(request.text_encoder, [request.settings.negative_prompt])
        self.negative = negative[0][1]
        self.pieces: list[Piece] = []
        self.seams: list[int] = []
        self.last: tuple[str, VideoLatent] | None = None  # the take that was read or made last

    def beginning(self) -> VideoLatent:
        """The video that is continued, or an empty latent of the first clip."""
        if self.request.prior is not None:
            return self.request.prior
        settings, family = self.request.settings, self.family
        if family.layout.name == "audio":
            raise ValueError(
                f"{family.name} samples video and sound together: connect their empty latents (LTXVConcatAVLatent) to "
                "prior"
            )
        factor = self.request.vae.spacial_compression_encode()
        if settings.width % factor or settings.height % factor:
            raise ValueError(
                f"the size is {settings.width}x{settings.height}; {family.name} needs multiples of {factor}: change "
                "width and height"
            )
        frames = self.request.timeline.shown()[0].frames or family.clip_frames
        channels = self.model.model.latent_format.latent_channels
        shape = (1, channels, family.layout.num_latents(frames), settings.height // factor, settings.width // factor)
        return VideoLatent(torch.zeros(shape), layout=family.layout)

    def surroundings(self) -> Surroundings:
        request = self.request
        models = (request.models.high, request.models.low)
        added = [as_json(request.sigmas), request.tell_levels, request.models.switch_at_step]
        return Surroundings(
            " ".join(model_identity(model) for model in models if model is not None),
            conditioning_hash(encode(request.text_encoder, [PROBE])[0][1]),
            "" if request.prior is None else start_of(request.prior),
            self.fresh,
            {preset: self.chained(preset) for preset in (AUTO, *REUSE_PRESETS)},
            "" if added == [None, AUTO, 0] else json_hash(added),
            {preset: self.chained(preset, closes=True) for preset in (AUTO, *REUSE_PRESETS)},
        )

    def chained(self, preset: str, closes: bool = False) -> dict[str, Any] | None:
        """What a preset says for this model; None where it does not suit it."""
        try:
            return asdict(self.reuse(preset, self.start, 0, closes))
        except ValueError:
            return None

    def reuse(self, preset: str, before: VideoLatent, clip_frames: int, closes: bool = False) -> ReuseSettings:
        """How a clip reuses the one before; ``closes``: as the last of a loop."""
        settings = reuse_settings(preset, ReuseSettings(), self.family, before, clip_frames, self.model)
        return closing_reuse(self.family, before, clip_frames, settings) if closes else settings

    def check(self, planned: list[Planned]) -> None:
        """Raise ``ValueError`` where a clip cannot be made as asked, before any is."""
        for number, one in enumerate(planned, 1):
            if one.state == LOST:
                raise ValueError(
                    f"clip {number} ({one.clip.id}) is locked to the take {one.take}, which is not in "
                    f"{self.takes.takes_path}: unlock it, or choose another of its takes"
                )
        first = planned[0].clip
        if self.request.settings.loop and self.fresh and len(planned) == 1:
            raise ValueError("loop is on, but a loop of one clip would be a goal of its own: add a second clip")
        if self.request.prior is not None and self.fresh and first.frames and planned[0].state != FINISHED:
            held = self.family.layout.num_frames(self.start.samples.shape[2])
            if first.frames != held:
                raise ValueError(
                    f"clip 1 ({first.id}) asks for {first.frames} frames, but prior is {held} frames long: set its "
                    "frames to 0, or the length in the node that made prior"
                )
        if not self.family.is_vidrd:
            return
        length = self.start.samples.shape[2] if self.fresh else self.start.clip_length(0)
        added = length - self.reuse(self.request.settings.preset, self.start, 0).trim_frames
        for number, one in enumerate(planned, 1):
            begins = self.fresh and number == 1
            if not begins and one.state != FINISHED and one.clip.frames not in (0, added):
                raise ValueError(
                    f"clip {number} ({one.clip.id}) asks for {one.clip.frames} new frames, but a VidRD model's clips "
                    f"are all as long as the first, {length} frames, of which {added} are new: set its frames to 0 or "
                    f"{added}, or change the first clip's"
                )

    def make(self, one: Planned, before: str | None, number: int) -> None:
        """Make a take and write its files.

        Args:
            before: the take that it follows; None: it is the first.
        """
        request, clip = self.request, one.clip
        positive = encode(request.text_encoder, [clip.prompt])[0][1]
        prior = self.start if before is None else self.latent(before)
        begun = time.monotonic()
        goal = loop_start(self.family, prior, self.beginning_of_loop()) if one.closes else None
        if before is None and self.fresh:
            schedule = first_schedule(self.model, self.family, self.overrides(), request.sigmas)
            cfg = request.settings.cfg
            latent, trim = first_clip(request.models, positive, self.negative, prior, clip.seed, schedule, cfg), 0
            repeated = 0
        else:
            latent, trim, repeated = self.following(prior, positive, one, before is None, goal)
        sound_trim = latent.context.get("sound_trim", 0)
        states.save(latent, self.takes.file(one.take, ".safetensors"), {"prompt": clip.prompt, "seed": clip.seed})
        layout, frames = self.family.layout, self.decoded(latent)
        frames = frames[len(frames) - layout.num_added(latent.samples.shape[2], trim) :]
        frames = frames[: len(frames) - repeated * layout.frames_per_latent]  # which the video's beginning shows
        write_take_video(frames, self.takes, one.take, request.fps)
        values = {"clip": clip.id, "prompt": clip.prompt, "seed": clip.seed, "frames": clip.frames, "follows": before}
        values |= {"new_frames": len(frames), "trim": trim, "sound_trim": sound_trim, "number": number}
        values |= {"closes": one.closes, "repeated": repeated}
        values |= {"settings": asdict(request.settings), "seconds": round(time.monotonic() - begun, 1)}
        self.takes.finish(one.take, values)
        self.last = (one.take, latent)

    def beginning_of_loop(self) -> Tensor:
        return self.pieces[0].samples if self.pieces else self.start.samples

    def overrides(self) -> Overrides:
        settings = self.request.settings
        return Overrides(settings.steps, settings.sampler_name or FROM_PRIOR, settings.scheduler or FROM_PRIOR)

    def following(
        self, prior: VideoLatent, positive: Any, one: Planned, is_first: bool, goal: Tensor | None
    ) -> tuple[VideoLatent, int, int]:
        """A clip that continues another, its latents that are not joined, and those that repeat the beginning.

        Args:
            is_first: whether it continues the node's own prior, whose schedule the settings may replace.
            goal: of :func:`nodes.goals.loop_start`.
        """
        request, settings, clip = self.request, self.request.settings, one.clip
        clip_frames = self.frames_of_clip(prior, clip.frames)
        reuse = self.reuse(settings.preset, prior, clip_frames, goal is not None)
        overrides = replace(self.overrides() if is_first else NO_OVERRIDES, clip_frames=clip_frames)
        asked = (overrides, None, request.sigmas, request.tell_levels, settings.preset)
        given = (request.models, positive, self.negative, prior, clip.seed, settings.cfg, reuse, *asked)

        def make(arrives_at: Tensor | None) -> VideoLatent:
            _, latent, report = next_clip(*given, arrives_at)
            logger.info("Clip %s: %s.", clip.id, report)
            return latent

        trim = lead_in(self.family, prior) + reuse.trim_frames
        if goal is None:
            return make(None), trim, 0
        latent, repeated = close_loop(self.family, prior, clip_frames, reuse.overlap_frames, goal, make)
        return latent, trim, repeated

    def frames_of_clip(self, prior: VideoLatent, new_frames: int) -> int:
        """Frames to sample so that at least ``new_frames`` are new; 0: as usual."""
        if not new_frames or self.family.is_vidrd:
            return 0
        layout, wanted = self.family.layout, self.family.layout.overlap_latents(new_frames)
        usual = num_latents(self.family, prior, 0)
        before = lead_in(self.family, prior)
        for latents in range(before + 2, usual + wanted + before + 2):
            frames = layout.num_frames(latents)
            trim = before + self.reuse(self.request.settings.preset, prior, frames).trim_frames
            if latents - trim >= wanted:
                return frames
        return layout.num_frames(usual + wanted)

    def latent(self, take: str) -> VideoLatent:
        """A finished take with its trajectory.

        Raises:
            ValueError: its file is broken, or another model's.
        """
        if self.last is None or self.last[0] != take:
            self.last = (take, states.load(self.takes.file(take, ".safetensors")))
        latent = self.last[1]
        if latent.prior is None:
            raise ValueError(f"the take {take} is broken: delete it, and the next run makes it again from its seed")
        latent.prior.check_model(self.model.model)
        return latent

    def add(self, take: str) -> Mapping[str, Any]:
        """Put a finished take at the end of the video; gives what it is."""
        record = self.takes.record(take)
        if not self.fresh and not self.pieces:
            self.pieces.append(Piece(self.start.samples, self.start.sound, 0))
            self.seams.append(self.family.layout.num_frames(self.start.samples.shape[2]))
        elif self.pieces:
            self.seams.append((self.seams[-1] if self.seams else 0) + self.pieces[-1].new_frames)
        path = self.takes.file(take, ".safetensors")
        try:
            with safe_open(path, "pt") as file:
                samples = file.get_tensor("samples")[:, :, record["trim"] :].clone()
                has_sound = "sound" in file.keys()  # noqa: SIM118 (not a mapping)
                sound = file.get_tensor("sound")[:, :, record["sound_trim"] :].clone() if has_sound else None
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the take {take} cannot be read ({error}): delete it, and the next run makes it again from its seed"
            ) from error
        if self.pieces and samples.shape[3:] != self.pieces[0].samples.shape[3:]:
            raise ValueError(
                f"clip {len(self.pieces) + 1} has latents of {list(samples.shape[3:])}, the clips before it "
                f"{list(self.pieces[0].samples.shape[3:])}: unlock it, or set width and height as it was made"
            )
        self.pieces.append(Piece(samples, sound, record["new_frames"]))
        return record

    def joined(self, planned: list[Planned], lines: list[str]) -> Made:
        """The video of all takes that were added."""
        takes, is_loop = [one.take for one in planned], bool(planned[-1].closes)
        if is_loop:
            repeated = self.takes.record(takes[-1])["repeated"]
            video = cut_loop(self.family, [piece.samples for piece in self.pieces], repeated)[0]
        else:
            video = self.open_video(takes[-1])
        images = self.decoded(video)
        seams = self.seams
        if is_loop and self.family.layout.is_temporal:
            images, seams = images[1:], [seam - 1 for seam in seams]  # the last frame shows what the first showed
        write_video_of(images, self.takes, takes, seams, self.request.fps, is_loop)
        length = f"{len(images)} frames, {len(images) / self.request.fps:.1f} s at {self.request.fps:g} per second"
        return Made(images, video, "\n".join([*lines, length + ", a loop" * is_loop]))

    def open_video(self, last: str) -> VideoLatent:
        """The video of all takes that were added, which can be continued from the last one's end."""
        latent = self.latent(last)
        samples = torch.cat([piece.samples for piece in self.pieces], dim=2)
        heard = [piece.sound for piece in self.pieces if piece.sound is not None]
        sound = torch.cat(heard, dim=2) if len(heard) == len(self.pieces) else None
        tail = self.pieces[-1].samples.shape[2]
        return latent.following(samples, tail, sound)

    def decoded(self, latent: VideoLatent) -> Tensor:
        """Frames ``[T, H, W, 3]``."""
        return decoded(self.request.vae, latent.layout.from_video(latent.samples))


def _wait(seconds: float) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()
    time.sleep(seconds)
