"""The training loop that every stage shares: schedule, clipping, EMA, statistics, checkpoints, resuming.

Progress is counted in samples. Everything random in a step comes from (seed, step), so that a run that is killed and
started again with the same command continues exactly as if it had never stopped.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast and from which seed to train."""

    run: Path  # folder of statistics, checkpoint and exported models
    samples: int  # total number of training samples (frames or clips)
    batch_size: int  # samples per step
    learning_rate: float = 5e-4  # peak
    warmup_samples: int = 10_000  # linear from zero to the peak
    final_rate: float = 0.05  # the cosine ends at this share of the peak
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # largest gradient norm
    ema_decay: float = 0.999  # of the exponential moving average of the weights, by step
    seed: int = 0
    log_samples: int = 1_600  # between lines of statistics
    save_samples: int = 20_000  # between checkpoints
    precision: str = "fp32"  # "bf16": autocast the forward pass

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "log_samples", "save_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected 0 <= decay < 1")

        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; expected 'fp32' or 'bf16'")

    def rate(self, samples: int) -> float:
        """Learning rate after so many samples: linear warm-up, then a cosine."""
        if samples < self.warmup_samples:
            return self.learning_rate * (samples + 1) / self.warmup_samples
        progress = min(1.0, (samples - self.warmup_samples) / max(1, self.samples - self.warmup_samples))
        share = self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * share


class Stage(Protocol):
    """What is trained and on what. Parameters that need no gradient are frozen."""

    def modules(self) -> dict[str, nn.Module]:
        """The models by name; those with trained parameters go into training mode."""

    def loss(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, drawn with ``generator``, and figures to log."""

    def export(self, folder: Path) -> None:
        """Write what later stages and users load; called with the averaged weights in place."""


def trained_parameters(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters that need a gradient, by ``module.parameter`` name."""
    return {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}


def count_parameters(modules: dict[str, nn.Module]) -> str:
    """A line for each module: how many of its parameters are trained and how many frozen."""
    lines = []
    for name, module in modules.items():
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        total = sum(p.numel() for p in module.parameters())
        lines.append(f"{name}: {trained / 1e6:.3f}M trained, {(total - trained) / 1e6:.3f}M frozen")
    return "; ".join(lines)


def train(stage: Stage, settings: TrainSettings) -> None:
    """Train ``stage`` until ``settings.samples`` are reached, resuming from the run folder where there is a checkpoint.

    Raises:
        FloatingPointError: the loss is no longer finite; the last checkpoint is kept.
    """
    settings.run.mkdir(parents=True, exist_ok=True)
    modules = stage.modules()
    parameters = trained_parameters(modules)
    logger.info("%s", count_parameters(modules))
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    ema = EMAModel(parameters.values(), decay=settings.ema_decay, use_ema_warmup=False)
    step = load_checkpoint(settings.run / "checkpoint", parameters, optimizer, ema)
    for module in modules.values():
        module.train(any(p.requires_grad for p in module.parameters()))

    statistics = _Statistics(settings.run / "statistics.jsonl", step * settings.batch_size)
    steps = math.ceil(settings.samples / settings.batch_size)
    bar = tqdm(
        total=settings.samples, initial=step * settings.batch_size, unit="sample", mininterval=5, dynamic_ncols=True
    )
    while step < steps:
        # Step.
        samples = step * settings.batch_size
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(samples)
        torch.manual_seed(_step_seed(settings.seed, step))  # dropout
        generator = torch.Generator().manual_seed(_step_seed(settings.seed + 1, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss, figures = stage.loss(settings.batch_size, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {step}; the last good checkpoint is {settings.run / 'checkpoint'}: "
                "lower learning_rate and run the same command again"
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(parameters.values())
        step += 1

        # Report and save.
        samples += settings.batch_size
        statistics.add({"loss": loss.item(), "gradient_norm": norm.item(), **figures})
        bar.update(settings.batch_size)
        if _crosses(samples, settings.batch_size, settings.log_samples) or step == steps:
            line = statistics.write(samples, settings.rate(samples))
            bar.set_postfix(loss=f"{line['loss']:.4f}")
        if _crosses(samples, settings.batch_size, settings.save_samples) or step == steps:
            save_checkpoint(settings.run / "checkpoint", parameters, optimizer, ema, step)
            export_averaged(stage, settings.run / "model", parameters.values(), ema)
    bar.close()


def export_averaged(stage: Stage, folder: Path, parameters: Iterable[nn.Parameter], ema: EMAModel) -> None:
    """Call ``stage.export`` with the averaged weights in place of the current ones."""
    parameters = list(parameters)
    ema.store(parameters)
    ema.copy_to(parameters)
    stage.export(folder)
    ema.restore(parameters)


def _crosses(samples: int, batch_size: int, interval: int) -> bool:
    return samples // interval > (samples - batch_size) // interval


def _step_seed(seed: int, step: int) -> int:
    return (seed * 0x9E3779B1 + step * 0x85EBCA77 + 0x165667B1) % (2**63)


class _Statistics:
    """Means of figures since the last line, appended to a JSON-lines file."""

    def __init__(self, path: Path, samples: int):
        self.path = path
        self.sums: dict[str, float] = {}
        self.count = 0
        self.since = time.monotonic()
        self.first = samples
        if path.exists():  # drop lines that a resumed run writes again
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            kept = [line for line in kept if json.loads(line)["samples"] <= samples]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def add(self, figures: dict[str, float]) -> None:
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self, samples: int, rate: float) -> dict[str, Any]:
        seconds = time.monotonic() - self.since
        line = {"samples": samples, "rate": rate, **{k: v / self.count for k, v in self.sums.items()}}
        line["samples_per_second"] = (samples - self.first) / seconds
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums, self.count, self.since, self.first = {}, 0, time.monotonic(), samples
        return line
