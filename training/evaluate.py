"""Measure a model of the procedural world with the rule-based tracker, on prompts that training never saw.

    python training/evaluate.py --model vidrd_core/demo_model --prompts 200 --clips 8 --output docs/demo_evaluation

Prints a Markdown table and writes it beside the figures as JSON.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from vidrd_core.metrics.world import METHODS, WorldEvaluation, markdown_table
from vidrd_core.pipeline import VidRDPipeline


@dataclass(frozen=True)
class Arguments:
    model: Path  # model folder
    output: Path | None = None  # name of the .json and .md files to write
    prompts: int = 200  # distinct captions of held-out combinations
    clips: int = 8  # per video
    steps: int = 50  # denoising steps per clip
    guidance_scale: float = 4.0
    batch: int = 20  # videos at a time
    methods: tuple[str, ...] = tuple(METHODS)
    seed: int = 0


def main(arguments: Arguments) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pipe = VidRDPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    evaluation = WorldEvaluation(
        pipe,
        arguments.prompts,
        arguments.clips,
        arguments.steps,
        arguments.guidance_scale,
        arguments.batch,
        arguments.seed,
    )
    rows = {name: evaluation.run(METHODS[name]) for name in arguments.methods}
    table = markdown_table(rows)
    logging.info("\n%s", table)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        settings = {k: str(v) for k, v in vars(arguments).items()} | {"torch": torch.__version__}
        text = json.dumps({"settings": settings, "methods": rows}, indent=2)
        arguments.output.with_suffix(".json").write_text(text, encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
