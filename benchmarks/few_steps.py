"""Fewer steps: how the tracker's scores of chained video fall from 50 to 4 steps, for each deterministic sampler.

    python benchmarks/few_steps.py --model vidrd_core/demo_model --results runs/few_steps
    python benchmarks/few_steps.py --results runs/few_steps --table-only

The model must be trained on the moving-shapes data set, whose ground truth is known. All rows have the same prompts and
seeds, and the reuse of --method (a name of vidrd_core.shapes.methods). An interrupted run resumes; several processes
can share a folder by taking different samplers. `dpmpp-2m:trailing` is a sampler with another spacing of its timesteps;
`lora` is the model's own LoRA for few steps, at those of the named steps that are its own.

Each figure is followed by the 95% interval of its difference from the first row (DDIM at the most steps) over paired
videos. A row "loses" in a figure where that interval is on the worse side of 0; a narrow one around 0 means "nothing
measurable". The preset `fast` (reuse/presets.py) is chosen by this table, see benchmarks/README.md.

Motion is compared with the ground truth, so that slower motion does not score better: "seam off" is the deviation of
the jump at seams from the steps inside clips, |ratio - 1|, "speed off" that of those steps from the true speed; 0 is
perfect, and both are over the videos whose shape moves at a constant speed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import ROOT
from models import DTYPES, make_pipeline

SAMPLERS = ("ddim", "euler", "dpmpp-2m", "dpmpp-2m:trailing", "unipc", "unipc:trailing")
STEPS = (50, 25, 15, 10, 6, 4)
# Figure -> its value in one video (None: not measurable), and whether higher is better.
FIGURES: dict[str, tuple[Callable[[Any], float | None], bool]] = {
    "as prompted": (lambda r: _mean(r.prompted), True),
    "motion as prompted": (lambda r: _mean(r.motion_prompted), True),
    "identity": (lambda r: _mean(r.identity), True),
    "motion kept": (lambda r: _mean(r.kept), True),
    "seam off": (lambda r: seam_off(r), False),
    "speed off": (lambda r: speed_off(r), False),
    "background drift": (lambda r: r.background[-1], False),
    "flicker": (lambda r: r.flicker, False),
}


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def seam_off(record: Any) -> float | None:
    """|jump at seams / step inside clips - 1|; a shape slower than a quarter of the speed counts as having it."""
    from vidrd_core.shapes.scenes import SPEED

    inside, jump = _constant_step(record), _mean(record.seams)
    return None if inside is None or jump is None else abs(jump / max(inside, SPEED / 4) - 1)


def speed_off(record: Any) -> float | None:
    """|step inside clips / true step - 1|."""
    from vidrd_core.shapes.scenes import SPEED

    inside = _constant_step(record)
    return None if inside is None else abs(inside / SPEED - 1)


def _constant_step(record: Any) -> float | None:
    from vidrd_core.shapes.measures import STEADY

    return None if record.motion in STEADY else _mean(record.steps)


LORA = "lora"  # in place of a sampler


def folder_of(results: Path, sampler: str, steps: int) -> Path:
    return results / f"{sampler.replace(':', '-')}-{steps}"


def measure(options: argparse.Namespace) -> None:
    """Make and measure the missing videos."""
    from vidrd_core.cli.models import read_defaults
    from vidrd_core.reuse.presets import FEW_STEPS
    from vidrd_core.sampling.schedulers import make_scheduler
    from vidrd_core.shapes.comparison import Comparison

    plain = make_pipeline(str(options.model or "tiny"), DTYPES[options.dtype], options.device)
    own = plain.scheduler.config
    for sampler in options.samplers:
        if sampler == LORA:
            pipe = make_pipeline(str(options.model / FEW_STEPS), DTYPES[options.dtype], options.device)
            defaults = read_defaults(options.model / FEW_STEPS)
            guidance_scale = defaults["guidance_scale"]
            numbers = [steps for steps in options.steps if steps == defaults["num_inference_steps"]]
        else:
            pipe, guidance_scale, numbers = plain, options.guidance_scale, options.steps
            name, _, spacing = sampler.partition(":")
            pipe.scheduler = make_scheduler(name, own, {"timestep_spacing": spacing} if spacing else None)
        for steps in numbers:
            comparison = Comparison(
                pipe,
                folder_of(options.results, sampler, steps),
                options.videos,
                options.clips,
                steps=steps,
                guidance_scale=guidance_scale,
                batch=options.batch,
                seed=options.seed,
            )
            comparison.run(options.method)
            logging.info("%s, %d steps: done", sampler, steps)


def load(options: argparse.Namespace) -> dict[tuple[str, int], list[Any]]:
    """The records of every stored row, in order."""
    from vidrd_core.shapes.comparison import stored_path
    from vidrd_core.shapes.measures import from_json

    rows = {}
    for sampler in options.samplers:
        for steps in sorted(options.steps, reverse=True):
            path = stored_path(folder_of(options.results, sampler, steps), options.method)
            if path.is_file():
                stored = json.loads(path.read_text(encoding="utf-8"))
                rows[sampler, steps] = [from_json(record) for record in stored["records"]]
    if not rows:
        raise SystemExit(f"{options.results} has no results of these samplers; leave out --table-only")
    return rows


def values(records: Sequence[Any], name: str) -> np.ndarray:
    """The figure of every video, NaN where it is not measurable."""
    return np.array([np.nan if (value := FIGURES[name][0](r)) is None else value for r in records], dtype=float)


def interval(row: np.ndarray, base: np.ndarray) -> tuple[float, float] | None:
    """The 95% interval of the mean paired difference (bootstrap over videos); None where there are too few."""
    count = min(len(row), len(base))
    difference = row[:count] - base[:count]
    difference = difference[~np.isnan(difference)]
    if len(difference) < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, len(difference), (1000, len(difference)))
    low, high = np.percentile(difference[drawn].mean(1), (2.5, 97.5))
    return float(low), float(high)


def loses(row: np.ndarray, base: np.ndarray, more_is_better: bool) -> bool:
    """Whether the interval of the difference lies on the worse side of 0."""
    found = interval(row, base)
    return found is not None and (found[1] < 0 if more_is_better else found[0] > 0)


def cell(row: np.ndarray, base: np.ndarray, more_is_better: bool) -> str:
    """The mean, and the interval of its difference from the base, * where it loses."""
    if np.isnan(row).all():
        return "-"
    found = None if row is base else interval(row, base)
    shown = "" if found is None else f" ({found[0]:+.3f} to {found[1]:+.3f})"
    return f"{np.nanmean(row):.3f}{shown}{'*' if loses(row, base, more_is_better) else ''}"


def table(rows: Mapping[tuple[str, Any], list[Any]], head: tuple[str, str] = ("sampler", "steps")) -> str:
    """Markdown: the figures of each row, and in how many it loses against the first."""
    base = {name: values(rows[next(iter(rows))], name) for name in FIGURES}
    lines = [f"| {' | '.join((*head, *FIGURES))} | loses |", "|---" * (len(FIGURES) + 3) + "|"]
    for (first, second), records in rows.items():
        own = base if records is rows[next(iter(rows))] else {name: values(records, name) for name in FIGURES}
        cells = [cell(own[name], base[name], better) for name, (_, better) in FIGURES.items()]
        lost = sum(loses(own[name], base[name], better) for name, (_, better) in FIGURES.items())
        lines.append(f"| {first} | {second} | {' | '.join(cells)} | {lost or '-'} |")
    return "\n".join(lines)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options that all rows have in common."""
    parser.add_argument("--method", default="paper")
    parser.add_argument("--videos", type=int, default=50)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table-only", action="store_true", help="make the table of what is there")


def headline(options: argparse.Namespace) -> str:
    return (
        f"{options.videos} videos of {options.clips} clips, {options.method}; in brackets the 95% interval of the "
        "difference from the first row, * where it is worse\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; without one random weights, to see that it runs")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "few_steps")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), metavar="N")
    add_sampling(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not options.table_only:
        measure(options)
    rows = load(options)
    print(headline(options))
    print(table(rows))
    return 0


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
