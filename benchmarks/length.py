"""A video of any length in the same memory: peaks of long videos against short ones, written to a file as they come.

    python benchmarks/length.py                              # 4 and 256 clips of a tiny model
    python benchmarks/length.py --clips 4 1000 --steps 2     # the proof of a long run
    python benchmarks/length.py --device cuda --size released --clips 4 256

Every video is made in a process of its own by what `vidrd generate` runs: finished clips go to a state folder and
frames to the encoder. Targets: a device peak within 2% and a host peak within 5% of the shortest video's (a host's
resident memory varies by some percent between equal runs).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from contenders import machine
from models import DTYPES, PROMPT, SIZES, environment, make_pipeline, peak_memory

DEVICE_TARGET, HOST_TARGET = 1.02, 1.05


def make(clips: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make one video in this process and measure it."""
    from vidrd_core.jobs import Plan, open_job, run_job
    from vidrd_core.state import SamplingSettings

    pipe = make_pipeline(options.size, DTYPES[options.dtype], options.device)
    pixels = options.pixels or SIZES[options.size].pixels
    sampling = SamplingSettings(8, pixels, pixels, options.steps, 4.0)

    def run(count: int, folder: Path) -> int:
        plan = Plan([PROMPT] * count, sampling)
        return run_job(pipe, open_job(folder / "state", pipe, plan), plan, folder / "out.mp4", 8.0).frames

    with tempfile.TemporaryDirectory() as name:
        run(2, Path(name) / "first")  # what a first video allocates for good is no one video's
        with peak_memory(options.device) as peak:
            began = time.perf_counter()
            frames = run(clips, Path(name) / "second")
            seconds = time.perf_counter() - began
        size = (Path(name) / "second" / "out.mp4").stat().st_size
    return {"clips": clips, "frames": frames, "seconds": seconds, "file": size, **vars(peak)}


def table(rows: Sequence[dict[str, Any]], device: str) -> str:
    """Markdown; ratios are to the first row."""
    lines = [
        machine(device),
        "",
        "| clips | frames | seconds | clips per second | file MiB | host MiB | ratio | device MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mib = {key: row[key] / 2**20 for key in ("process", "device", "file")}
        on_device = f"{mib['device']:.1f} | {row['device'] / rows[0]['device']:.3f}" if rows[0]["device"] else "- | -"
        lines.append(
            f"| {row['clips']} | {row['frames']} | {row['seconds']:.0f} | {row['clips'] / row['seconds']:.2f} | "
            f"{mib['file']:.1f} | {mib['process']:.1f} | {row['process'] / rows[0]['process']:.3f} | {on_device} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all lengths; the exit code says whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[4, 256], metavar="N")
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--pixels", type=int, help="height and width (the size's own)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--be", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.be:
        print(json.dumps(make(options.be, options)))
        return 0
    rows = []
    for clips in options.clips:
        given = sys.argv[1:] if arguments is None else list(arguments)
        command = [sys.executable, str(Path(__file__).resolve()), *given, "--be", str(clips)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment())
        rows.append(json.loads(found.stdout.splitlines()[-1]))
    print(table(rows, options.device))
    host = max(row["process"] for row in rows) / rows[0]["process"]
    on_device = max(row["device"] for row in rows) / max(rows[0]["device"], 1)
    return int(host >= HOST_TARGET or on_device >= DEVICE_TARGET)


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
