"""Items per second of data preparation, the process pool and Ray one after the other on the same material.

    python benchmarks/preparation.py                       # 64 generated videos, all processor cores
    python benchmarks/preparation.py --videos 200 --workers 4 --height 480 --width 854

Both decode, filter and encode every video; that the clips are the same bytes is checked. The rate includes starting the
engine, so that the more videos, the less the start counts; when the first result came is printed beside it.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Arguments:
    videos: int = 64  # generated for the run
    seconds: float = 4.0  # of each video
    height: int = 256  # pixels of each video
    width: int = 448
    workers: int = 0  # processes; 0: one per processor core


def make_videos(arguments: Arguments, folder: Path) -> None:
    """Videos of drifting, softly shaded noise with captions; their decoding costs about what camera video costs."""
    import cv2
    import numpy as np

    from vidrd_core.video import write_video

    frames = round(arguments.seconds * 24)
    for number in range(arguments.videos):
        random = np.random.default_rng(number)
        rough = random.integers(0, 256, (12, 40, 3), np.uint8)
        canvas = cv2.resize(rough, (arguments.width * 2, arguments.height), interpolation=cv2.INTER_CUBIC)
        canvas = cv2.add(canvas, random.integers(0, 12, canvas.shape, np.uint8))
        steps = np.linspace(0, arguments.width - 1, frames).astype(int)
        clip = np.stack([canvas[:, left : left + arguments.width] for left in steps])
        write_video(folder / f"{number:05d}.mp4", clip, 24.0)
        (folder / f"{number:05d}.txt").write_text(f"drifting colours, number {number}", encoding="utf-8")


def measure(engine: str, arguments: Arguments, folder: Path, output: Path) -> tuple[float, float]:
    """Items per second, the start included, and the seconds until the first result."""
    import functools

    from vidrd_core.data.clips import ClipSettings
    from vidrd_core.data.engines import EngineSettings, run_in_order
    from vidrd_core.data.preparation import PreparationSettings, list_items, prepare_item
    from vidrd_core.data.sources import SourceSettings

    settings = PreparationSettings(
        output=output,
        source=SourceSettings("folder", folder),
        clip=ClipSettings(frames=16, min_frames=1),
        engine=EngineSettings(engine, arguments.workers),
    )
    items, _ = list_items(settings)
    digest = hashlib.sha256()
    began, first = time.perf_counter(), 0.0
    for made in run_in_order(
        functools.partial(prepare_item, settings=settings), list(enumerate(items)), settings.engine
    ):
        first = first or time.perf_counter()
        assert made is not None and made.dropped is None, made
        for sample in made.samples:
            digest.update(sample.members["mp4"])
    rate = len(items) / (time.perf_counter() - began)
    output.write_text(digest.hexdigest(), encoding="utf-8")
    return rate, first - began


def main(arguments: Arguments) -> None:
    if arguments.videos < 1:
        raise SystemExit("error: at least 1 video")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "videos"
        folder.mkdir()
        make_videos(arguments, folder)
        print(f"{arguments.videos} videos of {arguments.seconds:g} s, {arguments.width}x{arguments.height}, 24 fps")
        print(f"{'engine':10}{'items/s':>10}{'first result after':>22}")
        outputs = []
        for engine in ("process", "ray"):
            outputs.append(Path(name) / engine)
            rate, first = measure(engine, arguments, folder, outputs[-1])
            print(f"{engine:10}{rate:>10.2f}{first:>20.1f} s", flush=True)
        same = outputs[0].read_text(encoding="utf-8") == outputs[1].read_text(encoding="utf-8")
        print("the clips are the same bytes" if same else "THE CLIPS DIFFER")
        if not same:
            raise SystemExit(1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(tyro.cli(Arguments))
