"""Long videos of moving shapes against their ground truth: seams, motion, identity, drift, repetition, flicker.

:func:`measure` turns a video into a :class:`VideoRecord` of plain numbers; :func:`summarise` turns the records of a
method into figures, curves by clip number and a profile of the motion inside a clip. A quantity that
the ground truth itself does not keep is left out for the motions concerned, so that rendered videos score perfectly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import DIRECTIONS, SIZE, SPEED, Scene
from .tracker import BRIGHT, NOTHING, Track, track, wrapped

AROUND = 3  # steps of the data set's own speed before and after a seam that give the motion there
STILL = 0.25  # of the true speed; a slower shape moves neither forwards nor back
MARGIN = 3  # pixels around a shape that count as neither shape nor background
MIN_BACKGROUND = 400  # pixels that two clips' backgrounds must share to be compared
SAME_PATH = 2.5  # pixels, root mean square, below which two paths are the same; true ones are 9 and more apart
MIN_SHAPE = 20  # pixels inside a shape that can be followed over a step
DRIFT_GOAL = 2.0  # levels of 255
STEADY = ("stays still", "bounces up and down")  # no constant speed, and their true clips may repeat one another


@dataclass
class VideoRecord:
    """What was measured of one video; lists by seam, by clip or by step; None where there was nothing to measure."""

    caption: str
    motion: str
    prompted: list[bool]  # by clip: colour and shape are the caption's
    identity: list[bool]  # by clip: colour and shape are clip 1's
    motion_prompted: list[bool | None]  # by clip: its motion is the caption's
    seams: list[float | None]  # pixels from a clip's last centre to the next one's first
    steps: list[float]  # pixels, inside clips
    kept: list[bool | None]  # by seam: direction after as before
    along: list[float | None]  # by step of the whole video: progress in the true direction, 1 is the true speed
    background: list[float | None]  # by clip: mean colour of the background against clip 1, 0 to 255, mean of channels
    brightness: list[float | None]  # the same with its sign
    contrast: list[float | None]  # by clip: standard deviation of the background's pixels / clip 1's
    shape_color: list[float | None]  # by clip: colour of the shape against clip 1, 0 to 255, mean of channels
    replays: list[bool | None]  # by seam: the clip after takes the same path as the one before
    rewinds: list[bool | None]  # by seam: the clip after takes the path before backwards
    flicker: float | None  # mean change of background pixels from frame to frame inside clips, 0 to 255
    seam_flicker: float | None  # and over seams
    shape_flicker: float | None  # the same of the shape's pixels, followed along its track
    shape_seam_flicker: float | None
    starts: list[int]  # first frame of each clip


def measure(scene: Scene, frames: Tensor, starts: Sequence[int], speed: float = 1.0) -> VideoRecord:
    """Measure a video ``[3, T, 64, 64]`` in [-1, 1] whose clips begin at ``starts``; ``speed`` as in ``render``."""
    total = frames.shape[1]
    if not starts or starts[0] != 0 or list(starts) != sorted(set(starts)) or starts[-1] >= total:
        raise ValueError(f"clips start at {list(starts)}; expected increasing frames from 0 to below {total}")
    whole = track(frames, speed)
    spans = list(zip(starts, [*starts[1:], total], strict=True))
    clips = [whole[a:b] for a, b in spans]
    moves = wrapped(whole.centers.diff(dim=0))
    at_seam = torch.zeros(total - 1, dtype=torch.bool)
    at_seam[[s - 1 for s in starts[1:]]] = True
    distances = moves.norm(dim=1)
    inside = distances[~at_seam]
    pixels = (frames.float().clamp(-1, 1) + 1) * 127.5
    grounds = _Backgrounds(pixels, spans)
    shape_changes = _shape_changes(pixels, moves)
    first = clips[0]
    return VideoRecord(
        caption=scene.caption,
        motion=scene.motion,
        prompted=[(c.color, c.shape) == (scene.color, scene.shape) for c in clips],
        identity=[(c.color, c.shape) == (first.color, first.shape) and first.color != NOTHING for c in clips],
        motion_prompted=[c.motion == scene.motion if len(c.centers) * speed >= 4 else None for c in clips],
        seams=_numbers(distances[at_seam]),
        steps=[v for v in _numbers(inside) if v is not None],
        kept=[keeps_motion(scene, whole.centers, seam, speed) for seam in starts[1:]],
        along=_along(scene, moves / speed),
        background=grounds.shifts(),
        brightness=grounds.shifts(signed=True),
        contrast=grounds.contrasts(),
        shape_color=_shape_shifts(pixels, spans),
        replays=[_same_path(scene, a, b, backwards=False) for a, b in zip(clips, clips[1:])],
        rewinds=[_same_path(scene, a, b, backwards=True) for a, b in zip(clips, clips[1:])],
        flicker=grounds.flicker(~at_seam),
        seam_flicker=grounds.flicker(at_seam),
        shape_flicker=_mean_or_none(shape_changes[~at_seam]),
        shape_seam_flicker=_mean_or_none(shape_changes[at_seam]),
        starts=list(starts),
    )


def keeps_motion(scene: Scene, centers: Tensor, seam: int, speed: float = 1.0) -> bool | None:
    """Whether the motion after a seam is that before it; None where the ground truth has no direction to keep.

    Straight motions: the directions of the :data:`AROUND` steps before and after lie within 45 degrees. Orbits: the
    sense of rotation stays. Still shapes: they stay still. Bounces reverse by themselves and are left out, and so are
    seams before which nothing was tracked. A shape that is lost after the seam counts as not kept.
    """
    around = round(AROUND / speed)
    first = max(0, seam - 1 - around)
    before, after = centers[first:seam], centers[seam : seam + around + 1]
    if scene.motion == "bounces up and down" or len(before) < 2 or len(after) < 2 or bool(before.isnan().any()):
        return None
    if bool(after.isnan().any()):
        return False
    travels = [wrapped(path.diff(dim=0)).mean(0) / speed for path in (before, after)]
    speeds = [float(travel.norm()) for travel in travels]
    if scene.motion == "stays still":
        return max(speeds) < SPEED / 2
    if min(speeds) < SPEED / 4:
        return False
    if scene.motion in DIRECTIONS:
        cosine = float(travels[0] @ travels[1]) / (speeds[0] * speeds[1])
        return cosine > math.sqrt(0.5)
    turns = [_turn(path.mean(0) - SIZE / 2, travel) for path, travel in zip((before, after), travels, strict=True)]
    return turns[0] * turns[1] > 0


def _turn(arm: Tensor, travel: Tensor) -> float:
    """Positive for one sense of rotation around the centre, negative for the other."""
    return float(arm[0] * travel[1] - arm[1] * travel[0])


def _along(scene: Scene, moves: Tensor) -> list[float | None]:
    if scene.motion not in DIRECTIONS:
        return []
    return _numbers(moves @ torch.tensor(DIRECTIONS[scene.motion]) / SPEED)


def _same_path(scene: Scene, before: Track, after: Track, backwards: bool) -> bool | None:
    if scene.motion in STEADY:
        return None
    count = min(len(before.centers), len(after.centers))
    path = before.centers[-count:].flip(0) if backwards else before.centers[:count]
    apart = wrapped(after.centers[:count] - path)
    if count < 3 or bool(apart.isnan().any()):
        return None
    return float(apart.square().sum(1).mean().sqrt()) < SAME_PATH


class _Backgrounds:
    """The background of each clip: the mean of every pixel over the frames in which no shape is near it."""

    def __init__(self, pixels: Tensor, spans: Sequence[tuple[int, int]]):
        self.pixels = pixels
        bright = (pixels.amax(0) > BRIGHT * 255).float()[:, None]
        around = F.max_pool2d(F.pad(bright, (MARGIN,) * 4, mode="circular"), 2 * MARGIN + 1, stride=1)
        self.free = around[:, 0] == 0  # [T, H, W]
        counts = [self.free[a:b].sum(0) for a, b in spans]
        self.seen = [count > 0 for count in counts]
        self.means = [
            (pixels[:, a:b] * self.free[a:b]).sum(1) / count.clamp(min=1)
            for (a, b), count in zip(spans, counts, strict=True)
        ]

    def _compare(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Clip 1's and clip ``number``'s background pixels ``[3, P]`` that both have."""
        both = self.seen[0] & self.seen[number]
        if int(both.sum()) < MIN_BACKGROUND:
            return None
        return self.means[0][:, both], self.means[number][:, both]

    def shifts(self, signed: bool = False) -> list[float | None]:
        shifts: list[float | None] = []
        for number in range(len(self.means)):
            pair = self._compare(number)
            change = None if pair is None else pair[1].mean(1) - pair[0].mean(1)
            shifts.append(None if change is None else round(float(change.mean() if signed else change.abs().mean()), 4))
        return shifts

    def contrasts(self) -> list[float | None]:
        """Contrast ratios, for backgrounds with a pattern; None for plain ones."""
        ratios: list[float | None] = []
        for number in range(len(self.means)):
            pair = self._compare(number)
            if pair is None or float(pair[0].std(1).mean()) < 4:
                ratios.append(None)
            else:
                ratios.append(round(float(pair[1].std(1).mean() / pair[0].std(1).mean()), 4))
        return ratios

    def flicker(self, steps: Tensor) -> float | None:
        """Mean absolute change of the pixels that are background in both frames of the ``steps`` (a mask)."""
        still = self.free[1:] & self.free[:-1]
        change = self.pixels.diff(dim=1).abs().mean(0)[steps]
        still = still[steps]
        return round(float(change[still].mean()), 4) if bool(still.any()) else None


