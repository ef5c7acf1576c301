"""How a saved video knows the model that made it: some of its weights, exactly as they are held, in one line of text.

``digest:v2:tensors:types:values``: a hash of the configuration, the number of weight tensors, the types that the
values are held in, and the values themselves (float32, base64), some from every tensor.
A neighbouring checkpoint of the same training differs in them, one and the same model in two precisions does not: see
:func:`same_model`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

VERSION = "v2"
PROBES = 2048  # values in a fingerprint, at least; every weight tensor gives as many as the others
OLD_PROBES = 64  # tensors that earlier versions took a value of, written with three digits
OLD_ROUNDING = 0.015  # relative, of a weight held in 16 bits and written with three digits
# Types that weights may have been stored in before they were loaded as what they are now.
STORED = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
LARGEST = 0x7F7FFFFF  # bits of the largest float32


def fingerprint(model: torch.nn.Module) -> str:
    """The line of text by which a model's weights are known, of about 11,000 letters; no other weights are read."""
    config: Any = getattr(model, "config", None)
    if isinstance(config, Mapping):
        described = {k: v for k, v in sorted(config.items()) if not k.startswith("_")}
    else:  # transformers' configurations change with its versions, and when a model is saved
        described = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    digest = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:12]
    weights = [parameter.detach() for parameter in model.parameters()]
    each = -(-PROBES // len(weights))
    values = torch.stack([_spread(one, each) for one in weights]).T.contiguous()  # the tensors' middles come first
    names = (str(one.dtype).removeprefix("torch.") for one in weights)
    types = ",".join(f"{len(list(run))}x{name}" for name, run in groupby(names))
    text = base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()
    return f"{digest}:{VERSION}:{len(weights)}:{types}:{text}"


def _spread(weights: Tensor, count: int) -> Tensor:
    """``count`` values of a tensor as float32 on the CPU, evenly spread from its middle on."""
    number = weights.numel()
    indices = ((number // 2 + torch.arange(count) * number // count) % number).to(weights.device)
    bits = weights.view(BITS[weights.element_size()])  # 8-bit floats cannot be indexed everywhere
    if bits.is_contiguous():
        chosen = bits.view(-1)[indices]
    else:  # another memory format, of which no copy is made
        chosen = bits[torch.unravel_index(indices, bits.shape)]
    return chosen.view(weights.dtype).float().cpu()


def same_model(first: str, second: str) -> bool:
    """Whether two fingerprints are of one model, perhaps held in different precisions.

    Every value stands for the numbers that are rounded to it in the type that it is held in, float32 for itself alone.
    The models are one where each pair of values has such a number in common: then both can be roundings of the same
    weights. Types that the weights went through before (a bfloat16 file loaded as float16) are tried too, each for all
    values alike. Where one fingerprint is of an earlier version, which kept three digits, these are compared.
    """
    if first == second:
        return True
    one, other = _read(first), _read(second)
    if one is None or other is None or one.digest != other.digest:
        return False
    if not (one.is_exact and other.is_exact):
        pairs = zip(one.old_values, other.old_values, strict=True)
        return all(math.isclose(a, b, rel_tol=OLD_ROUNDING, abs_tol=1e-6) for a, b in pairs)
    if len(one.values) != len(other.values):
        return False
    histories = (None, *STORED)
    return any(_overlap(one.origins(a), other.origins(b)) for a, b in product(histories, histories))


def old_fingerprint(text: str) -> str:
    """What earlier versions wrote for the model of a fingerprint."""
    known = _read(text)
    return text if known is None or not known.is_exact else ":".join((known.digest, *known.old_texts))


def short_name(text: str) -> str:
    """A fingerprint for people, 25 letters: the configuration's hash and one of the weights."""
    return f"{text.partition(':')[0]}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


Range = tuple[Tensor, Tensor]


@dataclass
class _Known:
    """What a fingerprint says; ``values`` is empty in one of an earlier version."""

    digest: str
    old_texts: Sequence[str]
    values: Tensor
    types: Sequence[torch.dtype]  # of each tensor

    def __post_init__(self) -> None:
        self._origins: dict[torch.dtype | None, Range] = {}

    @property
    def is_exact(self) -> bool:
        return len(self.values) > 0

    @cached_property
    def old_values(self) -> list[float]:
        return [float(text) for text in self.old_texts]

    def origins(self, stored: torch.dtype | None) -> Range:
        """The least and the greatest number that each value can be a rounding of, through ``stored`` if not None."""
        if stored not in self._origins:
            self._origins[stored] = self._find_origins(stored)
        return self._origins[stored]

    def _find_origins(self, stored: torch.dtype | None) -> Range:
        values = self.values.view(-1, len(self.types))
        low, high = torch.empty_like(values), torch.empty_like(values)
        for kind in set(self.types):
            chosen = torch.tensor([one is kind for one in self.types])
            low[:, chosen], high[:, chosen] = _rounded_to(values[:, chosen], [stored, kind])
        return low.flatten(), high.flatten()


def _overlap(first: Range, second: Range) -> bool:
    return bool((torch.maximum(first[0], second[0]) <= torch.minimum(first[1], second[1])).all())


def _rounded_to(values: Tensor, types: Sequence[torch.dtype | None]) -> Range:
    """The least and the greatest float32 number that casting to one type after the other makes ``values`` of.

    Casting keeps the order of numbers, so they are found by halving. Where none does, the least exceeds the greatest.
    """

    def cast(numbers: Tensor) -> Tensor:
        for kind in types:
            if kind is not None and kind.is_floating_point and kind.itemsize < 4:
                most = torch.finfo(kind).max  # beyond which some types have infinity and some none
                numbers = numbers.clamp(-most, most).to(kind).float()
        return numbers

    def smallest(is_reached: Any) -> Tensor:
        """The first place in the order of all numbers at which a condition holds that holds from there on."""
        below = torch.full(values.shape, -LARGEST - 1)
        reached = torch.full(values.shape, LARGEST + 1)
        while bool((reached - below > 1).any()):
            middle = (below + reached).div(2, rounding_mode="floor")
            holds = is_reached(cast(_number(middle)))
            below, reached = torch.where(holds, below, middle), torch.where(holds, middle, reached)
        return reached

    least, beyond = smallest(lambda made: made >= values), smallest(lambda made: made > values)
    return _number(least), _number(beyond - 1)


def _number(place: Tensor) -> Tensor:
    """The float32 number at a place in the order of all: its bits, negative ones counted down from 0."""
    size = place.abs().to(torch.int32).view(torch.float32)
    return torch.where(place < 0, -size, size)


def _read(text: str) -> _Known | None:
    """What a fingerprint says, or None where the text is none."""
    digest, *rest = text.split(":")
    try:
        if rest[:1] != [VERSION]:
            [float(one) for one in rest]
            return _Known(digest, rest, torch.empty(0), []) if len(rest) == OLD_PROBES else None
        _, tensors, types, encoded = rest
        values = torch.from_numpy(np.frombuffer(base64.b64decode(encoded, validate=True), "<f4").astype(np.float32))
        number = int(tensors)
        kinds = [kind for run in types.split(",") for kind in _run(*run.split("x"))]
        if number < 1 or len(kinds) != number or len(values) == 0 or len(values) % number:
            return None
    except (ValueError, TypeError, binascii.Error):
        return None
    middles = [float(values[round(n * (number - 1) / (OLD_PROBES - 1))]) for n in range(OLD_PROBES)]
    return _Known(digest, [f"{one:.2e}" for one in middles], values, kinds)


def _run(count: str, name: str) -> list[torch.dtype]:
    kind = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"{name} is no type")
    return [kind] * int(count)
