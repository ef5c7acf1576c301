"""Weights of diffusers' Wan classes under the names of the original release, which ComfyUI's classes use.

``WanTransformer3DModel`` becomes ``comfy.ldm.wan.model.WanModel`` (text to video); ``AutoencoderKLWan`` becomes
``comfy.ldm.wan.vae.WanVAE``, or ``comfy.ldm.wan.vae2_2.WanVAE`` where it is of Wan 2.2's kind (``is_residual``).
No weight changes, only its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

PATCH = 2  # pixels of height and width that Wan 2.2's VAE takes as one
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
    """The weights of an ``AutoencoderKLWan`` for ``WanVAE`` of the same kind.

    Raises:
        ValueError: a name belongs to another model.
    """
    if any(name.startswith("encoder.down_blocks.0.resnets.") for name in state):  # Wan 2.2's kind
        down, up = _layers(state, "encoder.down_blocks"), _layers(state, "decoder.up_blocks")
        return _renamed(state, lambda name: _vae_name(name, _block_of_22, down, up), "AutoencoderKLWan of Wan 2.2")
    up = _layers(state, "decoder.up_blocks")
    return _renamed(state, lambda name: _vae_name(name, _block_of_21, 0, up), "AutoencoderKLWan")


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
    """Arguments of ``WanVAE`` for the configuration of an ``AutoencoderKLWan`` of either kind.

    Raises:
        ValueError: ``WanVAE`` has no such VAE.
    """
    width = config.get("decoder_base_dim") or config["base_dim"]
    arguments = {
        "dim": config["base_dim"],
        "z_dim": config["z_dim"],
        "dim_mult": list(config["dim_mult"]),
        "num_res_blocks": config["num_res_blocks"],
        "attn_scales": list(config["attn_scales"]),
        "temperal_downsample": list(config["temperal_downsample"]),
    }
    if config.get("is_residual"):
        if config.get("patch_size") != PATCH:
            raise ValueError(f"the VAE's patch size is {config.get('patch_size')}; expected {PATCH}, as in Wan 2.2")
        return {**arguments, "dec_dim": width}
    if width != config["base_dim"] or config.get("patch_size"):
        raise ValueError(
            f"the VAE's encoder and decoder have widths {config['base_dim']} and {width} and the patch size is "
            f"{config.get('patch_size')}; expected one width and no patches, as in Wan 2.1"
        )
    return arguments


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


def _layers(state: Mapping[str, Tensor], blocks: str) -> int:
    """Residual blocks at every resolution."""
    found = (re.match(rf"{re.escape(blocks)}\.0\.resnets\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _vae_name(name: str, block_name: Callable[[str, int, str, int], str | None], down: int, up: int) -> str | None:
    """``down`` and ``up``: residual blocks at every resolution of the encoder and of the decoder."""
    coder, _, rest = name.partition(".")
    if coder not in ("encoder", "decoder"):
        return _replaced(name, _VAE)
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(.+)", rest):
        new = block_name(found[1], int(found[2]), found[3], down if found[1] == "down" else up)
        return None if new is None else f"{coder}.{new}"
    new = _replaced(rest, _CODER)
    if new is None:
        return None
    place, rest = new[: len("middle.0.")], new[len("middle.0.") :]
    return f"{coder}.{place}{_resnet(rest)}" if place in ("middle.0.", "middle.2.") else f"{coder}.{new}"


def _block_of_21(way: str, block: int, rest: str, each: int) -> str | None:
    """Layers are counted through all resolutions."""
    if way == "down":
        return f"downsamples.{block}.{_resnet(rest)}"
    if found := re.fullmatch(r"resnets\.(\d+)\.(.+)", rest):
        return f"upsamples.{block * (each + 1) + int(found[1])}.{_resnet(found[2])}"
    if found := re.fullmatch(r"upsamplers\.0\.(.+)", rest):
        return f"upsamples.{block * (each + 1) + each}.{found[1]}"
    return None


def _block_of_22(way: str, block: int, rest: str, each: int) -> str | None:
    """Layers are counted within their resolution."""
    place = f"{way}samples.{block}.{way}samples"
    if found := re.fullmatch(r"resnets\.(\d+)\.(.+)", rest):
        return f"{place}.{found[1]}.{_resnet(found[2])}"
    if found := re.fullmatch(rf"{way}sampler\.(.+)", rest):
        return f"{place}.{each}.{found[1]}"
    return None


def _resnet(name: str) -> str:
    """A weight inside a residual block; of other blocks the names are the same in both."""
    return (_replaced(name, _RESNET) or name).replace("conv_shortcut.", "shortcut.")


def _replaced(name: str, known: Mapping[str, str]) -> str | None:
    """``name`` with its beginning replaced by the first of ``known`` that fits; None where none does."""
    return next((new + name[len(old) :] for old, new in known.items() if name.startswith(old)), None)
