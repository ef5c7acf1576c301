"""Which model a command means, and loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reuse.presets import FEW_STEPS
from ..reuse.settings import with_current_names
from .inputs import RELEASED

if TYPE_CHECKING:
    from ..pipeline import VidRDPipeline
    from ..runtime.memory import MemoryOptions

DEMO, DEMO_FEW_STEPS = "demo", "demo-few-steps"  # names of the bundled model, and of its LoRA for few steps
DEMO_FOLDER = Path(__file__).parent.parent / "demo_model"
BUNDLED = {DEMO: DEMO_FOLDER, DEMO_FEW_STEPS: DEMO_FOLDER / FEW_STEPS}
DEMO_FPS = 8.0


def load_pipeline(
    model: str,
    base: str | None = None,
    vae: str | None = None,
    scheduler: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    scheduler_options: Mapping[str, Any] | None = None,
    memory: MemoryOptions | None = None,
    background_decoding: bool = False,
    compile_mode: str | None = None,
) -> tuple[VidRDPipeline, dict[str, Any]]:
    """A pipeline from a model folder, a checkpoint or the bundled model, and the defaults its folder names.

    Args:
        scheduler: a short name; None keeps the model's own.
        scheduler_options: settings of it that differ from the model's noise schedule.
        memory: what to trade for memory on the device; None: nothing.
        background_decoding: decode a clip while the next one is sampled.
        compile_mode: of :func:`vidrd_core.runtime.compiling.compile_unet`; None: not compiled.

    Raises:
        ValueError: something cannot be loaded or does not fit; the message says what to do.
    """
    import torch

    from ..checkpoints import load_pipeline_parts
    from ..pipeline import VidRDPipeline
    from ..runtime.allocator import keep_freed_memory
    from ..runtime.compiling import compile_unet
    from ..runtime.memory import save_memory

    chosen = default_device() if device == "auto" else device
    if dtype == "auto":
        dtype = "float16" if chosen.startswith("cuda") else "float32"
    path = model_path(model)
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {chosen} cannot be used here ({error}); use --device cpu or auto") from error
    keep_freed_memory(chosen)
    first_device = chosen if memory is None else "cpu"
    parts = load_pipeline_parts(path, base, vae=vae, dtype=getattr(torch, dtype), device=first_device)
    if scheduler is not None:
        from ..sampling.schedulers import make_scheduler

        parts["scheduler"] = make_scheduler(scheduler, parts["scheduler"].config, scheduler_options)
    defaults = read_defaults(path)
    if model == DEMO:
        defaults.setdefault("fps", DEMO_FPS)
    pipe = VidRDPipeline(**parts, defaults=defaults)
    pipe.background_decoding = background_decoding
    if memory is not None:
        save_memory(pipe, memory, chosen)
    if compile_mode is not None:
        compile_unet(pipe, compile_mode)
    return pipe, defaults


def read_defaults(path: Path) -> dict[str, Any]:
    """What a model folder's ``model_index.json`` names under "defaults"."""
    index = path / "model_index.json"
    if not index.is_file():
        return {}
    try:
        stored = json.loads(index.read_text(encoding="utf-8")).get("defaults") or {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not readable JSON ({error}): download it again") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{index}: defaults is {stored!r:.60}; expected settings by name, of {', '.join(RELEASED)}")
    defaults = with_current_names(stored)
    unknown = sorted(set(defaults) - set(RELEASED))
    if unknown:
        raise ValueError(f"{index}: unknown defaults {', '.join(unknown)}; known are {', '.join(RELEASED)}")
    return defaults


def default_device() -> str:
    """The best device here."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def few_steps_of(model: str) -> str | None:
    """The name of the model folder's LoRA for few steps, which loads as a model; None where it has none."""
    if model == DEMO:
        return DEMO_FEW_STEPS if (BUNDLED[DEMO_FEW_STEPS] / "model_index.json").is_file() else None
    folder = Path(model) / FEW_STEPS
    return str(folder) if (folder / "model_index.json").is_file() else None


def model_path(name: str) -> Path:
    """The path of a model, given its path or the name of a bundled one."""
    if name not in BUNDLED:
        return Path(name)
    if not (BUNDLED[name] / "model_index.json").is_file():
        raise FileNotFoundError(f"the bundled model is not installed ({BUNDLED[name]} is missing): name a model folder")
    return BUNDLED[name]
