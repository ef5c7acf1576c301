"""Time of one denoising step by kind of operation, and the floor: its operations at the machine's peak rate.

    python benchmarks/profile_step.py                                  # tiny
    python benchmarks/profile_step.py --size bundled --dtype bf16      # the bundled model
    python benchmarks/profile_step.py --size released --dtype bf16 --output profile.json
    python benchmarks/profile_step.py --decoder                        # decoding a clip instead

Times are of torch's profiler (each operation without those it calls); FILE, for a trace viewer, is the trace. The floor
is FLOP of convolutions and matrix products, counted, divided by the measured rate of either.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from contenders import best_time, convolution_rate, machine, matrix_rate
from models import DTYPES, SIZES, make_pipeline, make_unet, make_vae
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

KINDS = (  # the first whose word is in the name of an operation, or of a card's kernel
    ("copies and layout", ("nchwtonhwc", "nhwctonchw")),
    ("convolution", ("conv", "mkldnn_convolution", "im2col", "fprop_implicit")),
    ("attention", ("attention", "attn", "softmax", "bmm", "sdpa", "fmha")),
    ("matrix product", ("addmm", "aten::mm", "gemm", "matmul", "linear", "cutlass", "nvjet")),
    ("normalisation", ("norm", "moments")),
    (
        "copies and layout",
        ("copy", "cat", "contiguous", "clone", "transpose", "permute", "memcpy", "memset", "to_copy"),
    ),
    ("element by element", ("add", "mul", "silu", "gelu", "div", "sub", "elementwise", "vectorized", "exp", "fill")),
)


def kind_of(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, words in KINDS if any(word in lowered for word in words)), "other")


def make_work(options: argparse.Namespace) -> tuple[Callable[[], Any], list[int]]:
    """One guidance step, or decoding one clip, and the shape of its latents."""
    dtype, device = DTYPES[options.dtype], options.device
    if options.size == "bundled":
        pipe = make_pipeline(options.size, dtype, device)
        model, usual = pipe.vae if options.decoder else pipe.unet, pipe.default_size
    else:
        make = make_vae if options.decoder else make_unet
        model, usual = make(options.size, dtype, device), SIZES[options.size].pixels
    pixels = options.pixels or usual
    shape = [1 if options.decoder else 2, 4, options.frames, pixels // 8, pixels // 8]
    x = torch.randn(shape, device=device).to(dtype)
    if options.decoder:
        return lambda: model.decode(x), shape
    text = torch.randn(2, 77, model.config.cross_attention_dim, device=device).to(dtype)
    return lambda: model(x, 500, text), shape


def times_by_kind(work: Callable[[], Any], device: str, output: Path | None) -> dict[str, tuple[float, int]]:
    """Seconds and calls of each kind in one run."""
    on_card = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    work()
    with profile(activities=activities) as trace:
        work()
    if output is not None:
        trace.export_chrome_trace(str(output))
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in trace.key_averages():
        micros = event.self_device_time_total if on_card else event.self_cpu_time_total
        # On a card its kernels count, not the calls that launched them.
        if on_card and event.device_type == torch.autograd.DeviceType.CPU:
            continue
        entry = found[kind_of(event.key)]
        entry[0] += micros / 1e6
        entry[1] += event.count
    return {kind: (seconds, int(count)) for kind, (seconds, count) in found.items()}


def floor(work: Callable[[], Any], dtype: torch.dtype, device: str) -> tuple[float, float, float]:
    """FLOP of convolutions, FLOP of matrix products, and the least seconds that both need here."""
    with FlopCounterMode(display=False) as counter:
        work()
    flop = counter.get_flop_counts()["Global"]
    convolutions = sum(count for name, count in flop.items() if "conv" in str(name))
    others = sum(flop.values()) - convolutions
    size = 8192 if device.startswith("cuda") else 1024
    seconds = convolutions / convolution_rate(dtype, device) + others / matrix_rate(dtype, device, size)
    return convolutions, others, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("bundled", *SIZES), default="tiny")
    parser.add_argument("--decoder", action="store_true")
    parser.add_argument("--pixels", type=int, help="height and width (the size's own)")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the trace (.json)")
    options = parser.parse_args(arguments)
    with torch.no_grad():
        work, shape = make_work(options)
        convolutions, products, least = floor(work, DTYPES[options.dtype], options.device)
        whole = best_time(work, options.device, 3)
        kinds = times_by_kind(work, options.device, options.output)
    total = sum(seconds for seconds, _ in kinds.values())
    what = "decoding a clip" if options.decoder else "guidance step"
    print(f"{machine(options.device)}; {options.size} {what}, {options.dtype}, latents B C T h w {shape}\n")
    print("| kind of operation | s | share | calls |\n|---|---|---|---|")
    for kind, (seconds, calls) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        print(f"| {kind} | {seconds:.4f} | {seconds / total:.0%} | {calls} |")
    print(
        f"\n{convolutions / 1e12:.4f} TFLOP of convolutions and {products / 1e12:.4f} of matrix products: at the "
        f"machine's own rates {least:.4f} s; without the profiler it takes {whole:.4f} s, {whole / least:.2f} times "
        "that floor"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
