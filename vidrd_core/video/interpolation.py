"""Put frames between frames along the optical flow, without any weights.

Flow comes from OpenCV's DIS (arXiv 1603.03590), in both directions. Both frames are splatted forward to the wanted
time; where several pixels land on one, those whose colour the flow keeps weigh most (softmax splatting,
arXiv 2003.05534), so that moving things cover what is behind them; what neither frame reaches is blended in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FLOW_SIZE = 256  # smaller frames are enlarged to this many pixels before their flow is taken: DIS works on 8x8 patches
SHARPNESS = 20.0  # how strongly a mismatch of colour (0 to 1) lowers a pixel's weight
HOLE = 1e-3  # total weight below which a pixel counts as reached by neither frame


def interpolate(frames: Tensor, factor: int, on_pair: Callable[[], Any] | None = None) -> Tensor:
    """``[T, H, W, 3]`` in [0, 1] to ``[(T - 1) * factor + 1, H, W, 3]``; the given frames stay as they are.

    Args:
        factor: how many steps one step becomes, 1 or more.
        on_pair: called after each pair of neighbours; may raise to stop.

    Raises:
        ValueError: another shape, a factor below 1, or no OpenCV.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames are {list(frames.shape)}; expected [T, H, W, 3] with at least one frame")
    if factor < 1:
        raise ValueError(f"factor is {factor}; expected 1 (as it is) or more")
    count, height, width, _ = frames.shape
    out = torch.empty(((count - 1) * factor + 1, height, width, 3), dtype=torch.float32)
    out[::factor] = frames.float()
    for index in range(count - 1 if factor > 1 else 0):
        first, second = (rearrange(frames[n].float(), "h w c -> c h w") for n in (index, index + 1))
        flows = optical_flow(first, second), optical_flow(second, first)
        for step in range(1, factor):
            frame = between(first, second, *flows, step / factor)
            out[index * factor + step] = rearrange(frame, "c h w -> h w c")
        if on_pair is not None:
            on_pair()
    return out


def load_opencv() -> Any:
    """The module ``cv2``, of whichever of OpenCV's packages is there.

    Raises:
        ValueError: none is, or it cannot be loaded; the message says what to install.
    """
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"optical flow needs OpenCV, which cannot be imported ({error}): install it with `python -m pip install "
            "opencv-python-headless` into the Python that runs this (ComfyUI's own, inside ComfyUI). Where another "
            "program or node pack wants opencv-python, install that one in its place: one of the two is enough, and "
            "both together can break each other"
        ) from error
    return cv2


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Where each pixel of ``first`` ``[3, H, W]`` is in ``second``: ``[2, H, W]`` in pixels, x then y.

    Raises:
        ValueError: there is no OpenCV.
    """
    cv2 = load_opencv()
    height, width = first.shape[1:]
    scale = max(1.0, FLOW_SIZE / min(height, width))
    size = (round(height * scale), round(width * scale))
    grays = []
    for frame in (first, second):
        gray = F.interpolate((frame.mean(0)[None, None].clamp(0, 1) * 255), size, mode="bilinear", align_corners=False)
        grays.append(gray[0, 0].round().byte().numpy())
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = torch.from_numpy(search.calc(*grays, None))
    flow = rearrange(flow, "h w xy -> 1 xy h w")
    flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)[0]
    return flow * torch.tensor([width / size[1], height / size[0]])[:, None, None]


def between(first: Tensor, second: Tensor, forward: Tensor, backward: Tensor, time: float) -> Tensor:
    """The frame ``[3, H, W]`` at ``time`` (0 to 1) between two, given the flows of both directions."""
    ahead, ahead_weight = splat(first, forward * time, keeps_colour(first, second, forward))
    behind, behind_weight = splat(second, backward * (1 - time), keeps_colour(second, first, backward))
    blend = (1 - time) * ahead + time * behind
    weight = (1 - time) * ahead_weight + time * behind_weight
    still = (1 - time) * first + time * second
    return torch.where(weight > HOLE, blend / weight.clamp(min=HOLE), still).clamp(0, 1)


def keeps_colour(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """``[H, W]`` in (0, 1]: 1 where the flow leads to the same colour."""
    height, width = flow.shape[1:]
    x = torch.arange(width, dtype=torch.float32) + flow[0]
    y = torch.arange(height, dtype=torch.float32)[:, None] + flow[1]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    found = F.grid_sample(second[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    return torch.exp(-SHARPNESS * (found - first).abs().mean(0))


def splat(frame: Tensor, flow: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Move all pixels along the flow: the weighted sums of colours ``[3, H, W]`` and weights ``[H, W]`` that arrive."""
    channels, height, width = frame.shape
    x = torch.arange(width, dtype=torch.float32) + flow[0]
    y = torch.arange(height, dtype=torch.float32)[:, None] + flow[1]
    left, top = x.floor(), y.floor()
    carried = rearrange(torch.cat((frame * weight, weight[None])), "c h w -> c (h w)")
    sums = torch.zeros(channels + 1, height * width)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            target = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten()
            sums.index_add_(1, target, carried * (share * inside).flatten())
    sums = rearrange(sums, "c (h w) -> c h w", h=height)
    return sums[:channels], sums[channels]
