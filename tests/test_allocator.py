"""Freed memory is kept where that helps, and nothing is touched elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from vidrd_core.runtime.allocator import keep_freed_memory

# Prints how many bytes stay with the process when a tensor of 128 MiB has gone.
PROGRAM = """
import sys
from pathlib import Path
import torch
from vidrd_core.runtime.allocator import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.ones(8)
before = resident()
torch.ones(2**25)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns large tensors to the system")
def test_the_memory_of_a_freed_tensor_stays_with_the_process() -> None:
    def left(mode: str) -> int:
        run = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert left("return") < 2**26 < left("keep")


def test_other_devices_and_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not keep_freed_memory("cuda:0")
    monkeypatch.setattr(sys, "platform", "win32")
    assert not keep_freed_memory("cpu")
