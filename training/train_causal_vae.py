"""Train a small causal video VAE of Wan's kind on the moving-shapes data set.

    python training/train_causal_vae.py --config training/configs/flow_vae.yaml

Run the same command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import run
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from vidrd_core.train.causal_vae import CausalVAEObjective, CausalVAETask, new_causal_vae
from vidrd_core.train.settings import TrainSettings


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    objective: CausalVAEObjective = CausalVAEObjective()
    model: dict[str, Any] = field(default_factory=dict)  # arguments of AutoencoderKLWan
    vae: Path | None = None  # or a VAE folder to start from
    trained: tuple[str, ...] = ("*",)  # patterns of the parameters to train


def make_task(configuration: Configuration) -> CausalVAETask:
    if configuration.vae is not None and configuration.model:
        raise ValueError("model and vae are both set: a VAE that training starts from has its own settings")
    if configuration.vae is not None:
        vae = AutoencoderKLWan.from_pretrained(configuration.vae)
    else:
        vae = new_causal_vae(configuration.model)
    return CausalVAETask(vae, configuration.objective, configuration.trained)


if __name__ == "__main__":
    run(Configuration, make_task)
