"""Sources of batches: a file of stored latents, prepared shards, or the moving-shapes data set.

A batch is a pure function of its :class:`MicroBatch`, so it can be prefetched in the background, and each process reads
its own part.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data.panzoom import pan_and_zoom
from ..data.shards import BrokenItem, SampleInfo, ShardDataset
from ..shapes.latents import LatentClips
from ..shapes.scenes import draw_scene, render
from .micro_batches import MicroBatch, derived_generator
from .plan import BatchPlan, Shape, assign, interleaved

logger = logging.getLogger(__name__)

IMAGE_MARGIN = 1.5  # how much larger than the clip an image is read, for the camera to move in
MAX_BROKEN = 50  # samples in a row that cannot be read, before the data set counts as broken


@dataclass
class ClipBatch:
    """Clips with their captions; either ``pixels [B, 3, T, H, W]`` in [-1, 1] or scaled ``latents [B, C, T, h, w]``."""

    captions: list[str]
    items: list[str]  # names, for error messages
    pixels: Tensor | None = None
    latents: Tensor | None = None
    text: Tensor | None = None  # states [B, M, D] where they are stored


class Source(Protocol):
    def batch(self, micro_batch: MicroBatch) -> ClipBatch:
        """The clips of a micro batch: one for each sample, or several single images where the step is one of images."""


@dataclass(frozen=True)
class DataSettings:
    """Prepared data sets to train on; our own defaults."""

    shards: tuple[Path, ...] = ()  # folders that prepare_data.py or prepare_embeddings.py wrote
    held_out: tuple[Path, ...] = ()  # the same, for the held-out loss
    sizes: tuple[tuple[int, int], ...] = ((256, 256),)  # height and width in pixels; the nearest aspect is taken
    frames: tuple[int, ...] = (8,)  # clip lengths; a video takes the longest that it fills
    images: str = "video"  # "video": clips that pan and zoom over images; "frame": only single frames; "none"
    workers: int = 4  # threads that read and decode in the background

    def __post_init__(self) -> None:
        if self.images not in ("video", "frame", "none"):
            raise ValueError(f"images is {self.images!r}; expected 'video', 'frame' or 'none'")
        if not self.sizes or not self.frames or min(self.frames) < 1:
            raise ValueError(f"sizes {self.sizes} and frames {self.frames} need at least one entry each")
        if any(side % 8 for size in self.sizes for side in size):
            raise ValueError(f"sizes are {self.sizes}; expected multiples of 8 pixels")


class MovingShapesSource:
    """Clips of the moving-shapes data set, rendered from a new random scene for every sample.

    Args:
        num_frames: of the clips, or several lengths, of which every step takes one at random.
        split: "train" or "test".
        speed: of the motions, see :func:`vidrd_core.shapes.scenes.render`.
        images_per_clip: scenes for every sample in steps of single frames, where there are several lengths.
    """

    def __init__(
        self, num_frames: int | Sequence[int], split: str = "train", speed: float = 1.0, images_per_clip: int = 1
    ):
        self.lengths = (num_frames,) if isinstance(num_frames, int) else tuple(num_frames)
        self.split = split
        self.speed = speed
        self.images_per_clip = images_per_clip

    def batch(self, micro_batch: MicroBatch) -> ClipBatch:
        length = length_of_step(micro_batch, self.lengths)
        each = self.images_per_clip if length == 1 and len(self.lengths) > 1 else 1
        scenes = [draw_scene(generator, self.split) for generator in micro_batch.generators() for _ in range(each)]
        captions = [scene.caption for scene in scenes]
        return ClipBatch(captions, captions, pixels=render(scenes, length, speed=self.speed))


def length_of_step(micro_batch: MicroBatch, lengths: Sequence[int]) -> int:
    """One of ``lengths`` at random, the same for all clips of a step."""
    generator = derived_generator(micro_batch.seed, "length", micro_batch.step)
    return lengths[int(torch.randint(len(lengths), (), generator=generator))]


class LatentSource:
    """Random clips of a file that ``prepare_latents.py`` wrote; ``image_share`` of the steps take single frames.

    ``num_frames`` of the clips are latent frames; of several lengths every step takes one at random.
    """

    def __init__(
        self, clips: LatentClips, num_frames: int | Sequence[int], image_share: float = 0.0, images_per_clip: int = 1
    ):
        self.clips = clips
        self.lengths = (num_frames,) if isinstance(num_frames, int) else tuple(num_frames)
        self.image_share = image_share
        self.images_per_clip = images_per_clip

    def batch(self, micro_batch: MicroBatch) -> ClipBatch:
        image, _ = interleaved(micro_batch.step, self.image_share)
        count, frames = (self.images_per_clip, 1) if image else (1, length_of_step(micro_batch, self.lengths))
        parts = [self.clips.batch(count, frames, generator) for generator in micro_batch.generators()]
        captions = [caption for _, captions in parts for caption in captions]
        return ClipBatch(captions, captions, latents=torch.cat([latents for latents, _ in parts]))


class ShardSource:
    """Batches of prepared shards, bucketed by size, aspect and frame count.

    ``image_share`` of the steps take single frames: of the images, or of the videos where there are no images.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        settings: DataSettings,
        batch_size: int,
        seed: int,
        image_share: float = 0.0,
        images_per_clip: int = 1,
    ):
        self.datasets = [ShardDataset(folder) for folder in folders]
        self.places = [(d, i) for d in self.datasets for i in range(len(d))]
        self.image_share = image_share
        self.images_per_clip = images_per_clip
        infos = [self._info(n) for n in range(len(self.places))]
        images = [n for n, info in enumerate(infos) if info.kind == "image"]
        latents = [info.key for info in infos if info.kind == "image" and "latents.npy" in info.members]
        as_video = settings.images == "video"
        if as_video and latents:
            logger.info("%d images are stored as latents: they are trained on as single frames only", len(latents))
        moving = [n for n, i in enumerate(infos) if i.kind == "video" or (as_video and "latents.npy" not in i.members)]
        self.clips = self._plan(infos, moving, settings, batch_size, seed, as_video) if image_share < 1 else None
        still = images or list(range(len(infos)))
        self.frames = None
        if image_share > 0:
            self.frames = self._still_plan(infos, still, settings, batch_size * images_per_clip, seed)
        self.pool = ThreadPoolExecutor(max(1, settings.workers), "data")
        self.broken: set[str] = set()

    @property
    def stores_text(self) -> bool:
        """Whether every sample has text states, so that no caption needs to be encoded."""
        return all("text.npy" in info.members for data in self.datasets for info in data.samples)

    def batch(self, micro_batch: MicroBatch) -> ClipBatch:
        image, number = interleaved(micro_batch.step, self.image_share)
        plan, each = (self.frames, self.images_per_clip) if image else (self.clips, 1)
        assert plan is not None
        shape, chosen = plan.batch(number)
        jobs = [
            (chosen[place * each + part], chosen, shape, generator)
            for place, generator in zip(micro_batch.places, micro_batch.generators(), strict=True)
            for part in range(each)
        ]
        if each == 1:
            items = list(self.pool.map(lambda job: self._read(*job), jobs))
        else:  # the items of one sample share its generator, so they are read in order
            rows = [jobs[n : n + each] for n in range(0, len(jobs), each)]
            found = self.pool.map(lambda row: [self._read(*job) for job in row], rows)
            items = [item for row in found for item in row]
        return _collate(items)

    def _read(self, index: int, others: Sequence[int], shape: Shape, generator: torch.Generator) -> dict[str, Any]:
        """One sample, or where it cannot be read the next of its batch that can."""
        start = list(others).index(index)
        candidates = [*others[start:], *others[:start]]
        for candidate in dict.fromkeys(candidates[:MAX_BROKEN]):
            try:
                return self._open(candidate, shape, generator)
            except BrokenItem as error:
                if error.key not in self.broken:
                    self.broken.add(error.key)
                    logger.warning("skipped a sample that cannot be read, %d so far: %s", len(self.broken), error)
        raise ValueError(f"none of {len(candidates)} samples of a batch can be read: prepare the data set again")

    def _open(self, index: int, shape: Shape, generator: torch.Generator) -> dict[str, Any]:
        dataset, place = self.places[index]
        info = self._info(index)
        if info.kind == "video" or shape.frames == 1:
            return dataset.read(place, shape.frames, shape.height, shape.width, generator)
        scale = min(IMAGE_MARGIN, max(1.0, min(info.height / shape.height, info.width / shape.width)))
        size = round(shape.height * scale), round(shape.width * scale)
        item = dataset.read(place, 1, *size, generator)
        image = item["pixels"][None, :, 0]
        item["pixels"] = pan_and_zoom(image, shape.frames, (shape.height, shape.width), generator)[0]
        return item

    def _info(self, index: int) -> SampleInfo:
        dataset, place = self.places[index]
        return dataset.samples[place]

    @staticmethod
    def _plan(
        infos: list[SampleInfo], members: list[int], settings: DataSettings, batch: int, seed: int, as_video: bool
    ) -> BatchPlan:
        buckets = assign([infos[n] for n in members], settings.sizes, settings.frames, as_video)
        return BatchPlan({s: [members[i] for i in found] for s, found in buckets.items()}, batch, seed)

    @staticmethod
    def _still_plan(
        infos: list[SampleInfo], members: list[int], settings: DataSettings, batch: int, seed: int
    ) -> BatchPlan:
        buckets = assign([infos[n] for n in members], settings.sizes, (1,), False)
        return BatchPlan({s: [members[i] for i in found] for s, found in buckets.items()}, batch, seed + 1)


def _collate(items: Sequence[dict[str, Any]]) -> ClipBatch:
    def stack(name: str) -> Tensor | None:
        values = [item.get(name) for item in items]
        if any(value is None for value in values):
            if any(value is not None for value in values):
                raise ValueError(f"some samples of a batch have {name} and others not: prepare all data sets alike")
            return None
        return torch.stack(values)  # type: ignore[arg-type]

    return ClipBatch(
        [item["caption"] for item in items],
        [item["key"] for item in items],
        pixels=stack("pixels"),
        latents=stack("latents"),
        text=stack("text"),
    )


class Prefetcher:
    """Prefetches the next micro batch in the background while the current one is trained on."""

    def __init__(self, source: Source):
        self.source = source
        self.thread = ThreadPoolExecutor(1, "prefetch")
        self.next: tuple[MicroBatch, Future[ClipBatch]] | None = None

    def batch(self, micro_batch: MicroBatch) -> ClipBatch:
        waiting, self.next = self.next, None
        ready = (
            waiting[1].result() if waiting is not None and waiting[0] == micro_batch else self.source.batch(micro_batch)
        )
        following = micro_batch.following()
        self.next = following, self.thread.submit(self.source.batch, following)
        return ready
