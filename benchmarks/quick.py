"""Is anything slower than it was? Small sizes, a few minutes; for use by hand before a release.

    python benchmarks/quick.py            # prints a table; exit code 1 where a ratio fell by more than 15%
    python benchmarks/quick.py --write    # after a deliberate change: write the ratios to quick.json

Every line compares ours with a plain implementation in turns of one run, so that the load of the machine cancels out:
the U-Net with diffusers' UNet3DConditionModel, the decoder with diffusers' AutoencoderKL on the same frames (without
temporal layers), and a chain of clips through the pipeline with nothing but its U-Net calls. Ratios also depend on the
processor: compare with ratios that were written on one of the same kind (``quick.json`` names it).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from contenders import ROOT, Contender, compete, fill, machine, serve
from models import BUNDLED, DTYPES, PROMPT, SIZES, make_unet, make_vae

STORED = Path(__file__).with_suffix(".json")
FALL = 0.15  # share of a ratio that may be lost to chance
STEPS, CLIPS = 4, 4  # of the chain
PAIRS = {  # name: what is measured, and what it is compared with
    "step, float32": ("unet-fp32", "unet3d-fp32"),
    "step, bf16": ("unet-bf16", "unet3d-bf16"),
    "decoding, float32": ("decoder-fp32", "image_decoder-fp32"),
    "decoding, bf16": ("decoder-bf16", "image_decoder-bf16"),
    "chain, float32": ("chain-fp32", "calls-fp32"),
}
SIZE = SIZES["small"]
FRAMES, SIDE = 8, SIZE.pixels // 8


def work_of(name: str) -> Callable[[], Any]:
    """What a contender does in a turn."""
    kind, _, precision = name.partition("-")
    return MAKERS[kind](DTYPES[precision])


def unet(dtype: torch.dtype) -> Callable[[], Any]:
    model, inputs = make_unet("small", dtype), unet_inputs(dtype)
    return lambda: model(*inputs)


def unet3d(dtype: torch.dtype) -> Callable[[], Any]:
    from unet_step import make_unet3d

    model, inputs = make_unet3d(SIZE.unet, dtype, "cpu"), unet_inputs(dtype)
    return lambda: model(*inputs)


def unet_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, FRAMES, SIDE, SIDE, generator=generator).to(dtype)
    text = torch.randn(2, 77, SIZE.unet["cross_attention_dim"], generator=generator).to(dtype)
    return latents, torch.full((2,), 500), text


def decoder(dtype: torch.dtype) -> Callable[[], Any]:
    model = make_vae("small", dtype)
    latents = torch.randn(1, 4, FRAMES, SIDE, SIDE).to(dtype)
    return lambda: model.decode(latents)


def image_decoder(dtype: torch.dtype) -> Callable[[], Any]:
    from diffusers import AutoencoderKL

    widths = SIZE.vae["block_out_channels"]
    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=SIZE.vae["layers_per_block"],
            norm_num_groups=32,
        ).to(dtype)
    fill(model.to_empty(device="cpu"))
    frames = torch.randn(FRAMES, 4, SIDE, SIDE).to(dtype)
    return lambda: model.decode(frames)


def bundled_pipeline(dtype: torch.dtype) -> Any:
    from vidrd_core import VidRDPipeline

    pipe = VidRDPipeline.from_pretrained(BUNDLED, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chain(dtype: torch.dtype) -> Callable[[], Any]:
    from vidrd_core.reuse.presets import PRESETS

    pipe = bundled_pipeline(dtype)
    given = {
        "num_clips": CLIPS, "num_frames": FRAMES, "height": 64, "width": 64, "num_inference_steps": STEPS,
        "guidance_scale": 4.0, "reuse": PRESETS["smooth"].reuse, "output_type": "latent",
    }  # fmt: skip
    return lambda: pipe(PROMPT, **given)


def calls(dtype: torch.dtype) -> Callable[[], Any]:
    """The U-Net calls of such a chain, with guidance, and nothing else."""
    model = bundled_pipeline(dtype).unet
    latents = torch.randn(2, 4, FRAMES, 8, 8).to(dtype)
    text = torch.randn(2, 77, model.config["cross_attention_dim"]).to(dtype)
    return lambda: [model(latents, torch.full((2,), 500), text) for _ in range(STEPS * CLIPS)]


MAKERS: dict[str, Callable[[torch.dtype], Callable[[], Any]]] = {
    "unet": unet,
    "unet3d": unet3d,
    "decoder": decoder,
    "image_decoder": image_decoder,
    "chain": chain,
    "calls": calls,
}


def fallen(ratios: dict[str, float], stored: dict[str, float]) -> list[str]:
    """The lines whose ratio is more than :data:`FALL` below the stored one."""
    return [name for name, ratio in ratios.items() if name in stored and ratio < stored[name] * (1 - FALL)]


def table(ratios: dict[str, float], stored: dict[str, float]) -> str:
    """Markdown: speed of ours, the plain implementation's being 1."""
    lines = ["| | speed, plain = 1 | before | |", "|---|---|---|---|"]
    fell = fallen(ratios, stored)
    for name, ratio in ratios.items():
        before = f"{stored[name]:.2f}" if name in stored else "-"
        lines.append(f"| {name} | {ratio:.2f} | {before} | {'slower than before' if name in fell else ''} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", nargs="+", choices=tuple(PAIRS), metavar="LINE", help="(all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="store the ratios instead of comparing them")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    if options.be:
        serve(work_of(options.be))
        return 0

    def starter(name: str) -> Callable[[], Contender]:
        return lambda: Contender(name, [sys.executable, __file__, "--be", name])

    ratios = {}
    for line in options.lines or PAIRS:
        ours, plain = PAIRS[line]
        found = compete([starter(ours), starter(plain)], options.rounds)
        ratios[line] = round(found[plain].median / found[ours].median, 3)
    known = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {"machine": "", "ratios": {}}
    stored = known["ratios"]
    print(f"{machine()}\nbefore: {known['machine']}\n\n{table(ratios, stored)}")
    if options.write:
        text = json.dumps({"machine": machine(), "ratios": {**stored, **ratios}}, indent=1)
        STORED.write_text(text + "\n", encoding="utf-8", newline="\n")
        return 0
    return int(bool(fallen(ratios, stored)))


if __name__ == "__main__":
    sys.exit(main())
