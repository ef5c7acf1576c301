"""The video autoencoder of VidRD: Stable Diffusion's VAE whose decoder has temporal layers (arXiv 2309.03549)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from .fast_paths import chunked_frames, group_norm, memory_format, silu
from .folding import fold_frames, to_images, to_tokens, unfold_frames
from .inflate import inflate
from .layers import Attention, Downsample, ResnetBlock, TempConv, Upsample
from .old_names import rename_old_attention

EPS = 1e-6  # of every GroupNorm in Stable Diffusion's VAE
TEMP_CONV_DROPOUT = 0.1  # of the release


@dataclass
class EncoderOutput(BaseOutput):
    """``latent_dist``: a diagonal Gaussian whose ``.mode()`` and ``.sample(generator)`` are ``[B, C, T, h, w]``."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(BaseOutput):
    """``sample``: pixels ``[B, 3, T, H, W]``, about -1 to 1, not clamped."""

    sample: Tensor


class FrameAttention(Attention):
    """Single-head self-attention over the positions of each frame, with its own norm, residual."""

    def __init__(self, dim: int, groups: int, *, operations: Any = nn, **factory: Any):
        super().__init__(dim, 1, bias=True, operations=operations, **factory)
        self.group_norm = operations.GroupNorm(groups, dim, eps=EPS, **factory)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x``: frames ``[B, C, 1, H, W]``."""
        h = super().forward(to_tokens(fold_frames(group_norm(self.group_norm, x))))
        return x + unfold_frames(to_images(h, x.shape[3]), 1)


class ResolutionBlock(nn.Module):
    """Residual blocks of one resolution, each followed by a Temp-Conv if ``temporal``, then a change of resolution."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]
    resnets: nn.ModuleList
    temp_convs: nn.ModuleList  # only where the block is temporal

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        groups: int,
        temporal: bool = False,
        downsample: bool = False,
        upsample: bool = False,
        **layer_kwargs: Any,
    ):
        super().__init__()
        widths = [(in_channels if i == 0 else out_channels, out_channels) for i in range(num_layers)]
        self.resnets = nn.ModuleList([ResnetBlock(i, o, groups, EPS, **layer_kwargs) for i, o in widths])
        if temporal:
            self.temp_convs = nn.ModuleList(
                [TempConv(o, 3, groups, TEMP_CONV_DROPOUT, **layer_kwargs) for _, o in widths]
            )
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(out_channels, asymmetric=True, **layer_kwargs)])
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(out_channels, **layer_kwargs)])

    def steps(self, num_frames: int = 1) -> Iterator[Callable[[Tensor], Tensor]]:
        """What to apply one after the other to frames ``[B*T, C, 1, H, W]``, so that norms work per frame.

        Small steps, so that a loop over them holds no tensor longer than it is needed: the widest ones decide which
        card can decode.
        """
        for index, resnet in enumerate(self.resnets):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                yield partial(self._gradient_checkpointing_func, self.layer, index, num_frames)
            else:
                yield partial(chunked_frames, resnet)
                yield partial(self.over_clip, index, num_frames)
        for resample in (*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())):
            yield partial(chunked_frames, resample)

    def layer(self, index: int, num_frames: int, x: Tensor) -> Tensor:
        """Residual block ``index`` per frame, then its Temp-Conv over the clip."""
        return self.over_clip(index, num_frames, self.resnets[index](x))

    def over_clip(self, index: int, num_frames: int, x: Tensor) -> Tensor:
        """Temp-Conv ``index`` over the clip, where there is one and there are several frames."""
        if not hasattr(self, "temp_convs") or num_frames == 1:
            return x
        return fold_frames(self.temp_convs[index](unfold_frames(x.squeeze(2), num_frames))).unsqueeze(2)


