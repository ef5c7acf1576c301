"""What a video needs to be continued later: the state after a clip, and its safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import read_tensors, write_tensors
from ..models.fingerprints import same_model
from ..reuse.settings import ReuseSettings
from ..reuse.trajectory import Trajectory, numbered
from .interchange import for_scheduler, is_of_sampler
from .settings import SamplingSettings, with_interval_of
from .windows import last_window_start

FORMAT = "vidrd-state-1"
SCALING_FACTOR = 0.18215  # of Stable Diffusion's VAE, which files of earlier versions do not name


@dataclass
class Clip:
    """One finished clip, on the CPU.

    Args:
        latents: ``[B, C, N, h, w]`` as the diffusion model makes them (not divided by the scaling factor).
        index: of the clip in its video, from 0.
        prompt: what it shows.
        seeds: of its fresh noise, one per video of the batch.
        state: what the next clip continues from.
        goal: :meth:`vidrd_core.reuse.goal.Goals.describe` of it.
        skipped: frames at its start and at its end that are left out of the video, beside the trimmed ones.
        trim: frames at its start that repeat the clip before and are left out; None: as the video's settings say.
    """

    latents: Tensor
    index: int
    prompt: str
    seeds: list[int]
    state: VideoState | None = None
    goal: str = ""
    skipped: Sequence[int] = (0, 0)
    trim: int | None = None

    def trimmed(self, settings: ReuseSettings) -> Tensor:
        """The latents without the trimmed frames; a first clip has none."""
        trim = settings.trim_frames if self.trim is None else self.trim
        return self.latents[:, :, trim if self.index else 0 :]

    def joined(self, settings: ReuseSettings) -> Tensor:
        """The latents that go into the video."""
        kept = self.trimmed(settings)
        return kept[:, :, self.skipped[0] : kept.shape[2] - self.skipped[1]]


def join_clips(clips: Iterable[Clip], sampling: SamplingSettings) -> Tensor:
    """The latents of a video's clips, ``[B, C, T, h, w]``, as they are joined."""
    return torch.cat([clip.joined(sampling.reuse) for clip in clips], dim=2)


@dataclass
class VideoState:
    """Everything needed to make the clip after ``clip_index`` as an uninterrupted run would.

    Args:
        trajectory: of the last clip.
        tail: the last joined latents, from the start of the decoder's last full window.
        num_joined: frames of the joined video so far.
        sampling: settings of the last clip.
        seeds: the video's seed, one per video of the batch.
        clip_index: of the last clip, from 0.
        prompt: the last clip's; "" where only its text states are known.
        text: those states, ``[B, M, D]``; None where they are not known either.
        model: :func:`vidrd_core.models.fingerprints.fingerprint` of the U-Net.
        negative: states ``[B or 1, M, D]`` to steer away from, where they were given in place of a prompt.
        scaling_factor: of the VAE: latents on ComfyUI's wires are ``tail / scaling_factor``.
        is_closed: whether the video goes on elsewhere: at its own beginning, as a loop, or with another video.
    """

    trajectory: Trajectory
    tail: Tensor
    num_joined: int
    sampling: SamplingSettings
    seeds: list[int]
    clip_index: int
    prompt: str
    text: Tensor | None
    model: str
    negative: Tensor | None = None
    scaling_factor: float = SCALING_FACTOR
    is_closed: bool = False

    @classmethod
    def after(
        cls,
        clip: Clip,
        trajectory: Trajectory,
        sampling: SamplingSettings,
        seeds: Sequence[int],
        text: Tensor,
        model: str,
        before: VideoState | None,
        negative: Tensor | None = None,
        scaling_factor: float = SCALING_FACTOR,
    ) -> VideoState:
        """The state after ``clip``, which followed ``before``."""
        tail = clip.joined(sampling.reuse)
        total = tail.shape[2]
        if before is not None:
            tail = torch.cat((before.tail, tail), dim=2)
            total += before.num_joined
        tail = tail[:, :, tail.shape[2] - (total - last_window_start(total, sampling.num_frames)) :].clone()
        made = (sampling, list(seeds), clip.index, clip.prompt, text, model, negative, scaling_factor)
        return cls(trajectory, tail, total, *made, is_closed=clip.skipped[1] > 0)

    def check_open(self) -> None:
        """Raise ``ValueError`` where nothing can follow."""
        if self.is_closed:
            raise ValueError(
                "the video is a loop, or joins another video at its end, so no clip can follow its last one: continue "
                "the state before that, or make the video again without"
            )

    def check_model(self, model: str) -> None:
        """Raise ``ValueError`` where the state is another model's."""
        if not same_model(model, self.model):
            raise ValueError("the state was made by another U-Net: load the model that began the video")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, replacing an old one at once."""
        given = {"tail": self.tail, "text": self.text, "negative": self.negative, **self.trajectory.tensors()}
        tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
        write_tensors(path, tensors, {"format": FORMAT, "state": json.dumps(self.metadata())})

    def metadata(self) -> dict[str, Any]:
        """Everything but the tensors, as plain JSON."""
        return {
            "sampling": self.sampling.to_json(),
            "num_joined": self.num_joined,
            "seeds": self.seeds,
            "clip_index": self.clip_index,
            "prompt": self.prompt,
            "model": self.model,
            "scaling_factor": self.scaling_factor,
            "trajectory": self.trajectory.metadata(),
            **({"is_closed": True} if self.is_closed else {}),
        }

    @classmethod
    def load(cls, path: str | Path) -> VideoState:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is not a state, or is broken.
            FileNotFoundError: there is no such file.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no VidRD state: its format is {metadata.get('format')!r}, not {FORMAT!r}")
        return cls.from_file(tensors, json.loads(metadata["state"]))

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> VideoState:
        """The state of a file's tensors and of :meth:`metadata`, of this version or an earlier one.

        Raises:
            ValueError: the video was sampled in ComfyUI in a way that no scheduler here continues.
        """
        recorded = values["trajectory"]
        if is_of_sampler(recorded["context"]):
            return cls._from_comfyui(tensors, values)
        sampling, context = with_interval_of(values["sampling"], recorded["context"])
        return cls(
            Trajectory.from_file(tensors, {**recorded, "context": context}),
            tensors["tail"],
            values["num_joined"],
            SamplingSettings.from_json(sampling),
            values["seeds"],
            values["clip_index"],
            values["prompt"],
            tensors.get("text"),
            values["model"],
            tensors.get("negative"),
            values.get("scaling_factor", SCALING_FACTOR),
            values.get("is_closed", False),
        )

    @classmethod
    def _from_comfyui(cls, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> VideoState:
        """The state of a file that Save VidRD State wrote, whose "samples" are the video so far, unscaled."""
        samples, recorded = tensors["samples"], Trajectory.from_file(tensors, values["trajectory"])
        factor, total = values["scaling_factor"], samples.shape[2]
        trajectory, sampling = for_scheduler(recorded, samples * factor)
        tail = samples[:, :, last_window_start(total, sampling.num_frames) :] * factor
        texts = numbered(tensors, "positive")
        seeds = [recorded.context["seeds"][0] + video for video in range(len(samples))]
        text = texts[0] if len(texts) == 1 else None
        made = (seeds, recorded.context["clip_index"], "", text, recorded.context["model"], tensors.get("negative"))
        return cls(trajectory, tail, total, sampling, *made, factor)
