"""The temporal U-Net of VidRD: Stable Diffusion's U-Net with Temp-Conv and Temp-Attn layers (arXiv 2309.03549)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from .fast_paths import group_norm, memory_format
from .folding import fold_frames, unfold_frames
from .inflate import inflate
from .layers import Downsample, ResnetBlock, SpatioTemporalTransformer, TempConv, Upsample

TEMP_CONV_DROPOUT = 0.1  # of the release


@dataclass
class VidRDUNetOutput(BaseOutput):
    """``sample``: the predicted noise (or v, by the scheduler's prediction type), ``[B, C, T, H, W]``."""

    sample: Tensor


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoidal code of the diffusion time."""

    def __init__(self, dim: int, time_dim: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.linear_1 = operations.Linear(dim, time_dim, **factory)
        self.linear_2 = operations.Linear(time_dim, time_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResolutionBlock(nn.Module):
    """One resolution level: layers of (residual block, Temp-Conv, transformer), then a change of resolution.

    The middle block has one residual block more than transformers; without attention there are no transformers.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]
    resnets: nn.ModuleList
    attentions: nn.ModuleList  # these four only where the block has them
    temp_convs: nn.ModuleList
    downsamplers: nn.ModuleList
    upsamplers: nn.ModuleList

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],  # (in, out) channels of each residual block
        transformers: int,
        downsample: bool = False,
        upsample: bool = False,
        *,
        heads: int,
        context_dim: int,
        time_dim: int,
        groups: int,
        eps: float,
        use_linear_projection: bool,
        add_temp_embed: bool,
        add_temp_conv: bool,
        **layer_kwargs: Any,
    ):
        super().__init__()
        out = widths[-1][1]
        self.resnets = nn.ModuleList([ResnetBlock(i, o, groups, eps, time_dim, **layer_kwargs) for i, o in widths])
        if transformers:
            self.attentions = nn.ModuleList(
                [
                    SpatioTemporalTransformer(
                        out, heads, context_dim, groups, use_linear_projection, add_temp_embed, **layer_kwargs
                    )
                    for _ in range(transformers)
                ]
            )
        if add_temp_conv:
            self.temp_convs = nn.ModuleList(
                [TempConv(o, 4, groups, TEMP_CONV_DROPOUT, **layer_kwargs) for _, o in widths]
            )
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(out, **layer_kwargs)])
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(out, **layer_kwargs)])

    def layer(self, index: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Residual block ``index`` with what follows it."""
        x = self.resnets[index](x, time)
        if hasattr(self, "temp_convs"):
            x = self.temp_convs[index](x)
        if index < len(getattr(self, "attentions", ())):
            x = self.attentions[index](x, context)
        return x

    def run_layer(self, index: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """:meth:`layer`, its activations recomputed in the backward pass when gradient checkpointing is on."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.layer, index, x, time, context)
        return self.layer(index, x, time, context)


class VidRDUNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Noise prediction for video latents: ``[B, C, T, H, W]`` in and out.

    Defaults are those of Stable Diffusion 2.1-base with the released VidRD's temporal layers (1,182.4M parameters).
    State-dict names are the released ones, those of diffusers' 2-D U-Net plus ``temp_`` keys.

    Args:
        sample_size: latent height and width of the training data; the model itself takes any size.
        in_channels, out_channels: channels of the latents.
        block_out_channels: width of each resolution; each is half as high and wide as the one before.
        layers_per_block: residual blocks per resolution on the way down; one more on the way up.
        cross_attention_dim: width of the text states.
        attention_head_dim: *number* of heads, one for all resolutions or one each (the name is diffusers' own).
        use_linear_projection: transformers project with linear layers (SD 2.x) instead of 1x1 convolutions (SD 1.x).
        norm_num_groups: groups of every GroupNorm.
        add_temp_embed: add the frame sinusoid in every transformer block.
        add_temp_conv: add a Temp-Conv after every residual block.
        down_block_types, up_block_types: which resolutions have attention: those whose name begins with ``CrossAttn``.
            None: all but the lowest resolution, as in Stable Diffusion.
        norm_eps: epsilon of the GroupNorms in residual blocks and before the output.
        operations, dtype, device: where leaf layers come from and how they are made; not part of the configuration.
    """

    config: Any
    config_name = "config.json"  # type: ignore[assignment]
    ignore_for_config = ["operations", "dtype", "device"]
    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock", "SpatioTemporalTransformer", "TempConv"]  # type: ignore[assignment]
    _repeated_blocks = ["SpatioTemporalTransformer"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = 32,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        cross_attention_dim: int = 1024,
        attention_head_dim: int | Sequence[int] = (5, 10, 20, 20),
        use_linear_projection: bool = True,
        norm_num_groups: int = 32,
        add_temp_embed: bool = True,
        add_temp_conv: bool = True,
        down_block_types: Sequence[str] | None = None,
        up_block_types: Sequence[str] | None = None,
        norm_eps: float = 1e-5,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        widths = tuple(block_out_channels)
        levels = len(widths)
        heads = (attention_head_dim,) * levels if isinstance(attention_head_dim, int) else tuple(attention_head_dim)
        if len(heads) != levels:
            raise ValueError(
                f"attention_head_dim has {len(heads)} entries for {levels} block_out_channels: give one each"
            )
        attends = _attention_levels(levels, down_block_types, up_block_types)
        layer_kwargs: dict[str, Any] = {"operations": operations, "dtype": dtype, "device": device}
        time_dim = widths[0] * 4
        shared: dict[str, Any] = {
            "context_dim": cross_attention_dim,
            "time_dim": time_dim,
            "groups": norm_num_groups,
            "eps": norm_eps,
            "use_linear_projection": use_linear_projection,
            "add_temp_embed": add_temp_embed,
            "add_temp_conv": add_temp_conv,
            **layer_kwargs,
        }
        factory = {"dtype": dtype, "device": device}

        self.conv_in = operations.Conv2d(in_channels, widths[0], 3, padding=1, **factory)
        self.time_embedding = TimeEmbedding(widths[0], time_dim, **layer_kwargs)

        skips = [widths[0]]
        down = []
        for level, width in enumerate(widths):
            last = level == levels - 1
            channels = [(skips[-1] if i == 0 else width, width) for i in range(layers_per_block)]
            count = layers_per_block if attends[level] else 0
            down.append(ResolutionBlock(channels, count, downsample=not last, heads=heads[level], **shared))
            skips += [width] * (layers_per_block + (not last))
        self.down_blocks = nn.ModuleList(down)

        self.mid_block = ResolutionBlock([(widths[-1], widths[-1])] * 2, 1, heads=heads[-1], **shared)

        up = []
        previous = widths[-1]
        for level in reversed(range(levels)):
            width = widths[level]
            channels = []
            for _ in range(layers_per_block + 1):
                channels.append((previous + skips.pop(), width))
                previous = width
            count = layers_per_block + 1 if attends[level] else 0
            up.append(ResolutionBlock(channels, count, upsample=level > 0, heads=heads[level], **shared))
        self.up_blocks = nn.ModuleList(up)

        self.conv_norm_out = operations.GroupNorm(norm_num_groups, widths[0], eps=norm_eps, **factory)
        self.conv_out = operations.Conv2d(widths[0], out_channels, 3, padding=1, **factory)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        return_dict: bool = True,
    ) -> VidRDUNetOutput:
        """Predict the noise in ``sample``.

        Args:
            sample: noisy latents ``[B, C, T, H, W]``; any T from 1 and any H, W from 1.
            timestep: diffusion time(s), a number or ``[B]``; fractions are allowed.
            encoder_hidden_states: text states ``[B, M, cross_attention_dim]``.

        Raises:
            ValueError: the shapes do not fit the configuration.
        """
        batch, _, num_frames = self._check_shapes(sample, encoder_hidden_states)

        # Time and text, once for all layers.
        timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(batch)
        code = get_timestep_embedding(timestep, self.conv_in.out_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        time = F.silu(self.time_embedding(code.to(sample.dtype)))
        context = encoder_hidden_states.to(sample.dtype)

        # Down.
        frames = fold_frames(sample).contiguous(memory_format=memory_format(sample))
        x = unfold_frames(self.conv_in(frames), num_frames)
        skips = [x]
        for block in cast(Iterable[ResolutionBlock], self.down_blocks):
            for index in range(len(block.resnets)):
                x = block.run_layer(index, x, time, context)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                skips.append(x)

        # Middle.
        for index in range(len(self.mid_block.resnets)):
            x = self.mid_block.run_layer(index, x, time, context)

        # Up. Sizes come from the skips, so that odd heights and widths meet again.
        for block in cast(Iterable[ResolutionBlock], self.up_blocks):
            for index in range(len(block.resnets)):
                x = block.run_layer(index, torch.cat((x, skips.pop()), dim=1), time, context)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](x, tuple(skips[-1].shape[3:]))

        # Out.
        x = F.silu(group_norm(self.conv_norm_out, x))
        x = unfold_frames(self.conv_out(fold_frames(x)), num_frames)
        return VidRDUNetOutput(sample=x) if return_dict else (x,)  # type: ignore[return-value]

    def _check_shapes(self, sample: Tensor, context: Tensor) -> tuple[int, int, int]:
        channels, width = self.config.in_channels, self.config.cross_attention_dim
        if sample.ndim != 5 or sample.shape[1] != channels:
            raise ValueError(f"sample is {list(sample.shape)}; expected latents [B, {channels}, T, H, W]")
        if context.ndim != 3 or context.shape[2] != width or context.shape[0] != sample.shape[0]:
            raise ValueError(
                f"encoder_hidden_states is {list(context.shape)}; expected [{sample.shape[0]}, tokens, {width}]: "
                "one text per clip, from the text encoder this U-Net was trained with"
            )
        return sample.shape[0], sample.shape[1], sample.shape[2]

    @classmethod
    def from_image_unet(
        cls,
        source: str | Path | Mapping[str, Tensor],
        config: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> VidRDUNet:
        """Inflate a 2-D U-Net of Stable Diffusion's shape; the temporal layers start as the identity.

        Args:
            source: a diffusers U-Net folder (``config.json`` and safetensors), or a state dict in diffusers' names.
            config: the 2-D U-Net's configuration; read from the folder when None. Required with a state dict.
            overrides: constructor arguments to change, for example ``add_temp_embed=False``, with which a single frame
                gives exactly what the 2-D U-Net gives.

        Raises:
            ValueError: the source is no such U-Net; the message lists the keys or settings that do not fit.
        """
        return inflate(cls, source, config, overrides, fixed=FIXED_SETTINGS)


# Settings of diffusers' 2-D U-Net that Stable Diffusion never changes and this class therefore does not have.
FIXED_SETTINGS: dict[str, Any] = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
}


def _attention_levels(levels: int, down: Sequence[str] | None, up: Sequence[str] | None) -> list[bool]:
    if down is None:
        return [level < levels - 1 for level in range(levels)]
    attends = [name.startswith("CrossAttn") for name in down]
    mirrored = attends if up is None else [name.startswith("CrossAttn") for name in reversed(up)]
    if len(attends) != levels or mirrored != attends:
        raise ValueError(
            f"down_block_types {list(down)} and up_block_types {list(up or ())} must name {levels} blocks each, "
            "the second a mirror of the first"
        )
    return attends
