"""Recognise what a file or folder is and find the U-Net, the VAE and the text encoder in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..weight_files import CheckpointError, MissingFileError, StoredWeights, open_weights, read_json, weight_files
from .configs import other_model
from .lora_weights import merge_lora
from .naming import to_our_names

PART_NAMES = ("unet", "vae", "text_encoder")
CONFIG_KEY = "vidrd_config"  # safetensors metadata of files that this package writes
LORA = "lora.safetensors"  # of a folder within a model folder: the same model with this LoRA in its U-Net
PART_OF_CLASS = {"VidRDUNet": "unet", "VidRDAutoencoderKL": "vae", "CLIPTextModel": "text_encoder"}

# By which a model and its layout are recognised: two weights that every such model has.
SIGNATURES = (
    ("unet", "diffusers", "time_embedding.linear_1.weight", "conv_in.weight"),
    ("unet", "ldm", "time_embed.0.weight", "input_blocks.0.0.weight"),
    ("vae", "diffusers", "decoder.conv_norm_out.weight", "encoder.conv_in.weight"),
    ("vae", "ldm", "decoder.norm_out.weight", "encoder.conv_in.weight"),
    ("text_encoder", "clip", "embeddings.token_embedding.weight", "final_layer_norm.weight"),
    ("text_encoder", "openclip", "token_embedding.weight", "transformer.resblocks.0.ln_1.weight"),
)
KINDS = {
    "lightning": "training checkpoint (PyTorch Lightning layout)",
    "ldm": "Stable Diffusion single-file checkpoint",
    "weights": "weights file",
    "component_folder": "folder of one diffusers component",
    "model_folder": "diffusers model folder",
    "release_folder": "folder of the released files",
}


@dataclass(frozen=True)
class Part:
    """The weights of one model: where they lie and under which names."""

    name: str  # unet, vae or text_encoder
    layout: str
    stored: StoredWeights
    prefix: str = ""
    config: Mapping[str, Any] | None = None  # where the file or folder brings one
    config_source: str = "the shapes"
    lora: Path | None = None  # a LoRA file whose changes are added to the weights

    def select(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This part's tensors by their stored names without the prefix."""
        return {k.removeprefix(self.prefix): v for k, v in stored.items() if k.startswith(self.prefix)}

    def state(self) -> dict[str, Tensor]:
        """The tensors in the names of our models, mapped afresh."""
        try:
            state = to_our_names(self.name, self.layout, self.select(self.stored.tensors()))
        except CheckpointError as error:
            raise CheckpointError(f"{self.stored.path}: {error}") from error
        except (
            KeyError,
            IndexError,
            RuntimeError,
        ) as error:  # of the conversion, on names or shapes it does not expect
            raise CheckpointError(f"{self.stored.path}: the {self.name} is in no known layout ({error!r})") from error
        return state if self.lora is None else merge_lora(state, self.lora)


@dataclass
class Checkpoint:
    """What a path holds. Parts are opened on first use."""

    path: Path
    kind: str  # a key of KINDS
    found: dict[str, Part] = field(default_factory=dict)  # parts of a file
    part_paths: dict[str, Path] = field(default_factory=dict)  # folders or files; also of tokenizer and scheduler
    other: list[str] = field(default_factory=list)  # names of weights that belong to no part
    roots: list[Path] = field(default_factory=list)  # model folders, whose components' configurations may be of use
    lora: Path | None = None  # of the U-Net

    @property
    def names(self) -> list[str]:
        """The parts there are."""
        return [n for n in PART_NAMES if n in self.found or n in self.part_paths]

    @cached_property
    def _opened(self) -> dict[str, Part]:
        return {}

    def part(self, name: str) -> Part | None:
        """The part ``name``, or None.

        Raises:
            CheckpointError: its files cannot be read or hold something else.
        """
        if name in self.found:
            return self.found[name]
        if name in self.part_paths and name not in self._opened:
            inner = recognise(self.part_paths[name])
            part = inner.part(name)
            if part is None:
                raise CheckpointError(f"{self.part_paths[name]} should hold the {name} but holds {_list(inner.names)}")
            self._opened[name] = replace(part, lora=self.lora) if name == "unet" else part
        return self._opened.get(name)


