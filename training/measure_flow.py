"""What a flow transformer in training has learned: sampled videos under the tracker, and the effect of wrong words.

    python training/measure_flow.py --run runs/flow --previews.videos 64

Held-out prompts are sampled and the tracker compares the videos with them. And held-out clips with straight motion are
denoised for one step with their own caption and with the opposite direction: the figure is the increase of the squared
error by the wrong words, in per cent; at 0 the model ignores them. Writes figures.json and videos.png to the folder
``measured`` of the run, and logs the figures.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from accelerate import PartialState
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from measure_captions import reworded, straight_scenes
from torch import Tensor

from vidrd_core.models.wan_latents import normalised
from vidrd_core.shapes.prompted import held_out_scenes
from vidrd_core.shapes.scenes import render
from vidrd_core.train.flow import TextStates
from vidrd_core.train.flow_objective import TIMESTEPS
from vidrd_core.train.flow_preview import FlowPreviewSettings, measure_flow
from vidrd_core.train.start import start_text

BATCH = 16


@dataclass(frozen=True)
class Arguments:
    run: Path  # of the transformer; its exported model has the EMA weights
    previews: FlowPreviewSettings = FlowPreviewSettings(videos=64)
    negative_prompt: str = ""
    vae: Path | None = None  # folder of another VAE with the same latents
    clips: int = 64  # for the effect of wrong words; 0: none
    levels: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95)  # noise levels of that


@torch.no_grad()
def main(arguments: Arguments) -> None:
    model, device, settings = arguments.run / "model", PartialState().device, arguments.previews
    transformer = WanTransformer3DModel.from_pretrained(model / "transformer").eval().to(device)
    vae = AutoencoderKLWan.from_pretrained(arguments.vae or model / "vae").eval().to(device)
    text = TextStates(*start_text([model]))
    figures: dict[str, float] = {}
    if arguments.clips:
        figures = wrong_words(transformer, vae, text, arguments)
    folder = arguments.run / "measured"
    folder.mkdir(exist_ok=True)
    if settings.videos:
        scenes = held_out_scenes(settings.videos)
        states = text([*(scene.caption for scene in scenes), arguments.negative_prompt], device)
        found, sheet = measure_flow(transformer, vae, scenes, states[:-1], states[-1:], settings)
        figures |= found
        sheet.save(folder / "videos.png")
    (folder / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    logging.info("%s", figures)


def wrong_words(
    transformer: WanTransformer3DModel, vae: AutoencoderKLWan, text: TextStates, arguments: Arguments
) -> dict[str, float]:
    """Increase of the squared error by the opposite direction in the caption, in per cent, by noise level."""
    settings = arguments.previews
    scenes = straight_scenes(arguments.clips, settings.seed)
    frames = render(scenes, 1 + 4 * (settings.length - 1), speed=settings.speed).to(transformer.device)
    parts = [normalised(vae, vae.encode(part).latent_dist.mode()) for part in frames.split(BATCH)]
    latents = torch.cat(parts)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(settings.seed)).to(latents.device)
    captions = [[scene.caption for scene in scenes], [reworded(scene, -1.0) for scene in scenes]]
    rises = {}
    for level in arguments.levels:
        noisy = (1 - level) * latents + level * noise
        right, wrong = (
            _error(transformer, noisy, noise - latents, level, text(texts, latents.device)) for texts in captions
        )
        rises[f"opposite direction at level {level}"] = round(100 * (wrong / right - 1), 2)
    return rises


def _error(transformer: WanTransformer3DModel, noisy: Tensor, velocity: Tensor, level: float, text: Tensor) -> float:
    total = 0.0
    for x, v, states in zip(noisy.split(BATCH), velocity.split(BATCH), text.split(BATCH), strict=True):
        times = torch.full((len(x),), level * TIMESTEPS, device=x.device)
        predicted = transformer(x, times, states, return_dict=False)[0]
        total += float((predicted - v).square().mean()) * len(x)
    return total / len(noisy)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(tyro.cli(Arguments))
