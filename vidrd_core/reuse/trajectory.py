"""Denoising with staged guidance (DSG), and the trajectory that a clip hands on (arXiv 2309.03549).

Notation: N frames per clip, M overlap frames, S denoising steps, ``z[s]`` the latents before step s.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from .noise import source_frames
from .settings import ReuseSettings
from .states import SamplerStates


def num_steered_frames(settings: ReuseSettings, step: int, num_steps: int) -> int:
    """DSG: how many frames are steered at ``step``; they are the first ones."""
    return sum(step < steps for steps in settings.steered_steps(num_steps))


def steer(latents: Tensor, past: Tensor | None) -> Tensor:
    """DSG: overwrite the first frames of ``latents`` in place with ``past`` ``[B, C, m, H, W]``, already reordered."""
    if past is not None and past.shape[2]:
        latents[:, :, : past.shape[2]] = past.to(latents)
    return latents


@dataclass
class Trajectory:
    """What the next clip needs of this one, on the CPU.

    Args:
        noise: ``z[0]`` of all frames, ``[B, C, N, H, W]``, of unit variance.
        states: ``z[s]`` before the steps s = 0, 1, ... that the next overlap is steered by, and for a cleaner overlap
            ``z[S]``, each with the last frames that may be needed, ``[B, C, m, H, W]``, the clip's own order; m is at
            most the overlap and shrinks with s in "reverse" order with an equally noisy overlap.
        settings: of the continuation that the states were kept for.
        num_steps: S.
        context: what must not change between clips, for example the sampler, the sigmas or the model; compared as text.
        predictions: where a sampler's model calls were recorded (:mod:`vidrd_core.reuse.replay`): the clean data that
            each call gave it; ``states`` are then those of the calls.
        calls: the noise levels sigma of these calls.
    """

    noise: Tensor
    states: list[Tensor]
    settings: ReuseSettings
    num_steps: int
    context: Mapping[str, Any] = field(default_factory=dict)
    predictions: list[Tensor] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        return self.noise.shape[2]

    def overlap_at(
        self, step: int, settings: ReuseSettings | None = None, sampler: SamplerStates | None = None
    ) -> Tensor | None:
        """What overwrites the next clip's first frames at ``step``, ``[B, C, m, H, W]`` in its order; None: nothing.

        Args:
            sampler: whose states they are; an equally noisy overlap does without.

        Raises:
            ValueError: ``settings`` need frames or steps that were not kept.
        """
        settings = self.settings if settings is None else settings
        position, states = self._shown_at(step, settings)
        if not states:
            return None
        if position == step:
            return states[step]
        if sampler is None:
            raise ValueError("a cleaner overlap is between a sampler's states: say how they are made")
        return sampler.between(states, position, step)

    def held_at(self, step: int, settings: ReuseSettings) -> Tensor | None:
        """The overlap's own state before ``step``, which a cleaner one hides; S: the denoised frames; None: nothing."""
        if step >= len(self.states):
            return None
        count = num_steered_frames(settings, min(step, self.num_steps - 1), self.num_steps)
        return self._states(step, settings, count, (step,)).get(step)

    def check(self, settings: ReuseSettings) -> None:
        """Raise ``ValueError`` where a clip with these settings would need what was not kept."""
        settings.check(self.num_frames)
        for step in range(self.num_steps):
            self._shown_at(step, settings)

    def _shown_at(self, step: int, settings: ReuseSettings) -> tuple[float, dict[int, Tensor]]:
        """The position of what the overlap shows, and the states around it, of its frames in its order."""
        count = num_steered_frames(settings, step, self.num_steps)
        position = settings.shown_at(step, self.num_steps)
        if len(self.states) == self.num_steps:  # those of an earlier version lack the end
            position = min(position, self.num_steps - 1)
        return position, self._states(step, settings, count, (math.floor(position), math.ceil(position)))

    def _states(self, step: int, settings: ReuseSettings, count: int, positions: Sequence[int]) -> dict[int, Tensor]:
        """``z`` at these positions of the overlap's first ``count`` frames, in its order; empty where that is 0."""
        if count == 0:
            return {}
        wanted = source_frames(settings, self.num_frames)[:count]
        found = {}
        for position in positions:
            kept = self.states[position].shape[2] if position < len(self.states) else 0
            index = wanted - (self.num_frames - kept)  # states hold the clip's last frames
            if int(index.min()) < 0:
                raise ValueError(
                    f"step {step} needs frames {wanted.tolist()} of the last clip; only the last {kept} were kept: "
                    f"its trajectory was recorded for overlap {self.settings.overlap_frames}, guidance beta "
                    f"{self.settings.guidance_beta}, order {self.settings.order}, stages {self.settings.stages}, "
                    f"cleaner overlap {self.settings.cleaner_overlap}; use at most those, or make the clip again"
                )
            found[position] = self.states[position][:, :, index]
        return found

    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return self.noise.nbytes + sum(tensor.nbytes for tensor in (*self.states, *self.predictions))

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, as plain JSON."""
        values = {"settings": asdict(self.settings), "num_steps": self.num_steps, "context": dict(self.context)}
        return {**values, "calls": self.calls} if self.calls else values

    def with_context(self, **known: Any) -> Trajectory:
        """The same with more in its context."""
        return replace(self, context={**self.context, **known})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in a file: "noise", "state.0", "state.1", ..., "prediction.0", ..."""
        named = {"state": self.states, "prediction": self.predictions}
        listed = {f"{name}.{n}": tensor for name, tensors in named.items() for n, tensor in enumerate(tensors)}
        return {"noise": self.noise, **listed}

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Trajectory:
        """The trajectory that :meth:`tensors` and :meth:`metadata` gave; other tensors are left alone."""
        settings = ReuseSettings.from_json(metadata["settings"])
        recorded = numbered(tensors, "prediction"), metadata.get("calls", [])
        known = settings, metadata["num_steps"], metadata["context"]
        return cls(tensors["noise"], numbered(tensors, "state"), *known, *recorded)


