"""What the nodes cost beside the network, in a long chain of clips. Runs inside ComfyUI's interpreter.

    ~/comfy/ComfyUI/.venv/bin/python benchmarks/node_overhead.py --clips 100
    ~/comfy/ComfyUI/.venv/bin/python benchmarks/node_overhead.py --clips 20 --profile   # and where that time goes

A chain of *Reuse and Diffuse* and one *Many Clips* with a run name make as many clips of the bundled model. Of each
clip's time, what is not spent in the U-Net's forward passes is overhead: the sampler, conditioning, hashes, copies of
states, files. Shown for the first and the last fifth of the clips too, since what is copied could grow with the video;
these are shares of one run, so that the load of the machine cancels out. The tree is COMFYUI_PATH, else
~/comfy/ComfyUI.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from contenders import machine
from rebuild_comparison import load_pack

AIM = 0.05
PROMPT = "a red circle moves right over a dark blue background"
FRAMES, SIDE = 8, 64
SHOWN = 15  # lines of a profile
WARM_UP = 2  # clips


class Clock:
    """Seconds in the U-Net, and in all, between calls of :meth:`lap`."""

    def __init__(self, model: Any):
        self.inside = 0.0
        self.laps: list[tuple[float, float]] = []  # in all, in the U-Net
        self.began = time.perf_counter()
        network = model.model.diffusion_model
        forward = network.forward

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return forward(*given, **named)
            finally:
                self.inside += time.perf_counter() - began

        network.forward = timed

    def start(self) -> None:
        self.laps, self.inside, self.began = [], 0.0, time.perf_counter()

    def lap(self) -> None:
        now = time.perf_counter()
        self.laps.append((now - self.began, self.inside))
        self.began, self.inside = now, 0.0

    def share(self, first: int, last: int) -> float:
        """The overhead of laps ``first`` to ``last``."""
        total, inside = (sum(column) for column in zip(*self.laps[first:last], strict=True))
        return 1 - inside / total


def call(nodes: dict[str, Any], name: str, **inputs: Any) -> Any:
    """A node's outputs; inputs that are not given are its defaults."""
    node = nodes[name]
    node.INPUT_TYPES()
    defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    return node.execute(**{**defaults, **inputs}).args


class Chains:
    """The bundled model and what its clips are made with.

    Args:
        steps: of DDIM, for each clip.
    """

    def __init__(self, nodes: dict[str, Any], dtype: str, steps: int):
        self.nodes = nodes
        self.sampling = {"steps": steps, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
        loaded = call(nodes, "VidRDLoadModel", model_name="bundled demo model", weight_dtype=dtype)
        self.model, self.clip = loaded[:2]
        encoded = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in (PROMPT, "")]
        self.positive, self.negative = encoded
        self.given = {"model": self.model, "negative": self.negative, "cfg": 4.0}
        (self.empty,) = call(nodes, "VidRDEmptyLatent", width=SIDE, height=SIDE, frames=FRAMES, batch_size=1)

    def nodes_in_a_row(self, clips: int, clock: Clock) -> None:
        """One node for each clip."""
        given = {**self.given, "positive": self.positive}
        (video,) = call(self.nodes, "VidRDSampleFirstClip", **given, **self.sampling, latent=self.empty, seed=1)
        clock.lap()
        for number in range(1, clips):
            video, *_ = call(self.nodes, "VidRDReuseAndDiffuse", **given, prior=video, seed=1 + number)
            clock.lap()

    def many_clips(self, clips: int, clock: Clock) -> None:
        """All in one node, which keeps each on disk."""
        import importlib

        store = importlib.import_module("custom_nodes.VidRD.nodes.clip_store").ClipStore
        save = store.save

        def saved(*given: Any) -> None:
            save(*given)
            clock.lap()

        store.save = saved
        run = {"prior": self.empty, "prompts": PROMPT, "num_clips": clips, "seed": 1, "run_name": "overhead"}
        call(self.nodes, "VidRDManyClips", **self.given, **self.sampling, **run, clip=self.clip)
        store.save = save


def profiled(work: Callable[[], None]) -> None:
    """Run it, and print the functions of ours and of ComfyUI's that take longest by themselves."""
    profile = cProfile.Profile()
    profile.runcall(work)
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(SHOWN)


def main() -> int:
    """The exit code says whether the overhead of a whole chain is within the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument(
        "--profile", action="store_true", help="print where the time goes; the shares are then too large"
    )
    options = parser.parse_args()
    nodes = load_pack()
    import folder_paths

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    lines = ["| clips by | overhead | first fifth | last fifth | s per clip |", "|---" * 5 + "|"]
    worst = 0.0
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder_paths.set_output_directory(name)
        chains = Chains(nodes, options.dtype, options.steps)
        clock, clips, fifth = Clock(chains.model), options.clips, max(1, options.clips // 5)
        for shown, make in (("Reuse and Diffuse", chains.nodes_in_a_row), ("Many Clips", chains.many_clips)):
            make(WARM_UP, clock)
            clock.start()
            # Clips more than asked for: those of the warm-up, which a run with a name finds again.
            work = partial(make, clips + WARM_UP, clock)
            profiled(work) if options.profile else work()
            clock.laps = clock.laps[-clips:]
            shares = [clock.share(*part) for part in ((0, clips), (0, fifth), (clips - fifth, clips))]
            seconds = sum(total for total, _ in clock.laps) / clips
            lines.append(f"| {shown} | {' | '.join(f'{share:.1%}' for share in shares)} | {seconds:.3f} |")
            worst = max(worst, shares[0])
    print(f"{machine('cpu')}; {clips} clips of {options.steps} steps, {options.dtype}\n\n" + "\n".join(lines))
    return int(worst > AIM)


if __name__ == "__main__":
    sys.exit(main())
