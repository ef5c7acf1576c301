"""Named settings that the pipeline, the command line and the nodes share, and the samplers by their short names.

A preset says how clips are made and chained. What belongs to a model, such as its guidance scale, its frame rate and
its negative prompt, stays the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reuse import ReuseSettings

SCHEDULERS = {  # short name -> diffusers' class
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
}

# Fields of ReuseSettings, by name: the command line lists presets before torch is imported.
REUSE_FIELDS = (
    "overlap_frames", "noise_alpha", "guidance_beta", "order", "trim_frames", "stages", "guidance_lead",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """Settings under a name.

    Args:
        summary: what it is for, one line.
        num_inference_steps: S, per clip; None: what suits the model.
        scheduler: a name of :data:`SCHEDULERS`.
        scheduler_options: what differs from the model's own noise schedule, for example ``timestep_spacing``.
        overlap_frames, noise_alpha, guidance_beta, order, trim_frames, stages, guidance_lead: as in
            :class:`vidrd_core.ReuseSettings`.
        guidance_rescale: as in :class:`vidrd_core.state.SamplingSettings`.
    """

    summary: str
    num_inference_steps: int | None = 50
    scheduler: str = "ddim"
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    overlap_frames: int = 4
    noise_alpha: float = 4.0
    guidance_beta: float = 0.4
    order: str = "reverse"
    trim_frames: int = 0
    stages: str = "linear"
    guidance_lead: float = 0.0
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler is {self.scheduler!r}; expected one of {', '.join(SCHEDULERS)}")

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers, under the names that a model folder's "defaults" use."""
        names = ("num_inference_steps", "guidance_rescale", *REUSE_FIELDS)
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def reuse(self, num_frames: int) -> ReuseSettings:
        """How clips of ``num_frames`` reuse one another; short clips overlap, and are trimmed, by less."""
        from .reuse import ReuseSettings

        values = {name: getattr(self, name) for name in REUSE_FIELDS}
        overlap, trim = shortened(self.overlap_frames, self.trim_frames, num_frames)
        return ReuseSettings(**{**values, "overlap_frames": overlap, "trim_frames": trim})


def shortened(overlap: int, trim: int, num_frames: int) -> tuple[int, int]:
    """Default overlap and trim as far as a clip has room for them: 3 of 8 frames of a trimmed clip are new at least."""
    overlap = min(overlap, num_frames * 5 // 8 if trim else num_frames)
    return overlap, min(trim, overlap)


# "forward led" of docs/evaluation.md. Overlap 5, not 4: the step over a seam is then within a tenth of the others.
SMOOTH = Preset(
    "the best chaining measured: the last frames repeated in their own order, shown nearly clean, and trimmed",
    num_inference_steps=None,
    overlap_frames=5,
    noise_alpha=0.0,
    guidance_beta=1.0,
    order="forward",
    trim_frames=5,
    stages="uniform",
    guidance_lead=0.8,
)
PRESETS: dict[str, Preset] = {
    "paper": Preset("the released values: 50 steps of DDIM, overlap 4, alpha 4, beta 0.4, reversed order"),
    "smooth": SMOOTH,
    # Against 25 steps nothing but 0.02 of 255 in flicker is lost, "Fewer steps" in benchmarks/README.md.
    "fast": replace(SMOOTH, summary="smooth in 15 steps of DDIM", num_inference_steps=15),
}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        ValueError: there is none of that name; the message lists them.
    """
    if name not in PRESETS:
        raise ValueError(f"{name!r} is no preset; known are: {', '.join(PRESETS)}")
    return PRESETS[name]


def make_scheduler(name: str, config: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """diffusers' scheduler of a short name, with the noise schedule of ``config`` and ``options`` instead of its own.

    Raises:
        ValueError: the name is not known.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise ValueError(f"{name!r} is no scheduler; known are: {', '.join(SCHEDULERS)}")
    return getattr(diffusers, SCHEDULERS[name]).from_config(dict(config), **dict(options or {}))
