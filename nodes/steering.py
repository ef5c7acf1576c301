"""Steer any stock sampler: overwrite its own x with the prior clip's states, and record the x it continues from.

A sampler calls its model with the tensor that it updates afterwards. Before each such call at one of the schedule's
noise levels, the overlap frames are overwritten *in place*, so that the sampler continues from the replaced state; what
it then holds is recorded for the next clip. States are found by their noise level, since some samplers call the model
several times per step: of several calls at one level the last is the step's own, the others are the step before trying
its end point.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..vidrd_core.reuse.trajectory import steer

logger = logging.getLogger(__name__)

OverlapAt = Callable[[int], "Tensor | None"]

# Deterministic samplers whose update starts from the x that the model was called with.
STEERABLE = (
    "euler", "ddim", "euler_cfg_pp", "heun", "heunpp2", "dpm_2", "lms", "dpmpp_2m", "dpmpp_2m_cfg_pp", "ipndm",
    "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp",
)  # fmt: skip
# The same, but they add noise in every step, so that the overlap keeps less of the prior clip.
STOCHASTIC = (
    "euler_ancestral", "euler_ancestral_cfg_pp", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "er_sde",
    "seeds_2", "seeds_3", "exp_heun_2_x0", "exp_heun_2_x0_sde",
)  # fmt: skip
REFUSED = {
    "lcm": "throws its x away in every step",
    "sa_solver": "rebuilds its x from an earlier one",
    "sa_solver_pece": "rebuilds its x from an earlier one",
    "uni_pc": "continues from another x than the one its model sees",
    "uni_pc_bh2": "continues from another x than the one its model sees",
    "dpm_fast": "chooses its own noise levels",
    "dpm_adaptive": "chooses its own noise levels",
}


def sampler_names() -> list[str]:
    """Samplers that a node offers: those that work, the deterministic ones first."""
    installed = [n for n in comfy.samplers.SAMPLER_NAMES if n not in REFUSED]
    known = [n for n in (*STEERABLE, *STOCHASTIC) if n in installed]
    return known + [n for n in installed if n not in known]


def check_sampler(name: str) -> None:
    """Raise ``ValueError`` for a sampler that cannot be steered; warn of one that nobody has tried."""
    if name in REFUSED:
        raise ValueError(
            f"the sampler {name} cannot be steered, it {REFUSED[name]}: use euler, ddim, heun or dpmpp_2m, for example"
        )
    if name not in STEERABLE and name not in STOCHASTIC:
        logger.warning("The sampler %s is unknown to VidRD; steering it was never tested.", name)


def noise_levels(model: Any, steps: int, sampler: str, scheduler: str, denoise: float = 1.0) -> Tensor:
    """The descending sigmas ``[S + 1]``, ending in 0, just as the stock KSampler takes them.

    Raises:
        ValueError: the installed ComfyUI has no such sampler or scheduler.
    """
    for kind, name, known in (
        ("sampler", sampler, comfy.samplers.SAMPLER_NAMES),
        ("scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES),
    ):
        if name not in known:
            raise ValueError(f"the {kind} {name} is not installed: choose one of {', '.join(known)}")
    stock = comfy.samplers.KSampler(
        model, steps=steps, device="cpu", sampler=sampler, scheduler=scheduler, denoise=denoise, model_options={}
    )
    return stock.sigmas


def state_scales(model: Any, sigmas: Tensor) -> list[float]:
    """The scale of a sampler's states before each step: what the model's sampling divides them by."""
    scaled = model.get_model_object("model_sampling").calculate_input(sigmas[:-1], torch.ones(len(sigmas) - 1))
    return [1 / float(one) for one in scaled]


class SteeredModel:
    """The model as a sampler sees it, with the overwriting and the recording before each call."""

    def __init__(self, model: Any, sigmas: Tensor, overlap_at: OverlapAt | None, states: dict[int, Tensor]):
        self.model = model
        self.levels = [float(s) for s in sigmas[:-1]]
        self.overlap_at = overlap_at
        self.states = states

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        step = self.step_at(float(sigma.flatten()[0]))
        if step is not None:
            if self.overlap_at is not None:
                steer(x, self.overlap_at(step))
            self.states[step] = x.detach().to("cpu", copy=True)
        return self.model(x, sigma, *args, **kwargs)

    def step_at(self, sigma: float) -> int | None:
        """The step that starts at this noise level."""
        nearest = min(range(len(self.levels)), key=lambda s: abs(self.levels[s] - sigma))
        return nearest if math.isclose(self.levels[nearest], sigma, rel_tol=1e-4) else None


def denoise_clip(
    model: Any,
    positive: Any,
    negative: Any,
    noise: Tensor,
    latent_image: Tensor,
    sigmas: Tensor,
    sampler: str,
    cfg: float,
    seed: int,
    overlap_at: OverlapAt | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Denoise one clip with a stock sampler.

    Args:
        noise: unit-variance noise ``[B, C, N, h, w]``.
        latent_image: unscaled latents to start from; zeros where there are none.
        overlap_at: step -> what overwrites the first frames before it.

    Returns:
        Unscaled latents and the states ``z[s]`` in the sampler's space, both on the CPU.

    Raises:
        ValueError: the sampler cannot be steered.
    """
    check_sampler(sampler)
    states: dict[int, Tensor] = {}
    stock = comfy.samplers.sampler_object(sampler)

    def sample(inner: Any, x: Tensor, sigmas: Tensor, **kwargs: Any) -> Tensor:
        # A clone, since some samplers write into the levels that they are given (uni_pc its last one).
        return stock.sampler_function(SteeredModel(inner, sigmas, overlap_at, states), x, sigmas.clone(), **kwargs)

    steered = comfy.samplers.KSAMPLER(sample, stock.extra_options, stock.inpaint_options)
    num_steps = len(sigmas) - 1
    samples = comfy.sample.sample_custom(
        model,
        scaled_noise(model, noise, latent_image, sigmas),
        cfg,
        steered,
        sigmas,
        positive,
        negative,
        latent_image,
        callback=latent_preview.prepare_callback(model, num_steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    missing = [s for s in range(num_steps) if s not in states]
    if missing:
        raise ValueError(
            f"the sampler {sampler} left out the noise levels of steps {missing}, so no clip could follow: use euler "
            "or dpmpp_2m, for example"
        )
    return samples.detach().float().cpu(), [states[s] for s in range(num_steps)]


def scaled_noise(model: Any, noise: Tensor, latent_image: Tensor, sigmas: Tensor) -> Tensor:
    """Noise that ComfyUI scales to a start of variance 1 + sigma^2 for pure noise, as the U-Net was trained.

    ComfyUI itself does so only where the schedule begins at the model's highest noise level; schedules that begin lower
    (ddim_uniform) it gives variance sigma^2.
    """
    first = float(sigmas[0])
    highest = float(model.get_model_object("model_sampling").sigma_max)
    if first > highest or math.isclose(first, highest, rel_tol=1e-5) or torch.count_nonzero(latent_image):
        return noise
    return noise * (math.sqrt(1 + first**2) / first)
