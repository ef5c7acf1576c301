"""Caption every video of a source, in a pool of processes or on Ray, to a table that grows safely.

The table is JSON lines with ``file``, ``caption``, ``label`` and more, in the order of the source. Data preparation
takes it as its ``captions`` or, with the layout ``table``, as a source. Videos without caption go to a table beside it.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...files import write_json
from ..engines import EngineSettings, run_in_order
from ..sources import Item, SourceSettings, list_source
from .captioner import CaptionerSettings, caption_group, describe, fingerprint
from .table import GrowingTable

logger = logging.getLogger(__name__)

CRASHED = "the process died"


@dataclass(frozen=True)
class CaptionSettings:
    """A captioning run."""

    source: SourceSettings
    output: Path  # .jsonl table to write or to continue
    captioner: CaptionerSettings
    engine: EngineSettings = EngineSettings(workers=1)
    gpus_per_worker: float = 0.0  # that Ray reserves for each of its processes
    videos_per_group: int = 4  # videos whose prompts share batches, and whose captions are written together
    folder_labels: bool = False  # where an item has no label, take the name of its folder for the class
    caption_all: bool = False  # also videos that the source has a caption for
    retry_failed: bool = False  # try those again that an earlier run found no caption for
    limit: int = 0  # stop after so many videos of the source; 0: all

    def __post_init__(self) -> None:
        if self.output.suffix != ".jsonl":
            raise ValueError(f"output must end in .jsonl, got {self.output}")
        if self.videos_per_group < 1 or self.limit < 0 or self.gpus_per_worker < 0:
            raise ValueError(
                "videos_per_group must be at least 1, limit and gpus_per_worker at least 0, got "
                f"{self.videos_per_group}, {self.limit} and {self.gpus_per_worker}"
            )

    @property
    def failed(self) -> Path:
        """The table of videos without caption."""
        return self.output.with_suffix(".failed.jsonl")


def caption_videos(settings: CaptionSettings) -> Counter[str]:
    """Caption what is not captioned yet; returns how many videos have a caption or lack it, by reason, in this run.

    Raises ValueError where the table was begun with other prompts or models, FileNotFoundError without source or model.
    """
    items = videos_to_caption(settings)
    for model in (settings.captioner.blip2, settings.captioner.instruct):
        if model.folder is not None:
            model.checked_folder()
    _same_settings(settings)
    if settings.retry_failed:
        settings.failed.unlink(missing_ok=True)
    captions, failures = GrowingTable(settings.output, "source"), GrowingTable(settings.failed, "source")
    done = captions.keys | failures.keys
    groups = [
        group
        for start in range(0, len(items), settings.videos_per_group)
        if (group := tuple(i for i in items[start : start + settings.videos_per_group] if i.name not in done))
    ]
    open_items = sum(len(group) for group in groups)
    logger.info("%d videos, %d of them done already", len(items), len(items) - open_items)
    counts: Counter[str] = Counter()
    began = reported = time.monotonic()
    for rows in run_groups(groups, settings):
        good = [row for row in rows if "caption" in row]
        bad = [row for row in rows if "caption" not in row]
        captions.append(good)
        failures.append(bad)
        counts.update(["captioned"] * len(good) + [row["reason"] for row in bad])
        for row in bad:
            logger.warning("%s: %s (%s)", row["source"], row["reason"], row.get("detail", ""))
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            rate = sum(counts.values()) / (reported - began)
            logger.info("%d of %d videos, %.2f per second", sum(counts.values()), open_items, rate)
    logger.info("%s: %s", settings.output, dict(counts) or "nothing was left to do")
    return counts


def videos_to_caption(settings: CaptionSettings) -> list[Item]:
    """The videos of the source that want a caption, in its order. ValueError if there is none."""
    listing = list_source(settings.source)
    for dropped in listing.dropped:
        logger.warning("%s: %s (%s)", dropped.source, dropped.reason, dropped.detail)
    items = [item for item in listing.items if item.kind == "video" and (settings.caption_all or not item.captions)]
    if not items:
        raise ValueError(f"{settings.source.root} holds no video without caption (caption_all takes the others too)")
    if settings.folder_labels:
        items = [item if item.label or "/" not in item.name else _with_folder_label(item) for item in items]
    return items[: settings.limit or None]


def run_groups(groups: Sequence[tuple[Item, ...]], settings: CaptionSettings) -> Iterator[list[dict[str, Any]]]:
    """The rows of every group, in order. Of a group over which a process died every video is tried by itself."""
    if not groups:
        return
    engine = settings.engine
    if engine.engine == "process":
        engine = replace(engine, workers=engine.workers or _device_count())
    work = functools.partial(caption_group, settings=settings.captioner)
    for group, rows in zip(groups, run_in_order(work, groups, engine, settings.gpus_per_worker), strict=True):
        if rows is None and len(group) == 1:
            yield [describe(group[0]) | {"reason": CRASHED}]
        else:
            yield rows if rows is not None else _one_by_one(group, settings)


def _one_by_one(group: Sequence[Item], settings: CaptionSettings) -> list[dict[str, Any]]:
    work = functools.partial(caption_group, settings=settings.captioner)
    found = run_in_order(work, [(item,) for item in group], EngineSettings(workers=1))
    return [
        rows[0] if rows is not None else describe(item) | {"reason": CRASHED}
        for item, rows in zip(group, found, strict=True)
    ]


def _device_count() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _with_folder_label(item: Item) -> Item:
    from ..sources.listing import plain_words

    return replace(item, label=plain_words(item.name.rpartition("/")[0].rpartition("/")[2]) or None)


def _same_settings(settings: CaptionSettings) -> None:
    """Remember what the table's captions depend on; refuse to continue with something else."""
    path = settings.output.with_suffix(".settings.json")
    now = json.loads(json.dumps(fingerprint(settings.captioner)))
    if path.exists() and settings.output.exists():
        then = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
        if changed:
            raise ValueError(
                f"{settings.output} was begun with other {', '.join(changed)}; choose another output, or delete it"
            )
    write_json(path, now, sort_keys=True)
