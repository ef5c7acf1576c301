"""Train the temporal layers of the decoder on clips, from an image VAE.

    python training/train_decoder.py --config training/configs/demo_decoder.yaml

Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import run

from vidrd_core.models.autoencoder import VidRDAutoencoderKL
from vidrd_core.train.autoencoder import AutoencoderLoss, TemporalDecoderStage
from vidrd_core.train.loop import TrainSettings


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    image_vae: Path  # folder of the image VAE to inflate
    num_frames: int = 8  # per clip
    loss: AutoencoderLoss = AutoencoderLoss()


def stage(configuration: Configuration) -> TemporalDecoderStage:
    vae = VidRDAutoencoderKL.from_image_vae(configuration.image_vae, add_temp_conv=True)
    return TemporalDecoderStage(vae, configuration.loss, configuration.num_frames)


if __name__ == "__main__":
    run(Configuration, stage)
