"""A LATENT with its trajectory as one safetensors file, to continue on another day, here or with ``vidrd extend``.

The file is that of :class:`vidrd_core.sampling.state.VideoState`, with the whole video ("samples", exactly as on the
wire) in place of its tail.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..vidrd_core.files import read_tensors, write_tensors
from ..vidrd_core.jobs.folder import JobFolder
from ..vidrd_core.reuse.trajectory import Trajectory, numbered
from ..vidrd_core.sampling.interchange import for_sampler, is_of_sampler
from ..vidrd_core.sampling.state import FORMAT, SCALING_FACTOR, VideoState, join_clips
from .any_model.layouts import layout_of
from .latents import VideoLatent

OLD_FORMAT = "vidrd-latent-1"


def save(latent: VideoLatent, path: Path, extra: dict[str, Any] | None = None) -> None:
    """Write a LATENT, exactly; an old file is replaced at once or not at all.

    Raises:
        ValueError: its trajectory is missing or belongs to other samples.
    """
    prior = latent.prior
    if prior is None:
        raise ValueError(
            "LATENT has no trajectory that fits its samples, so there is no state to save: connect a LATENT straight "
            "from Sample First Clip or Reuse and Diffuse; for plain latents use Save Latent"
        )
    tensors = {"samples": latent.samples.contiguous(), **prior.trajectory.tensors()}
    if latent.sound is not None and prior.sound is not None:
        of_sound = prior.sound.tensors()
        tensors |= {"sound": latent.sound, **{f"sound.{name}": tensor for name, tensor in of_sound.items()}}
    tensors |= {f"positive.{number}": text for number, text in enumerate(plain_texts(prior.positive))}
    negative = plain_texts(prior.negative)
    if len(negative) == 1:
        tensors["negative"] = negative[0]
    values = {
        "trajectory": prior.trajectory.metadata(),
        "tail_frames": prior.tail_frames,
        "scaling_factor": prior.context.get("scaling_factor", SCALING_FACTOR),
    }
    write_tensors(path, tensors, {"format": FORMAT, "state": json.dumps(values), "extra": json.dumps(extra or {})})


def load(path: Path) -> VideoLatent:
    """Read a LATENT that :func:`save` wrote, or the video that a state of ``vidrd`` belongs to.

    Of a state in its job's folder that is the whole video, else the last frames of it.

    Raises:
        ValueError: the file is broken or is none, or its scheduler has no sampler that continues its work.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") not in (FORMAT, OLD_FORMAT):
        raise ValueError(f"{path} is no state of this node pack; expected a file written by Save VidRD State")
    values = json.loads(metadata["latent" if metadata["format"] == OLD_FORMAT else "state"])
    if not is_of_sampler(values["trajectory"]["context"]):
        return of_command_line(VideoState.from_file(tensors, values), path)
    trajectory = Trajectory.from_file(tensors, values["trajectory"])
    positive = conditioning(numbered(tensors, "positive"))
    negative = conditioning([tensors["negative"]] if "negative" in tensors else [])
    layout = layout_of(trajectory.context)
    sound = None
    if "sound" in tensors:
        named = {name.removeprefix("sound."): held for name, held in tensors.items() if name.startswith("sound.")}
        recorded = Trajectory.from_file(named, values["trajectory"])
        sound = tensors["sound"], recorded
    return VideoLatent.made(tensors["samples"], trajectory, values["tail_frames"], positive, negative, layout, sound)


def of_command_line(state: VideoState, path: Path) -> VideoLatent:
    """The LATENT of a state that ``vidrd`` or :class:`vidrd_core.VidRDPipeline` wrote."""
    trajectory = for_sampler(state.trajectory, state.sampling, state.seeds, state.clip_index, state.model)
    trajectory = trajectory.with_context(scaling_factor=state.scaling_factor)
    video = state.tail
    if (path.parent / "settings.json").is_file():
        folder = JobFolder(path.parent)
        first = folder.read().get("first", 0)
        clips = [folder.load(index) for index in range(first, state.clip_index + 1)]
        video = join_clips(clips, state.sampling)
    tail = state.sampling.num_frames if state.clip_index == 0 else state.sampling.num_new_frames
    texts = [conditioning([] if text is None else [text]) for text in (state.text, state.negative)]
    return VideoLatent.made(video / state.scaling_factor, trajectory, min(tail, video.shape[2]), *texts)


def conditioning(texts: list[Tensor]) -> Any:
    """A conditioning of text states; None where there are none."""
    return [[text, {}] for text in texts] or None


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
