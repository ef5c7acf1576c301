"""Trainer state on disk: safetensors and JSON, replaced atomically so that one complete checkpoint always exists.

Weights are stored unsharded, so that a run may continue with another number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .distributed import shared_like, whole


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then replace ``folder`` with it.

    Killed at any moment, ``folder`` or, between two renames, ``folder`` + ".old" is complete: see :func:`recover`.

    Raises:
        OSError: the new folder cannot be written; the old one is unchanged.
    """
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    recover(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        write(fresh)
        _flush(fresh)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        kept = f"the one before is kept in {folder}" if folder.exists() else "there is none before it"
        raise OSError(f"{folder} could not be written ({error}); {kept}: free some space and start again") from error
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Finish what a kill in the middle of :func:`replace_folder` left."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    state: Mapping[str, Any],
    is_main: bool = True,
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write weights, EMA weights, the optimiser's state and ``state``, atomically.

    Every process must call it, since the weights may be sharded; the main one writes.

    Raises:
        OSError: the disk is full or not writable; the last checkpoint is kept.
    """
    weights = {name: _stored(p) for name, p in parameters.items()}
    averages = {name: _stored(p) for name, p in zip(parameters, ema.shadow_params, strict=True)}
    moments = _unshared(
        {
            f"{name}.{key}": _stored(torch.as_tensor(value))
            for name, parameter in parameters.items()
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, (Tensor, int, float))
        }
    )

    def write(fresh: Path) -> None:
        save_file(weights, fresh / "weights.safetensors")
        save_file(averages, fresh / "average.safetensors")
        save_file(moments, fresh / "optimizer.safetensors")
        if write_more is not None:
            write_more(fresh)
        text = json.dumps({**state, "ema_step": ema.optimization_step})
        (fresh / "state.json").write_text(text, encoding="utf-8")

    if is_main:
        replace_folder(folder, write)


def stored_step(folder: Path) -> int | None:
    """The step after which the checkpoint was written; None where there is none."""
    file = folder / "state.json"
    return json.loads(file.read_text(encoding="utf-8"))["step"] if file.exists() else None


def load_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, ema: EMAModel
) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote; returns its ``state``, empty where there is no checkpoint.

    Raises:
        ValueError: the checkpoint is of other parameters.
    """
    if not (folder / "state.json").exists():
        return {}
    weights = load_file(folder / "weights.safetensors")
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))[:4]
        raise ValueError(f"{folder} belongs to another set of trained parameters, for example {odd}; use another run")
    averages = load_file(folder / "average.safetensors")
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        parameter_name, key = name.rsplit(".", 1)
        moments[parameter_name][key] = value
    with torch.no_grad():
        for shadow, (name, parameter) in zip(ema.shadow_params, parameters.items(), strict=True):
            parameter.copy_(shared_like(weights[name], parameter))
            shadow.copy_(shared_like(averages[name], shadow))
            for key, value in moments[name].items():
                optimizer.state[parameter][key] = _restored(value, parameter)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    ema.optimization_step = state["ema_step"]
    return state


@contextmanager
def averaged(parameters: Mapping[str, nn.Parameter], ema: EMAModel) -> Iterator[None]:
    """The EMA weights in place of the current ones."""
    kept = [p.detach().clone() for p in parameters.values()]
    with torch.no_grad():
        for parameter, shadow in zip(parameters.values(), ema.shadow_params, strict=True):
            parameter.copy_(shadow)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters.values(), kept, strict=True):
                parameter.copy_(value)


def _stored(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).contiguous()


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory: 8-bit optimisers share their tables, which safetensors refuses."""
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        alone[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return alone


def _restored(value: Tensor, parameter: nn.Parameter) -> Any:
    """An entry of optimiser state: counters stay on the CPU, as numbers where they were numbers."""
    if value.ndim == 0:
        return value if value.is_floating_point() else int(value)
    return shared_like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)


def _flush(folder: Path) -> None:
    """fsync all files, so that their contents survive a power cut after the renames."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
