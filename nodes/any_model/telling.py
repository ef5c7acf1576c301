"""Tell a network the noise level of each frame, where it takes one: its overlap is cleaner than the new frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .families import LATENT, Family

Told = Callable[[], "Tensor | None"]  # share of the call's timestep, per frame, [T]; None: the same for all


def tell(model: Any, family: Family, key: str, told: Told) -> None:
    """Make a MODEL's network take each frame's timestep in the model calls that ``told`` gives shares for.

    Args:
        model: a clone, which is changed.
        family: ``tells`` says how: by the mask that LTX-Video, Wan 2.2 5B and Cosmos Predict2 multiply the timestep
            with, or by a timestep per frame ``[B, T]``, which every Wan network takes (Diffusion Forcing).
    """
    if family.tells == LATENT:
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, _with_mask(told))
    elif family.tells:
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, _with_timesteps(told))


def _with_mask(told: Told) -> Any:
    def apply(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        shares = told()
        if shares is not None and x.ndim == 5 and x.shape[2] == len(shares):
            mask = shares.to(x)[None, None, :, None, None].expand(len(x), 1, *x.shape[2:])
            known = kwargs.get("denoise_mask")
            kwargs["denoise_mask"] = mask if known is None else mask * known
        return executor(x, *args, **kwargs)

    return apply


def _with_timesteps(told: Told) -> Any:
    def forward(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        shares = told()
        if shares is not None and x.ndim == 5 and x.shape[2] == len(shares) and timestep.ndim == 1:
            timestep = timestep[:, None] * shares.to(timestep)
        return executor(x, timestep, *args, **kwargs)

    return forward
