"""Peak memory of a long video against a short one: it must not grow with the number of clips.

python benchmarks/memory.py [--model FOLDER] [--device cpu|cuda]

Each video is made in a process of its own, as a call that returns its frames. Printed are the peak of the process (and
of the device), the finished frames, and the ratio of 32 clips to 4 after the frames' own bytes have been taken off; the
target is below 1.05. Without --model a small U-Net and decoder with random weights serve: memory does not depend on
what the weights are. The processes return freed memory to the system at once (glibc's settings): otherwise the peak is
that of the allocator's reserves, which vary by a fifth from run to run whatever the length.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from models import environment, peak_memory

TARGET = 1.05
# Wide enough that a clip's activations are what counts, and quick enough for two CPU cores.
UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 2}
VAE = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
PIXELS = 128


def make(clips: int, model: str | None, device: str) -> dict[str, Any]:
    """Make one video in this process and measure it."""
    pipe, options = _pipeline(model, device)
    pipe.set_progress_bar_config(disable=True)
    pipe(**options, num_clips=1)  # what a first call allocates for good is no one video's
    with peak_memory(device) as peak:
        frames = pipe(**options, num_clips=clips).frames
    return {"clips": clips, **vars(peak), "frames": frames.nbytes}


def _pipeline(model: str | None, device: str) -> tuple[Any, dict[str, Any]]:
    import torch
    from diffusers import DDIMScheduler

    from vidrd_core import VidRDAutoencoderKL, VidRDPipeline, VidRDUNet
    from vidrd_core.cli.models import load_pipeline

    options: dict[str, Any] = {"num_inference_steps": 4}
    if model is not None:
        pipe, _ = load_pipeline(model, device=device)
        return pipe, {**options, "prompt": "a red circle moves left"}
    torch.manual_seed(0)
    unet, vae = VidRDUNet(**UNET).eval(), VidRDAutoencoderKL(**VAE).eval()
    pipe = VidRDPipeline(unet, vae, None, None, DDIMScheduler(clip_sample=False)).to(device)
    text = torch.randn(1, 8, 32)
    return pipe, {**options, "prompt_embeds": text, "negative_prompt_embeds": text, "height": PIXELS, "width": PIXELS}


def main() -> int:
    """Measure both lengths; the exit code says whether the target was met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help='a model folder or "demo"; a random small model by default')
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clips:
        print(json.dumps(make(options.clips, options.model, options.device)))
        return 0
    rows = []
    for clips in (4, 32):
        command = [sys.executable, str(Path(__file__).resolve()), "--clips", str(clips), "--device", options.device]
        command += ["--model", options.model] if options.model else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment()).stdout
        rows.append(json.loads(output.splitlines()[-1]))
    print("clips  process MiB  device MiB  frames MiB  process less frames MiB")
    for row in rows:
        mib = {key: row[key] / 2**20 for key in ("process", "device", "frames")}
        rest = mib["process"] - mib["frames"]
        print(f"{row['clips']:5d} {mib['process']:12.1f} {mib['device']:11.1f} {mib['frames']:11.1f} {rest:24.1f}")
    short, long = rows
    ratios = {"process": (long["process"] - long["frames"]) / (short["process"] - short["frames"])}
    if short["device"]:
        ratios["device"] = long["device"] / short["device"]
    for name, ratio in ratios.items():
        print(f"{name}: 32 clips take {ratio:.3f} times what 4 clips take (target below {TARGET})")
    return int(max(ratios.values()) >= TARGET)


if __name__ == "__main__":
    sys.exit(main())
