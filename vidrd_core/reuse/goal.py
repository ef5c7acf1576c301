"""Goals: frames anywhere in a clip that are steered along a path of their own, not only the first ones (DSG).

A goal's path is the straight line from noise to given frames, ``x = a * x0 + b * n`` with the clean data ``D = x0``,
or the recorded states of another clip. As with an overlap, the frames may be shown cleaner than the others, so that
these are denoised towards frames that can be made out already (:mod:`vidrd_core.reuse.settings`, ``cleaner_overlap``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from .settings import ReuseSettings
from .states import SamplerStates
from .trajectory import frames_hash

SHORT = 12  # digits of a hash that tells goals apart
MOST_REPEATED = 4  # frames of its beginning that a loop's last clip ends with

TINY = 1e-6  # a step of a video that stands still

Made = TypeVar("Made")


@dataclass(frozen=True)
class GoalSettings:
    """How a clip is steered to a goal. The defaults are the best measured (docs/evaluation.md, "Goals and loops").

    Args:
        frames: K, how many frames of a given clip a video arrives at; an image is one. A loop chooses (:func:`close`).
        start_frames: M, how many of the last frames of a given clip a video begins with.
        beta: the share of steps through which they are steered, 0 to 1.
        cleaner: how much cleaner than the other frames they are shown, 0 to 1; as ``cleaner_overlap``.
    """

    frames: int = 2
    start_frames: int = 3
    beta: float = 1.0
    cleaner: float = 0.8

    def __post_init__(self) -> None:
        for name in ("frames", "start_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a goal is {getattr(self, name)}; expected 1 or more")
        if not 0 <= self.cleaner <= 1:
            raise ValueError(f"cleaner of a goal is {self.cleaner}; expected 0 (equally noisy) to 1 (clean)")
        self.reuse(self.frames)

    def reuse(self, frames: int) -> ReuseSettings:
        """The same as settings of an overlap of so many frames."""
        return ReuseSettings(frames, 0.0, self.beta, "forward", frames, "uniform", self.cleaner)


@dataclass(frozen=True)
class Goal:
    """Frames of one clip and the path that they are steered along.

    Args:
        places: of the frames in the clip, from 0.
        data: the clean frames ``[B or 1, C, K, h, w]`` in the sampler's space, which the clip then holds exactly where
            it is steered to the last step; None: only ``states`` are known.
        noise: that the path begins with, of unit variance, ``[B or 1, C, K, h, w]``; None: the clip's own.
        states: recorded ``z[s]`` before each step, of these frames; empty: the straight line is followed.
    """

    places: tuple[int, ...]
    data: Tensor | None
    noise: Tensor | None = None
    states: Sequence[Tensor] = ()
    settings: GoalSettings = GoalSettings()

    def __post_init__(self) -> None:
        if self.data is None and not self.states:
            raise ValueError("a goal needs frames to arrive at or recorded states to follow; it has neither")
        frames = self.data if self.data is not None else self.states[0]
        if frames.shape[2] != len(self.places) or len(set(self.places)) != len(self.places):
            raise ValueError(f"a goal of {frames.shape[2]} frames is not for the frames {list(self.places)} of a clip")

    def check(self, num_frames: int, overlap: int = 0) -> None:
        """Raise ``ValueError`` where a clip has no such places, or the overlap with the clip before takes them."""
        if not all(overlap <= place < num_frames for place in self.places):
            raise ValueError(
                f"the goal is at frames {list(self.places)} of a clip of {num_frames} whose first {overlap} repeat the "
                "clip before: choose a smaller overlap or a shorter goal"
            )

    def num_steered(self, num_steps: int) -> int:
        """How many steps are steered."""
        return max(self.settings.reuse(1).steered_steps(num_steps))

    def start(self, noise: Tensor) -> Tensor:
        """A clip's noise ``[B, C, N, h, w]`` with that of the path at the goal's places."""
        return noise if self.noise is None else self.write(noise.clone(), self.noise)

    def at(self, step: int, num_steps: int, noise: Tensor, sampler: SamplerStates) -> Tensor | None:
        """What the goal's frames are before ``step``, ``[B or 1, C, K, h, w]``; None: nothing is steered there.

        Args:
            noise: that the clip starts from, ``[B, C, N, h, w]``.
            sampler: whose states they are.
        """
        if step >= self.num_steered(num_steps):
            return None
        return self._state(self.settings.reuse(1).shown_at(step, num_steps), step, noise, sampler)

    def held_at(self, step: int, num_steps: int, noise: Tensor, sampler: SamplerStates) -> Tensor | None:
        """The same without ``cleaner``: what a clip that follows is steered by."""
        return None if step >= self.num_steered(num_steps) else self._state(step, step, noise, sampler)

    def _state(self, position: float, step: int, noise: Tensor, sampler: SamplerStates) -> Tensor:
        if not self.states:
            assert self.data is not None
            of_noise, of_data = sampler.coefficients(position, step)
            own = noise[:, :, list(self.places)]
            return of_noise * own + of_data * self.data.to(own)
        ends = list(self.states) if self.data is None else [*self.states, self.data]
        position = min(position, len(ends) - 1)
        return ends[step] if position == step else sampler.between(dict(enumerate(ends)), position, step)

    def write(self, latents: Tensor, frames: Tensor | None) -> Tensor:
        """Overwrite the goal's frames of ``latents`` in place."""
        if frames is not None:
            latents[:, :, list(self.places)] = frames.to(latents)
        return latents

    def finish(self, latents: Tensor, num_steps: int) -> Tensor:
        """The denoised clip: with the goal's frames themselves where they were steered to the last step (D = x0)."""
        ends = self.data is not None and self.num_steered(num_steps) >= num_steps
        return self.write(latents.clone(), self.data) if ends else latents


