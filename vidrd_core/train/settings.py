"""The settings that all training tasks share: length, learning rate, precision, optimiser, seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")


@dataclass(frozen=True)
class TrainSettings:
    """Everything is counted in samples (frames or clips), never in steps."""

    run: Path  # folder of statistics, checkpoint and exported models
    samples: int  # total number of training samples
    batch_size: int  # samples per step, of all processes together
    stop_samples: int | None = None  # stop early, with the learning-rate schedule of ``samples``
    micro_batch: int | None = None  # samples of one forward pass of one process; None: its whole share of the batch
    learning_rate: float = 5e-4  # peak
    warmup_samples: int = 10_000  # linear from zero to the peak
    final_rate: float = 0.05  # the cosine ends at this share of the peak
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # largest gradient norm
    ema_decay: float = 0.999  # of the exponential moving average of the weights, by step
    seed: int = 0
    log_samples: int = 1_600  # between lines of statistics
    save_samples: int = 20_000  # between checkpoints
    validate_samples: int = 0  # between held-out losses and validation videos; 0: never
    precision: str = "fp32"  # "bf16", "fp16": autocast the forward pass; fp16 scales the loss and needs a GPU
    # "adamw8bit": a quarter of the optimiser's memory; needs bitsandbytes. "muon": orthogonalised updates of hidden
    # layers, which learn from small gradients in fewer samples; at AdamW's learning rates.
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: less memory, about 30% slower
    explosion: float = 100.0  # a loss this many times its running mean stops the run; 0: only one that is not finite
    tensorboard: bool = True  # where tensorboard is installed; the JSON lines are written always
    log_with: tuple[str, ...] = ()  # further trackers by accelerate's names: wandb, comet_ml, mlflow, aim, ...

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "log_samples", "save_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.stop_samples is not None and self.stop_samples < 1:
            raise ValueError(f"stop_samples is {self.stop_samples}; expected at least 1, or none to end at samples")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; expected at least 1, or none for the whole share")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; expected above 0, and a large number to clip nothing")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected 0 <= decay < 1")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {', '.join(map(repr, PRECISIONS))}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}; expected one of {', '.join(map(repr, OPTIMIZERS))}")

    @property
    def steps(self) -> int:
        """Steps until the run ends."""
        return math.ceil(min(self.samples, self.stop_samples or self.samples) / self.batch_size)

    def rate(self, samples: int) -> float:
        """Learning rate after so many samples: linear warm-up, then a cosine."""
        if samples < self.warmup_samples:
            return self.learning_rate * (samples + 1) / self.warmup_samples
        progress = min(1.0, (samples - self.warmup_samples) / max(1, self.samples - self.warmup_samples))
        share = self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * share

    def micro_batches(self, processes: int) -> tuple[int, int]:
        """Samples of a forward pass on one process, and how many such passes make a step.

        Raises:
            ValueError: the batch cannot be divided evenly.
        """
        share, rest = divmod(self.batch_size, processes)
        micro = self.micro_batch or share
        if rest or share == 0 or share % micro:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided among {processes} processes in micro batches of "
                f"{micro or 1}: make it a multiple of {processes * (micro or 1)}"
            )
        return micro, share // micro

    def crosses(self, samples: int, interval: int) -> bool:
        """Whether the step that ends after ``samples`` passes a multiple of ``interval``; never where that is 0."""
        return interval > 0 and samples // interval > (samples - self.batch_size) // interval
