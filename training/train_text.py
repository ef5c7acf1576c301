"""Train a small CLIP text encoder and its tokenizer on the captions of the moving-shapes data set.

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
from vidrd_core.train.text import TextTask, make_text_encoder, write_tokenizer


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    text_encoder: dict[str, Any] = field(default_factory=dict)  # of CLIPTextConfig
    max_tokens: int = 32  # of a text
    captions: int = 3000  # from which the tokenizer's vocabulary is built
    null_captions: tuple[str, ...] = ("",)  # in the vocabulary too: those of the U-Net's objective


def make_task(configuration: Configuration) -> TextTask:
    generator = torch.Generator().manual_seed(configuration.train.seed)
    captions = [draw_scene(generator).caption for _ in range(configuration.captions)]
    folder = configuration.train.run / "tokenizer"
    tokenizer = write_tokenizer(folder, [*captions, *configuration.null_captions], configuration.max_tokens)
    return TextTask(make_text_encoder(tokenizer, **configuration.text_encoder), tokenizer)


if __name__ == "__main__":
    run(Configuration, make_task)
