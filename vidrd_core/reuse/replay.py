"""Replay: DSG for any sampler (arXiv 2309.03549), without writing into the sampler's x.

A sampler calls its model with a state x at a noise level sigma and is handed the clean data D that the model sees in
it. Both are recorded at every call. In the next clip the overlap starts from the same noise; at each call the network
is shown the recorded x of the last clip in a copy, and the sampler is handed the recorded D. Its own x then walks the
recorded path by itself, whatever it makes of D, and where steering ends it is at the right level. With Euler's method
and DDIM that is what overwriting x does, to the bit.

A clip that was not recorded (an encoded video) is followed along the straight line from its noise, ``D = x0``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .levels import level_at, level_between, progress_at
from .settings import ReuseSettings
from .trajectory import num_steered_frames

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative, between two noise levels that are the same


class NoiseProcess(Protocol):
    """How the states of a model's samplers are made of data and noise."""

    def mix(self, sigma: float, noise: Tensor, data: Tensor) -> Tensor:
        """The state at ``sigma`` of ``data`` with unit-variance ``noise``."""

    def scale(self, sigma: float) -> float:
        """What a state at ``sigma`` is divided by before the network sees it."""

    def level(self, sigma: float) -> float:
        """The noise level of :mod:`vidrd_core.reuse.levels`, 0 to 1."""

    def sigma_at(self, level: float) -> float:
        """The sigma of a noise level."""


class Pace(Protocol):
    """Which frames are steered at a noise level, and which level they show."""

    def num_steered(self, settings: ReuseSettings, sigma: float) -> int:
        """How many of the overlap's frames are steered; they are its first ones."""

    def shown(self, settings: ReuseSettings, sigma: float) -> float:
        """The sigma of the state that they show, at most ``sigma``."""


@dataclass(frozen=True)
class StepPace:
    """By shares of a schedule's steps, as VidRD defines beta and the cleaner overlap.

    Args:
        sigmas: the schedule ``[S + 1]``, descending, of a model that adds ``sigma * noise``.
    """

    sigmas: Sequence[float]

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1

    def step(self, sigma: float) -> int:
        """The step that starts at this level, or whose way leads over it."""
        return max((s for s in range(self.num_steps) if self.sigmas[s] >= sigma * (1 - TOLERANCE)), default=0)

    def num_steered(self, settings: ReuseSettings, sigma: float) -> int:
        return num_steered_frames(settings, self.step(sigma), self.num_steps)

    def shown(self, settings: ReuseSettings, sigma: float) -> float:
        step = self.step(sigma)
        position = settings.shown_at(step, self.num_steps)
        if position == step:
            return sigma
        below, above = (self.sigmas[n] for n in (math.floor(position), math.ceil(position)))
        if below == above:
            return below
        level = level_between(below / (1 + below), above / (1 + above), position % 1)
        return level / (1 - level)


@dataclass(frozen=True)
class LevelPace:
    """By noise levels: shares mean the levels that they lead to in Stable Diffusion's schedule."""

    process: NoiseProcess

    def num_steered(self, settings: ReuseSettings, sigma: float) -> int:
        done = progress_at(self.process.level(sigma))
        return sum(done < share - 1e-9 for share in settings.steered_shares())

    def shown(self, settings: ReuseSettings, sigma: float) -> float:
        if not settings.cleaner_overlap:
            return sigma
        done = progress_at(self.process.level(sigma))
        return min(sigma, self.process.sigma_at(level_at(done + settings.cleaner_overlap * (1 - done))))


@dataclass
class Recording:
    """What a clip's model calls showed, of its last K frames.

    Args:
        sigmas: of the calls, in their order.
        states: x at each call, ``[B, C, K, h, w]``.
        predictions: D at each call; empty where only states are known.
    """

    sigmas: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    def add(self, sigma: float, state: Tensor, prediction: Tensor) -> None:
        self.sigmas.append(sigma)
        self.states.append(state)
        self.predictions.append(prediction)

    def __len__(self) -> int:
        return len(self.sigmas)


