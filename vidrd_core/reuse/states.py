"""A sampler's states between its steps: what an overlap or a goal shows that is cleaner than the frames beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .levels import level_between


@dataclass(frozen=True)
class SamplerStates:
    """How a sampler's states ``z[s]`` are made of data and noise, ``z[s] = data[s] * x0 + noise[s] * n``.

    A position counts steps, from 0 (before the first) to S (after the last: clean data); between two whole ones it is
    a share of the way from one noise level to the other, in steps of Stable Diffusion's schedule
    (:mod:`vidrd_core.reuse.levels`).

    Args:
        noise, data: before each step, ``[S]``.
        scales: the model sees ``z[s] / scales[s]``, ``[S]``.
    """

    noise: Sequence[float]
    data: Sequence[float]
    scales: Sequence[float]

    def coefficients(self, position: float, step: int) -> tuple[float, float]:
        """Of noise and data in the state at a position, at the scale of the states before ``step``."""
        if position == step:
            return self.noise[step], self.data[step]
        below, above = math.floor(position), math.ceil(position)
        level = level_between(self._level(below), self._level(above), position - below)
        size = math.hypot(level, 1 - level) / self.scales[step]  # the model sees noise and data of one size together
        return level / size, (1 - level) / size

    def between(self, states: Mapping[int, Tensor], position: float, step: int) -> Tensor:
        """The state at a position, on the way that a DDIM step takes from one state to the next.

        Args:
            states: ``z`` at the whole positions below and above.
            step: at the scale of whose states it is returned.
        """
        below = math.floor(position)
        if position == below:
            return states[below] * self._rescaled(below, step)
        (noise, data), (noise_after, data_after) = self._of_state(below), self._of_state(below + 1)
        wanted_noise, wanted_data = self.coefficients(position, step)
        determinant = noise * data_after - noise_after * data
        if not determinant:  # two calls at one noise level, as of Heun's method: the later one
            return states[below + 1] * self._rescaled(below + 1, step)
        before = (wanted_noise * data_after - noise_after * wanted_data) / determinant
        after = (noise * wanted_data - wanted_noise * data) / determinant
        return before * states[below] + after * states[below + 1]

    def _of_state(self, step: int) -> tuple[float, float]:
        return (self.noise[step], self.data[step]) if step < len(self.noise) else (0.0, 1.0)

    def _level(self, step: int) -> float:
        noise, data = self._of_state(step)
        return noise / (noise + data)

    def _rescaled(self, state: int, step: int) -> float:
        of_state = self.scales[state] if state < len(self.scales) else 1.0  # clean data is as it is
        return self.scales[step] / of_state
