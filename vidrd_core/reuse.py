"""Reuse and Diffuse: how a clip grows out of the one before (arXiv 2309.03549, section "Iterative Denoising").

Frame-level noise reversion (FNR), past-dependent noise sampling (PNS) and denoising with staged guidance (DSG) as pure
functions on latents ``[B, C, T, H, W]``, the settings they share, and the trajectory that a clip hands on.

Notation: N frames per clip, M overlap frames, S denoising steps, ``z[s]`` the latents before step s; s = 0 is the
noisiest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

ORDERS = ("reverse", "forward")
STAGES = ("linear", "uniform")


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
            forward order the frame next to the new ones is the very one that they must go on from.
        guidance_lead: how far ahead of the clip the overlap is, 0 to below 1: at step s it shows the last clip's state
            before step ``s + guidance_lead * (S - s)``. 0, as in the paper, shows equally noisy frames, from which the
            new ones cannot yet tell where things are; a model that learned from frames shown nearly clean
            (``anchor_share`` in training) goes on from a lead of 0.8 without a jump.
    """

    overlap_frames: int = 4
    noise_alpha: float = 4.0
    guidance_beta: float = 0.4
    order: str = "reverse"
    trim_frames: int = 0
    stages: str = "linear"
    guidance_lead: float = 0.0

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
        if not 0 <= self.guidance_lead < 1:
            raise ValueError(f"guidance_lead is {self.guidance_lead}; expected 0 (equally noisy) to below 1 (clean)")
        if self.trim_frames < 0:
            raise ValueError(f"trim_frames is {self.trim_frames}; expected 0 or more")

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

    def guided_steps(self, num_steps: int) -> list[int]:
        """DSG: the number of steered steps of each overlap frame j, see ``stages``."""
        overlap = self.overlap_frames
        shares = [(overlap - j) / overlap if self.stages == "linear" else 1.0 for j in range(overlap)]
        # Rounding guards whole numbers against floating point, as in 0.4 * 50 * 3 / 4 = 15.000000000000002.
        return [math.ceil(round(self.guidance_beta * num_steps * share, 9)) for share in shares]

    def shown_step(self, step: int, num_steps: int) -> int:
        """DSG: the step of the predecessor whose state the overlap shows at ``step``."""
        return min(num_steps - 1, step + round(self.guidance_lead * (num_steps - step)))

    def num_joined_frames(self, num_clips: int, num_frames: int) -> int:
        """Frames of a joined video: N + (clips - 1) * (N - trimmed)."""
        return num_frames + (num_clips - 1) * (num_frames - self.trim_frames)


def source_frames(settings: ReuseSettings, num_frames: int) -> Tensor:
    """FNR: for each frame of the next clip the frame of the last one that it reuses, ``[N]``.

    "reverse": j takes N-1-j. "forward": j takes N-M+j, and the frames beyond the end go on backwards from there, so
    that every new frame has a noise of its own and none of the overlap's is used twice.
    """
    settings.check(num_frames)
    frames = torch.arange(num_frames)
    if settings.order == "reverse":
        return num_frames - 1 - frames
    overlap = settings.overlap_frames
    return torch.cat((frames[num_frames - overlap :], frames[: num_frames - overlap].flip(0)))


def initial_noise(past: Tensor, fresh: Tensor, settings: ReuseSettings) -> Tensor:
    """FNR and PNS: the noise ``z'[0]`` a clip starts from, ``[B, C, N, H, W]`` of unit variance.

    Overlap frames are the past's, reordered. The others mix ``a / sqrt(1 + a^2)`` of the past with
    ``1 / sqrt(1 + a^2)`` of ``fresh``, which keeps the variance at 1 for every a.

    Args:
        past: the noise ``z[0]`` of the last clip.
        fresh: unit-variance noise of the same shape; its overlap frames go unused.
    """
    if past.shape != fresh.shape:
        raise ValueError(f"past noise is {list(past.shape)}, fresh noise {list(fresh.shape)}; expected equal shapes")
    reordered = past[:, :, source_frames(settings, past.shape[2]).to(past.device)]
    angle = math.atan(settings.noise_alpha)  # sin = a / sqrt(1 + a^2), cos = 1 / sqrt(1 + a^2), also at infinity
    mixed = math.sin(angle) * reordered + (math.cos(angle) if math.isfinite(settings.noise_alpha) else 0.0) * fresh
    overlap = settings.overlap_frames
    return torch.cat((reordered[:, :, :overlap], mixed[:, :, overlap:]), dim=2)


def progressive_noise(fresh: Tensor, alpha: float) -> Tensor:
    """Progressive noise prior in one clip (arXiv 2305.10474, equation 3): each frame's noise grows from the last one's.

    ``e[0] = n[0]``, ``e[j] = a / sqrt(1 + a^2) * e[j-1] + 1 / sqrt(1 + a^2) * n[j]``; the variance stays 1.

    Args:
        fresh: independent unit-variance noise n ``[B, C, N, H, W]``.
        alpha: a; 0 leaves the noise as it is, infinity gives all frames the first one's.
    """
    if not alpha >= 0:
        raise ValueError(f"progressive noise alpha is {alpha}; expected 0 (independent frames) or more")
    if alpha == 0:
        return fresh
    angle = math.atan(alpha)
    frames = [fresh[:, :, 0]]
    for frame in fresh.unbind(2)[1:]:
        frames.append(math.sin(angle) * frames[-1] + (math.cos(angle) if math.isfinite(alpha) else 0.0) * frame)
    return torch.stack(frames, dim=2)