@dataclass(frozen=True)
class PastClip:
    """The clip before, as far as its overlap with the next one needs it.

    Args:
        recording: of its calls; empty where it was not recorded.
        end: its denoised last frames ``[B, C, K, h, w]`` in the sampler's space.
        noise: unit-variance noise that the clip started from, at least of those frames; None where nobody knows it: the
            straight line then begins at the next clip's own.
        process: of the model.
    """

    recording: Recording
    end: Tensor
    noise: Tensor | None
    process: NoiseProcess

    def follows(self, call: int, sigma: float) -> bool:
        """Whether the recording's call of this number was at this noise level, to half the gap to its neighbours."""
        sigmas = self.recording.sigmas
        if call >= len(sigmas):
            return False
        gaps = [abs(other - sigmas[call]) for other in (*sigmas, 0.0) if abs(other - sigmas[call]) > 1e-9]
        return abs(sigma - sigmas[call]) <= min(gaps, default=1.0) / 2

    def state(self, sigma: float, back: Tensor) -> Tensor:
        """x at a noise level, of the frames that lie so many from the end (1: the last).

        Of several calls at one level the last is the step's own. Between two levels it is on the straight line, which
        Euler's method walks; above the first, on the line from the noise.
        """
        sigmas = self.recording.sigmas
        for call in reversed(range(len(sigmas))):
            if abs(sigmas[call] - sigma) <= TOLERANCE * max(sigma, 1e-3):
                return _frames(self.recording.states[call], back)
        end = _frames(self.end, back)
        higher = [call for call, other in enumerate(sigmas) if other > sigma]
        if not higher:
            return self._before_first(sigma, back)
        above = min(higher, key=lambda call: (sigmas[call], -call))
        lower = [call for call, other in enumerate(sigmas) if other < sigma]
        below = max(lower, key=lambda call: (sigmas[call], call), default=None)
        low, under = (0.0, end) if below is None else (sigmas[below], _frames(self.recording.states[below], back))
        share = (sigmas[above] - sigma) / (sigmas[above] - low)
        return torch.lerp(_frames(self.recording.states[above], back).float(), under.float(), share)

    def _before_first(self, sigma: float, back: Tensor) -> Tensor:
        """The state above the first recorded level, on the straight line from the noise through that one."""
        assert self.noise is not None
        noise, data, recorded = _frames(self.noise, back).float(), _frames(self.end, back).float(), self.recording
        if recorded.sigmas:
            of_data = float(self.process.mix(recorded.sigmas[0], torch.zeros(1), torch.ones(1)))
            if of_data > 1e-6:  # what the first state was made of, beside the noise
                without = self.process.mix(recorded.sigmas[0], noise, torch.zeros_like(noise))
                data = (_frames(recorded.states[0], back).float() - without) / of_data
        return self.process.mix(sigma, noise, data)

    def prediction(self, call: int, is_followed: bool, back: Tensor) -> Tensor:
        """D at a call; where none is known, the one by which Euler's method reaches the next state, or the end."""
        recorded = self.recording
        if not is_followed:
            return _frames(self.end, back)
        if recorded.predictions:
            return _frames(recorded.predictions[call], back)
        state, sigma = _frames(recorded.states[call], back).float(), recorded.sigmas[call]
        is_last = call + 1 == len(recorded)
        after = _frames(self.end if is_last else recorded.states[call + 1], back).float()
        gap = sigma - (0.0 if is_last else recorded.sigmas[call + 1])
        return state - (state - after) * (sigma / gap) if gap else after


@dataclass(frozen=True)
class Steered:
    """What one model call is steered by.

    Args:
        shown: what the network sees in place of the overlap's first frames, ``[B, C, m, h, w]``.
        shown_sigma: the noise level that it was recorded at.
        prediction: what the sampler is handed in place of D, of the first frames, ``[B, C, n, h, w]``, n at most m.
    """

    shown: Tensor
    shown_sigma: float
    prediction: Tensor


class Replay:
    """The overlap of one clip, steered along the clip before.

    Args:
        settings: with at most as many overlap frames as ``past`` kept.
        pace: which frames are steered when.

    Raises:
        ValueError: the overlap needs frames that were not kept.
    """

    def __init__(self, past: PastClip, settings: ReuseSettings, pace: Pace):
        kept, overlap = past.end.shape[2], settings.overlap_frames
        if overlap > kept:
            raise ValueError(
                f"the overlap is {overlap} latents but only the last {kept} of the prior clip were kept: choose a "
                "smaller overlap"
            )
        self.past = past
        self.settings = settings
        self.pace = pace
        self.is_followed = True
        self.takes_own_noise = past.noise is None
        frames = torch.arange(overlap)
        self.back = frames + 1 if settings.order == "reverse" else overlap - frames

    def begin(self, noise: Tensor) -> None:
        """Before the sampler's first call.

        Args:
            noise: that the clip starts from, beginning with the overlap's frames.
        """
        self.is_followed = len(self.past.recording) > 0
        if self.takes_own_noise:
            own = torch.zeros_like(self.past.end, dtype=noise.dtype)
            own[:, :, own.shape[2] - self.back] = noise[:, :, : len(self.back)]
            self.past = replace(self.past, noise=own)

    def at(self, call: int, sigma: float, next_sigma: float) -> Steered | None:
        """What call number ``call`` is steered by; None: nothing.

        Args:
            next_sigma: the level of the schedule below this one.
        """
        if self.is_followed and not self.past.follows(call, sigma):
            self.is_followed = False
            logger.info(
                "From noise level %.4g on, the sampler calls the model at other levels than the prior's did; the "
                "prior's states are interpolated.",
                sigma,
            )
        count = self.pace.num_steered(self.settings, sigma)
        if count == 0:
            return None
        back = self.back[:count]
        level = self.pace.shown(self.settings, sigma)
        recorded = self.past.recording
        if self.is_followed and level == sigma:
            shown = _frames(recorded.states[call], back)
        else:
            shown = self.past.state(level, back)
            if level != sigma:
                shown = shown * (self.past.process.scale(sigma) / self.past.process.scale(level))
        # A frame whose steering ends here goes on by its own prediction, as it would from a state written into x.
        replayed = count if next_sigma <= 0 else self.pace.num_steered(self.settings, next_sigma)
        return Steered(shown, level, self.past.prediction(call, self.is_followed, back[: min(count, replayed)]))


def overlap_noise(past: Tensor | None, fresh: Tensor, settings: ReuseSettings, back: Tensor) -> Tensor:
    """The noise of a clip whose length may differ from the clip's before: the overlap's is the past's, the rest fresh.

    Args:
        past: noise of the last clip's last frames; None: all is fresh.
        back: how far from the end the overlap's frames are, as in :class:`Replay`.
    """
    if past is None or not settings.overlap_frames:
        return fresh
    return torch.cat((_frames(past, back).to(fresh), fresh[:, :, settings.overlap_frames :]), dim=2)


def _frames(tensor: Tensor, back: Tensor) -> Tensor:
    """Frames counted from the end, 1 being the last."""
    if any(distance > tensor.shape[2] for distance in back.tolist()):
        raise ValueError(f"the overlap needs the last {int(back.max())} frames; only {tensor.shape[2]} were kept")
    return tensor[:, :, tensor.shape[2] - back]
