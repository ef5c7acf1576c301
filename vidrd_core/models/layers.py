"""Layers shared by the temporal U-Net and the video autoencoder: attention, transformer, residual blocks, resampling.

Every layer takes and returns a clip ``[B, C, T, H, W]``. The models keep large clips in ``torch.channels_last_3d``
memory, so that the views of :mod:`.folding` copy nothing. ``linear``, ``group_norm`` and the other functions of
:mod:`.fast_paths` apply a layer as calling it would, in the way that is fastest where it runs.

Leaf layers come from an ``operations`` namespace (``Linear``, ``Conv2d``, ``Conv3d``, ``GroupNorm``, ``LayerNorm``;
default ``torch.nn``), so that a host can bring layers that cast, quantise or stream their weights. A namespace may also
carry ``attention_function(q, k, v, heads)`` on ``[B, N, heads * d]`` tensors to replace scaled-dot-product attention,
and its layers ``uses_weights_in_place()``: whether they use their weights as they are, not cast or patched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .fast_paths import (
    add,
    chunked_tokens,
    convolve_frames,
    group_norm,
    linear,
    scaled_dot_product_attention,
    silu,
    upsample_and_convolve,
)
from .folding import fold_frames, per_frame, swap_first, to_images, to_tokens, unfold_frames

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def frame_sinusoid(num_frames: int, dim: int, device: torch.device | str | None = None) -> Tensor:
    """Fixed frame-position code ``[T, dim]``, float32: sines at even and cosines at odd channels, period base 10000."""
    position = torch.arange(num_frames, device=device, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angle = position * frequency
    return rearrange(torch.stack((angle.sin(), angle.cos()), dim=-1), "t c parts -> t (c parts)")


def zero_init(layer: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that the residual branch it ends starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Attention(nn.Module):
    """Multi-head attention, with the names of diffusers: ``to_q``, ``to_k``, ``to_v``, ``to_out.0``."""

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,  # width of keys' and values' source; None: self-attention
        bias: bool = False,  # bias of q, k, v; the output always has one
        *,
        operations: Any = nn,
        **factory: Any,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention width {dim} is not divisible by {heads} heads; change attention_head_dim")
        context_dim = dim if context_dim is None else context_dim
        self.heads = heads
        self.attention: AttentionFunction = getattr(operations, "attention_function", scaled_dot_product_attention)
        self.to_q = operations.Linear(dim, dim, bias=bias, **factory)
        self.to_k = operations.Linear(context_dim, dim, bias=bias, **factory)
        self.to_v = operations.Linear(context_dim, dim, bias=bias, **factory)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim, **factory), nn.Dropout(0.0)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``x``: ``[B, N, dim]``; ``context``: ``[B, M, context_dim]`` or None for ``x`` itself.

        Where the context has fewer rows than ``x``, each serves several in a row (a clip's text all its frames), and
        its keys and values are computed once.
        """
        context = x if context is None else context
        q = linear(self.to_q, x).unflatten(0, (context.shape[0], -1)).flatten(1, 2)  # (b rows) n c -> b (rows n) c
        out = self.attention(q, linear(self.to_k, context), linear(self.to_v, context), self.heads)
        return linear(self.to_out[0], out.reshape(x.shape))

    def over_frames(self, x: Tensor, num_frames: int) -> Tensor:
        """Each position attends to itself in all frames, without a mask: ``[B*T, N, dim]`` in and out.

        Projected in the order of frames: linear layers are several times slower on transposed tokens.
        """
        q, k, v = (swap_first(linear(layer, x), num_frames) for layer in (self.to_q, self.to_k, self.to_v))
        out = self.attention(q, k, v, self.heads)
        return linear(self.to_out[0], swap_first(out, x.shape[1]))


