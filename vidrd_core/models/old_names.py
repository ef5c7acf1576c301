"""Parameter names that diffusers' VAE had before version 0.18."""

from __future__ import annotations

OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_old_attention(name: str) -> str:
    """A VAE parameter's name with the attention's names of before diffusers 0.18 replaced by today's."""
    head, dot, tail = name.partition(".mid_block.attentions.0.")
    layer, _, leaf = tail.partition(".")
    return f"{head}{dot}{OLD_ATTENTION_NAMES[layer]}.{leaf}" if layer in OLD_ATTENTION_NAMES else name
