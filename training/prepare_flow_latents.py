"""Render clips of the moving-shapes data set and store them as latents of a trained causal VAE.

python training/prepare_flow_latents.py --vae runs/flow_vae/model --output runs/flow_latents/train_0.safetensors
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro
from accelerate import PartialState
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from vidrd_core.runtime.allocator import keep_freed_memory
from vidrd_core.shapes.latents import encode_causal_clips


@dataclass(frozen=True)
class Arguments:
    vae: Path  # model folder of the VAE
    output: Path  # safetensors file to write
    clips: int = 6000
    frames: int = 29  # per clip, 1 + 4k
    speed: float = 0.4  # of the motions, as a share of the data set's own
    seed: int = 0  # another one for another file
    split: str = "train"  # or "test": combinations that training never sees
    dry_run: bool = False  # print the settings and stop


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = tyro.cli(Arguments)
    if arguments.dry_run:
        logging.info("%s", arguments)
        raise SystemExit
    device = PartialState().device
    keep_freed_memory(device)
    vae = AutoencoderKLWan.from_pretrained(arguments.vae).eval().to(device)
    encode_causal_clips(
        vae,
        arguments.output,
        arguments.clips,
        arguments.frames,
        arguments.seed,
        arguments.split,
        arguments.speed,
    )
