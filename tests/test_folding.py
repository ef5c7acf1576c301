"""Folding, moving and splitting axes: by einops' patterns, without copies where they matter, and exportable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from components import relative_error, tiny_unet, tiny_vae
from einops import rearrange

from vidrd_core.models import folding

CLIPS = [(2, 6, 4, 3, 5), (1, 6, 4, 3, 5), (2, 6, 1, 3, 5), (1, 1, 4, 1, 1), (3, 8, 2, 16, 16)]


def same(out: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal in value and in strides, which decide the kernel that runs next."""
    return torch.equal(out, expected) and out.stride() == expected.stride()


def is_view(out: torch.Tensor, source: torch.Tensor) -> bool:
    return out.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("shape", CLIPS)
def test_the_layers_views_are_those_of_their_patterns(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    clip = torch.randn(shape).contiguous(memory_format=layout)
    frames = folding.fold_frames(clip)
    assert same(frames, rearrange(clip, "b c t h w -> (b t) c h w"))
    assert same(folding.unfold_frames(frames, shape[2]), rearrange(frames, "(b t) c h w -> b c t h w", t=shape[2]))
    tokens = folding.to_tokens(frames)
    assert same(tokens, rearrange(frames, "n c h w -> n (h w) c"))
    assert same(folding.to_images(tokens, shape[3]), rearrange(tokens, "n (h w) c -> n c h w", h=shape[3]))
    over_frames = folding.swap_first(tokens, shape[2])
    assert same(over_frames, rearrange(tokens, "(b t) n c -> (b n) t c", t=shape[2]))
    count = tokens.shape[1]
    assert same(folding.swap_first(over_frames, count), rearrange(over_frames, "(b n) t c -> (b t) n c", n=count))
    heads = 2 if shape[1] % 2 == 0 else 1
    split = folding.split_heads(tokens, heads)
    assert same(split, rearrange(tokens, "b n (h d) -> b h n d", h=heads))
    assert same(folding.merge_heads(split), rearrange(split, "b h n d -> b n (h d)"))


@pytest.mark.parametrize("shape", CLIPS)
def test_in_channels_last_memory_clips_frames_and_tokens_are_views_of_one_another(shape: tuple[int, ...]) -> None:
    clip = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    frames = folding.fold_frames(clip)
    tokens = folding.to_tokens(frames)
    images = folding.to_images(tokens, shape[3])
    back = folding.unfold_frames(images, shape[2])
    for out in (frames, tokens, images, back, folding.split_heads(tokens, 1)):
        assert is_view(out, clip)
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert tokens.is_contiguous()
    assert back.is_contiguous(memory_format=torch.channels_last_3d) and torch.equal(back, clip)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("part", ["unet", "decoder"])
def test_an_exported_model_gives_what_the_model_gives(part: str, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 4, size, size), (2, 5, 32)))
    arguments: tuple[Any, ...]
    model: torch.nn.Module
    call: Callable[..., Any]
    if part == "unet":
        model, arguments = tiny_unet(), (latents, torch.tensor(500), text, False)
        call = lambda model: model(*arguments)[0]  # noqa: E731
    else:
        model, arguments = tiny_vae().decoder, (folding.fold_frames(latents), 4)
        call = lambda model: model(*arguments)  # noqa: E731
    exported = torch.export.export(model, arguments, strict=False).module()
    assert relative_error(call(exported), call(model)) < 1e-5
