"""The flow transformer's training objective: noise levels of clips and of their cleaner latents.

A latent of level s is x = (1 - s) x0 + s noise, and the network predicts the velocity noise - x0 (rectified flow, arXiv
2209.03003), as Wan does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .micro_batches import MicroBatch

NOISE_LEVELS = 10  # bins of the loss by noise level, in the statistics
TIMESTEPS = 1000  # the network's timestep is the noise level times this


@dataclass(frozen=True)
class FlowObjective:
    """Settings of the flow transformer's objective; our own."""

    lengths: tuple[int, ...] = (8,)  # latents of a step's clips; each as often as it is named
    image_share: float = 0.0  # share of steps that are single latents
    images_per_clip: int = 8  # single latents in place of one clip, to keep the cost of a step even
    caption_dropout: float = 0.1  # share of captions that a null caption replaces, for classifier-free guidance
    null_captions: tuple[str, ...] = ("",)  # one of these, with equal probability
    # Noise levels are s = shift u / (1 + (shift - 1) u) of a uniform u, but for a share of logit-normal ones (arXiv
    # 2403.03206, section 3.1): sigmoid(mean + std * normal).
    shift: float = 3.0
    focus_share: float = 0.0
    focus_mean: float = 0.0
    focus_std: float = 1.0
    # Share of clips of which some consecutive latents are less noisy than the others: their level is the clip's times
    # a share between the two of ``cleaner_level``. Levels of their own are the idea of Diffusion Forcing (arXiv
    # 2407.01392).
    cleaner_share: float = 0.0
    cleaner_counts: tuple[int, ...] = (1, 2, 3, 4)  # how many latents; at least one stays as noisy as the clip
    cleaner_starts: tuple[int, ...] = (0,)  # the first of them: 0 for a prefix; empty: anywhere
    cleaner_level: tuple[float, float] = (0.0, 0.5)
    # Share of these clips whose network is given every latent's own timestep; the others give it the clip's alone.
    timestep_per_latent_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_share", "caption_dropout", "focus_share", "cleaner_share", "timestep_per_latent_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share, 0 to 1")
        if not self.lengths or min(self.lengths) < 1 or self.images_per_clip < 1:
            raise ValueError(
                f"lengths are {self.lengths} and images_per_clip {self.images_per_clip}; expected at least 1"
            )
        if not self.null_captions or not all(isinstance(text, str) for text in self.null_captions):
            raise ValueError(f"null_captions is {self.null_captions!r}; expected texts, [''] for the empty one alone")
        if not self.shift > 0 or not self.focus_std > 0:
            raise ValueError(f"shift is {self.shift} and focus_std {self.focus_std}; expected above 0")
        low, high = self.cleaner_level
        if not 0 <= low <= high <= 1:
            raise ValueError(f"cleaner_level is {self.cleaner_level}; expected two shares, the smaller one first")
        if not self.cleaner_counts or min(self.cleaner_counts) < 1 or min(self.cleaner_starts, default=0) < 0:
            raise ValueError(
                f"cleaner_counts are {self.cleaner_counts} and cleaner_starts {self.cleaner_starts}; expected numbers "
                "of latents from 1 and positions from 0"
            )


@dataclass
class NoiseLevels:
    """The noise levels of a batch of B clips with T latents.

    Args:
        clips: of each clip, ``[B]`` in 0 to 1.
        latents: of each latent, ``[B, T]``.
        counted: ``[B, T]``, 1 for latents that count in the loss, 0 for cleaner ones.
        told: ``[B]``, whether the network is given each latent's level.
    """

    clips: Tensor
    latents: Tensor
    counted: Tensor
    told: Tensor

    def timesteps(self, tokens: int) -> Tensor:
        """What the network is given: ``[B]``, or ``[B, T * tokens]`` where latents of ``tokens`` tokens have their own.

        Every clip of a batch has the second form if one has; equal timesteps mean the same in both.
        """
        if not bool(self.told.any()):
            return self.clips * TIMESTEPS
        levels = torch.where(self.told[:, None], self.latents, self.clips[:, None])
        return levels.repeat_interleave(tokens, dim=1) * TIMESTEPS


def draw_levels(objective: FlowObjective, micro_batch: MicroBatch, count: int, length: int) -> NoiseLevels:
    """Noise levels of ``count`` clips of ``length`` latents, on the CPU."""
    each = count // micro_batch.size
    clips = torch.cat([_clip_levels(objective, each, g) for g in micro_batch.generators("time")])
    latents = clips[:, None].repeat(1, length)
    counted, told = torch.ones(count, length), torch.zeros(count, dtype=torch.bool)
    if objective.cleaner_share and length > 1:
        generators = [g for g in micro_batch.generators("cleaner") for _ in range(each)]
        for clip, generator in enumerate(generators):
            chosen, told_here, level = torch.rand(3, generator=generator).tolist()
            span = _cleaner_span(objective, length, generator)
            if chosen < objective.cleaner_share:
                low, high = objective.cleaner_level
                latents[clip, span] *= low + (high - low) * level
                counted[clip, span] = 0
                told[clip] = told_here < objective.timestep_per_latent_share
    return NoiseLevels(clips, latents, counted, told)


def _clip_levels(objective: FlowObjective, count: int, generator: torch.Generator) -> Tensor:
    uniform, chosen = torch.rand(2, count, generator=generator)
    normal = torch.randn(count, generator=generator)
    shifted = objective.shift * uniform / (1 + (objective.shift - 1) * uniform)
    focused = torch.sigmoid(objective.focus_mean + objective.focus_std * normal)
    return torch.where(chosen < objective.focus_share, focused, shifted)


def _cleaner_span(objective: FlowObjective, length: int, generator: torch.Generator) -> slice:
    """Consecutive latents that leave at least one of the clip's level."""
    where, many = torch.rand(2, generator=generator).tolist()
    counts = objective.cleaner_counts
    count = min(counts[int(many * len(counts))], length - 1)
    starts = [s for s in objective.cleaner_starts if s + count <= length] or range(length - count + 1)
    start = starts[int(where * len(starts))]
    return slice(start, start + count)


def by_noise_level(errors: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """Squared errors ``[B]`` sorted into bins by noise level; bin 0 is the cleanest."""
    bins = (levels * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)
    return {f"noise_level/{n}": errors[bins == n] for n in sorted(set(bins.tolist()))}
