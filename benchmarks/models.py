"""Models with random weights in three sizes, and what measuring their memory takes; shared by the benchmarks.

Neither time nor memory depends on what the weights are.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import ROOT, fill

sys.path.insert(0, str(ROOT))
# The system gets freed memory back at once: otherwise a process's peak is that of the allocator's reserves, which vary
# by a fifth from run to run (glibc's settings; others ignore them).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BUNDLED = ROOT / "vidrd_core" / "demo_model"
PROMPT = "a red circle moves right over a dark blue background"


@dataclass(frozen=True)
class Size:
    """Configurations of a whole model."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    pixels: int

    @property
    def width(self) -> int:
        return int(self.text["hidden_size"])


def _text(hidden: int, layers: int, heads: int, vocabulary: int = 2048) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * hidden, "projection_dim": hidden, "vocab_size": vocabulary}


SIZES = {
    "tiny": Size(
        {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 2},
        {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 64},
        _text(32, 2, 2),
        64,
    ),
    "small": Size(
        {
            "block_out_channels": (64, 128),
            "layers_per_block": 1,
            "cross_attention_dim": 64,
            "attention_head_dim": (4, 8),
        },
        {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "sample_size": 128},
        _text(64, 2, 2),
        128,
    ),
    "released": Size(
        {
            "block_out_channels": (320, 640, 1280, 1280),
            "layers_per_block": 2,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
        },
        {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 256},
        _text(1024, 23, 16, 49408),
        256,
    ),
}


def make_unet(size: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    from vidrd_core.models.unet import VidRDUNet
    from vidrd_core.runtime.allocator import keep_freed_memory

    keep_freed_memory(device)
    with torch.device("meta"):
        model = VidRDUNet(**SIZES[size].unet, sample_size=SIZES[size].pixels // 8, dtype=dtype)
    return fill(model.to_empty(device=device))


def make_vae(size: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    from vidrd_core.models.autoencoder import VidRDAutoencoderKL
    from vidrd_core.runtime.allocator import keep_freed_memory

    keep_freed_memory(device)
    with torch.device("meta"):
        model = VidRDAutoencoderKL(**SIZES[size].vae, dtype=dtype)
    return fill(model.to_empty(device=device))


def make_pipeline(size: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A whole pipeline, no progress bars: a size's with random weights, "bundled", or a model folder's."""
    if size not in SIZES:
        from vidrd_core import VidRDPipeline
        from vidrd_core.checkpoints import load_pipeline_parts
        from vidrd_core.runtime.allocator import keep_freed_memory

        keep_freed_memory(device)
        folder = BUNDLED if size == "bundled" else size
        pipe = VidRDPipeline(**load_pipeline_parts(folder, dtype=dtype, device=device))
        pipe.set_progress_bar_config(disable=True)
        return pipe
    return _random_pipeline(size, dtype, device)


def _random_pipeline(size: str, dtype: torch.dtype, device: str) -> Any:
    from diffusers import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from vidrd_core import VidRDPipeline
    from vidrd_core.checkpoints.assembly import RELEASED_SCHEDULER

    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer")
    last = SIZES[size].text["vocab_size"] - 1
    config = CLIPTextConfig(
        **SIZES[size].text,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=last - 1,
        eos_token_id=last,
        pad_token_id=last,
    )
    with torch.device("meta"):
        text_encoder = CLIPTextModel(config)
    text_encoder = fill(text_encoder.to_empty(device="cpu"))
    for name, buffer in text_encoder.named_buffers():
        assert name.endswith("position_ids")  # the only one
        buffer.copy_(torch.arange(buffer.shape[-1]))
    pipe = VidRDPipeline(
        unet=make_unet(size, dtype, device),
        vae=make_vae(size, dtype, device),
        text_encoder=text_encoder.to(device, dtype).eval(),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**RELEASED_SCHEDULER),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_folder(path: Path, size: str, dtype: torch.dtype = torch.float32) -> Path:
    """A model folder of random weights at ``path``, written unless it is there."""
    if not (path / "model_index.json").is_file():
        make_pipeline(size, dtype).save_pretrained(path)
    return path


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process whose memory is measured."""
    return {**os.environ, **ALLOCATOR, **changes}


@dataclass
class Peak:
    """Bytes: the most that the process held, and its device."""

    process: int = 0
    device: int = 0


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measure the peak of a ``with`` block: the process's resident memory, and what torch has allocated on a GPU."""
    import psutil

    process, done, found = psutil.Process(), threading.Event(), Peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)

    def watch() -> None:
        while not done.wait(0.005):
            found.process = max(found.process, process.memory_info().rss)

    found.process = process.memory_info().rss
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        if device.startswith("cuda"):
            found.device = torch.cuda.max_memory_allocated(device)
