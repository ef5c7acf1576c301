"""How noise enters a model's samples, asked of the model itself: flow, epsilon, v, EDM, RFLOW, with any shift."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class ModelNoise:
    """The noise process of a MODEL: a :class:`vidrd_core.reuse.replay.NoiseProcess`.

    Its ``model_sampling`` is probed, so that every model class and every node that changes the sampling is served.

    Args:
        model: a ComfyUI MODEL.
        unit_start: whether a clip that starts from pure noise below the model's highest noise level starts with
            variance 1 + sigma^2, as VidRD's U-Net was trained; ComfyUI itself gives it sigma^2 there.
    """

    def __init__(self, model: Any, unit_start: bool = False):
        self.sampling = model.get_model_object("model_sampling")
        self.unit_start = unit_start

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """What noise and data are multiplied by in a state at ``sigma``."""
        at, zero, one = torch.tensor([sigma]), torch.zeros(1), torch.ones(1)
        scaling = self.sampling.noise_scaling
        return float(scaling(at, one.clone(), zero)), float(scaling(at, zero.clone(), one))

    def mix(self, sigma: float, noise: Tensor, data: Tensor) -> Tensor:
        of_noise, of_data = self.coefficients(sigma)
        return of_noise * noise + of_data * data

    def scale(self, sigma: float) -> float:
        """What ``calculate_input`` divides a state at ``sigma`` by."""
        return 1 / float(self.sampling.calculate_input(torch.tensor([sigma]), torch.ones(1)))

    def level(self, sigma: float) -> float:
        of_noise, of_data = self.coefficients(sigma)
        return of_noise / (of_noise + of_data * self.spread)

    def sigma_at(self, level: float) -> float:
        if self.is_flow:
            return level
        return math.inf if level >= 1 else self.spread * level / (1 - level)

    def told(self, sigma: float) -> float:
        """The timestep that the network is given at ``sigma``."""
        return float(self.sampling.timestep(torch.tensor([max(sigma, 1e-9)]))) if sigma > 0 else 0.0

    @property
    def is_flow(self) -> bool:
        """Whether data fade as noise comes in: ``(1 - sigma) * data + sigma * noise``."""
        return abs(self.coefficients(0.5)[1] - 0.5) < 1e-6

    @property
    def spread(self) -> float:
        """The standard deviation of the data that the model was made for."""
        return float(getattr(self.sampling, "sigma_data", 1.0))

    @property
    def kind(self) -> str:
        """A name of the process; states of one kind are no states of another."""
        return "flow" if self.is_flow else f"noise of sigma, divided by {self.scale(1.0):.4g} at 1"

    def start_factor(self, sigma: float, starts_from_data: bool) -> float:
        """What unit-variance noise is multiplied by before ComfyUI scales it to a clip's start."""
        if not self.unit_start or starts_from_data or self._is_highest(sigma):
            return 1.0
        return math.sqrt(1 + sigma**2) / sigma

    def unit_noise_at_start(self, state: Tensor, sigma: float) -> Tensor:
        """The unit-variance noise that a clip without data starts from in ``state``."""
        at, one, zero = torch.tensor([sigma]), torch.ones(1), torch.zeros(1)
        factor = float(self.sampling.noise_scaling(at, one, zero, self._is_highest(sigma)))
        return state / (factor * self.start_factor(sigma, False))

    def _is_highest(self, sigma: float) -> bool:
        """Whether ComfyUI takes a run from ``sigma`` for one from the model's highest noise level."""
        highest = float(self.sampling.sigma_max)
        return sigma > highest or math.isclose(sigma, highest, rel_tol=1e-5)
