"""Draw the loss curves of training runs into one picture.

python training/plot_losses.py --runs runs/demo_vae runs/demo_image runs/demo_video --output docs/demo_training.png
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter


@dataclass(frozen=True)
class Arguments:
    runs: tuple[Path, ...]  # run folders
    output: Path  # picture to write


def main(arguments: Arguments) -> None:
    columns = min(4, len(arguments.runs))
    rows = -(-len(arguments.runs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
    for axis in axes.flat[len(arguments.runs) :]:
        axis.remove()
    for axis, run in zip(axes.flat, arguments.runs):
        text = (run / "statistics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        for name in ("loss", "image_loss", "video_loss", "held_out/loss"):
            points = [(line["samples"], line[name]) for line in lines if name in line]
            if points and not (name == "loss" and any("video_loss" in line for line in lines)):
                axis.plot(*zip(*points), label=name.replace("/", " ").replace("_", " "), linewidth=1)
        axis.set(title=run.name, xlabel="samples", yscale="log")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.tight_layout()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
