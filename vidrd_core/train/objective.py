"""The U-Net's training objective: noise, diffusion times, prediction target, and the weight of each noise level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler
from einops import rearrange, repeat
from torch import Tensor

from ..reuse.noise import initial_noise, progressive_noise
from ..reuse.settings import ReuseSettings
from .micro_batches import MicroBatch

PREDICTIONS = ("epsilon", "v_prediction")
NOISE_LEVELS = 10  # bins of the loss by noise level, in the statistics


@dataclass(frozen=True)
class UNetObjective:
    """Settings of the U-Net's objective. The paper names no values; these are ours."""

    num_frames: int = 8  # frames per video clip of stored latents
    image_share: float = 0.0  # share of steps that are single frames
    images_per_clip: int = 8  # single frames in place of one clip, to keep the cost of a step even
    caption_dropout: float = 0.1  # share of captions that a null caption replaces, for classifier-free guidance
    null_captions: tuple[str, ...] = ("",)  # one of these, with equal probability
    # Content and motion are decided at high noise, where the plain epsilon loss (weight 1) has small gradients. The
    # loss of v-prediction weighs a step by 1 + 1 / SNR; this is an upper bound of that weight.
    max_weight: float = 1.0
    # Diffusion times are sampled uniformly, but for this share of logit-normal ones (arXiv 2403.03206, section 3.1):
    # sigmoid(mean + std * normal) of the longest time.
    focus_share: float = 0.0
    focus_mean: float = 0.0
    focus_std: float = 1.0
    # Share of clips of which one frame is less noisy than the others: its diffusion time is the clip's times
    # ``cleaner_frame_level``. Per-frame noise levels are the idea of Diffusion Forcing (arXiv 2407.01392). Given that
    # frame, caption and frame order decide what the others show, so the direction of motion is learned from far fewer
    # samples than from clips of one noise level.
    cleaner_frame_share: float = 0.0
    cleaner_frame_level: float = 0.2
    min_snr: float = 0.0  # gamma of min-SNR weighting (arXiv 2303.09556), 5 in its paper; 0: off
    prediction: str | None = None  # "epsilon" or "v_prediction"; None: the starting model's, from scratch epsilon
    offset_noise: float = 0.0  # standard deviation of noise that is constant over a clip's channel; 0: off
    progressive_alpha: float = 0.0  # progressive noise prior within a clip (arXiv 2305.10474); 0: independent frames
    continuation_share: float = 0.0  # share of clips whose noise is made by FNR and PNS from a predecessor's
    continuation: ReuseSettings = field(default_factory=ReuseSettings)
    temp_conv_dropout: float = 0.1  # the release's; 0 suits a small model that sees each clip a few times

    def __post_init__(self) -> None:
        for name in (
            "image_share",
            "caption_dropout",
            "focus_share",
            "cleaner_frame_share",
            "cleaner_frame_level",
            "continuation_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share, 0 to 1")
        if not self.null_captions or not all(isinstance(text, str) for text in self.null_captions):
            raise ValueError(f"null_captions is {self.null_captions!r}; expected texts, [''] for the empty one alone")
        if self.prediction not in (None, *PREDICTIONS):
            raise ValueError(f"prediction is {self.prediction!r}; expected one of {', '.join(PREDICTIONS)}")
        if not self.focus_std > 0:
            raise ValueError(f"focus_std is {self.focus_std}; expected above 0")
        if self.max_weight < 1 or self.min_snr < 0 or self.offset_noise < 0 or self.progressive_alpha < 0:
            raise ValueError("max_weight is at least 1, min_snr, offset_noise and progressive_alpha are at least 0")
        if self.max_weight > 1 and (self.min_snr or self.prediction == "v_prediction"):
            raise ValueError("max_weight weighs the plain epsilon loss: leave it at 1 with min_snr or v_prediction")


