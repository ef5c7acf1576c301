"""How a clip reuses its predecessor: the settings that FNR, PNS and DSG share (arXiv 2309.03549). Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

ORDERS = ("reverse", "forward")
STAGES = ("linear", "uniform")
OLD_NAMES = {"guidance_lead": "cleaner_overlap"}  # of settings in files and configurations of earlier versions


@dataclass(frozen=True)
class ReuseSettings:
    """How a clip reuses its predecessor. The defaults are the released values.

    Args:
        overlap_frames: M, the frames at the start of a clip that repeat the predecessor's; 0 to N.
        noise_alpha: a, how much of the predecessor's noise the other frames keep; 0: fresh noise, infinity: pure reuse.
        guidance_beta: b, the share of steps through which the overlap is steered; 0 to 1.
        order: "reverse", as in the paper: frame j follows the predecessor's frame N-1-j, so that a clip starts at the
            predecessor's last frame and its overlap runs back through the predecessor's tail. "forward": frame j
            follows frame N-M+j, so that the overlap is the predecessor's last M frames in their own order.
        trim_frames: frames dropped from the start of each continuing clip when clips are joined; 0 joins all frames, as
            the release does.
        stages: "linear", as in the paper: overlap frame j is steered for ``s < b * S * (M - j) / M``, the one next to
            the new frames least, which suits the reversed order. "uniform": every overlap frame for ``s < b * S``; in
            forward order the frame next to the new ones is the very one that they continue.
        cleaner_overlap: how much cleaner than the new frames the overlap is, 0 to 1: at step s it is the last
            clip's state after ``s + cleaner_overlap * (S - s)`` steps, between two of them on the way from one to the
            other (:mod:`vidrd_core.reuse.states`), so that noise levels differ by frame as in
            Diffusion Forcing (arXiv 2407.01392). 0, as in the paper, shows equally noisy frames, from which the new
            ones cannot yet tell where things are; from 0.8 they continue without a jump (docs/evaluation.md), most of
            all with a model trained on frames of different noise levels (``cleaner_frame_share`` in training).
    """

    overlap_frames: int = 4
    noise_alpha: float = 4.0
    guidance_beta: float = 0.4
    order: str = "reverse"
    trim_frames: int = 0
    stages: str = "linear"
    cleaner_overlap: float = 0.0

    def __post_init__(self) -> None:
        if self.overlap_frames < 0:
            raise ValueError(f"overlap_frames is {self.overlap_frames}; expected 0 or more")
        if not self.noise_alpha >= 0:
            raise ValueError(f"noise_alpha is {self.noise_alpha}; expected 0 (fresh noise) to infinity (pure reuse)")
        if not 0 <= self.guidance_beta <= 1:
            raise ValueError(f"guidance_beta is {self.guidance_beta}; expected 0 to 1, the share of guided steps")
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order!r}; expected one of {', '.join(ORDERS)}")
        if self.stages not in STAGES:
            raise ValueError(f"stages is {self.stages!r}; expected one of {', '.join(STAGES)}")
        if not 0 <= self.cleaner_overlap <= 1:
            raise ValueError(f"cleaner_overlap is {self.cleaner_overlap}; expected 0 (equally noisy) to 1 (clean)")
        if self.trim_frames < 0:
            raise ValueError(f"trim_frames is {self.trim_frames}; expected 0 or more")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ReuseSettings:
        """Settings from a file, of this version or an earlier one."""
        return cls(**with_current_names(values))

    def check(self, num_frames: int) -> None:
        """Raise ``ValueError`` where the settings do not fit clips of ``num_frames``."""
        if self.overlap_frames > num_frames:
            raise ValueError(
                f"overlap_frames is {self.overlap_frames} but the clip has {num_frames} frames: "
                f"choose an overlap of at most {num_frames}"
            )
        if self.trim_frames >= num_frames:
            raise ValueError(
                f"trim_frames is {self.trim_frames} but the clip has {num_frames} frames: "
                f"nothing would be left, choose at most {num_frames - 1}"
            )

    def fitted(self, num_frames: int) -> ReuseSettings:
        """These settings as far as clips of ``num_frames`` have room for them.

        The overlap is shortened to the clip, in trimmed clips to 5 of 8 frames, so that some are new; the trim to the
        overlap.
        """
        return self.shortened(num_frames * 5 // 8 if self.trim_frames else num_frames)

    def shortened(self, most: int) -> ReuseSettings:
        """These settings with an overlap of at most ``most`` frames, of which no more are trimmed than it has."""
        overlap = min(self.overlap_frames, most)
        return replace(self, overlap_frames=overlap, trim_frames=min(self.trim_frames, overlap))

    def steered_steps(self, num_steps: int) -> list[int]:
        """DSG: the number of steered steps of each overlap frame j, see ``stages``."""
        # Rounding guards whole numbers against floating point, as in 0.4 * 50 * 3 / 4 = 15.000000000000002.
        return [math.ceil(round(num_steps * share, 9)) for share in self.steered_shares()]

    def steered_shares(self) -> list[float]:
        """DSG: the share of the steps in which each overlap frame j is steered, 0 to 1, see ``stages``."""
        overlap = self.overlap_frames
        shares = [(overlap - j) / overlap if self.stages == "linear" else 1.0 for j in range(overlap)]
        return [self.guidance_beta * share for share in shares]

    def shown_at(self, step: int, num_steps: int) -> float:
        """DSG: how many of its steps the predecessor had done where it was what the overlap shows at ``step``."""
        return round(step + self.cleaner_overlap * (num_steps - step), 9)


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by today's names, where an earlier version wrote them."""
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}
