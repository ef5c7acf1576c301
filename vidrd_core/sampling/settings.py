"""How the clips of a video are sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..reuse.settings import ReuseSettings

Interval = tuple[float, float]
ALWAYS: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class SamplingSettings:
    """How clips are sampled. Everything here is stored in a state; defaults are the released values.

    Args:
        num_frames: N, of a clip, 1 to 32.
        height, width: pixels.
        num_inference_steps: S, of a clip.
        guidance_scale: of classifier-free guidance; 1 or less turns it off.
        reuse: how a clip reuses the one before.
        negative_prompt: what guidance steers away from; None: the empty text.
        guidance_rescale: of :func:`vidrd_core.sampling.guidance.rescale_guidance`; 0 is off.
        guidance_interval: the share of the steps, from and to, in which guidance runs.
        sigmas: the noise levels of the steps and a last 0, ``[S + 1]``, where they are not the scheduler's own.
    """

    num_frames: int = 8
    height: int = 256
    width: int = 256
    num_inference_steps: int = 50
    guidance_scale: float = 10.0
    reuse: ReuseSettings = ReuseSettings()
    negative_prompt: str | None = "watermark"
    guidance_rescale: float = 0.0
    guidance_interval: Interval = ALWAYS
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_frames <= 32:
            raise ValueError(f"num_frames is {self.num_frames}; expected 1 to 32 frames per clip")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}; expected at least 1")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; expected a number, 1 (off) to about 20")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.guidance_rescale}; expected 0 (off) to 1")
        if self.sigmas is not None and len(self.sigmas) != self.num_inference_steps + 1:
            raise ValueError(
                f"{len(self.sigmas)} sigmas were given for {self.num_inference_steps} steps; expected one per step and "
                "a last 0"
            )
        object.__setattr__(self, "guidance_interval", check_interval(self.guidance_interval))
        self.reuse.check(self.num_frames)

    @property
    def num_new_frames(self) -> int:
        """Frames that a clip after the first adds to the video."""
        return self.num_frames - self.reuse.trim_frames

    def to_json(self) -> dict[str, Any]:
        """Plain values, equal after a round trip through JSON; sigmas only where they are given."""
        values = asdict(self) | {"guidance_interval": list(self.guidance_interval)}
        sigmas = values.pop("sigmas")
        return values if sigmas is None else {**values, "sigmas": list(sigmas)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SamplingSettings:
        """What :meth:`to_json` gave, in this version or an earlier one."""
        sigmas = values.get("sigmas")
        changed = {
            "reuse": ReuseSettings.from_json(values["reuse"]),
            "sigmas": None if sigmas is None else tuple(sigmas),
        }
        return cls(**{**values, **changed})


def check_interval(interval: Sequence[float]) -> Interval:
    """The interval as two numbers.

    Raises:
        ValueError: not 0 <= from <= to <= 1.
    """
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"guidance_interval is {tuple(interval)}; expected two shares of the steps, 0 <= from <= to <= 1"
        )
    return float(interval[0]), float(interval[1])


def with_interval_of(
    settings: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of sampling settings and of a scheduler, as this version writes them.

    Earlier versions kept the guidance interval among the scheduler's settings, as a text of two numbers.
    """
    others = {name: value for name, value in scheduler.items() if name != "guidance_interval"}
    interval = scheduler.get("guidance_interval")
    if interval is not None:
        settings = {**settings, "guidance_interval": [float(part) for part in interval.split()]}
    return SamplingSettings.from_json(settings).to_json(), others