@dataclass(frozen=True)
class Goals:
    """What the first and the last frames of a video are to be.

    Args:
        start: clean frames ``[B or 1, C, M, h, w]`` in the sampler's space that its first clip begins with.
        end: ``[B or 1, C, K, h, w]``, that its last clip ends with.
        loop: the last clip arrives at the first one's beginning, which it is cut at, so that the video repeats.
        joins: whether ``start`` and ``end`` are frames of other videos, and left out of this one.
        settings: of every goal.
        names: of what ``start`` and ``end`` were encoded from; where they are empty, of the frames themselves.
        repeated: K, the frames of its beginning that a loop's last clip ends with, which are left out of the video; the
            fewest until the clip is made (:func:`close`).
    """

    start: Tensor | None = None
    end: Tensor | None = None
    loop: bool = False
    joins: bool = False
    settings: GoalSettings = field(default_factory=GoalSettings)
    names: tuple[str, str] = ("", "")
    repeated: int = 1

    def __post_init__(self) -> None:
        if self.loop and self.end is not None:
            raise ValueError("a loop ends where it begins, so it takes no end image: leave out one of the two")

    def __bool__(self) -> bool:
        return self.loop or self.start is not None or self.end is not None

    @property
    def num_start(self) -> int:
        """M, the frames of the first clip that are given."""
        return 0 if self.start is None else self.start.shape[2]

    @property
    def num_end(self) -> int:
        """K, the frames of the last clip that are given."""
        return self.repeated if self.loop else 0 if self.end is None else self.end.shape[2]

    def check(self, num_clips: int, num_frames: int, reuse: ReuseSettings, begins: bool = True) -> None:
        """Raise ``ValueError`` where a video of so many clips cannot have these goals.

        Args:
            num_frames: N of a clip.
            reuse: how its clips reuse one another.
            begins: whether its first clip follows no other.
        """
        if self.start is not None and not begins:
            raise ValueError("a start image is for a video's first clip, but this video is continued: leave it out")
        if self.loop and not begins:
            raise ValueError(
                "a loop returns to the first clip, which a video that is continued from a state does not know: make "
                "the loop in one run"
            )
        if self.loop and num_clips < 2:
            raise ValueError("a loop of one clip would be a goal of its own: make at least 2 clips")
        before = self.num_start if num_clips == 1 and begins else self.reuse_of(reuse, True, num_frames).overlap_frames
        taken = max(before + self.num_end, self.num_start)
        if self and taken >= num_frames:
            raise ValueError(
                f"a clip has {num_frames} frames, of which {taken} would be given (the overlap or the start, and "
                f"{self.num_end} at the end): choose a smaller overlap or longer clips"
            )

    def reuse_of(self, reuse: ReuseSettings, is_last: bool, num_frames: int) -> ReuseSettings:
        """How a clip of N frames reuses its predecessor, in a video of the settings ``reuse``."""
        return closing(reuse, num_frames) if self.loop and is_last else reuse

    def num_added(self, num_clips: int, num_frames: int, reuse: ReuseSettings, begins: bool = True) -> int:
        """Frames that so many clips of N frames add to a video; of a loop that is not made yet, the most.

        Args:
            begins: whether the first of them follows no other.
        """
        following = num_clips - 1 if begins else num_clips
        trims = [self.reuse_of(reuse, place == following, num_frames).trim_frames for place in range(1, following + 1)]
        return num_clips * num_frames - sum(trims) - sum(self.skipped(begins, True))

    def of_clip(self, is_first: bool, is_last: bool, num_frames: int, beginning: Tensor | None = None) -> list[Goal]:
        """The goals of one clip.

        Args:
            beginning: the first clip's latents ``[B, C, N, h, w]``, which the last clip of a loop arrives at.
        """
        goals = []
        if is_first and self.start is not None:
            goals.append(Goal(tuple(range(self.num_start)), self.start, settings=self.settings))
        end = self.end
        if self.loop:
            end = None if beginning is None else beginning[:, :, : self.num_end]
        if is_last and end is not None:
            places = tuple(range(num_frames - self.num_end, num_frames))
            goals.append(Goal(places, end, settings=self.settings))
        return goals

    def make_clip(
        self,
        make: Callable[[list[Goal]], tuple[Tensor, Made]],
        is_first: bool,
        is_last: bool,
        num_frames: int,
        overlap: int,
        beginning: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Made], Goals]:
        """Make a clip that has these goals; a loop's last one by :func:`close`.

        Args:
            make: the clip's latents ``[B, C, N, h, w]`` and more, for the goals of :meth:`of_clip`.
            num_frames, overlap: N and M of the clip, M as of :meth:`reuse_of`.
            beginning: as of :meth:`of_clip`.

        Returns:
            What was made, and the goals with its ``repeated`` frames.
        """
        if not (self.loop and is_last and beginning is not None):
            return make(self.of_clip(is_first, is_last, num_frames, beginning)), self

        def closed(repeated: int) -> tuple[Tensor, Made]:
            return make(replace(self, repeated=repeated).of_clip(is_first, is_last, num_frames, beginning))

        counts = choices(num_frames, overlap)
        repeated, clip = close(closed, lambda clip: clip[0], beginning, overlap, counts)
        return clip, replace(self, repeated=repeated)

    def skipped(self, is_first: bool, is_last: bool) -> tuple[int, int]:
        """How many frames at the start and at the end of a clip are left out of the video."""
        return (
            self.num_start if is_first and self.joins else 0,
            self.num_end if is_last and (self.joins or self.loop) else 0,
        )

    def describe(self, is_first: bool, is_last: bool, reuse: ReuseSettings, num_frames: int) -> str:
        """A text that is equal for equal goals of a clip of N frames; "" where it has none.

        Args:
            reuse: how the video's clips reuse one another.
        """
        parts = []
        if is_first and self.start is not None:
            parts.append(f"the start {self.names[0] or frames_hash(self.start)[:SHORT]}")
        if is_last and self.end is not None:
            parts.append(f"the end {self.names[1] or frames_hash(self.end)[:SHORT]}")
        if is_last and self.loop:
            own = self.reuse_of(reuse, is_last, num_frames)
            parts.append("a loop" if own == reuse else f"a loop by an overlap of {own.overlap_frames}")
        if parts and self.joins:
            parts.append("left out")
        if parts and (self.settings.beta, self.settings.cleaner) != (GoalSettings.beta, GoalSettings.cleaner):
            parts.append(json.dumps(asdict(self.settings)))
        return ", ".join(parts)

    def without_end(self) -> Goals:
        """Those of a video that was stopped before its last clip."""
        return replace(self, end=None, loop=False)


