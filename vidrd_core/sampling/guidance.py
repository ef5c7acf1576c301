"""Classifier-free guidance, as a denoiser that wraps the U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .settings import ALWAYS, Interval


@dataclass(frozen=True)
class GuidedDenoiser:
    """A U-Net's prediction for one text, with classifier-free guidance (arXiv 2207.12598).

    ``uncond + scale * (cond - uncond)``, in the latents' own precision; the U-Net runs in that of ``text``.

    Args:
        unet: predicts ``[B, C, N, h, w]`` of latents, a timestep and text states.
        text, negative: states ``[B, M, D]``; no guidance where ``negative`` is None.
        scale: of guidance.
        interval: the share of the steps, from and to, in which guidance runs; the prompt alone in the others.
        rescale: strength of :func:`rescale_guidance`, 0 (off) to 1.
        split: run the two halves of guidance one after the other, in about half the memory.
    """

    unet: Any
    text: Tensor
    negative: Tensor | None = None
    scale: float = 1.0
    interval: Interval = ALWAYS
    rescale: float = 0.0
    split: bool = False

    def __call__(self, latents: Tensor, timestep: Tensor, progress: float = 0.0) -> Tensor:
        """The prediction for ``latents`` ``[B, C, N, h, w]``, scaled as the U-Net wants them.

        Args:
            progress: the share of the steps that have been done, 0 to below 1.
        """
        if self.negative is None or not is_guided(progress, self.interval):
            return self._predict(latents, timestep, self.text)
        if self.split:
            uncond, cond = (self._predict(latents, timestep, half) for half in (self.negative, self.text))
        else:
            both = torch.cat((self.negative, self.text))
            uncond, cond = self._predict(torch.cat((latents, latents)), timestep, both).chunk(2)
        predicted = uncond + self.scale * (cond - uncond)
        return rescale_guidance(predicted, cond, self.rescale) if self.rescale else predicted

    def _predict(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.unet(latents.to(text.dtype), timestep, text).sample.to(latents.dtype)


def is_guided(progress: float, interval: Sequence[float]) -> bool:
    """Whether classifier-free guidance runs after this share of the steps."""
    return interval[0] <= progress < interval[1]


def rescale_guidance(guided: Tensor, conditional: Tensor, strength: float) -> Tensor:
    """Give a guided prediction the standard deviation of the conditional one (arXiv 2305.08891, equations 15 and 16).

    Args:
        guided: ``uncond + scale * (cond - uncond)``.
        strength: phi; 0 leaves the prediction as it is, 1 rescales all the way, 0.7 is the paper's.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"guidance rescale is {strength}; expected 0 (off) to 1")
    dims = tuple(range(1, guided.ndim))
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True).clamp(min=1e-6)
    return guided * (1 + strength * (ratio - 1))