def recognise(path: str | Path) -> Checkpoint:
    """Find out what ``path`` is.

    Raises:
        CheckpointError: it does not exist, cannot be read safely, or holds no part of a model that we know.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: check the name")
    if path.is_file():
        return _recognise_file(path)
    released = sorted(path.glob("ModelT2V*.pth"))
    if released:
        return _release_folder(path, released[0])
    if (path / "config.json").is_file():
        return _component_folder(path)
    part_paths = {n: path / n for n in PART_NAMES if (path / n).is_dir() and weight_files(path / n)}
    extras = {n: path / n for n in ("tokenizer", "scheduler") if (path / n).is_dir()}
    if not part_paths and (path / LORA).is_file() and (path.parent / "model_index.json").is_file():
        base = recognise(path.parent)
        parts = {**base.part_paths, **extras}
        return replace(base, path=path, part_paths=parts, roots=[path, *base.roots], lora=path / LORA)
    if part_paths or (path / "model_index.json").is_file():
        return Checkpoint(path, "model_folder", part_paths={**part_paths, **extras}, roots=[path])
    if weight_files(path):
        raise CheckpointError(
            f"{path} holds weights but no config.json: put the config.json that belongs to them beside them, "
            "or name the weights file itself, whose configuration is then inferred from its shapes"
        )
    content = _list([p.name for p in path.iterdir()])
    raise CheckpointError(
        f"{path} is no model folder (it holds {content}): expected model_index.json, or config.json and weights"
    )


def _release_folder(path: Path, checkpoint: Path) -> Checkpoint:
    """``ModelT2V.pth``, ``vae_finetuned/`` and a Stable Diffusion folder side by side."""
    main = recognise(checkpoint)
    part_paths: dict[str, Path] = {}
    roots = sorted(p for p in path.iterdir() if (p / "model_index.json").is_file())
    for folder in roots:
        part_paths.update({n: h for n, h in recognise(folder).part_paths.items() if n != "unet"})
    if (path / "vae_finetuned").is_dir():
        part_paths["vae"] = path / "vae_finetuned"
        main.found.pop("vae", None)  # as in the release, where the fine-tuned VAE is given
    return Checkpoint(path, "release_folder", found=main.found, part_paths=part_paths, other=main.other, roots=roots)


def _component_folder(path: Path) -> Checkpoint:
    config = read_json(path / "config.json")
    stored = open_weights(path)
    found = _find_parts(stored)
    if not found:
        raise _nothing_found(path, stored)
    parts = {n: Part(n, p.layout, stored, p.prefix, config, str(path / "config.json")) for n, p in found.items()}
    return Checkpoint(path, "component_folder", found=parts)


def _recognise_file(path: Path) -> Checkpoint:
    stored = open_weights(path)
    found = _find_parts(stored)
    if not found:
        raise _nothing_found(path, stored)
    if CONFIG_KEY in stored.metadata:
        config = _metadata_config(stored)
        name = PART_OF_CLASS.get(str(config.get("_class_name")))
        if name in found:
            part = found[name]
            found[name] = Part(name, part.layout, stored, part.prefix, config, "the file's metadata")
    prefixes = tuple(p.prefix for p in found.values())
    other = [k for k in stored.tensors() if not k.startswith(prefixes)]
    if any(p.layout in ("ldm", "openclip") and p.prefix for p in found.values()):
        kind = "ldm"
    else:
        kind = "weights" if "" in prefixes or path.suffix == ".safetensors" else "lightning"
    return Checkpoint(path, kind, found=found, other=other)


def _metadata_config(stored: StoredWeights) -> dict[str, Any]:
    try:
        config = json.loads(stored.metadata[CONFIG_KEY])
    except ValueError as error:
        raise CheckpointError(
            f"{stored.path}: its metadata {CONFIG_KEY} is no JSON ({error}): convert it again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{stored.path}: its metadata {CONFIG_KEY} is no JSON object: convert it again")
    return config


def _find_parts(stored: StoredWeights) -> dict[str, Part]:
    tensors = stored.tensors()
    found: dict[str, Part] = {}
    for name, layout, key, second_key in SIGNATURES:
        if name in found:
            continue
        prefixes = [k.removesuffix(key) for k in tensors if k == key or k.endswith("." + key)]
        prefixes = [p for p in prefixes if p + second_key in tensors]
        if layout == "clip":
            prefixes = [p.removesuffix("text_model.") for p in prefixes]
        prefixes = [p for p in prefixes if not _is_other_copy(p, tensors)]
        if len(prefixes) > 1:
            own = [p for p in prefixes if p.endswith(f"{name}.")]
            prefixes = own if len(own) == 1 else prefixes
        if len(prefixes) > 1:
            raise CheckpointError(
                f"{stored.path} holds several {name} models (under {_list(prefixes)}): save the one you mean to a file"
            )
        if prefixes:
            found[name] = Part(name, layout, stored, prefixes[0])
    return found


def _is_other_copy(prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    """A moving average beside the weights, or the text half of a whole CLIP that served as a metric."""
    is_average = "ema" in prefix.replace(".", "_").lower().split("_")
    return is_average or prefix + "vision_model.embeddings.class_embedding" in tensors


def _nothing_found(path: Path, stored: StoredWeights) -> CheckpointError:
    names = list(stored.tensors())
    what = other_model(names)
    guess = f"looks like {what}; it " if what else ""
    return CheckpointError(
        f"{path} {guess}holds no U-Net, VAE or CLIP text encoder known here (its weights begin {_list(names[:3])}): "
        "choose another file"
    )


def _list(names: list[str], most: int = 6) -> str:
    shown = ", ".join(repr(n) for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"
