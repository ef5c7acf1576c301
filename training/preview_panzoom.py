"""A sample sheet of images turned into video by pan and zoom: one row per image, frames from left to right.

python training/preview_panzoom.py --images photos --output panzoom.png
python training/preview_panzoom.py --images photos --output panzoom.png --settings.max-speed 0.08 --video panzoom.mp4
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from einops import rearrange

from vidrd_core.data.media import decode_image
from vidrd_core.data.panzoom import PanZoomSettings, pan_and_zoom
from vidrd_core.data.sources import IMAGE_EXTENSIONS
from vidrd_core.video import contact_sheet, to_uint8, write_video

logger = logging.getLogger("preview_panzoom")


@dataclass(frozen=True)
class Arguments:
    images: Path  # folder of images
    output: Path  # PNG to write
    video: Path | None = None  # also write all of it as one video, to judge the smoothness
    count: int = 8  # images to show
    num_frames: int = 8
    size: tuple[int, int] = (256, 256)  # height and width in pixels
    fps: float = 8.0  # of the video
    seed: int = 0
    settings: PanZoomSettings = field(default_factory=PanZoomSettings)


def preview(arguments: Arguments) -> None:
    if not arguments.images.is_dir():
        raise SystemExit(f"error: {arguments.images}: no such folder")
    clips: list[np.ndarray] = []
    names: list[str] = []
    for path in sorted(p for p in arguments.images.rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS):
        if len(clips) == arguments.count:
            break
        try:
            pixels = torch.from_numpy(decode_image(path.read_bytes()))
            batch = rearrange(pixels, "h w c -> 1 c h w").float() / 127.5 - 1
            generator = torch.Generator().manual_seed(arguments.seed + len(clips))
            video = pan_and_zoom(batch, arguments.num_frames, arguments.size, generator, arguments.settings)
        except (OSError, ValueError) as error:
            logger.warning("skipped %s: %s", path, error)
            continue
        clips.append(to_uint8(video))
        names.append(path.name)
    if not clips:
        raise SystemExit(
            f"error: {arguments.images}: no image of at least {arguments.size[1]}x{arguments.size[0]} pixels"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(clips, names).save(arguments.output)
    logger.info("%d images: %s", len(clips), arguments.output)
    if arguments.video is not None:
        write_video(arguments.video, np.concatenate(clips), fps=arguments.fps)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    preview(tyro.cli(Arguments))
