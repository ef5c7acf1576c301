"""Inflation: grow a video model from an image model, the temporal layers starting as the identity."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def inflate(
    cls: type[Model],
    source: str | Path | Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> Model:
    """Build ``cls`` from an image model's weights.

    Args:
        cls: a model class whose temporal parameters carry ``temp_`` in their names.
        source: a diffusers folder with ``config.json`` and one safetensors file, or a state dict.
        config: the image model's configuration; read from the folder when None.
        overrides: constructor arguments that replace the configuration's.
        fixed: settings that the image model must have if it names them.

    Raises:
        ValueError: settings, names or shapes do not fit; the message lists them.
        FileNotFoundError: the folder lacks a configuration or weights.
    """
    if isinstance(source, (str, Path)):
        config = read_config(Path(source)) if config is None else config
        source = read_weights(Path(source))
    if config is None:
        raise ValueError(f"{cls.__name__} cannot tell its sizes from a state dict alone: pass the image model's config")
    wrong = {k: config[k] for k, v in fixed.items() if config.get(k, v) != v}
    if wrong:
        raise ValueError(f"{cls.__name__} needs {({k: fixed[k] for k in wrong})}, the image model has {wrong}")
    accepted = inspect.signature(cls.__init__).parameters
    model = cls(**{**{k: v for k, v in config.items() if k in accepted}, **overrides})
    load_spatial_weights(model, source)
    return model


def load_spatial_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load all but the ``temp_`` parameters; those keep their start where ``state_dict`` has none.

    Raises:
        ValueError: other parameters are missing, or names or shapes do not belong to the model.
    """
    own = model.state_dict()
    shapes = {k: tuple(v.shape) for k, v in own.items()}
    result = model.load_state_dict(
        {k: v for k, v in state_dict.items() if k not in own or tuple(v.shape) == shapes[k]}, strict=False
    )
    misshapen = [
        f"{k} {tuple(v.shape)} (expected {shapes[k]})"
        for k, v in state_dict.items()
        if k in own and tuple(v.shape) != shapes[k]
    ]
    missing = [k for k in result.missing_keys if "temp_" not in k]
    if misshapen or missing or result.unexpected_keys:
        raise ValueError(
            f"weights do not fit {type(model).__name__}: wrong shapes {_few(misshapen)}, missing {_few(missing)}, "
            f"unexpected {_few(result.unexpected_keys)}"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a diffusers model folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} should be a diffusers model folder")
    return json.loads(path.read_text(encoding="utf-8"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a diffusers model folder that holds one safetensors file."""
    path = folder / "diffusion_pytorch_model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: convert the folder to safetensors first (vidrd convert)")
    return load_file(path)


def _few(items: list[str], most: int = 4) -> str:
    if not items:
        return "none"
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
