"""Metrics of any number of videos, in several processes, resumable.

Each process accumulates its share in a file that also lists the videos it has measured. A later run, with any number of
processes and any batch size, reads all files and measures the remaining videos. Several machines need a shared folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..files import write_tensors
from .detectors import C3D, I3D, Clip, frame_consistency, text_similarity
from .identity import changes
from .moments import Average, InceptionMoments, Moments

logger = logging.getLogger(__name__)

Source = Callable[[Sequence[int]], tuple[Tensor, list[str]]]
SAVE_EVERY = 10  # batches


class Measurements:
    """Running statistics of the measured videos."""

    def __init__(self) -> None:
        self.videos = 0
        self.features: Moments | None = None
        self.predictions: InceptionMoments | None = None
        self.similarity = Average()
        self.consistency = Average()

    def merge(self, other: Measurements) -> None:
        """Add everything that ``other`` has seen."""
        self.videos += other.videos
        if other.features is not None:
            self.features = self.features or Moments(len(other.features.mean))
            self.features.merge(other.features)
        if other.predictions is not None:
            splits, classes = other.predictions.totals.shape
            self.predictions = self.predictions or InceptionMoments(classes, splits)
            self.predictions.merge(other.predictions)
        self.similarity.merge(other.similarity)
        self.consistency.merge(other.consistency)

    def tensors(self) -> dict[str, Tensor]:
        parts: dict[str, Any] = {"similarity": self.similarity, "consistency": self.consistency}
        if self.features is not None:
            parts["features"] = self.features
        if self.predictions is not None:
            parts["predictions"] = self.predictions
        flat = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.tensors().items()}
        return {"videos": torch.tensor(self.videos), **flat}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Measurements:
        def part(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        found = cls()
        found.videos = int(tensors["videos"])
        found.features = Moments.from_tensors(part("features")) if part("features") else None
        found.predictions = InceptionMoments.from_tensors(part("predictions")) if part("predictions") else None
        found.similarity = Average.from_tensors(part("similarity"))
        found.consistency = Average.from_tensors(part("consistency"))
        return found


@dataclass
class Detectors:
    """The networks to use; None where one is not used."""

    i3d: I3D | None = None
    c3d: C3D | None = None
    clip: Clip | None = None
    splits: int = 10  # of the inception score
    identity: list[str] = field(default_factory=list)  # digests of their files

    def measure(self, frames: Tensor, prompts: Sequence[str], splits: Sequence[int], found: Measurements) -> None:
        """Add videos ``[B, 3, T, H, W]`` in [-1, 1] to ``found``; ``splits``: of each, in the inception score."""
        if self.i3d is not None:
            features = self.i3d(frames)
            found.features = found.features or Moments(features.shape[1])
            found.features.update(features)
        if self.c3d is not None:
            predictions = self.c3d(frames)
            found.predictions = found.predictions or InceptionMoments(predictions.shape[1], self.splits)
            found.predictions.update(predictions, splits)
        if self.clip is not None:
            images = self.clip.images(frames)
            found.similarity.update(text_similarity(images, self.clip.texts(prompts)))
            found.consistency.update(frame_consistency(images))
        found.videos += len(frames)


def measure_all(
    source: Source,
    total: int,
    batch: int,
    detectors: Detectors,
    folder: Path,
    identity: dict[str, Any],
    process: Any,
) -> Measurements:
    """Measure videos 0 to ``total`` - 1 of ``source``; returns the measurements of all processes, in each of them.

    Args:
        source: returns frames ``[B, 3, T, H, W]`` and prompts of the videos with the given numbers.
        folder: of the state, which holds everything measured so far.
        identity: what the measurements depend on; a state of another identity is refused.
        process: accelerate's ``PartialState``, or anything with its ``process_index``, ``num_processes`` and
            ``wait_for_everyone``.

    Raises:
        ValueError: the folder holds the state of another evaluation, or in the end not all videos, because processes
            wrote to other disks.
    """
    wanted = {**identity, "total": total}
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("part-*.safetensors"))
    done = {number for file in files for number in _read(file, wanted)[1]}
    process.wait_for_everyone()  # every process has read what there was before any writes
    missing = [number for number in range(total) if number not in done]
    batches = [missing[start : start + batch] for start in range(0, len(missing), batch)]
    mine = batches[process.process_index :: process.num_processes]
    path = folder / f"part-{len(files):04d}-{process.process_index:04d}.safetensors"
    found = Measurements()
    finished: list[int] = []
    for count, numbers in enumerate(mine, 1):
        frames, prompts = source(numbers)
        detectors.measure(frames, prompts, [n * detectors.splits // total for n in numbers], found)
        finished += numbers
        if count % SAVE_EVERY == 0 or count == len(mine):
            _write(path, found, finished, wanted)
            logger.info("process %d: %d of %d batches", process.process_index, count, len(mine))
    process.wait_for_everyone()
    everything = Measurements()
    for file in sorted(folder.glob("part-*.safetensors")):
        everything.merge(_read(file, wanted)[0])
    if everything.videos != total:
        raise ValueError(
            f"{folder} has {everything.videos} of {total} videos after all processes have ended: on several machines "
            "it must be on a shared disk; copy the part-* files of all machines into such a folder and run the same "
            "command again, no video is measured twice"
        )
    return everything


def _write(path: Path, found: Measurements, finished: list[int], identity: dict[str, Any]) -> None:
    metadata = {"identity": json.dumps(identity, sort_keys=True), "finished": json.dumps(finished)}
    write_tensors(path, found.tensors(), metadata)


def _read(path: Path, wanted: dict[str, Any]) -> tuple[Measurements, list[int]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    if changed := changes(json.loads(metadata["identity"]), json.loads(json.dumps(wanted))):
        raise ValueError(
            f"{path.parent} holds the state of another evaluation: {changed}; choose another folder or delete it"
        )
    return Measurements.from_tensors(tensors), json.loads(metadata["finished"])
