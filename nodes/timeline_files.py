"""The videos and pictures of a timeline's takes, for its display."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..vidrd_core.files import replacing, write_json
from ..vidrd_core.jobs.takes import TakeFolder
from ..vidrd_core.video import VideoWriter
from ..vidrd_core.video.reading import iterate_video

if TYPE_CHECKING:
    from torch import Tensor

POSTER_SIDE = 256  # pixels of the longer side
POSTER_QUALITY = 85


def as_array(frames: Tensor) -> np.ndarray:
    """Frames ``[T, H, W, 3]`` in 0 to 1 as uint8."""
    return (frames.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()


def write_take_video(frames: Tensor, takes: TakeFolder, take: str, fps: float) -> None:
    """The video that a take's card plays, and a picture from its middle."""
    pixels = as_array(frames)
    with VideoWriter(takes.file(take, ".mp4"), Fraction(fps).limit_denominator(1000)) as writer:
        writer.write(pixels)
    picture = Image.fromarray(pixels[len(pixels) // 2])
    picture.thumbnail((POSTER_SIDE, POSTER_SIDE))
    with replacing(takes.file(take, ".jpg"), keep_suffix=True) as partial:
        picture.save(partial, quality=POSTER_QUALITY)


def video_name(takes: Sequence[str], fps: float, is_loop: bool = False) -> str:
    """The name of the video that some takes are joined to."""
    made_of = [*takes, float(fps), *(["loop"] if is_loop else [])]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def write_video_of(
    images: Tensor, folder: TakeFolder, takes: Sequence[str], seams: Sequence[int], fps: float, is_loop: bool
) -> None:
    """The joined video, where it is not there yet.

    Args:
        images: ``[T, H, W, 3]`` in 0 to 1.
        seams: the first frame of every clip but the first.
        is_loop: whether it was cut where it repeats its beginning.
    """
    name = video_name(takes, fps, is_loop)
    path = folder.video_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not folder.video(name):
        # Processes that join the same takes at once write apart; whoever ends last replaces an equal file.
        own = path.with_name(f"{name}.{uuid.uuid4().hex[:8]}.mp4")
        try:
            with VideoWriter(own, Fraction(fps).limit_denominator(1000)) as writer:
                writer.write(as_array(images))
            os.replace(own, path)
        finally:
            own.unlink(missing_ok=True)
    folder.finish_video(name, {"takes": [*takes], "seams": [*seams], "frames": len(images), "fps": fps})


def seam_figures(folder: TakeFolder, name: str) -> dict[str, Any]:
    """How much each seam of a joined video shows, by Seam Report's measurements; kept beside the video.

    Returns:
        "seams": for each its first frame, the "change" from frame to frame and the "warping" error there, in 0 to 255,
        and the "agreement" of the motion before and after it, -1 to 1 (None where nothing moves); "inside": the means
        of change and warping error inside the clips.

    Raises:
        ValueError: the video is not there.
    """
    from ..vidrd_core.metrics.anyvideo import evaluate_video

    video = folder.video(name)
    if not video:
        raise ValueError("the joined video is not there any more: queue the timeline to join it again")
    path = folder.video_file(name)
    kept = path.with_suffix(".seams")
    try:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass
    seams = [seam for seam in video["seams"] if 0 < seam < video["frames"]]
    report = evaluate_video(iterate_video(path), video["frames"], first_clip=seams[0] if seams else None)
    report.seams = seams
    figures = report.figures()
    found = {
        "seams": [
            {
                "frame": seam,
                "change": report.change[seam - 1],
                "warping": report.warping_error[seam - 1],
                "agreement": report.agreement[seam - 1],
            }
            for seam in seams
        ],
        "inside": {
            "change": figures["change from frame to frame, inside clips"],
            "warping": figures["warping error, inside clips"],
        },
        "report": report.text(),
    }
    write_json(kept, found)
    return found
