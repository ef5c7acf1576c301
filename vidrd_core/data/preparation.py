"""Raw material to a data set of shards: list, decode, filter, cut out, encode, write; resumable, the same every time.

What becomes of an item depends on the item, the settings and the seed alone, so neither the number of processes, nor
the engine, nor an interruption changes a byte.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import random
import string
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files import alone
from .clips import ClipSettings, Window, choose, windows
from .engines import EngineSettings, run_in_order
from .filters import CAPTION_TOO_LONG, TOO_SHORT, FilterSettings, check_frames, check_size
from .media import FILE_ERRORS, decode_image, encode_image, encode_mp4, fit
from .reports import refuse_empty, write_reports
from .shards import LOCK, Dropped, Sample, ShardWriter
from .sources import Item, Listing, SourceSettings, list_source
from .sources.listing import BROKEN, NO_CAPTION
from .sources.tables import is_utf8, read_rows, texts

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0


@dataclass(frozen=True)
class PreparationSettings:
    """Everything that makes a data set."""

    output: Path  # folder of the data set
    source: SourceSettings
    clip: ClipSettings = ClipSettings()
    filters: FilterSettings = FilterSettings()
    engine: EngineSettings = EngineSettings()
    seed: int = 0  # order of the items, choice of clips, random crops
    captions: Path | None = None  # table of `source` (an item's name) and `caption`; goes before the source's own
    label_caption: str = "a video of {label}"  # for items with a label and no caption; empty: drop them
    limit: int = 0  # stop after so many items; 0: all
    samples_per_shard: int = 256

    def __post_init__(self) -> None:
        if self.limit < 0 or self.samples_per_shard < 1:
            raise ValueError(
                f"limit must be 0 or more, samples_per_shard 1 or more, got {self.limit}, {self.samples_per_shard}"
            )
        fields = [part[1] for part in string.Formatter().parse(self.label_caption) if part[1] is not None]
        if self.label_caption and set(fields) != {"label"}:
            raise ValueError(f"label_caption must contain {{label}} and no other field, got {self.label_caption!r}")


@dataclass(frozen=True)
class Prepared:
    """What became of one item."""

    samples: list[Sample] = field(default_factory=list)
    dropped: Dropped | None = None
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> clips of a video that a filter refused


def prepare(settings: PreparationSettings) -> dict[str, Any]:
    """Make the data set, or continue it, and return its statistics.

    Raises:
        ValueError: the output was begun with other settings, or is being made by another process, or nothing is left of
            the source.
        FileNotFoundError: the source is not there.
    """
    items, dropped = list_items(settings)
    with alone(settings.output / LOCK, f"prepare {settings.output}"):
        writer = ShardWriter(settings.output, _description(settings, items), settings.samples_per_shard)
        if writer.finished:
            logger.info("%s is finished already", settings.output)
        else:
            try:
                _write(writer, items, settings)
                refuse_empty(settings.output, writer, dropped)
                writer.finish()
            finally:
                writer.close()
        return write_reports(settings.output, writer, dropped, len(items) + len(dropped))


def list_items(settings: PreparationSettings) -> tuple[list[Item], list[Dropped]]:
    """The items of a preparation in its order, all with a caption, and what was dropped before anything was opened."""
    listing = list_source(settings.source)
    given = _given_captions(settings.captions, listing) if settings.captions else {}
    if given and not any(item.name in given for item in listing.items):
        raise ValueError(
            f"{settings.captions} names none of the {len(listing.items)} files of {settings.source.root} "
            f"(it has {next(iter(given))!r}, for example); was it made from another folder or layout?"
        )
    items, dropped = [], list(listing.dropped)
    for item in listing.items:
        if item.name in given:
            item = replace(item, captions=given[item.name])
        elif not item.captions and item.label is not None and settings.label_caption:
            item = replace(item, captions=(settings.label_caption.format(label=item.label),))
        if item.captions:
            items.append(item)
        else:
            dropped.append(Dropped(item.name, NO_CAPTION))
    # By a hash rather than by shuffling: an item keeps its place relative to others when the source grows.
    items.sort(key=lambda item: _digest(settings.seed, item.name))
    return items[: settings.limit or None], dropped


def prepare_item(numbered: tuple[int, Item], settings: PreparationSettings) -> Prepared:
    """Decode, filter and encode one item; never raises for what is wrong with its file."""
    number, item = numbered
    generator = random.Random(_digest(settings.seed, item.name))
    longest = settings.filters.max_caption or sys.maxsize
    captions = tuple(caption for caption in item.captions if len(caption) <= longest)
    if not captions:
        return Prepared(dropped=Dropped(item.name, CAPTION_TOO_LONG, f"{len(item.captions[0])} letters"))
    try:
        if item.kind == "image":
            return _prepare_image(number, replace(item, captions=captions), settings)
        return _prepare_video(number, replace(item, captions=captions), settings, generator)
    except FILE_ERRORS as error:
        return Prepared(dropped=Dropped(item.name, BROKEN, _relative(str(error), item)))


def _prepare_image(number: int, item: Item, settings: PreparationSettings) -> Prepared:
    image = decode_image(item.read())
    height, width = image.shape[:2]
    reason = check_size(settings.filters, height, width) or check_frames(settings.filters, image[None])
    if reason is not None:
        return Prepared(dropped=Dropped(item.name, reason, f"{width}x{height}"))
    clip = settings.clip
    scale = min(1.0, clip.image_side / min(height, width))
    image = fit(image[None], round(height * scale), round(width * scale))[0]
    members = {clip.image_format: encode_image(image, clip.image_format, clip.quality)}
    return Prepared([Sample(_key(number, 0), members, _info(item, image[None], 0.0))])


def _prepare_video(number: int, item: Item, settings: PreparationSettings, generator: random.Random) -> Prepared:
    clip, rejected = settings.clip, Counter[str]()
    place = (generator.random(), generator.random()) if clip.crop == "random" else (0.5, 0.5)

    def passes(window: Window) -> bool:
        reason = check_size(settings.filters, *window.source_size) or check_frames(settings.filters, window.frames)
        if reason is not None:
            rejected[reason] += 1
        return reason is None

    with item.file() as path:
        found = windows(path, clip, item.start, item.end, place)
        chosen = choose(filter(passes, found), clip.per_video, clip.frames, generator)
    if not chosen:
        reason = rejected.most_common(1)[0][0] if rejected else TOO_SHORT
        return Prepared(dropped=Dropped(item.name, reason), rejected=dict(rejected))
    samples = []
    for index, window in enumerate(chosen):
        info = {**_info(item, window.frames, clip.fps), "start": round(window.start, 3)}
        members = {"mp4": encode_mp4(window.frames, clip.fps, clip.quality)}
        samples.append(Sample(_key(number, index), members, info))
    return Prepared(samples, rejected=dict(rejected))


def _write(writer: ShardWriter, items: Sequence[Item], settings: PreparationSettings) -> None:
    first = writer.next_item
    if first:
        logger.info("continuing at item %d of %d", first, len(items))
    work = functools.partial(prepare_item, settings=settings)
    began = reported = time.monotonic()
    results = run_in_order(work, list(enumerate(items))[first:], settings.engine)
    for number, made in enumerate(results, first):
        if made is None:
            made = Prepared(dropped=Dropped(items[number].name, BROKEN, "the decoder crashed over it"))
        if made.dropped is not None:
            logger.info("dropped %s: %s %s", made.dropped.source, made.dropped.reason, made.dropped.detail)
        note: dict[str, Any] = {"dropped": asdict(made.dropped)} if made.dropped else {}
        writer.add(number, made.samples, {**note, "rejected": made.rejected} if made.rejected else note)
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            rate = (number + 1 - first) / (reported - began)
            logger.info("%d of %d items, %.1f a second", number + 1, len(items), rate)


def _given_captions(path: Path, listing: Listing) -> dict[str, tuple[str, ...]]:
    given: dict[str, tuple[str, ...]] = {}  # several rows of one item are several captions
    for row in read_rows(path, listing):
        if not {"source", "caption"} <= set(row):
            raise ValueError(f"{path} has the columns {sorted(row)}, wanted are source and caption")
        name, captions = str(row["source"]), texts(row["caption"])
        if not all(is_utf8(text) for text in captions):
            logger.warning("%s: a caption of %s is not UTF-8 and is left out", path, name)
        kept = (*given.get(name, ()), *(text for text in captions if is_utf8(text)))
        if kept:
            given[name] = tuple(dict.fromkeys(kept))
    return given


def _description(settings: PreparationSettings, items: Sequence[Item]) -> dict[str, Any]:
    """What decides the content of the data set; not where it lies or what does the work."""
    digest = hashlib.sha256()
    for item in items:
        row = [item.name, item.kind, item.captions, item.label, item.start, item.end, item.span]
        digest.update(json.dumps(row).encode())
    return {
        "layout": settings.source.layout,
        "clip": asdict(settings.clip),
        "filters": asdict(settings.filters),
        "seed": settings.seed,
        "samples_per_shard": settings.samples_per_shard,
        "items": digest.hexdigest(),
    }


def _info(item: Item, frames: np.ndarray, fps: float) -> dict[str, Any]:
    info: dict[str, Any] = {
        "caption": item.captions[0],
        "kind": item.kind,
        "width": frames.shape[2],
        "height": frames.shape[1],
        "frames": len(frames),
        "fps": fps,
        "source": item.name,
    }
    if len(item.captions) > 1:
        info["captions"] = list(item.captions)
    if item.label is not None:
        info["label"] = item.label
    return info


def _key(number: int, clip: int) -> str:
    return f"{number:08d}-{clip:03d}"


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:".encode() + name.encode("utf-8", "backslashreplace")).digest()


def _relative(message: str, item: Item) -> str:
    """An error without the folder it happened in, so that the same data give the same report anywhere."""
    return message.replace(str(item.path), item.name)
