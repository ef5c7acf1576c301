"""The optimiser of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .settings import TrainSettings

SMALLEST_MATRIX = (
    16  # rows and columns; narrower ones, such as the first and the last convolution, are no hidden layers
)


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, its 8-bit form, or Muon.

    Raises:
        ValueError: nothing is trained, or what the optimiser needs is not installed.
    """
    if not parameters:
        raise ValueError("no parameter is trained: check the patterns in 'trained'")
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "muon":
        return MuonAdamW(parameters, **options)
    make: Any = torch.optim.AdamW
    if settings.optimizer == "adamw8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("optimizer 'adamw8bit' needs bitsandbytes: pip install bitsandbytes, or choose 'adamw'")
        import bitsandbytes

        make = bitsandbytes.optim.AdamW8bit
    return make(list(parameters.values()), **options)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains a parameter: weights of hidden layers; no embeddings, first or last layers, norms, biases."""
    if parameter.ndim < 2 or "embedding" in name.rsplit(".", 2)[-2]:
        return False
    return min(parameter.shape[0], parameter.numel() // parameter.shape[0]) >= SMALLEST_MATRIX


class MuonAdamW(torch.optim.AdamW):
    """Muon (PyTorch's own; Jordan 2024) for hidden matrices and kernels, AdamW for everything else, at one rate.

    Muon orthogonalises the update: all directions of a weight matrix get equal steps, also those of small gradients. A
    kernel ``[O, I, ...]`` is the matrix ``[O, I * ...]``. Steps are scaled to AdamW's size (arXiv 2502.16982, section
    2.2), so that AdamW's learning rates and weight decay suit. The state is one momentum per parameter, half of
    AdamW's.

    Args:
        parameters: by ``module.parameter`` name.

    Raises:
        ValueError: this PyTorch has no Muon.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float):
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer 'muon' needs PyTorch 2.9 or newer, this is {torch.__version__}")
        hidden = [p for n, p in parameters.items() if is_hidden_matrix(n, p)]
        others = [p for n, p in parameters.items() if not is_hidden_matrix(n, p)]
        groups = [{"params": ps, "hidden": ps is hidden} for ps in (hidden, others) if ps]
        super().__init__(groups, lr=lr, weight_decay=weight_decay)
        if hidden:
            self._flat = [nn.Parameter(p.detach().flatten(1)) for p in hidden]
            self._muon = torch.optim.Muon(self._flat, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; ``closure`` must be None."""
        groups = self.param_groups
        for group in groups:
            if group["hidden"]:
                for parameter, flat in zip(group["params"], self._flat, strict=True):
                    flat.data = parameter.data.flatten(1)  # a new view: the parameter may have moved to a device
                    flat.grad = None if parameter.grad is None else parameter.grad.flatten(1)
                    self._muon.state[flat] = self.state[parameter]  # shared with the state that checkpoints store
                self._muon.param_groups[0]["lr"] = group["lr"]
                self._muon.step()
                self._muon.zero_grad()
        self.param_groups = [group for group in groups if not group["hidden"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups
