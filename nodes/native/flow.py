"""MODEL and VAE of a small model of Wan's kind in ComfyUI's own classes: a flow transformer and a causal video VAE.

Such a folder is one of diffusers' ``WanPipeline`` (``training/bundle_flow.py`` writes it). ComfyUI's own loaders know
Wan's sizes only; the classes behind MODEL and VAE are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.supported_models
import comfy.utils
import torch

from ...vidrd_core.checkpoints.wan_names import (
    wan_transformer_arguments,
    wan_transformer_weights,
    wan_vae_arguments,
    wan_vae_weights,
)
from .model import choose_dtype, loaded
from .vae import HostedVAE

RATIO = 4  # frames per latent after the first
# ComfyUI's figures for the VAEs of Wan 2.1 and 2.2: values of the stored type, decoding per pixel, encoding per pixel.
VALUES_21 = (7000, 6000)
VALUES_22 = (8000, 3300)


class FlowLatents(comfy.latent_formats.Wan21):
    """Wan's latent format with another VAE's statistics. Nothing shows its latents as colours."""

    def __init__(self, mean: list[float], std: list[float]):
        super().__init__()
        self.latent_channels = len(mean)
        self.latents_mean = torch.tensor(mean).view(1, -1, 1, 1, 1)
        self.latents_std = torch.tensor(std).view(1, -1, 1, 1, 1)
        self.latent_rgb_factors = None
        self.latent_rgb_factors_bias = None
        self.taesd_decoder_name = None


def read_part(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and weights of one part of a diffusers folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, comfy.utils.load_torch_file(str(folder / "diffusion_pytorch_model.safetensors"), safe_load=True)


def build_transformer(folder: Path, weight_dtype: str) -> Any:
    """MODEL of a model folder of Wan's kind."""
    config, weights = read_part(folder / "transformer")
    statistics = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    state = wan_transformer_weights(weights)
    arguments = {"image_model": "wan2.1", **wan_transformer_arguments(config)}
    model_config = comfy.supported_models.WAN21_T2V(arguments)
    model_config.latent_format = FlowLatents(statistics["latents_mean"], statistics["latents_std"])
    model_config.sampling_settings = {"shift": shift_of(folder)}
    choose_dtype(model_config, state, weight_dtype)
    return loaded(model_config.get_model(state, "").eval(), state)


def shift_of(folder: Path) -> float:
    """The shift of the noise levels that the folder's scheduler names."""
    file = folder / "scheduler" / "scheduler_config.json"
    return float(json.loads(file.read_text(encoding="utf-8")).get("shift", 1.0)) if file.is_file() else 1.0


class FlowVAE(HostedVAE):
    """ComfyUI's VAE around its own ``WanVAE`` of another size, of Wan 2.1's or Wan 2.2's kind."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Any]):
        newer = bool(config.get("is_residual"))
        if newer:
            from comfy.ldm.wan.vae2_2 import WanVAE
        else:
            from comfy.ldm.wan.vae import WanVAE
        model = WanVAE(**wan_vae_arguments(config))
        model.load_state_dict(wan_vae_weights(weights))
        factor = config.get("scale_factor_spatial") or 8
        super().__init__(model, config["z_dim"], factor, RATIO)
        size = comfy.model_management.dtype_size
        decode, encode = VALUES_22 if newer else VALUES_21
        self.memory_used_decode = lambda shape, dtype: decode * shape[3] * shape[4] * factor**2 * size(dtype)
        self.memory_used_encode = lambda shape, dtype: encode * shape[3] * shape[4] * size(dtype)


def build_vae(folder: Path) -> FlowVAE:
    """VAE of a model folder of Wan's kind."""
    return FlowVAE(*read_part(folder / "vae"))