class MidBlock(nn.Module):
    """Residual block, attention, residual block; no temporal layers."""

    def __init__(self, dim: int, groups: int, **layer_kwargs: Any):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(dim, dim, groups, EPS, **layer_kwargs) for _ in range(2)])
        self.attentions = nn.ModuleList([FrameAttention(dim, groups, **layer_kwargs)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Frames ``[B*T, 3, 1, H, W]`` to the moments of their latents ``[B*T, 2*C, 1, h, w]``; nothing temporal."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        *,
        operations: Any = nn,
        **factory: Any,
    ):
        super().__init__()
        layer_kwargs: dict[str, Any] = {"operations": operations, **factory}
        self.conv_in = operations.Conv2d(in_channels, widths[0], 3, padding=1, **factory)
        entries = (widths[0], *widths[:-1])
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(
            [
                ResolutionBlock(i, o, layers, groups, downsample=n < last, **layer_kwargs)
                for n, (i, o) in enumerate(zip(entries, widths))
            ]
        )
        self.mid_block = MidBlock(widths[-1], groups, **layer_kwargs)
        self.conv_norm_out = operations.GroupNorm(groups, widths[-1], eps=EPS, **factory)
        self.conv_out = operations.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1, **factory)

    def forward(self, frames: Tensor) -> Tensor:
        """``frames``: ``[B*T, 3, H, W]``; returns ``[B*T, 2*C, h, w]``."""
        x = self.conv_in(frames).unsqueeze(2)
        for step in chain.from_iterable(cast(ResolutionBlock, block).steps() for block in self.down_blocks):
            x = step(x)
        x = silu(group_norm(self.conv_norm_out, self.mid_block(x), may_overwrite=True))
        return self.conv_out(x.squeeze(2))


class TemporalDecoder(nn.Module):
    """Latents to pixels, with a Temp-Conv after each residual block of the up blocks."""

    def __init__(
        self,
        latent_channels: int,
        out_channels: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        add_temp_conv: bool,
        *,
        operations: Any = nn,
        **factory: Any,
    ):
        super().__init__()
        layer_kwargs: dict[str, Any] = {"operations": operations, **factory}
        widths = tuple(reversed(widths))
        entries = (widths[0], *widths[:-1])
        last = len(widths) - 1
        self.conv_in = operations.Conv2d(latent_channels, widths[0], 3, padding=1, **factory)
        self.mid_block = MidBlock(widths[0], groups, **layer_kwargs)
        self.up_blocks = nn.ModuleList(
            [
                ResolutionBlock(i, o, layers + 1, groups, temporal=add_temp_conv, upsample=n < last, **layer_kwargs)
                for n, (i, o) in enumerate(zip(entries, widths))
            ]
        )
        self.conv_norm_out = operations.GroupNorm(groups, widths[-1], eps=EPS, **factory)
        self.conv_out = operations.Conv2d(widths[-1], out_channels, 3, padding=1, **factory)

    def forward(self, latents: Tensor, num_frames: int) -> Tensor:
        """``latents``: ``[B*T, C, h, w]``; returns ``[B*T, 3, H, W]``."""
        x = self.mid_block(self.conv_in(latents).unsqueeze(2))
        for step in chain.from_iterable(cast(ResolutionBlock, block).steps(num_frames) for block in self.up_blocks):
            x = step(x)
        x = silu(group_norm(self.conv_norm_out, x, may_overwrite=True))
        return self.conv_out(x.squeeze(2))


