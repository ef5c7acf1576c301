"""Latents of Wan's causal VAE, normalised by channel as its transformer sees them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

FRAMES_PER_LATENT = 4  # of every latent but the first, which holds one


def normalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """(latents - mean) / deviation of every channel, ``[B, z, T, h, w]``."""
    return (latents - _by_channel(vae, "latents_mean", latents)) / _by_channel(vae, "latents_std", latents)


def denormalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The inverse of :func:`normalised`."""
    return latents * _by_channel(vae, "latents_std", latents) + _by_channel(vae, "latents_mean", latents)


def _by_channel(vae: AutoencoderKLWan, name: str, like: Tensor) -> Tensor:
    config: Any = vae.config
    return torch.tensor(config[name], dtype=like.dtype, device=like.device)[:, None, None, None]
