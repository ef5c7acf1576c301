"""Many clips in one node: a prompt and a seed per clip, every finished clip on disk, resumed and partly made anew."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..vidrd_core.reuse.goal import GoalSettings
from ..vidrd_core.reuse.settings import OLD_NAMES, ReuseSettings
from ..vidrd_core.sampling.seeds import MAX_SEED, clip_seed
from .any_model.families import Family, family_of
from .clip_store import ClipStore, KeptClip
from .clips import first_clip, next_clip
from .goals import close_loop, closing_reuse, cut_loop, loop_start
from .identity import as_json, conditioning_hash, json_hash, model_identity, old_model_identity
from .latents import VideoLatent, tail_hash
from .planning import lead_in
from .progress import making
from .schedules import NO_OVERRIDES, Models, Overrides, first_schedule
from .words import AUTO

logger = logging.getLogger(__name__)

# Of a prior's context what the next clip does not take over; the model counts by itself.
NOT_TAKEN_OVER = ("model", "cfg", "scaling_factor", "reuse")
BETWEEN_SEEDS = re.compile("[\\s,\uff0c\u3001]+")  # also the commas of Chinese


@dataclass(frozen=True)
class Run:
    """What the node was asked for; one entry of ``seeds`` per clip."""

    seeds: list[int]
    cfg: float
    reuse: ReuseSettings
    overrides: Overrides = NO_OVERRIDES
    regenerate_from: int = 0
    sigmas: Tensor | None = None
    tell_levels: str = AUTO
    switch_at_step: int = 0
    preset: str = AUTO
    loop: bool = False

    def closing(self, family: Family, prior: VideoLatent, number: int) -> Run:
        """The same for clip ``number``, which is the last of a loop."""
        clip_frames = 0 if number else self.overrides.clip_frames
        return replace(self, reuse=closing_reuse(family, prior, clip_frames, self.reuse))

    def signature(self, number: int, begins: bool, before: str, model: str, conditionings: str, goal: str = "") -> str:
        """Of everything that makes clip ``number``; equal ones are the same clip.

        Args:
            begins: whether it is the first of a new video, which reuses nothing.
            before: a name for what it continues.
            goal: a hash of what it arrives at.
        """
        overrides = asdict(self.overrides)
        # By the names of earlier versions, whose clips are kept; trimming acts when clips are joined.
        names = {current: old for old, current in OLD_NAMES.items()}
        reuse = {names.get(name, name): value for name, value in asdict(self.reuse).items() if name != "trim_frames"}
        if begins or number:
            del overrides["prior_trajectory"], overrides["clip_frames"]
        values = [before, model, conditionings, self.seeds[number], self.cfg, overrides, None if begins else reuse]
        added = [as_json(self.sigmas), self.tell_levels, self.switch_at_step]  # inputs that earlier versions had not
        values = values if added == [None, AUTO, 0] else [*values, added]
        return json_hash([*values, f"goal {goal}"] if goal else values)

    def check_kept(self, clip: KeptClip, number: int, begins: bool, name: str) -> None:
        """Raise ``ValueError`` where the clips after a kept one cannot be made as it was, of VidRD's."""
        if "format" in clip.latent.context:
            return
        wanted = replace(self.overrides, clip_frames=0) if begins else self.overrides
        made = f"clip {number + 1} of the run {name!r}"
        assert clip.latent.prior is not None
        wanted.check(clip.latent.prior.trajectory, made, "set regenerate_from to 0 to make every clip anew")


