"""Ways of chaining clips of a model of Wan's kind, side by side in ComfyUI, against the ground truth of moving shapes.

Runs inside ComfyUI's interpreter.

    python benchmarks/flow_chaining.py --model vidrd_core/demo_flow --results runs/flow_chaining
    python benchmarks/flow_chaining.py --results runs/flow_chaining  # prints the table of what is there

Every method makes the same videos (held-out captions, the same seeds) with ComfyUI's own samplers; a tracker finds the
shape in every frame. A method that has its file in the results is not made again, so that an interrupted run resumes,
and two processes can share the methods by ``--methods``. The tree is COMFYUI_PATH, else ~/comfy/ComfyUI.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rebuild_comparison import load_pack

LATENTS, FRAMES = 8, 29  # of a clip
SIZE = 8  # of its latents
SPEED = 0.4  # of the motions that the model was trained on
CHAINED = ("straight line", "fresh noise", "replay")


@dataclass(frozen=True)
class Method:
    """One way to make a long video.

    Args:
        how: "ground truth" (encoded and decoded), "independent", "last frame", "straight line", "fresh noise",
            "replay" or "windows".
        cleaner: how much cleaner than the new frames the overlap is shown.
        tells: whether the network is given a timestep for every latent.
        overlap: latents that a clip repeats.
        lead_in: latents before them.
        joined: whether the joined latents are decoded at once, or each clip alone.
    """

    how: str
    cleaner: float = 0.0
    tells: bool = False
    overlap: int = 2
    lead_in: int = 1
    sampler: str = "euler"
    steps: int = 20
    shift: float = 3.0
    joined: bool = True

    @property
    def added(self) -> int:
        """Latents that a clip adds."""
        if self.how == "independent":
            return LATENTS
        return LATENTS - 1 if self.how == "last frame" else LATENTS - self.lead_in - self.overlap

    def starts(self, clips: int) -> list[int]:
        """First frame of each clip in the video."""
        added = FRAMES if self.how == "independent" else 4 * self.added
        return [0, *(FRAMES + k * added for k in range(clips - 1))]


TOLD, UNTOLD = Method("replay", 1.0, True), Method("replay", 0.8)
METHODS: dict[str, Method] = {
    "ground truth, encoded and decoded": Method("ground truth"),
    "independent clips": Method("independent", joined=False),
    "last frame as the next clip's first": Method("last frame", 1.0, True, 1, 0, joined=False),
    "context windows": Method("windows"),
    "straight line, equally noisy": Method("straight line"),
    "fresh noise at every step, equally noisy": Method("fresh noise"),
    "replay, equally noisy": Method("replay"),
    "replay, cleaner 0.8, not told": UNTOLD,
    "replay, clean, not told": Method("replay", 1.0),
    "replay, cleaner 0.8, told": Method("replay", 0.8, True),
    "replay, clean, told": TOLD,
    "straight line, cleaner 0.8, not told": replace(UNTOLD, how="straight line"),
    "straight line, clean, told": replace(TOLD, how="straight line"),
    "fresh noise, cleaner 0.8, not told": replace(UNTOLD, how="fresh noise"),
    "told: no lead-in": replace(TOLD, lead_in=0),
    "not told: no lead-in": replace(UNTOLD, lead_in=0),
    "told: overlap 1": replace(TOLD, overlap=1),
    "told: overlap 3": replace(TOLD, overlap=3),
    "not told: overlap 1": replace(UNTOLD, overlap=1),
    "not told: overlap 3": replace(UNTOLD, overlap=3),
    "told: each clip decoded alone": replace(TOLD, joined=False),
    "told: uni_pc": replace(TOLD, sampler="uni_pc"),
    "told: lcm, 4 steps": replace(TOLD, sampler="lcm", steps=4),
    "told: shift 8": replace(TOLD, shift=8.0),
    "not told: uni_pc": replace(UNTOLD, sampler="uni_pc"),
    "not told: lcm, 4 steps": replace(UNTOLD, sampler="lcm", steps=4),
    "not told: shift 8": replace(UNTOLD, shift=8.0),
    "replay, equally noisy: shift 8": Method("replay", shift=8.0),
}


class Study:
    """The model in ComfyUI, the scenes, and the ways of chaining.

    Args:
        model: folder of diffusers' WanPipeline.
        batch: videos that are sampled at a time.
    """

    def __init__(self, model: Path, videos: int, clips: int, cfg: float, batch: int, dtype: str):
        import importlib

        import torch

        from vidrd_core.shapes.prompted import held_out_scenes

        self.part: Callable[[str], Any] = lambda name: importlib.import_module(f"custom_nodes.VidRD.{name}")
        self.model, self.clip, self.vae = self.part("nodes.loading").load_folder(model, dtype)
        self.family = self.part("nodes.any_model.families").family_of(self.model)
        self.scenes = held_out_scenes(videos)
        self.clips, self.cfg, self.batch = clips, cfg, batch
        self.negative = self.encode([""])
        self.torch = torch

    def encode(self, texts: Sequence[str]) -> Any:
        import torch

        states = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))[0][0] for text in texts]
        return [[torch.cat(states), {}]]

    def records(self, method: Method) -> list[Any]:
        """What the tracker finds in the videos of a method."""
        from vidrd_core.shapes.measures import measure

        found = []
        batch = 1 if method.how == "windows" else self.batch  # ComfyUI's context windows fail with more
        for first in range(0, len(self.scenes), batch):
            scenes = self.scenes[first : first + batch]
            starts = method.starts(self.clips)
            if method.how == "ground truth":
                videos = self.truth(scenes, starts[-1] + 4 * method.added)
            else:
                videos = self.videos(method, [scene.caption for scene in scenes], 10_000 * (1 + first))
            found += [measure(scene, video, starts, SPEED) for scene, video in zip(scenes, videos, strict=True)]
        return found

    def truth(self, scenes: Sequence[Any], frames: int) -> list[Any]:
        """The rendered videos, through the VAE and back."""
        from vidrd_core.shapes.scenes import render

        rendered = [render([scene], frames, speed=SPEED)[0] for scene in scenes]
        latents = [self.vae.encode((one.movedim(0, -1) + 1) / 2) for one in rendered]
        return self.decoded([self.torch.cat(latents)], 0)

    def videos(self, method: Method, captions: Sequence[str], seed: int) -> list[Any]:
        """Frames ``[3, T, 64, 64]`` in [-1, 1] of each caption."""
        positive = self.encode(captions)
        with self.changed(method):
            if method.how == "independent":
                clips = [self.first(method, positive, seed + k, LATENTS) for k in range(self.clips)]
                return self.decoded([clip.samples for clip in clips], 0)
            if method.how == "windows":
                whole = LATENTS + (self.clips - 1) * method.added
                return self.decoded([self.first(method, positive, seed, whole).samples], 0)
            return self.chained(method, positive, seed)

    def chained(self, method: Method, positive: Any, seed: int) -> list[Any]:
        settings = self.part("vidrd_core.reuse.settings").ReuseSettings(
            method.overlap, 0.0, 1.0, "forward", method.overlap, "uniform", method.cleaner
        )
        overrides = self.part("nodes.schedules").Overrides(method.steps, method.sampler, "simple", clip_frames=FRAMES)
        video = self.first(method, positive, seed, LATENTS)
        alone = [video.samples]
        for number in range(1, self.clips):
            if method.how == "last frame":
                video = replace(video, samples=self.last_frames(alone[-1]), prior=None, stored=None)
            elif method.how != "replay":  # only the latents are known
                video = replace(video, prior=None, stored=None)
            told = "on" if method.tells else "off"
            given = (self.patched(method), positive, self.negative, video, seed + number, self.cfg, settings, overrides)
            video, clip, _ = self.part("nodes.clips").next_clip(*given, tell_levels=told)
            alone.append(clip.samples)
        if method.joined:
            return self.decoded([video.samples], 0)
        return self.decoded(alone, 1 if method.how == "last frame" else FRAMES - 4 * method.added)

    def first(self, method: Method, positive: Any, seed: int, latents: int) -> Any:
        empty = self.torch.zeros(len(positive[0][0]), 16, latents, SIZE, SIZE)
        latent = self.part("nodes.latents").VideoLatent(empty, layout=self.family.layout)
        schedule = self.part("nodes.schedules").Schedule(method.steps, method.sampler, "simple")
        return self.part("nodes.clips").first_clip(
            self.patched(method), positive, self.negative, latent, seed, schedule, self.cfg
        )

    def patched(self, method: Method) -> Any:
        """The model at the method's shift, below context windows where it has them."""
        from comfy_extras.nodes_context_windows import ContextWindowsManualNode
        from comfy_extras.nodes_model_advanced import ModelSamplingSD3

        model = ModelSamplingSD3().patch(self.model, method.shift)[0]
        if method.how == "windows":
            given = (model, LATENTS, method.overlap + method.lead_in, "standard_static", 1, False, "pyramid", 2)
            model = ContextWindowsManualNode.execute(*given).args[0]
        return self.part("nodes.schedules").Models(model)

    @contextmanager
    def changed(self, method: Method) -> Iterator[None]:
        """The nodes' planning without a lead-in, or along fresh noise."""
        planning = self.part("nodes.planning")
        lead_in, past_clip = planning.lead_in, planning.past_clip
        if method.how in CHAINED:
            planning.lead_in = lambda family, prior: method.lead_in
        if method.how == "fresh noise":
            planning.past_clip = lambda *given: fresh_past(past_clip(*given))
        try:
            yield
        finally:
            planning.lead_in, planning.past_clip = lead_in, past_clip

    def last_frames(self, latents: Any) -> Any:
        """The last frame of each video, decoded and encoded again: one latent of the kind that begins a clip."""
        return self.torch.cat([self.vae.encode(self.pictures(one)[-1:]) for one in latents.split(1)])

    def decoded(self, parts: Sequence[Any], trim: int) -> list[Any]:
        """Each video's parts decoded alone, ``trim`` frames dropped from the start of all but the first, and joined."""
        videos = []
        for number in range(len(parts[0])):
            pieces = [self.pictures(part[number : number + 1]) for part in parts]
            frames = self.torch.cat([piece[trim if k else 0 :] for k, piece in enumerate(pieces)])
            videos.append(frames.movedim(-1, 0) * 2 - 1)
        return videos

    def pictures(self, latents: Any) -> Any:
        """``[T, H, W, 3]`` in [0, 1] of one video's latents."""
        return self.vae.decode(latents)[0].float().cpu()


