"""Which card suffices: peak device memory of the released size by precision, storage and offloading.

    python benchmarks/peak_memory.py --device cuda                  # the table, some minutes
    python benchmarks/peak_memory.py                                # tiny, to see that it runs: no figures of a card

Weights are random: memory does not depend on them. Each row makes two chained clips of two steps and decodes them, all
in one process of its own. "allocated" is what torch's tensors took at most, "reserved" what its allocator held; the
driver's own context (0.3 to 0.6 GiB) comes on top. The aim is 256x256x8 in 4 GiB and 512x512x16 in 8 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contenders import machine
from models import DTYPES, PROMPT, environment, make_pipeline, peak_memory

SHAPES = ((256, 8), (512, 16))  # pixels, frames
STORAGES = ("same", "fp8")
OFFLOADS = ("none", "model", "sequential")
AIMS = {(256, 8): 4.0, (512, 16): 8.0}  # GiB
CONTEXT = 0.5  # GiB, of the driver


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    from vidrd_core.memory import MemoryOptions, save_memory
    from vidrd_core.state import SamplingSettings

    pipe = make_pipeline(options.size, DTYPES[options.dtype])
    save_memory(pipe, MemoryOptions(options.offload, options.storage, options.split_guidance), options.device)
    sampling = SamplingSettings(options.frames, options.pixels, options.pixels, 2, 4.0)
    with peak_memory(options.device) as peak:
        frames = sum(piece.shape[2] for piece in pipe.decode_clips(pipe.stream(PROMPT, sampling, 2), sampling))
    assert frames == 2 * options.frames
    reserved = torch.cuda.max_memory_reserved(options.device) if options.device.startswith("cuda") else 0
    return {**vars(peak), "reserved": reserved}


def table(rows: Sequence[tuple[dict[str, Any], dict[str, Any] | None]], device: str, dtype: str) -> str:
    """Markdown; a row without figures was not measured."""
    lines = [
        machine(device),
        "",
        f"computed in {dtype}",
        "",
        "| pixels, frames | U-Net weights | offload | guidance | host GiB | allocated GiB | reserved GiB | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, found in rows:
        name = f"{case['pixels']}x{case['pixels']}x{case['frames']}"
        storage = dtype if case["storage"] == "same" else case["storage"]
        guidance = "split" if case["split_guidance"] else "both halves"
        aim = AIMS.get((case["pixels"], case["frames"]))
        figures = "not yet measured | - | - | -"
        if found is not None:
            gib = {key: value / 2**30 for key, value in found.items()}
            if found["device"]:
                met = "-" if aim is None else f"{aim:g} GiB: {'met' if gib['reserved'] + CONTEXT <= aim else 'missed'}"
                figures = f"{gib['process']:.2f} | {gib['device']:.2f} | {gib['reserved']:.2f} | {met}"
            else:
                figures = f"{gib['process']:.2f} | not yet measured | - | -"
        lines.append(f"| {name} | {storage} | {case['offload']} | {guidance} | {figures} |")
    return "\n".join(lines)


def cases(on_card: bool) -> list[dict[str, Any]]:
    """The rows: everything for a card; elsewhere tiny ones, without what needs a memory of its own."""
    found = []
    for pixels, frames in SHAPES if on_card else ((64, 8),):
        for storage in STORAGES:
            for offload in OFFLOADS if on_card else OFFLOADS[:2]:
                for split in (False, True) if offload == "none" or not on_card else (True,):
                    row = {"pixels": pixels, "frames": frames, "storage": storage}
                    found.append({**row, "offload": offload, "split_guidance": split})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    on_card = options.device.startswith("cuda")
    options.size = "released" if on_card else "tiny"
    if options.row:
        vars(options).update(options.row)
        print(json.dumps(measure(options)))
        return 0
    rows: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    for case in cases(on_card):
        command = [sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--dtype", options.dtype]
        command += ["--row", json.dumps(case)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment())
        # A row that does not fit the card has no figures; the others still count.
        rows.append((case, json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None))
    print(table(rows, options.device, options.dtype))
    if not on_card:
        print(
            "\nNo CUDA device: these are a tiny model's figures on this CPU; the released size's are not yet measured."
        )
        return int(any(found is None for _, found in rows))
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
