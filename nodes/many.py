"""Many clips in one node: a prompt and a seed per clip, every finished clip on disk, resumed and partly made anew."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..vidrd_core.files import sync_and_replace
from ..vidrd_core.reuse.settings import OLD_NAMES, ReuseSettings
from ..vidrd_core.sampling.seeds import MAX_SEED, clip_seed
from . import states
from .clips import Overrides, first_clip, next_clip
from .files import output_path
from .identity import as_json, conditioning_hash, json_hash, model_identity, old_model_identity
from .latents import VideoLatent, tail_hash
from .native.model import vidrd_model

logger = logging.getLogger(__name__)

# Of a prior's context what the next clip does not take over; the model counts by itself.
NOT_TAKEN_OVER = ("model", "cfg", "scaling_factor", "reuse")
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
        overrides = asdict(self.overrides)
        # By the names of earlier versions, whose clips are kept; trimming acts when clips are joined.
        names = {current: old for old, current in OLD_NAMES.items()}
        reuse = {names.get(name, name): value for name, value in asdict(self.reuse).items() if name != "trim_frames"}
        if begins or number:
            del overrides["prior_trajectory"], overrides["clip_frames"]
        values = [before, model, conditionings, self.seeds[number], self.cfg, overrides, None if begins else reuse]
        return json_hash(values)


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
class KeptClip:
    """A finished clip.

    Args:
        seed, prompt: that it was made with.
        signatures: of the plan that it was made by, and of later ones that kept it.
        follows: the file of the clip before it, in the run's folder; None: the first, or of an earlier version.
        file: its own, likewise; None: not saved.
    """

    latent: VideoLatent
    seed: int
    prompt: str
    signatures: tuple[str, ...]
    follows: str | None = None
    file: str | None = None

    @property
    def samples(self) -> Tensor:
        return self.latent.samples

    def content(self) -> str:
        return tail_hash(self.samples, self.samples.shape[2])


class ClipStore:
    """Finished clips of a run that go on from one video or begin new ones; without a name none is kept.

    Each clip has a file of its own, ``clip_0000_<hash>.safetensors``, which says which one it follows, and nothing is
    ever overwritten: two nodes of one run name, a node whose prior, prompts or seeds changed, and a clip that is made
    once more leave what is there alone. ``lines.json`` says which clips each node used last.

    Args:
        start: a name for what the clips go on from; has a folder of its own.
        old_start: what earlier versions called it, whose clips (``clip_0000.safetensors``, ...) are found too.
        node: the id of the node in its workflow; "" where it is not known.
    """

    def __init__(self, name: str, start: str, old_start: str | None = None, node: str = ""):
        self.name = name
        self.node = node
        self.root: Path | None = output_path(name) / "clips" if name else None
        self.folders = [json_hash(one)[:12] for one in dict.fromkeys((start, old_start or start))]
        self.line: list[str] = []  # files of the clips so far
        self.kept_line: list[str] = []

    def find(self, number: int, signatures: Collection[str]) -> KeptClip | None:
        """The saved clip that has one of these signatures; of several the one that was used last."""
        known = [file for file in self.files(number) if {*signatures} & {*self.extra(file).get("signatures", ())}]
        lines = self.lines()
        used = {file: (file in lines.get(self.node, ()), self.time(file)) for file in known}
        return self.load(max(used, key=lambda file: used[file])) if used else None

    def save(self, number: int, clip: KeptClip) -> None:
        if self.root is not None:
            follows = self.line[-1] if self.line else None
            digest = json_hash([clip.content(), clip.signatures, follows])[:12]
            self.write(replace(clip, follows=follows, file=f"{self.folders[0]}/clip_{number:04d}_{digest}.safetensors"))

    def adopt(self, clip: KeptClip, signature: str) -> None:
        """Make a kept clip part of the plan that this is the signature of, so that a later run finds it."""
        self.write(clip, *(() if signature in clip.signatures else (signature,)))

    def write(self, clip: KeptClip, *added: str) -> None:
        """Keep a clip, or the signatures that are added to a kept one, and remember that this node uses it."""
        assert self.root is not None and clip.file is not None
        path = self.root / clip.file
        if added or not path.is_file():
            extra = {"signatures": (*clip.signatures, *added), "prompt": clip.prompt, "seed": clip.seed}
            states.save(clip.latent, path, extra | {"follows": clip.follows})
        self.line.append(clip.file)
        lines = {node: line for node, line in self.lines().items() if node != self.node}
        partial = self.lines_path().with_name("lines.json.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({**lines, self.node: self.line}, indent=1), encoding="utf-8")
        sync_and_replace(partial, self.lines_path())

    def kept(self, number: int, plan: Plan, begins: bool, signatures: Collection[str]) -> KeptClip:
        """The saved clip, whatever it was made with; all that are kept are one video's.

        Args:
            signatures: of the plan's clip, which tell the video of another node apart.

        Raises:
            ValueError: there is none, or those after it cannot be made as the plan wants.
        """
        if self.root is None:
            raise ValueError(
                f"regenerate_from is {plan.regenerate_from} but run_name is empty, so that no clips are kept: set "
                "run_name to that of an earlier run, or regenerate_from to 0"
            )
        if not number:
            self.kept_line = self.choose_line(min(plan.regenerate_from - 1, len(plan.seeds)), signatures)
        if number >= len(self.kept_line):
            raise ValueError(
                f"regenerate_from is {plan.regenerate_from}, but clip {number + 1} of the run {self.name!r} was never "
                f"saved for this prior at this size: choose at most {number + 1}, or 0"
            )
        clip = self.load(self.kept_line[number])
        wanted = replace(plan.overrides, clip_frames=0) if begins else plan.overrides
        made = f"clip {number + 1} of the run {self.name!r}"
        assert clip.latent.prior is not None
        wanted.check(clip.latent.prior.trajectory, made, "set regenerate_from to 0 to make every clip anew")
        return clip

    def choose_line(self, length: int, signatures: Collection[str]) -> list[str]:
        """Files of so many clips that follow each other, or of the most that do: what this node used last, else what
        begins with a clip of these signatures, else what was used last by any."""
        found = [[file] for file in self.files(0)]
        for number in range(1, length):
            files = self.files(number)
            longer = [[*line, file] for line in found for file in files if self.before(file) == line[-1]]
            if not longer:
                break
            found = longer
        lines = self.lines()
        last = list(lines.values())[-1] if lines else []

        def rank(line: list[str]) -> tuple[Any, ...]:
            own = lines.get(self.node, [])[: len(line)] == line
            exact = bool({*signatures} & {*self.extra(line[0])["signatures"]})
            return own and self.node != "", exact, own, last[: len(line)] == line, self.time(line[-1])

        return max(found, key=rank, default=[])

    def files(self, number: int) -> list[str]:
        """All clips that were ever saved at a place in the video."""
        if self.root is None:
            return []
        pattern = f"clip_{number:04d}*.safetensors"
        paths = sorted(path for folder in self.folders for path in (self.root / folder).glob(pattern))
        files = [path.relative_to(self.root).as_posix() for path in paths]
        return [file for file in files if self.extra(file).get("signatures")]

    def before(self, file: str) -> str | None:
        """The file of the clip that one follows."""
        folder, _, name = file.partition("/")
        if "_" in name.removeprefix("clip_"):
            return self.extra(file).get("follows")
        return f"{folder}/clip_{int(name[5:9]) - 1:04d}.safetensors"  # an earlier version's, one video to a folder

    def extra(self, file: str) -> dict[str, Any]:
        assert self.root is not None
        return states.read_extra(self.root / file)

    def time(self, file: str) -> int:
        assert self.root is not None
        return (self.root / file).stat().st_mtime_ns

    def load(self, file: str) -> KeptClip:
        assert self.root is not None
        extra = self.extra(file)
        signatures = tuple(extra["signatures"])
        latent = states.load(self.root / file)
        return KeptClip(latent, extra["seed"], extra["prompt"], signatures, extra.get("follows"), file)

    def lines_path(self) -> Path:
        assert self.root is not None
        return self.root / self.folders[0] / "lines.json"

    def lines(self) -> dict[str, list[str]]:
        """Node -> files of the clips that it used last; the latest comes last."""
        if self.root is None:
            return {}
        try:
            lines = json.loads(self.lines_path().read_text(encoding="utf-8"))
            return {str(node): [str(file) for file in line] for node, line in lines.items()}
        except (OSError, ValueError, AttributeError, TypeError):  # a hint only: the clips say themselves what they are
            return {}


def make_clips(
    model: Any,
    encoded: Sequence[tuple[str, Any]],
    negative: Any,
    prior: VideoLatent,
    plan: Plan,
    run_name: str,
    node: str = "",
    prior_positive: Any = None,
) -> tuple[VideoLatent, VideoLatent, str]:
    """The video with its new clips, the last clip, and a report.

    Args:
        encoded: (prompt, positive conditioning) of each clip.
        prior: what the clips continue; zeros begin a new video, whose first clip is then sampled from noise.
        run_name: where finished clips are kept; empty keeps nothing.
        node: the id of the node in its workflow, which tells nodes that share a run name apart.
        prior_positive: as of :func:`nodes.clips.next_clip`, for the first of the clips.
    """
    fresh = prior.is_empty
    pieces = [] if fresh else [prior.samples]
    before = prior
    chains = start_of(prior), old_start_of(prior)
    store = ClipStore(run_name, *chains, node)
    identities = model_identity(model), old_model_identity(model)
    lines = []
    made = 0
    bar = comfy.utils.ProgressBar(len(plan.seeds))
    for number, (prompt, positive) in enumerate(encoded):
        comfy.model_management.throw_exception_if_processing_interrupted()
        begins = fresh and number == 0
        of_prior = None if number or begins else prior_positive
        texts = conditioning_hash(positive, negative, *([] if of_prior is None else [of_prior]))
        signatures = [plan.signature(number, begins, *names, texts) for names in zip(chains, identities, strict=True)]
        clip = None
        if number + 1 < plan.regenerate_from:
            clip = store.kept(number, plan, begins, signatures)
        elif not made and not plan.regenerate_from:
            clip = store.find(number, signatures)
        if clip is None:
            made += 1
            new = _make(model, positive, negative, before, plan, number, begins, of_prior)
            clip = KeptClip(new, plan.seeds[number], prompt, (signatures[0],))
            store.save(number, clip)
        else:
            assert clip.latent.prior is not None
            clip.latent.prior.check_model(vidrd_model(model))
            store.adopt(clip, signatures[0])
        did = "made" if made else "reused"
        lines.append(f"clip {number + 1}: {did}, seed {clip.seed}, {clip.prompt or 'positive conditioning'}")
        if not begins:
            plan.reuse.check(clip.samples.shape[2])
        pieces.append(clip.samples if begins else clip.samples[:, :, plan.reuse.trim_frames :])
        before = clip.latent
        chains = clip.content() + signatures[0], clip.content() + signatures[1]
        bar.update_absolute(number + 1)
    joined, tail = torch.cat(pieces, dim=2), pieces[-1].shape[2]
    lines.append(f"{made} made, {len(lines) - made} reused; {joined.shape[2]} frames in all")
    return before.following(joined, tail), before.following(before.samples, tail), "\n".join(lines)


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
    model: Any,
    positive: Any,
    negative: Any,
    before: VideoLatent,
    plan: Plan,
    number: int,
    begins: bool,
    prior_positive: Any,
) -> VideoLatent:
    seed = plan.seeds[number]
    if begins:
        return first_clip(model, positive, negative, before, seed, plan.overrides.schedule({}), plan.cfg)
    overrides = Overrides() if number else plan.overrides
    return next_clip(model, positive, negative, before, seed, plan.cfg, plan.reuse, overrides, prior_positive)[1]


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
