"""Which parameters are trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

# The paper trains Temp-Conv, Temp-Attn, self- and cross-attention and freezes the ResNets.
PAPER_POLICY = ("*temp_convs*", "*temp_norm*", "*temp_attn*", "*attn1*", "*attn2*")


def freeze(model: nn.Module, trained: Sequence[str]) -> None:
    """Freeze all parameters but those that match one of the ``trained`` patterns (``*`` matches anything).

    Raises:
        ValueError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    useless = [pattern for pattern in trained if not fnmatch.filter(names, pattern)]
    if useless:
        raise ValueError(f"'trained' has patterns that match no parameter of {type(model).__name__}: {useless}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in trained))