def closing(reuse: ReuseSettings, num_frames: int) -> ReuseSettings:
    """How the last clip of a loop reuses its predecessor, in a video of the settings ``reuse``.

    The clip has to turn its overlap into the video's beginning, and the more new frames lie between, the more evenly it
    can. Its overlap is shortened until each of the :func:`choices` leaves a new frame, but not below what tells the
    motion (``GoalSettings.start_frames``); so is the trim, which the overlap is left out by.
    """
    return reuse.shortened(max(num_frames - 1 - MOST_REPEATED, GoalSettings.start_frames))


def choices(num_frames: int, overlap: int) -> range:
    """How many frames of its beginning a loop's last clip may end with, so that some of its ``num_frames`` are new."""
    return range(1, max(1, min(num_frames - 1 - overlap, MOST_REPEATED)) + 1)


def close(
    make: Callable[[int], Made], latents_of: Callable[[Made], Tensor], beginning: Tensor, overlap: int, counts: range
) -> tuple[int, Made]:
    """Make a loop's last clip with each count of repeated frames, and keep the one whose motion is most even.

    A motion comes back after a time of its own, seldom just as the video ends. The more of the beginning the clip ends
    with, the earlier it arrives there; too late, it must linger, and too early, hurry. Steps between neighbouring
    frames, as distances of their latents, are compared with those of the first clip; the step that is furthest off, as
    a factor, counts. Several videos side by side share one count, by the mean.

    Args:
        make: a clip that ends with so many first frames of the video.
        latents_of: its ``[B, C, N, h, w]``, of any scale that ``beginning`` shares.
        beginning: the first clip's latents ``[B, C, T, h, w]``.
        overlap: M, the first frames of the clip, which repeat the clip before.
        counts: to choose from, as of :func:`choices`; of equally even ones the first.

    Returns:
        The count, and the clip.
    """
    tried = [count for count in counts if count <= beginning.shape[2]]
    if len(tried) == 1:
        return tried[0], make(tried[0])
    usual = _steps(beginning).mean(1, keepdim=True)

    def unevenness(count: int, made: Made) -> float:
        latents = latents_of(made)
        steps = _steps(latents)[:, max(overlap - 1, 0) : latents.shape[2] - count]
        return float(((steps + TINY) / (usual.to(steps) + TINY)).log().abs().amax(1).mean())

    best: tuple[float, int, Made] | None = None
    for count in tried:
        made = make(count)
        found = unevenness(count, made)
        if best is None or found < best[0]:
            best = found, count, made
    assert best is not None
    return best[1:]


def _steps(latents: Tensor) -> Tensor:
    """The distance of each frame to the next, ``[B, T - 1]``, of ``[B, C, T, h, w]``."""
    return latents.float().diff(dim=2).pow(2).mean(dim=(1, 3, 4)).sqrt()
