"""Training the U-Net: noise prediction on clips and single frames, with captions (arXiv 2309.03549)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..models.autoencoder import VidRDAutoencoderKL
from ..models.layers import TempConv
from ..models.unet import VidRDUNet
from .distributed import gathered
from .freezing import PAPER_POLICY, freeze
from .lora import save_lora
from .micro_batches import MicroBatch
from .objective import (
    UNetObjective,
    add_cleaner_frames,
    by_noise_level,
    draw_noise,
    draw_times,
    make_scheduler,
    target_of,
    weights_of,
)
from .previews import PreviewSettings, write_previews
from .sources import ClipBatch, Prefetcher, Source
from .start import start_text
from .stored_text import StoredText
from .task import Outcome, TrainingTask
from .text import encode_text

logger = logging.getLogger(__name__)

ENCODED_FRAMES = 16  # that the VAE encodes at once


class UNetTask(TrainingTask):
    """Noise prediction on latents; trains those parameters of U-Net and text encoder that need gradients.

    Args:
        text_encoder, tokenizer: of captions; None where the data hold text states and ``stored_text`` is given.
        source: of training clips.
        held_out: of clips for the held-out loss, or None.
        vae: encodes pixels, decodes previews and completes the exported model; None where latents are stored.
        previews: settings of the validation videos.
        defaults: what exported models recommend, see :class:`vidrd_core.VidRDPipeline`.
        scheduler: the noise schedule and prediction type, of :func:`vidrd_core.train.schedule.start_scheduler`; None:
            Stable Diffusion's, with the objective's prediction.
        stored_text: replaces the text encoder, of
            :func:`vidrd_core.train.stored_text.start_stored_text`.

    Raises:
        ValueError: objective and scheduler are of different prediction types, or there is neither a text encoder nor
            stored text.
    """

    def __init__(
        self,
        unet: VidRDUNet,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        source: Source,
        objective: UNetObjective,
        held_out: Source | None = None,
        vae: VidRDAutoencoderKL | None = None,
        previews: PreviewSettings | None = None,
        defaults: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        stored_text: StoredText | None = None,
    ):
        if stored_text is None and (text_encoder is None or tokenizer is None):
            raise ValueError("there is neither a text encoder with its tokenizer nor stored text: give one of them")
        modules: dict[str, nn.Module | None] = {"unet": unet, "text_encoder": text_encoder, "vae": vae}
        super().__init__({name: module for name, module in modules.items() if module is not None})
        if vae is not None:
            vae.requires_grad_(False)
        self.unet = unet
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.stored_text = stored_text
        self.null_states: Tensor | None = None if stored_text is None else stored_text.null
        self.source = Prefetcher(source)
        self.held_out_source = held_out
        self.previews = previews or PreviewSettings()
        self.defaults = {"num_frames": objective.num_frames, **(defaults or {})}
        self.scheduler: Any = scheduler
        if scheduler is None:
            self.scheduler = make_scheduler(objective.prediction or "epsilon")
        predicted = self.scheduler.config.prediction_type
        if objective.prediction not in (None, predicted):
            raise ValueError(f"the objective is {objective.prediction}, the scheduler {predicted}: make them agree")
        self.objective = replace(objective, prediction=predicted)
        self.has_lora = hasattr(unet, "peft_config")
        self.may_skip_parameters = objective.image_share > 0  # temporal layers, in steps of single frames
        for module in unet.modules():
            if isinstance(module, TempConv):
                module.set_dropout(objective.temp_conv_dropout)
        self.trains_text = text_encoder is not None and any(p.requires_grad for p in text_encoder.parameters())
        if self.previews.prompts and vae is None:
            logger.warning("previews.prompts are set, but there is no VAE to decode with, so none are made: set 'vae'")

    def loss(self, micro_batch: MicroBatch) -> Outcome:
        return self._loss(self.source.batch(micro_batch), micro_batch)

    def held_out(self, micro_batch: MicroBatch) -> Outcome | None:
        return (
            None if self.held_out_source is None else self._loss(self.held_out_source.batch(micro_batch), micro_batch)
        )

    def export(self, folder: Path) -> None:
        """Write a model folder for the pipeline (without VAE or text encoder where there is none), or a LoRA file."""
        if self.has_lora:
            save_lora(self.unet, folder / "lora.safetensors", self.is_main, self.objective.prediction)
            return
        unet = gathered(self.unet)
        if not self.is_main:
            return
        text_encoder, tokenizer = self.text_encoder, self.tokenizer
        if text_encoder is None and self.stored_text is not None and self.stored_text.home is not None:
            text_encoder, tokenizer = start_text([self.stored_text.home])
        if self.vae is not None and text_encoder is not None:
            self._pipeline(unet, text_encoder, tokenizer).save_pretrained(folder)
            return
        parts = {"unet": unet, "vae": self.vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
        for name, part in {**parts, "scheduler": self.scheduler}.items():
            if part is not None:
                part.save_pretrained(folder / name)

    def preview(self, folder: Path) -> None:
        if self.previews.prompts and self.vae is not None:
            pipe = self._pipeline(self.unet, self.text_encoder, self.tokenizer)
            texts = None if self.stored_text is None else self.stored_text.previews
            write_previews(pipe, self.previews, folder, self.is_main, self.objective.progressive_alpha, texts)

    # -- parts of the loss ---------------------------------------------------------------------------------------------

    def _loss(self, batch: ClipBatch, micro_batch: MicroBatch) -> Outcome:
        objective = self.objective
        latents = self._latents(batch)
        text = self._text(batch, micro_batch)
        noise = draw_noise(objective, micro_batch, latents.shape).to(self.device)
        times = draw_times(objective, micro_batch, latents.shape[0], self.scheduler.config.num_train_timesteps).to(
            self.device
        )
        noisy = self.scheduler.add_noise(latents, noise, times)
        noisy, counted = add_cleaner_frames(objective, micro_batch, self.scheduler, noisy, latents, noise, times)
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

    def _text(self, batch: ClipBatch, micro_batch: MicroBatch) -> Tensor:
        """Text states ``[B, M, D]``; a share of the captions is replaced by null captions."""
        dropout, nulls = self.objective.caption_dropout, self.objective.null_captions
        each = len(batch.captions) // micro_batch.size
        drawn = torch.cat([torch.rand(each, generator=g) for g in micro_batch.generators("caption")]).tolist()
        # A number below the dropout replaces the caption; its position below the dropout chooses the null caption.
        emptied = [int(d / dropout * len(nulls)) if d < dropout else None for d in drawn]
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            if batch.text is None:
                known = zip(batch.captions, emptied, strict=True)
                return self._encode([caption if e is None else nulls[e] for caption, e in known])
            states = batch.text.to(self.device)
            if not any(e is not None for e in emptied):
                return states
            if self.null_states is None or self.trains_text:
                self.null_states = self._encode(list(nulls))
            empty = self.null_states.to(states)
            if states.shape[1:] != empty.shape[1:]:
                raise ValueError(
                    f"stored text states are {list(states.shape[1:])}, those of null captions {list(empty.shape[1:])}: "
                    "prepare the embeddings with the text encoder of the model that is trained"
                )
            return torch.stack([states[n] if e is None else empty[e] for n, e in enumerate(emptied)])

    def _encode(self, texts: list[str]) -> Tensor:
        if self.tokenizer is None:
            raise ValueError(f"there is no text encoder for {texts[:2]}: prepare all data sets with text, or none")
        return encode_text(self.tokenizer, self.calls["text_encoder"], texts, self.device)

    def _pipeline(self, unet: VidRDUNet, text_encoder: Any, tokenizer: Any) -> Any:
        from ..pipeline import VidRDPipeline

        return VidRDPipeline(
            unet=unet,
            vae=self.vae,  # type: ignore[arg-type]
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=self.scheduler,
            defaults=self.defaults,
        )


__all__ = ["PAPER_POLICY", "UNetObjective", "UNetTask", "freeze", "make_scheduler"]
