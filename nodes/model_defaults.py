"""What suits a VidRD model: its size, frames, steps, guidance, frame rate, negative prompt and way of chaining.

A model folder says it in "defaults" of its ``model_index.json``; where it does not, the released values hold. New nodes
start with these values in the browser (``web/js/widgets.js``), and nodes that run with others far from them say so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..vidrd_core.reuse.presets import PRESETS
from ..vidrd_core.reuse.settings import ReuseSettings, with_current_names
from .words import RELEASED_SCHEDULER, REUSE_PRESETS

PIXELS = 8  # of a latent, in each direction
SCHEDULERS = {"trailing": "simple"}  # diffusers' spacing of timesteps -> ComfyUI's scheduler with the same
FAR = 1.5  # a size or a guidance scale that many times the model's, or as small a part of it, is far from it


@dataclass(frozen=True)
class ModelDefaults:
    """What suits a model; the defaults are the released values.

    Args:
        width, height: pixels.
        frames: of a clip.
        negative: what the negative prompt says; "": nothing is known to help.
        reuse: how its clips are chained.
        chains: whether the model's folder says that itself.
        scheduler: of ComfyUI.
    """

    width: int = 256
    height: int = 256
    frames: int = 8
    steps: int = 50
    cfg: float = 10.0
    fps: float = 4.0
    negative: str = "watermark"
    reuse: ReuseSettings = ReuseSettings()
    chains: bool = False
    scheduler: str = RELEASED_SCHEDULER

    def far_off(self, width: int, height: int, frames: int, steps: int, cfg: float) -> list[str]:
        """Sentences on settings that are far from what the model was trained for or is used with; 0: is not known."""
        found = []
        if width and height and (is_far(width, self.width) or is_far(height, self.height)):
            found.append(
                f"The model was trained at {self.width}x{self.height} pixels, this clip has {width}x{height}: set "
                f"width and height of the empty latent to {self.width} and {self.height}."
            )
        if frames and is_far(frames, self.frames):
            found.append(f"The model was trained on clips of {self.frames} frames, this one has {frames}.")
        if is_far(cfg, self.cfg) and cfg != 1:
            found.append(f"cfg is {cfg:g}, this model is used with {self.cfg:g}.")
        if steps >= 2 * self.steps:
            found.append(f"{steps} steps take {steps / self.steps:.1f} times as long as the usual {self.steps}.")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def is_far(value: float, usual: float) -> bool:
    return not usual / FAR <= value <= usual * FAR


def defaults_of(path: Path) -> ModelDefaults:
    """What suits the model of a folder, or of a checkpoint."""
    known = with_current_names(folder_defaults(path))
    released = ModelDefaults()
    reuse = reuse_of(path)
    size = model_file(path, "unet/config.json").get("sample_size") or (released.height // PIXELS)
    height, width = size if isinstance(size, list) else (size, size)
    return ModelDefaults(
        width * PIXELS,
        height * PIXELS,
        known.get("num_frames", released.frames),
        known.get("num_inference_steps", released.steps),
        known.get("guidance_scale", released.cfg),
        known.get("fps", released.fps),
        known.get("negative_prompt", "" if known else released.negative) or "",
        reuse or released.reuse,
        reuse is not None,
        SCHEDULERS.get(
            str(model_file(path, "scheduler/scheduler_config.json").get("timestep_spacing")), RELEASED_SCHEDULER
        ),
    )


def is_of_wans_kind(path: Path) -> bool:
    """Whether a model folder holds a flow transformer, as diffusers' ``WanPipeline`` does."""
    return (path / "transformer").is_dir()


def sampling_defaults(path: Path) -> dict[str, Any]:
    """What a model folder of Wan's kind says of sampling, under the names of :class:`ModelDefaults`."""
    return renamed(path, num_inference_steps="steps", guidance_scale="cfg", fps="fps", negative_prompt="negative")


def family_defaults(path: Path) -> dict[str, Any]:
    """What a model folder of Wan's kind says in place of its family's: arguments of ``any_model.families.Family``."""
    return renamed(path, num_frames="clip_frames", overlap_frames="overlap_frames", tell_levels="tells_by_default")


def renamed(path: Path, **names: str) -> dict[str, Any]:
    """Those of a model folder's defaults that it names, under other names."""
    known = folder_defaults(path)
    return {name: known[stored] for stored, name in names.items() if stored in known}


def presets() -> dict[str, dict[str, Any]]:
    """The settings of the presets that nodes offer."""
    return {name: asdict(PRESETS[name].reuse) for name in REUSE_PRESETS}


def folder_defaults(path: Path) -> dict[str, Any]:
    """What a model folder says suits its model."""
    return model_file(path, "model_index.json").get("defaults") or {}


def reuse_of(path: Path) -> ReuseSettings | None:
    """How a model folder wants its clips chained; None where it does not say."""
    known = with_current_names(folder_defaults(path))
    chosen = {field.name: known[field.name] for field in fields(ReuseSettings) if field.name in known}
    return ReuseSettings(**chosen) if chosen else None


def model_file(path: Path, name: str) -> dict[str, Any]:
    """A JSON file of a model folder, given the folder or one of its parts; empty where there is none."""
    found = [file for file in (path / name, path.parent / name) if path.is_dir() and file.is_file()]
    return json.loads(found[0].read_text(encoding="utf-8")) if found else {}
