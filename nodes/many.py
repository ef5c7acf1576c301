"""Many clips in one node: a prompt and a seed per clip, every finished clip on disk, resumed and partly made anew."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ..vidrd_core.reuse import ReuseSettings
from ..vidrd_core.seeds import MAX_SEED, clip_seed
from . import states
from .clips import RELEASED_SCHEDULE, Schedule, first_clip, next_clip
from .latents import KEY, prior_of, tail_hash, video_samples, with_prior
from .native.model import vidrd_model
from .words import AUTO, FROM_PRIOR

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What the node was asked for, one entry of ``prompts`` and ``seeds`` per clip."""

    prompts: list[str]
    seeds: list[int]
    cfg: float
    reuse: ReuseSettings
    steps: int = 0
    sampler: str = FROM_PRIOR
    scheduler: str = FROM_PRIOR
    prior_trajectory: str = AUTO
    clip_frames: int = 0
    regenerate_from: int = 0

    def signature(self, number: int, before: str, model: str, conditionings: str) -> str:
        """Of everything that makes clip ``number``; equal ones are the same clip."""
        reuse, steps = asdict(self.reuse), (self.steps, self.sampler, self.scheduler)
        values = [before, model, conditionings, self.seeds[number], self.cfg, reuse, steps]
        values += [self.prior_trajectory, self.clip_frames] if number == 0 else []
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def per_clip_prompts(text: str, num_clips: int) -> list[str]:
    """One prompt per line; the last repeats. Empty text gives empty prompts."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if len(lines) > num_clips:
        logger.warning("There are %d prompts for %d clips; the last ones are not used.", len(lines), num_clips)
    return [lines[min(n, len(lines) - 1)] for n in range(num_clips)]


def per_clip_seeds(seed: int, listed: str, num_clips: int, first_index: int) -> list[int]:
    """Seeds that were listed (numbers with commas, spaces or lines between), the others derived from ``seed``.

    A ``-`` in the list leaves that clip's derived.

    Raises:
        ValueError: something listed is no seed.
    """
    seeds = [clip_seed(seed, first_index + n) for n in range(num_clips)]
    for number, word in enumerate(listed.replace(",", " ").split()[:num_clips]):
        if word == "-":
            continue
        if not word.isdecimal() or int(word) > MAX_SEED:
            raise ValueError(
                f"clip_seeds holds {word!r}; expected whole numbers from 0 to {MAX_SEED}, or - for a derived one"
            )
        seeds[number] = int(word)
    return seeds


class ClipStore:
    """Finished clips of a run in one folder: ``clip_0000.safetensors``, ... ; without a folder nothing is kept."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"clip_{number:04d}.safetensors"

    def find(self, number: int, signature: str | None) -> dict[str, Any] | None:
        """The saved clip, if its signature is this one (None: any)."""
        if self.folder is None or not self.path(number).is_file():
            return None
        saved = states.read_extra(self.path(number)).get("signature")
        return states.load(self.path(number)) if saved is not None and signature in (None, saved) else None

    def save(self, number: int, clip: dict[str, Any], signature: str, prompt: str, seed: int) -> None:
        if self.folder is not None:
            extra = {"signature": signature, "prompt": prompt, "seed": seed}
            states.save(clip, self.path(number), extra)


