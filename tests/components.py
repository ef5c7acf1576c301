"""Tiny but real components that the tests share: models of a few thousand weights, a CLIP text encoder, a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vidrd_core import VidRDAutoencoderKL, VidRDPipeline, VidRDUNet

DATA = Path(__file__).parent / "data"
NOISE_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||"""
    return float((out - reference).norm() / reference.norm())


def awaken(model: torch.nn.Module) -> None:
    """Give the layers that start as the identity some weight, so that tests see the temporal layers at work."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)


def tiny_unet(seed: int = 0, **changes: Any) -> VidRDUNet:
    torch.manual_seed(seed)
    unet = VidRDUNet(**{**UNET_CONFIG, **changes}).eval()
    awaken(unet)
    return unet


def tiny_vae(seed: int = 1, **changes: Any) -> VidRDAutoencoderKL:
    torch.manual_seed(seed)
    vae = VidRDAutoencoderKL(**{**VAE_CONFIG, **changes}).eval()
    awaken(vae)
    return vae


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows single bytes and no merges, 16 tokens at most."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def tiny_text_encoder(vocabulary: int = 514) -> CLIPTextModel:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextModel(config).eval()


def make_pipeline(folder: Path, **unet_changes: Any) -> VidRDPipeline:
    pipe = VidRDPipeline(
        unet=tiny_unet(**unet_changes),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(folder),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **NOISE_SCHEDULE),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Reference:
    """One file recorded from the authors' code: weights, inputs, outputs, settings."""

    def __init__(self, name: str):
        with safe_open(DATA / f"vidrd_official_{name}.safetensors", "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        self.tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        self.reuse = json.loads(metadata["reuse"])
        self.unet = VidRDUNet(**json.loads(metadata["unet_config"])).eval()
        self.unet.load_state_dict(self.part("unet."))
        self.vae = VidRDAutoencoderKL(**json.loads(metadata["vae_config"])).eval()
        self.vae.load_state_dict(self.part("vae."))

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]
