"""Train the U-Net of a small VidRD: from scratch on single frames, or inflated from such a model on images and video.

    python training/train_unet.py --config training/configs/demo_image.yaml
    python training/train_unet.py --config training/configs/demo_video.yaml

Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import run
from transformers import CLIPTextModel, CLIPTokenizer

from vidrd_core.data.latents import LatentClips
from vidrd_core.models.unet import VidRDUNet
from vidrd_core.train.loop import TrainSettings
from vidrd_core.train.text import make_text_encoder, write_tokenizer
from vidrd_core.train.unet import EMPTY_CAPTIONS, PAPER_POLICY, UNetObjective, UNetStage, freeze


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    latents: Path  # file that prepare_latents.py wrote
    objective: UNetObjective = UNetObjective()
    image_model: Path | None = None  # folder of an image stage to inflate; None: from scratch
    unet: dict[str, Any] = field(default_factory=dict)  # arguments of VidRDUNet
    text_encoder: dict[str, Any] = field(default_factory=dict)  # of CLIPTextConfig; only from scratch
    max_tokens: int = 32  # of a text; only from scratch
    trained: tuple[str, ...] = PAPER_POLICY  # patterns of the parameters that learn; only after inflation


def stage(configuration: Configuration) -> UNetStage:
    clips = LatentClips(configuration.latents)
    if configuration.image_model is None:
        unet = VidRDUNet(**configuration.unet)
        folder = configuration.train.run / "tokenizer"
        tokenizer = write_tokenizer(folder, [*clips.captions, *EMPTY_CAPTIONS], configuration.max_tokens)
        text_encoder = make_text_encoder(tokenizer, **configuration.text_encoder)
    else:
        image = configuration.image_model
        unet = VidRDUNet.from_image_unet(image / "unet", **configuration.unet)
        freeze(unet, configuration.trained)
        tokenizer = CLIPTokenizer.from_pretrained(image / "tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(image / "text_encoder").requires_grad_(False)
    return UNetStage(unet, text_encoder, tokenizer, clips, configuration.objective)


if __name__ == "__main__":
    run(Configuration, stage)
