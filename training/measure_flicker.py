"""Compare a trained video decoder with the image decoder it grew from: flicker and PSNR against the true video.

    python training/measure_flicker.py --vae runs/decoder/model --shards data/held_out --clips 64
    python training/measure_flicker.py --vae vidrd_core/demo_model/vae

Without shards the clips are held-out scenes of the procedural world. Prints a table, also for latents with a little
noise on them, as the U-Net samples them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from vidrd_core.checkpoints import load_vae
from vidrd_core.models.autoencoder import VidRDAutoencoderKL
from vidrd_core.train.autoencoder import decode_frame_by_frame, pixels_of
from vidrd_core.train.draws import Draw
from vidrd_core.train.flicker import flicker, psnr
from vidrd_core.train.sources import DataSettings, ShardSource, Source, WorldSource


@dataclass(frozen=True)
class Arguments:
    vae: Path  # folder or file of a video VAE
    shards: tuple[Path, ...] = ()  # prepared data sets of pixels; none: the procedural world
    clips: int = 32
    frames: int = 8
    size: tuple[int, int] = (256, 256)  # height and width of clips from shards
    noise: tuple[float, ...] = (0.0, 0.1)  # on the latents, in units of their standard deviation
    seed: int = 0


def main(arguments: Arguments) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    vae = load_vae(arguments.vae, dtype=torch.float32)
    source: Source = WorldSource(arguments.frames, "test")
    if arguments.shards:
        data = DataSettings(sizes=(arguments.size,), frames=(arguments.frames,), images="none")
        source = ShardSource(arguments.shards, data, arguments.clips, arguments.seed)
    logging.info("| noise | decoder | flicker | PSNR (dB) |\n|---|---|---|---|")
    for noise in arguments.noise:
        sums = torch.zeros(4)
        for place in range(arguments.clips):
            draw = Draw(arguments.seed, 0, arguments.clips, 1, place, arguments.clips)
            sums += torch.tensor(_measure(vae, pixels_of(source.batch(draw).pixels), noise, draw))
        ours, our_psnr, theirs, their_psnr = (sums / arguments.clips).tolist()
        logging.info("| %.2f | image | %.4f | %.2f |", noise, theirs, their_psnr)
        logging.info("| %.2f | video | %.4f | %.2f |", noise, ours, our_psnr)


@torch.no_grad()
def _measure(vae: VidRDAutoencoderKL, clips: Tensor, noise: float, draw: Draw) -> list[float]:
    """Flicker and PSNR of the video decoder, then of the image decoder."""
    latents = vae.encode(clips).latent_dist.mode()
    added = draw.normal(*latents.shape[1:], purpose="latent noise") * noise / vae.config["scaling_factor"]
    output, plain = vae.decode(latents + added).sample, decode_frame_by_frame(vae, latents + added)
    return [float(f(video, clips)) for video in (output, plain) for f in (flicker, psnr)]


if __name__ == "__main__":
    main(tyro.cli(Arguments))
