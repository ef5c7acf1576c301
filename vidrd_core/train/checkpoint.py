"""Trainer state on disk: safetensors and JSON, replaced as a whole so that one good checkpoint always exists."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn


def save_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, ema: EMAModel, step: int
) -> None:
    """Write weights, their average, the optimiser's state and the step; ``folder`` changes all at once."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({k: p.detach().contiguous() for k, p in parameters.items()}, fresh / "weights.safetensors")
    averages = zip(parameters, ema.shadow_params, strict=True)
    save_file({k: p.contiguous() for k, p in averages}, fresh / "average.safetensors")
    moments = {
        f"{name}.{key}": torch.as_tensor(value).contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, fresh / "optimizer.safetensors")
    state = {"step": step, "ema_step": ema.optimization_step}
    (fresh / "state.json").write_text(json.dumps(state), encoding="utf-8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, ema: EMAModel
) -> int:
    """Restore what :func:`save_checkpoint` wrote and return the step, or 0 where there is no checkpoint.

    Raises:
        ValueError: the checkpoint is of other parameters.
    """
    if not folder.exists():  # killed between the two renames
        folder = folder.with_name(folder.name + ".old")
    if not (folder / "state.json").exists():
        return 0
    weights = load_file(folder / "weights.safetensors")
    if set(weights) != set(parameters):
        odd = sorted(set(weights) ^ set(parameters))[:4]
        raise ValueError(f"{folder} belongs to another set of trained parameters, for example {odd}; use another run")
    averages = load_file(folder / "average.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        for shadow, (name, parameter) in zip(ema.shadow_params, parameters.items(), strict=True):
            parameter.copy_(weights[name])
            shadow.copy_(averages[name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = moments.get(f"{name}.{key}")  # none where the parameter has had no gradient yet
                if value is not None:
                    optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    ema.optimization_step = state["ema_step"]
    return state["step"]
