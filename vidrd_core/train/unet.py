"""Training the U-Net: noise prediction on clips and single frames, with captions (arXiv 2309.03549)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from einops import rearrange

from ..models.autoencoder import VidRDAutoencoderKL
from ..models.layers import TempConv
from ..models.unet import VidRDUNet
from .distributed import gathered
from .draws import Draw
from .freezing import PAPER_POLICY, freeze
from .lora import save_lora
from .objective import (
    UNetObjective,
    by_noise_level,
    draw_noise,
    draw_times,
    make_scheduler,
    show_anchors,
    target_of,
    weights_of,
)
from .previews import PreviewSettings, write_previews
from .sources import ClipBatch, ReadAhead, Source
from .stage import Outcome, Stage
from .text import encode_text

logger = logging.getLogger(__name__)

# Texts that stand for "no caption": the empty one, and the release's negative prompt.
EMPTY_CAPTIONS = ("", "watermark")
ENCODED_FRAMES = 16  # that the VAE encodes at once


class UNetStage(Stage):
    """Noise prediction on latents; trains those parameters of U-Net and text encoder that need gradients.

    Args:
        source: of training clips.
        held_out: of clips for the held-out loss, or None.
        vae: encodes pixels, decodes previews and completes the exported model; None where latents are stored.
        previews: validation videos.
        defaults: what exported models recommend, see :class:`vidrd_core.VidRDPipeline`.
    """

    def __init__(
        self,
        unet: VidRDUNet,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        source: Source,
        objective: UNetObjective,
        held_out: Source | None = None,
        vae: VidRDAutoencoderKL | None = None,
        previews: PreviewSettings | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        modules: dict[str, nn.Module] = {"unet": unet, "text_encoder": text_encoder}
        super().__init__(modules if vae is None else {**modules, "vae": vae.requires_grad_(False)})
        self.unet = unet
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.source = ReadAhead(source)
        self.held_out_source = held_out
        self.objective = objective
        self.previews = previews or PreviewSettings()
        self.defaults = {"num_frames": objective.num_frames, **(defaults or {})}
        self.scheduler: Any = make_scheduler(objective.prediction)
        self.has_lora = hasattr(unet, "peft_config")
        self.may_skip_parameters = objective.image_share > 0  # temporal layers, by single frames
        for module in unet.modules():
            if isinstance(module, TempConv):
                module.set_dropout(objective.temp_conv_dropout)
        self.trains_text = any(p.requires_grad for p in text_encoder.parameters())

    def loss(self, draw: Draw) -> Outcome:
        return self._loss(self.source.batch(draw), draw)

    def held_out(self, draw: Draw) -> Outcome | None:
        return None if self.held_out_source is None else self._loss(self.held_out_source.batch(draw), draw)

    def export(self, folder: Path) -> None:
        """A model folder that the pipeline loads, or without a VAE its U-Net, text encoder and tokenizer; or a LoRA."""
        if self.has_lora:
            save_lora(self.unet, folder / "lora.safetensors", self.is_main)
            return
        unet = gathered(self.unet)
        if not self.is_main:
            return
        if self.vae is not None:
            self._pipeline(unet).save_pretrained(folder)
            return
        unet.save_pretrained(folder / "unet")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def preview(self, folder: Path) -> None:
        if self.previews.prompts and self.vae is not None:
            alpha = self.objective.progressive_alpha
            write_previews(self._pipeline(self.unet), self.previews, folder, self.is_main, alpha)

    # -- parts of the loss ---------------------------------------------------------------------------------------------

    def _loss(self, batch: ClipBatch, draw: Draw) -> Outcome:
        objective = self.objective
        latents = self._latents(batch)
        text = self._text(batch, draw)
        noise = draw_noise(objective, draw, latents.shape).to(self.device)
        times = draw_times(objective, draw, latents.shape[0], self.scheduler.config.num_train_timesteps).to(self.device)
        noisy = self.scheduler.add_noise(latents, noise, times)
        noisy, counted = show_anchors(objective, draw, self.scheduler, noisy, latents, noise, times)
        predicted = self.calls["unet"](noisy, times, text).sample
        target = target_of(objective, self.scheduler, latents, noise, times)
        errors = ((predicted.float() - target).square().mean((1, 3, 4)) * counted).sum(1) / counted.sum(1)
        signal = self.scheduler.alphas_cumprod.to(self.device)[times]
        loss = (errors * weights_of(objective, signal)).mean()
        levels = by_noise_level(errors.detach(), times, self.scheduler.config.num_train_timesteps)
        figures: dict[str, float | Tensor] = {**levels}
        if objective.image_share:
            figures["image_loss" if latents.shape[2] == 1 else "video_loss"] = loss.item()
        return Outcome(loss, figures, batch.items)

    def _latents(self, batch: ClipBatch) -> Tensor:
        if batch.latents is not None:
            return batch.latents.to(self.device)
        if self.vae is None or batch.pixels is None:
            raise ValueError("the data set holds pixels and the starting model no VAE: set 'vae', or store latents")
        with torch.no_grad():
            clips = batch.pixels.to(self.device)
            frames = rearrange(clips, "b c t h w -> (b t) c 1 h w")  # the encoder treats every frame alone
            parts = [self.vae.encode(part).latent_dist.mode() for part in frames.split(ENCODED_FRAMES)]
            latents = rearrange(torch.cat(parts), "(b t) c 1 h w -> b c t h w", b=len(clips))
            return latents.float() * self.vae.config["scaling_factor"]

    def _text(self, batch: ClipBatch, draw: Draw) -> Tensor:
        """Text states ``[B, M, D]``; a share of the captions is emptied."""
        dropout = self.objective.caption_dropout
        each = len(batch.captions) // draw.micro_batch
        drawn = torch.cat([torch.rand(each, generator=g) for g in draw.generators("caption")]).tolist()
        # A draw below the dropout empties the caption; its place below it picks with what.
        emptied = [int(d / dropout * len(EMPTY_CAPTIONS)) if d < dropout else None for d in drawn]
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            if batch.text is None:
                known = zip(batch.captions, emptied, strict=True)
                captions = [caption if e is None else EMPTY_CAPTIONS[e] for caption, e in known]
                return encode_text(self.tokenizer, self.calls["text_encoder"], captions, self.device)
            empty = encode_text(self.tokenizer, self.calls["text_encoder"], list(EMPTY_CAPTIONS), self.device)
            states = batch.text.to(self.device)
            if states.shape[1:] != empty.shape[1:]:
                raise ValueError(
                    f"stored text states are {list(states.shape[1:])}, the text encoder makes {list(empty.shape[1:])}: "
                    "prepare the embeddings with the text encoder of the model that is trained"
                )
            rows = [states[n] if e is None else empty[e].to(states.dtype) for n, e in enumerate(emptied)]
            return torch.stack(rows)

    def _pipeline(self, unet: VidRDUNet) -> Any:
        from ..pipeline import VidRDPipeline

        return VidRDPipeline(
            unet=unet,
            vae=self.vae,  # type: ignore[arg-type]
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
            defaults=self.defaults,
        )


__all__ = ["EMPTY_CAPTIONS", "PAPER_POLICY", "UNetObjective", "UNetStage", "freeze", "make_scheduler"]