def numbered(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """``name.0``, ``name.1``, ... as far as they go."""
    found: list[Tensor] = []
    while f"{name}.{len(found)}" in tensors:
        found.append(tensors[f"{name}.{len(found)}"])
    return found


class TrajectoryRecorder:
    """Collects a clip's trajectory while it is denoised: its noise, and the states that the next clip is steered by.

    Args:
        noise: the unit-variance noise the clip starts from, ``[B, C, N, H, W]``.
        settings, num_steps: as in :class:`Trajectory`.
    """

    def __init__(self, noise: Tensor, settings: ReuseSettings, num_steps: int):
        settings.check(noise.shape[2])
        self.noise = noise.detach().to("cpu", copy=True)
        self.settings = settings
        self.num_steps = num_steps
        self.states: list[Tensor] = []
        steered = max(settings.steered_steps(num_steps), default=0)
        self._last = math.ceil(settings.shown_at(steered - 1, num_steps)) if steered else -1

    def record(self, step: int, latents: Tensor) -> None:
        """Keep what is needed of ``z[step]``, its overlap on the way of the clip before, not as clean as it is shown.

        Call with s = 0, 1, 2, ..., S in order.

        Keeps the last m frames, where m covers what the next clip's steered frames at this step read: the steered count
        itself in "reverse" order with an equally noisy overlap, else the whole overlap.
        """
        settings = self.settings
        if step <= self._last:
            count = num_steered_frames(settings, step, self.num_steps)
            kept = count if settings.order == "reverse" and not settings.cleaner_overlap else settings.overlap_frames
            self.states.append(latents[:, :, latents.shape[2] - kept :].detach().to("cpu", copy=True))

    def finish(self) -> Trajectory:
        """The trajectory; call after the last step."""
        return Trajectory(self.noise, self.states, self.settings, self.num_steps)


def frames_hash(frames: Tensor) -> str:
    """A hash of the shape and the values, in float32, of frames or latents."""
    values = frames.detach().float().cpu().contiguous()
    digest = hashlib.sha256(str(list(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()
