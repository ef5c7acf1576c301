"""Read weight files safely: safetensors, or pickles through torch's weights-only reader; both memory-mapped.

Nothing here executes what a file holds, and a file that is no weights at all is told apart before it is opened.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 2**20  # how much of a file may be mapped in at once while its weights are copied
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")

# What training frameworks store beside the weights. Each is replaced by an empty placeholder: none is imported or run.
IGNORED_CLASSES = (
    "omegaconf.",
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "argparse.Namespace",
    "pathlib.",
    "typing.",
    "numpy.",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.list",
    "builtins.tuple",
    "builtins.int",
    "builtins.float",
    "builtins.str",
    "builtins.bool",
    "builtins.object",
)
IGNORED_DICT_CLASSES = ("collections.defaultdict", "AttributeDict")


class CheckpointError(ValueError):
    """A file or folder cannot be used; the message names it and says what to do."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file that should be there is not."""


@dataclass(frozen=True)
class StoredWeights:
    """Weights on disk: one file or the shards of one model."""

    path: Path  # what the user named
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)  # of a Lightning checkpoint

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.files)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their stored names, mapped afresh: pages are read when touched and freed with the tensors."""
        found: dict[str, Tensor] = {}
        for file in self.files:
            found.update(_read_file(file)[0])
        return found


def open_weights(path: Path) -> StoredWeights:
    """Weights of a file, or of a folder that holds one model in one file or in shards with an index.

    Raises:
        CheckpointError: there are none, or they cannot be read safely.
    """
    files = weight_files(path) if path.is_dir() else (path,)
    if not files:
        raise MissingFileError(f"{path} holds no weights ({_listing(path)}): expected a .safetensors or .bin file")
    _, metadata, hyper_parameters = _read_file(files[0])
    return StoredWeights(path, files, metadata, hyper_parameters)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a model folder, safetensors before pickles, plain before variants such as ``fp16``."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    for suffix in ("safetensors", "bin"):
        for stem in WEIGHT_STEMS:
            index = [n for n in names if re.fullmatch(rf"{stem}\.{suffix}\.index(\.\w+)?\.json", n)]
            single = [n for n in names if re.fullmatch(rf"{stem}(\.\w+)?\.{suffix}", n)]
            plain = f"{stem}.{suffix}"
            if plain in names:
                return (folder / plain,)
            if index:
                return _shards(folder / index[0])
            if single:
                return (folder / single[0],)
    for suffixes in ((".safetensors",), PICKLE_SUFFIXES):
        loose = [n for n in names if n.lower().endswith(suffixes)]
        if len(loose) == 1:
            return (folder / loose[0],)
        if loose:
            raise CheckpointError(f"{folder} holds several weight files ({', '.join(loose[:4])}): name the one to load")
    return ()


def copy_tensors(
    open_tensors: Callable[[], Mapping[str, Tensor]], dtype: torch.dtype | None, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Copies of all tensors, in ``dtype`` where they are floats; the file is mapped in chunk by chunk.

    ``open_tensors`` maps the file afresh on each call, so that the pages of the chunk before can go.
    """
    chunks: list[list[str]] = [[]]
    room = CHUNK_BYTES
    for name, tensor in open_tensors().items():
        if chunks[-1] and tensor.nbytes > room:
            chunks.append([])
            room = CHUNK_BYTES
        chunks[-1].append(name)
        room -= tensor.nbytes
    for chunk in chunks:
        tensors = open_tensors()
        for name in chunk:
            target = dtype if tensors[name].is_floating_point() else None
            yield name, tensors[name].to(device=device, dtype=target, copy=True)
        del tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is missing: it belongs to every diffusers folder; download it too") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object: download it again")
    return content


