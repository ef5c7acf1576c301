"""Views of a clip as frames and as tokens, and of tokens by heads or by positions.

A clip is ``[B, C, T, H, W]``. In ``torch.channels_last_3d`` memory (that is B, T, H, W, C) the clip, its frames
``[B*T, C, H, W]`` and their tokens ``[B*T, H*W, C]`` are views of one another, so that changing between spatial and
temporal layers copies nothing.

These run hundreds of times a step, so they use torch's own views: einops takes twice as long for each, which a GPU that
waits for the host would feel. Each one's einops pattern stands in its docstring; tests/test_folding.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


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


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a 2-D layer to each frame of a clip ``[B, C, T, H, W]``."""
    return unfold_frames(layer(fold_frames(x)), x.shape[2])
