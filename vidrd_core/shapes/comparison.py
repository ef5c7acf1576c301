"""Comparison of methods on the moving-shapes data set: the same prompts and seeds for each, measured by the tracker.

Each method has one JSON file, written after each batch, so that an interrupted run resumes, several processes can share
a folder by taking different methods, and tables and pictures can be made again without the model.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..files import write_json
from ..metrics.identity import NEGATIVE_PROMPT, changes, model_identity
from ..pipeline import VidRDPipeline
from ..sampling.windows import decode_windows
from ..video import to_uint8
from .measures import VideoRecord, from_json, measure, summarise, to_json
from .methods import BASES, GeneratedVideos, VideoBatch, find_method
from .names import current_definition, current_name, old_names
from .prompted import held_out_scenes

logger = logging.getLogger(__name__)

METHODS = tuple(BASES)


def _corrected(*bases: str) -> tuple[str, ...]:
    return tuple(f"{base}, {correction}" for base in bases for correction in ("match", "rescale"))


CORRECTED = _corrected("independent", "paper", "forward", "smooth", "joint windows", "FreeNoise")
CORRECTED_PARTS = _corrected("last frame", "FNR", "FNR PNS", "forward guided", "forward soft")
SWEEPS: dict[str, tuple[str, ...]] = {
    "alpha": tuple(f"paper, alpha={value}" for value in (0, 1, 2, 4, 8, "inf")),
    "beta": tuple(f"paper, beta={value}" for value in (0, 0.2, 0.4, 0.6, 0.8, 1)),
    "overlap": tuple(f"paper, overlap={value}" for value in (1, 2, 4, 6, 8)),
    "alpha, smooth": tuple(f"smooth, alpha={value}" for value in (0, 1, 2, 4)),
    "beta, smooth": tuple(f"smooth, beta={value}" for value in (0.4, 0.6, 0.8, 1)),
    "overlap, smooth": tuple(f"smooth, overlap={value}" for value in (1, 2, 3, 4, 5, 6)),
    "cleaner overlap, smooth": tuple(f"smooth, cleaner_overlap={value}" for value in (0, 0.4, 0.6, 0.8, 0.9)),
}
SETS: dict[str, tuple[str, ...]] = {
    "methods": METHODS,
    "corrections": CORRECTED,
    "corrections of parts": CORRECTED_PARTS,
    "sweeps": tuple(name for names in SWEEPS.values() for name in names),
}
SAMPLES = 2  # videos per method whose frames are kept as pictures


def canonical(name: str) -> str:
    """The shortest current name of a method: its base's where the changes are none, so that sweeps share results."""
    name = current_name(name)
    base = name.partition(",")[0]
    return base if find_method(name) == BASES[base] else name


def result_path(folder: Path, name: str) -> Path:
    """The JSON file of a method; the pictures beside it end in .png."""
    return folder / _file_name(canonical(name))


def stored_path(folder: Path, name: str) -> Path:
    """The JSON file that holds a method's results: :func:`result_path`, or one under an old name."""
    path = result_path(folder, name)
    earlier = (folder / _file_name(old) for old in old_names(canonical(name)))
    return path if path.is_file() else next((old for old in earlier if old.is_file()), path)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") + ".json"


