"""What the models are asked and how answers become a caption: the file of prompts that a user edits."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FRAMES = ("each", "middle", "all")
KEEP = ("vote", "all")


@dataclass(frozen=True)
class Prompt:
    """One thing that is asked about a video."""

    name: str  # short, unique; what `order` and the stored answers call it
    ask: str  # may hold {label}
    ask_without_label: str = ""  # asked of videos without a class label; empty: `ask`, or nothing if it holds {label}
    frames: str = "each"  # "each" key frame by itself, the "middle" one only, or "all" in one prompt
    keep: str = "vote"  # of answers about several frames: the most frequent ("vote") or "all" that differ
    write: str = "{answer}"  # the sentence that the answer becomes

    def __post_init__(self) -> None:
        if not self.name or not self.ask:
            raise ValueError(f"a prompt needs a name and a text to ask, got name {self.name!r}, ask {self.ask!r}")
        for text, known in ((self.ask, {"label"}), (self.ask_without_label, set()), (self.write, {"answer"})):
            _check_fields(self.name, text, known)
        if "{answer}" not in self.write:
            raise ValueError(f"prompt {self.name!r}: write must hold {{answer}}, got {self.write!r}")
        for name, value, choices in (("frames", self.frames, FRAMES), ("keep", self.keep, KEEP)):
            if value not in choices:
                raise ValueError(f"prompt {self.name!r}: {name} must be one of {', '.join(choices)}, got {value!r}")

    def text(self, label: str | None) -> str | None:
        """What to ask about a video with this class label; None: nothing."""
        if label is not None:
            return self.ask.format(label=label)
        if self.ask_without_label:
            return self.ask_without_label.format()
        return None if "{label}" in self.ask else self.ask.format()


@dataclass(frozen=True)
class MergeRules:
    """How answers become one caption; :mod:`vidrd_core.data.captioning.merging` states the rules."""

    openings: tuple[str, ...] = ()  # phrases cut off where an answer begins with them
    refusals: tuple[str, ...] = ()  # an answer that is, or begins with, one of these is no answer
    then: str = ", then "  # between the answers of a prompt with keep: all
    with_label: str = "A video of {label}. {caption}"  # where the caption lacks the label's words; empty: leave it
    max_words: int = 45  # of a caption; CLIP text encoders read 77 tokens

    def __post_init__(self) -> None:
        if self.max_words < 3:
            raise ValueError(f"max_words must be at least 3, got {self.max_words}")
        if self.with_label:
            _check_fields("with_label", self.with_label, {"label", "caption"})


@dataclass(frozen=True)
class Prompts:
    """Everything that a prompts file holds."""

    questions: tuple[Prompt, ...] = ()  # to BLIP-2
    instructions: tuple[Prompt, ...] = ()  # to the instruction-following model
    order: tuple[str, ...] = ()  # names in the order in which they enter the caption
    rules: MergeRules = field(default_factory=MergeRules)

    def __post_init__(self) -> None:
        names = [prompt.name for prompt in (*self.questions, *self.instructions)]
        if not names:
            raise ValueError("the prompts file asks nothing; give questions, instructions or both")
        if len(set(names)) < len(names):
            raise ValueError(f"names of prompts must differ, got {names}")
        if sorted(self.order) != sorted(names):
            raise ValueError(f"order must name every prompt once, got {list(self.order)} for {names}")

    @property
    def in_order(self) -> list[Prompt]:
        named = {prompt.name: prompt for prompt in (*self.questions, *self.instructions)}
        return [named[name] for name in self.order]


def load_prompts(path: Path) -> Prompts:
    """Read a prompts file (YAML). ValueError naming the file for anything that is wrong in it."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("must hold questions, instructions, order and rules")
        _known("the file", values, {"questions", "instructions", "order", "rules"})
        return Prompts(
            questions=_prompts(values.get("questions")),
            instructions=_prompts(values.get("instructions")),
            order=tuple(values.get("order") or ()),
            rules=_rules(values.get("rules") or {}),
        )
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def _prompts(listed: Any) -> tuple[Prompt, ...]:
    prompts = []
    for values in listed or ():
        if not isinstance(values, dict):
            raise ValueError(f"a prompt is a mapping with name and ask, got {values!r}")
        _known(f"prompt {values.get('name')!r}", values, set(Prompt.__dataclass_fields__))
        prompts.append(Prompt(**values))
    return tuple(prompts)


def _rules(values: dict[str, Any]) -> MergeRules:
    _known("rules", values, set(MergeRules.__dataclass_fields__))
    listed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for name in ("openings", "refusals"):
        phrases = listed.get(name, ())
        if not isinstance(phrases, tuple) or not all(isinstance(phrase, str) for phrase in phrases):
            raise ValueError(f"rules: {name} must be a list of texts (put no and yes in quotes), got {phrases!r}")
    return MergeRules(**listed)


def _known(where: str, values: dict[str, Any], known: set[str]) -> None:
    unknown = set(values) - known
    if unknown:
        raise ValueError(f"{where}: unknown {sorted(unknown)}; known are {sorted(known)}")


def _check_fields(name: str, text: str, known: set[str]) -> None:
    try:
        fields = {part[1] for part in string.Formatter().parse(text) if part[1] is not None}
    except ValueError as error:
        raise ValueError(f"{name}: {text!r} has unbalanced braces; write {{{{ for a brace") from error
    if fields - known:
        allowed = " or ".join(f"{{{k}}}" for k in sorted(known)) or "no field"
        raise ValueError(f"{name}: {text!r} holds {sorted(fields - known)}, allowed is {allowed}")
