"""Named settings that the pipeline, the command line and the nodes share, and the samplers by their short names.

A preset says how clips are made and chained. What belongs to a model, such as its guidance scale, its frame rate and
its negative prompt, stays the model's. Needs no torch: the command line lists presets before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .settings import ReuseSettings

SCHEDULERS = {  # short name -> diffusers' class
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
}


@dataclass(frozen=True)
class Preset:
    """Settings under a name.

    Args:
        summary: what it is for, one line.
        reuse: how clips reuse one another.
        num_inference_steps: S, per clip; None: what suits the model.
        scheduler: a name of :data:`SCHEDULERS`.
        scheduler_options: what differs from the model's own noise schedule, for example ``timestep_spacing``.
        guidance_rescale: as in :class:`vidrd_core.sampling.settings.SamplingSettings`.
    """

    summary: str
    reuse: ReuseSettings = ReuseSettings()
    num_inference_steps: int | None = 50
    scheduler: str = "ddim"
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler is {self.scheduler!r}; expected one of {', '.join(SCHEDULERS)}")

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers, under the names that a model folder's "defaults" use."""
        steps = {} if self.num_inference_steps is None else {"num_inference_steps": self.num_inference_steps}
        return {**steps, "guidance_rescale": self.guidance_rescale, **asdict(self.reuse)}


# The row "smooth" of docs/evaluation.md. Overlap 5, not 4: the step over a seam is then within a tenth of the others.
SMOOTH = Preset(
    "the best chaining measured: the last frames repeated in their own order, nearly clean, and trimmed",
    ReuseSettings(
        overlap_frames=5,
        noise_alpha=0.0,
        guidance_beta=1.0,
        order="forward",
        trim_frames=5,
        stages="uniform",
        cleaner_overlap=0.8,
    ),
    num_inference_steps=None,
)
FAST = "fast"
FEW_STEPS = "few_steps"  # within a model folder: a LoRA that samples in few steps, with defaults of its own
PRESETS: dict[str, Preset] = {
    "paper": Preset("the released values: 50 steps of DDIM, overlap 4, alpha 4, beta 0.4, reversed order"),
    "smooth": SMOOTH,
    # Of a model folder with a folder FEW_STEPS: the LoRA and the settings there. Of another one 10 steps of Euler,
    # which lose nothing measurable against 50 of DDIM: "Fewer steps" in benchmarks/README.md.
    FAST: replace(
        SMOOTH,
        summary="smooth in few steps: by the model's own LoRA for that where there is one, else in 10 of Euler",
        num_inference_steps=10,
        scheduler="euler",
    ),
}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: there is none of that name; the message lists them.
    """
    if name not in PRESETS:
        raise ValueError(f"{name!r} is no preset; known are: {', '.join(PRESETS)}")
    return PRESETS[name]
