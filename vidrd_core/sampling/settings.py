"""How the clips of a video are sampled."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..reuse.settings import ReuseSettings


@dataclass(frozen=True)
class SamplingSettings:
    """How clips are sampled. Everything here is stored in a state; defaults are the released values."""

    num_frames: int = 8
    height: int = 256  # pixels
    width: int = 256
    num_inference_steps: int = 50
    guidance_scale: float = 10.0
    reuse: ReuseSettings = ReuseSettings()
    negative_prompt: str | None = "watermark"
    guidance_rescale: float = 0.0  # of vidrd_core.sampling.guidance.rescale_guidance; 0 is off

    def __post_init__(self) -> None:
        if not 1 <= self.num_frames <= 32:
            raise ValueError(f"num_frames is {self.num_frames}; expected 1 to 32 frames per clip")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}; expected at least 1")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; expected a number, 1 (off) to about 20")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.guidance_rescale}; expected 0 (off) to 1")
        self.reuse.check(self.num_frames)

    @property
    def num_new_frames(self) -> int:
        """Frames that a clip after the first adds to the video."""
        return self.num_frames - self.reuse.trim_frames

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SamplingSettings:
        return cls(**{**values, "reuse": ReuseSettings(**values["reuse"])})
