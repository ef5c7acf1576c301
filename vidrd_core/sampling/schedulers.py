"""diffusers' schedulers: by their short names, which of them can be steered, and how one is prepared for a clip."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from ..reuse.presets import SCHEDULERS
from ..reuse.states import SamplerStates
from .settings import SamplingSettings

# DSG replaces the sample before a step. These continue from a copy of their own instead.
REBUILDING = {"PNDMScheduler", "LCMScheduler", "TCDScheduler", "SASolverScheduler", "IPNDMScheduler"}
STOCHASTIC = {
    "CMStochasticIterativeScheduler",
    "CogVideoXDPMScheduler",
    "EDMEulerScheduler",
    "KarrasVeScheduler",
    "RePaintScheduler",
    "SCMScheduler",
    "UnCLIPScheduler",
    "VQDiffusionScheduler",
}
STOCHASTIC_PARTS = ("Ancestral", "SDE", "Sde", "DDPM", "Cosine")
INSTEAD = "use DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler, for example"


def check_scheduler(scheduler: Any) -> None:
    """Raise ``ValueError`` for a scheduler that cannot be steered, with the reason and what to use instead."""
    name = type(scheduler).__name__
    if "Inverse" in name or not all(hasattr(scheduler, part) for part in ("scale_model_input", "init_noise_sigma")):
        raise ValueError(f"{name} does not turn noise into samples of a Stable Diffusion model: {INSTEAD}")
    if name in REBUILDING:
        raise ValueError(f"{name} rebuilds its sample from an earlier one, so the overlap would be lost: {INSTEAD}")
    algorithm = str(getattr(scheduler.config, "algorithm_type", ""))
    if algorithm.startswith("sde") or name in STOCHASTIC or any(part in name for part in STOCHASTIC_PARTS):
        raise ValueError(f"{name} {algorithm} adds noise in every step, so a clip could not be made twice: {INSTEAD}")


def scheduler_context(scheduler: Any) -> dict[str, str]:
    """What must stay the same between clips, as text: DSG copies the samplers' own states step by step."""
    config = {k: str(v) for k, v in sorted(scheduler.config.items()) if not k.startswith("_")}
    return {"scheduler": type(scheduler).__name__, **config}


def check_context(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where a clip was sampled in another way than the one that is to follow it."""
    if not before:  # a trajectory that was not recorded by a pipeline
        return
    if before["scheduler"] != now["scheduler"]:
        raise ValueError(
            f"the clip before was made with {before['scheduler']}, this one would be with {now['scheduler']}: "
            "a video needs one scheduler from beginning to end"
        )
    differing = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    if differing:
        changes = ", ".join(f"{k} was {before.get(k)} and is {now.get(k)}" for k in differing)
        raise ValueError(f"the scheduler's settings have changed since the clip before: {changes}; set them back")


def prepare_scheduler(scheduler: Any, sampling: SamplingSettings, device: torch.device | str) -> Any:
    """A fresh copy of ``scheduler`` with its timesteps set for one clip; no history of the clip before."""
    check_scheduler(scheduler)
    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "disable_corrector"):
        # UniPC's corrector rebuilds the sample from the last one, which would undo the steering.
        steered = max(sampling.reuse.steered_steps(sampling.num_inference_steps), default=0)
        scheduler.disable_corrector = list(range(steered + 1))
    if sampling.sigmas is None:
        scheduler.set_timesteps(sampling.num_inference_steps, device=device)
    elif type(scheduler).__name__ == "EulerDiscreteScheduler":
        scheduler.set_timesteps(sigmas=list(sampling.sigmas), device=device)
    else:
        raise ValueError(
            f"the video was sampled at noise levels of its own, which {type(scheduler).__name__} cannot follow: use "
            "EulerDiscreteScheduler (--scheduler euler)"
        )
    return scheduler


def sampler_states(scheduler: Any) -> SamplerStates:
    """How a scheduler's states before each step are made, and what ``scale_model_input`` divides them by.

    Args:
        scheduler: with its timesteps set; it is left as it is.
    """
    probe = copy.deepcopy(scheduler)
    noise, data, scales = [], [], []
    for timestep in probe.timesteps:
        one, zero, at = *(make(1, device=timestep.device) for make in (torch.ones, torch.zeros)), timestep.reshape(1)
        noise.append(float(probe.add_noise(zero, one, at)))
        data.append(float(probe.add_noise(one, zero, at)))
        probe._step_index = None  # finds its step by the timestep
        scales.append(1 / float(probe.scale_model_input(one, timestep)))
    return SamplerStates(noise, data, scales)


def make_scheduler(name: str, config: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """diffusers' scheduler of a short name, with the noise schedule of ``config`` and ``options`` instead of its own.

    Raises:
        ValueError: the name is not known.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"{name!r} is no scheduler; known are: {', '.join(SCHEDULERS)}")
    return getattr(diffusers, SCHEDULERS[name]).from_config(dict(config), **dict(options or {}))
