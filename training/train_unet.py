"""Train the U-Net of a small VidRD: from scratch on single frames, or inflated from such a model on images and video.

    python training/train_unet.py --config training/configs/demo_image.yaml
    python training/train_unet.py --config training/configs/demo_video.yaml

Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
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
    image_model: Path | None = None  # folder of an image stage to inflate
    video_model: Path | None = None  # a VidRD model folder to go on from; neither: from scratch
    text_model: Path | None = None  # folder of a text stage; None: the starting model's own text encoder
    unet: dict[str, Any] = field(default_factory=dict)  # arguments of VidRDUNet
    trained: tuple[str, ...] = PAPER_POLICY  # patterns of the parameters that learn; only after inflation


def stage(configuration: Configuration) -> UNetStage:
    image, video = configuration.image_model, configuration.video_model
    text = configuration.text_model or image or video
    if text is None:
        raise ValueError("none of text_model, image_model and video_model is set: there is no text encoder")
    if image is not None:
        unet = VidRDUNet.from_image_unet(image / "unet", **configuration.unet)
        freeze(unet, configuration.trained)
    elif video is not None:
        unet = VidRDUNet.from_pretrained(video / "unet", torch_dtype=torch.float32)
        freeze(unet, configuration.trained)
    else:
        unet = VidRDUNet(**configuration.unet)
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(text / "text_encoder").requires_grad_(False)
    return UNetStage(unet, text_encoder, tokenizer, LatentClips(configuration.latents), configuration.objective)


if __name__ == "__main__":
    run(Configuration, stage)
