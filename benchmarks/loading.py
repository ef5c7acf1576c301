"""From a cold start to the first step, beside plain reading of the same files.

    python benchmarks/loading.py --folder FOLDER                       # writes a tiny model there once
    python benchmarks/loading.py --folder FOLDER --size released --dtype fp16     # 3.3 GiB

FOLDER keeps the model, random weights, for the next run. "cold": the files' pages were dropped from the page cache
(Linux only); "warm": they are in the page cache. A plain read goes through every file once, 16 MiB at a time. A start
is a new process: its imports, loading, a first guidance step, and a second one, which says what the step itself takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from contenders import machine, synchronize
from models import DTYPES, SIZES, model_folder

CHUNK = 16 << 20


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def forget(folder: Path) -> bool:
    """Drop the files from the page cache; False where the system offers no way."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in weight_files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def read_plainly(folder: Path) -> float:
    """Seconds to read every weight file once."""
    began = time.perf_counter()
    for path in weight_files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(CHUNK):
                pass
    return time.perf_counter() - began


def start(options: argparse.Namespace) -> dict[str, float]:
    """Load and step in this process; seconds of each part."""
    began = time.perf_counter()
    import diffusers  # noqa: F401  (imports are counted by themselves)
    import transformers  # noqa: F401

    from vidrd_core import VidRDPipeline  # noqa: F401  (and what of diffusers it takes)
    from vidrd_core.cli.models import load_pipeline

    imported = time.perf_counter()
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[options.dtype]
    pipe, _ = load_pipeline(str(options.folder), dtype=dtype, device=options.device)
    synchronize(options.device)
    loaded = time.perf_counter()
    size = SIZES[options.size]
    x = torch.randn(
        2, 4, options.frames, size.pixels // 8, size.pixels // 8, device=options.device, dtype=pipe.unet.dtype
    )
    text = torch.randn(2, 77, size.width, device=options.device, dtype=pipe.unet.dtype)
    steps = []
    for _ in range(2):
        stepping = time.perf_counter()
        pipe.unet(x, 500, text)
        synchronize(options.device)
        steps.append(time.perf_counter() - stepping)
    return {"imports": imported - began, "load": loaded - imported, "first": steps[0], "second": steps[1]}


def measure(options: argparse.Namespace, command: list[str], cold: bool) -> dict[str, float]:
    """Plain reading and a start in the same state of the page cache."""

    def prepare() -> None:
        if cold:
            forget(options.folder)
        else:
            read_plainly(options.folder)

    prepare()
    read = read_plainly(options.folder)
    prepare()
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"read": read, **json.loads(found.splitlines()[-1])}


def table(options: argparse.Namespace, rows: dict[str, dict[str, float]]) -> str:
    """Markdown; "ready" is loading and what the first step takes longer than the second."""
    size = sum(path.stat().st_size for path in weight_files(options.folder))
    lines = [
        f"{machine(options.device)}; {size / 2**30:.2f} GiB of weights",
        "",
        "| page cache | plain read s | GiB/s | imports s | load s | first step s | second s | ready s | of read |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ready = row["load"] + row["first"] - row["second"]
        speed = size / 2**30 / row["read"]
        lines.append(
            f"| {name} | {row['read']:.2f} | {speed:.2f} | {row['imports']:.1f} | {row['load']:.2f} | "
            f"{row['first']:.2f} | {row['second']:.2f} | {ready:.2f} | {ready / row['read']:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the model; written where it is missing")
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="stored and computed in")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--be", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.be:
        print(json.dumps(start(options)))
        return 0
    model_folder(options.folder, options.size, DTYPES[options.dtype])
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = [sys.executable, str(Path(__file__).resolve()), *given, "--be"]
    rows = {}
    if forget(options.folder):
        rows["cold"] = measure(options, command, cold=True)
    rows["warm"] = measure(options, command, cold=False)
    print(table(options, rows))
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
