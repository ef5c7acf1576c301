"""The cost of options that change results: the tracker's scores of chained video by option, on the bundled model.

    python benchmarks/options.py --results runs/options
    python benchmarks/options.py --results runs/options --table-only

The same prompts and seeds for each row; each row has one option more than the first, which has none. Intervals and what
"loses" means are those of benchmarks/few_steps.py, with options in place of samplers. "U-Net work" is the share of the
first row's samples that go through the U-Net. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import few_steps
import torch
from contenders import ROOT
from models import DTYPES, make_pipeline


@dataclass(frozen=True)
class Option:
    """One option of `vidrd generate`."""

    interval: tuple[float, float] = (0.0, 1.0)
    storage: str = "same"
    share_of_steps: float = 1.0

    def steps(self, base: int) -> int:
        return max(1, round(base * self.share_of_steps))

    def work(self, base: int) -> float:
        from vidrd_core.sampling.guidance import is_guided

        steps = self.steps(base)
        return sum(2 if is_guided(step / steps, self.interval) else 1 for step in range(steps)) / (2 * base)

    def apply(self, pipe: Any, base: int) -> None:
        from vidrd_core.runtime.memory import MemoryOptions, save_memory

        save_memory(pipe, MemoryOptions(storage=self.storage), pipe.device)
        if self.interval != (0.0, 1.0):
            pipe.unet.forward = within(self.interval, self.steps(base), pipe.unet.forward)


OPTIONS = {
    "none": Option(),
    "guidance-interval 0:0.8": Option((0.0, 0.8)),
    "guidance-interval 0:0.5": Option((0.0, 0.5)),
    "guidance-interval 0.2:1": Option((0.2, 1.0)),
    "guidance-interval 0.2:0.8": Option((0.2, 0.8)),
    "storage fp8": Option(storage="fp8"),
    "half the steps": Option(share_of_steps=0.5),
    "a quarter of the steps": Option(share_of_steps=0.25),
}


def within(interval: tuple[float, float], steps: int, forward: Callable[..., Any]) -> Callable[..., Any]:
    """A U-Net call on both halves of guidance that outside the interval answers with the prompt's prediction twice."""
    from vidrd_core.models.unet import VidRDUNetOutput
    from vidrd_core.sampling.guidance import is_guided

    step = last = -1

    def call(sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> VidRDUNetOutput:
        nonlocal step, last
        step = 0 if last < 0 or timestep > last else step + 1  # a higher timestep begins the next clip
        last = float(timestep)
        if is_guided(step / steps, interval):
            return forward(sample, timestep, text)
        half = len(sample) // 2
        out = forward(sample[half:], timestep, text[half:]).sample
        return VidRDUNetOutput(sample=torch.cat((out, out)))

    return call


def folder_of(results: Path, name: str) -> Path:
    return results / name.replace(" ", "-").replace(":", "-")


def measure(options: argparse.Namespace) -> None:
    """Make and measure what is missing."""
    from vidrd_core.shapes.comparison import Comparison

    for name in options.options:
        option = OPTIONS[name]
        pipe = make_pipeline(str(options.model or "tiny"), DTYPES[options.dtype], options.device)
        option.apply(pipe, options.steps)
        comparison = Comparison(
            pipe,
            folder_of(options.results, name),
            options.videos,
            options.clips,
            steps=option.steps(options.steps),
            guidance_scale=options.guidance_scale,
            batch=options.batch,
            seed=options.seed,
        )
        comparison.run(options.method)
        logging.info("%s: done", name)


def load(options: argparse.Namespace) -> dict[tuple[str, str], list[Any]]:
    """The records of every row that is there, in order."""
    from vidrd_core.shapes.comparison import result_path
    from vidrd_core.shapes.measures import from_json

    rows = {}
    for name in options.options:
        path = result_path(folder_of(options.results, name), options.method)
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            rows[name, f"{OPTIONS[name].work(options.steps):.0%}"] = [from_json(r) for r in stored["records"]]
    if not rows:
        raise SystemExit(f"{options.results} has no results of these options; leave out --table-only")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("bundled"), help="a model folder, or a size (bundled)")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "options")
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=tuple(OPTIONS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=50, help="of the first row")
    few_steps.add_sampling(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not options.table_only:
        measure(options)
    print(few_steps.headline(options))
    print(few_steps.table(load(options), ("option", "U-Net work")))
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
