"""Raw material for the tests of data preparation: small videos and images, good ones and damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vidrd_core.data.clips import ClipSettings
from vidrd_core.data.filters import FilterSettings
from vidrd_core.data.preparation import PreparationSettings
from vidrd_core.data.sources import SourceSettings
from vidrd_core.shapes.scenes import draw_scene, render
from vidrd_core.video import to_uint8, write_video

CLIP = ClipSettings(fps=8.0, frames=8, min_frames=4, height=48, width=48, image_side=48)
FILTERS = FilterSettings(min_side=32)


def moving_shapes(seed: int, frames: int) -> np.ndarray:
    """A scene of the moving-shapes data set, uint8 ``[T, 64, 64, 3]``."""
    return to_uint8(render([draw_scene(torch.Generator().manual_seed(seed), "train")], frames))


def video(path: Path, seed: int = 0, frames: int = 12, fps: float = 8.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, moving_shapes(seed, frames), fps, quality=9)
    return path


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(moving_shapes(seed, 1)[0]).save(path)
    return path


def caption(path: Path, text: str) -> Path:
    """Write the sidecar caption of a media file."""
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def folder_of_videos(root: Path, count: int) -> Path:
    for number in range(count):
        caption(video(root / f"clip{number}.mp4", seed=number), f"a clip, number {number}")
    return root


def folder_of_traps(root: Path) -> dict[str, str]:
    """Files that each break a naive preparation, among two good ones; gives the reason each must be dropped for."""
    good = caption(video(root / "good.mp4"), "a good video")
    caption(image(root / "good_image.png"), "a good image")
    whole = good.read_bytes()
    (root / "truncated.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "empty.mp4").write_bytes(b"")
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.mp4").write_text("this is no video\n", encoding="utf-8")
    (root / "video.jpg").write_bytes(whole)
    (root / "picture.mp4").write_bytes(image(root / "picture_image.png").read_bytes())
    Image.new("RGB", (1, 1), "white").save(root / "one_pixel.png")
    caption(image(root / "long.png"), "very long " * 1000)
    for name in ("truncated.mp4", "empty.mp4", "empty.jpg", "text.mp4", "video.jpg", "picture.mp4", "one_pixel.png"):
        stem = name.replace(".", "_")
        (root / name).rename(root / f"{stem}{Path(name).suffix}")
        caption(root / f"{stem}{Path(name).suffix}", "a trap")
    image(root / "latin.png")
    (root / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (root / "alone.txt").write_text("no video for this", encoding="utf-8")
    return {
        "truncated_mp4.mp4": "broken",
        "empty_mp4.mp4": "broken",
        "empty_jpg.jpg": "broken",
        "text_mp4.mp4": "broken",
        "video_jpg.jpg": "broken",
        "picture_mp4.mp4": "too short",
        "one_pixel_png.png": "too small",
        "long.png": "caption too long",
        "latin.png": "caption is not UTF-8",
        "alone.txt": "missing file",
        "picture_image.png": "no caption",
    }


def preparation(root: Path, output: Path, **changes: object) -> PreparationSettings:
    known = {"source": SourceSettings("folder", root), "clip": CLIP, "filters": FILTERS, "samples_per_shard": 2}
    return PreparationSettings(output=output, **{**known, **changes})  # type: ignore[arg-type]
