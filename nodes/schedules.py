"""How a clip is denoised: sampler, noise levels, one model or two experts, and what a node asks for instead."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.interchange import STORED_SIGMAS
from .any_model.families import Family, latent_format_of
from .any_model.noise import ModelNoise
from .native.model import VidRDModel
from .samplers import noise_levels
from .words import AUTO, FROM_PRIOR, RELEASED_SAMPLER, RELEASED_SCHEDULER

logger = logging.getLogger(__name__)

UNKNOWN = ""  # sampler: of a node that brought its own


@dataclass(frozen=True)
class Models:
    """The MODEL that samples a clip, and the second expert of Wan 2.2 14B.

    Args:
        low: takes over where the noise is low; None: one model samples the whole clip.
        switch_at_step: the step with which it does; 0: in the middle.
    """

    high: Any
    low: Any = None
    switch_at_step: int = 0

    def check(self) -> None:
        """Raise ``ValueError`` where the two experts do not sample the same latents."""
        if self.low is not None and latent_format_of(self.low) != latent_format_of(self.high):
            raise ValueError(
                f"model_low has {latent_format_of(self.low)}'s latents and model {latent_format_of(self.high)}'s: "
                "connect the two experts of one model, or only model"
            )

    def switch(self, num_steps: int) -> int:
        """The first step of the second expert, at most ``num_steps``.

        Raises:
            ValueError: no step would be left for it.
        """
        if self.low is None:
            return num_steps
        switch = self.switch_at_step or num_steps // 2
        if not 0 < switch < num_steps:
            raise ValueError(
                f"switch_at_step is {switch} of {num_steps} steps; expected 1 to {num_steps - 1}, so that both experts "
                "sample"
            )
        return switch


@dataclass(frozen=True)
class Schedule:
    """How a clip is denoised.

    Args:
        levels: noise levels given by a SIGMAS input, in place of ``steps`` and ``scheduler``.
    """

    steps: int
    sampler: str
    scheduler: str
    levels: tuple[float, ...] | None = None

    @classmethod
    def of_levels(cls, sigmas: Tensor, sampler: str) -> Schedule:
        """The schedule of a SIGMAS input.

        Raises:
            ValueError: it has no step, or does not end at 0.
        """
        levels = tuple(float(level) for level in sigmas)
        if len(levels) < 2 or levels[-1] != 0:
            raise ValueError(
                f"SIGMAS has {len(levels)} levels, ending at {levels[-1] if levels else 'nothing'}; expected at "
                "least one step that ends at 0: connect a scheduler node without splitting its sigmas"
            )
        return cls(len(levels) - 1, sampler, STORED_SIGMAS, levels)

    def sigmas(self, model: Any, denoise: float = 1.0) -> Tensor:
        if self.levels is not None:
            return torch.tensor(self.levels)
        return noise_levels(model, self.steps, self.sampler, self.scheduler, denoise)

    def log_other_count(self, sigmas: Tensor) -> None:
        """Log it where the scheduler made another number of steps than was asked for, as ddim_uniform does."""
        if len(sigmas) - 1 != self.steps:
            made = len(sigmas) - 1
            logger.info("%s makes %d steps of %d, as in the stock KSampler.", self.scheduler, made, self.steps)

    def context(
        self, model: Any, family: Family, sigmas: Tensor, clip_index: int, seeds: list[int], **known: Any
    ) -> dict[str, Any]:
        """What a trajectory remembers of how its clip was made, and which seeds its video has used so far."""
        return {
            **made_by(model, family),
            "steps": self.steps,
            "sampler": self.sampler,
            "scheduler": self.scheduler,
            "sigmas": [float(s) for s in sigmas],
            "clip_index": clip_index,
            "seeds": seeds,
            **known,
        }


RELEASED_SCHEDULE = Schedule(50, RELEASED_SAMPLER, RELEASED_SCHEDULER)
USUAL_SCHEDULE = Schedule(20, "euler", "simple")  # of other families, where nothing says more


def usual_schedule(model: Any, family: Family) -> Schedule:
    """How clips are sampled where nothing says more; a VidRD model in as many steps as suit it."""
    if not family.is_vidrd:
        return USUAL_SCHEDULE
    known = model.model.defaults
    return (
        RELEASED_SCHEDULE if known is None else replace(RELEASED_SCHEDULE, steps=known.steps, scheduler=known.scheduler)
    )


def first_schedule(model: Any, family: Family, overrides: Overrides, sigmas: Tensor | None) -> Schedule:
    """How a video's first clip is sampled: as the node asks, else as usual; ``sigmas`` replace steps and scheduler."""
    schedule = overrides.schedule({}, usual_schedule(model, family))
    return schedule if sigmas is None else Schedule.of_levels(sigmas, schedule.sampler)


def made_by(model: Any, family: Family) -> dict[str, Any]:
    """What a trajectory remembers of its model."""
    inner = model.model
    if isinstance(inner, VidRDModel):
        return {"model": inner.fingerprint, "scaling_factor": float(inner.latent_format.scale_factor)}
    return {
        "family": family.name,
        "model": type(inner).__name__,
        "format": latent_format_of(model),
        "layout": family.layout.name,
        "frames_per_latent": family.layout.frames_per_latent,
        "process": ModelNoise(model).kind,
    }


@dataclass(frozen=True)
class Overrides:
    """What a node asks for in place of what the prior was made with; the defaults leave it all to the prior."""

    steps: int = 0
    sampler: str = FROM_PRIOR
    scheduler: str = FROM_PRIOR
    prior_trajectory: str = AUTO
    clip_frames: int = 0

    def schedule(self, known: Mapping[str, Any], usual: Schedule = RELEASED_SCHEDULE) -> Schedule:
        """The schedule that was asked for; the rest as in the context ``known``, else the usual one."""
        asked: dict[str, Any] = {"steps": self.steps, "sampler": self.sampler, "scheduler": self.scheduler}
        chosen = {name: value for name, value in asked.items() if value not in (0, FROM_PRIOR)}
        known = {name: value for name, value in known.items() if value not in (STORED_SIGMAS, UNKNOWN)}
        names = ("steps", "sampler", "scheduler")
        return Schedule(**{n: chosen.get(n, known.get(n, getattr(usual, n))) for n in names})

    def check(self, trajectory: Trajectory, made: str, change: str) -> None:
        """Raise ``ValueError`` where something is asked for that ``trajectory`` does not fit.

        Args:
            made: what the trajectory is of, for the message.
            change: how to get what was asked for.
        """
        context = trajectory.context
        for name, asked, known, unset in (
            ("steps", self.steps, context["steps"], 0),
            ("sampler", self.sampler, context["sampler"], FROM_PRIOR),
            ("scheduler", self.scheduler, context["scheduler"], FROM_PRIOR),
            ("clip_frames", self.clip_frames, trajectory.num_frames, 0),
        ):
            if asked not in (unset, known) and known != UNKNOWN:
                raise ValueError(
                    f"{made} was made with {name} {known}, this node asks for {asked}: set {name} to {unset} to "
                    f"continue as before, or {change}"
                )


NO_OVERRIDES = Overrides()
