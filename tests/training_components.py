"""Tiny real models, data and settings that the training tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from components import tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae

from vidrd_core.data.media import encode_image, encode_mp4
from vidrd_core.data.shards import Sample, ShardWriter
from vidrd_core.shapes.scenes import draw_scene, render
from vidrd_core.train.objective import UNetObjective
from vidrd_core.train.settings import TrainSettings
from vidrd_core.train.sources import DataSettings, ShardSource
from vidrd_core.train.unet import UNetTask
from vidrd_core.video import to_uint8

SMALL = DataSettings(sizes=((32, 32), (24, 40)), frames=(2, 4), workers=2)


def settings(run: Path, **changes: Any) -> TrainSettings:
    known: dict[str, Any] = {"samples": 8, "batch_size": 2, "warmup_samples": 4, "log_samples": 2, "save_samples": 2}
    return TrainSettings(run=run, **{**known, "tensorboard": False, **changes})


def shard_folder(
    folder: Path, videos: int = 4, images: int = 0, sizes: tuple[tuple[int, int], ...] = ((48, 48),)
) -> Path:
    """A prepared data set of clips of moving shapes, 6 frames each; sizes (height, width) take turns."""
    writer = ShardWriter(folder, {"seed": 1}, samples_per_shard=3)
    for item in range(videos + images):
        height, width = sizes[item % len(sizes)]
        scene = draw_scene(torch.Generator().manual_seed(item))
        frames = to_uint8(render([scene], 6 if item < videos else 1))[:, :height, :width]
        kind = "video" if item < videos else "image"
        member = (
            {"mp4": encode_mp4(frames, 8.0, 9.0)} if kind == "video" else {"png": encode_image(frames[0], "png", 9.0)}
        )
        info = {"caption": scene.caption, "kind": kind, "width": width, "height": height, "frames": len(frames)}
        writer.add(item, [Sample(f"{kind}-{item:04d}", member, {**info, "fps": 8.0, "source": "made"})])
    writer.finish()
    return folder


def unet_task(
    tmp_path: Path, shards: Path, data: DataSettings = SMALL, batch_size: int = 2, seed: int = 0, **objective: Any
) -> UNetTask:
    """The whole of a tiny text-to-video model in training on the pixels of a data set."""
    made = UNetObjective(**{"num_frames": 4, "temp_conv_dropout": 0.0, **objective})
    source = ShardSource([shards], data, batch_size, seed, made.image_share, made.images_per_clip)
    encoder = tiny_text_encoder().requires_grad_(False)
    return UNetTask(tiny_unet(), encoder, tiny_tokenizer(tmp_path / "tokenizer"), source, made, vae=tiny_vae())
