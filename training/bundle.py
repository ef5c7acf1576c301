"""Put the trained parts of a small VidRD together as a model folder, in float16.

python training/bundle.py --video runs/demo_polish --decoder runs/demo_decoder --output vidrd_core/demo_model
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from transformers import CLIPTextModel, CLIPTokenizer

from vidrd_core.models.autoencoder import VidRDAutoencoderKL
from vidrd_core.models.unet import VidRDUNet
from vidrd_core.pipeline import VidRDPipeline
from vidrd_core.reuse.presets import find_preset
from vidrd_core.train.schedule import start_scheduler


@dataclass(frozen=True)
class Arguments:
    video: Path  # run of the U-Net
    decoder: Path  # run of the video decoder, or of the image VAE where there is none
    output: Path  # model folder to write


def main(arguments: Arguments) -> None:
    video = arguments.video / "model"
    pipe = VidRDPipeline(
        unet=VidRDUNet.from_pretrained(video / "unet"),
        vae=VidRDAutoencoderKL.from_pretrained(arguments.decoder / "model"),
        text_encoder=CLIPTextModel.from_pretrained(video / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(video / "tokenizer"),
        scheduler=start_scheduler(None, video),
        defaults={
            "fps": 8,
            "num_frames": 8,
            "num_inference_steps": 25,
            "guidance_scale": 4.0,
            **asdict(find_preset("smooth").reuse),
        },
    )
    fresh = arguments.output.with_name(arguments.output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.to(dtype=torch.float16).save_pretrained(fresh)
    # vocab.json and merges.txt too, for older libraries.
    pipe.tokenizer.backend_tokenizer.model.save(str(fresh / "tokenizer"))
    shutil.rmtree(arguments.output, ignore_errors=True)
    os.replace(fresh, arguments.output)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
