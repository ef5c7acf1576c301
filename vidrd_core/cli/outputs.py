"""What a command writes beside the video, and where: checked before the long work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def check_outputs(options: argparse.Namespace) -> None:
    """Find out before the long work whether the video and the contact sheet can be written.

    Raises:
        ValueError: one of them cannot be; the message says what to do.
    """
    from ..video import probe_output

    _check_frame_folder_is_left_alone(options)
    probe_output(options.output, fps=options.fps)
    if options.contact_sheet is not None:
        _check_contact_sheet(Path(options.contact_sheet))


def save_image(image: Any, path: Path) -> None:
    """Write a picture so that ``path`` holds the old or the whole new one at any moment."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    image.save(partial)
    os.replace(partial, path)


def _check_frame_folder_is_left_alone(options: argparse.Namespace) -> None:
    """A folder of PNGs is replaced as a whole, hence nothing else may be in it."""
    output = Path(os.path.abspath(options.output))
    if output.suffix:
        return
    for name, given in (("--contact-sheet", options.contact_sheet), ("--state", options.state)):
        if given is not None and Path(os.path.abspath(given)).is_relative_to(output):
            raise ValueError(
                f"{name} {given} is inside --output {options.output}, a folder that is to hold PNGs and nothing else; "
                "choose a place outside it"
            )


def _check_contact_sheet(path: Path) -> None:
    from ..video.formats import VideoError, absolute, check_writable

    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"--contact-sheet {path}: expected a name that ends in .png, .jpg or .webp")
    if path.is_dir():
        raise ValueError(f"--contact-sheet {path} is a folder; add a file name")
    try:
        check_writable(absolute(path))
    except VideoError as error:
        raise ValueError(f"--contact-sheet {error}") from error