def per_clip_prompts(text: str, num_clips: int) -> list[str]:
    """One prompt per line; the last repeats. Empty text gives empty prompts.

    Raises:
        ValueError: there are more prompts than clips.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if len(lines) > num_clips:
        raise ValueError(f"{len(lines)} prompts were given for {num_clips} clips: raise num_clips or drop prompts")
    return [lines[min(n, len(lines) - 1)] for n in range(num_clips)]


def per_clip_seeds(seed: int, listed: str, num_clips: int, first_index: int) -> list[int]:
    """Seeds that were listed (numbers with commas, spaces or lines between), the others derived from ``seed``.

    A ``-`` in the list leaves that clip's derived.

    Raises:
        ValueError: something listed is no seed, or there are more of them than clips.
    """
    seeds = [clip_seed(seed, first_index + n) for n in range(num_clips)]
    words = BETWEEN_SEEDS.sub(" ", listed).split()
    if len(words) > num_clips:
        raise ValueError(f"clip_seeds lists {len(words)} seeds for {num_clips} clips: raise num_clips or drop seeds")
    for number, word in enumerate(words):
        if word == "-":
            continue
        if not word.isdecimal() or int(word) > MAX_SEED:
            raise ValueError(
                f"clip_seeds holds {word!r}; expected whole numbers from 0 to {MAX_SEED}, or - for a derived one"
            )
        seeds[number] = int(word)
    return seeds


def make_clips(
    models: Models,
    encoded: Sequence[tuple[str, Any]],
    negative: Any,
    prior: VideoLatent,
    run: Run,
    run_name: str,
    node: str = "",
    prior_positive: Any = None,
) -> tuple[VideoLatent, VideoLatent, str]:
    """The video with its new clips, the last clip, and a report.

    Args:
        encoded: (prompt, positive conditioning) of each clip.
        prior: what the clips continue; zeros begin a new video, whose first clip is then sampled from noise.
        run_name: where finished clips are kept; empty keeps them until ComfyUI starts again.
        node: the id of the node in its workflow, which tells nodes that share a run name apart.
        prior_positive: as of :func:`nodes.clips.next_clip`, for the first of the clips.
    """
    fresh = prior.begins
    pieces = [] if fresh else [prior.samples]
    sounds = [] if fresh or prior.sound is None else [prior.sound]
    before = prior
    chains = start_of(prior), old_start_of(prior)
    store = ClipStore(run_name, *chains, node)
    family = family_of(models.high)
    identities = (
        " ".join(model_identity(model) for model in (models.high, models.low) if model is not None),
        old_model_identity(models.high),
    )
    if run.loop and fresh and len(encoded) == 1:
        raise ValueError("loop is on, but a loop of one clip would be a goal of its own: set num_clips to at least 2")
    goal, repeated = None, 0
    lines = []
    made = 0
    bar = comfy.utils.ProgressBar(len(run.seeds))
    for number, (prompt, positive) in enumerate(encoded):
        comfy.model_management.throw_exception_if_processing_interrupted()
        begins = fresh and number == 0
        of_prior = None if number or begins else prior_positive
        texts = conditioning_hash(positive, negative, *([] if of_prior is None else [of_prior]))
        goal = loop_start(family, before, pieces[0]) if run.loop and number + 1 == len(encoded) and pieces else None
        aim = "" if goal is None else tail_hash(goal, goal.shape[2])
        named = zip(chains, identities, strict=True)
        own = run if goal is None else run.closing(family, before, number)
        signatures = [own.signature(number, begins, *names, texts, aim) for names in named]
        clip = None
        if number + 1 < run.regenerate_from:
            clip = store.kept(number, run.regenerate_from, len(run.seeds), signatures)
            run.check_kept(clip, number, begins, run_name)
        elif not made and not run.regenerate_from:
            clip = store.find(number, signatures)
        if clip is None:
            made += 1
            with making(number + 1, len(encoded)):
                new, repeated = _make(models, positive, negative, before, own, number, begins, of_prior, goal)
            clip = KeptClip(new, run.seeds[number], prompt, (signatures[0],), repeated=repeated)
            store.save(number, clip)
        else:
            assert clip.latent.prior is not None
            clip.latent.prior.check_model(models.high.model)
            store.adopt(clip, signatures[0])
        did = "made" if made else "reused"
        lines.append(f"clip {number + 1}: {did}, seed {clip.seed}, {clip.prompt or 'positive conditioning'}")
        reuse = run.reuse if goal is None else run.reuse.shortened(clip.overlap(own.reuse))
        trim = 0 if begins else lead_in(family, before) + reuse.trim_frames
        if not begins:
            reuse.check(clip.samples.shape[2])
        pieces.append(clip.samples[:, :, trim:])
        repeated = clip.repeated or GoalSettings.frames  # earlier versions' loops always repeated as many
        if clip.latent.sound is not None:
            sounds.append(clip.latent.sound[:, :, clip.latent.context.get("sound_trim", 0) :])
        before = clip.latent
        chains = clip.content() + signatures[0], clip.content() + signatures[1]
        bar.update_absolute(number + 1)
    if goal is not None:
        return closed(family, pieces, repeated, lines, made)
    joined, tail = torch.cat(pieces, dim=2), pieces[-1].shape[2]
    sound = torch.cat(sounds, dim=2) if sounds else None
    lines.append(f"{made} made, {len(lines) - made} reused; {joined.shape[2]} frames in all")
    last = before.following(before.samples, tail, before.sound)
    return before.following(joined, tail, sound), last, "\n".join(lines)


def closed(
    family: Family, pieces: list[Tensor], repeated: int, lines: list[str], made: int
) -> tuple[VideoLatent, VideoLatent, str]:
    """A loop, its last clip and a report."""
    video, last = cut_loop(family, pieces, repeated)
    told = f"{made} made, {len(lines) - made} reused; {video.samples.shape[2]} frames in all, a loop"
    if family.layout.is_temporal:
        told += "; leave out the first frame after decoding, which the last one shows already"
    return video, last, "\n".join([*lines, told])


def start_of(prior: VideoLatent) -> str:
    """A name for what a run continues: the samples and all that the next clip takes over; of zeros, their shape."""
    if prior.is_empty:
        return old_start_of(prior)
    context = {key: value for key, value in prior.context.items() if key not in NOT_TAKEN_OVER}
    past = None if prior.prior is None else [prior.prior.trajectory.noise, *prior.prior.trajectory.states]
    return json_hash([old_start_of(prior), as_json(context), as_json(past)])


def old_start_of(prior: VideoLatent) -> str:
    """What earlier versions called it, which kept finished clips under that name."""
    if prior.prior is None:
        return tail_hash(prior.samples, prior.samples.shape[2])
    return " ".join(prior.prior.tail_hashes)


def _make(
    models: Models,
    positive: Any,
    negative: Any,
    before: VideoLatent,
    run: Run,
    number: int,
    begins: bool,
    prior_positive: Any,
    goal: Tensor | None = None,
) -> tuple[VideoLatent, int]:
    """A clip, and how many latents of the video's beginning it ends with."""
    seed, family = run.seeds[number], family_of(models.high)
    if begins:
        schedule = first_schedule(models.high, family, run.overrides, run.sigmas)
        return first_clip(models, positive, negative, before, seed, schedule, run.cfg), 0
    overrides = NO_OVERRIDES if number else run.overrides
    asked = (overrides, prior_positive, run.sigmas, run.tell_levels, run.preset)
    make = partial(_next, models, positive, negative, before, seed, run.cfg, run.reuse, *asked)
    if goal is None:
        return make(None), 0
    return close_loop(family, before, overrides.clip_frames, run.reuse.overlap_frames, goal, make)


def _next(*given: Any) -> VideoLatent:
    return next_clip(*given)[1]


def first_index(prior: VideoLatent) -> int:
    """The index in its video of the first clip that is to be made, from which its seed is derived."""
    return prior.context.get("clip_index", -1) + 1


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
