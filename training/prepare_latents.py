"""Render clips of the moving-shapes data set and store them as latents of a trained VAE.

python training/prepare_latents.py --vae runs/demo_vae/model --output runs/demo_latents/train.safetensors
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from vidrd_core.models.autoencoder import VidRDAutoencoderKL
from vidrd_core.runtime.allocator import keep_freed_memory
from vidrd_core.shapes.latents import encode_moving_shapes


@dataclass(frozen=True)
class Arguments:
    vae: Path  # model folder of the VAE
    output: Path  # safetensors file to write
    clips: int = 6000
    frames: int = 10  # per clip
    seed: int = 0
    split: str = "train"  # or "test": combinations that training never sees
    dry_run: bool = False  # print the settings and stop


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = tyro.cli(Arguments)
    if arguments.dry_run:
        logging.info("%s", arguments)
        raise SystemExit
    keep_freed_memory()
    vae = VidRDAutoencoderKL.from_pretrained(arguments.vae)
    encode_moving_shapes(vae, arguments.output, arguments.clips, arguments.frames, arguments.seed, arguments.split)
