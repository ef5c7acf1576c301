"""Where randomness comes from: a pure function of the seed, the step and the sample's index in the whole run.

However many processes and micro batches share a step, sample number i of a run is drawn with the same numbers, so that
two processes see what one would, and a resumed run what an unbroken one would.
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
class Draw:
    """One micro batch of one process: which samples of the run it is made of.

    Args:
        seed: of the run.
        step: counted from 0.
        batch_size: samples of the step, on all processes together.
        micro_batch: samples of this draw.
        process, processes: who draws.
        part: number of the micro batch within the process' share of the step.
    """

    seed: int
    step: int
    batch_size: int
    micro_batch: int
    process: int = 0
    processes: int = 1
    part: int = 0

    @property
    def parts(self) -> int:
        """Micro batches of a process in one step."""
        return self.batch_size // (self.micro_batch * self.processes)

    @property
    def places(self) -> range:
        """Places of the samples within the step's batch."""
        first = (self.part * self.processes + self.process) * self.micro_batch
        return range(first, first + self.micro_batch)

    @property
    def samples(self) -> list[int]:
        """Numbers of the samples in the whole run."""
        return [self.step * self.batch_size + place for place in self.places]

    def of_step(self) -> Iterator[Draw]:
        """All draws of this process in the step."""
        return (replace(self, part=part) for part in range(self.parts))

    def following(self) -> Draw:
        """The draw that this process makes next."""
        if self.part + 1 < self.parts:
            return replace(self, part=self.part + 1)
        return replace(self, step=self.step + 1, part=0)

    def generators(self, purpose: str = "sample") -> list[torch.Generator]:
        """A generator for each sample."""
        return [derived_generator(self.seed, purpose, sample) for sample in self.samples]

    def normal(self, *shape: int, purpose: str) -> Tensor:
        """Standard normal ``[micro_batch, *shape]``, float32 on the CPU, each sample's from its own generator."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators(purpose)])

    def seed_dropout(self) -> None:
        """Seed torch's own generators, which dropout uses; every micro batch of every process has another seed."""
        torch.manual_seed(derived_seed(self.seed, "dropout", self.step, self.places.start))
