"""A video of any length in the same memory: peaks of long videos against short ones, written to a file as they come.

    python benchmarks/length.py                              # 4 and 256 clips of the bundled model
    python benchmarks/length.py --clips 4 1000 --steps 2     # the proof of a long run
    python benchmarks/length.py --clips 16 --background off on
    python benchmarks/length.py --device cuda --size released --clips 4 256 --background off on

Every video is made in a process of its own by what `vidrd generate` runs: finished clips go to a state folder and
frames to the encoder. Targets against the first row: a device peak within 2%, and a host peak that grows by less than a
quarter of what the further frames take as bytes, so that no frame can have been kept (as floats they would take sixteen
times as much). Lengths must differ by some hundred clips, since a process varies by some MiB by itself.
"""

from __future__ import annotations

import argparse
import itertools
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

DEVICE_TARGET = 1.02  # of the first row's peak
HOST_TARGET = 0.25  # of the further frames' bytes


def make(clips: int, background: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Make one video in this process and measure it."""
    from vidrd_core.jobs.job import Plan, open_job, run_job
    from vidrd_core.sampling.settings import SamplingSettings

    pipe = make_pipeline(options.size, DTYPES[options.dtype], options.device)
    pipe.background_decoding = background
    pixels = options.pixels or pipe.default_size
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
    picture = frames * pixels * pixels * 3
    made = {"clips": clips, "background": background, "frames": frames, "seconds": seconds, "file": size}
    return {**made, "picture": picture, **vars(peak)}


def growth(row: dict[str, Any], first: dict[str, Any]) -> float | None:
    """Growth of the host's peak, of what the further frames take as bytes; None where there are none."""
    further = row["picture"] - first["picture"]
    return (row["process"] - first["process"]) / further if further > 0 else None


def meets_targets(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether neither host nor device memory grows with the length."""
    first = rows[0]
    host = all((growth(row, first) or 0) < HOST_TARGET for row in rows)
    return host and all(row["device"] < DEVICE_TARGET * max(first["device"], 1) for row in rows)


def table(rows: Sequence[dict[str, Any]], device: str) -> str:
    """Markdown; ratios are to the first row."""
    lines = [
        machine(device),
        "",
        "| clips | frames | background decoding | seconds | clips per second | of without | file MiB | host MiB "
        "| growth of further frames' bytes | device MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    without = {row["clips"]: row["seconds"] for row in rows if not row["background"]}
    for row in rows:
        mib = {key: row[key] / 2**20 for key in ("process", "device", "file")}
        grown = growth(row, rows[0])
        cells = [
            row["clips"],
            row["frames"],
            "on" if row["background"] else "off",
            f"{row['seconds']:.0f}",
            f"{row['clips'] / row['seconds']:.2f}",
            f"{without[row['clips']] / row['seconds']:.3f}" if row["clips"] in without else "-",
            f"{mib['file']:.1f}",
            f"{mib['process']:.1f}",
            "-" if grown is None else f"{grown:.1%}",
            *([f"{mib['device']:.1f}", f"{row['device'] / rows[0]['device']:.3f}"] if rows[0]["device"] else "--"),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all lengths; the exit code says whether the targets were met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[4, 256], metavar="N")
    parser.add_argument("--size", choices=("bundled", *SIZES), default="bundled")
    parser.add_argument("--pixels", type=int, help="height and width (the size's own)")
    parser.add_argument("--background", nargs="+", choices=("off", "on"), default=["off"], help="decoding (off)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--be", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.be:
        print(json.dumps(make(*options.be, options)))
        return 0
    rows = []
    for clips, background in itertools.product(options.clips, options.background):
        given = sys.argv[1:] if arguments is None else list(arguments)
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            *given,
            "--be",
            json.dumps([clips, background == "on"]),
        ]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment())
        rows.append(json.loads(found.stdout.splitlines()[-1]))
    print(table(rows, options.device))
    return int(not meets_targets(rows))


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
