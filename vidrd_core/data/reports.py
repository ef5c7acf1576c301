"""What a person looks at after a preparation: statistics, the list of what was dropped, a sheet of samples."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing, write_bytes, write_json
from ..video.sheet import ContactSheet
from .shards import BrokenItem, Dropped, SampleInfo, ShardDataset, ShardWriter

logger = logging.getLogger(__name__)

STATISTICS, DROPPED, SHEET = "statistics.json", "dropped.jsonl", "sample_sheet.png"
_SHEET_ROWS = 24


def write_reports(
    folder: Path, writer: ShardWriter, unopened: Sequence[Dropped], items: int, media: ShardDataset | None = None
) -> dict[str, Any]:
    """Write the three reports of a finished data set and return the statistics.

    unopened: rows that were dropped before any file was opened. items: how many rows the source had in all.
    media: the data set to show on the sample sheet where this one holds latents.
    """
    notes = writer.notes()
    dropped = all_dropped(writer, unopened)
    rejected = Counter[str]()
    for note in notes:
        rejected.update(note.get("rejected", {}))
    data = ShardDataset(folder)
    statistics = {**_statistics(data.samples), "items": items, **_drops(dropped), "rejected_clips": dict(rejected)}
    _write_dropped(folder, dropped)
    write_sheet(data if media is None else media, folder / SHEET)
    write_json(folder / STATISTICS, statistics, sort_keys=True)
    logger.info("%d samples; dropped: %s", len(data), statistics["dropped"] or "nothing")
    return statistics


def all_dropped(writer: ShardWriter, unopened: Sequence[Dropped]) -> list[Dropped]:
    """What was dropped before and after files were opened."""
    return [*unopened, *(Dropped(**note["dropped"]) for note in writer.notes() if "dropped" in note)]


def refuse_empty(folder: Path, writer: ShardWriter, unopened: Sequence[Dropped]) -> None:
    """Where no sample is left, write what was dropped and raise a ValueError that sums it up."""
    if writer.empty:
        dropped = all_dropped(writer, unopened)
        _write_dropped(folder, dropped)
        why = ", ".join(f"{count} {reason}" for reason, count in Counter(d.reason for d in dropped).most_common())
        raise ValueError(
            f"nothing is left for {folder}: {why or 'the source holds no files'}; see {DROPPED} there, change the "
            "filters or the source, and choose a fresh output folder"
        )


def write_sheet(data: ShardDataset, path: Path) -> None:
    """A picture of samples spread evenly over the data set, with their captions."""
    sheet = ContactSheet(frame_numbers=False)
    for index in np.unique(np.linspace(0, len(data) - 1, min(len(data), _SHEET_ROWS)).round().astype(int)):
        try:
            frames = data.frames(int(index))
        except BrokenItem as error:
            logger.warning("not on the sample sheet: %s", error)
            continue
        sheet.add_row(frames, data.samples[index].caption)
    with replacing(path, keep_suffix=True) as partial:
        sheet.render().save(partial)


def _statistics(samples: Iterable[SampleInfo]) -> dict[str, Any]:
    kinds, sizes, frames, labels = Counter[str](), Counter[str](), Counter[int](), Counter[str]()
    seconds, letters, longest = 0.0, 0, 0
    for sample in samples:
        kinds[sample.kind] += 1
        sizes[f"{sample.width}x{sample.height}"] += 1
        frames[sample.frames] += 1
        seconds += sample.frames / sample.fps if sample.fps else 0.0
        letters += len(sample.caption)
        longest = max(longest, len(sample.caption))
        if sample.label is not None:
            labels[sample.label] += 1
    total = sum(kinds.values())
    return {
        "samples": dict(kinds),
        "sizes": dict(sizes.most_common()),
        "frames": {str(count): number for count, number in sorted(frames.items())},
        "seconds": round(seconds, 3),
        "caption_letters": {"mean": round(letters / max(total, 1), 1), "longest": longest},
        "labels": dict(labels.most_common()),
    }


def _write_dropped(folder: Path, dropped: Sequence[Dropped]) -> None:
    lines = "".join(json.dumps(asdict(d), ensure_ascii=False, sort_keys=True) + "\n" for d in dropped)
    write_bytes(folder / DROPPED, lines.encode("utf-8", "backslashreplace"))


def _drops(dropped: Sequence[Dropped]) -> dict[str, Any]:
    return {"dropped": dict(Counter(d.reason for d in dropped).most_common())}
