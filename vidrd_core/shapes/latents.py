"""Captioned clips stored as latents, so that the training of a U-Net does not run the VAE."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..models.autoencoder import VidRDAutoencoderKL
from ..models.wan_clips import encode_whole
from ..models.wan_latents import FRAMES_PER_LATENT, normalised
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
    _write(path, torch.cat(pieces), captions)


@torch.no_grad()
def encode_causal_clips(
    vae: AutoencoderKLWan, path: Path, num_clips: int, num_frames: int, seed: int, split: str, speed: float
) -> None:
    """Like :func:`encode_moving_shapes` with a causal video VAE of Wan's kind, on its device.

    Latents are stored normalised by channel, float16, ``[num_clips, C, 1 + (num_frames - 1) / 4, h, w]``; the first n
    of a clip are those of its first 1 + 4 (n - 1) frames.

    Raises:
        ValueError: the frames do not fill whole latents.
    """
    if num_frames % FRAMES_PER_LATENT != 1:
        raise ValueError(f"num_frames is {num_frames}; expected 1 + {FRAMES_PER_LATENT}k, for example 29")
    pieces, captions = [], []
    generator = torch.Generator().manual_seed(seed)
    for first in tqdm(range(0, num_clips, 8), desc=path.name, mininterval=5):
        scenes = [draw_scene(generator, split) for _ in range(min(8, num_clips - first))]
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=vae.device.type != "mps"):
            latents, _ = encode_whole(vae, render(scenes, num_frames, speed=speed).to(vae.device))
        pieces.append(normalised(vae, latents.float()).half().cpu())
        captions += [scene.caption for scene in scenes]
    _write(path, torch.cat(pieces), captions)


def _write(path: Path, latents: Tensor, captions: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({"latents": latents.contiguous()}, partial, {"captions": json.dumps(captions)})
    os.replace(partial, path)


class LatentClips:
    """Random clips and captions from files that :func:`encode_moving_shapes` or :func:`encode_causal_clips` wrote.

    Args:
        path: of a file, or several of the same kind.
        from_start: clips begin with the stored clip's first latent, which a causal VAE makes differently from all
            others; else anywhere.

    Raises:
        ValueError: the files hold latents of different shapes.
    """

    def __init__(self, path: Path | Sequence[Path], from_start: bool = False):
        self.from_start = from_start
        self.captions: list[str] = []
        parts = []
        for each in [path] if isinstance(path, Path) else path:
            with safe_open(each, "pt") as file:
                parts.append(file.get_tensor("latents"))
                self.captions += json.loads(file.metadata()["captions"])
        if len({part.shape[1:] for part in parts}) != 1:
            raise ValueError(f"{path} hold latents {[list(part.shape) for part in parts]}; expected one shape of clips")
        self.latents = parts[0] if len(parts) == 1 else torch.cat(parts)

    def batch(self, count: int, num_frames: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """``[count, C, num_frames, h, w]`` float32, each from a random clip and start, and their captions."""
        total, length = self.latents.shape[0], self.latents.shape[2]
        if num_frames > length:
            raise ValueError(f"num_frames is {num_frames}; expected at most {length}, the frames per clip in the file")
        chosen = torch.randint(total, (count,), generator=generator)
        starts = torch.randint(1 if self.from_start else length - num_frames + 1, (count,), generator=generator)
        frames = starts[:, None] + torch.arange(num_frames)
        latents = rearrange(self.latents[chosen[:, None], :, frames], "b t c h w -> b c t h w")
        return latents.float().contiguous(), [self.captions[i] for i in chosen.tolist()]
