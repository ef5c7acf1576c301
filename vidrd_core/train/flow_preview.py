"""Videos of a flow transformer in training, measured by the tracker of the moving-shapes data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from PIL import Image
from torch import Tensor

from ..models.wan_latents import denormalised
from ..shapes.scenes import DIRECTIONS, SPEED, Scene
from ..shapes.tracker import NOTHING, Track, track, wrapped
from ..video import to_uint8
from .flow_objective import TIMESTEPS

SHEET_VIDEOS = 8  # of a contact sheet
SHEET_STRIDE = 4  # frames between its pictures


@dataclass(frozen=True)
class FlowPreviewSettings:
    """Videos that are sampled with Euler steps at every validation."""

    videos: int = 0  # of distinct held-out captions; 0: none
    length: int = 8  # latents
    size: int = 8  # height and width in latents
    steps: int = 20
    shift: float = 3.0  # of the noise levels, as in ComfyUI's ModelSamplingSD3
    guidance_scale: float = 4.0
    seed: int = 0
    speed: float = 0.4  # of the motions in training, as a share of the data set's own
    batch: int = 16


def shifted_levels(steps: int, shift: float) -> Tensor:
    """Noise levels ``[steps + 1]`` from 1 to 0: evenly spaced ones u become shift u / (1 + (shift - 1) u)."""
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


@torch.no_grad()
def sample_flow(
    transformer: WanTransformer3DModel, noise: Tensor, text: Tensor, null: Tensor, levels: Tensor, guidance_scale: float
) -> Tensor:
    """Latents by Euler steps of the velocity with classifier-free guidance.

    Args:
        noise: ``[B, C, T, h, w]``, at ``levels[0]`` = 1.
        text: states ``[B, M, D]``.
        null: states of the null caption, ``[1, M, D]``.
        levels: ``[steps + 1]``, falling to 0.
        guidance_scale: 1 for none.
    """
    latents = noise
    both = text if guidance_scale == 1 else torch.cat([text, null.expand(len(text), -1, -1)])
    for level, following in zip(levels.tolist(), levels[1:].tolist()):
        shown = latents if guidance_scale == 1 else torch.cat([latents, latents])
        times = torch.full((len(shown),), level * TIMESTEPS, device=latents.device)
        velocity = transformer(shown, times, both, return_dict=False)[0].float()
        if guidance_scale != 1:
            with_text, without = velocity.chunk(2)
            velocity = without + guidance_scale * (with_text - without)
        latents = latents + (following - level) * velocity
    return latents


@torch.no_grad()
def measure_flow(
    transformer: WanTransformer3DModel,
    vae: AutoencoderKLWan,
    scenes: Sequence[Scene],
    texts: Tensor,
    null: Tensor,
    settings: FlowPreviewSettings,
) -> tuple[dict[str, float], Image.Image]:
    """What the tracker finds in a video of each scene's caption, and a contact sheet of some.

    Args:
        texts: states of the captions, ``[B, M, D]``; null: of the null caption, ``[1, M, D]``.
    """
    levels = shifted_levels(settings.steps, settings.shift)
    generator = torch.Generator().manual_seed(settings.seed)
    channels = transformer.config["in_channels"]
    videos: list[Tensor] = []
    for part in texts.split(settings.batch):
        shape = (len(part), channels, settings.length, settings.size, settings.size)
        noise = torch.randn(shape, generator=generator).to(part.device)
        latents = sample_flow(transformer, noise, part, null, levels, settings.guidance_scale)
        videos += list(vae.decode(denormalised(vae, latents)).sample.float().cpu())
    tracks = [track(video, settings.speed) for video in videos]
    return flow_figures(scenes, tracks), contact_sheet(videos[:SHEET_VIDEOS])


def flow_figures(scenes: Sequence[Scene], tracks: Sequence[Track]) -> dict[str, float]:
    """Shares of the videos, 0 to 1, and steps as shares of the true one."""
    straight = [(s, t) for s, t in zip(scenes, tracks, strict=True) if s.motion in DIRECTIONS]
    pairs = list(zip(scenes, tracks, strict=True))
    along = [_along(s, t) for s, t in straight]
    jitter = [_jitter(t) for _, t in pairs]
    return {
        "videos": len(tracks),
        "shape in every frame": _mean([NOTHING not in t.colors for t in tracks]),
        "colour": _mean([t.color == s.color for s, t in pairs]),
        "shape": _mean([t.shape == s.shape for s, t in pairs]),
        "motion": _mean([t.motion == s.motion for s, t in pairs]),
        "straight motions": len(straight),
        "direction within 45 degrees": _mean([_direction(s, t) for s, t in straight]),
        "progress along the direction": _mean(along),  # 1: the true speed, 0: none
        "step jitter": _mean(jitter),  # deviation from an even path from frame to frame, of the true step
    }


def _travel(found: Track) -> Tensor:
    """Steps of the centre ``[T - 1, 2]`` in pixels; NaN where it was lost."""
    return wrapped(found.centers.diff(dim=0))


def _along(scene: Scene, found: Track) -> float:
    moves = _travel(found) @ torch.tensor(DIRECTIONS[scene.motion])
    return float(moves.nanmean()) / (SPEED * found.speed)


def _direction(scene: Scene, found: Track) -> bool:
    mean = _travel(found).nanmean(0)
    length = float(mean.norm())
    if not length > SPEED * found.speed / 4:
        return False
    return float(mean @ torch.tensor(DIRECTIONS[scene.motion])) / length > math.sqrt(0.5)


def _jitter(found: Track) -> float:
    """Root mean square change between neighbouring steps / the true step."""
    changes = _travel(found).diff(dim=0).square().sum(1)
    return math.sqrt(float(changes.nanmean())) / (SPEED * found.speed)


def _mean(values: Sequence[float | bool]) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return round(sum(known) / len(known), 4) if known else math.nan


def contact_sheet(videos: Sequence[Tensor]) -> Image.Image:
    """Videos ``[3, T, H, W]`` in [-1, 1] as rows of every fourth frame."""
    rows = [np.concatenate(list(to_uint8(video[:, ::SHEET_STRIDE])), axis=1) for video in videos]
    return Image.fromarray(np.concatenate(rows))
