"""Parity of the U-Net with the authors' code at 16x16 latents and larger, where the CPU's fast paths run.

At 8x8 latents (test_models.py) the layers run the very operations of the released code. tests/record_released_unet.py
made these recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from components import DATA, Reference, relative_error
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

CHANNELS_LAST = "channels-last convolutions"
ROWS = "tokens as a row of a convolution"
PLANES = "convolutions over frames as planes"
FLAT_PLANES = "convolutions over frames as planes of a tiny image"
PARTS = "feed-forward in parts"
DOUBLED = "doubled images by 2x2 kernels"

# What runs at which size with the weights of both recordings; the wider levels of "a" reach one more.
EXPECTED = {
    "8x8": {ROWS},
    "16x16": {ROWS, CHANNELS_LAST, PLANES},
    "24x16": {ROWS, CHANNELS_LAST, PLANES, PARTS},
    "17x19": {ROWS, CHANNELS_LAST},
    "48x48": {ROWS, CHANNELS_LAST, PLANES, PARTS, DOUBLED},
}
EXPECTED_OF_A = {"48x48": {FLAT_PLANES}}


class Paths(TorchFunctionMode):
    """Notes which of the fast paths of vidrd_core/models/layers.py torch is asked to run."""

    def __init__(self, frames: int):
        super().__init__()
        self.frames = frames  # in the whole batch
        self.taken: set[str] = set()

    def __torch_function__(
        self, function: Any, classes: Any, arguments: tuple[Any, ...] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.conv2d:
            self.note_convolution(*arguments[:2])
        elif function is torch.nn.functional.gelu and len(arguments[0]) < self.frames:
            self.taken.add(PARTS)
        return function(*arguments, **(options or {}))

    def note_convolution(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        kernel = tuple(weight.shape[2:])
        channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        if kernel == (1, 1) and x.shape[:1] + x.shape[2:3] == (1, 1):
            self.taken.add(ROWS)
        elif kernel == (3, 1):
            self.taken.add(PLANES if channels_last else FLAT_PLANES)
        elif kernel == (2, 2):
            self.taken.add(DOUBLED)
        elif kernel == (3, 3) and channels_last:
            self.taken.add(CHANNELS_LAST)


@pytest.fixture(scope="module")
def larger() -> dict[str, torch.Tensor]:
    tensors = load_file(DATA / "vidrd_official_larger.safetensors")
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", ["a", "c"])
@pytest.mark.parametrize("size", EXPECTED)
def test_the_fast_paths_that_run_at_this_size_equal_the_released_code(
    name: str, size: str, larger: dict[str, torch.Tensor]
) -> None:
    reference = Reference(name)
    tensors, place, out = (reference, "", "out.sample") if size == "8x8" else (larger, f"{size}.", f"{size}.out.{name}")
    sample, timestep, text = (tensors[f"{place}in.{key}"] for key in ("sample", "timestep", "encoder_hidden_states"))
    with Paths(sample.shape[0] * sample.shape[2]) as paths:
        made = reference.unet(sample, timestep, text).sample
    expected = EXPECTED[size] | (EXPECTED_OF_A.get(size, set()) if name == "a" else set())
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        expected = expected - {ROWS}
    assert paths.taken == expected
    assert relative_error(made, tensors[out]) < 1e-5
