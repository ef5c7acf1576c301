"""Captioned clips stored as latents, so that the training of a U-Net does not run the VAE."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..models.autoencoder import VidRDAutoencoderKL
from .scenes import draw_scene, render


def encode_moving_shapes(
    vae: VidRDAutoencoderKL, path: Path, num_clips: int, num_frames: int, seed: int, split: str
) -> None:
    """Render clips of the moving-shapes data set, encode them and write one safetensors file.

    Latents are stored scaled (unit standard deviation), float16, ``[num_clips, C, num_frames, h, w]``.
    """
    vae = vae.eval()
    pieces, captions = [], []
    generator = torch.Generator().manual_seed(seed)
    for first in tqdm(range(0, num_clips, 16), desc=path.name, mininterval=5):
        scenes = [draw_scene(generator, split) for _ in range(min(16, num_clips - first))]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(render(scenes, num_frames)).latent_dist.mode()
        pieces.append((latents.float() * vae.config.scaling_factor).half().contiguous())
        captions += [scene.caption for scene in scenes]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({"latents": torch.cat(pieces)}, partial, {"captions": json.dumps(captions)})
    os.replace(partial, path)


class LatentClips:
    """Random clips and captions from a file that :func:`encode_moving_shapes` wrote."""

    def __init__(self, path: Path):
        with safe_open(path, "pt") as file:
            self.latents = file.get_tensor("latents")
            self.captions: list[str] = json.loads(file.metadata()["captions"])

    def batch(self, count: int, num_frames: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """``[count, C, num_frames, h, w]`` float32, each from a random clip and a random start, and their captions."""
        total, length = self.latents.shape[0], self.latents.shape[2]
        if num_frames > length:
            raise ValueError(f"num_frames is {num_frames}; expected at most {length}, the frames per clip in the file")
        chosen = torch.randint(total, (count,), generator=generator)
        starts = torch.randint(length - num_frames + 1, (count,), generator=generator)
        frames = starts[:, None] + torch.arange(num_frames)
        latents = rearrange(self.latents[chosen[:, None], :, frames], "b t c h w -> b c t h w")
        return latents.float().contiguous(), [self.captions[i] for i in chosen.tolist()]
