"""Train a small CLIP text encoder and its tokenizer on the captions of the procedural world.

    python training/train_text.py --config training/configs/demo_text.yaml

Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from common import run

from vidrd_core.shapes.scenes import draw_scene
from vidrd_core.train.settings import TrainSettings
from vidrd_core.train.text import TextStage, make_text_encoder, write_tokenizer


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    text_encoder: dict[str, Any] = field(default_factory=dict)  # of CLIPTextConfig
    max_tokens: int = 32  # of a text
    captions: int = 3000  # that the tokenizer's vocabulary is learned from
    null_captions: tuple[str, ...] = ("",)  # and these, of the U-Net's objective


def stage(configuration: Configuration) -> TextStage:
    generator = torch.Generator().manual_seed(configuration.train.seed)
    captions = [draw_scene(generator).caption for _ in range(configuration.captions)]
    folder = configuration.train.run / "tokenizer"
    tokenizer = write_tokenizer(folder, [*captions, *configuration.null_captions], configuration.max_tokens)
    return TextStage(make_text_encoder(tokenizer, **configuration.text_encoder), tokenizer)


if __name__ == "__main__":
    run(Configuration, stage)
