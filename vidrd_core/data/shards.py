"""Prepared data sets: WebDataset shards with an index, written so that a killed run continues, read at random.

A data set is a folder of ``shard-000000.tar`` ..., each with a table ``shard-000000.json`` of its samples, and
``index.json``, which appears last: a folder without it is unfinished. A sample's members are ``<key>.mp4`` (video) or
``<key>.jpg`` / ``<key>.png`` (image) and ``<key>.json``; a data set of latents holds ``<key>.latents.npy``
(float16 ``[C, T, h, w]``, scaled), ``<key>.text.npy`` (float16 ``[M, D]``) and ``<key>.json``, and beside the shards
the text states of null captions. Any WebDataset loader reads the shards; :class:`ShardDataset` reads any sample without
those before it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from einops import rearrange

from ..files import sync_and_replace, write_json
from .media import decode_image, decode_mp4, fit

if TYPE_CHECKING:  # the processes that prepare media need no torch, and would each take seconds to load it
    import torch

VERSION = 1
INDEX = "index.json"
# Beside the shards of an embedded data set: text states of the empty caption, and of null captions that were asked for.
UNCONDITIONAL = "unconditional.npy"
NULL_CAPTIONS = "null_captions.safetensors"
_RUN = "run.json"
_SHARD = re.compile(r"[\w-]+\.tar")
LOCK = "run.lock"  # while a process writes the folder


class BrokenItem(ValueError):
    """One sample of a data set, or one item of a source, cannot be read; the others can."""

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple[type[BrokenItem], tuple[str, str]]:
        return type(self), (self.key, self.reason)


@dataclass(frozen=True)
class Dropped:
    """An item that is not in the data set, and why."""

    source: str
    reason: str  # one of few, to be counted
    detail: str = ""


@dataclass(frozen=True)
class Sample:
    """What a shard holds of one clip or image."""

    key: str  # unique in the data set, no dots
    members: Mapping[str, bytes]  # suffix without the first dot -> content
    info: Mapping[str, Any]  # becomes <key>.json: caption, kind, width, height, frames, fps, source, perhaps label


@dataclass(frozen=True)
class SampleInfo:
    """What is known of a sample before its media are opened."""

    key: str
    kind: str  # "video" or "image"
    width: int  # pixels
    height: int
    frames: int
    fps: float
    captions: tuple[str, ...]  # at least one
    label: str | None = None
    shard: int = 0
    members: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # suffix -> offset and bytes in the shard

    @property
    def caption(self) -> str:
        return self.captions[0]


class ShardWriter:
    """Writes the samples of numbered items, in their order, into shards of ``folder``.

    settings: JSON values; a folder that was begun with others is refused. After an interruption, a writer made with the
    same arguments keeps every finished shard, and ``next_item`` is the item to continue with.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], samples_per_shard: int):
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
        self.folder, self._settings, self._limit = folder, json.loads(json.dumps(settings)), samples_per_shard
        folder.mkdir(parents=True, exist_ok=True)
        self._claim()
        self.tables: list[dict[str, Any]] = []  # one for each finished shard
        while (path := folder / f"{self._name(len(self.tables))}.json").exists():
            self.tables.append(json.loads(path.read_text(encoding="utf-8")))
        self.next_item: int = self.tables[-1]["next_item"] if self.tables else 0
        self._file: BinaryIO | None = None
        self._tar: Any = None
        self._infos: list[tuple[str, dict[str, Any]]] = []
        self._notes: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        return (self.folder / INDEX).exists()

    @property
    def empty(self) -> bool:
        """Whether no item has brought a sample so far."""
        return not self.tables and not self._infos

    def add(self, item: int, samples: Sequence[Sample], note: Mapping[str, Any] | None = None) -> None:
        """Store what became of ``item``: its samples, perhaps none, and a JSON note of what was dropped."""
        if item != self.next_item:
            raise ValueError(f"items come in order: expected {self.next_item}, got {item}")
        for sample in samples:
            self._write(sample)
        if note:
            self._notes.append({"item": item, **note})
        self.next_item = item + 1
        if len(self._infos) >= self._limit:
            self._finish_shard()

    def notes(self) -> list[dict[str, Any]]:
        """Every note so far, in the order of the items."""
        return [note for table in self.tables for note in table["notes"]] + self._notes

    def finish(self) -> None:
        """Close the last shard and write the index. ValueError if there is no sample at all."""
        if self._infos:
            self._finish_shard()
        if not self.tables:
            raise ValueError(f"{self.folder}: no sample was left to write")
        shards = [{k: table[k] for k in ("name", "bytes", "sha256")} for table in self.tables]
        for shard, table in zip(shards, self.tables, strict=True):
            shard["samples"] = len(table["samples"])
        total = sum(shard["samples"] for shard in shards)
        index = {"version": VERSION, "samples": total, "shards": shards, "settings": self._settings}
        write_json(self.folder / INDEX, index, sort_keys=True)

    def close(self) -> None:
        """Let go of an unfinished shard; a later run writes it again."""
        if self._tar is not None:
            self._tar.close()
        if self._file is not None:
            self._file.close()
        self._tar = self._file = None

    @staticmethod
    def _name(number: int) -> str:
        return f"shard-{number:06d}"

    def _claim(self) -> None:
        path = self.folder / _RUN
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known != self._settings:
                odd = sorted(k for k in {*known, *self._settings} if known.get(k) != self._settings.get(k))
                raise ValueError(
                    f"{self.folder} was begun with other settings or other source files ({', '.join(odd)} differ); "
                    "choose another output folder, or delete this one to start over"
                )
        elif any(self.folder.glob("shard-*")):
            raise ValueError(f"{self.folder} holds shards of an unknown run; choose another output folder")
        else:
            write_json(path, self._settings, sort_keys=True)

    def _write(self, sample: Sample) -> None:
        from webdataset.writer import TarWriter

        if "." in sample.key or "/" in sample.key:
            raise ValueError(f"a key holds no dot or slash, got {sample.key!r}")
        if self._tar is None:
            # Opened here, since webdataset would take the C of a Windows path for an internet protocol.
            self._file = (self.folder / f"{self._name(len(self.tables))}.tar.partial").open("wb")
            self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False, compress=False)
        info = json.dumps(dict(sample.info), ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")
        self._tar.write({"__key__": sample.key, **sample.members, "json": info})
        self._infos.append((sample.key, dict(sample.info)))

    def _finish_shard(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        self._file.close()
        self._tar = self._file = None
        name = self._name(len(self.tables))
        partial = self.folder / f"{name}.tar.partial"
        table = {
            "name": f"{name}.tar",
            "bytes": partial.stat().st_size,
            "sha256": _sha256(partial),
            "next_item": self.next_item,
            "samples": _rows(partial, self._infos),
            "notes": self._notes,
        }
        sync_and_replace(partial, self.folder / f"{name}.tar")
        # Last: with it the shard counts as finished.
        write_json(self.folder / f"{name}.json", table, sort_keys=True)
        self.tables.append(table)
        self._infos, self._notes = [], []


def _rows(path: Path, infos: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each sample's information and where its members lie."""
    places: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            places.setdefault(key, {})[suffix] = (member.offset_data, member.size)
    return [{"key": key, **info, "members": places[key]} for key, info in infos]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ShardDataset:
    """A finished data set: a list of what it holds, and any sample on demand.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is unfinished or lacks a shard, or a shard was cut off.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such data set")
        if not (self.folder / INDEX).exists():
            raise ValueError(f"{self.folder} is no finished data set; run its preparation again: it continues")
        with _naming(self.folder / INDEX):
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            version: int = index["version"]
            self.settings: dict[str, Any] = index["settings"]
            self.shards: list[dict[str, Any]] = index["shards"]
            outside = [shard["name"] for shard in self.shards if not _SHARD.fullmatch(shard["name"])]
            if outside:
                raise ValueError(f"{outside[0]!r} is no shard")
        if version != VERSION:
            raise ValueError(f"{self.folder} is a data set of version {version}, this reads {VERSION}")
        self.samples: list[SampleInfo] = []
        for number, shard in enumerate(self.shards):
            self.samples += self._load(number, shard)

    @property
    def unconditional(self) -> torch.Tensor | None:
        """Text states ``[M, D]`` float32 of the empty caption, where the data set holds text states."""
        path = self.folder / UNCONDITIONAL
        return _tensor(path.read_bytes()) if path.exists() else None

    @property
    def null_states(self) -> dict[str, torch.Tensor]:
        """Text states ``[M, D]`` float32 of null captions, by caption; the empty one is among them."""
        from safetensors import safe_open

        empty = self.unconditional
        found = {} if empty is None else {"": empty}
        if (self.folder / NULL_CAPTIONS).exists():
            with safe_open(self.folder / NULL_CAPTIONS, "pt") as file:
                captions = json.loads(file.metadata()["captions"])
                found |= {caption: file.get_tensor(str(n)).float() for n, caption in enumerate(captions)}
        return found

    def __len__(self) -> int:
        return len(self.samples)

    def read(
        self,
        i: int,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Sample ``i``: ``pixels`` ``[3, T, H, W]`` float32 in [-1, 1], or ``latents`` ``[C, T, h, w]`` float32.

        Also ``text`` (``[M, D]`` float32 or None), ``caption`` (one of several at random), ``key``, ``fps``.

        num_frames: so many successive frames from a random start, which ``generator`` draws; None: all. An image has 1.
        height, width: pixels are scaled to cover them and cut at the middle; latents must be of that size already.
        The same generator state gives the same result.

        Raises:
            BrokenItem: the sample's bytes cannot be read.
            ValueError: more frames than there are, or another size of latents.
        """
        import torch

        sample = self.samples[i]
        count = sample.frames if num_frames is None else num_frames
        if not 1 <= count <= sample.frames:
            raise ValueError(f"{sample.key} has {sample.frames} frames, {count} were asked for")
        start = _draw(sample.frames - count + 1, generator)
        caption = sample.captions[_draw(len(sample.captions), generator)]
        size = (height or sample.height, width or sample.width)
        made: dict[str, Any] = {"caption": caption, "key": sample.key, "fps": sample.fps, "text": None}
        if "latents.npy" in sample.members:
            if size != (sample.height, sample.width):
                raise ValueError(f"{sample.key}: latents of {sample.height}x{sample.width} pixels cannot become {size}")
            made["latents"] = self._array(sample, "latents.npy")[:, start : start + count].contiguous()
        else:
            frames = self.frames(i, start, count)
            pixels = rearrange(torch.from_numpy(fit(frames, *size)), "t h w c -> c t h w")
            made["pixels"] = pixels.float().div(127.5).sub(1.0).contiguous()
        if "text.npy" in sample.members:
            made["text"] = self._array(sample, "text.npy")
        return made

    def frames(self, i: int, start: int = 0, count: int | None = None) -> np.ndarray:
        """Frames of sample ``i`` as stored, uint8 ``[T, H, W, 3]``. BrokenItem if they cannot be read."""
        sample = self.samples[i]
        suffix = next((s for s in ("mp4", "jpg", "png") if s in sample.members), None)
        if suffix is None:
            raise BrokenItem(sample.key, f"holds no media, only {sorted(sample.members)}")
        data = self.member(sample, suffix)
        try:
            return decode_mp4(data, start, count) if suffix == "mp4" else decode_image(data)[None]
        except ValueError as error:
            raise BrokenItem(sample.key, str(error)) from error

    def _array(self, sample: SampleInfo, suffix: str) -> torch.Tensor:
        try:
            return _tensor(self.member(sample, suffix))
        except (ValueError, EOFError, MemoryError, OverflowError) as error:
            raise BrokenItem(sample.key, f"{suffix} is damaged ({error})") from error

    def member(self, sample: SampleInfo, suffix: str) -> bytes:
        """The bytes of one member of a sample. BrokenItem if they cannot be read."""
        offset, size = sample.members[suffix]
        path = self.folder / self.shards[sample.shard]["name"]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise BrokenItem(sample.key, f"{path} cannot be read ({error.strerror or error})") from error
        if len(data) != size:
            raise BrokenItem(sample.key, f"{path} is cut off")
        return data

    def _load(self, number: int, shard: Mapping[str, Any]) -> list[SampleInfo]:
        path = self.folder / shard["name"]
        size = path.stat().st_size if path.exists() else None
        if size != shard["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
            raise ValueError(f"{path} {found}; copy the data set again or prepare it anew")
        with _naming(path.with_suffix(".json")):
            table = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            samples = [_info(row, number) for row in table["samples"]]
            for sample in samples:
                if any(
                    offset < 0 or length < 0 or offset + length > size for offset, length in sample.members.values()
                ):
                    raise ValueError(f"{sample.key} does not lie in the shard")
        return samples


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors over the content of a JSON file as a ValueError that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy the data set again or prepare it anew") from error


def _info(row: Mapping[str, Any], shard: int) -> SampleInfo:
    known = {k: row[k] for k in ("key", "kind", "width", "height", "frames", "fps")}
    members = {suffix: (place[0], place[1]) for suffix, place in row["members"].items()}
    captions = tuple(row.get("captions") or [row["caption"]])
    return SampleInfo(**known, captions=captions, label=row.get("label"), shard=shard, members=members)


def _draw(count: int, generator: torch.Generator | None) -> int:
    import torch

    return int(torch.randint(count, (), generator=generator))


def _tensor(data: bytes) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False)).float()
