"""diffusers' ``AutoencoderKLWan`` on whole clips at once, for training and for encoding many clips.

The class itself works latent by latent and carries the last frames of every layer along, which bounds its memory.
Causal convolutions over the whole clip give the same numbers in less time, at the price of memory that grows with the
clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from einops import rearrange
from torch import Tensor, nn

TINY = 1e-12  # of mean squares, against a division by zero


def encode_whole(vae: wan.AutoencoderKLWan, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance of the posterior, each ``[B, z, 1 + (T - 1) / 4, h, w]``, not normalised.

    Args:
        clips: ``[B, 3, T, H, W]`` in [-1, 1], T = 1 + 4k.
    """
    encoder: Any = vae.encoder
    patch = vae.config["patch_size"]
    states = _causal(encoder.conv_in, clips if patch is None else wan.patchify(clips, patch))
    for block in encoder.down_blocks:
        if isinstance(block, wan.WanResidualDownBlock):
            states = _stage(block.resnets, block.downsampler, states) + block.avg_shortcut(states)
        elif isinstance(block, wan.WanResample):
            states = _resampled(block, states)
        else:
            states = _residual(block, states)
    states = _causal(encoder.conv_out, _activated(encoder.norm_out, _middle(encoder.mid_block, states)))
    mean, logvar = _causal(vae.quant_conv, states).chunk(2, dim=1)
    return mean, logvar


def decode_whole(vae: wan.AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Frames ``[B, 3, 1 + 4 (T - 1), H, W]``, without the clamp to [-1, 1] of ``vae.decode``: it has no gradient.

    Args:
        latents: ``[B, z, T, h, w]``, not normalised.
    """
    decoder: Any = vae.decoder
    patch = vae.config["patch_size"]
    states = _causal(decoder.conv_in, _causal(vae.post_quant_conv, latents))
    states = _middle(decoder.mid_block, states)
    for block in decoder.up_blocks:
        if isinstance(block, wan.WanResidualUpBlock):
            before = states
            states = _stage(block.resnets, block.upsampler, states)
            if block.avg_shortcut is not None:
                states = states + block.avg_shortcut(before, first_chunk=True)
        else:
            upsampler = None if block.upsamplers is None else block.upsamplers[0]
            states = _stage(block.resnets, upsampler, states)
    frames = _causal(decoder.conv_out, _activated(decoder.norm_out, states))
    return frames if patch is None else wan.unpatchify(frames, patch)


def _stage(resnets: Any, resample: Any, states: Tensor) -> Tensor:
    for resnet in resnets:
        states = _residual(resnet, states)
    return states if resample is None else _resampled(resample, states)


def _middle(block: Any, states: Tensor) -> Tensor:
    states = _residual(block.resnets[0], states)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        states = _residual(resnet, attention(states))
    return states


def _residual(block: Any, states: Tensor) -> Tensor:
    shortcut = states if isinstance(block.conv_shortcut, nn.Identity) else _causal(block.conv_shortcut, states)
    states = _causal(block.conv1, _activated(block.norm1, states))
    return _causal(block.conv2, _activated(block.norm2, states)) + shortcut


def _activated(norm: Any, states: Tensor) -> Tensor:
    """SiLU of the RMS norm over channels."""
    scale = states.square().mean(dim=1, keepdim=True).add(TINY).rsqrt()
    return F.silu(states * scale * norm.gamma.to(states.dtype))


def _causal(conv: Any, states: Tensor) -> Tensor:
    """A convolution that sees the frame itself and those before it, zeros before the first one."""
    width, _, height, _, before, _ = conv._padding  # before: frames that it sees besides its own
    frames = states.shape[2]
    if frames == 1 and before:  # only the kernel's last slice meets a frame
        return F.conv3d(states, conv.weight[:, :, -1:], conv.bias, padding=(0, height, width))
    # Padded by the convolution on both sides; a copy of padded states would cost more than the outputs cut off.
    return F.conv3d(states, conv.weight, conv.bias, padding=(before, height, width))[:, :, :frames]


def _resampled(layer: Any, states: Tensor) -> Tensor:
    """Height, width and, but for the first frame, time doubled or halved."""
    if layer.mode == "upsample3d" and states.shape[2] > 1:
        pairs = _causal(layer.time_conv, states[:, :, 1:])
        later = rearrange(pairs, "b (two c) t h w -> b c (t two) h w", two=2)
        states = torch.cat([states[:, :, :1], later], dim=2)
    states = _by_frame(layer.resample, states)
    if layer.mode == "downsample3d" and states.shape[2] > 1:
        conv = layer.time_conv
        later = F.conv3d(states, conv.weight, conv.bias, stride=conv.stride)
        states = torch.cat([states[:, :, :1], later], dim=2)
    return states


def _by_frame(layer: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    clips = len(states)
    return rearrange(layer(rearrange(states, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=clips)
