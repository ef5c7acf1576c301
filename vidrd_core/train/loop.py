"""The training loop that all tasks share: schedule, accumulation, clipping, EMA, statistics, checkpoints, resuming.

Progress is counted in samples. All randomness comes from (seed, step, sample number), see :mod:`.micro_batches`: a run
that is killed and started again with the same command is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm

from . import checkpoint
from .distributed import is_deepspeed, make_accelerator, prepare
from .errors import LossWatch, memory_advice, unusable_loss
from .micro_batches import MicroBatch
from .optimizers import make_optimizer
from .settings import TrainSettings
from .statistics import Means, Statistics
from .task import TrainingTask

logger = logging.getLogger(__name__)

HELD_OUT_BATCHES = 8  # micro batches of each process in a held-out loss


def trained_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters that need a gradient, by ``module.parameter`` name."""
    return {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}


def count_parameters(modules: Mapping[str, nn.Module]) -> str:
    """A line for each module: how many of its parameters are trained and how many frozen."""
    lines = []
    for name, module in modules.items():
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        total = sum(p.numel() for p in module.parameters())
        lines.append(f"{name}: {trained / 1e6:.3f}M trained, {(total - trained) / 1e6:.3f}M frozen")
    return "; ".join(lines)


def train(task: TrainingTask, settings: TrainSettings) -> None:
    """Train ``task`` until ``settings.samples`` are reached; resumes where the run folder holds a checkpoint.

    Raises:
        FloatingPointError: the loss is no longer finite, or explodes; the last checkpoint is kept.
        MemoryError: memory ran out; the message says what to lower.
        OSError: a checkpoint cannot be written; the one before is kept.
        ValueError: settings that do not fit, or a run folder of another model.
    """
    trainer = Trainer(task, settings)
    bar = tqdm(
        total=settings.steps * settings.batch_size,
        initial=trainer.step * settings.batch_size,
        unit="sample",
        mininterval=5,
        dynamic_ncols=True,
        disable=not trainer.accelerator.is_main_process,
    )
    while trainer.step < settings.steps:
        with memory_advice(settings, trainer.micro_batch.size):
            trainer.take_step()
        samples, last = trainer.step * settings.batch_size, trainer.step == settings.steps
        bar.update(settings.batch_size)
        if last or settings.crosses(samples, settings.log_samples):
            bar.set_postfix(loss=f"{trainer.report()['loss']:.4f}")
        if last or settings.crosses(samples, settings.save_samples):
            trainer.save()
        if settings.crosses(samples, settings.validate_samples):
            with memory_advice(settings, trainer.micro_batch.size, previewing=True):
                trainer.validate()
    bar.close()
    trainer.close()


