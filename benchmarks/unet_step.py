"""One denoising step with guidance (batch 2) against the machine's peak rates, diffusers' U-Net and the released code.

    python benchmarks/unet_step.py --rounds 5
    python benchmarks/unet_step.py --released CHECKOUT --released-packages FOLDER
    python benchmarks/unet_step.py --device cuda --contenders ours-bf16 graphs-bf16 compiled-bf16 \\
        released-bf16 unet3d-bf16
    python benchmarks/unet_step.py --size small          # a minute on any machine

CHECKOUT is a clone of the authors' repository. It needs einops and diffusers 0.14; FOLDER is where they were installed:
    pip install --no-deps --target FOLDER diffusers==0.14.0 einops==0.8.2 huggingface_hub==0.25.2 \\
        transformers==4.44.2 tokenizers==0.19.1
Weights are random. Ratios are medians of alternating turns in one run. "first call" is a contender's first
step, compiling included.
"""

from __future__ import annotations

import argparse
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import ROOT, Contender, compete, convolution_rate, fill, machine, matrix_rate, serve

RELEASED: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "layers_per_block": 2,
}
SMALL: dict[str, Any] = {
    "block_out_channels": (64, 128),
    "attention_head_dim": (4, 8),
    "cross_attention_dim": 64,
    "layers_per_block": 1,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def blocks(config: dict[str, Any], kind: str) -> dict[str, tuple[str, ...]]:
    """Names of the blocks as the other two implementations want them."""
    count = len(config["block_out_channels"])
    down = (f"CrossAttnDownBlock{kind}",) * (count - 1) + (f"DownBlock{kind}",)
    up = (f"UpBlock{kind}",) + (f"CrossAttnUpBlock{kind}",) * (count - 1)
    return {"down_block_types": down, "up_block_types": up}


def make_ours(config: dict[str, Any], dtype: torch.dtype, device: str) -> torch.nn.Module:
    sys.path.insert(0, str(ROOT))
    from vidrd_core.models.unet import VidRDUNet

    with torch.device("meta"):
        model = VidRDUNet(**config, norm_num_groups=32).to(dtype)
    return fill(model.to_empty(device=device))


def make_unet3d(config: dict[str, Any], dtype: torch.dtype, device: str) -> torch.nn.Module:
    from diffusers import UNet3DConditionModel

    heads = config["attention_head_dim"]
    width = config["block_out_channels"][0] // heads[0]  # here it is the width of a head, the same in all blocks
    with torch.device("meta"):
        model = UNet3DConditionModel(
            **{**config, "attention_head_dim": width}, **blocks(config, "3D"), norm_num_groups=32
        ).to(dtype)
    return fill(model.to_empty(device=device))


def make_released(config: dict[str, Any], dtype: torch.dtype, device: str, checkout: Path) -> torch.nn.Module:
    package = types.ModuleType("model")  # the package's own __init__ wants the authors' trainer
    package.__path__ = [str(checkout / "model")]
    sys.modules["model"] = package
    from model.modules.unet import UNet3DConditionModel  # type: ignore[import-not-found]

    with torch.device("meta"):
        model = UNet3DConditionModel(
            **config,
            **blocks(config, "3D"),
            use_linear_projection=True,
            add_temp_embed=True,
            add_temp_conv=True,
        ).to(dtype)
    return fill(model.to_empty(device=device))


def count_flop(config: dict[str, Any], shape: list[int]) -> int:
    """Floating-point operations of one call of ours, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    sys.path.insert(0, str(ROOT))
    from vidrd_core.models.unet import VidRDUNet

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = VidRDUNet(**config, norm_num_groups=32)
        model(torch.empty(shape), 500, torch.empty(shape[0], 77, config["cross_attention_dim"]))
    return counter.get_total_flops()


def contender(arguments: argparse.Namespace, name: str) -> None:
    """Be one contender, in a process of its own."""
    kind, _, precision = name.partition("-")
    config, dtype, device = _config(arguments), DTYPES[precision], arguments.device
    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "ours": lambda: make_ours(config, dtype, device),
        "compiled": lambda: make_ours(config, dtype, device),
        "graphs": lambda: make_ours(config, dtype, device),
        "unet3d": lambda: make_unet3d(config, dtype, device),
        "released": lambda: make_released(config, dtype, device, arguments.released),
    }
    model = makers[kind]()
    if kind == "compiled":
        model.compile(mode="max-autotune-no-cudagraphs" if device == "cpu" else "reduce-overhead")
    elif kind == "graphs":
        from vidrd_core.runtime.compiling import GRAPHS, compile_unet

        compile_unet(types.SimpleNamespace(unet=model), GRAPHS)
    shape = _shape(arguments)
    x = torch.randn(shape, device=device).to(dtype)
    text = torch.randn(shape[0], 77, config["cross_attention_dim"], device=device).to(dtype)
    times = torch.full((shape[0],), 500, device=device)
    parameters = sum(p.numel() for p in model.parameters())
    serve(lambda: model(x, times, text), device, parameters=parameters)


def _config(arguments: argparse.Namespace) -> dict[str, Any]:
    return RELEASED if arguments.size == "released" else SMALL


def _shape(arguments: argparse.Namespace) -> list[int]:
    return [2, 4, arguments.frames, arguments.pixels // 8, arguments.pixels // 8]


def table(arguments: argparse.Namespace, found: dict[str, Contender]) -> str:
    """Markdown: seconds, share of the machine's rates, ratios to ours in float32 and to the released code."""
    flop = count_flop(_config(arguments), _shape(arguments))
    rates = {name: _rates(dtype, arguments.device) for name, dtype in DTYPES.items() if any(name in n for n in found)}
    lines = [
        f"{machine(arguments.device)}; {flop / 1e12:.2f} TFLOP per step; batch, channels, frames, height, width "
        f"{_shape(arguments)}",
        "",
        *(
            f"- {name}: matrix products {m / 1e9:.0f} GFLOP/s, 3x3 convolutions {c / 1e9:.0f}"
            for name, (m, c) in rates.items()
        ),
        "",
        "| contender | parameters | s per step | GFLOP/s | of matrix rate | released-fp32 = 1 | ours-fp32 = 1 "
        "| first call s | pays off after N steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in found.items():
        rate = flop / entry.median
        # The other U-Net does other work: its share of the machine's rate would compare unlike things.
        own = not name.startswith("unet3d")
        share = f"{rate / 1e9:.0f} | {rate / rates[name.partition('-')[2]][0]:.0%}" if own else "- | -"
        ratios = [f"{found[base].median / entry.median:.2f}" if base in found else "-" for base in BASES]
        lines.append(
            f"| {name} | {entry.facts['parameters'] / 1e6:.0f}M | {entry.median:.3f} | {share} | "
            + " | ".join(ratios)
            + f" | {entry.facts['first']:.1f} | {pays_off(entry, found.get('ours-' + name.partition('-')[2]))} |"
        )
    return "\n".join(lines)


def pays_off(compiled: Contender, plain: Contender | None) -> str:
    """After how many steps, the first included, a compiled U-Net has taken no longer than ours in its precision."""
    if plain is None or not compiled.name.startswith(("compiled", "graphs")):
        return "-"
    saved = plain.median - compiled.median
    lost = compiled.facts["first"] - plain.facts["first"]
    return "never" if saved <= 0 < lost else str(1 + max(0, math.ceil(lost / saved) if lost > 0 else 0))


BASES = ("released-fp32", "ours-fp32")


def _rates(dtype: torch.dtype, device: str) -> tuple[float, float]:
    return matrix_rate(dtype, device, 8192 if device.startswith("cuda") else 2048), convolution_rate(dtype, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=["ours-fp32", "ours-bf16"],
        metavar="KIND-PRECISION",
        help="ours, compiled, graphs, unet3d, released; fp32, bf16, fp16 (default: %(default)s)",
    )
    parser.add_argument("--released", type=Path, metavar="CHECKOUT", help="adds released-fp32 to the contenders")
    parser.add_argument("--released-packages", type=Path, metavar="FOLDER")
    parser.add_argument("--size", choices=("released", "small"), default="released")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be:
        contender(arguments, arguments.be)
        return
    names = list(arguments.contenders)
    if arguments.released and not any(name.startswith("released") for name in names):
        names.append("released-fp32")
    options = sys.argv[1:]

    def starter(name: str) -> Callable[[], Contender]:
        packages = arguments.released_packages if name.startswith("released") else None
        environment = {"PYTHONPATH": str(packages)} if packages else None
        return lambda: Contender(name, [sys.executable, __file__, *options, "--be", name], environment)

    print(table(arguments, compete([starter(name) for name in names], arguments.rounds)))


if __name__ == "__main__":
    main()
