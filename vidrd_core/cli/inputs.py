"""Prompts and sampling settings as they come from a command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reuse.presets import PRESETS, find_preset
from ..reuse.settings import ReuseSettings

if TYPE_CHECKING:
    from ..pipeline import VidRDPipeline
    from ..sampling.settings import SamplingSettings

DEFAULT_CLIPS = 4
# Where neither the command line, a preset nor the model folder says anything: the released values.
RELEASED: dict[str, Any] = {
    "fps": 4.0,
    "num_frames": 8,
    "guidance_scale": 10.0,
    "negative_prompt": "watermark",
    **PRESETS["paper"].settings,
}


def read_prompts(given: Sequence[str] | None, file: str | None, required: bool = True) -> list[str]:
    """Prompts of ``--prompt`` and ``--prompts``.

    A file holds one prompt per line; one with blank lines between text holds one per paragraph. Lines that begin with
    ``#`` are left out. "-" is the standard input.
    """
    if given and file:
        raise ValueError("both --prompt and --prompts were given; use one of them")
    prompts = [text.strip() for text in given or ()]
    if file:
        lines = [line.strip() for line in _read_text(file).splitlines() if not line.lstrip().startswith("#")]
        paragraphs = [p for p in "\n".join(lines).strip().split("\n\n") if p.strip()]
        prompts = [" ".join(p.split()) for p in paragraphs] if len(paragraphs) > 1 else [ln for ln in lines if ln]
        if not prompts:
            raise ValueError(f"{file} holds no prompt; write one per line")
    if required and not prompts:
        raise ValueError("no prompt was given; use --prompt TEXT or --prompts FILE")
    return prompts


def read_videos(file: str, clips: int | None, default_clips: int) -> list[list[str]]:
    """The videos of ``--videos``: for each the prompts of its clips.

    A file holds one video per line; ``|`` stands between the prompts of its clips, of which the last repeats up to
    ``clips`` (without which a line of one prompt gives ``default_clips``, one of several as many as it has). Empty
    lines and those that begin with ``#`` are left out. "-" is the standard input.
    """
    lines = [
        line.strip() for line in _read_text(file).splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    videos = []
    for number, line in enumerate(lines, 1):
        prompts = [prompt.strip() for prompt in line.split("|")]
        if not all(prompts):
            raise ValueError(
                f"{file}, video {number}: {line!r} has an empty prompt; write text on both sides of each |"
            )
        videos.append(repeat_last(prompts, clips or (len(prompts) if len(prompts) > 1 else default_clips)))
    if not videos:
        raise ValueError(f"{file} holds no video; write one per line")
    return videos


def _read_text(file: str) -> str:
    """A text file's content, or the standard input's where ``file`` is "-"."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        name = "the standard input" if file == "-" else file
        raise ValueError(f"{name} is not UTF-8 text (at byte {error.start}); save it as UTF-8") from error


def check_clip_seeds(clip_seeds: Mapping[int, int], number: int) -> None:
    """Raise ``ValueError`` for the seed of a clip that a video of ``number`` clips does not have."""
    for clip, seed in clip_seeds.items():
        if not 0 <= clip < number:
            raise ValueError(
                f"--clip-seed {clip}={seed}: the video has the clips 0 to {number - 1}; "
                "name one of them or raise --clips"
            )


def repeat_last(prompts: Sequence[str], number: int) -> list[str]:
    """One prompt per clip; the last repeats."""
    if len(prompts) > number:
        raise ValueError(f"{len(prompts)} prompts were given for {number} clips; raise --clips or drop prompts")
    return [prompts[min(n, len(prompts) - 1)] for n in range(number)]


def sampling_settings(options: argparse.Namespace, defaults: dict[str, Any], pipe: VidRDPipeline) -> SamplingSettings:
    from ..sampling.settings import ALWAYS, SamplingSettings

    preset = find_preset(options.preset).settings if options.preset else {}
    known = {**RELEASED, **defaults, **preset}

    def chosen(name: str) -> Any:
        given = getattr(options, name)
        return known[name] if given is None else given

    num_frames = chosen("num_frames")
    names = [field.name for field in fields(ReuseSettings)]
    # Defaults, unlike choices, give way to short clips, and the trim to a shorter overlap.
    reuse = ReuseSettings(**{name: chosen(name) for name in names}).fitted(num_frames)
    reuse = replace(reuse, **{name: value for name in names if (value := getattr(options, name)) is not None})
    return SamplingSettings(
        num_frames=num_frames,
        height=pipe.default_size if options.height is None else options.height,
        width=pipe.default_size if options.width is None else options.width,
        num_inference_steps=chosen("num_inference_steps"),
        guidance_scale=chosen("guidance_scale"),
        reuse=reuse,
        negative_prompt=chosen("negative_prompt"),
        guidance_rescale=chosen("guidance_rescale"),
        guidance_interval=options.guidance_interval or ALWAYS,
    )
