"""What makes two models or two conditionings the same, to tell whether a finished clip may be reused."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..vidrd_core.models.fingerprints import old_fingerprint
from .native.model import VidRDModel

MAX_DEPTH = 12  # of nested objects; self-references end there
WEIGHT_VALUES = 4  # of each weight of a stock model
MAX_HASHED_VALUES = 2**18  # of a weight tensor; of larger ones, this many evenly spread
# What comfy.hooks keeps unchanged while it samples.
HOOK_ATTRIBUTES = (
    "weights",
    "weights_clip",
    "_strength_model",
    "_strength_clip",
    "object_patches",
    "transformers_dict",
)
KEYFRAME_ATTRIBUTES = ("strength", "start_percent", "guarantee_steps")


def model_identity(model: Any) -> str:
    """A hash of the model with its LoRAs, its precision and what other nodes changed about its sampling."""
    held = model.model
    precision = [str(held.get_dtype()), str(held.manual_cast_dtype)]
    weights = held.fingerprint if isinstance(held, VidRDModel) else stock_fingerprint(held)
    return json_hash([weights, precision, *_changes(model)])


def stock_fingerprint(inner: Any) -> str:
    """A hash of one of ComfyUI's own models: its class, its shapes and a few values of every weight."""
    digest = hashlib.sha256(type(inner).__qualname__.encode())
    for name, weight in inner.diffusion_model.named_parameters():
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().flatten()[:WEIGHT_VALUES].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def old_model_identity(model: Any) -> str:
    """What earlier versions hashed, under which they kept finished clips of VidRD: no precision, fewer weights."""
    if not isinstance(model.model, VidRDModel):
        return ""  # earlier versions sampled VidRD alone
    return json_hash([old_fingerprint(model.model.fingerprint), *_changes(model)])


def _changes(model: Any) -> list[Any]:
    patches = [
        [str(key), [[as_json(getattr(part, "weights", part)) for part in entry] for entry in entries]]
        for key, entries in sorted(model.patches.items(), key=lambda item: str(item[0]))
    ]
    return [as_json([model.model_options, model.object_patches, getattr(model, "wrappers", {})]), patches]


def conditioning_hash(*conditionings: Any) -> str:
    """Of the text states and everything that comes with them: masks, areas, hooks."""
    digest = hashlib.sha256()
    counts = [len(conditioning) for conditioning in conditionings]
    if any(count != 1 for count in counts):  # which of them an entry belongs to
        digest.update(str(counts).encode())
    for conditioning in conditionings:
        for states, options in conditioning:
            digest.update(states.detach().float().cpu().contiguous().numpy().tobytes())
            digest.update(json_hash(as_json(options, max_values=None)).encode())
    return digest.hexdigest()


def json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def as_json(value: Any, depth: int = MAX_DEPTH, max_values: int | None = MAX_HASHED_VALUES) -> Any:
    """Settings, tensors, functions and modules as plain JSON that is equal for what samples alike.

    Other objects count by their class, since what they hold may change while it is sampled; callable ones also by
    their plain settings. Of each tensor ``max_values`` values count; None: all.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return tensor_hash(value, max_values)
    if not depth:
        return class_names(value)

    def inner(held: Any) -> Any:
        return as_json(held, depth - 1, max_values)

    if isinstance(value, Mapping):
        return {str(k): inner(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple)):
        return [inner(held) for held in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (torch.dtype, torch.device, enum.Enum)):
        return str(value)
    if isinstance(value, torch.nn.Module):
        return [
            class_names(value),
            inner(dict((*value.named_parameters(), *value.named_buffers()))),
            inner(plain_attributes(value)),
        ]
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if hasattr(value, "__func__"):  # a method
        return [inner(value.__func__), class_names(value.__self__), inner(plain_attributes(value.__self__))]
    if hasattr(value, "__closure__"):
        return [
            value.__qualname__,
            inner(value.__defaults__),
            inner(value.__kwdefaults__),
            inner(closure_values(value)),
        ]
    if hasattr(value, "hooks") and hasattr(value, "clone_and_combine"):  # comfy.hooks.HookGroup
        return [hook_as_json(hook, depth - 1) for hook in value.hooks]
    if is_dataclass(value) and not isinstance(value, type):
        return [class_names(value), {field.name: inner(getattr(value, field.name)) for field in fields(value)}]
    settings = plain_attributes(value) if callable(value) and not isinstance(value, type) else {}
    return [class_names(value), getattr(value, "__qualname__", ""), settings]


def hook_as_json(hook: Any, depth: int) -> Any:
    """A hook of a conditioning, such as a LoRA that acts on it alone, with the keyframes of its strength."""
    held = {name: as_json(getattr(hook, name), depth) for name in HOOK_ATTRIBUTES if hasattr(hook, name)}
    frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
    return [
        class_names(hook),
        held,
        [[as_json(getattr(frame, name), depth) for name in KEYFRAME_ATTRIBUTES] for frame in frames],
    ]


def class_names(value: Any) -> list[str]:
    """The names of a class and its ancestors; ComfyUI makes classes on the way that differ in these alone."""
    return [one.__qualname__ for one in (value if isinstance(value, type) else type(value)).__mro__]


def plain_attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object that are plain settings."""
    held = getattr(value, "__dict__", {})
    return {name: one for name, one in held.items() if isinstance(one, (bool, int, float, str)) and name != "training"}


def closure_values(function: Any) -> list[Any]:
    """The values that a function took along from where it was made."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            found.append(None)
    return found


def tensor_hash(tensor: Tensor, max_values: int | None = MAX_HASHED_VALUES) -> str:
    values = tensor.detach().flatten()
    values = values[:: -(-values.numel() // (max_values or values.numel() or 1)) or 1].float().cpu()
    digest = hashlib.sha256(f"{list(tensor.shape)} {tensor.dtype}".encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()