class GEGLU(nn.Module):
    """Gated GELU (arXiv 2002.05202): ``a * gelu(b)``, both halves of one projection."""

    def __init__(self, dim: int, inner_dim: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.proj = operations.Linear(dim, inner_dim * 2, **factory)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = linear(self.proj, x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward of four times the width."""

    def __init__(self, dim: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.net = nn.ModuleList(
            [
                GEGLU(dim, dim * 4, operations=operations, **factory),
                nn.Dropout(0.0),
                operations.Linear(dim * 4, dim, **factory),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, dim]`` in and out."""
        return chunked_tokens(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        return linear(self.net[2], self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, attention over frames (Temp-Attn), feed-forward; each pre-normed and residual.

    The frame sinusoid is added to the residual stream itself, not only to the attention's input, and also when there is
    a single frame, for which the attention over frames is skipped: the released weights were trained so.
    """

    def __init__(
        self, dim: int, heads: int, context_dim: int, add_temp_embed: bool, *, operations: Any = nn, **factory: Any
    ):
        super().__init__()
        layer_kwargs: dict[str, Any] = {"operations": operations, **factory}
        self.add_temp_embed = add_temp_embed
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.attn1 = Attention(dim, heads, **layer_kwargs)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.attn2 = Attention(dim, heads, context_dim, **layer_kwargs)
        self.temp_norm = operations.LayerNorm(dim, **factory)
        self.temp_attn = Attention(dim, heads, **layer_kwargs)
        zero_init(self.temp_attn.to_out[0])
        self.norm3 = operations.LayerNorm(dim, **factory)
        self.ff = FeedForward(dim, **layer_kwargs)

    def forward(self, x: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """``x``: tokens ``[B*T, H*W, dim]``; ``context``: text ``[B, M, context_dim]``."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        if self.add_temp_embed:
            code = frame_sinusoid(num_frames, x.shape[-1], x.device).to(x.dtype)
            x = (x.unflatten(0, (-1, num_frames)) + code[:, None]).flatten(0, 1)  # in b t n c
        if num_frames > 1:
            x = x + self.temp_attn.over_frames(self.temp_norm(x), num_frames)
        return x + self.ff(self.norm3(x))


class SpatioTemporalTransformer(nn.Module):
    """A transformer block over the tokens of each frame, between two projections, residual around the whole."""

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int,
        groups: int,
        use_linear_projection: bool,  # SD 2.x projects with Linear, SD 1.x with a 1x1 convolution
        add_temp_embed: bool,
        *,
        operations: Any = nn,
        **factory: Any,
    ):
        super().__init__()
        self.use_linear_projection = use_linear_projection
        self.norm = operations.GroupNorm(groups, dim, eps=1e-6, **factory)
        if use_linear_projection:
            self.proj_in = operations.Linear(dim, dim, **factory)
            self.proj_out = operations.Linear(dim, dim, **factory)
        else:
            self.proj_in = operations.Conv2d(dim, dim, 1, **factory)
            self.proj_out = operations.Conv2d(dim, dim, 1, **factory)
        block = TransformerBlock(dim, heads, context_dim, add_temp_embed, operations=operations, **factory)
        self.transformer_blocks = nn.ModuleList([block])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x``: ``[B, C, T, H, W]``; ``context``: each clip's text ``[B, M, context_dim]``."""
        num_frames, height = x.shape[2:4]
        # The entry norm takes its statistics per frame, unlike the norms of the residual blocks.
        h = group_norm(self.norm, fold_frames(x))
        if self.use_linear_projection:
            h = linear(self.proj_in, to_tokens(h))
        else:
            h = to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context, num_frames)
        if self.use_linear_projection:
            h = to_images(linear(self.proj_out, h), height)
        else:
            h = self.proj_out(to_images(h, height))
        return x + unfold_frames(h, num_frames)


class TempConv(nn.Module):
    """Temp-Conv: (GroupNorm, SiLU, Dropout, convolution over three frames) several times, residual, identity at start.

    Skipped for a single frame. The released U-Net has four convolutions, the released decoder three.
    """

    def __init__(self, dim: int, num_convs: int, groups: int, dropout: float, *, operations: Any = nn, **factory: Any):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers += [
                operations.GroupNorm(groups, dim, **factory),
                nn.SiLU(),
                nn.Dropout(dropout),
                operations.Conv3d(dim, dim, (3, 1, 1), padding=(1, 0, 0), **factory),
            ]
        zero_init(layers[-1])
        self.convs = nn.ModuleList(layers)

    def set_dropout(self, share: float) -> None:
        """Change the share of activations that training drops."""
        for layer in self.convs:
            if isinstance(layer, nn.Dropout):
                layer.p = share

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 1:
            return x
        h = x
        for norm, _, dropout, convolution in zip(*[iter(self.convs)] * 4):
            h = silu(group_norm(norm, h, may_overwrite=h is not x))
            h = convolve_frames(convolution, dropout(h))
        return add(h, x)


class ResnetBlock(nn.Module):
    """Stable Diffusion's residual block on a clip: convolutions per frame, norms over all frames together."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        eps: float,
        time_dim: int | None = None,  # width of the time embedding; None: the block has none
        *,
        operations: Any = nn,
        **factory: Any,
    ):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, in_channels, eps=eps, **factory)
        self.conv1 = operations.Conv2d(in_channels, out_channels, 3, padding=1, **factory)
        self.time_emb_proj = None if time_dim is None else operations.Linear(time_dim, out_channels, **factory)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=eps, **factory)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory)
        changes = in_channels != out_channels
        self.conv_shortcut = operations.Conv2d(in_channels, out_channels, 1, **factory) if changes else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """``x``: ``[B, C, T, H, W]``; ``time``: ``[B, time_dim]``, already through SiLU."""
        h = per_frame(self.conv1, silu(group_norm(self.norm1, x)))
        if self.time_emb_proj is not None:
            h = add(h, self.time_emb_proj(time)[:, :, None, None, None])
        h = per_frame(self.conv2, silu(group_norm(self.norm2, h, may_overwrite=True)))
        return add(h, x if self.conv_shortcut is None else per_frame(self.conv_shortcut, x))


class Downsample(nn.Module):
    """Halve height and width with a strided convolution, padded all around or, as in the VAE, only below and right."""

    def __init__(self, dim: int, asymmetric: bool = False, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = operations.Conv2d(dim, dim, 3, stride=2, padding=0 if asymmetric else 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        frames = fold_frames(x)
        if self.asymmetric:
            frames = F.pad(frames, (0, 1, 0, 1))
        return unfold_frames(self.conv(frames), x.shape[2])


class Upsample(nn.Module):
    """Double height and width by nearest neighbour, or grow to a given size, then convolve."""

    def __init__(self, dim: int, *, operations: Any = nn, **factory: Any):
        super().__init__()
        self.conv = operations.Conv2d(dim, dim, 3, padding=1, **factory)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """``size``: (height, width) of the skip connection to meet; None doubles both."""
        size = (x.shape[3] * 2, x.shape[4] * 2) if size is None else size
        return per_frame(lambda frames: upsample_and_convolve(self.conv, frames, size), x)
