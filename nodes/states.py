"""A LATENT with its trajectory as one safetensors file, to continue on another day."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..vidrd_core.files import read_tensors, write_tensors
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from .latents import KEY, Prior, prior_of, video_hashes, video_samples

FORMAT = "vidrd-latent-1"


def save(latent: dict[str, Any], path: Path, extra: dict[str, Any] | None = None) -> None:
    """Write a LATENT, exactly; an old file is replaced at once or not at all.

    Raises:
        ValueError: it is no video's LATENT, or its trajectory is missing or belongs to other samples.
    """
    samples = video_samples(latent, "LATENT")
    prior = prior_of(latent)
    if prior is None:
        raise ValueError(
            "LATENT has no trajectory that fits its samples, so there is no state to save: connect a LATENT straight "
            "from Sample First Clip or Reuse and Diffuse; for plain latents use Save Latent"
        )
    past = prior.trajectory
    tensors = {"samples": samples, "noise": past.noise}
    tensors |= {f"state.{step}": state for step, state in enumerate(past.states)}
    tensors |= {f"positive.{number}": text for number, text in enumerate(plain_texts(prior.positive))}
    values = {"trajectory": past.metadata(), "tail_frames": prior.tail_frames}
    write_tensors(path, tensors, {"format": FORMAT, "latent": json.dumps(values), "extra": json.dumps(extra or {})})


def load(path: Path) -> dict[str, Any]:
    """Read a LATENT that :func:`save` wrote.

    Raises:
        ValueError: the file is broken or is none.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no state of this node pack; expected a file written by Save VidRD State")
    values = json.loads(metadata["latent"])
    recorded = values["trajectory"]
    trajectory = Trajectory(
        tensors["noise"],
        numbered(tensors, "state"),
        ReuseSettings(**recorded["settings"]),
        recorded["num_steps"],
        recorded["context"],
    )
    samples, tail_frames = tensors["samples"], values["tail_frames"]
    positive = [[text, {}] for text in numbered(tensors, "positive")] or None
    return {"samples": samples, KEY: Prior(trajectory, tail_frames, video_hashes(samples, tail_frames), positive)}


def numbered(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """``name.0``, ``name.1``, ... as far as they go."""
    found: list[Tensor] = []
    while f"{name}.{len(found)}" in tensors:
        found.append(tensors[f"{name}.{len(found)}"])
    return found


def plain_texts(conditioning: Any) -> list[Tensor]:
    """The text states of a conditioning; none where it has areas, masks, time ranges or hooks, which are not saved."""
    entries = conditioning or []
    return [text for text, _ in entries] if all(set(more) <= {"pooled_output"} for _, more in entries) else []


def read_extra(path: Path) -> dict[str, Any]:
    """What was saved beside the LATENT; empty where the file cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("extra", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError):
        return {}
