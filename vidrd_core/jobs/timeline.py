"""A timeline: the clips of a video and of its branches as plain data, and which takes they still ask for.

    {"version": 1, "clips": [
    {"id": "a1", "prompt": "a dog runs", "seed": 1},
    {"id": "b2", "prompt": "it jumps", "seed": 2, "lock": true, "take": "0123456789abcdef"},
    {"id": "c3", "prompt": "it sleeps", "seed": 3, "after": "a1"}
    ], "end": "c3"}

A clip follows the one before it in the list; ``after`` names another one, where a branch begins ("": it begins the
video). ``end`` names the last clip of the branch that is shown and made. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

VERSION = 1
MAX_SEED = 2**63 - 1
MAX_FRAMES = 4096
CLIP_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
TAKE_ID = re.compile(r"[0-9a-f]{16}")
FINISHED, CHANGED, WAITING, LOST = "finished", "changed", "waiting", "lost"
KEY_VERSION = 1  # of what a take's id is a hash of


@dataclass(frozen=True)
class TimelineClip:
    """What a timeline says of one clip.

    Args:
        id: in its timeline.
        seed: of its noise, 0 to 2^63 - 1.
        frames: new frames that it adds to the video; 0: as many as a clip has by default.
        lock: whether it keeps a finished take, whatever its prompt, its seed and the clips before it are now.
        take: the take that it keeps then; "": its newest.
        after: the clip that it follows where that is not the one before it in the list; "": none.
        branch: a name for the branch that begins with it.
    """

    id: str
    prompt: str = ""
    seed: int = 0
    frames: int = 0
    lock: bool = False
    take: str = ""
    after: str | None = None
    branch: str = ""

    @classmethod
    def of(cls, values: Any, number: int) -> TimelineClip:
        """The clip of an entry of the list, the ``number``-th from 1.

        Raises:
            ValueError: an entry is missing, unknown or of another kind.
        """
        where = f"clip {number} of the timeline"
        if not isinstance(values, dict):
            raise ValueError(f'{where} is {_shown(values)}; expected an object such as {{"id": "a1", "prompt": "..."}}')
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"{where} has {', '.join(sorted(unknown))}, which no clip has; known are {known}")
        found = dict(values)
        if isinstance(found.get("seed"), str) and found["seed"].isdecimal():  # of JavaScript, whose numbers end at 2^53
            found["seed"] = int(found["seed"])
        identity = found.get("id")
        if not isinstance(identity, str) or not CLIP_ID.fullmatch(identity):
            raise ValueError(f"{where} has the id {_shown(identity)}; expected up to 40 letters, digits, - and _")
        where = f"clip {number} of the timeline ({identity})"
        for name, kind, words in (
            ("prompt", str, "text"), ("lock", bool, "true or false"), ("take", str, "text"), ("branch", str, "text"),
        ):  # fmt: skip
            if not isinstance(found.get(name, kind()), kind):
                raise ValueError(f"{where}: {name} is {_shown(found[name])}; expected {words}")
        for name, highest in (("seed", MAX_SEED), ("frames", MAX_FRAMES)):
            value = found.get(name, 0)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
                raise ValueError(f"{where}: {name} is {_shown(value)}; expected a whole number from 0 to {highest}")
        if not isinstance(found.get("after"), str | None):
            raise ValueError(f"{where}: after is {_shown(found['after'])}; expected the id of a clip, or nothing")
        if found.get("take") and not TAKE_ID.fullmatch(found["take"]):
            raise ValueError(f"{where}: take is {_shown(found['take'])}; expected 16 digits of 0-9 and a-f")
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Its entries; without those that have their default, but for prompt and seed."""
        default = TimelineClip(self.id)
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = ("id", "prompt", "seed")
        return {name: value for name, value in named.items() if name in kept or value != getattr(default, name)}


