"""The optional last step of preparation: latents and text states of a data set, stored as a data set of their own.

A trainer that reads it needs neither the autoencoder's encoder nor the text encoder. Resumable like any data set.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import alone, write_tensors
from ..models.autoencoder import VidRDAutoencoderKL
from .filters import TOO_SMALL
from .reports import refuse_empty, write_reports
from .shards import (
    LOCK,
    NULL_CAPTIONS,
    UNCONDITIONAL,
    BrokenItem,
    Dropped,
    Sample,
    SampleInfo,
    ShardDataset,
    ShardWriter,
)

logger = logging.getLogger(__name__)

_REPORT_SAMPLES = 100


@dataclass(frozen=True)
class EmbeddingSettings:
    """What is stored, and at which size."""

    height: int = 0  # pixels that the samples are fitted to; 0: each as it is, less what the autoencoder cannot take
    width: int = 0
    text: bool = True  # store text states too; of several captions of a sample, the first one's
    samples_per_shard: int = 1024
    null_captions: tuple[str, ...] = ("",)  # of the training's objective; their text states are stored as well

    def __post_init__(self) -> None:
        if (self.height > 0) != (self.width > 0) or min(self.height, self.width) < 0:
            raise ValueError(f"give both height and width or neither, got {self.height} and {self.width}")
        if not self.text and self.null_captions != ("",):
            raise ValueError(f"text is off, so null_captions {self.null_captions} cannot be stored: leave them out")


def embed(
    data: ShardDataset,
    output: Path,
    vae: VidRDAutoencoderKL,
    encode_text: Callable[[list[str]], Tensor] | None,
    models: Mapping[str, Any],
    settings: EmbeddingSettings,
) -> dict[str, Any]:
    """Write latents ``[C, T, h, w]`` (scaled, float16) and text states ``[M, D]`` (float16) of every sample.

    vae: on the device that is to do the work. encode_text: texts -> ``[B, M, D]``; None where ``settings.text`` is off.
    models: JSON values that say which models these are; a data set begun with others is refused.
    One sample at a time, so that no value depends on its neighbours. Returns the statistics.
    """
    if settings.text != (encode_text is not None):
        raise ValueError("encode_text must be given exactly when text states are to be stored")
    step = 2 ** (len(vae.config.block_out_channels) - 1)
    if settings.height % step or settings.width % step:
        raise ValueError(f"sizes must be multiples of {step}, got {settings.height}x{settings.width}")
    described = {
        "data": [shard["sha256"] for shard in data.shards],
        "models": dict(models),
        "height": settings.height,
        "width": settings.width,
        "text": settings.text,
        "samples_per_shard": settings.samples_per_shard,
    }
    vae.eval()
    with alone(output / LOCK, f"prepare {output}"):
        writer = ShardWriter(output, described, settings.samples_per_shard)
        if encode_text is not None and settings.null_captions != ("",):  # a finished data set may be given more of them
            _write_null_captions(output, settings.null_captions, encode_text)
        try:
            if not writer.finished:
                if encode_text is not None:
                    (output / UNCONDITIONAL).write_bytes(_npy(_half(encode_text([""])[0])))
                for index in range(writer.next_item, len(data)):
                    _embed_one(writer, data, index, vae, encode_text, settings, step)
                    if (index + 1) % _REPORT_SAMPLES == 0:
                        logger.info("%d of %d samples", index + 1, len(data))
                refuse_empty(output, writer, [])
                writer.finish()
        finally:
            writer.close()
        return write_reports(output, writer, [], len(data), media=data)


@torch.no_grad()
def _write_null_captions(output: Path, captions: tuple[str, ...], encode_text: Callable[[list[str]], Tensor]) -> None:
    states = {str(n): torch.from_numpy(_half(encode_text([caption])[0])) for n, caption in enumerate(captions)}
    write_tensors(output / NULL_CAPTIONS, states, {"captions": json.dumps(captions)})


@torch.no_grad()
def _embed_one(
    writer: ShardWriter,
    data: ShardDataset,
    index: int,
    vae: VidRDAutoencoderKL,
    encode_text: Callable[[list[str]], Tensor] | None,
    settings: EmbeddingSettings,
    step: int,
) -> None:
    sample = data.samples[index]
    height = settings.height or sample.height // step * step
    width = settings.width or sample.width // step * step
    if not height or not width:
        detail = f"{sample.width}x{sample.height}, the autoencoder takes {step} pixels at least"
        writer.add(index, [], {"dropped": vars(Dropped(sample.key, TOO_SMALL, detail))})
        return
    try:
        pixels = data.read(index, None, height, width)["pixels"]
    except BrokenItem as error:
        logger.warning("dropped %s", error)
        writer.add(index, [], {"dropped": vars(Dropped(sample.key, "broken", error.reason))})
        return
    latents = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist.mode()[0] * vae.config.scaling_factor
    members = {"latents.npy": _npy(_half(latents))}
    if encode_text is not None:
        members["text.npy"] = _npy(_half(encode_text([sample.caption])[0]))
    writer.add(index, [Sample(sample.key, members, _info(sample, height, width))])


def _info(sample: SampleInfo, height: int, width: int) -> dict[str, Any]:
    known = {"caption": sample.caption, "kind": sample.kind, "frames": sample.frames, "fps": sample.fps}
    label = {} if sample.label is None else {"label": sample.label}
    return {**known, **label, "height": height, "width": width, "source": sample.key}


def _half(tensor: Tensor) -> np.ndarray:
    array = tensor.detach().float().cpu().numpy().astype(np.float16)
    if not np.isfinite(array).all():
        raise ValueError("the models gave values that float16 cannot hold; use them in float32 or bfloat16")
    return array


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
