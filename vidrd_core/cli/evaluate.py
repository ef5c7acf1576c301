"""``vidrd evaluate``: measure a video's seams, motion and drift."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EVALUATE = """\
Measure how much the seams between a video's clips show: the change from frame to frame, the error along the optical
flow, the motion and its direction, over seams and inside clips, and how colours drift. No weights are needed; with a
CLIP model at hand, CLIP consistency is measured too. Prints a report and draws a chart over time.

The warping error is our own measure, not the published one: the mean absolute difference, in levels of 255, of a frame
and the frame before it moved along the optical flow, over the pixels whose flow back and forth returns within 1 pixel.
It compares seams with the inside of clips, and videos with one another, but not with figures of papers.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("video", metavar="VIDEO", help="any video file, or a folder of PNGs")
    parser.add_argument(
        "--clip-length", type=int, metavar="N", help="frames per clip (what made the video, where the file says so)"
    )
    parser.add_argument(
        "--trim-frames", type=int, metavar="N", help="frames cut from the start of later clips (as the file says, or 0)"
    )
    parser.add_argument("--clip-model", metavar="FOLDER", help="a folder of a transformers CLIPModel")
    parser.add_argument("--prompt", metavar="TEXT", help="with --clip-model: compare the frames with this text")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    parser.add_argument("--chart", metavar="FILE", help="where the chart goes (beside the video: out_seams.png)")
    parser.add_argument("--no-chart", action="store_true", help="draw none")


def evaluate(options: argparse.Namespace) -> int:
    """Measure a video and report."""
    from ..files import write_json
    from ..metrics.anyvideo import evaluate_video
    from ..metrics.charts import draw_report, save
    from ..video.formats import absolute
    from ..video.reading import iterate_video

    path = absolute(options.video)
    if options.prompt and not options.clip_model:
        raise ValueError("--prompt needs --clip-model: it is CLIP that compares frames and texts")
    chart = None if options.no_chart else Path(options.chart or path.with_name(f"{path.stem}_seams.png"))
    if chart is not None and chart.suffix.lower() not in (".png", ".jpg", ".jpeg", ".svg", ".pdf"):
        raise ValueError(f"--chart {chart}: expected a name that ends in .png, .jpg, .svg or .pdf")
    length, trimmed, *layout = clip_layout(path, options.clip_length, options.trim_frames)
    clip: Any = None
    if options.clip_model:
        from ..metrics.detectors import Clip

        clip = Clip(Path(options.clip_model))
    report = evaluate_video(iterate_video(path), length, trimmed, clip, options.prompt, None, *layout)
    sys.stdout.write(f"{options.video}: {report.text()}")
    if options.json:
        write_json(Path(options.json), report.to_json(), indent=None)
    if chart is not None:
        save(draw_report(report), chart)
        sys.stderr.write(f"vidrd: wrote {chart}\n")
    return 0


def clip_layout(
    path: Path, clip_length: int | None, trim_frames: int | None
) -> tuple[int, int, int | None, int | None]:
    """Frames per clip, trimmed frames, frames of the first clip where it is shorter than a whole one, and the clips.

    What the user says, else what the video's metadata says. The first clip is shorter in a video that continues a
    state, where it is trimmed like all others; its metadata has ``first_clip_frames``. How many clips there are is None
    where the metadata do not say it of clips of that length.

    Raises:
        ValueError: neither says how long a clip is.
    """
    from ..video import read_metadata

    metadata = read_metadata(path)
    settings: dict[str, Any] = metadata.get("settings") or {}
    first, clips = metadata.get("first_clip_frames"), metadata.get("clips")
    if clip_length is None:
        clip_length = settings.get("num_frames")
    elif settings.get("num_frames") not in (None, clip_length):
        settings, first, clips = {}, None, None  # the file's own layout belongs to its own clip length
    if clip_length is None:
        raise ValueError(f"{path} does not say how long its clips are; give --clip-length, for example 8")
    if trim_frames is None:
        trim_frames = (settings.get("reuse") or {}).get("trim_frames", 0)
    count = len(clips) if isinstance(clips, list) else None
    return int(clip_length), int(trim_frames or 0), None if first is None else int(first), count
