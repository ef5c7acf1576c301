"""What a video needs to be continued later: the state after a clip, and its safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files import read_tensors, write_tensors
from ..models.fingerprints import same_model
from ..reuse.settings import ReuseSettings
from ..reuse.trajectory import Trajectory
from .settings import SamplingSettings
from .windows import last_window_start

FORMAT = "vidrd-state-1"


@dataclass
class Clip:
    """One finished clip, on the CPU.

    Args:
        latents: ``[B, C, N, h, w]`` as the diffusion model makes them (not divided by the scaling factor).
        index: of the clip in its video, from 0.
        prompt: what it shows.
        seeds: of its fresh noise, one per video of the batch.
        state: what the next clip goes on from.
    """

    latents: Tensor
    index: int
    prompt: str
    seeds: list[int]
    state: VideoState | None = None

    def joined(self, settings: ReuseSettings) -> Tensor:
        """The latents that go into the video: all of a first clip, without the trimmed frames of the others."""
        return self.latents if self.index == 0 else self.latents[:, :, settings.trim_frames :]


@dataclass
class VideoState:
    """Everything needed to make the clip after ``clip_index`` as if the video had never stopped.

    Args:
        trajectory: of the last clip.
        tail: the last joined latents, from the start of the decoder's last full window.
        num_joined: frames of the joined video so far.
        sampling: settings of the last clip.
        seeds: the video's seed, one per video of the batch.
        clip_index: of the last clip, from 0.
        prompt, text: the last clip's, as words and as states ``[B, M, D]``.
        model: :func:`fingerprint` of the U-Net.
        negative: states ``[B or 1, M, D]`` to steer away from, where they were given in place of a prompt.
    """

    trajectory: Trajectory
    tail: Tensor
    num_joined: int
    sampling: SamplingSettings
    seeds: list[int]
    clip_index: int
    prompt: str
    text: Tensor
    model: str
    negative: Tensor | None = None

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
    ) -> VideoState:
        """The state after ``clip``, which followed ``before``."""
        tail = clip.joined(sampling.reuse)
        total = tail.shape[2]
        if before is not None:
            tail = torch.cat((before.tail, tail), dim=2)
            total += before.num_joined
        tail = tail[:, :, tail.shape[2] - (total - last_window_start(total, sampling.num_frames)) :].clone()
        return cls(trajectory, tail, total, sampling, list(seeds), clip.index, clip.prompt, text, model, negative)

    def check_model(self, model: str) -> None:
        """Raise ``ValueError`` where the state is another model's."""
        if not same_model(model, self.model):
            raise ValueError("the state was made by another U-Net: load the model that began the video")

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, replacing an old one at once."""
        path = Path(path)
        tensors = {"tail": self.tail, "text": self.text, "noise": self.trajectory.noise}
        if self.negative is not None:
            tensors["negative"] = self.negative
        tensors |= {f"state.{step}": state for step, state in enumerate(self.trajectory.states)}
        values = {
            "sampling": self.sampling.to_json(),
            "num_joined": self.num_joined,
            "seeds": self.seeds,
            "clip_index": self.clip_index,
            "prompt": self.prompt,
            "model": self.model,
            "trajectory": self.trajectory.metadata(),
        }
        write_tensors(path, tensors, {"format": FORMAT, "state": json.dumps(values)})

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
        values = json.loads(metadata["state"])
        recorded = values["trajectory"]
        states = [tensors[f"state.{step}"] for step in range(sum(key.startswith("state.") for key in tensors))]
        trajectory = Trajectory(
            tensors["noise"],
            states,
            ReuseSettings(**recorded["settings"]),
            recorded["num_steps"],
            recorded["context"],
        )
        return cls(
            trajectory,
            tensors["tail"],
            values["num_joined"],
            SamplingSettings.from_json(values["sampling"]),
            values["seeds"],
            values["clip_index"],
            values["prompt"],
            tensors["text"],
            values["model"],
            tensors.get("negative"),
        )
