"""Fewer steps: how the tracker's scores of chained video fall from 50 to 6 steps, for each deterministic sampler.

    python benchmarks/few_steps.py --model vidrd_core/demo_model --results runs/few_steps
    python benchmarks/few_steps.py --results runs/few_steps --table-only

The model must draw the bundled model's world, whose truth the tracker knows. All rows have the same prompts and seeds,
and reuse as --method says (a name of vidrd_core.metrics.methods). A stopped run goes on where it was; several processes
may share a folder by taking different samplers. `dpmpp-2m:trailing` is a sampler with another spacing of its timesteps.

A row "loses" in a figure where the 95% interval of its difference from DDIM at the most steps, over paired videos, lies
on the worse side of 0. The preset `fast` (vidrd_core/presets.py) is to be the row of fewest steps that loses nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import ROOT
from models import DTYPES, make_pipeline

SAMPLERS = ("ddim", "euler", "dpmpp-2m", "dpmpp-2m:trailing", "unipc", "unipc:trailing")
STEPS = (50, 25, 15, 10, 6)
# Figure -> its value in one video (None: nothing to see), and whether more is better.
FIGURES: dict[str, tuple[Callable[[Any], float | None], bool]] = {
    "as prompted": (lambda r: _mean(r.prompted), True),
    "motion as prompted": (lambda r: _mean(r.motion_prompted), True),
    "identity": (lambda r: _mean(r.identity), True),
    "motion kept": (lambda r: _mean(r.kept), True),
    "seam jump": (lambda r: _mean(r.seams), False),
    "background drift": (lambda r: r.background[-1], False),
    "flicker": (lambda r: r.flicker, False),
}


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def folder_of(results: Path, sampler: str, steps: int) -> Path:
    return results / f"{sampler.replace(':', '-')}-{steps}"


def measure(options: argparse.Namespace) -> None:
    """Make and measure what is missing."""
    from vidrd_core.metrics.comparison import Comparison
    from vidrd_core.pipeline import VidRDPipeline
    from vidrd_core.presets import make_scheduler

    if options.model is None:
        pipe = make_pipeline("tiny", DTYPES[options.dtype])
    else:
        pipe = VidRDPipeline.from_pretrained(options.model, torch_dtype=DTYPES[options.dtype])
    pipe.set_progress_bar_config(disable=True)
    pipe.to(options.device)
    own = pipe.scheduler.config
    for sampler in options.samplers:
        name, _, spacing = sampler.partition(":")
        pipe.scheduler = make_scheduler(name, own, {"timestep_spacing": spacing} if spacing else None)
        for steps in options.steps:
            comparison = Comparison(
                pipe,
                folder_of(options.results, sampler, steps),
                options.videos,
                options.clips,
                steps=steps,
                guidance_scale=options.guidance_scale,
                batch=options.batch,
                seed=options.seed,
            )
            comparison.run(options.method)
            logging.info("%s, %d steps: done", sampler, steps)


def load(options: argparse.Namespace) -> dict[tuple[str, int], list[Any]]:
    """The records of every row that is there, in order."""
    from vidrd_core.metrics.comparison import result_path
    from vidrd_core.metrics.longvideo import from_json

    rows = {}
    for sampler in options.samplers:
        for steps in sorted(options.steps, reverse=True):
            path = result_path(folder_of(options.results, sampler, steps), options.method)
            if path.is_file():
                stored = json.loads(path.read_text(encoding="utf-8"))
                rows[sampler, steps] = [from_json(record) for record in stored["records"]]
    if not rows:
        raise SystemExit(f"{options.results} has no results of these samplers; leave out --table-only")
    return rows


def values(records: Sequence[Any], name: str) -> np.ndarray:
    """The figure of every video, NaN where there is nothing to see."""
    return np.array([np.nan if (value := FIGURES[name][0](r)) is None else value for r in records], dtype=float)


def loses(row: np.ndarray, base: np.ndarray, more_is_better: bool) -> bool:
    """Whether the 95% interval of the mean paired difference lies on the worse side of 0 (bootstrap over videos)."""
    count = min(len(row), len(base))
    difference = (row[:count] - base[:count]) * (1 if more_is_better else -1)
    difference = difference[~np.isnan(difference)]
    if len(difference) < 2:
        return False
    drawn = np.random.default_rng(0).integers(0, len(difference), (1000, len(difference)))
    return bool(np.percentile(difference[drawn].mean(1), 97.5) < 0)


def table(rows: dict[tuple[str, int], list[Any]]) -> str:
    """Markdown: the mean of each figure, * where the row loses against the first."""
    base = rows[next(iter(rows))]
    lines = ["| sampler | steps | " + " | ".join(FIGURES) + " | loses |", "|---" * (len(FIGURES) + 3) + "|"]
    for (sampler, steps), records in rows.items():
        cells, lost = [], 0
        for name, (_, more_is_better) in FIGURES.items():
            own = values(records, name)
            worse = loses(own, values(base, name), more_is_better)
            lost += worse
            mean = np.nanmean(own) if not np.isnan(own).all() else np.nan
            cells.append(f"{mean:.3f}{'*' if worse else ''}")
        lines.append(f"| {sampler} | {steps} | {' | '.join(cells)} | {lost or '-'} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; without one random weights, to see that it runs")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "few_steps")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), metavar="N")
    parser.add_argument("--method", default="paper")
    parser.add_argument("--videos", type=int, default=50)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table-only", action="store_true", help="make the table of what is there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not options.table_only:
        measure(options)
    rows = load(options)
    print(f"{options.videos} videos of {options.clips} clips, {options.method}; * is worse than the first row\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
