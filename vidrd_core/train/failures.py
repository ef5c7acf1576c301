"""What stops a run, told so that its owner knows what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .settings import TrainSettings

SKIPPED_MOST = 30  # steps in a row whose gradients fp16 could not hold, before that counts as a failure
MEMORY = 0.98  # of the running mean of the loss, by step
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")  # in torch's errors
SETTLING = 20  # steps before a loss may count as exploding


@dataclass
class LossWatch:
    """Notices a loss that is not finite, or far above the running mean of its size."""

    settings: TrainSettings
    mean: float = 0.0
    count: int = 0
    skipped: int = 0

    def problem(self, loss: float, norm: float, was_skipped: bool) -> str | None:
        """What is wrong with a step, in words; None where all is well."""
        self.skipped = self.skipped + 1 if was_skipped else 0
        if self.skipped > SKIPPED_MOST:
            return f"fp16 could not hold the gradients of {self.skipped} steps in a row"
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm) and self.settings.precision != "fp16":
            return f"the gradient's norm is {norm}"
        limit = self.settings.explosion
        if limit and self.count >= SETTLING and loss > limit * self.mean:
            return f"the loss is {loss:.4g}, {loss / self.mean:.0f} times its running mean"
        self.mean = abs(loss) if self.count == 0 else MEMORY * self.mean + (1 - MEMORY) * abs(loss)
        self.count += 1
        return None


def stop(problem: str, step: int, items: Sequence[str], settings: TrainSettings) -> FloatingPointError:
    """The error of a run that cannot go on."""
    checkpoint = settings.run / "checkpoint"
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    return FloatingPointError(
        f"{problem} at step {step}; {kept}; the batch was {', '.join(items) or 'unnamed'}: look at these items, or "
        "lower learning_rate, and run the same command again"
    )


@contextmanager
def memory_advice(settings: TrainSettings, micro_batch: int, previewing: bool = False) -> Iterator[None]:
    """Say which setting to lower where memory runs out: of training, or of validation videos.

    Raises:
        MemoryError: in place of torch's own errors.
    """
    try:
        yield
    except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one, those of other devices only say so
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
        advice.append("set train.gradient_checkpointing true")
    if settings.precision == "fp32":
        advice.append("set train.precision to bf16")
    if settings.optimizer == "adamw":
        advice.append("set train.optimizer to adamw8bit")
    advice.append("lower the number of frames or the resolution, or share the model out with FSDP")
    return f"out of memory with micro batches of {micro_batch}: " + "; ".join(advice)
