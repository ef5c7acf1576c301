"""Tell a network the noise level of each frame, where it takes one: its overlap is cleaner than the new frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .families import LATENT, Family

# Of each stream (the video, and sound that is packed with it), the share of the call's timestep per frame, [T]; none
# where all frames are at one level.
Told = Callable[[], "list[Tensor]"]
MASKS = ("denoise_mask", "audio_denoise_mask")  # of the streams


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
        shapes = kwargs.get("latent_shapes") or [x.shape]
        for name, shares, shape in zip(MASKS, told(), shapes, strict=False):
            if len(shape) < 4 or shape[2] != len(shares):  # a context window, which sees other frames
                continue
            mask = shares.to(x).view(1, 1, -1, *[1] * (len(shape) - 3)).expand(len(x), 1, *shape[2:])
            known = kwargs.get(name)
            kwargs[name] = mask if known is None else mask * known
        return executor(x, *args, **kwargs)

    return apply


def _with_timesteps(told: Told) -> Any:
    def forward(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        for shares in told()[:1]:
            if x.ndim == 5 and x.shape[2] == len(shares) and timestep.ndim == 1:
                timestep = timestep[:, None] * shares.to(timestep)
        return executor(x, timestep, *args, **kwargs)

    return forward