def _shape_shifts(pixels: Tensor, spans: Sequence[tuple[int, int]]) -> list[float | None]:
    """Colour of the shape in each clip against clip 1."""
    colors = [_shape_color(pixels[:, a:b]) for a, b in spans]
    first = colors[0]
    return [None if c is None or first is None else round(float((c - first).abs().mean()), 4) for c in colors]


def _shape_color(pixels: Tensor) -> Tensor | None:
    """Mean colour ``[3]`` of the shape over the frames ``[3, T, H, W]`` that show it.

    In each frame it is that of the brighter half of its pixels, as outlines mix with the background.
    """
    colors = []
    for frame in pixels.unbind(1):
        bright = frame.amax(0)
        mask = bright > BRIGHT * 255
        if bool(mask.any()):
            colors.append(frame[:, mask & (bright >= bright[mask].median())].mean(1))
    return torch.stack(colors).mean(0) if colors else None


def _shape_changes(pixels: Tensor, moves: Tensor) -> Tensor:
    """Mean absolute change of the shape's inside over every step ``[T - 1]``, motion compensated; NaN without a shape.

    A shape that is lost in one of the two frames is looked for where the other frame shows it.

    Args:
        pixels: ``[3, T, H, W]``, 0 to 255.
        moves: of the tracked centre, ``[T - 1, 2]`` in pixels; NaN where it was lost.
    """
    bright = (pixels.amax(0) > BRIGHT * 255).float()[:, None]
    inside = -F.max_pool2d(F.pad(-bright, (1, 1, 1, 1), mode="circular"), 3, stride=1)[:, 0] > 0
    shifts = moves.nan_to_num(0).round().int().tolist()
    changes = []
    for step, (x, y) in enumerate(shifts):
        before, after = pixels[:, step], pixels[:, step + 1].roll((-y, -x), (1, 2))
        shape = inside[step] if int(inside[step].sum()) >= MIN_SHAPE else inside[step + 1].roll((-y, -x), (0, 1))
        found = int(shape.sum()) >= MIN_SHAPE
        changes.append(float((after - before)[:, shape].abs().mean()) if found else math.nan)
    return torch.tensor(changes)


