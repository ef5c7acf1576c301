"""Layouts of captioned collections: WebVid, TGIF, VATEX, and images as LAION's downloaders leave them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from .listing import BROKEN, NO_CAPTION, NOT_UTF8, Item, Listing, MediaFiles, SourceSettings, find_table, text_lines
from .tables import add_row, read_rows, texts

_NOT_DOWNLOADED = "not downloaded"


def list_webvid(settings: SourceSettings) -> Listing:
    """WebVid: a CSV with ``videoid``, ``page_dir`` and ``name`` (the caption); files ``<page_dir>/<videoid>.mp4``.

    The files may also lie flat, as ``<videoid>.mp4``.
    """
    listing, media = Listing(), MediaFiles(settings.root, "video")
    split = {"train": "train", "val": "val", "validation": "val"}.get(settings.split, settings.split)
    path = find_table(settings, [f"results_{size}_{split}.csv" for size in ("2M", "10M")])
    for row in read_rows(path, listing):
        _need(path, row, "videoid", "name")
        plain = str(row["videoid"])
        add_row(listing, media, [f"{row.get('page_dir', '')}/{plain}.mp4", plain], captions=texts(row["name"]))
    return listing


def list_tgif(settings: SourceSettings) -> Listing:
    """TGIF: ``tgif-v1.0.tsv`` without header, an address and a sentence a line; files named as in the address.

    A split needs the official ``splits/<split>.txt`` of addresses beside the table; ``split: all`` takes every line.
    """
    listing, media = Listing(), MediaFiles(settings.root, "video")
    path = find_table(settings, ["tgif-v1.0.tsv", "data/tgif-v1.0.tsv"])
    chosen = None if settings.split == "all" else set(text_lines(path.parent / "splits" / f"{settings.split}.txt"))
    for row in read_rows(path, listing, columns=("url", "sentence")):
        if chosen is None or row["url"] in chosen:
            add_row(listing, media, [row["url"].rpartition("/")[2]], captions=texts(row.get("sentence")))
    return listing


def list_vatex(settings: SourceSettings) -> Listing:
    """VATEX: a JSON list with ``videoID`` (``<id>_<start>_<end>``) and ten captions in ``enCap`` and ``chCap`` each.

    Files are named by the videoID; an untrimmed ``<id>.mp4`` is cut by the times in it.
    """
    listing, media = Listing(), MediaFiles(settings.root, "video")
    column = {"en": "enCap", "zh": "chCap"}.get(settings.language)
    if column is None:
        raise ValueError(f"VATEX has captions in en and zh, got {settings.language!r}")
    names = {"train": "vatex_training_v1.0.json", "validation": "vatex_validation_v1.0.json"}
    path = find_table(settings, [names.get(settings.split, f"vatex_{settings.split}_v1.0.json")])
    for row in read_rows(path, listing):
        _need(path, row, "videoID")
        captions = texts(row.get(column))
        trimmed = str(row["videoID"])
        plain, *times = trimmed.rsplit("_", 2)
        if media.find(trimmed) is None and len(times) == 2 and all(t.isdecimal() for t in times):
            add_row(listing, media, [plain], captions=captions, times=[float(t) for t in times])
        else:
            add_row(listing, media, [trimmed], captions=captions)
    return listing


def list_laion(settings: SourceSettings) -> Listing:
    """Captioned images (or videos) as LAION's downloaders leave them, from tars and folders below the root.

    Either ``00000.tar`` with ``<key>.jpg`` and ``<key>.txt`` or ``<key>.json`` inside, or ``00000/<key>.jpg`` beside
    them; a ``00000.parquet`` with ``key``, ``caption`` and ``status`` says which rows failed to download.
    """
    listing = Listing()
    media = MediaFiles(settings.root, settings.kind)
    tars = {path.stem: path for path in sorted(settings.root.glob("*.tar"))}
    parquets = {path.stem: path for path in sorted(settings.root.glob("*.parquet"))}
    if not tars and not parquets and not media.names:
        raise ValueError(f"{settings.root} holds no .tar, no .parquet and no images")
    for stem in sorted({*tars, *parquets}):
        if stem in tars:
            _list_tar(listing, media, tars[stem])
        if stem in parquets:
            _list_parquet(listing, media, parquets[stem], files=stem not in tars)
    for name in media.names:
        if name.split("/")[0] not in parquets:
            _list_loose(listing, media, name)
    return listing


def _list_parquet(listing: Listing, media: MediaFiles, path: Path, files: bool) -> None:
    try:
        rows = list(read_rows(path, listing))
    except ValueError as error:  # one of thousands
        listing.drop(path.name, BROKEN, str(error))
        return
    for row in rows:
        _need(path, row, "key", "caption")
        name = f"{path.stem}/{row['key']}"
        if row.get("status", "success") != "success":
            listing.drop(name, _NOT_DOWNLOADED, str(row.get("error_message") or row["status"]))
        elif files:
            add_row(listing, media, [name], captions=texts(row["caption"]))


def _list_loose(listing: Listing, media: MediaFiles, name: str) -> None:
    path = media.root / name
    facts = {s: path.with_suffix(s).read_bytes() for s in (".txt", ".json") if path.with_suffix(s).is_file()}
    captions, reason = _caption(facts)
    if captions:
        listing.add(media.item(name, captions=captions))
    else:
        listing.drop(name, reason)


def _list_tar(listing: Listing, media: MediaFiles, path: Path) -> None:
    """Group a tar's members by key. What comes after a break in the file is lost, and counted as one broken tar."""
    group: dict[str, tarfile.TarInfo] = {}
    current = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                if (folder, key) != current:
                    _add_group(listing, media, path, tar, group)
                    group, current = {}, (folder, key)
                group[f".{suffix.lower()}"] = member
            _add_group(listing, media, path, tar, group)
    except (tarfile.TarError, OSError, EOFError, ValueError, MemoryError, OverflowError, RecursionError) as error:
        listing.drop(path.name, BROKEN, str(error) or type(error).__name__)


def _add_group(
    listing: Listing, media: MediaFiles, path: Path, tar: tarfile.TarFile, group: dict[str, tarfile.TarInfo]
) -> None:
    found = next((member for member in group.values() if media.kind_of(member.name)), None)
    if found is None:
        return
    name = f"{path.name}/{found.name}"
    facts = {}
    for suffix in {".txt", ".json"} & set(group):
        file = tar.extractfile(group[suffix])
        facts[suffix] = file.read() if file is not None else b""
    captions, reason = _caption(facts)
    kind = media.kind_of(found.name)
    if captions and kind:
        listing.add(Item(name, path, kind, captions, span=(found.offset_data, found.size)))
    else:
        listing.drop(name, reason)


def _caption(facts: dict[str, bytes]) -> tuple[tuple[str, ...], str]:
    """The caption of a text file, else of a JSON object's ``caption``; without one, why there is none."""
    try:
        if ".txt" in facts:
            captions = texts(facts[".txt"].decode("utf-8-sig"))
        else:
            row = json.loads(facts.get(".json", b"{}").decode("utf-8-sig"))
            captions = texts(row.get("caption")) if isinstance(row, dict) else ()
    except UnicodeDecodeError:
        return (), NOT_UTF8
    except (ValueError, RecursionError):
        return (), NO_CAPTION
    return captions, NO_CAPTION


def _need(path: Path, row: dict[str, Any], *columns: str) -> None:
    if not set(columns) <= set(row):
        raise ValueError(f"{path} has the columns {sorted(row)}, this layout needs {', '.join(columns)}")
