"""Whether glibc's malloc keeps the memory of freed tensors for the next ones, which is faster on the CPU."""

from __future__ import annotations

import ctypes
import sys

import torch

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory(device: torch.device | str = "cpu") -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether it will.

    glibc asks the system for each large tensor and gives it back after use, so that its pages are cleared anew: for
    layers that do little with much memory that takes longer than their work. The process holds on to its peak until it
    ends, so this is for programs, not for hosts of others' code.

    Args:
        device: where the work is done; nothing is changed for other devices than the CPU.
    """
    if torch.device(device).type != "cpu" or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return all(
        mallopt(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**28))
    )
