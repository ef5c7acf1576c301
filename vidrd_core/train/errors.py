"""Errors that stop a run, with what to do about them: an exploding loss, and memory that ran out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .settings import TrainSettings

MAX_SKIPPED_STEPS = 30  # in a row, whose gradients overflow in fp16, before the run stops
MEAN_DECAY = 0.98  # of the running mean of the loss, by step
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")  # in torch's errors
FIRST_STEPS = 20  # in which no loss counts as exploding


@dataclass
class LossWatch:
    """Detects a loss that is not finite, or far above the running mean of its absolute value."""

    settings: TrainSettings
    mean: float = 0.0
    count: int = 0
    skipped: int = 0

    def problem(self, loss: float, norm: float, was_skipped: bool) -> str | None:
        """What is wrong with a step, for the error message; None where nothing is."""
        self.skipped = self.skipped + 1 if was_skipped else 0
        if self.skipped > MAX_SKIPPED_STEPS:
            return f"the gradients of {self.skipped} steps in a row overflow in fp16"
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm) and self.settings.precision != "fp16":
            return f"the gradient's norm is {norm}"
        limit = self.settings.explosion
        if limit and self.count >= FIRST_STEPS and loss > limit * self.mean:
            return f"the loss is {loss:.4g}, {loss / self.mean:.0f} times its running mean"
        self.mean = abs(loss) if self.count == 0 else MEAN_DECAY * self.mean + (1 - MEAN_DECAY) * abs(loss)
        self.count += 1
        return None


def unusable_loss(problem: str, step: int, items: Sequence[str], settings: TrainSettings) -> FloatingPointError:
    """The error of a run whose loss or gradients cannot be used."""
    checkpoint = settings.run / "checkpoint"
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    return FloatingPointError(
        f"{problem} at step {step}; {kept}; the batch was {', '.join(items) or 'unnamed'}: look at these items, or "
        "lower learning_rate, and run the same command again"
    )


@contextmanager
def memory_advice(settings: TrainSettings, micro_batch: int, previewing: bool = False) -> Iterator[None]:
    """Say which setting to lower where memory runs out, in training or in making validation videos.

    Raises:
        MemoryError: in place of torch's own errors.
    """
    try:
        yield
    except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one; other devices raise it with a message
        if not isinstance(error, torch.cuda.OutOfMemoryError) and not any(s in str(error) for s in OUT_OF_MEMORY):
            raise
        raise MemoryError(_preview_advice() if previewing else _advice(settings, micro_batch)) from error


def _preview_advice() -> str:
    return (
        "out of memory in validation: lower previews.frames, previews.height or previews.width, give fewer "
        "previews.prompts, or set train.validate_samples to 0; the checkpoint before it is kept"
    )


def _advice(settings: TrainSettings, micro_batch: int) -> str:
    advice = []
    if micro_batch > 1:
        advice.append(f"lower train.micro_batch (it is {micro_batch}; the result stays the same)")
    if not settings.gradient_checkpointing:
        advice.append("set train.gradient_checkpointing to true")
    if settings.precision == "fp32":
        advice.append("set train.precision to bf16")
    if settings.optimizer == "adamw":
        advice.append("set train.optimizer to adamw8bit")
    advice.append("lower the number of frames or the resolution, or shard the model with FSDP")
    return f"out of memory with micro batches of {micro_batch}: " + "; ".join(advice)
