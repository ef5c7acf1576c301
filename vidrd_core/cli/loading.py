"""Which model, scheduler, precision and frame rate a command uses: its options', or those that made the video."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reuse.presets import FAST, find_preset
from .inputs import RELEASED
from .models import BUNDLED, few_steps_of, load_pipeline

if TYPE_CHECKING:
    from ..pipeline import VidRDPipeline
    from ..sampling.state import VideoState

SCHEDULER_OF_SIGMAS = "euler"  # follows noise levels that a state stores, as those of ComfyUI do


def load(
    options: argparse.Namespace, loading: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> tuple[VidRDPipeline, dict[str, Any]]:
    """The pipeline that the options ask for, and its model's defaults.

    Args:
        loading: model, scheduler and so on, as :func:`loading_of_state` gives them; None: the options'.
        settings: of the state folder that is extended.
    """
    from ..runtime.memory import MemoryOptions

    made = (settings or {}).get("made", {})
    storage = options.storage or ("fp8" if "storage" in made else "same")
    memory = MemoryOptions(options.offload, storage, options.split_guidance)
    pipe, defaults = load_pipeline(
        **(loading_of_options(options) if loading is None else loading),
        dtype=_dtype_of(options, settings or {}),
        device=options.device,
        memory=None if memory == MemoryOptions() else memory,
        background_decoding=options.background_decoding,
        compile_mode=options.compile_mode,
    )
    return pipe, defaults


def loading_of_options(options: argparse.Namespace) -> dict[str, Any]:
    """Model and scheduler of ``generate``'s options; --scheduler goes before the preset's scheduler.

    The preset for few steps becomes the model's own LoRA for that, where there is one.
    """
    few_steps = few_steps_of(options.model) if options.preset == FAST and options.scheduler is None else None
    if few_steps is not None:
        options.model, options.preset = few_steps, None
    chosen: dict[str, Any] = {"scheduler": options.scheduler}
    if options.preset and options.scheduler is None:
        preset = find_preset(options.preset)
        chosen = {"scheduler": preset.scheduler, "scheduler_options": dict(preset.scheduler_options) or None}
    return {"model": options.model, "base": options.base, "vae": options.vae, **chosen}


def _dtype_of(options: argparse.Namespace, settings: dict[str, Any]) -> str:
    return settings["made"]["dtype"] if options.dtype == "auto" and "made" in settings else options.dtype


def loading_of_state(
    options: argparse.Namespace, source: Path, settings: dict[str, Any], state: VideoState | None = None
) -> dict[str, Any]:
    """Which model, scheduler and so on continue a video: those that made it, unless the command names others.

    Args:
        source: the state folder or state file that is extended; for the message.
        settings: of the state folder.
        state: of the state file.

    Raises:
        ValueError: neither the command nor the folder names a model.
    """
    loading = dict(settings.get("loading") or {})
    if options.model is not None:
        loading.update(model=options.model, base=options.base, vae=options.vae)
    if options.scheduler is not None:
        loading.update(scheduler=options.scheduler, scheduler_options=None)
    elif state is not None and state.sampling.sigmas is not None and not loading.get("scheduler"):
        loading.update(scheduler=SCHEDULER_OF_SIGMAS)
    if not loading.get("model"):
        raise ValueError(f"{source} does not say which model made it; name it with --model")
    options.model = loading["model"]
    return absolute(loading)


def stored_fps(settings: dict[str, Any]) -> dict[str, float]:
    """The frame rate of a state folder, where it has one."""
    return {"fps": settings["fps"]} if "fps" in settings else {}


def absolute(loading: dict[str, Any]) -> dict[str, Any]:
    """Paths that still hold when the command is called from another folder."""
    kept = {k: v for k, v in loading.items() if v is not None}
    return {k: v if k not in ("model", "base", "vae") or v in BUNDLED else os.path.abspath(v) for k, v in kept.items()}


def fps_of(options: argparse.Namespace, defaults: dict[str, Any]) -> float:
    """Frames per second: the option, else the model's default, else the released value."""
    return float(options.fps if options.fps is not None else {**RELEASED, **defaults}["fps"])
