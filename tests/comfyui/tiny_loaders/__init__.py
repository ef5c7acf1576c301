"""Custom nodes of the checks: loaders that hand out tiny random models of a family in place of its files."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

FAMILY = {"family": ("STRING", {}), "seed": ("INT", {"default": 0})}


def models() -> Any:
    folder = str(Path(__file__).resolve().parents[1])
    if folder not in sys.path:
        sys.path.append(folder)
    import tiny_models

    return tiny_models


class Text:
    """A text encoder whose random states are the same for the same words."""

    def __init__(self, family: str) -> None:
        self.family = family

    def tokenize(self, text: str, **kwargs: Any) -> dict[str, str]:
        return {"text": text}

    def encode_from_tokens_scheduled(self, tokens: dict[str, str], **kwargs: Any) -> list[list[Any]]:
        return models().conditioning(self.family, zlib.crc32(tokens["text"].encode()))


class Loader:
    CATEGORY = "tests"
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": FAMILY}


class TinyModel(Loader):
    RETURN_TYPES = ("MODEL",)

    def load(self, family: str, seed: int) -> tuple[Any, ...]:
        return (models().tiny(family, seed),)


class TinyText(Loader):
    RETURN_TYPES = ("CLIP",)

    def load(self, family: str, seed: int) -> tuple[Any, ...]:
        return (Text(family),)


class TinyVAE(Loader):
    RETURN_TYPES = ("VAE",)

    def load(self, family: str, seed: int) -> tuple[Any, ...]:
        return (models().tiny_vae(family),)


class TinyCheckpoint(Loader):
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    def load(self, family: str, seed: int) -> tuple[Any, ...]:
        return models().tiny(family, seed), Text(family), models().tiny_vae(family)


class WideCheckpoint(Loader):
    """A U-Net with the channels of Stable Diffusion 1.5, which AnimateDiff-Evolved's motion modules want."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    def load(self, family: str, seed: int) -> tuple[Any, ...]:
        import comfy.model_patcher
        import comfy.supported_models
        import torch

        made, wide = models(), dict(models().SD15)
        wide |= {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "num_heads": 8}
        wide |= {"transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3}
        config = comfy.supported_models.SD15(wide)
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=made.CPU).eval()
        made.fill(model.diffusion_model, seed, 0.02)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=made.CPU, offload_device=made.CPU)
        return patcher, Text(family), made.tiny_vae(family)


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (TinyModel, TinyText, TinyVAE, TinyCheckpoint, WideCheckpoint)}
