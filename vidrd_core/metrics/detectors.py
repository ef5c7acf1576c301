"""The networks behind the metrics, each from a local file: I3D for FVD, C3D for the inception score, CLIP.

Nothing is downloaded. Frames are ``[B, 3, T, H, W]`` in [-1, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

I3D_HINT = (
    "FVD needs the I3D network (Kinetics-400) as TorchScript, the file that StyleGAN-V and later projects share as "
    "i3d_torchscript.pt; get it and name it with --i3d"
)
C3D_HINT = (
    "the inception score needs the C3D network (Sports-1M, fine-tuned on UCF-101) as TorchScript, the file that "
    "StyleGAN-V shares as c3d_ucf101.pt; get it and name it with --c3d"
)
CLIP_HINT = (
    "CLIP similarity needs a folder of a transformers CLIPModel (config.json, model.safetensors, tokenizer and "
    "preprocessor_config.json), for example openai/clip-vit-base-patch32; get it and name it with --clip"
)
I3D_SIZE = 224  # pixels
MIN_I3D_FRAMES = 10  # fewer do not survive I3D's temporal pooling


class MissingWeights(FileNotFoundError):
    """A network's file is missing; the message names the file to get."""


def load_torchscript(path: Path, hint: str, device: torch.device | str = "cpu") -> Any:
    """A TorchScript module in evaluation mode.

    Raises:
        MissingWeights: there is no such file.
        ValueError: the file is not TorchScript.
    """
    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; {hint}")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is not a TorchScript file ({str(error).splitlines()[0]}); {hint}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files, so that cached statistics are known to be of these weights."""
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def resized(frames: Tensor, size: int, antialias: bool) -> Tensor:
    """Scale the shorter side to ``size`` pixels, with or without antialiasing, and crop the centre square."""
    count, height, width = frames.shape[2:]
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    flat = rearrange(frames, "b c t h w -> (b t) c h w")
    flat = F.interpolate(flat, target, mode="bilinear", align_corners=False, antialias=antialias and scale < 1)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    flat = flat[:, :, top : top + size, left : left + size]
    return rearrange(flat, "(b t) c h w -> b c t h w", t=count)


@dataclass(frozen=True)
class I3D:
    """Video features for FVD (arXiv 1812.01717), with the call that the shared TorchScript file has.

    Frames are resized without antialiasing, as in the PyTorch code for FVD that projects share: it changes the values.
    """

    module: Any
    device: torch.device | str = "cpu"

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> I3D:
        return cls(load_torchscript(path, I3D_HINT, device), device)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Features ``[B, D]`` (D is 400 for I3D), before the softmax."""
        if frames.shape[2] < MIN_I3D_FRAMES:
            raise ValueError(f"I3D got {frames.shape[2]} frames; it needs at least {MIN_I3D_FRAMES}, 16 are usual")
        pixels = resized(frames.to(self.device, torch.float32), I3D_SIZE, antialias=False).contiguous()
        features: Tensor = self.module(pixels, rescale=False, resize=False, return_features=True)
        return features.flatten(1)


@dataclass(frozen=True)
class C3D:
    """Class probabilities for the inception score of videos (arXiv 1611.06624).

    The shared file takes pixels of 0 to 255, resizes them itself and returns probabilities; modules that return logits
    work too.
    """

    module: Any
    device: torch.device | str = "cpu"

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> C3D:
        return cls(load_torchscript(path, C3D_HINT, device), device)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Probabilities ``[B, K]`` (K is 101 for UCF-101)."""
        pixels = ((frames.to(self.device, torch.float32) + 1) * 127.5).clamp(0, 255)
        out: Tensor = self.module(pixels).float()
        sums = out.sum(1)
        if bool((out >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            return out / sums[:, None]
        return out.softmax(1)


class Clip:
    """How well frames fit a text and one another, as cosines of CLIP embeddings (arXiv 2103.00020)."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        if not (folder / "config.json").is_file():
            raise MissingWeights(f"{folder}: no CLIP model there; {CLIP_HINT}")
        from transformers import CLIPModel, CLIPTokenizer

        self.device = device
        self.model: Any = CLIPModel.from_pretrained(folder).to(device).eval()  # type: ignore[arg-type]
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.longest = self.model.config.text_config.max_position_embeddings
        settings_file = folder / "preprocessor_config.json"
        if not settings_file.is_file():
            raise MissingWeights(f"{settings_file}: no such file; {CLIP_HINT}")
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        self.mean, self.std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))

    @torch.no_grad()
    def images(self, frames: Tensor) -> Tensor:
        """Unit embeddings ``[B, T, D]`` of frames ``[B, 3, T, H, W]``."""
        size = self.model.config.vision_config.image_size
        pixels = resized(frames.to(self.device, torch.float32), size, antialias=True)
        pixels = rearrange(pixels, "b c t h w -> (b t) c h w")
        pixels = ((pixels + 1) / 2 - self.mean.to(pixels)) / self.std.to(pixels)
        pooled = torch.cat([self.model.vision_model(part).pooler_output for part in pixels.split(64)])
        embeddings = rearrange(self.model.visual_projection(pooled), "(b t) d -> b t d", b=len(frames))
        return F.normalize(embeddings, dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings ``[B, D]``."""
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.device)
        return F.normalize(self.model.text_projection(self.model.text_model(**tokens).pooler_output), dim=-1)


def text_similarity(images: Tensor, texts: Tensor) -> Tensor:
    """Mean cosine of every video's frames ``[B, T, D]`` and its text ``[B, D]``: ``[B]``."""
    return (images * texts[:, None]).sum(-1).mean(1)


def frame_consistency(images: Tensor) -> Tensor:
    """Mean cosine of neighbouring frames ``[B, T, D]``: ``[B]``."""
    return (images[:, 1:] * images[:, :-1]).sum(-1).mean(1)
