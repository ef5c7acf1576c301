"""Layouts of class-labelled collections with their official lists: UCF-101, Kinetics-700, Moments in Time, VideoLT."""

from __future__ import annotations

from pathlib import Path

from .listing import Listing, MediaFiles, SourceSettings, find_table, plain_words, text_lines
from .tables import BAD_ROW, add_row, read_rows, seconds

_UNKNOWN_LABEL = "unknown label"


def list_ucf101(settings: SourceSettings) -> Listing:
    """UCF-101: ``<Class>/v_<Class>_g01_c01.avi``, with ``classInd.txt`` and ``trainlist01.txt`` / ``testlist01.txt``.

    The lists are looked for in ``source.table`` (a folder), else in ``ucfTrainTestlist`` in or beside the root.
    """
    listing, media = Listing(), MediaFiles(settings.root, "video")
    if settings.split not in ("train", "test") or settings.fold not in (1, 2, 3):
        raise ValueError(f"UCF-101 has splits train and test and folds 1 to 3, got {settings.split}, {settings.fold}")
    usual = [settings.root, settings.root / "ucfTrainTestlist", settings.root.parent / "ucfTrainTestlist"]
    folder = settings.table or next((f for f in usual if (f / "classInd.txt").is_file()), usual[-1])
    classes = {line.split()[-1] for line in text_lines(folder / "classInd.txt")}
    for line in text_lines(folder / f"{settings.split}list{settings.fold:02d}.txt"):
        name = line.split()[0]
        label = name.split("/")[0]
        if label in classes:
            add_row(listing, media, [name], label=plain_words(label))
        else:
            listing.drop(name, _UNKNOWN_LABEL, f"{label} is not in classInd.txt")
    return listing


def list_kinetics(settings: SourceSettings) -> Listing:
    """Kinetics: a CSV with ``label``, ``youtube_id``, ``time_start``, ``time_end``.

    Files are ``<id>_<start>_<end>.mp4`` with six digits for each time, in class folders or not; an untrimmed
    ``<id>.mp4`` is cut by the times.
    """
    listing, media = Listing(), MediaFiles(settings.root, "video")
    names = [f"{settings.split}.csv", *(f"kinetics{n}_{settings.split}.csv" for n in (700, 600, 400))]
    path = find_table(settings, [*names, *(f"annotations/{name}" for name in names)])
    for row in read_rows(path, listing):
        missing = {"youtube_id", "time_start", "time_end"} - set(row)
        if missing:
            raise ValueError(f"{path} has the columns {sorted(row)}, Kinetics also has {', '.join(sorted(missing))}")
        video, label = str(row["youtube_id"]), row.get("label") or None
        try:
            first, last = seconds(row["time_start"]), seconds(row["time_end"])
        except ValueError as error:
            listing.drop(video, BAD_ROW, str(error))
            continue
        if first is None or last is None:
            listing.drop(video, BAD_ROW, "a time is missing")
            continue
        trimmed = f"{video}_{int(first):06d}_{int(last):06d}"
        wanted = [f"{label}/{trimmed}", trimmed] if label else [trimmed]
        if media.find(*wanted) is None and media.find(video) is not None:
            add_row(listing, media, [video], label=label, times=[first, last])
        else:
            add_row(listing, media, wanted, label=label)
    return listing


def list_moments(settings: SourceSettings) -> Listing:
    """Moments in Time: ``trainingSet.csv`` or ``validationSet.csv`` without header, a file and its label a line.

    ``moments_categories.txt``, where it lies beside the table, says which labels there are.
    """
    listing, media = Listing(), MediaFiles(settings.root, "video")
    split = {"train": "training", "val": "validation"}.get(settings.split, settings.split)
    path = find_table(settings, [f"{split}Set.csv"])
    categories = path.with_name("moments_categories.txt")
    known = {line.rpartition(",")[0] for line in text_lines(categories)} if categories.is_file() else None
    for row in read_rows(path, listing, columns=("path", "label")):
        name, label = row["path"], row.get("label", "").strip()
        if known is not None and label not in known:
            listing.drop(name, _UNKNOWN_LABEL, f"{label!r} is not in {categories.name}")
        else:
            add_row(listing, media, [name, f"{split}/{name}"], label=plain_words(label) or None)
    return listing


def list_videolt(settings: SourceSettings) -> Listing:
    """VideoLT: ``train.lst``, ``validate.lst`` or ``test.lst`` (``<id> <class>[,<class>]`` a line).

    The classes are named in ``count-labels-train.lst`` beside it. Files are ``<id>.mp4``; a video of several
    classes gets them all.
    """
    listing, media = Listing(), MediaFiles(settings.root, "video")
    split = {"val": "validate", "validation": "validate"}.get(settings.split, settings.split)
    path = find_table(settings, [f"{split}.lst", f"labels/{split}.lst"])
    classes = _videolt_classes(path.with_name("count-labels-train.lst"))
    for line in text_lines(path):
        name, _, numbers = line.rpartition(" ")
        unknown = [n for n in numbers.split(",") if n not in classes]
        if unknown or not name:
            listing.drop(name or line, _UNKNOWN_LABEL, f"class {unknown} is not in count-labels-train.lst")
            continue
        add_row(listing, media, [name], label=" and ".join(classes[n] for n in numbers.split(",")))
    return listing


def _videolt_classes(path: Path) -> dict[str, str]:
    """Class number -> plain words, from lines of a name, its number and how many videos it has."""
    rows = [line.rsplit(None, 2) for line in text_lines(path)]
    if odd := next((row for row in rows if len(row) != 3), None):
        raise ValueError(f"{path}: expected lines of a name, its number and a count, got {' '.join(odd)!r}")
    return {number: plain_words(name) for name, number, _ in rows}
