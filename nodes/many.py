"""Many clips in one node: a prompt and a seed per clip, every finished clip on disk, resumed and partly made anew."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..vidrd_core.reuse import ReuseSettings
from ..vidrd_core.seeds import MAX_SEED, clip_seed
from . import states
from .clips import Overrides, first_clip, next_clip
from .files import output_path
from .identity import conditioning_hash, hashed, model_identity
from .latents import KEY, known_context, prior_of, tail_hash, video_samples, with_prior
from .native.model import vidrd_model

logger = logging.getLogger(__name__)

BETWEEN_SEEDS = re.compile("[\\s,\uff0c\u3001]+")  # also the commas of Chinese


@dataclass(frozen=True)
class Plan:
    """What the node was asked for; one entry of ``seeds`` per clip."""

    seeds: list[int]
    cfg: float
    reuse: ReuseSettings
    overrides: Overrides = Overrides()
    regenerate_from: int = 0

    def signature(self, number: int, begins: bool, before: str, model: str, conditionings: str) -> str:
        """Of everything that makes clip ``number``; equal ones are the same clip.

        Args:
            begins: whether it is the first of a new video, which reuses nothing.
            before: a name for what it goes on from.
        """
        overrides, reuse = asdict(self.overrides), asdict(self.reuse)
        del reuse["trim_frames"]  # acts when clips are joined
        if begins or number:
            del overrides["prior_trajectory"], overrides["clip_frames"]
        values = [before, model, conditionings, self.seeds[number], self.cfg, overrides, None if begins else reuse]
        return hashed(values)


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
    for number, word in enumerate(BETWEEN_SEEDS.sub(" ", listed).split()[:num_clips]):
        if word == "-":
            continue
        if not word.isdecimal() or int(word) > MAX_SEED:
            raise ValueError(
                f"clip_seeds holds {word!r}; expected whole numbers from 0 to {MAX_SEED}, or - for a derived one"
            )
        seeds[number] = int(word)
    return seeds


@dataclass(frozen=True)
class SavedClip:
    """A finished clip.

    Args:
        seed, prompt: that it was made with.
        signatures: of the plan that it was made by, and of later ones that kept it.
    """

    latent: dict[str, Any]
    seed: int
    prompt: str
    signatures: tuple[str, ...]

    @property
    def samples(self) -> Tensor:
        return self.latent["samples"]

    def content(self) -> str:
        return tail_hash(self.samples, self.samples.shape[2])


class ClipStore:
    """Finished clips of a run that go on from one video: ``clip_0000.safetensors``, ... ; without a name none is kept.

    Each video that a run has been used for has a folder of its own, so that two nodes of one run name, or a node whose
    prior changed, leave each other's clips alone.
    """

    def __init__(self, name: str, start: str):
        self.name = name
        self.folder: Path | None = output_path(name) / "clips" / hashed(start)[:12] if name else None

    def path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"clip_{number:04d}.safetensors"

    def find(self, number: int, signature: str | None) -> SavedClip | None:
        """The saved clip, if one of its signatures is this one (None: any)."""
        if self.folder is None or not self.path(number).is_file():
            return None
        extra = states.read_extra(self.path(number))
        signatures = tuple(extra.get("signatures", ()))
        if not signatures or signature not in (None, *signatures):
            return None
        return SavedClip(states.load(self.path(number)), extra["seed"], extra["prompt"], signatures)

    def save(self, number: int, clip: SavedClip) -> None:
        if self.folder is not None:
            extra = {"signatures": clip.signatures, "prompt": clip.prompt, "seed": clip.seed}
            states.save(clip.latent, self.path(number), extra)

    def kept(self, number: int, plan: Plan, begins: bool) -> SavedClip:
        """The saved clip, whatever it was made with.

        Raises:
            ValueError: there is none, or those after it cannot be made as the plan wants.
        """
        if self.folder is None:
            raise ValueError(
                f"regenerate_from is {plan.regenerate_from} but run_name is empty, so that no clips are kept: set "
                "run_name to that of an earlier run, or regenerate_from to 0"
            )
        clip = self.find(number, None)
        if clip is None:
            raise ValueError(
                f"regenerate_from is {plan.regenerate_from}, but clip {number + 1} of the run {self.name!r} was never "
                f"saved for this prior at this size: choose at most {number + 1}, or 0"
            )
        wanted = replace(plan.overrides, clip_frames=0) if begins else plan.overrides
        made = f"clip {number + 1} of the run {self.name!r}"
        wanted.check(clip.latent[KEY].trajectory, made, "set regenerate_from to 0 to make every clip anew")
        return clip

    def adopt(self, number: int, clip: SavedClip, signature: str) -> None:
        """Make a kept clip part of the plan that this is the signature of, so that a later run finds it."""
        if signature not in clip.signatures:
            self.save(number, replace(clip, signatures=(*clip.signatures, signature)))


def make_clips(
    model: Any,
    encoded: Sequence[tuple[str, Any]],
    negative: Any,
    latent: dict[str, Any],
    plan: Plan,
    run_name: str,
    prior_positive: Any = None,
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The video with its new clips, the last clip, and a report.

    Args:
        encoded: (prompt, positive conditioning) of each clip.
        latent: what the clips continue; zeros begin a new video, whose first clip is then sampled from noise.
        run_name: where finished clips are kept; empty keeps nothing.
        prior_positive: as of :func:`nodes.clips.next_clip`, for the first of the clips.
    """
    video = video_samples(latent, "prior")
    fresh = not torch.count_nonzero(video)
    pieces = [] if fresh else [video]
    before = latent
    chain = start_of(latent, video)
    store = ClipStore(run_name, chain)
    identity = model_identity(model)
    lines = []
    made = 0
    bar = comfy.utils.ProgressBar(len(plan.seeds))
    for number, (prompt, positive) in enumerate(encoded):
        comfy.model_management.throw_exception_if_processing_interrupted()
        begins = fresh and number == 0
        of_prior = None if number or begins else prior_positive
        texts = conditioning_hash(positive, negative, *([] if of_prior is None else [of_prior]))
        signature = plan.signature(number, begins, chain, identity, texts)
        clip = None
        if number + 1 < plan.regenerate_from:
            clip = store.kept(number, plan, begins)
        elif not made and not plan.regenerate_from:
            clip = store.find(number, signature)
        if clip is None:
            made += 1
            new = _make(model, positive, negative, before, plan, number, begins, of_prior)
            clip = SavedClip(new, plan.seeds[number], prompt, (signature,))
            store.save(number, clip)
        else:
            clip.latent[KEY].check_model(vidrd_model(model))
            store.adopt(number, clip, signature)
        did = "made" if made else "reused"
        lines.append(f"clip {number + 1}: {did}, seed {clip.seed}, {clip.prompt or 'positive conditioning'}")
        if not begins:
            plan.reuse.check(clip.samples.shape[2])
        pieces.append(clip.samples if begins else clip.samples[:, :, plan.reuse.trim_frames :])
        before = clip.latent
        chain = clip.content() + signature
        bar.update_absolute(number + 1)
    joined, tail = torch.cat(pieces, dim=2), pieces[-1].shape[2]
    past = (before[KEY].trajectory, tail, before[KEY].positive)
    lines.append(f"{made} made, {len(lines) - made} reused; {joined.shape[2]} frames in all")
    return with_prior(joined, *past), with_prior(before["samples"], *past), "\n".join(lines)


def start_of(latent: dict[str, Any], video: Tensor) -> str:
    """A name for what a run goes on from; of zeros, their shape."""
    prior = prior_of(latent)
    return tail_hash(video, video.shape[2]) if prior is None else " ".join(prior.tail_hashes)


def _make(
    model: Any,
    positive: Any,
    negative: Any,
    before: dict[str, Any],
    plan: Plan,
    number: int,
    begins: bool,
    prior_positive: Any,
) -> dict[str, Any]:
    seed = plan.seeds[number]
    if begins:
        return first_clip(model, positive, negative, before, seed, plan.overrides.schedule({}), plan.cfg)
    overrides = Overrides() if number else plan.overrides
    return next_clip(model, positive, negative, before, seed, plan.cfg, plan.reuse, overrides, prior_positive)[1]


def first_index(latent: dict[str, Any]) -> int:
    """The index in its video of the first clip that is to be made, from which its seed is derived."""
    return known_context(latent).get("clip_index", -1) + 1


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
