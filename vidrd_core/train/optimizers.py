"""The optimiser of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .settings import TrainSettings


def make_optimizer(parameters: Mapping[str, nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form.

    Raises:
        ValueError: nothing is trained, or bitsandbytes is asked for and not installed.
    """
    if not parameters:
        raise ValueError("no parameter is trained: check the patterns in 'trained'")
    make: Any = torch.optim.AdamW
    if settings.optimizer == "adamw8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("optimizer 'adamw8bit' needs bitsandbytes: pip install bitsandbytes, or choose 'adamw'")
        import bitsandbytes

        make = bitsandbytes.optim.AdamW8bit
    return make(list(parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay)
