"""The work on videos: key frames, all questions about them in batches, one caption each."""

from __future__ import annotations

import functools
import multiprocessing
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..media import FILE_ERRORS
from ..sources.listing import BROKEN, Item
from .key_frames import Frames, key_frames
from .merging import merge
from .models import Answerer, Asked, Blip2Answerer, InstructionAnswerer, ModelSettings
from .prompts import Prompt, Prompts, load_prompts

NO_ANSWER = "no usable answer"


@dataclass(frozen=True)
class CaptionerSettings:
    """What captions a video."""

    prompts: Path  # YAML file, see training/configs/caption_prompts.yaml
    blip2: ModelSettings = ModelSettings()  # answers the questions
    instruct: ModelSettings = ModelSettings()  # answers the instructions
    key_frames: int = 3  # of a video, at most
    candidates: int = 24  # evenly spaced frames that they are chosen from
    frame_side: int = 512  # pixels of a key frame's longer side, at most
    device: str = "auto"  # "cpu", "cuda", "cuda:1", "mps"; auto: an accelerator where there is one

    def __post_init__(self) -> None:
        if not 1 <= self.key_frames <= self.candidates:
            raise ValueError(
                f"key_frames must be 1 to candidates, got {self.key_frames} of {self.candidates} candidates"
            )
        if self.frame_side < 16:
            raise ValueError(f"frame_side must be at least 16 pixels, got {self.frame_side}")
        if self.blip2.folder is None and self.instruct.folder is None:
            raise ValueError("captioning needs a model: set the folder of blip2, of instruct or of both")

    def load_prompts(self) -> Prompts:
        """The prompts of the file. ValueError where some of them have no model that answers."""
        prompts = load_prompts(self.prompts)
        for kind, listed, model in (
            ("questions", prompts.questions, self.blip2),
            ("instructions", prompts.instructions, self.instruct),
        ):
            if listed and model.folder is None:
                name = "blip2" if kind == "questions" else "instruct"
                raise ValueError(f"{self.prompts} has {kind} but {name}.folder is not set; set it or remove them")
        return prompts


class Captioner:
    """Both models and the prompts, ready to caption; loaded once per process."""

    def __init__(self, settings: CaptionerSettings):
        self.settings = settings
        self.prompts = settings.load_prompts()
        device = pick_device(settings.device)
        self._answerers: list[tuple[Answerer, Sequence[Prompt]]] = []
        if self.prompts.questions:
            self._answerers.append((Blip2Answerer(settings.blip2, device), self.prompts.questions))
        if self.prompts.instructions:
            self._answerers.append((InstructionAnswerer(settings.instruct, device), self.prompts.instructions))

    def caption(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """One row per item, in their order: ``caption`` and ``answers``, or ``reason`` and ``detail`` if it has none.

        What is wrong with a file costs that file alone.
        """
        rows: list[dict[str, Any]] = [describe(item) for item in items]
        seen: dict[int, Frames] = {}
        for index, item in enumerate(items):
            try:
                seen[index] = self._look(item)
            except FILE_ERRORS as error:
                rows[index].update(reason=BROKEN, detail=str(error))
        answers = self._ask(items, seen)
        for index, frames in seen.items():
            caption = merge(answers[index], self.prompts, items[index].label)
            if caption is None:
                rows[index].update(reason=NO_ANSWER, detail=str(answers[index]))
            else:
                rows[index].update(caption=caption, key_frames=frames.seconds, answers=answers[index])
        return rows

    def _look(self, item: Item) -> Frames:
        s = self.settings
        with item.file() as path:
            return key_frames(path, s.key_frames, s.candidates, s.frame_side, item.start, item.end)

    def _ask(self, items: Sequence[Item], seen: dict[int, Frames]) -> dict[int, dict[str, list[str]]]:
        """Item -> prompt -> its answers in the order of time. The prompts of all items share the batches."""
        answers: dict[int, dict[str, list[str]]] = {index: {} for index in seen}
        for answerer, prompts in self._answerers:
            asked: list[Asked] = []
            owners: list[list[str]] = []
            for index, frames in seen.items():
                for prompt in prompts:
                    text = prompt.text(items[index].label)
                    shown = _shown(frames, prompt) if text is not None else []
                    asked += [(pictures, text or "") for pictures in shown]
                    owners += [answers[index].setdefault(prompt.name, []) for _ in shown]
            for owner, answer in zip(owners, answerer.answer(asked), strict=True):
                owner.append(answer)
        return answers


def describe(item: Item) -> dict[str, Any]:
    """The columns that say which item a row is about."""
    whole = item.start is None and item.end is None
    file = item.name if whole else item.name.rpartition("#")[0]  # a file's own name may hold a # too
    row: dict[str, Any] = {"source": item.name, "file": file}
    facts = {"label": item.label, "start": item.start, "end": item.end}
    return row | {name: value for name, value in facts.items() if value is not None}


def pick_device(wanted: str) -> str:
    """The device to use; of several CUDA devices the processes of a pool take turns."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        number = re.search(r"\d+$", multiprocessing.current_process().name)
        turn = int(number.group()) - 1 if number else 0
        return f"cuda:{turn % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@functools.lru_cache(maxsize=1)
def captioner_of_this_process(settings: CaptionerSettings) -> Captioner:
    """The models stay loaded between the groups that a process works on."""
    return Captioner(settings)


def caption_group(group: Sequence[Item], settings: CaptionerSettings) -> list[dict[str, Any]]:
    """What a process of the pool does."""
    return captioner_of_this_process(settings).caption(group)


def fingerprint(settings: CaptionerSettings) -> dict[str, Any]:
    """What the captions depend on, as JSON values: the settings and the very words of the prompts."""
    values = {key: value for key, value in asdict(settings).items() if key not in ("device", "prompts")}
    for name, model in (("blip2", settings.blip2), ("instruct", settings.instruct)):
        kept = {key: value for key, value in asdict(model).items() if key not in ("batch_size", "folder")}
        # The name alone: models may move, and lie elsewhere on another machine.
        values[name] = kept | {"folder": model.folder.name if model.folder else None}
    return values | {"prompts": asdict(settings.load_prompts())}


def _shown(frames: Frames, prompt: Prompt) -> list[Sequence[Any]]:
    if prompt.frames == "all":
        return [frames.images]
    if prompt.frames == "middle":
        return [[frames.images[len(frames) // 2]]]
    return [[image] for image in frames.images]
