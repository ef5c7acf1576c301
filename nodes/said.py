"""What a node shows of its run in the browser: the video's length, what was taken of the model, what is far from it.

The line goes to the frontend as the node's UI output ``vidrd``, one JSON text, which ``web/js/widgets.js`` shows below
the node's widgets. Warnings go to ComfyUI's log too, for graphs that run without a browser.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from ..vidrd_core.reuse.settings import ReuseSettings
from .any_model.families import Family
from .model_defaults import PIXELS
from .words import CUSTOM

logger = logging.getLogger(__name__)


def ran(
    latents: int,
    added: int | None,
    family: Family,
    settings: ReuseSettings | None = None,
    preset: str = CUSTOM,
    report: str = "",
    warnings: list[str] | None = None,
) -> dict[str, list[str]]:
    """The UI output of a node that made clips.

    Args:
        latents: of the video so far.
        added: those of them that are new; None: all.
        settings: that the clips were chained with, frames in latents; None: there was nothing to chain.
        preset: the node's, which ``settings`` came from.
        warnings: of :func:`warn`.
    """
    layout = family.layout
    frames = layout.num_frames(latents)
    told = {
        "frames": frames,
        "added": frames if added is None else layout.num_added(latents, latents - added),
        "took": "" if settings is None or preset == CUSTOM else took(preset, settings, family),
        "report": report,
        "warnings": warnings or [],
    }
    return {"vidrd": [json.dumps(told)]}


def took(preset: str, settings: ReuseSettings, family: Family) -> str:
    """What a preset came to, in the words of the widgets."""
    each = family.layout.frames_per_latent
    values = [
        f"overlap_frames {settings.overlap_frames * each}",
        f"noise_alpha {settings.noise_alpha:g}",
        f"guidance_beta {settings.guidance_beta:g}",
        f"order {settings.order}",
        f"trim_frames {settings.trim_frames * each}",
        f"stages {settings.stages}",
        f"cleaner_overlap {settings.cleaner_overlap:g}",
    ]
    return f"{preset} took {', '.join(values)}"


def warn(model: Any, samples: Any, steps: int, cfg: float) -> list[str]:
    """Sentences on what is far from what a VidRD model was trained for, which are logged too.

    Args:
        samples: latents ``[B, C, T, h, w]`` of the clip's size; None: the size is not this node's to choose.
        steps: 0: not this node's to choose.
    """
    known = getattr(model.model, "defaults", None)
    if known is None:
        return []
    frames, height, width = (0, 0, 0) if samples is None else samples.shape[2:]
    found = known.far_off(width * PIXELS, height * PIXELS, frames, steps, cfg)
    for sentence in found:
        logger.warning("%s", sentence)
    return found