class Trainer:
    """Trains a task, from the first step or from the run folder's checkpoint."""

    def __init__(self, task: TrainingTask, settings: TrainSettings):
        self.task = task
        self.settings = settings
        self.accelerator = make_accelerator(settings, task.may_skip_parameters)
        main = self.accelerator.is_main_process
        if main:
            settings.run.mkdir(parents=True, exist_ok=True)
            for name in ("checkpoint", "model"):
                checkpoint.recover(settings.run / name)
            logger.info("%s", count_parameters(task.modules))
        self.accelerator.wait_for_everyone()

        # Models and optimiser, on their devices.
        for module in task.modules.values():
            if settings.gradient_checkpointing and any(p.requires_grad for p in module.parameters()):
                getattr(module, "enable_gradient_checkpointing", lambda: None)()
        calls, optimizer = prepare(
            self.accelerator, task.calls, make_optimizer(trained_parameters(task.modules), settings)
        )
        task.place(calls, self.accelerator.device, main)
        task.set_training(True)
        self.optimizer = optimizer
        self.parameters = trained_parameters(task.modules)
        averages: Any = [p.detach().float() for p in self.parameters.values()]
        self.ema = EMAModel(averages, decay=settings.ema_decay, use_ema_warmup=False)

        # Position in the run.
        self.watch = LossWatch(settings)
        state = self._resume()
        self.step = state.get("step", 0)
        micro, _ = settings.micro_batches(self.accelerator.num_processes)
        self.micro_batch = MicroBatch(
            settings.seed,
            self.step,
            settings.batch_size,
            micro,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        samples = self.step * settings.batch_size
        self.statistics = Statistics(settings.run, samples, self._gather, main, settings.tensorboard, settings.log_with)
        if main:  # metrics since the last line of statistics belong to the next line
            self.statistics.means.sums = {name: (t, n) for name, (t, n) in state.get("means", {}).items()}

    def take_step(self) -> None:
        """One step of the optimiser, over all processes and micro batches."""
        task, accelerator = self.task, self.accelerator
        self.micro_batch = replace(self.micro_batch, step=self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step * self.settings.batch_size)

        # Gradients.
        loss = torch.zeros((), device=accelerator.device)
        items: list[str] = []
        for micro_batch in self.micro_batch.of_step():
            micro_batch.seed_dropout()
            with accelerator.accumulate(*self._wrapped()):
                with accelerator.autocast():
                    outcome = task.loss(micro_batch)
                loss += outcome.loss.detach() / micro_batch.parts
                items += outcome.items
                self.statistics.add(outcome.figures)
                accelerator.backward(outcome.loss)

        # The weights change only where loss and gradients are usable.
        total = float(accelerator.reduce(loss, "mean"))  # type: ignore[arg-type]
        norm = self._clip()
        problem = self.watch.problem(total, norm, self._overflows(norm))
        if problem:
            raise unusable_loss(problem, self.step, self._gather(items), self.settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters.values())
        self.step += 1
        if accelerator.is_main_process:
            self.statistics.add({"loss": total, "gradient_norm": norm})

    def report(self) -> dict[str, Any]:
        """A line of statistics."""
        samples = self.step * self.settings.batch_size
        return self.statistics.write(samples, rate=self.settings.rate(samples))

    def save(self) -> None:
        """Write the model with its EMA weights, then the checkpoint, which implies that the model is complete."""
        with checkpoint.averaged(self.parameters, self.ema):
            if self.accelerator.is_main_process:
                checkpoint.replace_folder(self.settings.run / "model", self.task.export)
            else:
                self.task.export(self.settings.run / "model")
        state: dict[str, Any] = {
            "step": self.step,
            "batch_size": self.settings.batch_size,
            "means": self.statistics.means.together(self._gather),
            "loss_mean": self.watch.mean,
            "loss_count": self.watch.count,
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }
        folder = self.settings.run / "checkpoint"
        main = self.accelerator.is_main_process
        if is_deepspeed(self.accelerator):  # its engine holds the optimiser's state, sharded over the processes
            self._engine().save_checkpoint(str(self.settings.run / "deepspeed"), tag=f"step-{self.step}")
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        checkpoint.save_checkpoint(folder, self.parameters, optimizer, self.ema, state, main)
        self.accelerator.wait_for_everyone()

    def validate(self) -> None:
        """The held-out loss and a preview, with the EMA weights."""
        samples = self.step * self.settings.batch_size
        with checkpoint.averaged(self.parameters, self.ema), torch.no_grad():
            self.task.set_training(False)
            means = Means()
            micro_batch = replace(self.micro_batch, seed=0, step=0)
            for _ in range(HELD_OUT_BATCHES):
                with self.accelerator.autocast():
                    outcome = self.task.held_out(micro_batch)
                if outcome is not None:
                    means.add({"loss": float(outcome.loss), **outcome.figures})
                micro_batch = micro_batch.following()
            found = means.over(self._gather)
            if found:
                self.statistics.note({"samples": samples, **{f"held_out/{n}": value for n, value in found.items()}})
            self.task.preview(self.settings.run / "previews" / f"{samples:09d}")
            self.task.set_training(True)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        self.statistics.close()
        self.accelerator.free_memory()

    # -- parts of the above --------------------------------------------------------------------------------------------

    def _wrapped(self) -> list[nn.Module]:
        return [call for call in self.task.calls.values() if any(p.requires_grad for p in call.parameters())]

    def _clip(self) -> float:
        """Clip the gradients, those of discriminators separately; returns the norm of the others before clipping."""
        norm = 0.0
        for of_model in (True, False):
            group = [
                p for n, p in self.parameters.items() if (n.split(".")[0] not in self.task.discriminators) == of_model
            ]
            if group:
                # accelerate's also unscales all fp16 gradients, once; a task with discriminators is never sharded
                clip: Any = self.accelerator.clip_grad_norm_ if of_model else nn.utils.clip_grad_norm_
                found: Any = clip(group, self.settings.clip_norm)
                found = 0.0 if found is None else float(getattr(found, "full_tensor", lambda f=found: f)())
                norm = found if of_model or not torch.isfinite(torch.tensor(found)) else norm
        return norm

    def _overflows(self, norm: float) -> bool:
        return self.accelerator.scaler is not None and not torch.isfinite(torch.tensor(norm))

    def _gather(self, items: list[Any]) -> list[Any]:
        return gather_object(items) if self.accelerator.num_processes > 1 else items

    def _engine(self) -> Any:
        wrapped: Any = self.accelerator.deepspeed_engine_wrapped
        return wrapped.engine

    def _resume(self) -> dict[str, Any]:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        folder = self.settings.run / "checkpoint"
        steps = self._gather([checkpoint.stored_step(folder)])
        if len(set(steps)) > 1:
            raise ValueError(f"processes find different steps in {folder}, {steps}: put 'run' on a shared disk")
        state = checkpoint.load_checkpoint(folder, self.parameters, optimizer, self.ema)
        if not state:
            return {}
        before = state.get("batch_size", self.settings.batch_size)
        if before != self.settings.batch_size:
            raise ValueError(
                f"{folder} is of a run with batch_size {before}, this is {self.settings.batch_size}: continue with "
                f"{before} (micro_batch and the number of processes may change), or use another run"
            )
        self.watch.mean, self.watch.count = state.get("loss_mean", 0.0), state.get("loss_count", 0)
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if is_deepspeed(self.accelerator):
            self._engine().load_checkpoint(str(self.settings.run / "deepspeed"), tag=f"step-{state['step']}")
        logger.info("resuming at %d samples", state["step"] * self.settings.batch_size)
        return state
