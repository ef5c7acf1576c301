"""VAE: the video autoencoder behind ComfyUI's own VAE class, so that the stock encode and decode nodes take it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from ...vidrd_core.models.autoencoder import VidRDAutoencoderKL
from ...vidrd_core.sampling.windows import decode_windows
from .operations import core_operations

WINDOW = 8  # frames, the clip length of the release, on which its decoder was trained

# The smallest stock autoencoder, replaced at once: with it ComfyUI's VAE sets every attribute that its version needs.
PLACEHOLDER_CONFIG = {
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
    "embed_dim": 4,
}
# Values of the stored type held at the peak, per pixel and frame. Decoding holds 512 (benchmarks/peak_memory.py
# --estimate); as many again and some are left for the work space of convolutions. ComfyUI's figure for its own: 2178.
DECODE_VALUES = 1200
ENCODE_VALUES = 1767


class NativeAutoencoder(VidRDAutoencoderKL):
    """Tensors in and out, as ComfyUI calls it; long videos in windows, so that memory is that of one window."""

    window = WINDOW
    device: Any = (
        None  # ComfyUI's patcher notes here where the weights are; diffusers' own is a property without setter
    )

    def to(self, *args: Any, **kwargs: Any) -> NativeAutoencoder:  # type: ignore[override]
        """Plain torch's; diffusers' own warns of types that ComfyUI chooses on purpose."""
        return torch.nn.Module.to(self, *args, **kwargs)

    def encode(self, frames: Tensor, **_: Any) -> Tensor:  # type: ignore[override] # ComfyUI's signature
        """Pixels ``[B, 3, T, H, W]`` to the mean latents ``[B, C, T, h, w]``; frames are independent of one another."""
        pieces = [super(NativeAutoencoder, self).encode(p).latent_dist.mode() for p in frames.split(self.window, dim=2)]
        return torch.cat(pieces, dim=2)

    def decode(self, latents: Tensor, **_: Any) -> Tensor:  # type: ignore[override] # ComfyUI's signature
        """Latents ``[B, C, T, h, w]`` to pixels ``[B, 3, T, H, W]``, collected where ComfyUI keeps finished images."""
        if latents.ndim != 5:
            raise ValueError(
                f"LATENT is an image's, {list(latents.shape)}; VidRD's VAE decodes video [B, 4, frames, height, width]"
            )
        batch, _channels, num_frames, height, width = latents.shape
        factor = self.spatial_factor
        shape = (batch, self.config.out_channels, num_frames, height * factor, width * factor)
        output_device = comfy.model_management.intermediate_device()
        frames = torch.empty(shape, dtype=torch.float32, device=output_device)
        start = 0
        for piece in decode_windows(
            lambda z: super(NativeAutoencoder, self).decode(z).sample.float(), latents, self.window
        ):
            comfy.model_management.throw_exception_if_processing_interrupted()
            frames[:, :, start : start + piece.shape[2]] = piece.to(output_device)
            start += piece.shape[2]
        return frames


class HostedVAE(comfy.sd.VAE):
    """ComfyUI's VAE around an autoencoder that ComfyUI does not recognise by its weights.

    Args:
        model: with its weights; takes and gives tensors as ComfyUI calls it.
        channels: of the latents.
        factor: pixels per latent.
        ratio: frames per latent after the first.
    """

    def __init__(self, model: torch.nn.Module, channels: int, factor: int, ratio: int = 1):
        from comfy.ldm.models.autoencoder import AutoencoderKL

        super().__init__(sd=AutoencoderKL(**PLACEHOLDER_CONFIG).state_dict(), config={"params": PLACEHOLDER_CONFIG})
        self.first_stage_model: Any = model.eval().requires_grad_(False).to(self.vae_dtype)
        archive = getattr(comfy.model_management, "archive_model_dtypes", None)  # newer versions
        if archive is not None:
            archive(self.first_stage_model)
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.patcher = patcher_class(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.latent_dim = 3
        self.latent_channels = channels
        self.upscale_ratio = (lambda latents: max(0, latents * ratio - (ratio - 1)), factor, factor)
        self.upscale_index_formula = (ratio, factor, factor)
        self.downscale_ratio = (lambda frames: max(0, (frames + ratio - 1) // ratio), factor, factor)
        self.downscale_index_formula = (ratio, factor, factor)
        self.process_output = to_image
        self.size = None


class VidRDVAE(HostedVAE):
    """ComfyUI's VAE around :class:`NativeAutoencoder`.

    Args:
        window: frames that are decoded together, a clip's length.
    """

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any], window: int = WINDOW):
        known = inspect.signature(VidRDAutoencoderKL.__init__).parameters
        model = NativeAutoencoder(
            **{k: v for k, v in config.items() if k in known}, operations=core_operations(comfy.ops.disable_weight_init)
        )
        model.load_state_dict(dict(state))
        model.window = window
        super().__init__(model, model.config.latent_channels, model.spatial_factor)
        self.memory_used_decode = self._decode_bytes
        self.memory_used_encode = self._encode_bytes
        self.scaling_factor = model.config.scaling_factor

    def _window(self, frames: int) -> int:
        return min(frames, self.first_stage_model.window)

    def _decode_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        pixels = math.prod(shape[-2:]) * self.first_stage_model.spatial_factor**2
        return DECODE_VALUES * pixels * self._window(shape[2]) * comfy.model_management.dtype_size(dtype)

    def _encode_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        return ENCODE_VALUES * math.prod(shape[-2:]) * self._window(shape[2]) * comfy.model_management.dtype_size(dtype)


def to_image(pixels: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], in place: some versions of ComfyUI drop what this returns, others take it."""
    return pixels.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
