"""Inputs for what a clip arrives at."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io


def goal_input() -> Any:
    return io.Latent.Input(
        "goal",
        optional=True,
        tooltip=(
            "What the new clip arrives at: an image or a clip (VAE Encode, of the video's size), whose first 2 frames "
            "become the clip's last ones. With an image as prior: in-betweening. Families with several frames per "
            "latent need a clip here and leave its first frame out."
        ),
    )


def loop_input() -> Any:
    return io.Boolean.Input(
        "loop",
        default=False,
        optional=True,
        tooltip=(
            "The last clip arrives at the video's beginning and is cut there, so that the video repeats without a "
            "seam. It is 2 frames (of families with several frames per latent 2 latents) shorter than without, and its "
            "outputs cannot be continued."
        ),
    )
