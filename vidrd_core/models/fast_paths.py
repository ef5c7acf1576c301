"""Faster or leaner ways to apply a layer, each with the result of calling the layer itself up to rounding.

The layers of the models call these functions in place of ``layer(x)``; which way is taken depends on the device, the
type, the size and whether gradients are wanted. Another way than the layer's own ``forward`` is taken only where the
layer uses the weights it holds as they are: see :func:`uses_own_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from .folding import merge_heads, split_heads

CONVOLUTION_TOKENS = 256  # from here on a convolution is the faster way to apply a Linear layer
CHUNK_TOKENS = 4096  # of a feed-forward on the CPU at a time
CHUNK_ELEMENTS = 2**26  # of the input of a layer that works frame by frame, at a time
# Asked once: torch.compile cannot trace the question.
PRODUCTS_ARE_MKL = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
SUMMED_ELEMENTS = 2**23  # from here on a GPU takes a GroupNorm's statistics faster as sums over positions


# -- which way is open -------------------------------------------------------------------------------------------------


def memory_format(x: Tensor) -> torch.memory_format:
    """In which to run on ``[B, C, T, H, W]``: channels-last, unless it is tiny and on the CPU.

    Below 16x16 positions the copies that channels-last saves are cheap, and the plain layout runs the very operations
    of the released code, so that even ill-conditioned norms (one position, two channels) agree to the last bits.
    """
    return torch.contiguous_format if is_tiny(x) else torch.channels_last


def is_tiny(x: Tensor) -> bool:
    """Whether ``[..., H, W]`` is on the CPU and below 16x16 positions."""
    return x.device.type == "cpu" and x.shape[-2] * x.shape[-1] < 256


def uses_own_weights(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``layer`` does what ``kind`` does with the weights it holds, so that its ``forward`` may be passed over.

    A host's layer may cast or stream its weights, an adapter may wrap it, hooks may move it: those must be called.
    """
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__:
        return False
    if type(layer).forward is kind.forward:
        return True
    in_place = getattr(layer, "uses_weights_in_place", None)
    return isinstance(layer, kind) and in_place is not None and in_place()


# -- tokens ------------------------------------------------------------------------------------------------------------