def make_clips(
    model: Any, encoded: Sequence[tuple[str, Any]], negative: Any, latent: dict[str, Any], plan: Plan, store: ClipStore
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The video with its new clips, the last clip, and a report.

    Args:
        encoded: (prompt, positive conditioning) of each clip.
        latent: what the clips continue; zeros begin a new video, whose first clip is then sampled from noise.
    """
    video = video_samples(latent, "prior")
    fresh = not torch.count_nonzero(video)
    pieces = [] if fresh else [video]
    before = latent
    last = latent
    chain = tail_hash(video, video.shape[2]) if prior_of(latent) is None else latent[KEY].tail_hash
    identity = model_identity(model)
    lines = []
    remade = False
    bar = comfy.utils.ProgressBar(len(plan.seeds))
    for number, (prompt, positive) in enumerate(encoded):
        comfy.model_management.throw_exception_if_processing_interrupted()
        signature = plan.signature(number, chain, identity, conditioning_hash(positive, negative))
        kept = number + 1 < plan.regenerate_from
        clip = None
        if not remade and not (plan.regenerate_from and not kept):
            clip = store.find(number, None if kept else signature)
        if kept and clip is None:
            raise ValueError(
                f"regenerate_from is {plan.regenerate_from}, but clip {number + 1} of this run was never saved: "
                f"choose at most {number + 1}, or 0"
            )
        if clip is None:
            remade = True
            clip = _make(model, positive, negative, before, plan, number, fresh)
            store.save(number, clip, signature, prompt, plan.seeds[number])
        elif KEY in clip:
            clip[KEY].check_model(vidrd_model(model))
        did = "made" if remade else "reused"
        lines.append(f"clip {number + 1}: {did}, seed {plan.seeds[number]}, {prompt or 'positive conditioning'}")
        joined = clip["samples"] if fresh and number == 0 else clip["samples"][:, :, plan.reuse.trim_frames :]
        pieces.append(joined)
        before = last = clip
        chain = clip[KEY].tail_hash + signature
        bar.update_absolute(number + 1)
    joined = torch.cat(pieces, dim=2)
    made = sum(": made," in line for line in lines)
    lines.append(f"{made} made, {len(lines) - made} reused; {joined.shape[2]} frames in all")
    return with_prior(joined, last[KEY].trajectory, last[KEY].tail_frames), last, "\n".join(lines)


def _make(
    model: Any, positive: Any, negative: Any, before: dict[str, Any], plan: Plan, number: int, fresh: bool
) -> dict[str, Any]:
    seed = plan.seeds[number]
    if fresh and number == 0:
        wanted = {"steps": plan.steps, "sampler": plan.sampler, "scheduler": plan.scheduler}
        chosen = {k: v for k, v in wanted.items() if v not in (0, FROM_PRIOR)}
        schedule = Schedule(**{**asdict(RELEASED_SCHEDULE), **chosen})
        return first_clip(model, positive, negative, before, seed, schedule, plan.cfg)
    rest: dict[str, Any] = {}
    if number == 0:
        rest = {
            "steps": plan.steps,
            "sampler": plan.sampler,
            "scheduler": plan.scheduler,
            "prior_trajectory": plan.prior_trajectory,
            "clip_frames": plan.clip_frames,
        }
    return next_clip(model, positive, negative, before, seed, plan.cfg, plan.reuse, **rest)[1]


def model_identity(model: Any) -> str:
    """A name for the model with its LoRAs and with what other nodes changed about its sampling."""
    digest = hashlib.sha256(vidrd_model(model).fingerprint.encode())
    digest.update(json.dumps([described(model.model_options), described(model.object_patches)]).encode())
    for key, patches in sorted(model.patches.items(), key=lambda item: str(item[0])):
        digest.update(str(key).encode())
        for strength, patch, *_ in patches:
            tensors = getattr(patch, "weights", patch)
            digest.update(f"{strength}".encode())
            for value in tensors if isinstance(tensors, (tuple, list)) else ():
                if isinstance(value, torch.Tensor):
                    digest.update(value.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def described(value: Any) -> Any:
    """Options as plain JSON: settings by their values, functions by their names and the settings they carry."""
    if isinstance(value, dict):
        return {str(k): described(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple)):
        return [described(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and hasattr(value, "__qualname__"):
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        return [value.__qualname__, [v for v in cells if isinstance(v, (bool, int, float, str))]]
    return type(value).__qualname__


def conditioning_hash(*conditionings: Any) -> str:
    """Of the text states; other entries of a conditioning count by their names."""
    digest = hashlib.sha256()
    for conditioning in conditionings:
        for states_, options in conditioning:
            digest.update(states_.detach().float().cpu().contiguous().numpy().tobytes())
            plain = {k: v for k, v in options.items() if isinstance(v, (int, float, str, bool, tuple))}
            digest.update(json.dumps([sorted(options), plain], default=str, sort_keys=True).encode())
    return digest.hexdigest()


def first_index(latent: dict[str, Any]) -> int:
    """The index in its video of the first clip that is to be made, from which its seed is derived."""
    prior = latent.get(KEY)
    return 0 if prior is None else prior.trajectory.context["clip_index"] + 1


def encode(clip: Any, prompts: Sequence[str], positive: Any = None) -> list[tuple[str, Any]]:
    """(prompt, conditioning) of each clip; equal prompts are encoded once. ``positive`` replaces them all."""
    if positive is not None:
        return [("", positive)] * len(prompts)
    if clip is None:
        raise ValueError(
            "CLIP is empty: this checkpoint has no text encoder; connect Load CLIP with Stable Diffusion 2.1's"
        )
    known = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in dict.fromkeys(prompts)}
    return [(text, known[text]) for text in prompts]


def run_store(name: str) -> ClipStore:
    """The store of a run name; an empty name keeps nothing."""
    if not name.strip():
        return ClipStore(None)
    from .files import output_path

    return ClipStore(output_path(name) / "clips")