def fresh_past(past: Any) -> Any:
    """A past clip whose states have other noise at every call."""
    import torch

    class FreshNoise(type(past)):  # type: ignore[misc]
        def state(self, sigma: float, back: Any) -> Any:
            end = self.end[:, :, self.end.shape[2] - back].float()
            return self.process.mix(sigma, torch.randn_like(end), end)

    return FreshNoise(past.recording, past.end, past.noise, past.process)


COLUMNS = {
    "seam ratio": "seam ratio",
    "motion kept": "motion kept",
    "identity": "identity at the last clip",
    "drift": "background drift at the last clip",
    "reverses": "runs back after a seam",
    "as prompted": "colour and shape as prompted, last clip",
    "motion as prompted": "motion as prompted, later clips",
}


def document(results: Path) -> str:
    """The table of all methods that have results."""
    lines = ["| method | adds | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name, method in METHODS.items():
        file = file_of(results, name)
        if not file.is_file():
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        figures, intervals = found["figures"], found["intervals"]
        cells = []
        for column in COLUMNS.values():
            low, high = intervals.get(column, (None, None))
            spread = "" if low is None else f" ({shown(column, low)} to {shown(column, high)})"
            cells.append("-" if figures[column] is None else f"{shown(column, figures[column])}{spread}")
        adds = FRAMES if method.how == "independent" else 4 * method.added
        lines.append(f"| {name} | {adds} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(column: str, value: float) -> str:
    """A figure of the table; shares of videos, clips or seams in per cent."""
    return f"{value:.2f}" if column in (COLUMNS["seam ratio"], COLUMNS["drift"]) else f"{100 * value:.1f}%"


def file_of(results: Path, name: str) -> Path:
    return results / ("".join(c if c.isalnum() else "_" for c in name) + ".json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of diffusers' WanPipeline")
    parser.add_argument("--results", type=Path, required=True, help="folder of a JSON file for each method")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), metavar="METHOD", help="(all)")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    given = parser.parse_args()
    given.results = given.results.resolve()
    if given.model is None:
        print(document(given.results))
        return 0
    model = given.model.resolve()
    load_pack()
    import torch

    from vidrd_core.shapes.measures import summarise

    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    given.results.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        study = Study(model, given.videos, given.clips, given.cfg, given.batch, given.dtype)
        for name in given.methods or METHODS:
            if file_of(given.results, name).is_file():
                continue
            started = time.perf_counter()
            summary = summarise(study.records(METHODS[name]), FRAMES)
            seconds = round(time.perf_counter() - started)
            found = {"method": asdict(METHODS[name]), "seconds": seconds, "cfg": given.cfg, **summary}
            file_of(given.results, name).write_text(json.dumps(found, indent=1), encoding="utf-8")
            figures = {column: found["figures"][key] for column, key in COLUMNS.items()}
            print(f"{name}: {figures}, {seconds} s", flush=True)
    print(document(given.results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