def linear(layer: Any, x: Tensor) -> Tensor:
    """Apply a Linear layer to tokens ``[..., N, C]``, where it pays as a convolution over a single row of them.

    In float32 inference on x86 torch's matrix products come from MKL, which on processors of other makers is slower
    than oneDNN's convolutions; these take views of the same tokens and weights.
    """
    if (
        x.dtype != torch.float32
        or x.device.type != "cpu"
        or x.numel() < CONVOLUTION_TOKENS * x.shape[-1]
        or torch.is_grad_enabled()
        or not PRODUCTS_ARE_MKL
        or not uses_own_weights(layer, nn.Linear)
    ):
        return layer(x)
    row = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(row, layer.weight[:, :, None, None], layer.bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def chunked_tokens(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a token-wise layer to ``[B, N, C]``, in inference on the CPU some items at a time.

    So that what is wider than the input in between stays in the processor's cache.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return layer(x)
    chunks = x.split(max(1, CHUNK_TOKENS // x.shape[1]))
    return torch.cat([layer(chunk) for chunk in chunks]) if len(chunks) > 1 else layer(x)


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


# -- frames and clips --------------------------------------------------------------------------------------------------


def chunked_frames(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer that works frame by frame to ``[B*T, C, 1, H, W]``, in inference some frames at a time.

    Where the frames are large, what the layer makes in between would take several times the room of its output.
    """
    count = max(1, CHUNK_ELEMENTS // x[0].numel())
    if torch.is_grad_enabled() or count >= len(x):
        return layer(x)
    out: Tensor | None = None
    for start in range(0, len(x), count):
        chunk = layer(x[start : start + count])
        if out is None:
            last = chunk.is_contiguous(memory_format=torch.channels_last_3d)
            layout = torch.channels_last_3d if last else torch.contiguous_format
            shape = (len(x), *chunk.shape[1:])
            out = torch.empty(shape, dtype=chunk.dtype, device=chunk.device, memory_format=layout)
        out[start : start + count] = chunk
    assert out is not None
    return out


def group_norm(layer: Any, x: Tensor, may_overwrite: bool = False) -> Tensor:
    """Apply a GroupNorm layer to ``[B, C, ...]``.

    On the CPU torch's channels-last kernel takes the variance as E[x^2] - E[x]^2, which loses digits where the mean is
    large (relative error 5e-5 at mean 10). The norm does not depend on a group's mean, so float32 inference on the CPU
    takes off about that first. torch's kernel for CUDA gives each group to one multiprocessor and returns the plain
    layout, so that large clips wait for few multiprocessors and are copied twice: these are normed by sums.

    Args:
        may_overwrite: nobody else needs ``x`` any more, so that this may happen in place.
    """
    if is_tiny(x):
        return layer(x.contiguous())
    if torch.is_grad_enabled():  # frames one by one too: torch 2.13 has crashed in the backward pass for them as images
        return layer(x)
    if x.ndim == 5 and x.shape[2] == 1:  # torch may take the memory of such clips for plain and return it so
        return group_norm(layer, x.squeeze(2), may_overwrite).unsqueeze(2)
    if x.device.type == "cpu" and x.dtype == torch.float32:
        some = rearrange(x, "b c ... -> b (...) c")[:, ::8].mean(1)
        shift = reduce(some, "b (g c) -> b g", "mean", g=layer.num_groups)
        shift = repeat(shift, "b g -> b (g c)", c=x.shape[1] // layer.num_groups)
        shift = shift.unflatten(1, (-1,) + (1,) * (x.ndim - 2))
        x = x.sub_(shift) if may_overwrite else x - shift
    is_large = x.device.type == "cuda" and x.numel() >= SUMMED_ELEMENTS
    if is_large and uses_own_weights(layer, nn.GroupNorm):
        return norm_by_sums(layer, x, may_overwrite)
    return layer(x)


def norm_by_sums(layer: Any, x: Tensor, may_overwrite: bool = False) -> Tensor:
    """Apply a GroupNorm layer to ``[B, C, ...]`` in channels-last memory, in float32 within.

    Each channel's sums over all positions come first, which are read in the order of memory by the whole device.
    """
    tokens = rearrange(x, "b c ... -> b (...) c")
    count = tokens.shape[1] * x.shape[1] // layer.num_groups
    sums = tokens.sum(1, dtype=torch.float32)
    squares = torch.linalg.vector_norm(tokens, dim=1, dtype=torch.float32).square()
    mean, square = (reduce(s, "b (g c) -> b g 1", "sum", g=layer.num_groups) / count for s in (sums, squares))
    deviation = (square - mean.square() + layer.eps).rsqrt()
    weight, bias = (rearrange(p.float(), "(g c) -> g c", g=layer.num_groups) for p in (layer.weight, layer.bias))
    scale = deviation * weight
    shift = bias - mean * scale
    scale, shift = (s.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) for s in (scale, shift))
    if torch.compiler.is_compiling():  # which cannot trace writing to channels-last memory
        return torch.addcmul(shift, x, scale).to(x.dtype)
    return torch.addcmul(shift, x, scale, out=x if may_overwrite else torch.empty_like(x))


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else needs; in place in inference, where fresh memory costs more than the sum."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(x: Tensor, other: Tensor) -> Tensor:
    """The sum of ``x``, which nobody else needs, and another tensor; in place in inference, like :func:`silu`.

    Not where their types differ, as under autocast: the sum is of the wider one, as in training.
    """
    in_place = not torch.is_grad_enabled() and x.dtype == other.dtype
    return x.add_(other) if in_place else x + other


def convolve_frames(layer: Any, x: Tensor) -> Tensor:
    """Apply a Conv3d layer of kernel (3, 1, 1) to ``[B, C, T, H, W]``, as a 2-D convolution over (T, H * W).

    On the CPU in float32 torch's own 3-D convolution reaches about two thirds of the 2-D one's speed.
    """
    if x[0].numel() < 2**16 or not uses_own_weights(layer, nn.Conv3d):
        return layer(x)
    if is_tiny(x):
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


def upsample_and_convolve(layer: Any, frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge ``[N, C, H, W]`` to ``size`` (height, width) by nearest neighbour, then apply a 3x3 Conv2d layer."""
    doubles = size == (frames.shape[2] * 2, frames.shape[3] * 2)
    if doubles and not is_tiny(frames) and uses_own_weights(layer, nn.Conv2d):
        return _convolve_doubled(layer, frames)
    return layer(F.interpolate(frames, size=size, mode="nearest"))


def _convolve_doubled(layer: Any, x: Tensor) -> Tensor:
    """The same for twice the size in 4/9 of the operations.

    Of the three rows (columns) that a kernel sees in a doubled image two are equal: adding their weights leaves one
    2x2 convolution of the image itself for each of the four positions in a doubled pixel.
    """
    count, _, height, width = x.shape
    x = F.pad(x, (1, 1, 1, 1))
    shape = (count, layer.out_channels, 2 * height, 2 * width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    first, middle, last = layer.weight.unbind(2)
    for row, rows in enumerate(((first, middle + last), (first + middle, last))):
        left, center, right = torch.stack(rows, dim=2).unbind(3)
        for column, columns in enumerate(((left, center + right), (left + center, right))):
            part = x[:, :, row : row + height + 1, column : column + width + 1]
            y[:, :, row::2, column::2] = F.conv2d(part, torch.stack(columns, dim=3), layer.bias)
    return y
