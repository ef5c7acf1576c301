"""A small CLIP text encoder and a tokenizer in CLIP's format for models trained from scratch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..shapes.scenes import BACKGROUNDS, COLORS, KINDS, MOTIONS, SHAPES, draw_scene
from .micro_batches import MicroBatch
from .task import Outcome, TrainingTask

START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, captions: Iterable[str], max_tokens: int) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary from captions and save it as a CLIP tokenizer folder.

    Every word of the captions becomes one token; any other text is spelled in smaller pieces, in the end in bytes.
    """
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", min_frequency=1, show_progress=False)
    trained.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_tokens,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    special = {name: settings[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(tokenizer: CLIPTokenizer, **config: Any) -> CLIPTextModel:
    """A CLIP text model with random weights for ``tokenizer``; ``config`` as in ``CLIPTextConfig``."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )


def encode_text(
    tokenizer: CLIPTokenizer, encoder: nn.Module, texts: list[str], device: torch.device | str | None = None
) -> Tensor:
    """Text states ``[B, M, D]`` on ``device``, by default the encoder's; each distinct text is encoded once."""
    device = next(encoder.parameters()).device if device is None else device
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer(
        distinct, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    states = encoder(tokens.input_ids.to(device))[0]
    places = {text: place for place, text in enumerate(distinct)}
    return states[torch.tensor([places[text] for text in texts], device=device)]


class TextTask(TrainingTask):
    """A text encoder from scratch: linear heads classify, from its mean state, the attributes that a caption names.

    On captions of the moving-shapes data set this replaces CLIP's pre-training: colour, shape, motion and background
    can be read off the text states before the U-Net's training starts. The heads are discarded.
    """

    def __init__(self, encoder: CLIPTextModel, tokenizer: CLIPTokenizer):
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.attributes: dict[str, Sequence[str]] = {
            "color": list(COLORS),
            "shape": SHAPES,
            "motion": MOTIONS,
            "background": list(BACKGROUNDS),
            "kind": KINDS,
        }
        width = encoder.config.hidden_size
        heads = nn.ModuleDict({name: nn.Linear(width, len(known)) for name, known in self.attributes.items()})
        classifier = _Classifier(encoder, heads)
        super().__init__(
            {"text_encoder": encoder, "heads": heads}, {"text_encoder": classifier, "heads": nn.Identity()}
        )

    def loss(self, micro_batch: MicroBatch) -> Outcome:
        scenes = [draw_scene(generator) for generator in micro_batch.generators()]
        captions = [scene.caption for scene in scenes]
        scores = self.calls["text_encoder"](self.tokenizer, captions, self.device)
        losses, hits = [], 0.0
        for name, known in self.attributes.items():
            target = torch.tensor([known.index(getattr(scene, name)) for scene in scenes], device=self.device)
            losses.append(F.cross_entropy(scores[name], target))
            hits += float((scores[name].argmax(1) == target).float().mean())
        return Outcome(torch.stack(losses).sum(), {"accuracy": hits / len(self.attributes)}, captions)

    def export(self, folder: Path) -> None:
        if self.is_main:
            self.encoder.save_pretrained(folder / "text_encoder")
            self.tokenizer.save_pretrained(folder / "tokenizer")


class _Classifier(nn.Module):
    """Captions to the scores of all heads, in one call that can be wrapped for several processes."""

    def __init__(self, encoder: CLIPTextModel, heads: nn.ModuleDict):
        super().__init__()
        self.encoder = encoder
        self.heads = heads

    def forward(self, tokenizer: CLIPTokenizer, captions: list[str], device: torch.device) -> dict[str, Tensor]:
        states = encode_text(tokenizer, self.encoder, captions, device).mean(1)
        return {name: head(states) for name, head in self.heads.items()}
