"""Layers shared by the temporal U-Net and the video autoencoder.

Order is the order of dependency: tensor views, attention, transformer, residual blocks, resampling.

Every layer takes and returns a clip ``[B, C, T, H, W]``. The models keep large clips in ``torch.channels_last_3d``
memory (that is B, T, H, W, C), where a batch of frames ``[B*T, C, H, W]``, a batch of tokens ``[B*T, H*W, C]`` and the
clip itself are views of one another, so that moving between spatial and temporal layers copies nothing.

Leaf layers come from an ``operations`` namespace (``Linear``, ``Conv2d``, ``Conv3d``, ``GroupNorm``, ``LayerNorm``;
default ``torch.nn``), so that a host can bring layers that cast, quantise or stream their weights. A namespace may also
carry ``attention_function(q, k, v, heads)`` on ``[B, N, heads * d]`` tensors to replace scaled-dot-product attention,
and its layers ``weights_are_ready()``: whether their weights are in place, of the input's type and final.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

AttentionFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


# The layers fold axes hundreds of times a step, and by torch's own views: einops takes twice as long for each, which a
# device that waits for the host would feel. Its patterns stand beside them; tests/test_folding.py holds them to these.


def fold_frames(x: Tensor) -> Tensor:
    """``b c t h w -> (b t) c h w``; a view in channels-last memory."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_frames(x: Tensor, num_frames: int) -> Tensor:
    """``(b t) c h w -> b c t h w``, the inverse of :func:`fold_frames`; always a view."""
    return x.unflatten(0, (-1, num_frames)).transpose(1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """``n c h w -> n (h w) c``; a view in channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_images(x: Tensor, height: int) -> Tensor:
    """``n (h w) c -> n c h w``, the inverse of :func:`to_tokens`; always a view."""
    return x.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``b n (heads d) -> b heads n d``; always a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``b heads n d -> b n (heads d)``."""
    return x.transpose(1, 2).flatten(2)


def swap_first(x: Tensor, second: int) -> Tensor:
    """``(a b) n c -> (a n) b c`` where b is ``second``: frames and positions of tokens change places."""
    return x.unflatten(0, (-1, second)).transpose(1, 2).flatten(0, 1)


def frame_layout(x: Tensor) -> torch.memory_format:
    """The memory format in which to run on ``[B, C, T, H, W]``: channels-last, unless it is tiny and on the CPU.

    Below 16x16 positions the copies that channels-last saves are cheap, and the plain layout runs the very operations
    of the released code, so that even ill-conditioned norms (one position, two channels) agree to the last bits.
    """
    return torch.contiguous_format if _is_tiny(x) else torch.channels_last


def _is_tiny(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.shape[-2] * x.shape[-1] < 256


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the layer does what ``kind`` does with the weights it has, so that other code may do its work.

    A host's layer may cast or stream its weights, an adapter may wrap it, hooks may move it: those must be called.
    """
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__:
        return False
    if type(layer).forward is kind.forward:
        return True
    ready = getattr(layer, "weights_are_ready", None)
    return isinstance(layer, kind) and ready is not None and ready()


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a 2-D layer to each frame of a clip ``[B, C, T, H, W]``."""
    return unfold_frames(layer(fold_frames(x)), x.shape[2])


ROW_TOKENS = 256  # from here on a convolution is the faster way to apply a Linear layer
PART_TOKENS = 4096  # of a feed-forward on the CPU at a time
PART_SIZE = 2**26  # elements of a frame-by-frame layer's input at a time


def linear(layer: Any, x: Tensor) -> Tensor:
    """Apply a Linear layer to tokens ``[..., N, C]``, where it pays as a convolution over a single row of them.

    In float32 inference on x86 torch's matrix products come from MKL, which on processors of other makers is slower
    than oneDNN's convolutions; these take views of the same tokens and weights.
    """
    if (
        x.dtype != torch.float32
        or x.device.type != "cpu"
        or x.numel() < ROW_TOKENS * x.shape[-1]
        or torch.is_grad_enabled()
        or not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())
        or not is_plain(layer, nn.Linear)
    ):
        return layer(x)
    row = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(row, layer.weight[:, :, None, None], layer.bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def in_parts(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer that works frame by frame to ``[B*T, C, 1, H, W]``, in inference some frames at a time.

    Where the frames are large, what the layer makes in between would take several times the room of its output.
    """
    count = max(1, PART_SIZE // x[0].numel())
    if torch.is_grad_enabled() or count >= len(x):
        return layer(x)
    out: Tensor | None = None
    for start in range(0, len(x), count):
        part = layer(x[start : start + count])
        if out is None:
            last = part.is_contiguous(memory_format=torch.channels_last_3d)
            layout = torch.channels_last_3d if last else torch.contiguous_format
            shape = (len(x), *part.shape[1:])
            out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=layout)
        out[start : start + count] = part
    assert out is not None
    return out


def group_norm(layer: Any, x: Tensor, owned: bool = False) -> Tensor:
    """Apply a GroupNorm layer to ``[B, C, ...]``.

    On the CPU torch's channels-last kernel takes the variance as E[x^2] - E[x]^2, which loses digits where the mean is
    large (relative error 5e-5 at mean 10). The norm does not depend on a group's mean, so float32 inference on the CPU
    takes off about that first: in place from a tensor that is ``owned``, that is, held by nobody else.
    """
    if _is_tiny(x):
        return layer(x.contiguous())
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
        some = rearrange(x, "b c ... -> b (...) c")[:, ::8].mean(1)
        shift = reduce(some, "b (g c) -> b g", "mean", g=layer.num_groups)
        shift = repeat(shift, "b g -> b (g c)", c=x.shape[1] // layer.num_groups)
        shift = shift.unflatten(1, (-1,) + (1,) * (x.ndim - 2))
        x = x.sub_(shift) if owned else x - shift
    return layer(x)


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds; in place in inference, where fresh memory costs more than the sum."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(own: Tensor, other: Tensor) -> Tensor:
    """The sum of a tensor that nobody else holds and another; in place in inference, like :func:`silu`.

    Not where their types differ, as under autocast: the sum is of the wider one, as in training.
    """
    in_place = not torch.is_grad_enabled() and own.dtype == other.dtype
    return own.add_(other) if in_place else own + other


def convolve_frames(layer: Any, x: Tensor) -> Tensor:
    """Apply a Conv3d layer of kernel (3, 1, 1) to ``[B, C, T, H, W]``, as a 2-D convolution over (T, H * W).

    On the CPU in float32 torch's own 3-D convolution reaches about two thirds of the 2-D one's speed.
    """
    if x[0].numel() < 2**16 or not is_plain(layer, nn.Conv3d):
        return layer(x)
    if _is_tiny(x):
        planes = rearrange(x, "b c t h w -> b c t (h w)")
        y = F.conv2d(planes, layer.weight.squeeze(-1), layer.bias, padding=(1, 0))
        return rearrange(y, "b c t (h w) -> b c t h w", h=x.shape[3])
    # Views of contiguous tokens, not einops, since the strides are the point: flatten and unflatten, which it uses too,
    # leave a single clip some that torch takes for another layout.
    batch, channels, frames, height, width = x.shape
    planes = x.permute(0, 2, 3, 4, 1).contiguous().view(batch, frames, -1, channels).permute(0, 3, 1, 2)
    y = F.conv2d(planes, layer.weight.squeeze(-1), layer.bias, padding=(1, 0))
    del planes
    y = y.permute(0, 2, 3, 1).contiguous()
    return y.view(batch, frames, height, width, -1).permute(0, 4, 1, 2, 3)


def frame_sinusoid(num_frames: int, dim: int, device: torch.device | str | None = None) -> Tensor:
    """Fixed frame-position code ``[T, dim]``, float32: sines at even and cosines at odd channels, period base 10000."""
    position = torch.arange(num_frames, device=device, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / dim))
    angle = position * frequency
    return rearrange(torch.stack((angle.sin(), angle.cos()), dim=-1), "t c parts -> t (c parts)")


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention on ``[B, N, heads * d]`` tensors.

    With torch's own kernels, but in half precision over few keys on the CPU with plain matrix products: there torch's
    kernel is up to 4 times slower forward (8 keys) and 10 times backward (77 keys).
    """
    q, k, v = (split_heads(t, heads) for t in (q, k, v))
    if q.device.type == "cpu" and q.dtype != torch.float32 and k.shape[2] <= 128:
        out = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1, dtype=q.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return merge_heads(out)


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
        """``[B, N, dim]`` in and out; on the CPU some frames at a time, so that the wide middle stays in the cache."""
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            parts = x.split(max(1, PART_TOKENS // x.shape[1]))
            return torch.cat([self._forward(part) for part in parts]) if len(parts) > 1 else self._forward(x)
        return self._forward(x)

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
        made: dict[str, Any] = {"operations": operations, **factory}
        self.add_temp_embed = add_temp_embed
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.attn1 = Attention(dim, heads, **made)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.attn2 = Attention(dim, heads, context_dim, **made)
        self.temp_norm = operations.LayerNorm(dim, **factory)
        self.temp_attn = Attention(dim, heads, **made)
        zero_init(self.temp_attn.to_out[0])
        self.norm3 = operations.LayerNorm(dim, **factory)
        self.ff = FeedForward(dim, **made)

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
            h = silu(group_norm(norm, h, owned=h is not x))
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
        h = per_frame(self.conv2, silu(group_norm(self.norm2, h, owned=True)))
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
        if size == (x.shape[3] * 2, x.shape[4] * 2) and not _is_tiny(x) and is_plain(self.conv, nn.Conv2d):
            return unfold_frames(self._convolve_doubled(fold_frames(x)), x.shape[2])
        return unfold_frames(self.conv(F.interpolate(fold_frames(x), size=size, mode="nearest")), x.shape[2])

    def _convolve_doubled(self, x: Tensor) -> Tensor:
        """The same on ``[N, C, H, W]`` in 4/9 of the operations.

        Of the three rows (columns) that a kernel sees in a doubled image two are equal: adding their weights leaves one
        2x2 convolution of the image itself for each of the four positions in a doubled pixel.
        """
        count, _, height, width = x.shape
        x = F.pad(x, (1, 1, 1, 1))
        shape = (count, self.conv.out_channels, 2 * height, 2 * width)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        first, middle, last = self.conv.weight.unbind(2)
        for row, rows in enumerate(((first, middle + last), (first + middle, last))):
            left, center, right = torch.stack(rows, dim=2).unbind(3)
            for column, columns in enumerate(((left, center + right), (left + center, right))):
                part = x[:, :, row : row + height + 1, column : column + width + 1]
                y[:, :, row::2, column::2] = F.conv2d(part, torch.stack(columns, dim=3), self.conv.bias)
        return y
