"""Which diffusers schedulers can be steered, and how one is prepared for a clip."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .state import SamplingSettings

# Staged guidance replaces the sample before a step. These go on from a copy of their own instead.
REBUILDING = {"PNDMScheduler", "LCMScheduler", "TCDScheduler", "SASolverScheduler", "IPNDMScheduler"}
STOCHASTIC = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "SASolver", "EDMEuler", "VQ", "CM")


def check_scheduler(scheduler: Any) -> None:
    """Raise ``ValueError`` for a scheduler that cannot be steered, with the reason and the remedy."""
    name = type(scheduler).__name__
    algorithm = str(getattr(scheduler.config, "algorithm_type", ""))
    remedy = "use DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler, for example"
    if name in REBUILDING:
        raise ValueError(f"{name} rebuilds its sample from an earlier one, so guidance would be lost: {remedy}")
    if algorithm.startswith("sde") or any(part in name for part in STOCHASTIC):
        raise ValueError(f"{name} {algorithm} adds noise in every step, so a clip could not be made twice: {remedy}")


def prepare_scheduler(scheduler: Any, sampling: SamplingSettings, device: torch.device | str) -> Any:
    """A fresh copy of ``scheduler`` with its timesteps set for one clip; no history of the clip before."""
    check_scheduler(scheduler)
    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "disable_corrector"):
        # UniPC's corrector rebuilds the sample from the last one, which would undo the guidance.
        guided = max(sampling.reuse.guided_steps(sampling.num_inference_steps), default=0)
        scheduler.disable_corrector = list(range(guided + 1))
    scheduler.set_timesteps(sampling.num_inference_steps, device=device)
    return scheduler
