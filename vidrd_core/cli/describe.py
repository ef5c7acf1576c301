"""What ``vidrd info`` says about models, states, state folders and videos."""

from __future__ import annotations

import json
from pathlib import Path


def describe(path: Path) -> str:
    """What ``vidrd info`` prints about a model, a state, a state folder or a video."""
    if (path / "settings.json").is_file():
        return _describe_job(path)
    if path.suffix.lower() in (".mp4", ".webm", ".gif") or (path / "frame_00000.png").is_file():
        return _describe_video(path)
    if path.suffix == ".safetensors" and path.is_file() and (text := _describe_state(path)):
        return text
    from ..checkpoints import inspect

    return str(inspect(path))


def _describe_job(path: Path) -> str:
    from ..jobs.folder import JobFolder

    folder = JobFolder(path)
    settings = folder.read()
    finished, first = folder.num_finished(), settings.get("first", 0)
    whole = "complete" if settings.get("complete") else "not complete"
    lines = [str(path), f"  state folder of a video, {finished} clips finished, {whole}"]
    for n in range(finished):
        clip = folder.load(first + n)
        lines.append(f"  clip {clip.index}: seed {clip.seeds[0]}, {clip.prompt}")
    lines += [f"  {key}: {value}" for key, value in settings["made"]["sampling"].items()]
    return "\n".join(lines)


def _describe_video(path: Path) -> str:
    from ..video import read_metadata

    metadata = read_metadata(path)
    text = json.dumps(metadata, indent=2, ensure_ascii=False) if metadata else "says nothing about how it was made"
    return f"{path}\n  video\n{text}"


def _describe_state(path: Path) -> str | None:
    from ..files import read_tensors
    from ..sampling.interchange import is_of_sampler
    from ..sampling.state import FORMAT, VideoState

    try:
        tensors, metadata = read_tensors(path)
    except ValueError:  # broken or no safetensors, which the report on checkpoints explains
        return None
    if metadata.get("format") != FORMAT:
        return None
    values = json.loads(metadata["state"])
    if is_of_sampler(context := values["trajectory"]["context"]):
        frames = tensors["samples"].shape[2]
        made_with = f" with {context['family']}" if "family" in context else ""
        lines = [
            f"  state of a video made in ComfyUI{made_with}, after clip {context['clip_index']}, {frames} frames so far"
        ]
        settings = {name: context.get(name) for name in ("sampler", "scheduler", "steps", "cfg", "seeds", "reuse")}
    else:
        state = VideoState.from_file(tensors, values)
        lines = [f"  state of a video after clip {state.clip_index}, {state.num_joined} frames so far"]
        lines += [f"  last prompt: {state.prompt}", f"  seed: {state.seeds[0]}"]
        settings = state.sampling.to_json()
    return "\n".join([str(path), *lines, *(f"  {key}: {value}" for key, value in settings.items())])
