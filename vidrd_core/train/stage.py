"""What a training stage is to the loop: models, a loss on a draw, and something to write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .draws import Draw


@dataclass
class Outcome:
    """What a micro batch gave.

    Args:
        loss: mean over the micro batch; gradients flow from it.
        figures: what to log: a number, or a tensor of several whose mean over everything counts.
        items: names of the samples, told where something goes wrong.
    """

    loss: Tensor
    figures: dict[str, float | Tensor] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)


class Stage(ABC):
    """A model in training. Parameters that need no gradient are frozen.

    Args:
        modules: the models by name, as they are saved; those without trained parameters are only kept on the device.
        calls: what :meth:`loss` calls in place of a module, for one whose training pass is not its ``forward``: a
            module around it, under the same name.
    """

    opponents: frozenset[str] = frozenset()  # modules that play against the others: their gradients are clipped apart
    may_skip_parameters = False  # whether a step may leave some trained parameters without gradient

    def __init__(self, modules: Mapping[str, nn.Module], calls: Mapping[str, nn.Module] | None = None):
        self.modules = dict(modules)
        self.calls = {**self.modules, **(calls or {})}
        self.device = torch.device("cpu")
        self.is_main = True

    def place(self, calls: Mapping[str, nn.Module], device: torch.device, is_main: bool) -> None:
        """Train with ``calls``, which are wrapped for several processes, on ``device``; ``is_main`` may write files."""
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
    def loss(self, draw: Draw) -> Outcome:
        """The loss of one micro batch."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write what later stages and users load; called on every process with the averaged weights in place."""

    def held_out(self, draw: Draw) -> Outcome | None:
        """The loss on data that is not trained on; None: there is none. Called without gradients."""
        return None

    def preview(self, folder: Path) -> None:  # noqa: B027 (most stages have nothing to show)
        """Write pictures or videos to look at; called on every process with the averaged weights in place."""
