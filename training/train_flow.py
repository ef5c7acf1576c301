"""Train a small flow transformer of Wan's kind on the moving-shapes data set.

    python training/train_flow.py --config training/configs/flow.yaml

On several GPUs with ``accelerate launch``, as train_unet.py. Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import run
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from vidrd_core.shapes.latents import LatentClips
from vidrd_core.train.flow import FlowTask, new_flow_transformer
from vidrd_core.train.flow_objective import FlowObjective
from vidrd_core.train.flow_preview import FlowPreviewSettings
from vidrd_core.train.settings import TrainSettings
from vidrd_core.train.start import start_text


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    latents: tuple[Path, ...]  # files that prepare_flow_latents.py wrote
    text_model: Path  # folder of text encoder and tokenizer
    held_out: tuple[Path, ...] = ()  # the same as latents, of the test split, for the held-out loss
    vae: Path | None = None  # folder of the causal VAE, for previews and the exported folder
    objective: FlowObjective = FlowObjective()
    previews: FlowPreviewSettings = FlowPreviewSettings()
    model: dict[str, Any] = field(default_factory=dict)  # arguments of WanTransformer3DModel
    transformer: Path | None = None  # or a transformer folder to start from


def make_task(configuration: Configuration) -> FlowTask:
    if (configuration.transformer is None) == (not configuration.model):
        raise ValueError("set one of 'transformer', to start from, and 'model', arguments of a new one")
    if configuration.transformer is not None:
        transformer = WanTransformer3DModel.from_pretrained(configuration.transformer)
    else:
        transformer = new_flow_transformer(configuration.model)
    vae = None if configuration.vae is None else AutoencoderKLWan.from_pretrained(configuration.vae)
    return FlowTask(
        transformer,
        *start_text([configuration.text_model]),
        LatentClips(configuration.latents, from_start=True),
        configuration.objective,
        LatentClips(configuration.held_out, from_start=True) if configuration.held_out else None,
        vae,
        configuration.previews,
    )


if __name__ == "__main__":
    run(Configuration, make_task)
