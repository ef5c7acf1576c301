"""Training a causal video VAE of Wan's kind: diffusers' ``AutoencoderKLWan`` on clips of 1 + 4k frames.

Its first latent holds one frame, every later one four; each depends on earlier frames only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from einops import rearrange
from torch import Tensor, nn

from ..models.wan_clips import decode_whole, encode_whole
from ..models.wan_latents import FRAMES_PER_LATENT
from .autoencoder import AutoencoderLoss, frames_of, pixels_of
from .distributed import gathered
from .flicker import flicker, psnr
from .freezing import freeze
from .micro_batches import MicroBatch
from .perceptual import MultiScaleFeatureLoss
from .sources import MovingShapesSource, Prefetcher
from .task import Outcome, TrainingTask

FIRST_LOGVAR = -4.0  # of a new encoder's posterior
LOGVAR_LIMITS = (-30.0, 20.0)  # those of diffusers' posterior
STATISTICS_CLIPS = 64  # from which the latents' mean and standard deviation are measured


@dataclass(frozen=True)
class CausalVAEObjective:
    """What the VAE trains on, and the weights of its losses."""

    lengths: tuple[int, ...] = (1, 5, 5, 9, 9, 13)  # frames of a step's clips, 1 + 4k; each as often as it is named
    images_per_clip: int = 8  # single frames in place of one clip, to keep the cost of a step even
    speed: float = 0.4  # of the motions, as a share of the moving-shapes data set's own
    pixels: AutoencoderLoss = AutoencoderLoss()
    perceptual_weight: float = 0.0

    def __post_init__(self) -> None:
        check_causal_lengths(self.lengths)
        if self.images_per_clip < 1 or not self.speed > 0:
            raise ValueError(
                f"images_per_clip is {self.images_per_clip} and speed {self.speed}; expected at least 1 and above 0"
            )


def check_causal_lengths(lengths: tuple[int, ...]) -> None:
    """Raises ValueError unless all are 1 + 4k frames."""
    if not lengths or any(n < 1 or n % FRAMES_PER_LATENT != 1 for n in lengths):
        raise ValueError(f"lengths are {lengths}; expected 1 + {FRAMES_PER_LATENT}k frames: 1, 5, 9, ...")


def new_causal_vae(config: Mapping[str, Any]) -> AutoencoderKLWan:
    """A VAE with random weights; ``config``: arguments of ``AutoencoderKLWan``.

    Its posterior begins narrow: the usual unit noise would drown the small latents of a new encoder. Its latents count
    as normalised until they are measured.
    """
    vae = AutoencoderKLWan(**config)
    size = vae.config["z_dim"]
    vae.register_to_config(latents_mean=[0.0] * size, latents_std=[1.0] * size)
    with torch.no_grad():
        vae.quant_conv.bias[size:] = FIRST_LOGVAR
    return vae


class CausalVAETask(TrainingTask):
    """Encoder and decoder, or a part of them, on clips of the moving-shapes data set.

    Args:
        vae: to train.
        objective: clips and losses.
        trained: patterns of the parameters to train; ``("*decoder*", "post_quant*")`` keeps the latents as they are.
    """

    def __init__(self, vae: AutoencoderKLWan, objective: CausalVAEObjective, trained: tuple[str, ...] = ("*",)):
        freeze(vae, trained)
        super().__init__({"vae": vae}, {"vae": _Reconstruction(vae)})
        self.vae = vae
        self.objective = objective
        self.may_skip_parameters = 1 in objective.lengths  # single frames skip the layers that resample time
        self.perceptual = MultiScaleFeatureLoss()
        self.source = Prefetcher(
            MovingShapesSource(objective.lengths, "train", objective.speed, objective.images_per_clip)
        )
        self.held_out_source = MovingShapesSource(max(objective.lengths), "test", objective.speed)

    def loss(self, micro_batch: MicroBatch) -> Outcome:
        batch = self.source.batch(micro_batch)
        clips = pixels_of(batch.pixels).to(self.device)
        output, mean, logvar = self.calls["vae"](clips, self._noise(micro_batch, clips))

        # Reconstruction of pixels and of edges at several scales.
        loss, figures = self.objective.pixels(output.float(), clips)
        if self.objective.perceptual_weight:
            perceptual = self.perceptual.to(self.device)(frames_of(output).float(), frames_of(clips))
            loss = loss + self.objective.perceptual_weight * perceptual
            figures["perceptual"] = perceptual.item()

        # Divergence of the posterior from unit noise.
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).float().mean()
        figures = {**figures, "kl": kl.item(), "latent_std": mean.float().std().item()}
        return Outcome(loss + self.objective.pixels.kl * kl, figures, batch.items)

    def held_out(self, micro_batch: MicroBatch) -> Outcome | None:
        batch = self.held_out_source.batch(micro_batch)
        clips = pixels_of(batch.pixels).to(self.device)
        output = decode_whole(self.vae, encode_whole(self.vae, clips)[0]).clamp(-1, 1)
        loss, _ = self.objective.pixels(output.float(), clips)
        figures: dict[str, float | Tensor] = {"psnr": psnr(output, clips).item()}
        if clips.shape[2] > 1:
            figures["flicker"] = flicker(output, clips).item()
        return Outcome(loss, figures, batch.items)

    def export(self, folder: Path) -> None:
        """Save the VAE with its latents' statistics, so that normalised latents have mean 0 and deviation 1."""
        vae = gathered(self.vae)
        if not self.is_main:
            return
        mean, deviation = self._statistics(vae)
        vae.register_to_config(latents_mean=mean, latents_std=deviation)
        vae.save_pretrained(folder)

    def _noise(self, micro_batch: MicroBatch, clips: Tensor) -> Tensor:
        """Unit noise of the latents' shape, ``[B, z, 1 + (T - 1) / 4, H / 8, W / 8]``."""
        count, _, frames, height, width = clips.shape
        side = self.vae.config["scale_factor_spatial"]
        latent = (1 + (frames - 1) // FRAMES_PER_LATENT, height // side, width // side)
        each = (count // micro_batch.size, self.vae.config["z_dim"], *latent)
        return rearrange(micro_batch.normal(*each, purpose="posterior"), "b n ... -> (b n) ...").to(clips.device)

    @torch.no_grad()
    def _statistics(self, vae: AutoencoderKLWan) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each latent channel over the longest clips."""
        longest = MovingShapesSource(max(self.objective.lengths), "train", self.objective.speed)
        latents = []
        for step in range(STATISTICS_CLIPS // 4):
            clips = pixels_of(longest.batch(MicroBatch(1, step, 4, 4)).pixels).to(vae.device)
            latents.append(encode_whole(vae, clips)[0].float())
        together = torch.cat(latents)
        mean, deviation = together.mean((0, 2, 3, 4)), together.std((0, 2, 3, 4))
        return [round(v, 5) for v in mean.tolist()], [round(v, 5) for v in deviation.tolist()]


class _Reconstruction(nn.Module):
    """Encode, sample and decode in one call, which can be wrapped for several processes."""

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        self.vae = vae

    def forward(self, clips: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = encode_whole(self.vae, clips)
        logvar = logvar.clamp(*LOGVAR_LIMITS)
        return decode_whole(self.vae, mean + (0.5 * logvar).exp() * noise), mean, logvar
