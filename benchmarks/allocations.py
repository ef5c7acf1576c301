"""How much memory tensors take at most, without a device: the work runs on the meta device and only sizes are counted.

What a card needs beside it: weights, the driver's context, and the work space of its kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorPeak(TorchDispatchMode):
    """Bytes of the tensors made inside a ``with`` block and still alive: ``now``, and at most ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if _is_tensor(tensor) and id(tensor.untyped_storage()) not in before:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.known:
            return

        def gone(_: Any) -> None:
            del self.known[key]
            self.now -= size

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def tensor_peak(work: Callable[[], Any]) -> int:
    """The most bytes that the tensors made by ``work`` take at a time, in inference."""
    with torch.inference_mode(False), torch.no_grad(), TensorPeak() as found:
        work()
    return found.peak


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)