def make_scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled by DDIM as in the release."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def draw_noise(objective: UNetObjective, micro_batch: MicroBatch, shape: torch.Size) -> Tensor:
    """The noise of a batch ``[B, C, T, h, w]``, float32 on the CPU, of unit variance but for ``offset_noise``.

    A continuation's noise is made by :func:`vidrd_core.reuse.noise.initial_noise` from a predecessor's, itself a first
    clip's: without a progressive prior that is independent noise again; with one, the correlation of the frames is
    reversed over the overlap, as when clips are chained.
    """
    each = (shape[0] // micro_batch.size, *shape[1:])  # a sample may be several single images

    def normal(purpose: str, *size: int) -> Tensor:
        return rearrange(micro_batch.normal(*(size or each), purpose=purpose), "micro n ... -> (micro n) ...")

    noise = progressive_noise(normal("noise"), objective.progressive_alpha)
    if objective.continuation_share and shape[2] > 1:
        settings = objective.continuation
        settings.check(shape[2])
        chosen = torch.stack([torch.rand((), generator=g) for g in micro_batch.generators("continuation")])
        follows = repeat(chosen < objective.continuation_share, "micro -> (micro n)", n=each[0])
        continued = initial_noise(noise, normal("fresh noise"), settings)
        noise = torch.where(follows[:, None, None, None, None], continued, noise)
    if objective.offset_noise:
        noise = noise + objective.offset_noise * normal("offset", each[0], shape[1], 1, 1, 1)
    return noise


def draw_times(objective: UNetObjective, micro_batch: MicroBatch, count: int, num_train_timesteps: int) -> Tensor:
    """Diffusion times of ``count`` clips, ``[count]``."""
    each, generators = count // micro_batch.size, micro_batch.generators("time")
    times = torch.cat([torch.randint(num_train_timesteps, (each,), generator=g) for g in generators])
    if not objective.focus_share:
        return times
    focused = torch.cat([torch.rand(each, generator=g) for g in generators]) < objective.focus_share
    normal = torch.cat([torch.randn(each, generator=g) for g in generators])
    shares = torch.sigmoid(objective.focus_mean + objective.focus_std * normal)
    near = (shares * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)
    return torch.where(focused, near, times)


def add_cleaner_frames(
    objective: UNetObjective,
    micro_batch: MicroBatch,
    scheduler: Any,
    noisy: Tensor,
    latents: Tensor,
    noise: Tensor,
    times: Tensor,
) -> tuple[Tensor, Tensor]:
    """Noisy clips ``[B, C, T, h, w]``, some with one frame less noisy than the others, and the mask of the loss.

    The mask ``[B, T]`` is 1 for frames that count in the loss and 0 for cleaner frames, whose noise is not that of the
    clip's diffusion time.
    """
    counted = torch.ones(noisy.shape[0], noisy.shape[2], device=noisy.device)
    if not objective.cleaner_frame_share or noisy.shape[2] == 1:
        return noisy, counted
    each = noisy.shape[0] // micro_batch.size
    drawn = torch.cat([torch.rand(each, 2, generator=g) for g in micro_batch.generators("anchor")])
    clips = torch.nonzero(drawn[:, 0] < objective.cleaner_frame_share).flatten().to(noisy.device)
    frames = (drawn[:, 1] * noisy.shape[2]).long().to(noisy.device)[clips]
    cleaner_times = (times[clips] * objective.cleaner_frame_level).long()
    noisy = noisy.clone()
    noisy[clips, :, frames] = scheduler.add_noise(latents[clips, :, frames], noise[clips, :, frames], cleaner_times)
    counted[clips, frames] = 0
    return noisy, counted


def target_of(objective: UNetObjective, scheduler: Any, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The target of the prediction, ``[B, C, T, h, w]``."""
    return scheduler.get_velocity(latents, noise, times) if objective.prediction == "v_prediction" else noise


def weights_of(objective: UNetObjective, alphas_cumprod: Tensor) -> Tensor:
    """Weight of the squared error at these noise levels, ``[B]``."""
    if objective.min_snr:
        snr = alphas_cumprod / (1 - alphas_cumprod)
        bounded = snr.clamp(max=objective.min_snr)
        return bounded / (snr + 1 if objective.prediction == "v_prediction" else snr)
    return (1 / alphas_cumprod).clamp(max=objective.max_weight)  # 1 + 1 / SNR is 1 / alphas_cumprod


def by_noise_level(errors: Tensor, times: Tensor, num_train_timesteps: int) -> dict[str, Tensor]:
    """Squared errors ``[B]`` sorted into bins by diffusion time; bin 0 is the cleanest."""
    bins = (times * NOISE_LEVELS).div(num_train_timesteps, rounding_mode="floor")
    return {f"noise_level/{n}": errors[bins == n] for n in sorted(set(bins.tolist()))}
