"""Validation videos, of the same prompts and seeds at every interval, chained clips included."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reuse.noise import progressive_noise
from ..sampling.seeds import clip_noise, clip_seed
from ..sampling.settings import SamplingSettings

if TYPE_CHECKING:
    from ..pipeline import VidRDPipeline


@dataclass(frozen=True)
class PreviewSettings:
    """Which videos to make; each prompt has the seed of its place in the list."""

    prompts: tuple[str, ...] = ()  # none: no previews
    clips: int = 2  # chained, per video
    frames: int = 8  # per clip
    steps: int = 25  # of the sampler, per clip
    guidance_scale: float = 7.5
    fps: float = 8.0
    height: int | None = None  # pixels; None: what the U-Net was configured for
    width: int | None = None


def write_previews(
    pipe: VidRDPipeline,
    settings: PreviewSettings,
    folder: Path,
    is_main: bool,
    progressive_alpha: float = 0.0,
    texts: Mapping[str, Tensor] | None = None,
) -> None:
    """One MP4 file for each prompt; every process samples, since the model may be sharded; the main one writes.

    ``progressive_alpha`` is that of the noise prior that the model is trained with. ``texts`` holds the states
    ``[1, M, D]`` of every prompt and of the default negative prompt where the pipeline has no text encoder.
    """
    from ..video import to_uint8, write_video

    pipe.set_progress_bar_config(disable=True)
    for number, prompt in enumerate(settings.prompts):
        output = pipe(
            prompt if texts is None else None,
            prompt_embeds=None if texts is None else texts[prompt],
            negative_prompt_embeds=None if texts is None else texts[str(SamplingSettings.negative_prompt)],
            num_clips=settings.clips,
            num_frames=settings.frames,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
            seed=number,
            noise=functools.partial(_noise, number, progressive_alpha),
            output_type="pt",
        )
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            words = re.sub(r"[^0-9a-zA-Z]+", "-", prompt)[:60].strip("-")
            frames = torch.as_tensor(output.frames)
            write_video(folder / f"{number:02d}-{words}.mp4", to_uint8(frames), settings.fps)


def _noise(seed: int, alpha: float, clip: int, shape: Sequence[int]) -> Tensor:
    """The pipeline's own noise ``[B, C, T, h, w]``, for the first clip by the progressive prior."""
    fresh = clip_noise([clip_seed(seed, clip)] * shape[0], shape)
    return fresh if clip else progressive_noise(fresh, alpha)
