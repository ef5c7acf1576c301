"""Inversion, by which prompt, against noising: how well a video without a trajectory is continued.

Runs inside ComfyUI's interpreter.

    python benchmarks/rebuild_comparison.py [--videos 24] [--priors rendered made] [--output docs/rebuild_comparison.md]

The tree is COMFYUI_PATH, else the current folder if it is one, else ~/comfy/ComfyUI.

Two kinds of priors, continued by one clip of the bundled model with the released overlap, alpha and beta:

- rendered videos of moving shapes, encoded with its VAE, as a user's own video would be;
- clips that the model made, whose true trajectory is known and gives a column more.

Each is continued by its own caption, and by one that asks for another motion. It is inverted by its own caption, by the
new clip's, and unconditionally (by the empty caption, which is also the negative prompt here).

Measured on the tracked shape: whether colour and shape stay, how far it jumps at the seam (pixels; a true step is 2.5),
whether the new clip moves as its caption says, and for made clips how far the new frames are from those that the true
trajectory gives.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.util
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
TREE = Path(os.environ.get("COMFYUI_PATH", "." if Path("comfy/sd.py").is_file() else Path.home() / "comfy" / "ComfyUI"))
SOURCES = {"own": "inverted by its own prompt", "new": "by the new clip's", "none": "unconditionally"}
PRIORS = {"rendered": "Rendered videos", "made": "Clips that the model made"}
STEPS, CFG, FRAMES = 25, 4.0, 8
HEADER = """# Continuing a video without a trajectory: inversion against noising

Made by `benchmarks/rebuild_comparison.py` on the bundled model (64x64, 8 frames, 25 steps of DDIM, cfg 4, released
overlap, alpha and beta), with captions that training never saw. What the figures mean stands in that script. *Reuse and
Diffuse* inverts by default: by `prior_positive` where that is connected, else by the prior's own prompt where that is
known, else by the negative prompt, which is unconditional where it is empty.