def _mean_or_none(values: Tensor) -> float | None:
    mean = float(values.nanmean())
    return round(mean, 4) if math.isfinite(mean) else None


def _numbers(values: Tensor) -> list[float | None]:
    return [round(value, 4) if math.isfinite(value) else None for value in values.tolist()]


# -- many videos -------------------------------------------------------------------------------------------------------


def summarise(records: Sequence[VideoRecord], num_frames: int) -> dict[str, Any]:
    """Figures, curves by clip number, the profile of motion by position in a clip, and 95% intervals over videos.

    Args:
        num_frames: N, frames of a first clip.
    """
    if not records:
        raise ValueError("there is no video to summarise")
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, len(records), len(records)) for _ in range(200)]
    resampled = [_main_figures([records[i] for i in sample]) for sample in samples]
    main = _main_figures(records)
    intervals = {
        name: [_rounded(float(np.nanpercentile([r[name] for r in resampled], p))) for p in (2.5, 97.5)]
        for name in main
        if not math.isnan(main[name])
    }
    figures = {**main, **_other_figures(records)}
    return {
        "videos": len(records),
        "clips": len(records[0].starts),
        "figures": {name: _rounded(value) for name, value in figures.items()},
        "intervals": intervals,
        "curves": {name: [_rounded(v) for v in values] for name, values in _curves(records).items()},
        "profile": [_rounded(v) for v in _profile(records, num_frames)],
    }


