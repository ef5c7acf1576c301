"""Train a LoRA that samples in few steps without guidance, on clips of its own model.

    python training/train_few_steps.py --config training/configs/demo_few_steps.yaml

The clips are made by prepare_few_steps.py. On several GPUs with ``accelerate launch``, as train_unet.py. Run the same
command again to resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import run

from vidrd_core.train.few_steps import FewStepsTask, TeacherClips
from vidrd_core.train.lora import LoraSettings
from vidrd_core.train.objective import UNetObjective
from vidrd_core.train.schedule import start_scheduler
from vidrd_core.train.settings import TrainSettings
from vidrd_core.train.start import start_defaults, start_text, start_unet


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings
    clips: tuple[Path, ...]  # files that prepare_few_steps.py wrote
    video_model: Path  # the model that made them
    lora: LoraSettings = LoraSettings(rank=32)
    max_weight: float = 12.0  # of a step's error, as in the U-Net's objective


def make_task(configuration: Configuration) -> FewStepsTask:
    model = configuration.video_model
    source = TeacherClips(configuration.clips)
    scheduler = start_scheduler(None, model, None, for_lora=True)
    by_weight = configuration.max_weight if scheduler.config.prediction_type == "epsilon" else 1.0
    objective = UNetObjective(
        num_frames=source.states.shape[3], caption_dropout=0.0, temp_conv_dropout=0.0, max_weight=by_weight
    )
    unet = start_unet(None, model, {}, (), configuration.lora)
    text_encoder, tokenizer = start_text([model])
    defaults = start_defaults(model)
    return FewStepsTask(unet, text_encoder, tokenizer, source, objective, defaults=defaults, scheduler=scheduler)


if __name__ == "__main__":
    run(Configuration, make_task)
