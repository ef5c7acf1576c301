"""What every source consists of: items, dropped rows, and the media files below a folder found by name."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ..shards import Dropped

VIDEO_EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"),
    *(".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv"),
)
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

MISSING, NO_CAPTION, NOT_UTF8, BROKEN = "missing file", "no caption", "caption is not UTF-8", "broken"


@dataclass(frozen=True)
class SourceSettings:
    """Where raw material lies and how it is laid out."""

    layout: str  # one of vidrd_core.data.sources.LAYOUTS
    root: Path  # folder of the media files
    table: Path | None = None  # file (or folder, for UCF-101) of captions or labels; None: looked for beside the media
    split: str = "train"  # of layouts with official splits
    fold: int = 1  # of UCF-101: 1 to 3
    language: str = "en"  # of VATEX: en or zh
    kind: str | None = None  # "video" or "image": take no others; None: by the file's extension
    path_column: str = "path"  # of a table: file below root, with or without extension
    caption_column: str = "caption"
    label_column: str = "label"
    start_column: str = "start"  # seconds; may be absent
    end_column: str = "end"


@dataclass(frozen=True)
class Item:
    """One video or image, or a stretch of a video, before anything of it is read."""

    name: str  # below the root, with "/"; unique in a source
    path: Path
    kind: str  # "video" or "image"
    captions: tuple[str, ...] = ()
    label: str | None = None  # class in plain words
    start: float | None = None  # seconds
    end: float | None = None
    span: tuple[int, int] | None = None  # offset and length of the file inside `path`, an uncompressed tar

    def read(self) -> bytes:
        """The file's bytes. OSError if it cannot be read."""
        with self.path.open("rb") as file:
            if self.span is None:
                return file.read()
            file.seek(self.span[0])
            return file.read(self.span[1])

    @contextlib.contextmanager
    def file(self) -> Iterator[Path]:
        """A path with nothing but this item in it: its own, or for a member of a tar a copy that lives as long."""
        if self.span is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="vidrd-") as folder:
            # Not under its own name, which may be one that this system forbids or that leads out of the folder.
            copy = Path(folder) / f"{self.kind}{PurePosixPath(self.name).suffix}"
            copy.write_bytes(self.read())
            yield copy


@dataclass
class Listing:
    """The items of a source in order, and the rows that gave none."""

    items: list[Item] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict, repr=False)

    def add(self, item: Item) -> None:
        """Append an item; further rows of the same file and times only bring further captions."""
        place = self._places.get(item.name)
        if place is None:
            self._places[item.name] = len(self.items)
            self.items.append(item)
            return
        known = self.items[place]
        captions = tuple(dict.fromkeys((*known.captions, *item.captions)))
        self.items[place] = replace(known, captions=captions, label=known.label or item.label)

    def drop(self, source: str, reason: str, detail: str = "") -> None:
        self.dropped.append(Dropped(source, reason, detail))


class MediaFiles:
    """Every media file below a folder, listed once, found by path, by path without extension, or by bare name."""

    def __init__(self, root: Path, kind: str | None = None):
        if kind not in (None, "video", "image"):
            raise ValueError(f"kind must be video, image or left out, got {kind!r}")
        self.root, self._kind = root, kind
        self.names: list[str] = []
        self._exact: set[str] = set()
        self._by_stem: dict[str, list[str]] = {}
        for folder, folders, files in os.walk(root):
            folders.sort()
            base = Path(folder).relative_to(root)
            self.names += ((base / file).as_posix() for file in sorted(files) if self.kind_of(file) is not None)
        self.names.sort()
        self._exact.update(self.names)
        for name in self.names:
            stem = name.rpartition(".")[0]
            self._by_stem.setdefault(stem, []).append(name)
            bare = stem.rpartition("/")[2]
            if bare != stem:
                self._by_stem.setdefault(bare, []).append(name)

    def kind_of(self, name: str) -> str | None:
        """ "video" or "image" by extension; None for anything else and for the kind that is not wanted."""
        suffix = PurePosixPath(name).suffix.lower()
        kind = "video" if suffix in VIDEO_EXTENSIONS else "image" if suffix in IMAGE_EXTENSIONS else None
        return kind if self._kind in (None, kind) else None

    def find(self, *wanted: str) -> str | None:
        """The first of the wanted names that is there: as a path below the root, perhaps without extension.

        A name without a folder is looked for in every folder, one with a folder only there.

        Raises:
            ValueError: several files have that name.
        """
        for name in wanted:
            name = name.replace("\\", "/").removeprefix("./")
            if name in self._exact:
                return name
            kind = self.kind_of(name)
            for stem in (name, name.rpartition(".")[0]) if kind else (name,):
                found = [n for n in self._by_stem.get(stem, []) if kind in (None, self.kind_of(n))]
                if len(found) > 1:
                    raise ValueError(
                        f"{name!r} could be {found[0]} or {found[1]} in {self.root}; give the whole path with its "
                        f"extension, or keep one file (videos: {' '.join(VIDEO_EXTENSIONS)}; images: "
                        f"{' '.join(IMAGE_EXTENSIONS)})"
                    )
                if found:
                    return found[0]
        return None

    def item(self, name: str, start: float | None = None, end: float | None = None, **facts: object) -> Item:
        """The item of a file that :meth:`find` gave; times become part of its name."""
        kind = self.kind_of(name)
        assert kind is not None
        stretch = "" if start is None and end is None else f"#{start or 0:g}-{'' if end is None else format(end, 'g')}"
        return Item(name + stretch, self.root / name, kind, start=start, end=end, **facts)  # type: ignore[arg-type]


def plain_words(label: str) -> str:
    """A class name in plain words: ``ApplyEyeMakeup`` and ``apply+eye_makeup`` become ``apply eye makeup``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", re.sub(r"[+_]", " ", label))
    return " ".join(w if len(w) > 1 and w.isupper() else w.lower() for w in spaced.split())


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a list file that are not empty. FileNotFoundError, or ValueError if it is not UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list file; set source.table to where the official lists are")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); convert it") from error
    return (line.strip() for line in text.splitlines() if line.strip())


def find_table(settings: SourceSettings, names: Iterable[str]) -> Path:
    """The table the settings name, or the first of the usual names in the root or the folder above it."""
    if settings.table is not None:
        if not settings.table.exists():
            raise FileNotFoundError(f"{settings.table}: no such file")
        if settings.table.is_file():
            return settings.table
    folders = [settings.table] if settings.table is not None else [settings.root, settings.root.parent]
    names = list(names)
    for path in (folder / name for folder in folders for name in names):
        if path.is_file():
            return path
    raise FileNotFoundError(f"none of {', '.join(names)} is in {folders[0]}; set source.table")
