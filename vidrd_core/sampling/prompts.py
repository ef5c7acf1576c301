"""Prompts as the text states that the U-Net attends to, ``[B, M, D]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .settings import SamplingSettings
from .state import VideoState

Encode = Callable[[str], Tensor]


def encode_text(tokenizer: Any, text_encoder: Any, text: str, device: torch.device | str) -> Tensor:
    """The states ``[1, M, D]`` that a CLIP text encoder makes of a text, padded or cut to the tokenizer's length."""
    tokens = tokenizer(
        text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return text_encoder(tokens.input_ids.to(device))[0]


def prompts_of_clips(
    encode: Encode,
    prompt: str | Sequence[str] | None,
    embeds: Tensor | Sequence[Tensor] | None,
    num_clips: int,
    state: VideoState | None,
) -> tuple[list[str], list[Tensor]]:
    """The prompt and the text states of each clip; the last repeat.

    Args:
        prompt: one, or one per clip; None: ``embeds`` or those of ``state``.
        embeds: text states in place of prompts, likewise.
        state: that the clips continue.

    Raises:
        ValueError: both or none of them is given.
    """
    if prompt is not None and embeds is not None:
        raise ValueError("both prompt and prompt_embeds were given; give one of them")
    if prompt is not None:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("prompt is an empty list; give at least one prompt")
        known = {text: encode(text) for text in dict.fromkeys(prompts)}
        texts = [known[text] for text in prompts]
    elif embeds is not None:
        texts = [embeds] if isinstance(embeds, Tensor) else list(embeds)
        prompts = [""] * len(texts)
    elif state is not None and state.text is not None:
        prompts, texts = [state.prompt], [state.text]
    elif state is not None:
        raise ValueError("the state does not say what its last clip was prompted with; give a prompt")
    else:
        raise ValueError("neither prompt nor prompt_embeds was given; give one of them")
    order = [min(number, len(prompts) - 1) for number in range(num_clips)]
    return [prompts[i] for i in order], [texts[i] for i in order]


def negative_states(encode: Encode, embeds: Tensor | None, sampling: SamplingSettings, batch: int) -> Tensor | None:
    """The states that classifier-free guidance steers away from, ``[batch, M, D]``; None where it is off."""
    if sampling.guidance_scale <= 1:
        return None
    given = encode(sampling.negative_prompt or "") if embeds is None else embeds
    return given.expand(batch, -1, -1)
