"""A denoising step in ComfyUI against the pipeline's, alternating in one process. Runs in ComfyUI's own interpreter.

    ~/comfy/ComfyUI/.venv/bin/python benchmarks/comfyui_step.py
    ~/comfy/ComfyUI/.venv/bin/python benchmarks/comfyui_step.py --attention quad
    COMFYUI_PATH=TREE PYTHON_OF_COMFYUI benchmarks/comfyui_step.py --size released --device cuda --dtype bf16

The tree is COMFYUI_PATH, else the current folder if it is one, else ~/comfy/ComfyUI. ComfyUI's turn is what its
samplers do in a step, conditioning included, with the node pack's MODEL; the pipeline's is what sampling.denoising
does. Both have the same random weights, and their predictions are compared. The aim is a ratio of medians within 5%.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import machine, synchronize
from models import DTYPES, SIZES, model_folder
from rebuild_comparison import TREE, load_pack

AIM = 1.05
ATTENTION = {"own": [], "pytorch": ["--use-pytorch-cross-attention"], "quad": ["--use-quad-cross-attention"]}
SCALE = 4.0


def comfyui_step(folder: Path, options: argparse.Namespace, x: Any, texts: Any, sigma: float) -> Callable[[], Any]:
    """A step of ComfyUI's samplers, which returns the guided prediction of the clean latents."""
    import importlib

    import comfy.model_management
    import comfy.sampler_helpers
    import comfy.samplers

    loading = importlib.import_module("custom_nodes.VidRD.nodes.loading")
    patcher, _ = loading.load_unet(folder / "unet", options.dtype)
    comfy.model_management.load_models_gpu([patcher])
    patcher.pre_run()
    named = zip(("positive", "negative"), texts)
    conds = {name: comfy.sampler_helpers.convert_cond([[text.float(), {}]]) for name, text in named}
    conds = comfy.samplers.process_conds(patcher.model, x, conds, x.device)
    sigmas = torch.full((len(x),), sigma, device=x.device)
    return lambda: comfy.samplers.sampling_function(
        patcher.model, x, sigmas, conds["negative"], conds["positive"], SCALE, model_options=patcher.model_options
    )


def pipeline_step(folder: Path, options: argparse.Namespace, x: Any, texts: Any, sigma: float) -> Callable[[], Any]:
    """The same with the pipeline's U-Net: epsilon from the scaled latents, then the clean latents."""
    from vidrd_core import VidRDUNet

    dtype = DTYPES[options.dtype]
    unet = VidRDUNet.from_pretrained(folder / "unet", torch_dtype=dtype).to(options.device).eval()
    text = torch.cat(tuple(texts)).to(dtype)
    timestep = torch.tensor(options.timestep, device=x.device)

    def step() -> torch.Tensor:
        scaled = (x / (sigma**2 + 1) ** 0.5).to(dtype)
        cond, uncond = unet(torch.cat((scaled, scaled)), timestep, text).sample.float().chunk(2)
        return x - sigma * (uncond + SCALE * (cond - uncond))

    return step


def seconds_of(step: Callable[[], Any], device: str) -> float:
    synchronize(device)
    began = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - began


def table(seconds: dict[str, list[float]], error: float, options: argparse.Namespace) -> str:
    """Markdown: medians and ComfyUI's against the pipeline's."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lines = [
        f"{machine(options.device)}; {options.size} guidance step, {options.dtype}; ComfyUI at {TREE}, attention: "
        f"{options.attention}",
        "",
        "| step | s (median) | s (fastest) | pipeline = 1 |",
        "|---|---|---|---|",
    ]
    for name, values in seconds.items():
        ratio = medians[name] / medians["pipeline"]
        lines.append(f"| {name} | {medians[name]:.4f} | {min(values):.4f} | {ratio:.3f} |")
    return "\n".join([*lines, "", f"relative difference of the predictions: {error:.1e}"])


def main() -> int:
    """The exit code says whether ComfyUI's step is within the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--pixels", type=int, help="height and width (the size's own)")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--attention", choices=tuple(ATTENTION), default="own",
        help="what ComfyUI is started with: nothing (own), torch's kernel as the pipeline has, or slices (quad)",
    )  # fmt: skip
    options = parser.parse_args()
    options.timestep = 500
    load_pack(*ATTENTION[options.attention], device=options.device)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    pixels = options.pixels or SIZES[options.size].pixels
    torch.manual_seed(0)
    from vidrd_core.checkpoints.assembly import RELEASED_SCHEDULER as schedule

    ends = (schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5)
    kept = (1 - torch.linspace(*ends, 1000, dtype=torch.float64) ** 2).cumprod(0)[options.timestep]
    sigma = float(((1 - kept) / kept) ** 0.5)
    x = sigma * torch.randn(1, 4, options.frames, pixels // 8, pixels // 8, device=options.device)
    texts = torch.randn(2, 1, 77, SIZES[options.size].width, device=options.device)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = model_folder(Path(name) / "model", options.size)
        steps = {
            "pipeline": pipeline_step(folder, options, x, texts, sigma),
            "ComfyUI": comfyui_step(folder, options, x, texts, sigma),
        }
        out = {key: step() for key, step in steps.items()}  # also warms up
        seconds: dict[str, list[float]] = {key: [] for key in steps}
        for _ in range(options.rounds):
            for key, step in steps.items():
                seconds[key].append(seconds_of(step, options.device))
    error = float((out["ComfyUI"] - out["pipeline"]).norm() / out["pipeline"].norm())
    print(table(seconds, error, options))
    return int(statistics.median(seconds["ComfyUI"]) / statistics.median(seconds["pipeline"]) > AIM)


if __name__ == "__main__":
    sys.exit(main())
