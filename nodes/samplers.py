"""The samplers that nodes offer, and the noise levels that they walk. Imports nothing heavy: menus are made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.samplers

if TYPE_CHECKING:
    from torch import Tensor

REFUSED = {"dpm_adaptive": "chooses the noise levels of its calls by what it finds, other ones in every clip"}
FIRST = ("euler", "ddim", "uni_pc", "dpmpp_2m", "res_multistep", "lcm", "heun")  # in menus


def sampler_names() -> list[str]:
    """Samplers that a node offers, those that most people choose first."""
    installed = [name for name in comfy.samplers.SAMPLER_NAMES if name not in REFUSED]
    return [name for name in FIRST if name in installed] + [name for name in installed if name not in FIRST]


def check_sampler(name: str) -> None:
    """Raise ``ValueError`` for a sampler that cannot be steered."""
    if name in REFUSED:
        raise ValueError(
            f"the sampler {name} cannot be steered, it {REFUSED[name]}: use euler, ddim, uni_pc or dpmpp_2m"
        )


def name_of(sampler: Any) -> str:
    """The name of a sampler object; "" of one that no menu offers."""
    function = getattr(sampler, "sampler_function", None)
    named = ((name, comfy.samplers.sampler_object(name)) for name in sampler_names())
    return next((name for name, one in named if one.sampler_function is function), "")


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