@dataclass
class Comparison:
    """Makes and measures the videos of methods, for the same prompts and seeds.

    Args:
        pipe: a pipeline whose model was trained on moving shapes, in the precision to use.
        folder: where results go.
        videos: number of distinct held-out captions, one video each.
        clips: clips per video.
        num_frames: frames per clip.
        steps, guidance_scale: of sampling.
        batch: videos in one U-Net batch.
        seed: of the first video; the following ones have the following numbers.
    """

    pipe: VidRDPipeline
    folder: Path
    videos: int = 100
    clips: int = 16
    num_frames: int = 8
    steps: int = 25
    guidance_scale: float = 4.0
    batch: int = 25
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must be equal for results to share a table."""
        return {
            **model_identity(self.pipe),
            "clips": self.clips,
            "num_frames": self.num_frames,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": NEGATIVE_PROMPT,
            "seed": self.seed,
        }

    @torch.no_grad()
    def run(self, name: str) -> dict[str, Any]:
        """Make and measure a method's videos, or those that are missing; returns the summary.

        Raises:
            ValueError: the method is not known, or its file holds results of other settings.
        """
        name = canonical(name)
        method = find_method(name)
        _adopt(stored_path(self.folder, name), path := result_path(self.folder, name))
        records = self._finished(path, repr(method))
        scenes = held_out_scenes(self.videos, self.seed)
        while len(records) < self.videos:
            began, first = time.monotonic(), len(records)
            part = scenes[first : first + self.batch]
            seeds = [self.seed + first + n for n in range(len(part))]
            batch = VideoBatch(self.pipe, part, seeds, self.clips, self.num_frames, self.steps, self.guidance_scale)
            made = method.make(batch)
            frames = self._frames(made)
            records += [measure(scene, video, made.starts) for scene, video in zip(part, frames, strict=True)]
            if first == 0:
                _save_samples(path.with_suffix(".png"), frames[:SAMPLES])
            self._write(path, name, repr(method), records, frames.shape[2])
            took = time.monotonic() - began
            logger.info(
                "%s: %d of %d videos, %.4f videos per second (%.2f s per clip and video)",
                name,
                len(records),
                self.videos,
                len(part) / took,
                took / len(part) / self.clips,
            )
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["summary"]
        return summary

    def _finished(self, path: Path, definition: str) -> list[VideoRecord]:
        if not path.is_file():
            return []
        stored = json.loads(path.read_text(encoding="utf-8"))
        before = {"method": current_definition(str(stored.get("definition"))), **stored["settings"]}
        if changed := changes(before, {"method": definition, **self.settings}):
            raise ValueError(f"{path} holds results of other settings: {changed}; choose another folder or delete it")
        return [from_json(record) for record in stored["records"]]

    def _write(self, path: Path, name: str, definition: str, records: list[VideoRecord], frames: int) -> None:
        result = {
            "method": name,
            "definition": definition,
            "settings": self.settings,
            "captions": [record.caption for record in records[:SAMPLES]],
            "summary": {"frames": frames, **summarise(records, self.num_frames)},
            "records": [to_json(record) for record in records],
        }
        write_json(path, result, indent=None)

    def _frames(self, made: GeneratedVideos) -> Tensor:
        """``[B, 3, T, H, W]`` in [-1, 1], decoded in windows as the pipeline does."""
        if made.frames is not None:
            return made.frames
        assert made.latents is not None
        vae = self.pipe.vae

        def decode(latents: Tensor) -> Tensor:
            latents = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
            return vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1).cpu()

        return torch.cat(list(decode_windows(decode, made.latents, self.num_frames)), dim=2)


def _adopt(stored: Path, path: Path) -> None:
    """Rename results and pictures that were stored under an old name."""
    for suffix in (".png", ".json"):
        if stored != path and stored.with_suffix(suffix).is_file():
            os.replace(stored.with_suffix(suffix), path.with_suffix(suffix))


def _save_samples(path: Path, frames: Tensor) -> None:
    """Videos as rows of frames, lossless: ``[B, 3, T, H, W]`` to a picture of B*H by T*W pixels."""
    rows = [np.concatenate(list(to_uint8(video)), axis=1) for video in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def load_samples(path: Path, size: int) -> list[np.ndarray]:
    """The videos of :func:`_save_samples`, each uint8 ``[T, H, W, 3]`` with H = W = ``size``."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return list(rearrange(pixels, "(b h) (t w) c -> b t h w c", h=size, w=size))


def load_results(folder: Path, names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Results by current method name, without their records: those of ``names`` that exist, in that order, or all.

    Raises:
        ValueError: there are none, or they were not made with the same settings.
    """
    if names is None:
        paths = sorted(folder.glob("*.json"))
    else:
        paths = [path for name in dict.fromkeys(map(canonical, names)) if (path := stored_path(folder, name)).is_file()]
    results: dict[str, dict[str, Any]] = {}
    for path in paths:
        stored = json.loads(path.read_text(encoding="utf-8"))
        name = current_name(stored["method"])
        if name not in results or name == stored["method"]:  # results under the current name are newer
            definition = current_definition(str(stored.get("definition")))
            kept = {key: value for key, value in stored.items() if key != "records"}
            results[name] = {**kept, "method": name, "definition": definition}
    if not results:
        raise ValueError(f"{folder} has no results of these methods; make them with `training/evaluate.py compare`")
    first, *others = results.values()
    for other in others:
        if changed := changes(first["settings"], other["settings"]):
            raise ValueError(
                f"{first['method']!r} and {other['method']!r} were made with different settings and cannot "
                f"share a table: {changed}; make one of them again"
            )
    return results
