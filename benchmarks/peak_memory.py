"""Peak device memory of the released size by precision, storage and offloading.

    python benchmarks/peak_memory.py --device cuda --processes 8    # the table, some minutes; 8 rows at a time
    python benchmarks/peak_memory.py                                # tiny, to see that it runs: no figures of a card
    python benchmarks/peak_memory.py --estimate                     # the released size's tensors, without a card
    python benchmarks/peak_memory.py --factor                       # ComfyUI's memory_usage_factor, from U-Net calls

Weights are random: memory does not depend on them. Each row makes two chained clips of two steps and decodes them, all
in one process of its own. "allocated" is what torch's tensors took at most, "reserved" what its allocator held; the
driver's own context (0.3 to 0.6 GiB) comes on top. The aim is 256x256x8 in 4 GiB and 512x512x16 in 8 GiB: on a larger
card memory is limited to that, so that the result holds for the smaller one. The exit code says whether each aim is met
by some row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from contenders import machine
from models import DTYPES, PROMPT, environment, make_pipeline, peak_memory

SHAPES = ((256, 8), (512, 16))  # pixels, frames
STORAGES = ("same", "fp8")
OFFLOADS = ("none", "model", "sequential")
AIMS = {(256, 8): 4.0, (512, 16): 8.0}  # GiB
CONTEXT = 0.5  # GiB, of the driver
# U-Net calls whose memory tells ComfyUI's factor: size, type, videos (both halves of a guidance step are 2), pixels,
# frames.
CALLS = (
    ("bundled", "fp32", 2, 64, 8),
    ("bundled", "fp32", 2, 128, 16),
    ("released", "fp32", 2, 256, 8),
    ("released", "bf16", 2, 256, 8),
)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    from vidrd_core.runtime.memory import MemoryOptions, save_memory

    hold_to_aim(options)
    pipe = make_pipeline(options.size, DTYPES[options.dtype])
    memory = MemoryOptions(options.offload, options.storage, options.split_guidance)
    try:
        return _measure(save_memory(pipe, memory, options.device), options)
    except torch.OutOfMemoryError:
        return {"fits": False}


def _measure(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    from vidrd_core.sampling.settings import SamplingSettings

    sampling = SamplingSettings(options.frames, options.pixels, options.pixels, 2, 4.0)
    with peak_memory(options.device) as peak:
        frames = sum(piece.shape[2] for piece in pipe.decode_clips(pipe.stream(PROMPT, sampling, 2), sampling))
    assert frames == 2 * options.frames
    reserved = torch.cuda.max_memory_reserved(options.device) if options.device.startswith("cuda") else 0
    return {**vars(peak), "reserved": reserved}


def hold_to_aim(options: argparse.Namespace) -> None:
    """Let a card larger than the aim have no more memory than one of that size."""
    aim = AIMS.get((options.pixels, options.frames))
    if aim is None or not options.device.startswith("cuda"):
        return
    total = torch.cuda.get_device_properties(options.device).total_memory
    share = (aim - CONTEXT) * 2**30 / total
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share, torch.device(options.device).index or 0)


def estimate() -> str:
    """Markdown: the tensors of a step and of decoding at released size in bf16, weights left out."""
    from allocations import tensor_peak

    from vidrd_core import VidRDAutoencoderKL, VidRDUNet

    made: dict[str, Any] = {"operations": without_matrices(), "dtype": torch.bfloat16, "device": "meta"}
    unet, vae = VidRDUNet(**made).eval(), VidRDAutoencoderKL(**made).eval()
    lines = [
        "Tensors in GiB, counted without a device; weights, work space and the driver's context come on top",
        "",
        "| pixels, frames | step, both halves | step, split guidance | decoding a window |",
        "|---|---|---|---|",
    ]
    for pixels, frames in SHAPES:
        with torch.device("meta"):
            x = torch.empty(2, 4, frames, pixels // 8, pixels // 8, dtype=torch.bfloat16)
            text = torch.empty(2, 77, 1024, dtype=torch.bfloat16)
        works = (lambda: unet(x, 500, text), lambda: unet(x[:1], 500, text[:1]), lambda: vae.decode(x[:1]))  # noqa: B023
        peaks = " | ".join(f"{tensor_peak(work) / 2**30:.2f}" for work in works)
        lines.append(f"| {pixels}x{pixels}x{frames} | {peaks} |")
    return "\n".join(lines)


def factor_of(nbytes: int, dtype: str, videos: int, pixels: int, frames: int) -> float:
    """ComfyUI's ``memory_usage_factor`` by which ``BaseModel.memory_required`` (0.3.64) asks for ``nbytes``.

    Where attention keeps no matrix of weights it takes ``area * itemsize * 0.01 * factor`` MiB, the area being the
    number of latent pixels of all frames of all videos.
    """
    area = videos * frames * (pixels // 8) ** 2
    return nbytes / (area * DTYPES[dtype].itemsize * 0.01 * 2**20)


def counted_call(config: dict[str, Any], dtype: torch.dtype, latents: Sequence[int]) -> int:
    """Bytes of tensors of a U-Net call beyond its weights, counted on the meta device, for latents of this shape."""
    from allocations import tensor_peak

    from vidrd_core import VidRDUNet

    unet = VidRDUNet(**{**config, "operations": without_matrices(), "dtype": dtype, "device": "meta"}).eval()
    with torch.device("meta"):
        x = torch.empty(*latents, dtype=dtype)
        text = torch.empty(latents[0], 77, unet.config.cross_attention_dim, dtype=dtype)
    return tensor_peak(lambda: unet(x, 500, text))


def without_matrices() -> SimpleNamespace:
    """torch's layers, with attention that keeps no matrix of weights, as a card's kernels, unlike the meta device's."""
    leaves = {name: getattr(torch.nn, name) for name in ("Linear", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm")}
    return SimpleNamespace(**leaves, attention_function=lambda q, k, v, heads: torch.empty_like(q))


def measure_call(size: str, dtype: str, videos: int, pixels: int, frames: int) -> dict[str, Any]:
    """What one U-Net call takes beyond its weights, in this process on the CPU: tensors counted, memory resident."""
    import psutil
    from contenders import fill
    from models import BUNDLED, SIZES

    from vidrd_core import VidRDUNet

    if size == "bundled":
        unet = VidRDUNet.from_pretrained(BUNDLED / "unet", torch_dtype=DTYPES[dtype]).eval()
    else:
        with torch.device("meta"):
            unet = VidRDUNet(**SIZES[size].unet, dtype=DTYPES[dtype])
        unet = fill(unet.to_empty(device="cpu"))
    x = torch.randn(videos, 4, frames, pixels // 8, pixels // 8).to(DTYPES[dtype])
    text = torch.randn(videos, 77, unet.config.cross_attention_dim).to(DTYPES[dtype])
    before = psutil.Process().memory_info().rss
    start = time.process_time()
    with peak_memory() as peak:
        unet(x, 500, text)
    seconds = time.process_time() - start
    tensors = counted_call(dict(unet.config), DTYPES[dtype], x.shape)
    return {"tensors": tensors, "resident": peak.process - before, "seconds": seconds}


def factors(calls: Sequence[tuple[str, str, int, int, int]]) -> str:
    """Markdown: the calls' memory and the factor that each asks for, every call in a process of its own."""
    lines = [
        machine("cpu"),
        "",
        "| U-Net | videos, pixels, frames | tensors MiB | factor | resident MiB | factor | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for call in calls:
        command = [sys.executable, str(Path(__file__).resolve()), "--call", json.dumps(call)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment())
        found = json.loads(done.stdout.splitlines()[-1])
        size, dtype, videos, pixels, frames = call
        sizes = (found["tensors"], found["resident"])
        cells = " | ".join(f"{n / 2**20:.1f} | {factor_of(n, *call[1:]):.2f}" for n in sizes)
        shape = f"{videos} x {pixels}x{pixels}x{frames}"
        lines.append(f"| {size}, {dtype} | {shape} | {cells} | {found['seconds']:.1f} |")
    return "\n".join(lines)


def table(rows: Sequence[tuple[dict[str, Any], dict[str, Any] | None]], device: str, dtype: str) -> str:
    """Markdown; a row of None was not measured."""
    lines = [
        machine(device),
        "",
        f"computed in {dtype}",
        "",
        "| pixels, frames | U-Net weights | offload | guidance | host GiB | allocated GiB | reserved GiB | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, found in rows:
        name = f"{case['pixels']}x{case['pixels']}x{case['frames']}"
        storage = dtype if case["storage"] == "same" else case["storage"]
        guidance = "split" if case["split_guidance"] else "both halves"
        aim = AIMS.get((case["pixels"], case["frames"]))
        figures = "not yet measured | - | - | -"
        if found is not None and not found.get("fits", True):
            figures = f"does not fit | - | - | {'-' if aim is None else f'{aim:g} GiB: missed'}"
        elif found is not None:
            gib = {key: value / 2**30 for key, value in found.items()}
            if found["device"]:
                met = "-" if aim is None else f"{aim:g} GiB: {'met' if meets_aim(case, found) else 'missed'}"
                figures = f"{gib['process']:.2f} | {gib['device']:.2f} | {gib['reserved']:.2f} | {met}"
            else:
                figures = f"{gib['process']:.2f} | not yet measured | - | -"
        lines.append(f"| {name} | {storage} | {case['offload']} | {guidance} | {figures} |")
    return "\n".join(lines)


def meets_aim(case: dict[str, Any], found: dict[str, Any] | None) -> bool:
    """Whether a row fits the card that its size is to fit."""
    aim = AIMS.get((case["pixels"], case["frames"]))
    measured = found is not None and found.get("fits", True)
    return aim is not None and measured and found["reserved"] / 2**30 + CONTEXT <= aim


def exit_code(rows: Sequence[tuple[dict[str, Any], dict[str, Any] | None]], on_card: bool) -> int:
    """0 where every row has its answer and, on a card, every aim is met by some row."""
    met = {(case["pixels"], case["frames"]) for case, found in rows if meets_aim(case, found)}
    return int(any(found is None for _, found in rows) or (on_card and met != set(AIMS)))


def cases(on_card: bool) -> list[dict[str, Any]]:
    """The rows: everything for a card; elsewhere tiny ones, without what needs a memory of its own."""
    found = []
    for pixels, frames in SHAPES if on_card else ((64, 8),):
        for storage in STORAGES:
            for offload in OFFLOADS if on_card else OFFLOADS[:2]:
                for split in (False, True) if offload == "none" or not on_card else (True,):
                    row = {"pixels": pixels, "frames": frames, "storage": storage}
                    found.append({**row, "offload": offload, "split_guidance": split})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--processes", type=int, default=1, help="rows measured at a time, where they fit together")
    parser.add_argument("--estimate", action="store_true", help="only count tensors, without a device")
    parser.add_argument("--factor", action="store_true", help="only measure what ComfyUI's memory_usage_factor must be")
    parser.add_argument("--call", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.estimate:
        print(estimate())
        return 0
    if options.call:
        print(json.dumps(measure_call(*options.call)))
        return 0
    if options.factor:
        print(factors(CALLS))
        return 0
    on_card = options.device.startswith("cuda")
    options.size = "released" if on_card else "tiny"
    if options.row:
        vars(options).update(options.row)
        print(json.dumps(measure(options)))
        return 0

    def figures(case: dict[str, Any]) -> dict[str, Any] | None:
        command = [sys.executable, str(Path(__file__).resolve()), "--device", options.device, "--dtype", options.dtype]
        command += ["--row", json.dumps(case)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment())
        # A row that failed, for another reason than memory, has no figures; the others still count.
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None

    with ThreadPoolExecutor(options.processes) as pool:
        found = list(zip(cases(on_card), pool.map(figures, cases(on_card)), strict=True))
    print(table(found, options.device, options.dtype))
    if not on_card:
        print(
            "\nNo CUDA device: these are a tiny model's figures on this CPU; the released size's are not yet measured."
        )
    return exit_code(found, on_card)


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
