"""Many videos: clips per second by the number of processes that share one folder.

    python benchmarks/throughput.py                                    # 1 and 2 CPU processes, tiny model
    python benchmarks/throughput.py --processes 1 2 4 8 --size released --dtype fp16 --device cuda

Every number of processes makes its own folder of videos with `vidrd generate --videos`; several are launched as
accelerate launches them. The rate is the sum of what the processes report, from the first step of each one's first clip
to the end of its last, so that starting Python and loading weights do not count; "wall" counts them. CPU processes
share the cores out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contenders import ROOT, machine
from models import PROMPT, SIZES, environment, model_folder

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
RATE = re.compile(r"^vidrd: (?:process (\d+): )?wrote .* \(([\d.e+-]+) clips per second\)$", re.MULTILINE)
MADE = re.compile(r"made (\d+) of \d+ videos")


@dataclass(frozen=True)
class Run:
    """What a number of processes did."""

    processes: int
    clips: int
    rate: float  # clips per second
    wall: float  # seconds


def run(processes: int, options: argparse.Namespace, model: Path, folder: Path) -> Run:
    """Make the videos with so many processes."""
    videos = folder / "videos.txt"
    count = options.videos * processes  # the same work for each process
    videos.write_text("".join(f"{PROMPT}, number {n}\n" for n in range(count)), encoding="utf-8")
    command = ["-m", "vidrd_core.cli", "generate", "--model", str(model), "--videos", str(videos), "--quiet"]
    command += ["--clips", str(options.clips), "--steps", str(options.steps), "--dtype", DTYPES[options.dtype]]
    command += ["--output", str(folder / "videos"), *(["--device", "cpu"] if options.device == "cpu" else [])]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher += ["--main_process_port", "0"]
    threads = max(
        1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // processes
    )
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    began = time.perf_counter()
    done = subprocess.run(
        [*launcher, *command],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment(PYTHONPATH=paths, OMP_NUM_THREADS=str(threads)),
    )
    wall = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{processes} processes ended with {done.returncode}:\n{done.stderr[-3000:]}")
    made = sum(int(number) for number in MADE.findall(done.stderr))
    assert made == count, f"{made} of {count} videos were made:\n{done.stderr}"
    rates = {process: float(rate) for process, rate in RATE.findall(done.stderr)}  # each one's last report
    return Run(processes, count * options.clips, sum(rates.values()), wall)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--videos", type=int, default=4, help="for each process")
    parser.add_argument("--clips", type=int, default=2, help="of each video")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        model = model_folder(Path(name) / "model", options.size)
        for processes in options.processes:
            folder = Path(name) / str(processes)
            folder.mkdir()
            runs.append(run(processes, options, model, folder))
    print(f"{machine(options.device)}; {options.size} model, {options.steps} steps, {options.dtype}\n")
    print("| processes | clips | clips per second | of the first row | wall s |\n|---|---|---|---|---|")
    for entry in runs:
        ratio = entry.rate / runs[0].rate
        print(f"| {entry.processes} | {entry.clips} | {entry.rate:.3g} | {ratio:.2f} | {entry.wall:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
