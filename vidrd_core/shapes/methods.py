"""Ways to make a long video with one model, side by side: the paper's, its parts, simpler ones and its peers.

A method is written as a name and changes to it, for example ``paper``, ``paper, alpha=2, match`` or
``forward guided, overlap=6, rescale=0.7``; :data:`BASES` and :func:`find_method` say what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..metrics.identity import NEGATIVE_PROMPT
from ..pipeline import VidRDPipeline
from ..reuse.noise import initial_noise
from ..reuse.settings import ReuseSettings
from ..reuse.trajectory import Trajectory
from ..sampling.denoising import denoise_clip
from ..sampling.drift import Statistics, channel_statistics, match_statistics, soft_guide, soft_weight
from ..sampling.guidance import GuidedDenoiser
from ..sampling.schedulers import prepare_scheduler
from ..sampling.seeds import clip_noise, clip_seed
from ..sampling.settings import SamplingSettings
from .names import current_name
from .scenes import Scene, render

STAGES = ("linear", "uniform", "soft")


@dataclass(frozen=True)
class VideoBatch:
    """The videos to make: one per scene, from its caption and its seed."""

    pipe: VidRDPipeline
    scenes: Sequence[Scene]
    seeds: Sequence[int]
    clips: int
    num_frames: int
    steps: int
    guidance_scale: float

    def noise(self, index: int) -> Tensor:
        """Unit-variance noise ``[B, C, N, h, w]`` of clip ``index``, the same for every method."""
        size = self.pipe.default_size // self.pipe.vae.spatial_factor
        shape = (len(self.scenes), self.pipe.unet.config["in_channels"], self.num_frames, size, size)
        return clip_noise([clip_seed(seed, index) for seed in self.seeds], shape)

    def scheduler(self, settings: ReuseSettings) -> Any:
        size = self.pipe.default_size
        sampling = SamplingSettings(
            self.num_frames, size, size, self.steps, self.guidance_scale, settings, negative_prompt=None
        )
        return prepare_scheduler(self.pipe.scheduler, sampling, self.pipe.device)

    def denoiser(self, rescale: float = 0.0) -> GuidedDenoiser:
        text, negative = self.texts()
        return GuidedDenoiser(self.pipe.unet, text, negative, self.guidance_scale, rescale=rescale)

    def texts(self) -> tuple[Tensor, Tensor | None]:
        """States of the captions and of the negative prompt, ``[B, M, D]``."""
        encode = self.pipe.encode_text
        dtype = self.pipe.unet.dtype
        text = torch.cat([encode(scene.caption) for scene in self.scenes]).to(dtype)
        return text, encode(NEGATIVE_PROMPT).to(dtype).expand_as(text) if self.guidance_scale > 1 else None


@dataclass(frozen=True)
class GeneratedVideos:
    """What a method made: latents ``[B, C, T, h, w]``, or frames where it needs no decoder; clips from ``starts``."""

    latents: Tensor | None
    starts: list[int]
    frames: Tensor | None = None


class Method(Protocol):
    def make(self, batch: VideoBatch) -> GeneratedVideos: ...


class StatisticsMatcher:
    """Remembers the statistics of the first clip after every step, and matches those of the later ones to them."""

    def __init__(self, strength: float):
        self.strength = strength
        self.wanted: dict[int, Statistics] = {}

    def __call__(self, step: int, latents: Tensor) -> Tensor:
        if not self.strength:
            return latents
        if step not in self.wanted:
            self.wanted[step] = channel_statistics(latents)
            return latents
        return match_statistics(latents, self.wanted[step], self.strength)


@dataclass(frozen=True)
class Chain:
    """Clips one after the other, each out of the one before.

    Args:
        alpha, beta, overlap, order, trim: as in :class:`ReuseSettings`; trim None: the overlap in forward order.
        stages: how long the overlap frames are steered: "linear" as in the paper, "uniform" all as long as the first,
            "soft" like uniform and then less and less to the end.
        cleaner_overlap: as in :class:`ReuseSettings`.
        match, rescale: strengths of the drift corrections.
    """

    overlap: int = 4
    alpha: float = 4.0
    beta: float = 0.4
    order: str = "reverse"
    trim: int | None = None
    stages: str = "linear"
    cleaner_overlap: float = 0.0
    match: float = 0.0
    rescale: float = 0.0

    @property
    def settings(self) -> ReuseSettings:
        if self.stages not in STAGES:
            raise ValueError(f"stages is {self.stages!r}; expected one of {', '.join(STAGES)}")
        trim = self.trim if self.trim is not None else self.overlap * (self.order == "forward")
        # Soft guidance reads the states of all steps.
        beta = 1.0 if self.stages == "soft" else self.beta
        stages = "linear" if self.stages == "linear" else "uniform"
        return ReuseSettings(self.overlap, self.alpha, beta, self.order, trim, stages, self.cleaner_overlap)

    def make(self, batch: VideoBatch) -> GeneratedVideos:
        settings = self.settings
        denoiser = batch.denoiser(self.rescale)
        matcher = StatisticsMatcher(self.match)
        past: Trajectory | None = None
        parts: list[Tensor] = []
        for index in range(batch.clips):
            fresh = batch.noise(index)
            noise = fresh if past is None else initial_noise(past.noise, fresh, settings)
            guiding, on_step = self._steering(past, batch.steps, matcher)
            scheduler = batch.scheduler(settings)
            latents, past = denoise_clip(denoiser, scheduler, noise.to(batch.pipe.device), settings, guiding, on_step)
            parts.append(latents[:, :, settings.trim_frames if index else 0 :])
        added = batch.num_frames - settings.trim_frames
        starts = [0] + [batch.num_frames + n * added for n in range(batch.clips - 1)]
        return GeneratedVideos(torch.cat(parts, dim=2), starts)

    def _steering(
        self, past: Trajectory | None, num_steps: int, matcher: StatisticsMatcher
    ) -> tuple[Trajectory | None, Callable[[int, Tensor, Tensor], Tensor]]:
        """What overwrites the overlap before a step, and what changes the latents after one."""

        def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            latents = matcher(step, latents)
            if self.stages == "soft" and past is not None and step + 1 < num_steps:
                weight = soft_weight(step + 1, num_steps, self.beta)
                latents = soft_guide(latents, past.overlap_at(step + 1), weight)
            return latents

        return (None if self.stages == "soft" else past), on_step


@dataclass(frozen=True)
class Windows:
    """The whole video at once: overlapping windows of the clip length whose predictions are averaged at every step.

    With independent noise and equal weights this is MultiDiffusion (arXiv 2302.08113) over time; with rescheduled noise
    and weights that fall towards the windows' edges it is FreeNoise (arXiv 2310.15169), whose fused windowed attention
    is done here on the predictions, so that the model's other layers see one clip too.

    Args:
        stride: frames from window to window, at most the clip length.
        rescheduled: later frames reuse the first clip's noise, shuffled within ``stride`` frames.
        weighted: weights fall linearly from a window's middle.
    """

    stride: int = 4
    rescheduled: bool = False
    weighted: bool = False
    match: float = 0.0
    rescale: float = 0.0

    def make(self, batch: VideoBatch) -> GeneratedVideos:
        size, total = batch.num_frames, batch.clips * batch.num_frames
        if not 1 <= self.stride <= size:
            raise ValueError(f"stride is {self.stride}; expected 1 to {size}, the frames of a clip")
        denoiser = batch.denoiser(self.rescale)
        scheduler = batch.scheduler(ReuseSettings(overlap_frames=0))
        noise = rescheduled_noise(batch, self.stride) if self.rescheduled else _independent_noise(batch)
        latents = noise.to(batch.pipe.device) * scheduler.init_noise_sigma
        starts = sorted({*range(0, total - size, self.stride), total - size})
        weights = _triangle(size) if self.weighted else torch.ones(size)
        weights = weights.to(latents)[:, None, None]
        for timestep in scheduler.timesteps:
            model_input = scheduler.scale_model_input(latents, timestep)
            summed, weight_sum = torch.zeros_like(latents), latents.new_zeros(total, 1, 1)
            for start in starts:
                window = slice(start, start + size)
                summed[:, :, window] += weights * denoiser(model_input[:, :, window], timestep)
                weight_sum[window] += weights
            latents = scheduler.step(summed / weight_sum, timestep, latents).prev_sample
            latents = self._matched(latents, size)
        return GeneratedVideos(latents, list(range(0, total, size)))

    def _matched(self, latents: Tensor, size: int) -> Tensor:
        if not self.match:
            return latents
        clips = latents.split(size, dim=2)
        wanted = channel_statistics(clips[0])
        return torch.cat([clips[0], *(match_statistics(clip, wanted, self.match) for clip in clips[1:])], dim=2)


@dataclass(frozen=True)
class GroundTruth:
    """The rendered scenes; ``decoded``: encoded and decoded by the model's VAE, the upper bound for every method."""

    decoded: bool = False

    @torch.no_grad()
    def make(self, batch: VideoBatch) -> GeneratedVideos:
        frames = render(batch.scenes, batch.clips * batch.num_frames)
        starts = list(range(0, frames.shape[2], batch.num_frames))
        if not self.decoded:
            return GeneratedVideos(None, starts, frames)
        vae = batch.pipe.vae
        clips = [
            vae.encode(clip.to(vae.device, vae.dtype)).latent_dist.mode() for clip in frames.split(batch.num_frames, 2)
        ]
        return GeneratedVideos(torch.cat(clips, dim=2).float() * vae.config["scaling_factor"], starts)


