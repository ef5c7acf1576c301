"""Train the temporal layers of the decoder on clips, from an image VAE.

    python training/train_decoder.py --config training/configs/demo_decoder.yaml
    accelerate launch --multi_gpu --num_processes 8 training/train_decoder.py --config training/configs/decoder.yaml

More launch commands are in train_unet.py. Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import run

from vidrd_core.train.adversarial import AdversarySettings
from vidrd_core.train.autoencoder import AutoencoderLoss, TemporalDecoderTask
from vidrd_core.train.perceptual import make_perceptual
from vidrd_core.train.settings import TrainSettings
from vidrd_core.train.sources import DataSettings, ShardSource
from vidrd_core.train.start import start_video_vae


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    image_vae: Path  # image VAE to inflate, or a video VAE to fine-tune: a folder or file, of any layout
    num_frames: int = 8  # per clip of the moving-shapes data set
    data: DataSettings = DataSettings()  # prepared data sets of pixels; none: the moving-shapes data set
    loss: AutoencoderLoss = AutoencoderLoss()
    perceptual: float = 0.0  # weight of the perceptual loss
    lpips_backbone: Path | None = None  # VGG-16 weights of torchvision; without both files: a built-in feature loss
    lpips_heads: Path | None = None  # LPIPS' own weights, vgg.pth
    adversary: AdversarySettings = AdversarySettings()
    latent_noise: float = 0.1  # largest noise on the latents, in units of their standard deviation
    trained: tuple[str, ...] = ("*decoder*temp_convs*",)  # patterns of the parameters to train


def make_task(configuration: Configuration) -> TemporalDecoderTask:
    data, train = configuration.data, configuration.train
    return TemporalDecoderTask(
        start_video_vae(configuration.image_vae),
        configuration.loss,
        configuration.num_frames,
        source=ShardSource(data.shards, data, train.batch_size, train.seed) if data.shards else None,
        held_out=ShardSource(data.held_out, data, train.batch_size, 0) if data.held_out else None,
        perceptual=make_perceptual(configuration.lpips_backbone, configuration.lpips_heads)
        if configuration.perceptual
        else None,
        perceptual_weight=configuration.perceptual,
        adversary=configuration.adversary,
        latent_noise=configuration.latent_noise,
        trained=configuration.trained,
    )


if __name__ == "__main__":
    run(Configuration, make_task)
