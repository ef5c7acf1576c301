"""Losses that compare what frames look like instead of their pixels: LPIPS, or without its weights a built-in one."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# VGG-16 (arXiv 1409.1556) up to its last convolution: widths, "M" halves the resolution.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
LPIPS_WIDTHS = (64, 128, 256, 512, 512)  # after the last convolution of each resolution
MEAN = (-0.030, -0.088, -0.188)  # of LPIPS' input in [-1, 1]
STANDARD_DEVIATION = (0.458, 0.448, 0.450)


def make_perceptual(backbone: Path | None, heads: Path | None) -> nn.Module:
    """LPIPS where both files are given, else the built-in loss, which the log says.

    Raises:
        ValueError: one file is missing, or does not hold what it should.
    """
    if backbone is None and heads is None:
        logger.info("no LPIPS weights are given (lpips_backbone, lpips_heads): using the built-in feature loss")
        return MultiScaleFeatureLoss()
    if backbone is None or heads is None:
        raise ValueError("LPIPS needs two files: lpips_backbone (VGG-16 of torchvision) and lpips_heads (vgg.pth)")
    return Lpips(backbone, heads)


class Lpips(nn.Module):
    """LPIPS with VGG-16 (arXiv 1801.03924).

    Args:
        backbone: torchvision's VGG-16 weights, names ``features.<n>.weight``; safetensors or a pickle of tensors.
        heads: LPIPS' linear weights ``lin<n>.model.1.weight`` (``vgg.pth`` of version 0.1).
    """

    def __init__(self, backbone: Path, heads: Path):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for entry in VGG16:
            if isinstance(entry, int):
                layers += [nn.Conv2d(width, entry, 3, padding=1), nn.ReLU()]
                width = entry
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList([nn.Parameter(torch.empty(w)) for w in LPIPS_WIDTHS])
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(STANDARD_DEVIATION)[:, None, None])
        self._load(backbone, heads)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean distance of frames ``[N, 3, H, W]`` in [-1, 1]; at least 16 pixels a side."""
        total = output.new_zeros(())
        pairs = zip(self._maps(output), self._maps(target), self.heads, strict=True)
        for ours, theirs, weight in pairs:
            total = total + ((ours - theirs).square() * weight[:, None, None]).sum(1).mean()
        return total

    def _maps(self, frames: Tensor) -> list[Tensor]:
        """Features of unit length at each position, one map for each resolution."""
        maps = []
        x = (frames - self.mean) / self.deviation
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(F.normalize(x, dim=1, eps=1e-10))
            x = layer(x)
        return [*maps, F.normalize(x, dim=1, eps=1e-10)]

    def _load(self, backbone: Path, heads: Path) -> None:
        weights = _read(backbone)
        own = {f"features.{name}" for name in self.features.state_dict()}
        lines = [f"lin{n}.model.1.weight" for n in range(len(LPIPS_WIDTHS))]
        known = _read(heads)
        missing = sorted((own - set(weights)) | (set(lines) - set(known)))
        if missing:
            raise ValueError(f"{backbone} and {heads} are no weights of LPIPS with VGG-16: {missing[:4]} are missing")
        self.features.load_state_dict({name.removeprefix("features."): weights[name] for name in own})
        for parameter, line in zip(self.heads, lines, strict=True):
            parameter.data = known[line].flatten().float()


class MultiScaleFeatureLoss(nn.Module):
    """Compares edges, in four directions, relative to the local contrast, at several scales; needs no weights."""

    def __init__(self, scales: int = 4):
        super().__init__()
        self.scales = scales
        across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 8
        slanted = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, -1.0], [0.0, -1.0, -2.0]]) / 8
        kernels = torch.stack([across, across.T, slanted, slanted.flip(1)])
        self.kernels: Tensor
        self.register_buffer("kernels", repeat(kernels, "n h w -> (c n) 1 h w", c=3))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean distance of frames ``[N, 3, H, W]`` in [-1, 1]."""
        losses = []
        for _ in range(self.scales):
            ours, theirs = self._edges(output), self._edges(target)
            contrast = F.avg_pool2d(theirs.abs(), 5, 1, 2, count_include_pad=False).mean(1, keepdim=True)
            losses.append(((ours - theirs).abs() / (contrast + 0.05)).mean())
            if min(output.shape[2:]) < 8:
                break
            output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
        return torch.stack(losses).mean()

    def _edges(self, frames: Tensor) -> Tensor:
        return F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), self.kernels.to(frames.dtype), groups=3)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
