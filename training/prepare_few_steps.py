"""Sample the clips of a model by many steps with guidance, for a LoRA that learns to make them in few without.

    python training/prepare_few_steps.py --model vidrd_core/demo_model --latents runs/demo_latents/train.safetensors \
        --output runs/demo_teacher/0.safetensors

Several processes make several files with other seeds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import DTYPES, Precision

from vidrd_core.pipeline import VidRDPipeline
from vidrd_core.runtime.allocator import keep_freed_memory
from vidrd_core.shapes.latents import LatentClips
from vidrd_core.train.few_steps import TeacherSettings, write_teacher_clips


@dataclass(frozen=True)
class Arguments:
    model: Path  # folder of the teacher
    latents: Path  # file of true clips that prepare_latents.py wrote
    output: Path  # safetensors file to write
    clips: int = 1024
    batch: int = 32
    seed: int = 0
    dtype: Precision = "bf16"
    device: str = "cpu"
    teacher: TeacherSettings = TeacherSettings()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments = tyro.cli(Arguments)
    keep_freed_memory()
    pipe = VidRDPipeline.from_pretrained(arguments.model, torch_dtype=DTYPES[arguments.dtype]).to(arguments.device)
    write_teacher_clips(
        pipe,
        LatentClips(arguments.latents),
        arguments.output,
        arguments.clips,
        arguments.teacher,
        arguments.batch,
        arguments.seed,
    )
