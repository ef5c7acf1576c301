"""Evaluation on the moving-shapes data set: do videos follow their prompts, and do they still in later clips?"""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass

import torch

from ..pipeline import VidRDPipeline
from ..reuse.presets import PRESETS
from ..reuse.settings import ReuseSettings
from .scenes import SPEED, Scene, draw_scene
from .tracker import Track, mean_step, seam_jump, track

logger = logging.getLogger(__name__)

METHODS = {
    "independent clips": ReuseSettings(overlap_frames=0, noise_alpha=0.0, guidance_beta=0.0),
    "paper settings": ReuseSettings(),
    "preset smooth": PRESETS["smooth"].reuse.fitted(8),
}


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes with ``count`` distinct captions, all of combinations that are not in the training split."""
    generator = torch.Generator().manual_seed(seed)
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = draw_scene(generator, "test")
        scenes.setdefault(scene.caption, scene)
    return list(scenes.values())


@dataclass
class MovingShapesEvaluation:
    """Share of videos that follow their prompts, for the same prompts and seeds with all settings.

    Args:
        pipe: a pipeline whose model was trained on moving shapes.
        prompts: number of distinct held-out captions.
        clips: clips per video.
        steps, guidance_scale: of sampling.
        batch: videos made at a time.
    """

    pipe: VidRDPipeline
    prompts: int
    clips: int
    steps: int
    guidance_scale: float
    batch: int
    seed: int = 0

    def run(self, settings: ReuseSettings) -> dict[str, float]:
        """Make the videos with ``settings`` and measure them; shares are 0 to 1, distances in pixels."""
        scenes = held_out_scenes(self.prompts, self.seed)
        videos: list[tuple[Scene, list[Track]]] = []
        for first in range(0, len(scenes), self.batch):
            part = scenes[first : first + self.batch]
            videos += list(zip(part, self._tracks(part, settings, first), strict=True))
            logger.info("%d of %d videos: %s", len(videos), len(scenes), _figures(videos, settings.trim_frames))
        return _figures(videos, settings.trim_frames)

    @torch.no_grad()
    def _tracks(self, scenes: list[Scene], settings: ReuseSettings, first: int) -> list[list[Track]]:
        """For each scene the tracks of its clips, including the frames that are trimmed where clips are joined."""
        text = torch.cat([self.pipe.encode_text(scene.caption) for scene in scenes])
        output = self.pipe(
            prompt_embeds=text,
            num_clips=self.clips,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            reuse=settings,
            seed=self.seed + first,
            output_type="latent",
        )
        tracks: list[list[Track]] = [[] for _ in scenes]
        for latents in output.clips:
            scaled = latents.to(self.pipe.vae.dtype) / self.pipe.vae.config.scaling_factor
            pixels = self.pipe.vae.decode(scaled).sample.float()
            for found, frames in zip(tracks, pixels, strict=True):
                found.append(track(frames))
        return tracks


def _figures(videos: list[tuple[Scene, list[Track]]], trimmed: int) -> dict[str, float]:
    firsts = [(scene, tracks[0]) for scene, tracks in videos]
    clips = [(scene, clip) for scene, tracks in videos for clip in tracks]
    lasts = [(scene, tracks[-1]) for scene, tracks in videos]
    seams = [seam_jump(a, b[trimmed:]) for _, tracks in videos for a, b in zip(tracks, tracks[1:])]
    seams = [jump for jump in seams if jump == jump]
    every = [clip for _, clip in clips]
    return {
        "videos": len(videos),
        "first clip: colour": _share(clip.color == scene.color for scene, clip in firsts),
        "first clip: shape": _share(clip.shape == scene.shape for scene, clip in firsts),
        "first clip: colour and shape": _share(_same(scene, clip) for scene, clip in firsts),
        "first clip: motion": _share(clip.motion == scene.motion for scene, clip in firsts),
        "last clip: colour and shape": _share(_same(scene, clip) for scene, clip in lasts),
        "all clips: colour and shape": _share(all(_same(s, clip) for clip in tracks) for s, tracks in videos),
        "all clips: motion": _share(clip.motion == scene.motion for scene, clip in clips),
        "seam jump (pixels)": statistics.fmean(seams) if seams else float("nan"),
        "step inside clips (pixels)": mean_step(every),
        "true step (pixels)": SPEED,
    }


def _same(scene: Scene, clip: Track) -> bool:
    return clip.color == scene.color and clip.shape == scene.shape


def _share(hits: object) -> float:
    values = [bool(hit) for hit in hits]  # type: ignore[attr-defined]
    return sum(values) / len(values)


def markdown_table(rows: dict[str, dict[str, float]]) -> str:
    """One column per method, one line per figure."""
    names = list(rows)
    lines = ["| figure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for figure in rows[names[0]]:
        values = [rows[name][figure] for name in names]
        shown = [f"{v:.1%}" if "clip" in figure and "step" not in figure else f"{v:.4g}" for v in values]
        lines.append(f"| {figure} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
