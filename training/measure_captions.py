"""How much a wrong caption raises the loss: has a U-Net on the moving-shapes data set learned the words for motion?

    python training/measure_captions.py --models runs/demo_motion/model runs/demo_lines/model runs/demo_settle/model
    python training/measure_captions.py --models vidrd_core/demo_model

Held-out scenes with straight motion are denoised for one step with their own caption, with the opposite direction and
with one at right angles. The figure is the increase of the squared error by the wrong words, in per cent: at 0 the
model ignores them. Also for clips with one nearly clean frame. Prints a table.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from vidrd_core.checkpoints import load_vae
from vidrd_core.models.unet import VidRDUNet
from vidrd_core.shapes.scenes import DIRECTIONS, Scene, draw_scene, render
from vidrd_core.train.micro_batches import MicroBatch
from vidrd_core.train.objective import UNetObjective, add_cleaner_frames, target_of
from vidrd_core.train.schedule import start_scheduler
from vidrd_core.train.text import encode_text

BATCH = 16


@dataclass(frozen=True)
class Arguments:
    models: tuple[Path, ...]  # folders with unet, text_encoder and tokenizer
    vae: Path = Path("vidrd_core/demo_model/vae")  # that encodes the models' latents
    clips: int = 96
    frames: int = 8
    times: tuple[int, ...] = (600, 700, 800, 900)  # diffusion times
    seed: int = 0


@torch.no_grad()
def main(arguments: Arguments) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scenes = straight_scenes(arguments.clips, arguments.seed)
    vae = load_vae(arguments.vae, dtype=torch.float32)
    pictures = render(scenes, arguments.frames)
    encoded = torch.cat([vae.encode(part).latent_dist.mode() for part in pictures.split(BATCH)])
    latents = encoded * vae.config["scaling_factor"]
    captions = {
        "opposite": [reworded(scene, -1.0) for scene in scenes],
        "right angle": [reworded(scene, 0.0) for scene in scenes],
    }
    logging.info("| model | cleaner frame | wrong words | %s |", " | ".join(f"t = {t}" for t in arguments.times))
    logging.info("|---|---|---%s|", "|---" * len(arguments.times))
    for folder in arguments.models:
        unet = VidRDUNet.from_pretrained(folder / "unet").float().eval()
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        scheduler = start_scheduler(None, folder)
        true = encode_text(tokenizer, text_encoder, [scene.caption for scene in scenes])
        for cleaner in (False, True):
            right = [errors(unet, scheduler, latents, true, t, cleaner, arguments.seed) for t in arguments.times]
            for name, wrong in captions.items():
                text = encode_text(tokenizer, text_encoder, wrong)
                found = [errors(unet, scheduler, latents, text, t, cleaner, arguments.seed) for t in arguments.times]
                rises = [f"{100 * (b / a - 1):+.1f}%" for a, b in zip(right, found, strict=True)]
                shown = "yes" if cleaner else "no"
                logging.info("| %s | %s | %s | %s |", folder, shown, name, " | ".join(rises))


def straight_scenes(count: int, seed: int) -> list[Scene]:
    """Held-out scenes with straight motion."""
    generator = torch.Generator().manual_seed(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = draw_scene(generator, "test")
        scenes += [scene] if scene.motion in DIRECTIONS else []
    return scenes


def reworded(scene: Scene, cosine: float) -> str:
    """The scene's caption with the direction that has this cosine to the true one."""
    x, y = DIRECTIONS[scene.motion]
    other = min(DIRECTIONS, key=lambda name: abs(x * DIRECTIONS[name][0] + y * DIRECTIONS[name][1] - cosine))
    return scene.caption.replace(scene.motion, other)


def errors(
    unet: VidRDUNet, scheduler: Any, latents: Tensor, text: Tensor, time: int, cleaner: bool, seed: int
) -> float:
    """Mean squared error of the prediction at a diffusion time, the same noise in every call."""
    total = frames = 0.0
    objective = UNetObjective(cleaner_frame_share=float(cleaner), prediction=scheduler.config.prediction_type)
    for place in range(0, len(latents), BATCH):
        clips = latents[place : place + BATCH]
        micro_batch = MicroBatch(seed, place, len(clips), len(clips))
        noise = micro_batch.normal(*clips.shape[1:], purpose="noise")
        times = torch.full((len(clips),), time)
        noisy = scheduler.add_noise(clips, noise, times)
        noisy, counted = add_cleaner_frames(objective, micro_batch, scheduler, noisy, clips, noise, times)
        predicted = unet(noisy, times, text[place : place + BATCH]).sample
        target = target_of(objective, scheduler, clips, noise, times)
        total += float(((predicted - target).square().mean((1, 3, 4)) * counted).sum())
        frames += float(counted.sum())
    return total / frames


if __name__ == "__main__":
    main(tyro.cli(Arguments))