def num_guided_frames(settings: ReuseSettings, step: int, num_steps: int) -> int:
    """DSG: how many frames are steered at ``step``; they are the first ones."""
    return sum(step < steps for steps in settings.guided_steps(num_steps))


def guide(latents: Tensor, past: Tensor | None) -> Tensor:
    """DSG: overwrite the first frames of ``latents`` in place with ``past`` ``[B, C, m, H, W]``, already reordered."""
    if past is not None and past.shape[2]:
        latents[:, :, : past.shape[2]] = past.to(latents)
    return latents


@dataclass
class Trajectory:
    """What the next clip needs of this one, on the CPU.

    Args:
        noise: ``z[0]`` of all frames, ``[B, C, N, H, W]``, of unit variance.
        states: ``z[s]`` before the steps s = 0, 1, ... that guidance will show, each with the last frames that may be
            needed, ``[B, C, m, H, W]``, the clip's own order; m is at most the overlap and shrinks with s in "reverse"
            order without a lead.
        settings: of the continuation that the states were kept for.
        num_steps: S.
        context: what must not change between clips, for example the sampler, the sigmas or the model; compared as text.
    """

    noise: Tensor
    states: list[Tensor]
    settings: ReuseSettings
    num_steps: int
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        return self.noise.shape[2]

    def guidance(
        self, step: int, settings: ReuseSettings | None = None, scales: Sequence[float] | None = None
    ) -> Tensor | None:
        """What overwrites the next clip's first frames at ``step``, ``[B, C, m, H, W]`` in its order; None: nothing.

        Args:
            scales: of the sampler's states before each step: the model sees ``z[s] / scales[s]``. With a lead, a state
                of a later step is brought to the scale of this one. None: all 1, as in DDIM.

        Raises:
            ValueError: ``settings`` need frames or steps that were not kept.
        """
        settings = self.settings if settings is None else settings
        count = num_guided_frames(settings, step, self.num_steps)
        if count == 0:
            return None
        wanted = source_frames(settings, self.num_frames)[:count]
        shown = settings.shown_step(step, self.num_steps)
        kept = self.states[shown].shape[2] if shown < len(self.states) else 0
        index = wanted - (self.num_frames - kept)  # states hold the clip's last frames
        if int(index.min()) < 0:
            raise ValueError(
                f"step {step} needs frames {wanted.tolist()} of the last clip; only the last {kept} were kept: "
                f"its trajectory was recorded for overlap {self.settings.overlap_frames}, guidance beta "
                f"{self.settings.guidance_beta}, order {self.settings.order}, stages {self.settings.stages}, "
                f"guidance lead {self.settings.guidance_lead}; use at most those, or make the clip again"
            )
        state = self.states[shown][:, :, index]
        return state if scales is None or shown == step else state * (scales[step] / scales[shown])

    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return self.noise.nbytes + sum(state.nbytes for state in self.states)

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, as plain JSON."""
        return {"settings": asdict(self.settings), "num_steps": self.num_steps, "context": dict(self.context)}


class TrajectoryRecorder:
    """Collects a clip's trajectory while it is denoised: its noise, and only the states that guidance will read.

    Args:
        noise: the unit-variance noise the clip starts from, ``[B, C, N, H, W]``.
        settings, num_steps, context: as in :class:`Trajectory`.
    """

    def __init__(
        self, noise: Tensor, settings: ReuseSettings, num_steps: int, context: Mapping[str, Any] | None = None
    ):
        settings.check(noise.shape[2])
        self.noise = noise.detach().to("cpu", copy=True)
        self.settings = settings
        self.num_steps = num_steps
        self.context = dict(context or {})
        self.states: list[Tensor] = []
        guided = max(settings.guided_steps(num_steps), default=0)
        self._last = settings.shown_step(guided - 1, num_steps) if guided else -1

    def record(self, step: int, latents: Tensor) -> None:
        """Keep what is needed of ``z[step]`` (after guidance, before the step). Call with s = 0, 1, 2, ... in order.

        Keeps the last m frames, where m covers what the next clip's guided frames at this step read: the guided count
        itself in "reverse" order without a lead, else the whole overlap.
        """
        settings = self.settings
        if step <= self._last:
            count = num_guided_frames(settings, step, self.num_steps)
            kept = count if settings.order == "reverse" and not settings.guidance_lead else settings.overlap_frames
            self.states.append(latents[:, :, latents.shape[2] - kept :].detach().to("cpu", copy=True))

    def finish(self) -> Trajectory:
        """The trajectory; call after the last step."""
        return Trajectory(self.noise, self.states, self.settings, self.num_steps, self.context)
