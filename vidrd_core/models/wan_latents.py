"""Latents of Wan's causal VAE, normalised by channel as its transformer sees them."""

from __future__ import annotations

import inspect
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


@torch.no_grad()
def take_wan_statistics(vae: AutoencoderKLWan) -> None:
    """Give a VAE's latents, in place, the mean and deviation of Wan 2.1's, whose numbers ComfyUI's latent format holds.

    The layers next to the latents are 1x1x1 convolutions, so each channel's change goes into their weights. Normalised
    latents and decoded frames stay the same.

    Raises:
        ValueError: the VAE has not the 16 channels of Wan 2.1's.
    """
    known = inspect.signature(AutoencoderKLWan.__init__).parameters
    statistics: dict[str, list[float]] = {name: known[name].default for name in ("latents_mean", "latents_std")}
    mean, deviation = map(torch.tensor, statistics.values())
    config: Any = vae.config
    size = config["z_dim"]
    if size != len(mean):
        raise ValueError(f"the VAE's latents have {size} channels; expected {len(mean)}, as in Wan 2.1")
    own_mean, own_deviation = (torch.tensor(config[name]) for name in ("latents_mean", "latents_std"))
    scale = deviation / own_deviation
    shift = mean - scale * own_mean  # latents become scale * latents + shift
    into: Any = vae.quant_conv
    out: Any = vae.post_quant_conv
    into.weight[:size] *= scale.to(into.weight)[:, None, None, None, None]
    into.bias[:size] = into.bias[:size] * scale.to(into.bias) + shift.to(into.bias)
    into.bias[size:] += 2 * scale.to(into.bias).log()  # logarithm of the variance
    out.bias -= out.weight[:, :, 0, 0, 0] @ (shift / scale).to(out.weight)
    out.weight /= scale.to(out.weight)[None, :, None, None, None]
    vae.register_to_config(**statistics)


def _by_channel(vae: AutoencoderKLWan, name: str, like: Tensor) -> Tensor:
    config: Any = vae.config
    return torch.tensor(config[name], dtype=like.dtype, device=like.device)[:, None, None, None]
