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
from .native.model import vidrd_model

DEPTH = 12  # of things inside things; what refers to itself ends there
MOST = 2**18  # values of a weight tensor that count; of larger ones, evenly spread
# What comfy.hooks keeps unchanged while it samples.
HOOK = ("weights", "weights_clip", "_strength_model", "_strength_clip", "object_patches", "transformers_dict")
KEYFRAME = ("strength", "start_percent", "guarantee_steps")


def model_identity(model: Any) -> str:
    """A hash of the model with its LoRAs, its precision and what other nodes changed about its sampling."""
    held = vidrd_model(model)
    precision = [str(held.get_dtype()), str(held.manual_cast_dtype)]
    return hashed([held.fingerprint, precision, *_changes(model)])


def old_model_identity(model: Any) -> str:
    """What earlier versions hashed, under which they kept finished clips: no precision, fewer weights."""
    return hashed([old_fingerprint(vidrd_model(model).fingerprint), *_changes(model)])


def _changes(model: Any) -> list[Any]:
    patches = [
        [str(key), [[described(getattr(part, "weights", part)) for part in entry] for entry in entries]]
        for key, entries in sorted(model.patches.items(), key=lambda item: str(item[0]))
    ]
    return [described([model.model_options, model.object_patches, getattr(model, "wrappers", {})]), patches]


def conditioning_hash(*conditionings: Any) -> str:
    """Of the text states and everything that comes with them: masks, areas, hooks."""
    digest = hashlib.sha256()
    counts = [len(conditioning) for conditioning in conditionings]
    if any(count != 1 for count in counts):  # which of them an entry belongs to
        digest.update(str(counts).encode())
    for conditioning in conditionings:
        for states, options in conditioning:
            digest.update(states.detach().float().cpu().contiguous().numpy().tobytes())
            digest.update(hashed(described(options, most=None)).encode())
    return digest.hexdigest()


def hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def described(value: Any, depth: int = DEPTH, most: int | None = MOST) -> Any:
    """Settings, tensors, functions and modules as plain JSON that is equal for what samples alike.

    Other objects count by their class, since what they hold may change while it is sampled; callable ones also by
    their plain settings. Of each tensor ``most`` values count; None: all.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return tensor_hash(value, most)
    if not depth:
        return kind(value)

    def inner(held: Any) -> Any:
        return described(held, depth - 1, most)

    if isinstance(value, Mapping):
        return {str(k): inner(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple)):
        return [inner(held) for held in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (torch.dtype, torch.device, enum.Enum)):
        return str(value)
    if isinstance(value, torch.nn.Module):
        return [kind(value), inner(dict((*value.named_parameters(), *value.named_buffers()))), inner(plain(value))]
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if hasattr(value, "__func__"):  # a method
        return [inner(value.__func__), kind(value.__self__), inner(plain(value.__self__))]
    if hasattr(value, "__closure__"):
        return [value.__qualname__, inner(value.__defaults__), inner(value.__kwdefaults__), inner(closed_over(value))]
    if hasattr(value, "hooks") and hasattr(value, "clone_and_combine"):  # comfy.hooks.HookGroup
        return [described_hook(hook, depth - 1) for hook in value.hooks]
    if is_dataclass(value) and not isinstance(value, type):
        return [kind(value), {field.name: inner(getattr(value, field.name)) for field in fields(value)}]
    settings = plain(value) if callable(value) and not isinstance(value, type) else {}
    return [kind(value), getattr(value, "__qualname__", ""), settings]


def described_hook(hook: Any, depth: int) -> Any:
    """A hook of a conditioning, such as a LoRA that acts on it alone, with the keyframes of its strength."""
    held = {name: described(getattr(hook, name), depth) for name in HOOK if hasattr(hook, name)}
    frames = getattr(getattr(hook, "hook_keyframe", None), "keyframes", ())
    return [kind(hook), held, [[described(getattr(frame, name), depth) for name in KEYFRAME] for frame in frames]]


def kind(value: Any) -> list[str]:
    """The names of a class and its ancestors; ComfyUI makes classes on the way that differ in these alone."""
    return [one.__qualname__ for one in (value if isinstance(value, type) else type(value)).__mro__]


def plain(value: Any) -> dict[str, Any]:
    """The attributes of an object that are plain settings."""
    held = getattr(value, "__dict__", {})
    return {name: one for name, one in held.items() if isinstance(one, (bool, int, float, str)) and name != "training"}


def closed_over(function: Any) -> list[Any]:
    """The values that a function took along from where it was made."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            found.append(None)
    return found


def tensor_hash(tensor: Tensor, most: int | None = MOST) -> str:
    values = tensor.detach().flatten()
    values = values[:: -(-values.numel() // (most or values.numel() or 1)) or 1].float().cpu()
    digest = hashlib.sha256(f"{list(tensor.shape)} {tensor.dtype}".encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()