def _shards(index: Path) -> tuple[Path, ...]:
    """The files an index names, which must be its neighbours."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} names no files: download it again")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [n for n in names if Path(n).name != n or "\\" in n]
    if outside:
        raise CheckpointError(f"{index} names files outside its folder ({outside[0]}): do not use it")
    missing = [n for n in names if not (index.parent / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} shards ({missing[0]}): download them"
        )
    return tuple(index.parent / n for n in names)


def _read_file(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str], Mapping[str, Any]]:
    """Tensors, safetensors metadata and Lightning hyper-parameters of one file."""
    if _format_of(path) == "safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                names = file.keys()
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}, {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({error}): it was cut short or damaged; download it again"
            ) from error
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no named weights: it is another kind of file")
    nested = (content[k] for k in STATE_DICT_KEYS if isinstance(content.get(k), Mapping))
    weights = next(nested, content)
    tensors = {k: v.detach() for k, v in weights.items() if isinstance(k, str) and isinstance(v, Tensor)}
    odd = [k for k, v in tensors.items() if v.layout != torch.strided or v.is_quantized or v.is_meta]
    if odd:
        raise CheckpointError(
            f"{path} holds sparse, quantised or empty tensors ({_few(odd, 2)}): save it as plain tensors"
        )
    if not tensors:
        raise CheckpointError(f"{path} holds no weights, only {_few(map(str, content))}: it is another kind of file")
    hyper_parameters = content.get("hyper_parameters")
    return tensors, {}, hyper_parameters if isinstance(hyper_parameters, Mapping) else {}


def _format_of(path: Path) -> str:
    """``safetensors``, ``zip`` (torch since 1.6) or ``pickle``, from the content; anything else is an error."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist: check the name")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): its download failed; download it again")
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise CheckpointError(
            f"{path} is a web page, not weights: the site answered with a page (often a confirmation or a log-in); "
            "open the link in a browser, confirm, and download again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer ({size} bytes) in place of the file: run `git lfs pull`, or download the file"
        )
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    for magic, name in ((b"GGUF", "a GGUF file"), (b"\x1f\x8b", "a gzip archive"), (b"7z\xbc\xaf", "a 7z archive")):
        if head.startswith(magic):
            raise CheckpointError(f"{path} is {name}: unpack it, or take the safetensors or .pth form of these weights")
    if head[:1] == b"\x80":
        return "pickle"
    raise CheckpointError(
        f"{path} is neither safetensors nor a torch file (it begins {head[:12]!r}): download it again"
    )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ends too early ({path.stat().st_size:,} bytes): it was cut short or damaged; download it again"
        ) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a zip archive ({_few(names)}), not weights: unpack it and name what is inside"
        )


class _IgnoredObject:
    """Takes the place of any object that is not a weight; keeps and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _IgnoredDict:
    """Takes the place of a dict's subclass, as a plain dict."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return {}


def _read_pickle(path: Path) -> Any:
    """A torch file's content by the weights-only reader, memory-mapped where its form allows it."""
    is_zip = _format_of(path) == "zip"
    unsafe_globals = _globals_of(path) if is_zip else []
    harmful = [name for name in unsafe_globals if not name.startswith(IGNORED_CLASSES)]
    if harmful:
        raise _code_error(path, harmful)
    placeholders: list[Any] = [
        (_IgnoredDict if name.endswith(IGNORED_DICT_CLASSES) else _IgnoredObject, name) for name in unsafe_globals
    ]
    if placeholders:
        logger.info("%s: left out %s", path, ", ".join(unsafe_globals))
    try:
        if not placeholders:
            return _torch_load(path, is_zip)
        try:
            with torch.serialization.safe_globals(placeholders):
                return _torch_load(path, is_zip)
        except AttributeError as error:  # torch before 2.6 cannot let one object replace another
            raise _code_error(path, unsafe_globals) from error
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise _code_error(path, re.findall(r"GLOBAL ([\w.]+\w)", str(error))[:1]) from error
    except Exception as error:  # damaged bytes make the reader fail in any way
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}): it was cut short or damaged; "
            "download it again"
        ) from error


def _torch_load(path: Path, is_zip: bool) -> Any:
    if is_zip and path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:  # given a name, torch goes by its suffix, which may be wrong
        return torch.load(file, map_location="cpu", weights_only=True)


def _globals_of(path: Path) -> list[str]:
    """Names of classes and functions the pickle asks for beyond weights, without executing it."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (AttributeError, AssertionError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
        return []  # an older torch, or a damaged file: the weights-only reader has the last word


def _code_error(path: Path, names: list[str]) -> CheckpointError:
    asked = f" ({', '.join(names[:4])})" if names else ""
    return CheckpointError(
        f"{path} holds Python code or objects{asked}, not only weights. Nothing of it was executed. "
        "If you did not make the file yourself, delete it and get a safetensors version from a source you trust. "
        "If you did, reduce it to its weights in the environment that made it: "
        "python -c \"import torch; c = torch.load('FILE', map_location='cpu', weights_only=False); "
        "torch.save({'state_dict': c['state_dict']}, 'weights.pth')\""
    )


def _listing(folder: Path) -> str:
    return _few(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "not a folder"


def _few(names: Any, most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