class VidRDAutoencoderKL(ModelMixin, ConfigMixin):
    """Video autoencoder: the encoder works frame by frame, the decoder's temporal layers run for every T > 1.

    Nothing is scaled inside: multiply latents by ``config.scaling_factor`` before diffusion and divide after it.

    Args:
        in_channels, out_channels: channels of the pixels.
        down_block_types, up_block_types: kept for the configuration's sake; only their number counts.
        block_out_channels: width of each resolution; the latents are ``2 ** (len - 1)`` times smaller than the frames.
        layers_per_block: residual blocks per resolution in the encoder; the decoder has one more.
        latent_channels: channels of the latents.
        norm_num_groups: groups of every GroupNorm.
        sample_size: frame height and width of the training data; the model itself takes any size.
        scaling_factor: 1 / standard deviation of the latents.
        add_temp_conv: give the decoder its temporal layers.
        operations, dtype, device: where leaf layers come from and how they are made; not part of the configuration.
    """

    config: Any
    config_name = "config.json"  # type: ignore[assignment]
    ignore_for_config = ["operations", "dtype", "device"]
    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock", "FrameAttention", "TempConv"]  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",) * 4,
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",) * 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 256,
        scaling_factor: float = 0.18215,
        add_temp_conv: bool = True,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        layer_kwargs: dict[str, Any] = {"operations": operations, "dtype": dtype, "device": device}
        widths = tuple(block_out_channels)
        sizes = (widths, layers_per_block, norm_num_groups)
        self.encoder = Encoder(in_channels, latent_channels, *sizes, **layer_kwargs)
        self.decoder = TemporalDecoder(latent_channels, out_channels, *sizes, add_temp_conv, **layer_kwargs)
        factory = {"dtype": dtype, "device": device}
        self.quant_conv = operations.Conv2d(2 * latent_channels, 2 * latent_channels, 1, **factory)
        self.post_quant_conv = operations.Conv2d(latent_channels, latent_channels, 1, **factory)
        self.register_load_state_dict_pre_hook(_accept_old_attention_names)

    @property
    def spatial_factor(self) -> int:
        """How many pixels one latent is high and wide."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, frames: Tensor, return_dict: bool = True) -> EncoderOutput:
        """Pixels ``[B, 3, T, H, W]`` in [-1, 1] to the distribution of their latents, each frame by itself.

        Raises:
            ValueError: not such a tensor, or H or W not a multiple of :attr:`spatial_factor`.
        """
        self._check(frames, self.config.in_channels, "frames")
        factor = self.spatial_factor
        if frames.shape[3] % factor or frames.shape[4] % factor:
            raise ValueError(f"frames are {frames.shape[4]}x{frames.shape[3]}; both must be multiples of {factor}")
        x = fold_frames(frames).contiguous(memory_format=memory_format(frames))
        moments = unfold_frames(self.quant_conv(self.encoder(x)), frames.shape[2])
        posterior = DiagonalGaussianDistribution(moments)
        return EncoderOutput(latent_dist=posterior) if return_dict else (posterior,)  # type: ignore[return-value]

    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput:
        """Latents ``[B, C, T, h, w]``, unscaled, to pixels ``[B, 3, T, H, W]``; one window, all frames at once.

        :func:`vidrd_core.sampling.windows.decode_windows` decodes videos of any length in bounded memory.

        Raises:
            ValueError: not such a tensor.
        """
        self._check(latents, self.config.latent_channels, "latents")
        num_frames = latents.shape[2]
        x = fold_frames(latents).contiguous(memory_format=memory_format(latents))
        pixels = unfold_frames(self.decoder(self.post_quant_conv(x), num_frames), num_frames)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)  # type: ignore[return-value]

    def forward(
        self, frames: Tensor, sample_posterior: bool = False, generator: torch.Generator | None = None
    ) -> DecoderOutput:
        """Encode and decode ``[B, 3, T, H, W]``."""
        posterior = self.encode(frames).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode())

    @classmethod
    def from_image_vae(
        cls,
        source: str | Path | Mapping[str, Tensor],
        config: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> VidRDAutoencoderKL:
        """Inflate an image VAE of Stable Diffusion's shape; the decoder's temporal layers start as the identity.

        Args and errors as in :meth:`VidRDUNet.from_image_unet`.
        """
        fixed = {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
        return inflate(cls, source, config, overrides, fixed)

    @staticmethod
    def _check(x: Tensor, channels: int, name: str) -> None:
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(f"{name} is {list(x.shape)}; expected [B, {channels}, T, H, W]")


def _accept_old_attention_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for old in [k for k in state_dict if k.startswith(prefix) and rename_old_attention(k) != k]:
        state_dict[rename_old_attention(old)] = state_dict.pop(old)
