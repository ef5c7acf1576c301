"""Train the U-Net: from scratch, from Stable Diffusion 2.1 inflated, or from a VidRD model.

One process:
    python training/train_unet.py --config training/configs/demo.yaml
Several GPUs of one machine (DDP):
    accelerate launch --multi_gpu --num_processes 8 training/train_unet.py --config training/configs/paper.yaml
Two machines, this line on each with its own rank:
    accelerate launch --multi_gpu --num_machines 2 --num_processes 16 --machine_rank 0 \
        --main_process_ip 10.0.0.1 --main_process_port 29500 \
        training/train_unet.py --config training/configs/paper.yaml
FSDP or DeepSpeed:
    accelerate launch --config_file training/accelerate/fsdp.yaml \
        training/train_unet.py --config training/configs/paper.yaml

Every setting can be given on the command line, as ``--train.batch_size 16``; ``--dry-run`` prints them all. Run the
same command again to resume; the number of processes may differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import run

from vidrd_core.shapes.latents import LatentClips
from vidrd_core.train.freezing import PAPER_POLICY
from vidrd_core.train.lora import LoraSettings
from vidrd_core.train.objective import UNetObjective
from vidrd_core.train.previews import PreviewSettings
from vidrd_core.train.schedule import start_scheduler
from vidrd_core.train.settings import TrainSettings
from vidrd_core.train.sources import DataSettings, LatentSource, ShardSource, Source
from vidrd_core.train.start import start_defaults, start_text, start_unet, start_vae
from vidrd_core.train.stored_text import start_stored_text
from vidrd_core.train.unet import UNetTask


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    latents: Path | None = None  # file that prepare_latents.py wrote
    data: DataSettings = DataSettings()  # or prepared data sets
    objective: UNetObjective = UNetObjective()
    previews: PreviewSettings = PreviewSettings()
    image_model: Path | None = None  # folder or checkpoint with an image U-Net to inflate: Stable Diffusion 2.1
    video_model: Path | None = None  # a VidRD model folder or checkpoint to fine-tune; neither: from scratch
    text_model: Path | None = None  # folder of text encoder and tokenizer; None: the starting model's own
    vae: Path | None = None  # folder or file of a VAE; None: the starting model's own
    scheduler: Path | None = None  # folder of a diffusers scheduler; None: the starting model's own noise schedule
    unet: dict[str, Any] = field(default_factory=dict)  # arguments of VidRDUNet
    trained: tuple[str, ...] = PAPER_POLICY  # patterns of the parameters to train; from scratch all are
    lora: LoraSettings = LoraSettings()


def make_task(configuration: Configuration) -> UNetTask:
    image, video = configuration.image_model, configuration.video_model
    objective = configuration.objective
    source, held_out = sources(configuration)
    unet = start_unet(image, video, configuration.unet, configuration.trained, configuration.lora)
    scheduler = start_scheduler(
        configuration.scheduler, image or video, objective.prediction, for_lora=configuration.lora.rank > 0
    )
    vae = start_vae([configuration.vae, video or image])
    places = [configuration.text_model, image or video]
    stored_text = start_stored_text(
        [source, held_out],
        objective.null_captions if objective.caption_dropout else (),
        configuration.previews.prompts if configuration.train.validate_samples and vae is not None else (),
        places,
        unet.config["cross_attention_dim"],
    )
    text_encoder, tokenizer = start_text(places) if stored_text is None else (None, None)
    frames = configuration.data.frames if configuration.data.shards else (objective.num_frames,)
    defaults = {**start_defaults(video), "num_frames": max(frames)}
    made = UNetTask(
        unet,
        text_encoder,
        tokenizer,
        source,
        objective,
        held_out,
        vae,
        configuration.previews,
        defaults,
        scheduler,
        stored_text,
    )
    made.may_skip_parameters |= 1 in frames  # single frames skip the temporal layers
    return made


def sources(configuration: Configuration) -> tuple[Source, Source | None]:
    """The sources of training clips and of held-out clips."""
    data, objective, train = configuration.data, configuration.objective, configuration.train
    if (configuration.latents is None) == (not data.shards):
        raise ValueError("set one of 'latents' and 'data.shards': what to train on")
    if configuration.latents is not None:
        clips = LatentClips(configuration.latents)
        return LatentSource(clips, objective.num_frames, objective.image_share, objective.images_per_clip), None
    mix = (objective.image_share, objective.images_per_clip)
    held_out = ShardSource(data.held_out, data, train.batch_size, 0) if data.held_out else None
    return ShardSource(data.shards, data, train.batch_size, train.seed, *mix), held_out


if __name__ == "__main__":
    run(Configuration, make_task)
