"""Write models as safetensors and model folders, all at once: what is not finished never bears the final name."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..files import write_tensors
from ..weight_files import CheckpointError, copy_tensors, read_json
from .assembly import Assembly, Paths, assemble
from .loading import check_fit, empty_model, needs_copy, stored_dtype
from .recognition import CONFIG_KEY, PART_NAMES, Part

if TYPE_CHECKING:
    from ..models.autoencoder import VidRDAutoencoderKL
    from ..models.unet import VidRDUNet

logger = logging.getLogger(__name__)

# As diffusers writes them when it saves the pipeline.
CLASSES = {
    "unet": ("vidrd_core.models.unet", "VidRDUNet"),
    "vae": ("vidrd_core.models.autoencoder", "VidRDAutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}
TOKENIZER_SUFFIXES = (".json", ".txt")


def convert(
    source: Paths,
    output_folder: str | Path,
    *,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model folder, safetensors only, from checkpoints of any layout.

    Args:
        source: a VidRD checkpoint or folder, or several; each component is taken from the first that has it.
        output_folder: a new or empty folder.
        base: a Stable Diffusion 2.1 folder or single file for the parts that the sources lack.
        vae: a VAE to use in place of the others.
        tokenizer: a tokenizer folder, where neither has one.
        dtype: of the weights; None keeps the stored type.

    Returns:
        The folder written.

    Raises:
        CheckpointError: something cannot be read safely, is missing or does not fit, or the folder is not empty.
        OSError: the folder cannot be written, or the disk is too small.
    """
    output = Path(output_folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} already exists and is not an empty folder: choose another name")
    plan = assemble(source, base, vae, tokenizer)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(output.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        _check_space(plan, fresh, dtype)
        for name in PART_NAMES:
            _write_part(plan.parts[name], plan.configs[name], fresh / name, dtype)
        _write_rest(plan, fresh)
        if output.exists():
            output.rmdir()  # empty; a folder cannot be put over another on every system
        os.replace(fresh, output)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return output


def save_model(model: VidRDUNet | VidRDAutoencoderKL, path: str | Path) -> None:
    """Write a :class:`VidRDUNet` or :class:`VidRDAutoencoderKL` to one safetensors file that carries its configuration.

    Raises:
        OSError: the file cannot be written.
    """
    config = {k: v for k, v in json.loads(model.to_json_string()).items() if k != "_name_or_path"}
    _save({k: v.detach() for k, v in model.state_dict().items()}, Path(path), config)


def _save(state: Mapping[str, Tensor], path: Path, config: Mapping[str, Any] | None) -> None:
    metadata = {"format": "pt"}
    if config is not None:
        metadata[CONFIG_KEY] = json.dumps(config)
    write_tensors(path, state, metadata)


def _write_part(part: Part, config: Mapping[str, Any], folder: Path, dtype: torch.dtype | None) -> None:
    state = part.state()
    dtype = dtype or stored_dtype(part, state)
    model = empty_model(part.name, config, dtype)
    check_fit(part, model, state)
    if needs_copy(state, dtype):
        del state
        state = dict(copy_tensors(part.state, dtype))
    folder.mkdir()
    if part.name == "text_encoder":
        model.config.architectures = ["CLIPTextModel"]
        model.config.save_pretrained(folder)
        # Every version of transformers reads the older names; those before 5 read no others.
        _save({f"text_model.{k}": v for k, v in state.items()}, folder / "model.safetensors", None)
        return
    model.save_config(folder)
    _save(state, folder / "diffusion_pytorch_model.safetensors", json.loads(model.to_json_string()))


def _write_rest(plan: Assembly, folder: Path) -> None:
    import diffusers

    (folder / "tokenizer").mkdir()
    for file in sorted(plan.tokenizer.iterdir()):
        if file.is_file() and file.suffix in TOKENIZER_SUFFIXES:
            shutil.copyfile(file, folder / "tokenizer" / file.name)
    settings_file = folder / "tokenizer" / "tokenizer_config.json"
    settings: dict[str, Any] = (
        read_json(settings_file) if settings_file.is_file() else {"tokenizer_class": "CLIPTokenizer"}
    )
    settings["model_max_length"] = min(settings.get("model_max_length", plan.text_length), plan.text_length)
    settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    scheduler = getattr(diffusers, plan.scheduler_class).from_config(plan.scheduler_config)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "VidRDPipeline",
        "_diffusers_version": diffusers.__version__,
        **{n: list(c) for n, c in CLASSES.items()},
        "scheduler": ["diffusers", plan.scheduler_class],
        **({"defaults": plan.defaults} if plan.defaults else {}),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _check_space(plan: Assembly, folder: Path, dtype: torch.dtype | None) -> None:
    needed = 0
    for part in plan.parts.values():
        state = part.state()
        width = (dtype or stored_dtype(part, state)).itemsize
        needed += sum(v.numel() * (width if v.is_floating_point() else v.itemsize) for v in state.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder.parent} has {free / 2**30:.1f} GiB free, the model needs {needed / 2**30:.1f}: free some"
        )
