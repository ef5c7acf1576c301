"""Do clips arrive? Goals and loops against the ground truth of moving shapes.

In "between" cases a clip is given the first and the last frames of a true one and makes those between; in "loop" cases
a chain of clips is to return to its beginning. Each case has one JSON file, so that an interrupted run resumes.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import write_json
from ..metrics.identity import changes, model_identity
from ..pipeline import VidRDPipeline
from ..reuse.goal import Goal, Goals, GoalSettings, choices, close, closing
from ..reuse.noise import initial_noise
from ..reuse.settings import ReuseSettings
from ..reuse.trajectory import Trajectory
from ..sampling.denoising import denoise_clip
from .measures import STEADY
from .methods import VideoBatch
from .prompted import held_out_scenes
from .scenes import DIRECTIONS, SPEED, Scene, render
from .tracker import track, wrapped

logger = logging.getLogger(__name__)

N = 8  # frames of a clip
AXES = tuple(motion for motion, step in DIRECTIONS.items() if 0.0 in step)  # return after 64 / 2.5 = 25.6 frames


@dataclass(frozen=True)
class Case:
    """What is given of a video.

    Args:
        start, end: frames, at the beginning and at the end; 0 at the end of a loop: as many as it chooses.
        beta, cleaner: as in :class:`vidrd_core.reuse.goal.GoalSettings`, of the end.
        too_far: frames by which the end comes too early, so that the shape would have to hurry.
        clips: 1: a clip between true frames. More: a loop of clips with ``start`` frames of overlap.
        returns: whether the last clip of a loop is steered to its beginning.
        shortens: whether the overlap of a last clip that chooses where it arrives is shortened for that
            (:func:`vidrd_core.reuse.goal.closing`).
    """

    start: int
    end: int
    beta: float = 1.0
    cleaner: float = 0.8
    too_far: int = 0
    clips: int = 1
    returns: bool = True
    shortens: bool = True

    @property
    def name(self) -> str:
        values = asdict(self)
        return "-".join(
            f"{key}{value:g}" if not isinstance(value, bool) else f"{key}{value}" for key, value in values.items()
        )

    @property
    def reuse(self) -> ReuseSettings:
        """How the clips of a loop reuse one another."""
        return ReuseSettings(self.start, 0.0, 1.0, "forward", self.start, "uniform", 0.8)

    @property
    def last_reuse(self) -> ReuseSettings:
        """How its last clip does."""
        return closing(self.reuse, N) if self.shortens and not self.end else self.reuse

    @property
    def settings(self) -> GoalSettings:
        return GoalSettings(max(self.end, 1), max(self.start, 1), self.beta, self.cleaner)


LOOPS = (  # before the last clip are 23 frames, or 48, which is nearly one period of the motion, or two
    Case(3, 0, clips=5),
    Case(3, 2, clips=5),
    Case(3, 2, clips=5, returns=False),
    Case(5, 0, clips=7),
    Case(5, 0, clips=7, shortens=False),
    Case(5, 2, clips=7),
    Case(3, 0, clips=10),
    Case(3, 2, clips=10),
    Case(5, 0, clips=15),
    Case(5, 0, clips=15, shortens=False),
)
BETWEEN = (  # what matters most comes first, for those who measure only a part
    Case(3, 2),
    Case(3, 1),
    Case(0, 1),
    Case(5, 2),
    Case(3, 2, cleaner=0.0),
    Case(3, 2, beta=0.4),
    Case(1, 1),
    Case(3, 2, too_far=2),
    Case(3, 2, cleaner=1.0),
    Case(0, 2),
    Case(3, 3),
    *(Case(3, 2, cleaner=cleaner) for cleaner in (0.4, 0.6, 0.9)),
    *(Case(3, 2, beta=beta) for beta in (0.6, 0.8)),
)
CASES = (*LOOPS, *BETWEEN)


@dataclass
class GoalsComparison:
    """Makes and measures the videos of cases, for the same prompts and seeds.

    Args:
        pipe: a pipeline whose model was trained on moving shapes.
        folder: where results go.
        videos: of each case, whose shapes move steadily.
        steps, guidance_scale: of sampling.
    """

    pipe: VidRDPipeline
    folder: Path
    videos: int = 10
    steps: int = 10
    guidance_scale: float = 4.0
    seed: int = 0
    _chains: dict[Case, tuple[list[Tensor], Trajectory]] = field(default_factory=dict, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must be equal for results to share a table."""
        identity = model_identity(self.pipe)
        return {**identity, "videos": self.videos, "steps": self.steps, "guidance_scale": self.guidance_scale}

    @torch.no_grad()
    def run(self, case: Case) -> dict[str, Any]:
        """Make and measure the videos of a case, or read what was measured.

        Raises:
            ValueError: its file holds results of other settings.
        """
        path = self.folder / f"{case.name}.json"
        if path.is_file():
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if changed := changes(stored["settings"], self.settings):
                raise ValueError(f"{path} holds results of other settings: {changed}; choose another folder")
            return stored
        scenes = steady_scenes(self.videos, self.seed, AXES if case.clips > 1 else None)
        batch = VideoBatch(
            self.pipe, scenes, range(self.seed, self.seed + len(scenes)), case.clips, N, self.steps, self.guidance_scale
        )
        frames = self._loop(batch, case) if case.clips > 1 else self._between(batch, case)
        given = range(0 if case.clips > 1 else case.start)
        records = [measure(scene, video, case, given) for scene, video in zip(scenes, frames, strict=True)]
        result = {"case": asdict(case), "settings": self.settings, "records": records, "figures": summarise(records)}
        write_json(path, result, indent=None)
        logger.info("%s: %s", case.name, result["figures"])
        return result

    def _between(self, batch: VideoBatch, case: Case) -> Tensor:
        true = self.pipe.encode_frames(render(batch.scenes, N + case.too_far))
        settings = ReuseSettings(overlap_frames=0)
        goals = []
        if case.start:
            goals.append(Goal(tuple(range(case.start)), true[:, :, : case.start]))
        if case.end:
            places = tuple(range(N - case.end, N))
            goals.append(Goal(places, true[:, :, true.shape[2] - case.end :], settings=case.settings))
        scheduler, noise = batch.scheduler(settings), batch.noise(0).to(self.pipe.device)
        latents, _ = denoise_clip(batch.denoiser(), scheduler, noise, settings, goals=goals)
        return self._decoded(latents)

    def _loop(self, batch: VideoBatch, case: Case) -> list[Tensor]:
        key = replace(case, returns=False, end=0, shortens=False)
        if key not in self._chains:  # all clips but the last, which loops share with chains that do not return
            self._chains[key] = self._chain(batch, case)
        parts, past = self._chains[key]
        settings, beginning = case.last_reuse, parts[0]
        overlap = settings.overlap_frames
        noise = initial_noise(past.noise, batch.noise(case.clips - 1), settings).to(self.pipe.device)

        @cache
        def last(repeated: int) -> Tensor:
            goals = Goals(loop=case.returns, settings=case.settings, repeated=repeated)
            arrives = goals.of_clip(False, True, N, beginning)
            return denoise_clip(batch.denoiser(), batch.scheduler(settings), noise, settings, past, goals=arrives)[0]

        videos = []
        for index in range(len(batch.scenes)):
            one = slice(index, index + 1)

            def made(repeated: int, one: slice = one) -> Tensor:
                return last(repeated)[one]

            counts = range(case.end, case.end + 1) if case.end else choices(N, overlap)
            repeated, clip = close(made, lambda clip: clip, beginning[one], overlap, counts)
            joined = torch.cat([*(part[one] for part in parts), clip[:, :, overlap:]], dim=2)
            videos.append(self._decoded(joined)[0, :, :-repeated])
        return videos

    def _chain(self, batch: VideoBatch, case: Case) -> tuple[list[Tensor], Trajectory]:
        settings, past, parts = case.reuse, None, []
        for index in range(case.clips - 1):
            fresh = batch.noise(index)
            noise = (fresh if past is None else initial_noise(past.noise, fresh, settings)).to(self.pipe.device)
            latents, past = denoise_clip(batch.denoiser(), batch.scheduler(settings), noise, settings, past)
            parts.append(latents[:, :, case.start if index else 0 :])
        assert past is not None
        return parts, past

    def _decoded(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        pieces = latents.split(N, dim=2)
        scaled = (piece.to(vae.device, vae.dtype) / vae.config["scaling_factor"] for piece in pieces)
        return torch.cat([vae.decode(piece, return_dict=False)[0].float().clamp(-1, 1).cpu() for piece in scaled], 2)


def steady_scenes(count: int, seed: int, motions: Sequence[str] | None = None) -> list[Scene]:
    """Held-out scenes whose shapes move at the data set's speed."""
    wanted = 2 * count
    while True:
        scenes = [scene for scene in held_out_scenes(wanted, seed) if scene.motion not in STEADY]
        scenes = [scene for scene in scenes if motions is None or scene.motion in motions]
        if len(scenes) >= count:
            return scenes[:count]
        wanted *= 2


def measure(scene: Scene, frames: Tensor, case: Case, given: range) -> dict[str, Any]:
    """Steps of the shape's centre in one video ``[3, T, 64, 64]``, in pixels; None where it was not found.

    "in" leads from the last given frame to the first new one, "out" from the last new one to the first given, "inside"
    are the others between new frames.
    """
    found = track(frames)
    steps = wrapped(found.centers.diff(dim=0)).norm(dim=1)
    total = frames.shape[1]
    if case.clips > 1:  # all frames are new; the last is followed by the first
        before = N + (case.clips - 2) * (N - case.start)  # frames before the last clip's new ones
        closing = float(wrapped(found.centers[0] - found.centers[-1]).norm())
        values = {"in": float(steps[before - 1]), "out": closing, "inside": steps[: before - 1].tolist()}
        largest, away = max(float(steps.max()), closing), math.nan
    else:
        first, end = len(given), total - case.end
        values = {
            "in": float(steps[first - 1]) if first else math.nan,
            "out": float(steps[end - 1]) if case.end else math.nan,
            "inside": steps[first : end - 1].tolist(),
        }
        largest = float(steps[max(first - 1, 0) : end].max())
        apart = wrapped(found.centers - scene.centers(torch.arange(total, dtype=torch.float64))).norm(dim=1)
        away = float(apart[first:end].mean())
    same = (found.color, found.shape) == (scene.color, scene.shape)
    return {**values, "largest": largest, "away": away, "frames": total, "identity": same, "caption": scene.caption}


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over videos; of the steps as multiples of the data set's own, with 95% intervals over the videos."""

    def values(name: str) -> list[float]:
        listed = [record[name] if isinstance(record[name], list) else [record[name]] for record in records]
        means = [float(np.nanmean(one)) if one and not np.isnan(one).all() else math.nan for one in listed]
        return [mean for mean in means if not math.isnan(mean)]

    def share(name: str) -> list[float] | None:
        found = np.array(values(name)) / SPEED
        if not len(found):
            return None
        drawn = np.random.default_rng(0).choice(found, (1000, len(found))).mean(1)
        return [round(float(x), 3) for x in (found.mean(), *np.percentile(drawn, (2.5, 97.5)))]

    away = values("away")
    return {
        "videos": len(records),
        **{name: share(name) for name in ("in", "out", "inside", "largest")},
        "away": round(sum(away) / len(away), 2) if away else None,
        "frames": [min(record["frames"] for record in records), max(record["frames"] for record in records)],
        "within a fifth": sum(record["largest"] <= 1.2 * SPEED for record in records) / len(records),
        "identity": sum(record["identity"] for record in records) / len(records),
    }


def document_part(folder: Path) -> str:
    """The tables of docs/evaluation.md, of the results in a folder.

    Raises:
        ValueError: there are none.
    """
    found = {}
    for case in CASES:
        path = folder / f"{case.name}.json"
        if path.is_file():
            found[case] = json.loads(path.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{folder} has no results of goals; make them with `training/evaluate.py goals`")
    settings = next(iter(found.values()))["settings"]
    lines = [
        f"{settings['videos']} videos of each case, {settings['scheduler']} with "
        f"{settings['steps']} steps, guidance scale {settings['guidance_scale']:g}, {settings['dtype']}. Steps are "
        "multiples of the data set's own, 2.5 pixels, with 95% intervals over the videos."
    ]
    head = "| step in | step out | steps between | largest step | from the truth | identity |"
    between = sorted((case for case in found if case.clips == 1), key=lambda case: list(asdict(case).values()))
    loops = [case for case in found if case.clips > 1]
    if between:
        lines += ["", "| given at the start | at the end | beta | cleaner " + head, "|---" * 10 + "|"]
    for case in between:
        late = f" ({case.too_far} too early)" if case.too_far else ""
        lines.append(f"| {case.start} | {case.end}{late} | {case.beta:g} | {case.cleaner:g} " + _row(found[case]))
    if loops:
        lines += ["", "| loop of | overlap | arrives " + head + " in and out within a fifth |", "|---" * 10 + "|"]
    for case in loops:
        lengths = dict.fromkeys(found[case]["figures"]["frames"])
        returns = f"{case.end} frames before its end" if case.end else "where the motion is most even"
        of = f"{case.clips} clips, {' to '.join(map(str, lengths))} frames"
        even = [all(0.8 <= one[name] / SPEED <= 1.2 for name in ("in", "out")) for one in found[case]["records"]]
        last = case.last_reuse.overlap_frames
        overlap = f"{case.start}" if last == case.start else f"{case.start}, {last} of the last clip"
        row = f"| {of} | {overlap} | {returns if case.returns else 'no'} {_row(found[case])}"
        lines.append(f"{row} {sum(even)} of {len(even)} |")
    return "\n".join(lines)


def _row(result: Mapping[str, Any]) -> str:
    figures = result["figures"]

    def cell(name: str) -> str:
        value = figures[name]
        return "-" if value is None else f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"

    away = "-" if figures["away"] is None else f"{figures['away']:.1f} px"
    steps = " | ".join(cell(name) for name in ("in", "out", "inside", "largest"))
    return f"| {steps} | {away} | {figures['identity']:.0%} |"