@dataclass(frozen=True)
class Timeline:
    """The clips of a video and of its branches.

    Args:
        end: the last clip of the branch that is shown and made; "": of the first one.
    """

    clips: tuple[TimelineClip, ...]
    end: str = ""

    @classmethod
    def parse(cls, text: str) -> Timeline:
        """Read what a timeline's text says.

        Raises:
            ValueError: it is no JSON or no timeline; the message says where.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the timeline is no JSON ({error}); expected " + EXAMPLE) from error
        if not isinstance(values, dict) or not isinstance(values.get("clips"), list):
            raise ValueError("the timeline has no list of clips; expected " + EXAMPLE)
        if values.get("version") != VERSION:
            raise ValueError(
                f"the timeline's version is {_shown(values.get('version'))}; this version of the node pack reads "
                f"{VERSION}: update the node pack"
            )
        clips = tuple(TimelineClip.of(entry, number) for number, entry in enumerate(values["clips"], 1))
        if not clips:
            raise ValueError("the timeline has no clips: add one")
        ids = [clip.id for clip in clips]
        twice = sorted({one for one in ids if ids.count(one) > 1})
        if twice:
            raise ValueError(f"the timeline has more than one clip with the id {twice[0]}: give each its own")
        end = values.get("end", "")
        if not isinstance(end, str) or (end and end not in ids):
            raise ValueError(f"the timeline ends with {_shown(end)}, which is none of its clips: {', '.join(ids)}")
        made = cls(clips, end)
        for clip in clips:
            made.way_to(clip)
        return made

    def text(self) -> str:
        """As text, one clip a line, so that two versions can be compared by lines."""
        lines = ",\n".join(json.dumps(clip.to_json(), ensure_ascii=False) for clip in self.clips)
        end = f', "end": {json.dumps(self.end)}' if self.end else ""
        return f'{{"version": {VERSION}, "clips": [\n{lines}\n]{end}}}'

    @cached_property
    def _places(self) -> dict[str, int]:
        return {clip.id: place for place, clip in enumerate(self.clips)}

    def before(self, clip: TimelineClip) -> TimelineClip | None:
        """The clip that one follows; None: it begins the video.

        Raises:
            ValueError: it names a clip that is not there.
        """
        if clip.after is None:
            place = self._places[clip.id]
            return self.clips[place - 1] if place else None
        if not clip.after:
            return None
        if clip.after not in self._places:
            raise ValueError(f"the clip {clip.id} comes after {clip.after!r}, which is none of the timeline's clips")
        return self.clips[self._places[clip.after]]

    def way_to(self, clip: TimelineClip) -> list[TimelineClip]:
        """The clips of the video that ends with one, in their order.

        Raises:
            ValueError: they follow one another in a circle.
        """
        way: list[TimelineClip] = [clip]
        while (earlier := self.before(way[-1])) is not None:
            if len(way) == len(self.clips):
                raise ValueError(f"the clips before {clip.id} follow one another in a circle: change one's after")
            way.append(earlier)
        return way[::-1]

    def shown(self) -> list[TimelineClip]:
        """The clips of the branch that is shown and made."""
        if self.end:
            return self.way_to(self.clips[self._places[self.end]])
        first = next((n for n, clip in enumerate(self.clips) if n and clip.after is not None), len(self.clips))
        return list(self.clips[:first])


EXAMPLE = '{"version": 1, "clips": [{"id": "a1", "prompt": "...", "seed": 1}]}'


@dataclass(frozen=True)
class Settings:
    """What all clips of a timeline are made with.

    Args:
        preset: names how they are chained.
        loop: whether the last one arrives at the beginning of the video.
    """

    negative_prompt: str = ""
    cfg: float = 10.0
    steps: int = 0
    sampler_name: str = ""
    scheduler: str = ""
    preset: str = "auto"
    width: int = 0
    height: int = 0
    loop: bool = False

    @classmethod
    def of(cls, known: Mapping[str, Any], default: Settings | None = None) -> Settings:
        """The settings in a mapping that holds some of them, of the kinds that they have; the others as in ``default``.

        Numbers count as such, whether they came as 4 or as 4.0.
        """
        default = default or cls()
        found: dict[str, Any] = {}
        for field in fields(cls):
            fallback = getattr(default, field.name)
            value = known.get(field.name, fallback)
            if isinstance(fallback, str | bool):
                found[field.name] = value if isinstance(value, type(fallback)) else fallback
            else:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                found[field.name] = type(fallback)(value) if is_number else fallback
        return cls(**found)


@dataclass(frozen=True)
class Surroundings:
    """What else decides what a clip becomes: hashes that only who has the models at hand can make.

    Args:
        model: of the model with its LoRAs.
        text: of the text encoder.
        prior: of the video that is continued; "": a new one of the settings' size.
        begins: whether the first clip begins a video, and reuses nothing.
        reuse: preset -> how clips are chained by it.
        added: of what else was connected; "" where nothing is.
        closing: preset -> how the last clip of a loop is chained by it; None: as the others.
    """

    model: str
    text: str
    prior: str
    begins: bool
    reuse: Mapping[str, Any]
    added: str = ""
    closing: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Surroundings:
        """Raises KeyError or TypeError where an entry is missing or unknown."""
        return cls(**values)


def take_id(clip: TimelineClip, follows: str | None, settings: Settings, around: Surroundings, closes: str = "") -> str:
    """The name of the take that a clip needs: a hash of everything that makes it, 16 hexadecimal digits.

    Args:
        follows: the take before it; None: it is the first.
        closes: a name for the beginning that it arrives at, as the last clip of a loop; "": for none.
    """
    values: list[Any] = [KEY_VERSION, around.model, around.text, settings.negative_prompt, settings.cfg, around.added]
    values += [clip.prompt, clip.seed, clip.frames]
    if follows is None:  # the others take their schedule and size over
        values += [around.prior, settings.steps, settings.sampler_name, settings.scheduler]
        if not around.prior:
            values += [settings.width, settings.height]
    else:
        values.append(follows)
    if follows is not None or not around.begins:
        chained = around.closing if closes and around.closing is not None else around.reuse
        values.append(chained.get(settings.preset))
    if closes:
        values.append(f"loop {closes}")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Planned:
    """What is to be done for a clip.

    Args:
        take: that it needs; "" where that is not known.
        state: "finished": that take is there; "changed": only others are; "waiting": none is; "lost": the take that it
            is locked to is not there.
        joins: whether that take follows the one that comes before it now, and as the last of a loop arrives at its
            beginning; a locked one may not.
        seen: the take to look at meanwhile; "": none.
        closes: a name for the beginning that it arrives at, as the last clip of a loop; "": for none.
    """

    clip: TimelineClip
    take: str
    state: str
    joins: bool
    seen: str
    closes: str = ""


def plan(
    timeline: Timeline,
    settings: Settings,
    around: Surroundings | None,
    takes: Mapping[str, Mapping[str, Any]],
    is_there: Callable[[str], bool] | None = None,
) -> list[Planned]:
    """What is to be done for each clip of the branch that is shown.

    This alone decides what is finished and what is to be made again, for the node and for its display.

    Args:
        around: None: not known, as before the first run.
        takes: take id -> what is recorded of it: "clip", "follows", "closes", "made" (seconds).
        is_there: whether a take's files are there; by default what is in ``takes``.
    """
    there: Callable[[str], bool] = is_there or (lambda take: take in takes)
    found: list[Planned] = []
    before: str | None = None
    shown = timeline.shown()
    for number, clip in enumerate(shown, 1):
        closes = ""
        if settings.loop and number == len(shown) and around is not None:
            closes = around.prior if not around.begins else found[0].take if found else ""
        own = sorted((take for take, held in takes.items() if held.get("clip") == clip.id), key=_made(takes))
        newest = own[-1] if own else ""
        wanted = "" if around is None or before == "" else take_id(clip, before, settings, around, closes)
        kept = (clip.take or newest) if clip.lock else ""
        if kept:
            wanted = kept
            state = FINISHED if there(kept) else LOST
        else:
            state = FINISHED if wanted and there(wanted) else CHANGED if own else WAITING
        held = takes.get(wanted, {})
        arrives = not (kept and closes) or held.get("closes") == closes
        joins = not (kept and state == FINISHED) or before == "" or (held.get("follows") == before and arrives)
        seen = wanted if state == FINISHED else newest
        found.append(Planned(clip, wanted, state, joins, seen, closes if arrives else ""))
        before = wanted
    return found


def _made(takes: Mapping[str, Mapping[str, Any]]) -> Callable[[str], tuple[float, str]]:
    return lambda take: (float(takes[take].get("made", 0)), take)


def takes_of(clips: Collection[str], takes: Mapping[str, Mapping[str, Any]], more: Collection[str]) -> list[str]:
    """The takes that were made for some clips, and others that are named, oldest first."""
    wanted = [take for take, held in takes.items() if held.get("clip") in clips or take in more]
    return sorted(wanted, key=_made(takes))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