def _independent_noise(batch: VideoBatch) -> Tensor:
    return torch.cat([batch.noise(index) for index in range(batch.clips)], dim=2)


def rescheduled_noise(batch: VideoBatch, stride: int) -> Tensor:
    """FreeNoise: the first clip's noise over and over, its frames shuffled within every ``stride`` of them.

    Returns:
        ``[B, C, clips * N, h, w]``; each group of ``stride`` frames is a permutation of the group one clip earlier.
    """
    frames = list(batch.noise(0).unbind(2))
    generators = [torch.Generator().manual_seed(clip_seed(seed, 1)) for seed in batch.seeds]
    total = batch.clips * batch.num_frames
    while len(frames) < total:
        source = torch.stack(frames[len(frames) - batch.num_frames :][:stride], dim=2)
        orders = [torch.randperm(source.shape[2], generator=generator) for generator in generators]
        shuffled = torch.stack([video[:, order] for video, order in zip(source, orders, strict=True)])
        frames += list(shuffled.unbind(2))
    return torch.stack(frames[:total], dim=2)


def _triangle(size: int) -> Tensor:
    """Weights that fall from a window's middle to its edges, all above 0."""
    return torch.minimum(torch.arange(1, size + 1), torch.arange(size, 0, -1)).float()


BASES: dict[str, Method] = {
    "ground truth": GroundTruth(),
    "ground truth decoded": GroundTruth(decoded=True),
    "independent": Chain(overlap=0, alpha=0.0, beta=0.0),
    "last frame": Chain(overlap=1, alpha=0.0, beta=1.0, order="forward"),
    "FNR": Chain(alpha=float("inf"), beta=0.0),
    "FNR PNS": Chain(beta=0.0),
    "paper": Chain(),  # FNR + PNS + DSG with the released values
    "forward": Chain(order="forward"),
    "forward guided": Chain(alpha=0.0, beta=1.0, order="forward", stages="uniform"),
    "forward soft": Chain(alpha=0.0, beta=0.4, order="forward", stages="soft"),
    "smooth": Chain(overlap=5, alpha=0.0, beta=1.0, order="forward", stages="uniform", cleaner_overlap=0.8),
    "joint windows": Windows(),
    "FreeNoise": Windows(rescheduled=True, weighted=True),
}
CORRECTIONS: dict[str, float] = {"match": 1.0, "rescale": 0.7}  # of drift -> strength where none is given


def find_method(name: str) -> Method:
    """A method by its name and changes, ``base, field=value, correction``; old names are read too.

    Raises:
        ValueError: the base, a field or a value is not known.
    """
    base, *changes = current_name(name).split(", ")
    if base not in BASES:
        raise ValueError(f"{base!r} is no method; known are: {', '.join(BASES)}")
    method: Any = BASES[base]
    known = [field for field in method.__dataclass_fields__ if field not in ("rescheduled", "weighted", "decoded")]
    values: dict[str, Any] = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if field not in known or not (equals or field in CORRECTIONS):
            raise ValueError(f"{change!r} is no change of {base!r}; known are: {', '.join(f'{k}=' for k in known)}")
        values[field] = _value(field, value) if equals else CORRECTIONS[field]
    changed: Method = replace(method, **values)
    return changed


def _value(field: str, text: str) -> Any:
    if field in ("order", "stages"):
        return text
    try:
        return int(text) if field in ("overlap", "trim", "stride") else float(text)
    except ValueError:
        raise ValueError(f"{field}={text!r} is no number") from None
