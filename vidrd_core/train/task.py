"""The interface of a training task: its models, the loss of a micro batch, and the files to export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .micro_batches import MicroBatch


@dataclass
class Outcome:
    """The loss of a micro batch, and what to log.

    Args:
        loss: mean over the micro batch, with its graph.
        figures: metrics to log by name: a number, or a tensor of several, of which the mean over all is logged.
        items: names of the samples, for error messages.
    """

    loss: Tensor
    figures: dict[str, float | Tensor] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)


class TrainingTask(ABC):
    """Models in training, and their loss. Parameters that need no gradient are frozen.

    Args:
        modules: the models by name, as they are saved; those without trained parameters are only kept on the device.
        calls: for a module whose training pass is not its ``forward``, a module around it, under the same name, that
            :meth:`loss` calls instead.
    """

    discriminators: frozenset[str] = frozenset()  # names of modules whose gradients are clipped separately
    may_skip_parameters = False  # whether a step may leave some trained parameters without gradient

    def __init__(self, modules: Mapping[str, nn.Module], calls: Mapping[str, nn.Module] | None = None):
        self.modules = dict(modules)
        self.calls = {**self.modules, **(calls or {})}
        self.device = torch.device("cpu")
        self.is_main = True

    def place(self, calls: Mapping[str, nn.Module], device: torch.device, is_main: bool) -> None:
        """Train with ``calls``, wrapped for several processes, on ``device``; only ``is_main`` writes files."""
        self.calls.update(calls)
        self.device = device
        self.is_main = is_main
        for module in self.modules.values():
            if not any(p.requires_grad for p in module.parameters()):
                module.to(device)

    def set_training(self, on: bool) -> None:
        """Training or evaluation mode; frozen models stay in evaluation mode."""
        for module in self.modules.values():
            module.train(on and any(p.requires_grad for p in module.parameters()))

    @abstractmethod
    def loss(self, micro_batch: MicroBatch) -> Outcome:
        """The loss of one micro batch."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the files that later tasks and users load; called on every process, with EMA weights in the modules."""

    def held_out(self, micro_batch: MicroBatch) -> Outcome | None:
        """The loss on held-out data; None: there are none. Called without gradients."""
        return None

    def preview(self, folder: Path) -> None:  # noqa: B027 (most tasks make no previews)
        """Write validation videos; called on every process, with EMA weights in the modules."""
