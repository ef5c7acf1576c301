"""Training a flow transformer of Wan's kind: diffusers' ``WanTransformer3DModel`` on stored latents of a causal VAE."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..shapes.latents import LatentClips
from ..shapes.prompted import held_out_scenes
from .distributed import gathered
from .flow_objective import FlowObjective, by_noise_level, draw_levels
from .flow_preview import FlowPreviewSettings, measure_flow
from .micro_batches import MicroBatch
from .sources import ClipBatch, LatentSource, Prefetcher
from .task import Outcome, TrainingTask
from .text import encode_text

logger = logging.getLogger(__name__)


def new_flow_transformer(config: Mapping[str, Any]) -> WanTransformer3DModel:
    """A transformer with random weights; ``config``: arguments of ``WanTransformer3DModel``.

    It begins as Wan's own code does: Xavier weights, no biases, embeddings of deviation 0.02, and a velocity of zero.
    """
    transformer = WanTransformer3DModel(**config)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            if name.startswith("condition_embedder.t"):
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(transformer.patch_embedding.weight.flatten(1))
    nn.init.zeros_(transformer.proj_out.weight)
    return transformer


class FlowTask(TrainingTask):
    """Velocity prediction on stored latents.

    Args:
        transformer: to train.
        text_encoder, tokenizer: of captions; frozen.
        clips: of training.
        objective: noise levels, clip lengths and text dropout.
        held_out_clips: for the held-out loss, or None.
        vae: decodes previews and completes the exported folder, or None.
        previews: settings of the videos that are measured at every validation.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        clips: LatentClips,
        objective: FlowObjective,
        held_out_clips: LatentClips | None = None,
        vae: AutoencoderKLWan | None = None,
        previews: FlowPreviewSettings | None = None,
    ):
        modules: dict[str, nn.Module | None] = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}
        super().__init__({name: module for name, module in modules.items() if module is not None})
        text_encoder.requires_grad_(False)
        if vae is not None:
            vae.requires_grad_(False)
        self.transformer = transformer
        self.vae = vae
        self.text = TextStates(text_encoder, tokenizer)
        self.objective = objective
        self.previews = previews or FlowPreviewSettings()
        mix = (objective.lengths, objective.image_share, objective.images_per_clip)
        self.source = Prefetcher(LatentSource(clips, *mix))
        self.held_out_source = None if held_out_clips is None else LatentSource(held_out_clips, *mix)

    def loss(self, micro_batch: MicroBatch) -> Outcome:
        return self._loss(self.source.batch(micro_batch), micro_batch)

    def held_out(self, micro_batch: MicroBatch) -> Outcome | None:
        if self.held_out_source is None:
            return None
        return self._loss(self.held_out_source.batch(micro_batch), micro_batch)

    def export(self, folder: Path) -> None:
        """Write transformer, text encoder, tokenizer and VAE, each in a folder of its own."""
        transformer = gathered(self.transformer)
        if not self.is_main:
            return
        text = {"text_encoder": self.text.encoder, "tokenizer": self.text.tokenizer}
        parts: dict[str, Any] = {"transformer": transformer, **text, "vae": self.vae}
        for name, part in parts.items():
            if part is not None:
                part.save_pretrained(folder / name)

    def preview(self, folder: Path) -> None:
        """Sample held-out prompts, and write a contact sheet and what the tracker measures."""
        if self.vae is None or not self.previews.videos:
            return
        scenes = held_out_scenes(self.previews.videos)
        texts = self.text([*(scene.caption for scene in scenes), self.objective.null_captions[0]], self.device)
        figures, sheet = measure_flow(self.transformer, self.vae, scenes, texts[:-1], texts[-1:], self.previews)
        if not self.is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "videos.png")
        (folder / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
        logger.info("%s: %s", folder.name, figures)

    # -- parts of the loss ---------------------------------------------------------------------------------------------

    def _loss(self, batch: ClipBatch, micro_batch: MicroBatch) -> Outcome:
        assert batch.latents is not None
        latents = batch.latents.to(self.device)
        count, channels, length, height, width = latents.shape
        each = (count // micro_batch.size, channels, length, height, width)
        noise = micro_batch.normal(*each, purpose="noise").flatten(0, 1).to(self.device)
        levels = draw_levels(self.objective, micro_batch, count, length)

        # The network sees noisy latents and timesteps, and predicts the velocity.
        share = levels.latents[:, None, :, None, None].to(self.device)
        noisy = (1 - share) * latents + share * noise
        timesteps = levels.timesteps(self._tokens(height, width)).to(self.device)
        text = self._text(batch.captions, micro_batch)
        predicted = self.calls["transformer"](noisy, timesteps, text, return_dict=False)[0]

        # Latents of the clip's own level count.
        squares = (predicted.float() - (noise - latents)).square().mean((1, 3, 4))
        counted = levels.counted.to(self.device)
        errors = (squares * counted).sum(1) / counted.sum(1)
        figures: dict[str, float | Tensor] = {**by_noise_level(errors.detach().cpu(), levels.clips)}
        plain = counted.bool().all(1)
        if self.objective.cleaner_share and not bool(plain.all()):
            told = levels.told.to(self.device)
            figures["loss_cleaner_told"] = errors[~plain & told].detach()
            figures["loss_cleaner_untold"] = errors[~plain & ~told].detach()
        return Outcome(errors.mean(), figures, batch.items)

    def _tokens(self, height: int, width: int) -> int:
        """Tokens of one latent."""
        patch_t, patch_h, patch_w = self.transformer.config["patch_size"]
        assert patch_t == 1
        return (height // patch_h) * (width // patch_w)

    def _text(self, captions: Sequence[str], micro_batch: MicroBatch) -> Tensor:
        """Text states ``[B, M, D]``; a share of the captions is replaced by null captions."""
        dropout, nulls = self.objective.caption_dropout, self.objective.null_captions
        each = len(captions) // micro_batch.size
        drawn = torch.cat([torch.rand(each, generator=g) for g in micro_batch.generators("caption")]).tolist()
        # A number below the dropout replaces the caption; its position below the dropout chooses the null caption.
        known = zip(captions, drawn, strict=True)
        return self.text([nulls[int(d / dropout * len(nulls))] if d < dropout else c for c, d in known], self.device)


@dataclass
class TextStates:
    """Encodes texts with a frozen encoder and keeps their states, since the captions of a data set repeat."""

    encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    most: int = 20_000  # texts that are kept

    def __post_init__(self) -> None:
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        """``[B, M, D]`` float32."""
        if len(self.known) > self.most:
            self.known.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        if missing:
            with torch.autocast(torch.device(device).type, enabled=False):
                states = encode_text(self.tokenizer, self.encoder, missing)
            self.known.update(zip(missing, states.float().cpu(), strict=True))
        return torch.stack([self.known[text] for text in texts]).to(device)
