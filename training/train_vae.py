"""Train the image VAE of a small VidRD on frames of the moving-shapes data set.

    python training/train_vae.py --config training/configs/demo_vae.yaml

Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common import run

from vidrd_core.models.autoencoder import VidRDAutoencoderKL
from vidrd_core.train.autoencoder import AutoencoderLoss, ImageAutoencoderTask
from vidrd_core.train.settings import TrainSettings


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    model: dict[str, Any] = field(default_factory=dict)  # arguments of VidRDAutoencoderKL
    loss: AutoencoderLoss = AutoencoderLoss()


def make_task(configuration: Configuration) -> ImageAutoencoderTask:
    return ImageAutoencoderTask(VidRDAutoencoderKL(**configuration.model), configuration.loss)


if __name__ == "__main__":
    run(Configuration, make_task)
