"""Weights of diffusers' Wan classes under the names of the original release, which ComfyUI's classes use.

``WanTransformer3DModel`` becomes ``comfy.ldm.wan.model.WanModel`` (text to video) and ``AutoencoderKLWan`` of Wan 2.1's
kind ``comfy.ldm.wan.vae.WanVAE``. No weight changes, only its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_TRANSFORMER = {  # the beginning of a name, or of what follows "blocks.<n>."
    "patch_embedding.": "patch_embedding.",
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "scale_shift_table": "head.modulation",
    "proj_out.": "head.head.",
}
_BLOCK = {
    "attn1.to_out.0.": "self_attn.o.",
    "attn1.to_": "self_attn.",
    "attn1.": "self_attn.",
    "attn2.to_out.0.": "cross_attn.o.",
    "attn2.to_": "cross_attn.",
    "attn2.": "cross_attn.",
    "norm2.": "norm3.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
    "scale_shift_table": "modulation",
}
_VAE = {
    "quant_conv.": "conv1.",
    "post_quant_conv.": "conv2.",
}
_CODER = {  # of what follows "encoder." or "decoder."
    "conv_in.": "conv1.",
    "norm_out.": "head.0.",
    "conv_out.": "head.2.",
    "mid_block.resnets.0.": "middle.0.",
    "mid_block.attentions.0.": "middle.1.",
    "mid_block.resnets.1.": "middle.2.",
}
_RESNET = {"norm1.": "residual.0.", "conv1.": "residual.2.", "norm2.": "residual.3.", "conv2.": "residual.6."}


def wan_transformer_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a text-to-video ``WanTransformer3DModel`` for ``WanModel``.

    Raises:
        ValueError: a name belongs to another model.
    """
    return _renamed(state, _transformer_name, "WanTransformer3DModel (text to video)")


def wan_vae_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an ``AutoencoderKLWan`` of Wan 2.1's kind (``is_residual=False``) for ``WanVAE``.

    Raises:
        ValueError: a name belongs to another model.
    """
    blocks = [int(found[1]) for name in state if (found := re.match(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", name))]
    each = max(blocks, default=0) + 1  # residual blocks at every resolution of the decoder
    return _renamed(state, lambda name: _vae_name(name, each), "AutoencoderKLWan (of Wan 2.1's kind)")


def wan_transformer_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``WanModel`` for the configuration of a text-to-video ``WanTransformer3DModel``."""
    return {
        "model_type": "t2v",
        "patch_size": tuple(config["patch_size"]),
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "text_dim": config["text_dim"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"] or config["in_channels"],
        "qk_norm": config["qk_norm"] is not None,
        "cross_attn_norm": config["cross_attn_norm"],
        "eps": config["eps"],
    }


def wan_vae_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``WanVAE`` for the configuration of an ``AutoencoderKLWan`` of Wan 2.1's kind.

    Raises:
        ValueError: ``WanVAE`` has no such VAE.
    """
    if config.get("is_residual") or config.get("decoder_base_dim") not in (None, config["base_dim"]):
        raise ValueError("the VAE is of Wan 2.2's kind, or its decoder has another width; expected one like Wan 2.1's")
    return {
        "dim": config["base_dim"],
        "z_dim": config["z_dim"],
        "dim_mult": list(config["dim_mult"]),
        "num_res_blocks": config["num_res_blocks"],
        "attn_scales": list(config["attn_scales"]),
        "temperal_downsample": list(config["temperal_downsample"]),
    }


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str | None], kind: str) -> dict[str, Tensor]:
    names = {name: rename(name) for name in state}
    unknown = [name for name, new in names.items() if new is None]
    if unknown:
        raise ValueError(f"{unknown[:4]} are no weights of {kind}; convert the state dict of that class of diffusers")
    return {str(names[name]): weight for name, weight in state.items()}


def _transformer_name(name: str) -> str | None:
    found = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    if found is None:
        return _replaced(name, _TRANSFORMER)
    rest = _replaced(found[2], _BLOCK)
    return None if rest is None else found[1] + rest


def _vae_name(name: str, each: int) -> str | None:
    coder, _, rest = name.partition(".")
    if coder not in ("encoder", "decoder"):
        return _replaced(name, _VAE)
    if found := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", rest):
        return f"{coder}.downsamples.{found[1]}.{_resnet(found[2])}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
        return f"{coder}.upsamples.{int(found[1]) * (each + 1) + int(found[2])}.{_resnet(found[3])}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)", rest):
        return f"{coder}.upsamples.{int(found[1]) * (each + 1) + each}.{found[2]}"
    new = _replaced(rest, _CODER)
    if new is None:
        return None
    place, rest = new[: len("middle.0.")], new[len("middle.0.") :]
    return f"{coder}.{place}{_resnet(rest)}" if place in ("middle.0.", "middle.2.") else f"{coder}.{new}"


def _resnet(name: str) -> str:
    """A weight inside a residual block; of other blocks the names are the same in both."""
    return (_replaced(name, _RESNET) or name).replace("conv_shortcut.", "shortcut.")


def _replaced(name: str, known: Mapping[str, str]) -> str | None:
    """``name`` with its beginning replaced by the first of ``known`` that fits; None where none does."""
    return next((new + name[len(old) :] for old, new in known.items() if name.startswith(old)), None)
