"""Training the autoencoder: first as an image VAE on frames, later only the decoder's temporal layers on clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.shapes import draw_scene, render
from ..models.autoencoder import VidRDAutoencoderKL


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the autoencoder's losses; ours, since the paper names none."""

    kl: float = 1e-3  # on the mean Kullback-Leibler divergence per latent
    contrast: float = 0.0  # more weight for pixels that stand out from their frame's mean colour
    edges: float = 0.5  # L1 of differences between neighbouring pixels, for crisp outlines
    motion: float = 0.0  # L1 of differences between neighbouring frames, against flicker

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
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


class ImageAutoencoderStage:
    """The image VAE: encoder and decoder on single frames of the world."""

    def __init__(self, vae: VidRDAutoencoderKL, weights: AutoencoderLoss):
        self.vae = vae
        self.weights = weights

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        frames = world_clips(batch_size, 1, generator)
        posterior = self.vae.encode(frames).latent_dist
        loss, figures = self.weights(self.vae.decode(posterior.sample(generator)).sample, frames)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        return loss + self.weights.kl * kl, {**figures, "kl": kl.item(), "latent_std": posterior.mean.std().item()}

    def export(self, folder: Path) -> None:
        """Save the VAE with the scaling factor that its latents need."""
        frames = world_clips(256, 1, torch.Generator().manual_seed(1))
        with torch.no_grad():
            latents = torch.cat([self.vae.encode(part).latent_dist.mode() for part in frames.split(32)])
        self.vae.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 5))
        self.vae.save_pretrained(folder)


class TemporalDecoderStage:
    """The decoder's temporal layers on clips; the encoder and all spatial layers stay as they are."""

    def __init__(self, vae: VidRDAutoencoderKL, weights: AutoencoderLoss, num_frames: int):
        self.vae = vae
        self.weights = weights
        self.num_frames = num_frames
        vae.requires_grad_(False)
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_("temp_convs" in name)

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clips = world_clips(batch_size, self.num_frames, generator)
        with torch.no_grad():
            latents = self.vae.encode(clips).latent_dist.mode()
            # What the U-Net samples is never quite clean: the decoder learns to even out small errors over time.
            noise = torch.randn(latents.shape, generator=generator)
            latents = latents + noise * (
                0.1 * torch.rand(1, generator=generator).item() / self.vae.config.scaling_factor
            )
        return self.weights(self.vae.decode(latents).sample, clips)

    def export(self, folder: Path) -> None:
        self.vae.save_pretrained(folder)


def world_clips(count: int, num_frames: int, generator: torch.Generator) -> Tensor:
    """Random training clips of the procedural world, ``[count, 3, T, 64, 64]`` in [-1, 1]."""
    return render([draw_scene(generator) for _ in range(count)], num_frames)
