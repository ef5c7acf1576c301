"""Micro batches and their random numbers, which depend only on the seed, the step and the sample's index in the run.

However many processes and micro batches share a step, sample number i of a run gets the same random numbers, so that
two processes see what one would see, and a resumed run sees what an uninterrupted one would see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A seed 0 to 2**63 - 1 that depends on every part."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def derived_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@dataclass(frozen=True)
class MicroBatch:
    """One micro batch of one process: which samples of the run are in it.

    Args:
        seed: of the run.
        step: counted from 0.
        batch_size: samples of the step, on all processes together.
        size: samples in it.
        process, processes: number of the process, and how many there are.
        part: number of the micro batch in the process' share of the step.
    """

    seed: int
    step: int
    batch_size: int
    size: int
    process: int = 0
    processes: int = 1
    part: int = 0

    @property
    def parts(self) -> int:
        """Micro batches of a process in one step."""
        return self.batch_size // (self.size * self.processes)

    @property
    def places(self) -> range:
        """Places of the samples within the step's batch."""
        first = (self.part * self.processes + self.process) * self.size
        return range(first, first + self.size)

    @property
    def samples(self) -> list[int]:
        """Numbers of the samples in the whole run."""
        return [self.step * self.batch_size + place for place in self.places]

    def of_step(self) -> Iterator[MicroBatch]:
        """All micro batches of this process in the step."""
        return (replace(self, part=part) for part in range(self.parts))

    def following(self) -> MicroBatch:
        """The micro batch that this process takes next."""
        if self.part + 1 < self.parts:
            return replace(self, part=self.part + 1)
        return replace(self, step=self.step + 1, part=0)

    def generators(self, purpose: str = "sample") -> list[torch.Generator]:
        """A generator for each sample. The ``purpose`` is part of the seed: another word changes every run."""
        return [derived_generator(self.seed, purpose, sample) for sample in self.samples]

    def normal(self, *shape: int, purpose: str) -> Tensor:
        """Standard normal ``[size, *shape]``, float32 on the CPU, each sample's from its own generator."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators(purpose)])

    def seed_dropout(self) -> None:
        """Seed torch's own generators, which dropout uses; every micro batch of every process has another seed."""
        torch.manual_seed(derived_seed(self.seed, "dropout", self.step, self.places.start))
