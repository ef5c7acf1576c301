"""Infer from the names and shapes of weights which family they are of, and the configuration that fits them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..weight_files import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # channels per attention head in Stable Diffusion 2.x and in CLIP
SD1_HEADS = 8  # heads at every resolution in Stable Diffusion 1.x
NORM_GROUPS = 32  # of every Stable Diffusion

# Parts of names that only another model family has, and how messages call it.
UNSUPPORTED_MODELS: dict[str, tuple[tuple[str, str], ...]] = {
    "unet": (
        ("spatial_res_block", "a Stable Video Diffusion U-Net"),
        ("transformer_in", "a ModelScope or zeroscope video U-Net, whose temporal layers differ"),
        ("motion_modules", "a U-Net with AnimateDiff motion modules"),
        ("controlnet_cond_embedding", "a ControlNet"),
        ("input_hint_block", "a ControlNet"),
        ("add_embedding.", "a Stable Diffusion XL U-Net"),
        ("label_emb.", "a Stable Diffusion XL U-Net"),
        ("transformer_blocks.1.", "a U-Net with several transformer blocks in a row, as in Stable Diffusion XL"),
        ("lora_", "a LoRA, not a whole model"),
    ),
    "vae": (
        ("time_conv_out", "Stable Video Diffusion's decoder (load it with diffusers' AutoencoderKLTemporalDecoder)"),
        (
            "spatial_res_block",
            "Stable Video Diffusion's decoder (load it with diffusers' AutoencoderKLTemporalDecoder)",
        ),
        ("time_mix_conv", "Stable Video Diffusion's decoder (load it with diffusers' AutoencoderKLTemporalDecoder)"),
    ),
    "text_encoder": (("lora_", "a LoRA, not a whole model"),),
}
OTHER_MODELS = (  # files that hold no U-Net, VAE or text encoder of ours
    ("lora_", "a LoRA"),
    ("motion_modules", "an AnimateDiff motion module"),
    ("controlnet", "a ControlNet"),
    ("double_blocks.", "a Flux transformer"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("vision_model.", "a CLIP image encoder"),
    ("patch_embed", "a diffusion transformer"),
)


def unsupported_model(part: str, names: Iterable[str]) -> str | None:
    """What the weights of ``part`` are, where they are of a family that is not supported; else None."""
    names = list(names)
    return next((what for fragment, what in UNSUPPORTED_MODELS[part] if any(fragment in n for n in names)), None)


def other_model(names: Iterable[str]) -> str | None:
    """What a file without any part of ours holds, where its names show it; else None."""
    names = list(names)
    return next((what for fragment, what in OTHER_MODELS if any(fragment in n for n in names)), None)


def describe(part: str, shapes: Shapes) -> str:
    """The family of a part's weights in words."""
    other = unsupported_model(part, shapes)
    if other:
        return other
    temporal = is_temporal(shapes)
    if part == "vae":
        return "VidRD VAE with a temporal decoder" if temporal else "image VAE"
    width = next((s[-1] for n, s in shapes.items() if n.endswith("token_embedding.weight")), None)
    if part == "text_encoder":
        return f"CLIP text encoder, width {width}"
    context = next((s[-1] for n, s in shapes.items() if n.endswith("attn2.to_k.weight")), None)
    family = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}.get(context or 0, "Stable Diffusion-like")
    return f"{'VidRD temporal' if temporal else 'image'} U-Net, {family}, text width {context}"


def is_temporal(names: Iterable[str]) -> bool:
    """Whether VidRD's layers are among the weights."""
    return any(".temp_" in name for name in names)


def infer_config(part: str, shapes: Shapes, hyper_parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A configuration that fits the shapes of weights in our names.

    Number of attention heads, groups of the norms and the frame sinusoid leave no trace in shapes: Stable Diffusion's
    and the release's values are taken (64 channels per head with linear projections, else 8 heads; 32 groups; the
    sinusoid on unless a Lightning checkpoint's ``hyper_parameters`` say otherwise).

    Raises:
        CheckpointError: the shapes are of no such model, or fit none of those rules; the message lacks the file's name.
    """
    rules = {"unet": _unet_config, "vae": _vae_config, "text_encoder": _clip_config}
    try:
        return rules[part](shapes, hyper_parameters or {})
    except KeyError as error:
        raise CheckpointError(f"the {part} lacks {error}, so its sizes are unknown: choose another file") from error
    except IndexError as error:
        raise CheckpointError(f"the {part} has weights of odd shapes: choose another file") from error


def _unet_config(shapes: Shapes, hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    for unsupported in ("prepend_first_frame", "add_temp_transformer", "add_temp_attn_only_on_upblocks"):
        if hyper_parameters.get(unsupported):
            raise CheckpointError(f"the U-Net was trained with {unsupported}, which is not supported")
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv2.weight"][0] for i in range(levels)]
    attends = [f"down_blocks.{i}.attentions.0.proj_in.weight" in shapes for i in range(levels)]
    projection = shapes["mid_block.attentions.0.proj_in.weight"]
    linear = len(projection) == 2
    unit = HEAD_WIDTH if linear else SD1_HEADS
    _check_divisible("U-Net", widths, unit, NORM_GROUPS)
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": [w // HEAD_WIDTH for w in widths] if linear else SD1_HEADS,
        "use_linear_projection": linear,
        "norm_num_groups": NORM_GROUPS,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "add_temp_embed": bool(hyper_parameters.get("add_temp_embed", True)),
    }


def _vae_config(shapes: Shapes, _: Mapping[str, Any]) -> dict[str, Any]:
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = [shapes[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"][0] for i in range(levels)]
    _check_divisible("VAE", widths, 1, NORM_GROUPS)
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": NORM_GROUPS,
    }


def _clip_config(shapes: Shapes, _: Mapping[str, Any]) -> dict[str, Any]:
    tokens = shapes["embeddings.token_embedding.weight"]
    vocabulary, width = tokens[0], tokens[1]
    _check_divisible("text encoder", [width], HEAD_WIDTH, 1)
    return {
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "vocab_size": vocabulary,
        # CLIP ViT-L (width 768) was trained with the quick approximation, OpenCLIP ViT-H (1024) with the exact one.
        "hidden_act": "quick_gelu" if width == 768 else "gelu",
        "projection_dim": 768 if width == 768 else 512,
    }


def _count(names: Iterable[str], pattern: str) -> int:
    return len({m[1] for m in (re.match(pattern, n) for n in names) if m})


def _check_divisible(what: str, widths: list[int], *units: int) -> None:
    for unit in units:
        odd = [w for w in widths if w % unit]
        if odd:
            raise CheckpointError(
                f"the {what} is {odd[0]} channels wide, no multiple of {unit}, so its heads and norms are unknown "
                "from shapes: pass its config, or a folder with config.json"
            )
