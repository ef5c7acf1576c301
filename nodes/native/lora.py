"""LoRA key names that ComfyUI does not look for by itself: PEFT's, old diffusers' and the original SD names.

kohya's ``lora_unet_down_blocks_...`` and ``diffusion_model.*`` need no help, since the U-Net has diffusers' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.utils

PREFIX = "diffusion_model."
EXTENDED_CLASSES = "vidrd_models"  # on ComfyUI's function, once it has been extended


def accept_diffusers_lora(model_class: type) -> None:
    """Let ComfyUI's LoRA loaders know these further key names, for models of ``model_class`` only.

    ComfyUI has no hook for a model to name its LoRA keys, so its function is wrapped once; other models get exactly
    what they got before.
    """
    original = comfy.lora.model_lora_keys_unet
    if hasattr(original, EXTENDED_CLASSES):
        getattr(original, EXTENDED_CLASSES).add(model_class)
        return
    classes = {model_class}

    def model_lora_keys_unet(model: Any, key_map: dict[str, Any] | None = None) -> dict[str, Any]:
        key_map = original(model, {} if key_map is None else key_map)
        if isinstance(model, tuple(classes)):
            key_map.update(lora_keys(model))
        return key_map

    setattr(model_lora_keys_unet, EXTENDED_CLASSES, classes)
    comfy.lora.model_lora_keys_unet = model_lora_keys_unet


def lora_keys(model: Any) -> dict[str, str]:
    """LoRA key -> weight, for the key names that ComfyUI lacks."""
    original_names = original_sd_names(model.model_config.unet_config)
    found: dict[str, str] = {}
    for key in model.state_dict():
        if not (key.startswith(PREFIX) and key.endswith(".weight")):
            continue
        name = key[len(PREFIX) : -len(".weight")]
        processor = name.replace(".to_", ".processor.to_").removesuffix(".0")  # diffusers before 0.22
        for prefix in ("", "unet.", "base_model.model.", "unet.base_model.model."):
            found[prefix + name] = key
        for prefix in ("", "unet."):
            found[prefix + processor] = key
        found["lycoris_" + name.replace(".", "_")] = key
        if name in original_names:
            found["lora_unet_" + original_names[name].replace(".", "_")] = key
    return found


def original_sd_names(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' layer names -> Stable Diffusion's own (``input_blocks.1.0...``), for this shape of U-Net."""
    levels, layers = len(config["block_out_channels"]), config.get("layers_per_block", 2)
    blocks = config.get("down_block_types")
    attends = [n < levels - 1 if not blocks else blocks[n].startswith("CrossAttn") for n in range(levels)]
    shape = {
        "num_res_blocks": [layers] * levels,
        "channel_mult": [1] * levels,
        "transformer_depth": [int(a) for a in attends for _ in range(layers)],
        "transformer_depth_output": [int(a) for a in attends for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
    }
    names = comfy.utils.unet_to_diffusers(shape)
    return {k.removesuffix(".weight"): v.removesuffix(".weight") for k, v in names.items() if k.endswith(".weight")}
