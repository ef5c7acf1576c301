"""Tables of captions and labels: CSV, TSV, JSON, JSON lines and Parquet, read row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .listing import MISSING, NO_CAPTION, NOT_UTF8, Listing, MediaFiles, SourceSettings, find_table

TABLE_EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
BAD_ROW = "bad row"


class _PlainTabs(csv.excel_tab):
    quoting = csv.QUOTE_NONE  # a quotation mark in a TSV is part of the sentence


def read_rows(path: Path, listing: Listing, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table. Rows that cannot be read are dropped into ``listing`` with their number.

    columns: names of a CSV or TSV that has no header line.

    Raises:
        ValueError: another extension, or a file that is no table of that kind.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from _csv_rows(path, listing, columns)
    elif suffix == ".jsonl":
        yield from _jsonl_rows(path, listing)
    elif suffix == ".json":
        yield from _json_rows(path, listing)
    elif suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise ValueError(f"{path}: tables end in {', '.join(TABLE_EXTENSIONS)}")


def list_table(settings: SourceSettings) -> Listing:
    """A table with a path column and a caption or label column, or both; see ``SourceSettings`` for their names.

    A caption may be a text or a list of texts; several rows of one file bring several captions.
    """
    listing, media = Listing(), MediaFiles(settings.root, settings.kind)
    path = find_table(settings, [f"{stem}{suffix}" for stem in ("metadata", "captions") for suffix in TABLE_EXTENSIONS])
    for number, row in enumerate(read_rows(path, listing), 1):
        if not {settings.path_column} <= set(row) or not {settings.caption_column, settings.label_column} & set(row):
            raise ValueError(
                f"{path}, row {number} has the columns {sorted(row)}; wanted are {settings.path_column!r} and "
                f"{settings.caption_column!r} or {settings.label_column!r}; set source.path_column and so on"
            )
        wanted = str(row[settings.path_column])
        try:
            times = [seconds(row.get(column)) for column in (settings.start_column, settings.end_column)]
        except ValueError as error:
            listing.drop(wanted, BAD_ROW, str(error))
            continue
        add_row(
            listing,
            media,
            [_below(wanted, settings.root)],
            captions=texts(row.get(settings.caption_column)),
            label=(texts(row.get(settings.label_column)) or (None,))[0],
            times=times,
        )
    return listing


def add_row(
    listing: Listing,
    media: MediaFiles,
    wanted: Sequence[str],
    captions: tuple[str, ...] = (),
    label: str | None = None,
    times: Sequence[float | None] = (None, None),
) -> None:
    """Add the file that one of the wanted names means, or drop the row: a missing file, no text, bytes not UTF-8."""
    if any(not is_utf8(text) for text in (*wanted, *captions, label or "")):
        listing.drop(_printable(wanted[0]), NOT_UTF8)
        return
    found = media.find(*wanted)
    if found is None:
        listing.drop(wanted[0], MISSING)
    elif not captions and label is None:
        listing.drop(wanted[0], NO_CAPTION)
    else:
        listing.add(media.item(found, times[0], times[1], captions=captions, label=label))


def texts(value: Any) -> tuple[str, ...]:
    """A cell as texts: none, one, or those of a list; white space is made single blanks."""
    values = value if isinstance(value, (list, tuple)) else [value]
    joined = (" ".join(str(v).split()) for v in values if v is not None)
    return tuple(text for text in joined if text)


def seconds(value: Any) -> float | None:
    """A cell as seconds, None for an empty one. ValueError for what is no number of at least 0."""
    if value is None or value == "":
        return None
    number = float(value)
    if not 0 <= number < 1e9:
        raise ValueError(f"a time must be a number of seconds of at least 0, got {value!r}")
    return number


def is_utf8(text: str) -> bool:
    """False for text read from bytes that are not UTF-8 (lone surrogates)."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text) if not text.isascii() else True


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _below(value: str, root: Path) -> str:
    path = Path(value)
    return path.relative_to(root.absolute()).as_posix() if path.is_relative_to(root.absolute()) else value


def _csv_rows(path: Path, listing: Listing, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    # One caption in Latin-1 must not cost the whole table: its row is found by the surrogates that this leaves.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if file.read(1) != "\ufeff":
            file.seek(0)
        rows = csv.reader(file, _PlainTabs if path.suffix.lower() == ".tsv" else csv.excel)
        names = list(columns) if columns else next(rows, [])
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                listing.drop(f"{path.name}:{rows.line_num}", BAD_ROW, str(error))
                continue
            if not row:
                continue
            if len(row) < len(names) and columns is None:
                listing.drop(f"{path.name}:{rows.line_num}", BAD_ROW, f"{len(row)} of {len(names)} columns")
                continue
            yield dict(zip(names, row))


def _jsonl_rows(path: Path, listing: Listing) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                listing.drop(f"{path.name}:{number}", BAD_ROW, str(error))
                continue
            if isinstance(row, dict):
                yield row
            else:
                listing.drop(f"{path.name}:{number}", BAD_ROW, "not an object")


def _json_rows(path: Path, listing: Listing) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of objects, it holds a {type(rows).__name__}")
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield row
        else:
            listing.drop(f"{path.name}:{number}", BAD_ROW, "not an object")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # damage shows as any of them
        raise ValueError(f"{path} is not a readable Parquet file ({error})") from error
