"""Contenders measured in turns: each is a process of its own, and they alternate for several rounds.

The speed of a machine varies within minutes, so only ratios of turns in one run are reported. Separate processes allow
code with other dependencies, and no contender shares another's memory.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def serve(work: Callable[[], Any], device: str = "cpu", **facts: Any) -> None:
    """In a contender's process: do the work once for warming up, then once for every line that comes in."""
    out, sys.stdout = sys.stdout, sys.stderr  # whatever the work prints must not mix with the answers

    def turn() -> float:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start

    with torch.no_grad():
        first = turn()
        print(json.dumps({"first": first, **facts}), file=out, flush=True)
        for _ in sys.stdin:
            print(json.dumps(turn()), file=out, flush=True)


def synchronize(device: str) -> None:
    """Wait for the device, where its work is done in the background."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


class Contender:
    """A process that :func:`serve` answers from."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None = None):
        self.name = name
        self.seconds: list[float] = []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.facts: dict[str, Any] = self._answer()

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}; its message is above")
        return json.loads(line)


def compete(starters: Iterable[Callable[[], Contender]], rounds: int) -> dict[str, Contender]:
    """Start all contenders, let them take turns, stop them."""
    contenders = [start() for start in starters]
    for _ in range(rounds):
        for contender in contenders:
            contender.turn()
    for contender in contenders:
        contender.close()
    return {contender.name: contender for contender in contenders}


def machine(device: str = "cpu") -> str:
    """The machine and the versions, for the head of a table."""
    names = [f"torch {torch.__version__}", f"diffusers {importlib.metadata.version('diffusers')}"]
    if device.startswith("cuda"):
        return ", ".join([torch.cuda.get_device_name(device), *names])
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    cpu = f"{models[0] if models else platform.processor()} ({capability}), {torch.get_num_threads()} threads"
    return ", ".join([cpu, *names])


def matrix_rate(dtype: torch.dtype, device: str, size: int = 2048) -> float:
    """FLOP/s of square matrix products, the best of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_time(lambda: a @ b, device)


def convolution_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a 3x3 convolution as the U-Net has them at its first resolution, the best of several."""
    x = torch.randn(16, 320, 32, 32, device=device).to(dtype, memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(320, 320, 3, padding=1, device=device).to(dtype, memory_format=torch.channels_last)
    return 2 * 16 * 320 * 320 * 9 * 32 * 32 / best_time(lambda: layer(x), device)


def best_time(work: Callable[[], Any], device: str, repeats: int = 7) -> float:
    """Seconds of the fastest of several calls after a first one."""
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            times.append(time.perf_counter() - start)
    return min(times[1:])


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights, the same block over and over, in a model made on the meta device and then emptied onto one."""
    blocks: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            kind = (parameter.device, parameter.dtype)
            if kind not in blocks:
                blocks[kind] = (0.02 * torch.randn(2**20 + 1, device=parameter.device)).to(parameter.dtype)
            for part in parameter.view(-1).split(len(blocks[kind])):
                part.copy_(blocks[kind][: len(part)])
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model.eval()
