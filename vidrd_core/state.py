"""What a video needs to go on later: the state after a clip, and its safetensors file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .decoding import last_window_start
from .fingerprints import fingerprint as fingerprint
from .fingerprints import same_model
from .reuse import ReuseSettings, Trajectory

FORMAT = "vidrd-state-1"


@dataclass(frozen=True)
class SamplingSettings:
    """How clips are sampled. Everything here is stored in a state; defaults are the released values."""

    num_frames: int = 8
    height: int = 256  # pixels
    width: int = 256
    num_inference_steps: int = 50
    guidance_scale: float = 10.0
    reuse: ReuseSettings = ReuseSettings()
    negative_prompt: str | None = "watermark"
    guidance_rescale: float = 0.0  # of vidrd_core.remedies.rescale_guidance; 0 is off

    def __post_init__(self) -> None:
        if not 1 <= self.num_frames <= 32:
            raise ValueError(f"num_frames is {self.num_frames}; expected 1 to 32 frames per clip")
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {self.num_inference_steps}; expected at least 1")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; expected a number, 1 (off) to about 20")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.guidance_rescale}; expected 0 (off) to 1")
        self.reuse.check(self.num_frames)

    @property
    def num_new_frames(self) -> int:
        """Frames that a clip after the first adds to the video."""
        return self.num_frames - self.reuse.trim_frames

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SamplingSettings:
        return cls(**{**values, "reuse": ReuseSettings(**values["reuse"])})


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


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that ``path`` holds the old or the whole new content at any moment.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        usual = partial.stat().st_mode  # safetensors lets nobody but the owner read its files
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, dict(metadata))
        partial.chmod(usual)
        sync_and_replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}); is the disk full?") from error
    finally:
        partial.unlink(missing_ok=True)


def sync_and_replace(partial: Path, path: Path) -> None:
    """Give a finished file its final name, its content on the disk first, so that a power cut leaves no empty file."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: the file is broken or no safetensors.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a state file (.safetensors)")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copies: a file that is mapped into memory cannot be replaced on Windows.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); it is broken or not a state") from error
    return tensors, metadata
