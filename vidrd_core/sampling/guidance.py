"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor


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
