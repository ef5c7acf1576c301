"""``--start-image``, ``--end-image``, ``--loop``, ``vidrd bridge``: videos whose first or last frames are given."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .inputs import read_prompts, repeat_last, sampling_settings
from .loading import fps_of, load
from .outputs import check_outputs
from .running import start

if TYPE_CHECKING:
    import numpy as np

    from ..pipeline import VidRDPipeline
    from ..reuse.goal import Goals
    from ..sampling.settings import SamplingSettings

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
BRIDGE_PRESET = "smooth"  # where nothing else is said: of bridges of several clips


def check_given(options: argparse.Namespace) -> None:
    """Raise ``ValueError`` for goals that are missing or do not go together, before a model is loaded."""
    if options.loop and options.end_image:
        raise ValueError("--loop ends the video where it begins, so it does not go with --end-image: leave out one")
    for name in ("start_image", "end_image"):
        path = getattr(options, name)
        if path is not None and not Path(path).exists():
            raise ValueError(f"--{name.replace('_', '-')} {path} does not exist; expected an image or a video")


def goals_of(options: argparse.Namespace, pipe: VidRDPipeline, sampling: SamplingSettings) -> Goals:
    """The goals that the options of ``generate`` ask for."""
    from ..reuse.goal import GoalSettings

    start, end = options.start_image, options.end_image
    given = (
        None if start is None else read_frames(start, last=GoalSettings.start_frames),
        None if end is None else read_frames(end, first=GoalSettings.frames),
    )
    return pipe.make_goals(sampling, *given, loop=options.loop)


def read_frames(path: str, first: int | None = None, last: int | None = None) -> np.ndarray:
    """The first or the last frames of a video, or an image as the only one: uint8 ``[T, H, W, 3]``.

    Raises:
        ValueError: it cannot be read.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from ..video.reading import iterate_video

    if Path(path).suffix.lower() in PICTURES:
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))[None]
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is no image that can be read ({error})") from error
    frames = iterate_video(path)
    return np.stack(list(islice(frames, first)) if last is None else list(deque(frames, maxlen=last)))


def bridge(options: argparse.Namespace) -> int:
    """Join two videos by clips that begin as the one ends and end as the other begins."""
    from ..jobs.folder import JobFolder, default_folder
    from ..jobs.job import Plan
    from ..reuse.goal import GoalSettings
    from ..video.reading import read_rate

    prompts = read_prompts(options.prompt, options.prompts)
    prompts = repeat_last(prompts, options.clips or max(1, len(prompts)))
    for name, path in (("A", options.first), ("B", options.second)):
        if not Path(path).exists():
            raise ValueError(f"{name} is {path}, which does not exist; expected a video or a folder of PNGs")
        if Path(options.output).absolute() == Path(path).absolute():
            raise ValueError(f"--output {options.output} would replace {name}; choose another name")
    check_outputs(options)
    options.preset = options.preset or BRIDGE_PRESET
    settings = GoalSettings()
    given = read_frames(options.first, last=settings.start_frames), read_frames(options.second, first=settings.frames)
    folder = JobFolder(options.state or default_folder(options.output))
    pipe, defaults = load(options)
    rate = read_rate(options.first)
    fps = fps_of(options, defaults if rate is None else {**defaults, "fps": rate})
    sampling = sampling_settings(options, defaults, pipe)
    goals = pipe.make_goals(sampling, *given, joins=True)
    plan = Plan(prompts, sampling, options.seed, dict(options.clip_seed), goals=goals)
    size = sampling.height, sampling.width
    return start(pipe, folder, plan, options, fps, (resized(options.first, *size), resized(options.second, *size)))


def resized(path: str, height: int, width: int) -> Iterator[Any]:
    """The frames of a video, uint8 ``[1, H, W, 3]``, as the bridge's are."""
    from ..sampling.images import pixels_of
    from ..video import to_uint8
    from ..video.reading import iterate_video

    for frame in iterate_video(path):
        yield frame[None] if frame.shape[:2] == (height, width) else to_uint8(pixels_of(frame, height, width))
