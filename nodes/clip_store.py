"""The finished clips of Many Clips on disk: found again by what made them, never overwritten."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..vidrd_core.files import write_json
from ..vidrd_core.reuse.settings import ReuseSettings
from . import states
from .files import output_path, temporary_folder
from .identity import json_hash
from .latents import VideoLatent, tail_hash


@dataclass(frozen=True)
class KeptClip:
    """A finished clip.

    Args:
        seed, prompt: that it was made with.
        signatures: of the plan that it was made by, and of later ones that kept it.
        follows: the file of the clip before it, in the run's folder; None: the first, or of an earlier version.
        file: its own, likewise; None: not saved.
        repeated: latents at its end that repeat the video's beginning, as the last of a loop.
    """

    latent: VideoLatent
    seed: int
    prompt: str
    signatures: tuple[str, ...]
    follows: str | None = None
    file: str | None = None
    repeated: int = 0

    @property
    def samples(self) -> Tensor:
        return self.latent.samples

    def overlap(self, asked: ReuseSettings) -> int:
        """M, the latents that it was made to repeat; of a clip that does not say it, as many as were ``asked``."""
        made_by: Mapping[str, Any] = self.latent.context.get("reuse") or {}
        return int(made_by.get("overlap_frames", asked.overlap_frames))

    def content(self) -> str:
        return tail_hash(self.samples, self.samples.shape[2])


class ClipStore:
    """Finished clips of a run that continue one video or begin new ones; without a name, until ComfyUI starts again.

    Each clip has a file of its own, ``clip_0000_<hash>.safetensors``, which says which one it follows, and nothing is
    ever overwritten: two nodes of one run name, a node whose prior, prompts or seeds changed, and a clip that is made
    once more leave what is there alone. ``lines.json`` says which clips each node used last.

    Args:
        start: a name for what the clips continue; has a folder of its own.
        old_start: what earlier versions called it, whose clips (``clip_0000.safetensors``, ...) are found too.
        node: the id of the node in its workflow; "" where it is not known.
    """

    def __init__(self, name: str, start: str, old_start: str | None = None, node: str = ""):
        self.name = name
        self.node = node
        self.root = (output_path(name) if name else temporary_folder()) / "clips"
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
        follows = self.line[-1] if self.line else None
        digest = json_hash([clip.content(), clip.signatures, follows])[:12]
        self.write(replace(clip, follows=follows, file=f"{self.folders[0]}/clip_{number:04d}_{digest}.safetensors"))

    def adopt(self, clip: KeptClip, signature: str) -> None:
        """Make a kept clip part of the plan that this is the signature of, so that a later run finds it."""
        self.write(clip, *(() if signature in clip.signatures else (signature,)))

    def write(self, clip: KeptClip, *added: str) -> None:
        """Keep a clip, or the signatures that are added to a kept one, and remember that this node uses it."""
        assert clip.file is not None
        path = self.root / clip.file
        if added or not path.is_file():
            extra = {"signatures": (*clip.signatures, *added), "prompt": clip.prompt, "seed": clip.seed}
            extra |= {"repeated": clip.repeated} if clip.repeated else {}
            states.save(clip.latent, path, extra | {"follows": clip.follows})
        self.line.append(clip.file)
        lines = {node: line for node, line in self.lines().items() if node != self.node}
        write_json(self.lines_path(), {**lines, self.node: self.line})

    def kept(self, number: int, regenerate_from: int, num_clips: int, signatures: Collection[str]) -> KeptClip:
        """The saved clip, whatever it was made with; all that are kept are one video's.

        Args:
            regenerate_from: the clips before this one, counted from 1, are kept.
            num_clips: that are asked for.
            signatures: of the clip that is asked for, which tell the video of another node apart.

        Raises:
            ValueError: there is none.
        """
        if not self.name:
            raise ValueError(
                f"regenerate_from is {regenerate_from} but run_name is empty, so that clips are kept for this session "
                "only: set run_name to that of an earlier run, or regenerate_from to 0"
            )
        if not number:
            self.kept_line = self.choose_line(min(regenerate_from - 1, num_clips), signatures)
        if number >= len(self.kept_line):
            raise ValueError(
                f"regenerate_from is {regenerate_from}, but clip {number + 1} of the run {self.name!r} was never saved "
                f"for this prior at this size: choose at most {number + 1}, or 0"
            )
        return self.load(self.kept_line[number])

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
        return states.read_extra(self.root / file)

    def time(self, file: str) -> int:
        return (self.root / file).stat().st_mtime_ns

    def load(self, file: str) -> KeptClip:
        extra = self.extra(file)
        signatures = tuple(extra["signatures"])
        latent = states.load(self.root / file)
        repeated = extra.get("repeated", 0)
        return KeptClip(latent, extra["seed"], extra["prompt"], signatures, extra.get("follows"), file, repeated)

    def lines_path(self) -> Path:
        return self.root / self.folders[0] / "lines.json"

    def lines(self) -> dict[str, list[str]]:
        """Node -> files of the clips that it used last; the latest comes last."""
        try:
            lines = json.loads(self.lines_path().read_text(encoding="utf-8"))
            return {str(node): [str(file) for file in line] for node, line in lines.items()}
        except (OSError, ValueError, AttributeError, TypeError):  # a hint only: the clips say themselves what they are
            return {}
