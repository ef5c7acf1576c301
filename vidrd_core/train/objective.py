"""What the U-Net is to predict from what noise, and how much each noise level counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler
from einops import rearrange, repeat
from torch import Tensor

from ..reuse.noise import initial_noise, progressive_noise
from ..reuse.settings import ReuseSettings
from .draws import Draw

PREDICTIONS = ("epsilon", "v_prediction")
NOISE_LEVELS = 10  # bins of the loss by noise level, in the statistics


@dataclass(frozen=True)
class UNetObjective:
    """What the U-Net learns from. The paper names no values; these are ours."""

    num_frames: int = 8  # frames per video clip of stored latents
    image_share: float = 0.0  # share of steps that are single frames
    images_per_clip: int = 8  # single frames in place of one clip, to keep the cost of a step even
    caption_dropout: float = 0.1  # share of captions that a null caption replaces, for classifier-free guidance
    null_captions: tuple[str, ...] = ("",)  # which; of several each as often. What guidance steers away from by default
    # What is drawn and how it moves is decided in the noisy steps, where the plain epsilon loss (1) is faint. The loss
    # of v-prediction weighs a step by 1 + 1 / SNR; this is the most that a step may weigh.
    max_weight: float = 1.0
    # Diffusion times are drawn evenly, but for this share of logit-normal ones (arXiv 2403.03206, section 3.1):
    # sigmoid(mean + std * normal) of the longest time.
    focus_share: float = 0.0
    focus_mean: float = 0.0
    focus_std: float = 1.0
    # Share of clips of which one frame is shown with only ``anchor_level`` of its diffusion time, in the manner of
    # Diffusion Forcing (arXiv 2407.01392). From there, captions and frame order decide where the others are: what moves
    # which way is learned in far fewer samples than from clips that are equally noisy throughout.
    anchor_share: float = 0.0
    anchor_level: float = 0.2
    min_snr: float = 0.0  # gamma of min-SNR weighting (arXiv 2303.09556), 5 in its paper; 0: off
    prediction: str | None = None  # "epsilon" or "v_prediction"; None: the starting model's, from scratch epsilon
    offset_noise: float = 0.0  # standard deviation of noise that is the same in all of a clip's channel; 0: off
    progressive_alpha: float = 0.0  # progressive noise prior within a clip (arXiv 2305.10474); 0: independent frames
    continuation_share: float = 0.0  # share of clips whose noise is made by FNR and PNS from a predecessor's
    continuation: ReuseSettings = field(default_factory=ReuseSettings)
    temp_conv_dropout: float = 0.1  # the release's; 0 suits a small model that sees each clip a few times

    def __post_init__(self) -> None:
        for name in (
            "image_share",
            "caption_dropout",
            "focus_share",
            "anchor_share",
            "anchor_level",
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


def draw_noise(objective: UNetObjective, draw: Draw, shape: torch.Size) -> Tensor:
    """The noise of a batch ``[B, C, T, h, w]``, float32 on the CPU, of unit variance but for ``offset_noise``.

    A continuation's noise is what :func:`vidrd_core.reuse.noise.initial_noise` makes of a predecessor's, itself a first
    clip's: without a progressive prior that is independent noise again, with one the frames' dependence runs back over
    the overlap as it does when clips are chained.
    """
    each = (shape[0] // draw.micro_batch, *shape[1:])  # several images may stand in a sample's place

    def normal(purpose: str, *size: int) -> Tensor:
        return rearrange(draw.normal(*(size or each), purpose=purpose), "micro n ... -> (micro n) ...")

    noise = progressive_noise(normal("noise"), objective.progressive_alpha)
    if objective.continuation_share and shape[2] > 1:
        settings = objective.continuation
        settings.check(shape[2])
        chosen = torch.stack([torch.rand((), generator=g) for g in draw.generators("continuation")])
        follows = repeat(chosen < objective.continuation_share, "micro -> (micro n)", n=each[0])
        continued = initial_noise(noise, normal("fresh noise"), settings)
        noise = torch.where(follows[:, None, None, None, None], continued, noise)
    if objective.offset_noise:
        noise = noise + objective.offset_noise * normal("offset", each[0], shape[1], 1, 1, 1)
    return noise


def draw_times(objective: UNetObjective, draw: Draw, count: int, num_train_timesteps: int) -> Tensor:
    """Diffusion times of ``count`` clips, ``[count]``."""
    each, generators = count // draw.micro_batch, draw.generators("time")
    times = torch.cat([torch.randint(num_train_timesteps, (each,), generator=g) for g in generators])
    if not objective.focus_share:
        return times
    focused = torch.cat([torch.rand(each, generator=g) for g in generators]) < objective.focus_share
    normal = torch.cat([torch.randn(each, generator=g) for g in generators])
    shares = torch.sigmoid(objective.focus_mean + objective.focus_std * normal)
    near = (shares * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)
    return torch.where(focused, near, times)


def show_anchors(
    objective: UNetObjective, draw: Draw, scheduler: Any, noisy: Tensor, latents: Tensor, noise: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Noisy clips ``[B, C, T, h, w]`` some of which show one frame with less noise, and which frames count.

    Frames that are shown do not count: they do not hold the noise that the clip's diffusion time says. What counts is
    1, the rest 0, ``[B, T]``.
    """
    counted = torch.ones(noisy.shape[0], noisy.shape[2], device=noisy.device)
    if not objective.anchor_share or noisy.shape[2] == 1:
        return noisy, counted
    each = noisy.shape[0] // draw.micro_batch
    drawn = torch.cat([torch.rand(each, 2, generator=g) for g in draw.generators("anchor")])
    clips = torch.nonzero(drawn[:, 0] < objective.anchor_share).flatten().to(noisy.device)
    frames = (drawn[:, 1] * noisy.shape[2]).long().to(noisy.device)[clips]
    shown = (times[clips] * objective.anchor_level).long()
    anchors = scheduler.add_noise(latents[clips, :, frames], noise[clips, :, frames], shown)
    noisy = noisy.clone()
    noisy[clips, :, frames] = anchors
    counted[clips, frames] = 0
    return noisy, counted


def target_of(objective: UNetObjective, scheduler: Any, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the U-Net is to predict, ``[B, C, T, h, w]``."""
    return scheduler.get_velocity(latents, noise, times) if objective.prediction == "v_prediction" else noise


def weights_of(objective: UNetObjective, alphas_cumprod: Tensor) -> Tensor:
    """How much the squared error at these noise levels counts, ``[B]``."""
    if objective.min_snr:
        snr = alphas_cumprod / (1 - alphas_cumprod)
        bounded = snr.clamp(max=objective.min_snr)
        return bounded / (snr + 1 if objective.prediction == "v_prediction" else snr)
    return (1 / alphas_cumprod).clamp(max=objective.max_weight)  # 1 + 1 / SNR is 1 / alphas_cumprod


def by_noise_level(errors: Tensor, times: Tensor, num_train_timesteps: int) -> dict[str, Tensor]:
    """Squared errors ``[B]`` sorted into bins by diffusion time; bin 0 is the cleanest."""
    bins = (times * NOISE_LEVELS).div(num_train_timesteps, rounding_mode="floor")
    return {f"noise_level/{n}": errors[bins == n] for n in sorted(set(bins.tolist()))}
