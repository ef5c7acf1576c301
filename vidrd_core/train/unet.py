"""Training the U-Net in the paper's stages: first on single frames, then inflated on images and video together."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..data.latents import LatentClips
from ..models.layers import TempConv
from ..models.unet import VidRDUNet
from .text import encode_text

# The paper trains Temp-Conv, Temp-Attn, self- and cross-attention and freezes the ResNets.
PAPER_POLICY = ("*temp_convs*", "*temp_norm*", "*temp_attn*", "*attn1*", "*attn2*")
# Texts that stand for "no caption": the empty one, and the release's negative prompt.
EMPTY_CAPTIONS = ("", "watermark")


@dataclass(frozen=True)
class UNetObjective:
    """What the U-Net learns from."""

    num_frames: int = 8  # frames per video clip
    image_share: float = 0.0  # share of batches that are single frames
    images_per_clip: int = 8  # single frames in place of one clip, to keep the cost of a batch even
    caption_dropout: float = 0.1  # share of captions that are emptied, for classifier-free guidance
    # What is drawn and how it moves is decided in the noisy steps, where the plain epsilon loss (1) is faint. The loss
    # of v-prediction weighs a step by 1 + 1 / SNR; this is the most that a step may weigh.
    max_weight: float = 1.0
    temp_conv_dropout: float = 0.1  # the release's; 0 suits a small model that sees each clip a few times


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled by DDIM as in the release."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def freeze(model: nn.Module, trained: Sequence[str]) -> None:
    """Let only parameters whose name matches one of the ``trained`` patterns (``*`` matches anything) learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in trained))


class UNetStage:
    """Noise prediction on stored latents; trains those parameters of U-Net and text encoder that need gradients."""

    def __init__(
        self,
        unet: VidRDUNet,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        clips: LatentClips,
        objective: UNetObjective,
    ):
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.clips = clips
        self.objective = objective
        self.scheduler: Any = make_scheduler()
        for module in unet.modules():
            if isinstance(module, TempConv):
                module.set_dropout(objective.temp_conv_dropout)
        self.trains_text = any(p.requires_grad for p in text_encoder.parameters())

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        objective = self.objective
        image = float(torch.rand((), generator=generator)) < objective.image_share
        count, frames = (batch_size * objective.images_per_clip, 1) if image else (batch_size, objective.num_frames)
        latents, captions = self.clips.batch(count, frames, generator)
        text = self._encode(self._drop(captions, generator))
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, times)
        predicted = self.unet(noisy, times, text).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3, 4))
        signal = self.scheduler.alphas_cumprod[times]
        loss = (error * (1 / signal).clamp(max=objective.max_weight)).mean()  # 1 + 1 / SNR is 1 / alphas_cumprod
        return loss, {"image_loss" if image else "video_loss": loss.item()} if objective.image_share else {}

    def export(self, folder: Path) -> None:
        self.unet.save_pretrained(folder / "unet")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def _drop(self, captions: list[str], generator: torch.Generator) -> list[str]:
        draws = torch.rand(len(captions), generator=generator) / self.objective.caption_dropout
        # A draw below 1 empties the caption; its place below 1 picks with what.
        return [
            EMPTY_CAPTIONS[int(draw * len(EMPTY_CAPTIONS))] if draw < 1 else caption
            for draw, caption in zip(draws.tolist(), captions, strict=True)
        ]

    def _encode(self, captions: list[str]) -> Tensor:
        with torch.set_grad_enabled(self.trains_text):
            return encode_text(self.tokenizer, self.text_encoder, captions)
