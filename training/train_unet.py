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
from vidrd_core.train.unet import PAPER_POLICY, UNetObjective, UNetStage, freeze


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    latents: Path  # file that prepare_latents.py wrote
    objective: UNetObjective = UNetObjective()
    image_model: Path | None = None  # folder of an image stage to inflate; None: from scratch
    text_model: Path | None = None  # folder of a text stage; None: the image stage's own text encoder
    unet: dict[str, Any] = field(default_factory=dict)  # arguments of VidRDUNet
    trained: tuple[str, ...] = PAPER_POLICY  # patterns of the parameters that learn; only after inflation


def stage(configuration: Configuration) -> UNetStage:
    image, text = configuration.image_model, configuration.text_model or configuration.image_model
    if text is None:
        raise ValueError("neither text_model nor image_model is set: there is no text encoder")
    if image is None:
        unet = VidRDUNet(**configuration.unet)
    else:
        unet = VidRDUNet.from_image_unet(image / "unet", **configuration.unet)
        freeze(unet, configuration.trained)
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(text / "text_encoder").requires_grad_(False)
    return UNetStage(unet, text_encoder, tokenizer, LatentClips(configuration.latents), configuration.objective)


if __name__ == "__main__":
    run(Configuration, stage)