def _main_figures(records: Sequence[VideoRecord]) -> dict[str, float]:
    moving = [r for r in records if r.motion not in STEADY]
    inside = _mean([step for r in moving for step in r.steps])
    return {
        "seam ratio": _mean([jump for r in moving for jump in r.seams]) / inside if inside else math.nan,
        "motion kept": _mean([kept for r in records for kept in r.kept]),
        "identity at the last clip": _mean([r.identity[-1] for r in records]),
        "background drift at the last clip": _mean([r.background[-1] for r in records]),
        "background beyond 2 of 255 at the last clip": _mean([_beyond(r.background[-1]) for r in records]),
    }


def _beyond(drift: float | None) -> bool:
    """Whether a background has drifted too far; one as bright as a shape has."""
    return drift is None or drift > DRIFT_GOAL


def _other_figures(records: Sequence[VideoRecord]) -> dict[str, float]:
    return {
        "background lost at the last clip": _mean([r.background[-1] is None for r in records]),
        "shape lost at the last clip": _mean([r.shape_color[-1] is None for r in records]),
        "shape colour drift at the last clip": _mean([r.shape_color[-1] for r in records]),
        "brightness drift at the last clip": _mean([r.brightness[-1] for r in records]),
        "contrast at the last clip": _mean([r.contrast[-1] for r in records]),
        "colour and shape as prompted, first clip": _mean([r.prompted[0] for r in records]),
        "colour and shape as prompted, last clip": _mean([r.prompted[-1] for r in records]),
        "motion as prompted, first clip": _mean([r.motion_prompted[0] for r in records]),
        "motion as prompted, later clips": _mean([m for r in records for m in r.motion_prompted[1:]]),
        "runs back after a seam": _mean([back for r in records for back in _runs_back(r)]),
        "replays its predecessor": _mean([x for r in records for x in r.replays]),
        "rewinds its predecessor": _mean([x for r in records for x in r.rewinds]),
        "flicker inside clips": _mean([r.flicker for r in records]),
        "flicker at seams": _mean([r.seam_flicker for r in records]),
        "shape flicker inside clips": _mean([r.shape_flicker for r in records]),
        "shape flicker at seams": _mean([r.shape_seam_flicker for r in records]),
        "step inside clips": _mean([s for r in records if r.motion not in STEADY for s in r.steps]),
    }


def _runs_back(record: VideoRecord) -> list[bool]:
    """Whether a straight motion reverses over each seam, by the :data:`AROUND` steps before and after."""
    found = []
    for start in record.starts[1:]:
        before = [v for v in record.along[max(0, start - 1 - AROUND) : start - 1] if v is not None]
        after = [v for v in record.along[start : start + AROUND] if v is not None]
        if before and after:
            was, goes = sum(before) / len(before), sum(after) / len(after)
            found.append(was * goes < 0 and min(abs(was), abs(goes)) > STILL)
    return found


def _curves(records: Sequence[VideoRecord]) -> dict[str, list[float]]:
    count = min(len(r.starts) for r in records)

    def by_clip(name: str) -> list[float]:
        return [_mean([getattr(r, name)[k] for r in records]) for k in range(count)]

    names = {
        "identity": "identity",
        "as prompted": "prompted",
        "motion as prompted": "motion_prompted",
        "background drift": "background",
        "brightness drift": "brightness",
        "shape colour drift": "shape_color",
        "contrast": "contrast",
    }
    curves = {name: by_clip(field) for name, field in names.items()}
    curves["background beyond 2 of 255"] = [_mean([_beyond(r.background[k]) for r in records]) for k in range(count)]
    curves["motion kept"] = [_mean([r.kept[k] for r in records]) for k in range(count - 1)]
    curves["seam jump"] = [_mean([r.seams[k] for r in records if r.motion not in STEADY]) for k in range(count - 1)]
    return curves


def _profile(records: Sequence[VideoRecord], num_frames: int) -> list[float]:
    """Mean progress of straight motions by position in a continuing clip: entry 0 is the step over the seam itself."""
    columns: list[list[float | None]] = [[] for _ in range(num_frames)]
    for record in records:
        if not record.along:
            continue
        ends = [*record.starts[1:], len(record.along) + 1]
        for number in range(1, len(record.starts)):
            start = record.starts[number]
            for position, value in enumerate(record.along[start - 1 : ends[number] - 1][:num_frames]):
                columns[position].append(value)
    return [_mean(column) for column in columns if column]


def _mean(values: Sequence[float | bool | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def to_json(record: VideoRecord) -> dict[str, Any]:
    return asdict(record)


def from_json(values: dict[str, Any]) -> VideoRecord:
    return VideoRecord(**values)
