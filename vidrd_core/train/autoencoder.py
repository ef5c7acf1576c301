"""Training the autoencoder: first an image VAE on frames, then only the decoder's temporal layers on clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..models.autoencoder import VidRDAutoencoderKL
from .adversarial import Adversary, AdversarySettings
from .distributed import gathered
from .flicker import flicker, psnr
from .micro_batches import MicroBatch
from .perceptual import MultiScaleFeatureLoss
from .sources import MovingShapesSource, Prefetcher, Source
from .task import Outcome, TrainingTask

SCALING_SAMPLES = 256  # frames from which the latents' standard deviation is measured


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the autoencoder's losses; ours, since the paper names none."""

    kl: float = 1e-3  # on the mean Kullback-Leibler divergence per latent
    contrast: float = 0.0  # extra weight of pixels by their distance to the frame's mean colour
    edges: float = 0.5  # L1 of differences between neighbouring pixels, for crisp outlines
    motion: float = 0.0  # L1 of differences between neighbouring frames, against flicker

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Reconstruction loss of pixels ``[B, 3, T, H, W]`` in [-1, 1]."""
        weight = 1 + self.contrast * (target - target.mean((3, 4), keepdim=True)).abs().mean(1, keepdim=True)
        error = output - target
        l1 = error.abs().mean()
        pixels = (weight * (error.abs() + error.square())).mean()
        edges = sum(F.l1_loss(output.diff(dim=d), target.diff(dim=d)) for d in (3, 4))
        loss = pixels + self.edges * edges
        if target.shape[2] > 1:
            loss = loss + self.motion * F.l1_loss(output.diff(dim=2), target.diff(dim=2))
        return loss, {"l1": l1.item()}


class ImageAutoencoderTask(TrainingTask):
    """The image VAE: encoder and decoder on single frames."""

    def __init__(self, vae: VidRDAutoencoderKL, weights: AutoencoderLoss, source: Source | None = None):
        super().__init__({"vae": vae}, {"vae": _Reconstruction(vae)})
        self.vae = vae
        self.weights = weights
        self.source = source or MovingShapesSource(1)

    def loss(self, micro_batch: MicroBatch) -> Outcome:
        batch = self.source.batch(micro_batch)
        frames = pixels_of(batch.pixels).to(self.device)
        side = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        shape = (self.vae.config["latent_channels"], 1, frames.shape[3] // side, frames.shape[4] // side)
        noise = micro_batch.normal(*shape, purpose="posterior").to(self.device)
        output, mean, logvar = self.calls["vae"](frames, noise)
        loss, figures = self.weights(output, frames)
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        figures = {**figures, "kl": kl.item(), "latent_std": mean.std().item()}
        return Outcome(loss + self.weights.kl * kl, figures, batch.items)

    def export(self, folder: Path) -> None:
        """Save the VAE with the scaling factor that its latents need."""
        vae = gathered(self.vae)
        if not self.is_main:
            return
        micro_batch = MicroBatch(1, 0, SCALING_SAMPLES, SCALING_SAMPLES)
        frames = pixels_of(self.source.batch(micro_batch).pixels).to(vae.device)
        with torch.no_grad():
            latents = torch.cat([vae.encode(part).latent_dist.mode() for part in frames.split(32)])
        vae.register_to_config(scaling_factor=round(1.0 / latents.float().std().item(), 5))
        vae.save_pretrained(folder)


class TemporalDecoderTask(TrainingTask):
    """The decoder's temporal layers on clips; the encoder and all spatial layers are frozen.

    Args:
        vae: with temporal layers; those of its parameters that need gradients, or else the temporal ones, are trained.
        weights: of the pixel losses.
        num_frames: per clip of the moving-shapes data set, where there is no ``source``.
        source, held_out: of clips as pixels ``[B, 3, T, H, W]``.
        perceptual: a loss on frames ``[N, 3, H, W]``, and its weight; None takes the built-in one.
        adversary: settings of the spatio-temporal discriminator; weight 0: none.
        latent_noise: largest standard deviation of the noise added to the latents, in units of the scaled latents.
    """

    discriminators = frozenset({"discriminator"})

    def __init__(
        self,
        vae: VidRDAutoencoderKL,
        weights: AutoencoderLoss,
        num_frames: int = 8,
        source: Source | None = None,
        held_out: Source | None = None,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 0.0,
        adversary: AdversarySettings | None = None,
        latent_noise: float = 0.1,
        trained: tuple[str, ...] = ("*decoder*temp_convs*",),
    ):
        from .freezing import freeze

        freeze(vae, trained)
        self.adversary = Adversary(adversary) if adversary is not None and adversary.weight > 0 else None
        modules: dict[str, nn.Module] = {"vae": vae}
        if self.adversary is not None:
            modules["discriminator"] = self.adversary.discriminator
        super().__init__(modules, {"vae": _Decoding(vae)})
        self.vae = vae
        self.weights = weights
        self.source: Any = MovingShapesSource(num_frames) if source is None else Prefetcher(source)
        self.held_out_source = held_out or (MovingShapesSource(num_frames, "test") if source is None else None)
        self.perceptual = (perceptual or MultiScaleFeatureLoss()).requires_grad_(False)
        self.perceptual_weight = perceptual_weight
        self.latent_noise = latent_noise

    def loss(self, micro_batch: MicroBatch) -> Outcome:
        batch = self.source.batch(micro_batch)
        clips = pixels_of(batch.pixels).to(self.device)
        output = self.calls["vae"](self._latents(clips, micro_batch))

        # Reconstruction of the original clip.
        loss, figures = self.weights(output, clips)
        if self.perceptual_weight:
            self.perceptual.to(self.device)
            perceptual = self.perceptual(frames_of(output).float(), frames_of(clips).float())
            loss = loss + self.perceptual_weight * perceptual
            figures["perceptual"] = perceptual.item()
        figures["flicker"] = flicker(output.detach(), clips).item()

        # The adversarial loss starts with a step, so for all processes and micro batches at once.
        if (
            self.adversary is not None
            and micro_batch.step * micro_batch.batch_size >= self.adversary.settings.start_samples
        ):
            adversarial, more = self.adversary.losses(
                self.calls["discriminator"], loss, output, clips, last_temporal_weight(self.vae)
            )
            loss, figures = loss + adversarial, {**figures, **more}
        return Outcome(loss, figures, batch.items)

    def held_out(self, micro_batch: MicroBatch) -> Outcome | None:
        if self.held_out_source is None:
            return None
        batch = self.held_out_source.batch(micro_batch)
        clips = pixels_of(batch.pixels).to(self.device)
        latents = self.vae.encode(clips).latent_dist.mode()
        output = self.vae.decode(latents).sample
        plain = decode_frame_by_frame(self.vae, latents)
        loss, _ = self.weights(output, clips)
        figures: dict[str, float | Tensor] = {
            "flicker": flicker(output, clips).item(),
            "psnr": psnr(output, clips).item(),
            "image_decoder_flicker": flicker(plain, clips).item(),
            "image_decoder_psnr": psnr(plain, clips).item(),
        }
        return Outcome(loss, figures, batch.items)

    def export(self, folder: Path) -> None:
        vae = gathered(self.vae)
        if self.is_main:
            vae.save_pretrained(folder)

    def _latents(self, clips: Tensor, micro_batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            latents = self.vae.encode(clips).latent_dist.mode()
        # Sampled latents keep some noise: the decoder learns to smooth small errors over time.
        noise = micro_batch.normal(*latents.shape[1:], purpose="latent noise").to(latents)
        share = torch.stack([torch.rand((), generator=g) for g in micro_batch.generators("noise share")]).to(latents)
        scale = self.latent_noise * share / self.vae.config["scaling_factor"]
        return latents + noise * scale[:, None, None, None, None]


def decode_frame_by_frame(vae: VidRDAutoencoderKL, latents: Tensor) -> Tensor:
    """Decode ``[B, C, T, h, w]`` as the image decoder does: each frame alone, without temporal layers."""
    frames = rearrange(latents, "b c t h w -> (b t) c 1 h w")
    return rearrange(vae.decode(frames).sample, "(b t) c 1 h w -> b c t h w", b=len(latents))


def last_temporal_weight(vae: VidRDAutoencoderKL) -> nn.Parameter:
    """The weight of the decoder's last temporal convolution, for the adaptive weight of the adversarial loss."""
    block: Any = vae.decoder.up_blocks[-1]
    return block.temp_convs[-1].convs[-1].weight


def frames_of(clips: Tensor) -> Tensor:
    """``[B, 3, T, H, W]`` as frames ``[B * T, 3, H, W]``."""
    return rearrange(clips, "b c t h w -> (b t) c h w")


def pixels_of(pixels: Tensor | None) -> Tensor:
    """Pixels of a batch.

    Raises:
        ValueError: the data set holds latents.
    """
    if pixels is None:
        raise ValueError(
            "the data set holds latents, an autoencoder trains on pixels: name the data set that prepare_data.py wrote"
        )
    return pixels


class _Reconstruction(nn.Module):
    """Encode, sample and decode in one call, which can be wrapped for several processes."""

    def __init__(self, vae: VidRDAutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(frames).latent_dist
        latents = posterior.mean + posterior.std * noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


class _Decoding(nn.Module):
    """Decoding in a call of its own, which can be wrapped for several processes."""

    def __init__(self, vae: VidRDAutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample
