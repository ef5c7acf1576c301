"""Carry a clip's trajectory between diffusers' schedulers and the samplers of k-diffusion, which ComfyUI uses.

A sampler of k-diffusion holds ``x = x0 + sigma * n``. A scheduler holds that (Euler) or ``x / sqrt(1 + sigma^2)``
(DDIM, DPM-Solver++), which is what its U-Net sees either way. Both walk the same noise levels sigma, so that a video
begun by one can be continued by the other.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers
from torch import Tensor

from ..reuse.presets import PRESETS
from ..reuse.settings import ReuseSettings
from ..reuse.trajectory import Trajectory
from .schedulers import prepare_scheduler, sampler_states
from .seeds import clip_seed
from .settings import SamplingSettings

SAMPLERS = {"DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler", "DPMSolverMultistepScheduler": "dpmpp_2m"}
FOLLOWED = ("euler", "ddim")  # samplers whose every step is one of EulerDiscreteScheduler
STORED_SIGMAS = "stored sigmas"  # in place of a schedule's name: the levels are in the trajectory itself
FACTOR = 8  # pixels per latent


def is_of_sampler(context: Mapping[str, Any]) -> bool:
    """Whether a trajectory's context is of a k-diffusion sampler, not of a diffusers scheduler."""
    return "sampler" in context


def for_sampler(
    trajectory: Trajectory, sampling: SamplingSettings, seeds: list[int], clip_index: int, model: str
) -> Trajectory:
    """The trajectory of a clip that a diffusers scheduler made, as a k-diffusion sampler would have recorded it.

    Args:
        sampling: of that clip.
        seeds: the video's seed, one per video of the batch.
        model: the fingerprint of its U-Net.

    Raises:
        ValueError: the scheduler has no sampler that continues its work.
    """
    name = str(trajectory.context.get("scheduler"))
    if name not in SAMPLERS:
        raise ValueError(
            f"the video was made with {name}, which no sampler here continues; known are {', '.join(SAMPLERS)}: "
            "continue it with vidrd extend, or encode its frames and continue these"
        )
    config = {key: _value(text) for key, text in trajectory.context.items() if key != "scheduler"}
    scheduler = prepare_scheduler(getattr(diffusers, name).from_config(config), sampling, "cpu")
    if hasattr(scheduler, "sigmas"):
        sigmas = [float(sigma) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]
    else:
        kept = [float(scheduler.alphas_cumprod[int(timestep)]) for timestep in scheduler.timesteps]
        sigmas = [math.sqrt((1 - alpha) / alpha) for alpha in kept]
    scales = sampler_states(scheduler).scales
    factors = [math.sqrt(1 + sigma**2) / scale for sigma, scale in zip(sigmas, scales, strict=True)]
    context = {
        "model": model,
        "steps": trajectory.num_steps,
        "sampler": SAMPLERS[name],
        "scheduler": STORED_SIGMAS,
        "sigmas": [*sigmas, 0.0],
        "clip_index": clip_index,
        "seeds": [clip_seed(seeds[0], index) for index in range(clip_index + 1)],
        "cfg": sampling.guidance_scale,
    }
    states = [state * factor for state, factor in zip(trajectory.states, factors)]
    return replace(trajectory, states=states, context=context)


def for_scheduler(trajectory: Trajectory, latents: Tensor) -> tuple[Trajectory, SamplingSettings]:
    """The trajectory of a clip that a k-diffusion sampler made, for diffusers' EulerDiscreteScheduler.

    Args:
        latents: of the video ``[B, C, T, h, w]`` in the sampler's space, whose last frames the clip ends with.

    Returns:
        The trajectory, and settings that sample the next clip at the same noise levels.

    Raises:
        ValueError: the sampler is not one whose steps that scheduler takes, or its guidance scale is not known.
    """
    context = trajectory.context
    if "family" in context:
        raise ValueError(
            f"the video was made with {context['family']} in ComfyUI, which alone continues it: open it there"
        )
    if context["sampler"] not in FOLLOWED:
        raise ValueError(
            f"the video was sampled with {context['sampler']}, whose steps only ComfyUI takes: continue it there, or "
            f"sample its last clip with one of {', '.join(FOLLOWED)}"
        )
    if "cfg" not in context:
        raise ValueError(
            "the state was saved by an earlier version of the node pack, which did not store cfg: sample its last clip "
            "again and save it, or continue it in ComfyUI"
        )
    known = context.get("reuse")
    num_frames = trajectory.num_frames
    reuse = PRESETS["smooth"].reuse.fitted(num_frames) if known is None else ReuseSettings.from_json(known)
    sampling = SamplingSettings(
        num_frames,
        latents.shape[3] * FACTOR,
        latents.shape[4] * FACTOR,
        trajectory.num_steps,
        context["cfg"],
        reuse,
        negative_prompt=None,
        sigmas=tuple(context["sigmas"]),
    )
    end = latents[:, :, latents.shape[2] - trajectory.states[-1].shape[2] :]
    states = [*trajectory.states, end.to(trajectory.states[-1])]
    return replace(trajectory, states=states, context={}, predictions=[], calls=[]), sampling


def _value(text: Any) -> Any:
    """A setting of a scheduler from its text in a context."""
    for read in (ast.literal_eval, float):  # float reads "-inf" too
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text  # a word
