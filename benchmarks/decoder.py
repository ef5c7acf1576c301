"""Decoding one clip against the machine's peak rates and the released code's decoder, with its temporal layers.

    python benchmarks/decoder.py                                     # small, a minute on any machine
    python benchmarks/decoder.py --size released --released CHECKOUT --released-packages FOLDER
    python benchmarks/decoder.py --size released --device cuda --contenders ours-bf16 ours-fp16

CHECKOUT and FOLDER as for unet_step.py. Weights are random; ratios are medians of turns taken in one run.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from contenders import Contender, compete, convolution_rate, fill, machine, matrix_rate, serve
from einops import rearrange
from models import DTYPES, SIZES, make_vae

BASE = "released-fp32"
SPEED_TARGET = 1.6  # times the released decoder's, in float32 on the CPU


def make_released(size: str, dtype: torch.dtype, device: str, checkout: Path) -> torch.nn.Module:
    """The released autoencoder; its package is imported past the authors' trainer, which it does not need."""
    for name in ("model", "vae"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name)]
        sys.modules[name] = package
    from vae.vae import TemporalAutoencoderKL  # type: ignore[import-not-found]

    config = SIZES[size].vae
    count = len(config["block_out_channels"])
    with torch.device("meta"):
        model = TemporalAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
            block_out_channels=config["block_out_channels"],
            layers_per_block=config["layers_per_block"],
            latent_channels=4,
            norm_num_groups=32,
            add_temp_conv=True,
        ).to(dtype)
    return fill(model.to_empty(device=device))


def count_flop(size: str, shape: Sequence[int]) -> int:
    """Floating-point operations of decoding ``[B, 4, T, h, w]``, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    from vidrd_core import VidRDAutoencoderKL

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        VidRDAutoencoderKL(**SIZES[size].vae).decode(torch.empty(*shape))
    return counter.get_total_flops()


def contender(options: argparse.Namespace, name: str) -> None:
    """Be one contender, in a process of its own."""
    kind, _, precision = name.partition("-")
    dtype, device, shape = DTYPES[precision], options.device, _shape(options)
    latents = torch.randn(shape, device=device).to(dtype)
    work: Callable[[], Any]
    if kind == "released":
        model = make_released(options.size, dtype, device, options.released)
        frames = rearrange(latents, "b c t h w -> (b t) c h w")
        work = lambda: model.decode(frames, num_frames=shape[2])  # noqa: E731
    else:
        model = make_vae(options.size, dtype, device)
        work = lambda: model.decode(latents)  # noqa: E731
    serve(work, device, parameters=sum(p.numel() for p in model.parameters()))


def _shape(options: argparse.Namespace) -> list[int]:
    pixels = options.pixels or SIZES[options.size].pixels
    return [1, 4, options.frames, pixels // 8, pixels // 8]


def table(options: argparse.Namespace, found: dict[str, Contender]) -> str:
    """Markdown: seconds, shares of the machine's rate of convolutions, speed against the released code and float32."""
    flop, base = count_flop(options.size, _shape(options)), found.get(BASE)
    used = {name.partition("-")[2] for name in found}
    rates = {
        name: (matrix_rate(DTYPES[name], options.device), convolution_rate(DTYPES[name], options.device))
        for name in sorted(used)
    }
    lines = [f"{machine(options.device)}; {flop / 1e12:.3f} TFLOP per clip; B C T h w {_shape(options)}", ""]
    lines += [
        f"- {name}: matrix products {matrix / 1e9:.0f} GFLOP/s, 3x3 convolutions {convolution / 1e9:.0f}"
        for name, (matrix, convolution) in rates.items()
    ]
    lines += [
        "",
        "| contender | parameters | s per clip | GFLOP/s | of convolution rate | speed, released-fp32 = 1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in found.items():
        rate = flop / entry.median
        speed = f"{base.median / entry.median:.2f}" if base else "-"
        lines.append(
            f"| {name} | {entry.facts['parameters'] / 1e6:.1f}M | {entry.median:.3f} | {rate / 1e9:.0f} | "
            f"{rate / rates[name.partition('-')[2]][1]:.0%} | {speed} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Let them take turns; the exit code says whether ours in float32 is as fast as aimed at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--contenders", nargs="+", default=["ours-fp32", "ours-bf16"], metavar="KIND-PRECISION",
        help="ours, released; fp32, bf16, fp16 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--released", type=Path, metavar="CHECKOUT", help="adds released-fp32 to the contenders")
    parser.add_argument("--released-packages", type=Path, metavar="FOLDER")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--pixels", type=int, help="height and width (the size's own)")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.be:
        contender(options, options.be)
        return 0
    names = list(options.contenders)
    if options.released and not any(name.startswith("released") for name in names):
        names.append(BASE)
    given = sys.argv[1:] if arguments is None else list(arguments)

    def starter(name: str) -> Callable[[], Contender]:
        packages = options.released_packages if name.startswith("released") else None
        environment = {"PYTHONPATH": str(packages)} if packages else None
        return lambda: Contender(name, [sys.executable, __file__, *given, "--be", name], environment)

    found = compete([starter(name) for name in names], options.rounds)
    print(table(options, found))
    both = options.device == "cpu" and {"ours-fp32", BASE} <= found.keys()
    return int(both and found[BASE].median / found["ours-fp32"].median < SPEED_TARGET)


if __name__ == "__main__":
    sys.exit(main())