"""


def load_pack(*flags: str, device: str = "cpu") -> dict[str, Any]:
    """The nodes by their ids, loaded as ComfyUI loads them; ``flags`` are ComfyUI's own.

    Args:
        device: "cpu", or "cuda" for the one that ComfyUI takes by itself.
    """
    tree = TREE.expanduser().resolve()
    sys.path.insert(0, str(tree))
    os.chdir(tree)
    given, sys.argv = sys.argv, ["main.py", *(["--cpu"] if device == "cpu" else []), *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = given
    import nodes  # noqa: F401  (ComfyUI's own, before the pack's folder of that name can be seen)

    name = "custom_nodes.VidRD"
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    sys.path.append(str(PACK))

    async def collect() -> list[Any]:
        return await (await module.comfy_entrypoint()).get_node_list()

    return {node.define_schema().node_id: node for node in asyncio.run(collect())}


class Comparison:
    """A batch of videos of moving shapes with their captions, and the bundled model that continues them."""

    def __init__(self, nodes: dict[str, Any], videos: int, seed: int):
        import torch

        from vidrd_core.shapes.prompted import held_out_scenes

        self.nodes = nodes
        self.model, clip, self.vae = nodes["VidRDLoadModel"].execute("bundled demo model", "fp32").args
        self.scenes = held_out_scenes(videos, seed)
        turned = [
            dataclasses.replace(scene, motion=other_motion(scene.motion, n)) for n, scene in enumerate(self.scenes)
        ]

        def encode(scenes: list[Any]) -> Any:
            texts = [clip.encode_from_tokens_scheduled(clip.tokenize(scene.caption))[0][0] for scene in scenes]
            return [[torch.cat(texts), {}]]

        self.negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        self.own = encode(self.scenes)
        # What the new clip is to show: the same, or another motion.
        self.next = {"the same motion": (self.scenes, self.own), "another motion": (turned, encode(turned))}

    def rendered(self) -> Any:
        """Latents of true videos."""
        import torch
        from einops import rearrange

        from vidrd_core.shapes.scenes import render

        pictures = (rearrange(render(self.scenes, FRAMES), "b c t h w -> b t h w c") + 1) / 2
        return {"samples": torch.cat([self.vae.encode(video) for video in pictures])}

    def made(self) -> Any:
        """First clips of the model, with their trajectories."""
        (empty,) = self.nodes["VidRDEmptyLatent"].execute(64, 64, FRAMES, len(self.scenes)).args
        given = (self.model, self.own, self.negative, empty, 0, STEPS, CFG, "ddim", "ddim_uniform", 1.0, 0.0)
        return self.nodes["VidRDSampleFirstClip"].execute(*given).args[0]

    def continued(self, prior: Any, caption: str, method: str, source: str = "own") -> tuple[Any, float]:
        """New clips ``[B, 4, T, h, w]``, and the CPU seconds that they took.

        Args:
            caption: a key of ``next``.
            source: a key of ``SOURCES``, the conditioning of the inversion.
        """
        started = time.process_time()
        reuse = ("paper", 4, 4.0, 0.4, "reverse", 0, "linear", 0.0)
        steps = (0, "from prior", "from prior") if method == "auto" else (STEPS, "ddim", "ddim_uniform")
        positive = self.next[caption][1]
        of_prior = {"own": self.own, "new": positive, "none": self.negative}[source]
        given = (self.model, positive, self.negative, prior, 1000, CFG, *reuse, *steps, method, 0, of_prior)
        clip = self.nodes["VidRDReuseAndDiffuse"].execute(*given).args[1]["samples"]
        return clip, time.process_time() - started

    def columns(self, prior: Any, caption: str, made: bool) -> dict[str, dict[str, float]]:
        """The figures by how the prior's trajectory came about; ``made`` says that the true one is known."""
        found = {}
        true = None
        if made:
            true, seconds = self.continued(prior, caption, "auto")
            found["true trajectory"] = self.figures(prior, caption, true, seconds, true)
        for source in ("own", "none") if caption == "the same motion" else ("own", "new", "none"):
            continued = self.continued(prior, caption, "invert", source)
            found[SOURCES[source]] = self.figures(prior, caption, *continued, true)
        found["noise"] = self.figures(prior, caption, *self.continued(prior, caption, "noise"), true)
        return found

    def tracks(self, latents: Any) -> list[Any]:
        from einops import rearrange

        from vidrd_core.shapes.tracker import track

        pictures = rearrange(self.vae.decode(latents), "... h w c -> (...) h w c")
        videos = rearrange(pictures, "(b t) h w c -> b c t h w", b=len(self.scenes))
        return [track(video * 2 - 1) for video in videos]

    def figures(self, prior: Any, caption: str, clip: Any, seconds: float, true: Any) -> dict[str, float]:
        from vidrd_core.shapes.tracker import seam_jump

        before, after = self.tracks(prior["samples"]), self.tracks(clip)
        pairs = list(zip(before, after, strict=True))
        jumps = sorted(jump for jump in (seam_jump(a, b) for a, b in pairs) if jump == jump)
        found = {
            "colour stays": statistics.fmean(a.color == b.color for a, b in pairs),
            "shape stays": statistics.fmean(a.shape == b.shape for a, b in pairs),
            "seam jump, mean (pixels)": statistics.fmean(jumps),
            "seam jump, median (pixels)": statistics.median(jumps),
            "seams within 5 pixels": sum(jump < 5 for jump in jumps) / len(pairs),
            "moves as its caption says": statistics.fmean(
                a.motion == scene.motion for a, scene in zip(after, self.next[caption][0], strict=True)
            ),
            "CPU seconds per video": seconds / len(pairs),
        }
        if true is not None:
            found["off the true continuation (relative, latents)"] = float((clip - true).norm() / true.norm())
        return found


def other_motion(motion: str, number: int) -> str:
    """Another straight motion, a different one from scene to scene."""
    from vidrd_core.shapes.scenes import DIRECTIONS

    others = [one for one in DIRECTIONS if one != motion]
    return others[number % len(others)]


def table(title: str, columns: dict[str, dict[str, float]]) -> str:
    names = list(columns)
    lines = [f"**{title}**", "", "| figure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for figure in columns[names[0]]:
        lines.append(f"| {figure} | " + " | ".join(f"{columns[name][figure]:.3g}" for name in names) + " |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=24, help="videos, each with another held-out caption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--priors", nargs="+", choices=tuple(PRIORS), default=list(PRIORS), help="(both)")
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    given = parser.parse_args()
    output = given.output and given.output.resolve()
    nodes = load_pack()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    with torch.inference_mode():
        comparison = Comparison(nodes, given.videos, given.seed)
        text = HEADER
        for kind in given.priors:
            prior = comparison.made() if kind == "made" else comparison.rendered()
            for caption in comparison.next:
                columns = comparison.columns(prior, caption, kind == "made")
                text += table(f"{PRIORS[kind]}, {given.videos}, continued by a caption of {caption}", columns) + "\n"
        text = text.rstrip("\n") + "\n"
    print(text)
    if output:
        output.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
