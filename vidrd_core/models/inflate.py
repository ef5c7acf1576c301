"""Build models without spending memory twice, and grow a video model from an image model.

A model is built on the meta device and its weights are assigned, not copied. In inflation the temporal layers, which
the image model lacks, start as the identity.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..weight_files import copy_tensors, open_weights, read_json
from .layers import TempConv, TransformerBlock, zero_init
from .old_names import rename_old_attention

Model = TypeVar("Model", bound=nn.Module)

LARGEST = 2**24  # number in a configuration
MOST_LAYERS = 512  # of a model; those of Stable Diffusion have a dozen


@dataclass(frozen=True)
class Fit:
    """How named shapes compare with a model's."""

    missing: list[str]
    missing_temporal: list[str]
    unexpected: list[str]
    misshapen: list[str]  # name, shape and the expected shape

    def problem(self, temporal_may_miss: bool = False) -> str | None:
        """What does not fit, in words; None where all is well."""
        missing = self.missing + ([] if temporal_may_miss else self.missing_temporal)
        if not (missing or self.unexpected or self.misshapen):
            return None
        lists = {"wrong shapes": self.misshapen, "missing": missing, "unexpected": self.unexpected}
        return "; ".join(f"{title}: {few(names)}" for title, names in lists.items() if names)


def inflate(
    cls: type[Model],
    source: str | Path | Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> Model:
    """Build ``cls`` from an image model's weights, which are copied.

    Args:
        cls: a model class whose temporal parameters carry ``temp_`` in their names.
        source: a diffusers folder with ``config.json`` and weights, or a state dict.
        config: the image model's configuration; read from the folder when None.
        overrides: constructor arguments that replace the configuration's.
        fixed: settings that the image model must have if it names them.

    Raises:
        ValueError: the folder cannot be read, or settings, names or shapes do not fit; the message lists them.
    """
    if isinstance(source, (str, Path)):
        folder = Path(source)
        config = read_json(folder / "config.json") if config is None else config
        open_tensors = open_weights(folder).tensors
    else:
        weights = source

        def open_tensors() -> dict[str, Tensor]:
            return dict(weights)

    if config is None:
        raise ValueError(f"{cls.__name__} cannot tell its sizes from a state dict alone: pass the image model's config")
    check_settings(cls, config, fixed)
    settings = dict(overrides)
    device = settings.pop("device", None) or torch.get_default_device()
    model = build_empty(cls, {**config, **settings})
    dtype = settings.get("dtype") or torch.get_default_dtype()
    assign_weights(model, copy_tensors(open_tensors, dtype, device), temporal_may_miss=True)
    initialise_missing(model, device)
    return model


def check_settings(cls: type, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raise ValueError where ``config`` names a setting that ``cls`` has not, with another value than ``fixed``."""
    wrong = {k: config[k] for k, v in fixed.items() if config.get(k, v) != v}
    if wrong:
        raise ValueError(f"{cls.__name__} needs { ({k: fixed[k] for k in wrong}) }, the image model has {wrong}")


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raise ValueError where sizes of a configuration are no model's, before layers without end are built from them."""
    blocks = 1
    for name, value in config.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        blocks = max(blocks, len(numbers) if name == "block_out_channels" else 1)
        odd = [n for n in numbers if isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) > LARGEST]
        if odd or len(numbers) > MOST_LAYERS:
            raise ValueError(
                f"{name} is {f'{odd[0]}' if odd else f'a list of {len(numbers)}'}, which no such model has"
            )
    for name in ("layers_per_block", "num_hidden_layers"):
        if isinstance(config.get(name), int) and config[name] * blocks > MOST_LAYERS:
            raise ValueError(f"{name} is {config[name]}, which no such model has")


def build_empty(cls: type[Model], config: Mapping[str, Any]) -> Model:
    """``cls`` on the meta device, without weights; settings that it does not know are left out.

    Raises:
        ValueError: sizes are beyond any such model's.
    """
    check_sizes({k: v for k, v in config.items() if k not in ("operations", "dtype")})
    accepted = inspect.signature(cls.__init__).parameters
    known = {k: v for k, v in config.items() if k in accepted and k != "device"}
    return cls(**known, device="meta")


def compare(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Fit:
    """Compare named shapes with those of ``model``; a VAE's old attention names count as today's."""
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {rename_old_attention(k): tuple(v) for k, v in shapes.items()}
    missing = [k for k in own if k not in given]
    return Fit(
        missing=[k for k in missing if "temp_" not in k],
        missing_temporal=[k for k in missing if "temp_" in k],
        unexpected=[k for k in given if k not in own],
        misshapen=[f"{k} {list(v)}, expected {list(own[k])}" for k, v in given.items() if own.get(k, v) != v],
    )


def assign_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]], temporal_may_miss: bool = False) -> None:
    """Make ``weights`` the parameters of ``model`` without copying them.

    Raises:
        ValueError: names or shapes do not fit.
    """
    state = dict(weights)
    problem = compare(model, {k: tuple(v.shape) for k, v in state.items()}).problem(temporal_may_miss)
    if problem:
        raise ValueError(f"weights do not fit {type(model).__name__}: {problem}")
    model.load_state_dict(state, strict=False, assign=True)


def initialise_missing(model: nn.Module, device: torch.device | str) -> None:
    """Give layers that are still without weights their start; each branch of them then is the identity."""
    fresh = set()
    for name, layer in model.named_modules():
        own = list(layer.parameters(recurse=False))
        if not any(p.is_meta for p in own):
            continue
        if not all(p.is_meta for p in own):
            raise ValueError(f"weights do not fit {type(model).__name__}: only a part of layer {name} is there")
        layer.to_empty(device=device, recurse=False)
        _reset(layer)
        fresh.add(layer)
    for layer in model.modules():
        if isinstance(layer, TempConv) and layer.convs[-1] in fresh:
            zero_init(layer.convs[-1])
        if isinstance(layer, TransformerBlock) and layer.temp_attn.to_out[0] in fresh:
            zero_init(layer.temp_attn.to_out[0])


def _reset(layer: nn.Module) -> None:
    """torch's own initialisation; layers of a host often leave theirs out to save time."""
    for cls in type(layer).__mro__:
        if cls.__module__.startswith("torch.nn.modules"):
            cls.reset_parameters(layer)  # type: ignore[attr-defined]
            return
    raise ValueError(f"{type(layer).__name__} is no layer of torch.nn, so its start is unknown: inflate with torch.nn")


def few(names: list[str], most: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
