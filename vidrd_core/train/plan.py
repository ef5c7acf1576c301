"""The order of the data: batches of one shape each, as a pure function of the seed and the batch's number."""

from __future__ import annotations

import bisect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.shards import SampleInfo
from .micro_batches import derived_generator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What all samples of a batch are brought to: frames, and height and width in pixels."""

    frames: int
    height: int
    width: int


def assign(
    samples: Sequence[SampleInfo],
    sizes: Sequence[tuple[int, int]],
    frames: Sequence[int],
    images_as_video: bool,
) -> dict[Shape, list[int]]:
    """Put samples into buckets by frame count and aspect ratio; those that fit none are skipped and logged.

    Args:
        sizes: (height, width) in pixels to choose from, by the nearest aspect ratio, and of several equally near the
            largest that the sample fills; stored latents keep their own size.
        frames: clip lengths to choose from; a video takes the longest that it fills.
        images_as_video: images become videos, of the longest length; else they are single frames.
    """
    buckets: dict[Shape, list[int]] = {}
    short = 0
    for index, sample in enumerate(samples):
        if sample.kind == "image":
            count = max(frames) if images_as_video else 1
        else:
            count = max((f for f in frames if f <= sample.frames), default=0)
        if count == 0:
            short += 1
            continue
        size = (sample.height, sample.width)
        if "latents.npy" not in sample.members:
            size = _nearest(sample, sizes)
        buckets.setdefault(Shape(count, *size), []).append(index)
    if short:
        logger.info("%d of %d samples are shorter than %d frames and are skipped", short, len(samples), min(frames))
    return buckets


def _nearest(sample: SampleInfo, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    aspect = math.log(sample.width / sample.height)
    distances = [abs(math.log(width / height) - aspect) for height, width in sizes]
    alike = [size for size, distance in zip(sizes, distances, strict=True) if distance - min(distances) < 1e-9]
    filled = [size for size in alike if size[0] <= sample.height and size[1] <= sample.width]
    return max(filled, key=math.prod) if filled else min(alike, key=math.prod)


class BatchPlan:
    """Epoch after epoch over all samples, in batches of one bucket each, everything shuffled.

    What does not fill a bucket's last batch of an epoch is carried over to its first batch of the next, so that over a
    run every sample is seen equally often, whatever the size of its bucket. A bucket of fewer samples than a batch
    gives a batch every few epochs only; those are logged.
    """

    def __init__(self, buckets: dict[Shape, list[int]], batch_size: int, seed: int):
        if not any(buckets.values()):
            raise ValueError("no sample of the data set can be used: check the clip lengths and kinds in the settings")
        self.buckets = {shape: torch.tensor(members) for shape, members in buckets.items() if members}
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._batches: list[tuple[Shape, torch.Tensor]] = []
        for shape, members in self.buckets.items():
            if len(members) < batch_size:
                logger.info(
                    "%d samples of %d frames of %dx%d do not fill a batch of %d: a batch of them, in which they repeat,"
                    " comes every %.1f epochs",
                    len(members), shape.frames, shape.height, shape.width, batch_size, batch_size / len(members),
                )  # fmt: skip

    def batch(self, number: int) -> tuple[Shape, list[int]]:
        """Shape and sample indices of the batch with this number, counted from 0 over all epochs."""
        # Even the smallest bucket has filled number + 1 batches after so many epochs.
        epoch = bisect.bisect_right(range((number + 1) * self.batch_size + 1), number, key=self.batches_before) - 1
        if epoch != self._epoch:
            self._batches, self._epoch = self._shuffled(epoch), epoch
        shape, chosen = self._batches[number - self.batches_before(epoch)]
        return shape, chosen.tolist()

    def batches_before(self, epoch: int) -> int:
        """How many batches are full before this epoch, of all buckets together."""
        return sum(epoch * len(members) // self.batch_size for members in self.buckets.values())

    def _shuffled(self, epoch: int) -> list[tuple[Shape, torch.Tensor]]:
        """The batches that fill up in this epoch."""
        batches = []
        for place, (shape, members) in enumerate(self.buckets.items()):
            first, last = (e * len(members) // self.batch_size for e in (epoch, epoch + 1))
            stream = self._stream(place, members, first * self.batch_size, last * self.batch_size)
            batches += [(shape, part) for part in stream.split(self.batch_size) if len(part)]
        generator = derived_generator(self.seed, "epoch", epoch)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _stream(self, place: int, members: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Places ``start`` to ``stop`` of a bucket's samples, all of them shuffled anew in every epoch."""
        epochs = range(start // len(members), -(-stop // len(members)))
        generators = [derived_generator(self.seed, "epoch", epoch, place) for epoch in epochs]
        orders = [members[torch.randperm(len(members), generator=generator)] for generator in generators]
        begin = epochs.start * len(members)
        return torch.cat([members[:0], *orders])[start - begin : stop - begin]


def interleaved(step: int, share: float) -> tuple[bool, int]:
    """Whether ``step`` is of the rarer kind, which takes ``share`` of the steps evenly, and its number in its kind."""
    before = math.floor(step * share + 1e-9)
    chosen = math.floor((step + 1) * share + 1e-9) > before
    return chosen, before if chosen else step - before
