"""A tiny U-Net training run in a process of its own, for tests that kill it or run it in several processes.

    python tests/training_worker.py RUN SHARDS key=value ...

The settings are those of TrainSettings; with FSDP in the environment the run is sharded.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

import torch
from training_components import SMALL, settings, unet_task

from vidrd_core.train.loop import train


def main(run: Path, shards: Path, **changes: object) -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    torch.set_num_threads(1)
    runs = [run]
    if changes.pop("ddp_then_fsdp", False):  # both in one start of the interpreter, which takes longer than the runs
        runs = [run / "ddp", run / "fsdp"]
    for folder in runs:
        if folder.name == "fsdp":
            use_fsdp()
        with tempfile.TemporaryDirectory() as scratch:
            made = settings(folder, **changes)
            task = unet_task(Path(scratch), shards, SMALL, made.batch_size, image_share=0.25)
            train(task, made)


def use_fsdp() -> None:
    """What ``accelerate launch`` sets for training/accelerate/fsdp.yaml."""
    import os

    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_TRANSFORMER_CLS_TO_WRAP="ResnetBlock,SpatioTemporalTransformer,TempConv",
        FSDP_RESHARD_AFTER_FORWARD="true",
        FSDP_CPU_RAM_EFFICIENT_LOADING="false",
    )


if __name__ == "__main__":
    pairs = dict(argument.split("=", 1) for argument in sys.argv[3:])
    main(Path(sys.argv[1]), Path(sys.argv[2]), **{k: json.loads(v) for k, v in pairs.items()})
