"""Distillation to few steps: a LoRA learns to take in one step what its model takes in several, and without guidance.

The teacher's clips are sampled first, by many steps with guidance, and its states at the student's steps are kept. From
each the student is to reach the next one by a single DDIM step (progressive distillation, arXiv 2202.00512, along the
teacher's own trajectories), with one prediction in place of guidance's two (arXiv 2210.03142). A share of the clips
continues true frames, which are shown as a sampler shows the overlap of the clip before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoints.recognition import LORA
from ..files import read_tensors, write_json, write_tensors
from ..reuse.goal import Goal, GoalSettings
from ..reuse.settings import ReuseSettings
from ..sampling.denoising import denoise_clip
from ..sampling.guidance import GuidedDenoiser
from ..sampling.schedulers import make_scheduler, sampler_states
from ..shapes.latents import LatentClips
from .lora import save_lora
from .micro_batches import MicroBatch
from .objective import weights_of
from .sources import ClipBatch
from .task import Outcome
from .text import encode_text
from .unet import UNetTask

SPACING = "trailing"  # of the timesteps: the first step then begins at pure noise, as the sampler does


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher samples; our own defaults."""

    num_frames: int = 8  # of a clip
    steps: int = 4  # S, the student's
    teacher_steps: int = 5  # DDIM steps of the teacher for one of the student's
    guidance_scale: float = 4.0
    negative_prompt: str = ""
    continuation_share: float = 0.6  # share of clips that continue the first frames of true ones
    overlap_frames: int = 5  # so many of them
    cleaner_overlap: float = 0.8  # see ReuseSettings

    def __post_init__(self) -> None:
        if self.steps < 1 or self.teacher_steps < 1:
            raise ValueError(f"steps are {self.steps} of {self.teacher_steps} each; expected at least 1 of 1")
        if not 0 <= self.continuation_share <= 1:
            raise ValueError(f"continuation_share is {self.continuation_share}; expected a share, 0 to 1")
        if not 0 < self.overlap_frames < self.num_frames:
            raise ValueError(
                f"overlap_frames is {self.overlap_frames} of {self.num_frames}; expected 1 or more, and some new"
            )

    def scheduler(self, config: Any, teacher: bool = False) -> Any:
        """DDIM with the student's or the teacher's timesteps, which are among each other's."""
        made = make_scheduler("ddim", config, {"timestep_spacing": SPACING})
        made.set_timesteps(self.steps * (self.teacher_steps if teacher else 1))
        return made


@torch.no_grad()
def teacher_states(
    unet: Any,
    text: Tensor,
    negative: Tensor,
    noise: Tensor,
    latents: Tensor | None,
    scheduler_config: Any,
    settings: TeacherSettings,
) -> Tensor:
    """The states ``[B, S + 1, C, N, h, w]`` before each step of the student and after the last one.

    Args:
        unet: the teacher.
        text, negative: states ``[B, M, D]`` in the precision that it runs in.
        noise: of unit variance, ``[B, C, N, h, w]``.
        latents: true clips of the same shape, whose first frames the teacher continues; None: it begins new ones. In
            the result these frames are what the student's sampler shows.
    """
    student, teacher = settings.scheduler(scheduler_config), settings.scheduler(scheduler_config, teacher=True)
    goals = []
    if latents is not None:
        places = tuple(range(settings.overlap_frames))
        shown = GoalSettings(start_frames=len(places), beta=1.0, cleaner=settings.cleaner_overlap)
        goals = [Goal(places, latents[:, :, : len(places)], settings=shown)]
    states = [noise * teacher.init_noise_sigma]

    def keep(step: int, _: Tensor, state: Tensor) -> None:
        if (step + 1) % settings.teacher_steps == 0:
            states.append(state.clone())

    denoiser = GuidedDenoiser(unet, text, negative, settings.guidance_scale)
    denoise_clip(denoiser, teacher, noise, ReuseSettings(overlap_frames=0), on_step=keep, goals=goals)
    sampler = sampler_states(student)
    for goal in goals:
        for step, state in enumerate(states[:-1]):
            goal.write(state, goal.at(step, settings.steps, noise, sampler))
    return torch.stack(states, 1)


def write_teacher_clips(
    pipe: Any, clips: LatentClips, path: Path, count: int, settings: TeacherSettings, batch: int, seed: int
) -> None:
    """Sample ``count`` clips of the teacher, a :class:`vidrd_core.VidRDPipeline`, and write one safetensors file."""
    generator = torch.Generator().manual_seed(seed)
    pieces, known, captions = [], [], []
    for first in tqdm(range(0, count, batch), desc=path.name, mininterval=5):
        size = min(batch, count - first)
        latents, texts = clips.batch(size, settings.num_frames, generator)
        noise = torch.randn(latents.shape, generator=generator)
        begins = round(size * (1 - settings.continuation_share))
        texts_and_null = encode_text(
            pipe.tokenizer, pipe.text_encoder, [*texts, settings.negative_prompt], pipe.device
        ).to(pipe.unet.dtype)
        text, negative = texts_and_null[:-1], texts_and_null[-1:].expand(size, -1, -1)
        for part, given in ((slice(0, begins), False), (slice(begins, size), True)):
            if noise[part].shape[0]:
                found = teacher_states(
                    pipe.unet,
                    text[part],
                    negative[part],
                    noise[part].to(pipe.device),
                    latents[part].to(pipe.device) if given else None,
                    pipe.scheduler.config,
                    settings,
                )
                pieces.append(found.half().cpu())
                known += [settings.overlap_frames if given else 0] * len(found)
        captions += texts
    metadata = {"captions": json.dumps(captions), "steps": str(settings.steps)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"states": torch.cat(pieces), "known_frames": torch.tensor(known)}, metadata)


@dataclass
class StepBatch(ClipBatch):
    """Steps of the teacher's clips: ``latents`` is the state before a step.

    Args:
        following: the state after it, ``[B, C, N, h, w]``.
        steps: their numbers, ``[B]``.
        counted: ``[B, N]``, 0 for frames that were given.
    """

    following: Tensor = field(default_factory=lambda: torch.empty(0))
    steps: Tensor = field(default_factory=lambda: torch.empty(0))
    counted: Tensor = field(default_factory=lambda: torch.empty(0))


class TeacherClips:
    """Random steps of clips that :func:`write_teacher_clips` wrote.

    Args:
        paths: files of the same number of steps.

    Raises:
        ValueError: they are of different steps.
    """

    def __init__(self, paths: Sequence[Path]):
        states, known, numbers = [], [], set()
        self.captions: list[str] = []
        for path in paths:
            tensors, metadata = read_tensors(path)
            states.append(tensors["states"])
            known.append(tensors["known_frames"])
            numbers.add(int(metadata["steps"]))
            self.captions += json.loads(metadata["captions"])
        if len(numbers) != 1:
            raise ValueError(f"the teacher's clips are of {sorted(numbers)} steps; give files of one number of steps")
        self.states, self.known, self.steps = torch.cat(states), torch.cat(known), numbers.pop()

    def batch(self, micro_batch: MicroBatch) -> StepBatch:
        drawn = [torch.rand(2, generator=generator) for generator in micro_batch.generators()]
        chosen = torch.tensor([int(one[0] * len(self.states)) for one in drawn])
        steps = torch.tensor([int(one[1] * self.steps) for one in drawn])
        captions = [self.captions[clip] for clip in chosen.tolist()]
        return StepBatch(
            captions,
            captions,
            latents=self.states[chosen, steps].float(),
            following=self.states[chosen, steps + 1].float(),
            steps=steps,
            counted=(torch.arange(self.states.shape[3]) >= self.known[chosen][:, None]).float(),
        )


def step_target(
    before: Tensor, after: Tensor, now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor], prediction: str
) -> Tensor:
    """The prediction with which one DDIM step leads from one state to another.

    Args:
        before, after: ``[B, C, N, h, w]``.
        now, then: the coefficients of data and noise in them, each ``[B]``.
        prediction: "epsilon" or "v_prediction".
    """
    (a, s), (later_a, later_s) = ([value[:, None, None, None, None] for value in pair] for pair in (now, then))
    noise = (after - later_a / a * before) / (later_s - later_a * s / a)
    return noise if prediction == "epsilon" else a * noise - s * (before - s * noise) / a


class FewStepsTask(UNetTask):
    """A LoRA that samples in few steps, on the clips of its teacher; the other arguments are :class:`UNetTask`'s.

    Exports a folder that loads as a model where it lies within its teacher's: the LoRA in float16, the scheduler with
    its timesteps, and the teacher's defaults with as many steps and without guidance.
    """

    def __init__(self, unet: Any, text_encoder: Any, tokenizer: Any, source: TeacherClips, *more: Any, **options: Any):
        super().__init__(unet, text_encoder, tokenizer, source, *more, **options)
        student = TeacherSettings(steps=source.steps).scheduler(self.scheduler.config)
        self.times = student.timesteps
        kept = torch.cat((student.alphas_cumprod[self.times], student.final_alpha_cumprod.reshape(1)))
        self.data, self.noise = kept.sqrt(), (1 - kept).sqrt()
        self.student = student

    def export(self, folder: Path) -> None:
        save_lora(self.unet, folder / LORA, self.is_main, self.objective.prediction, torch.float16)
        if self.is_main:
            self.student.save_pretrained(folder / "scheduler")
            defaults = {**self.defaults, "num_inference_steps": len(self.times), "guidance_scale": 1.0}
            write_json(folder / "model_index.json", {"_class_name": "VidRDPipeline", "defaults": defaults})

    def _loss(self, batch: ClipBatch, micro_batch: MicroBatch) -> Outcome:
        assert isinstance(batch, StepBatch) and batch.latents is not None
        states, following, counted = (one.to(self.device) for one in (batch.latents, batch.following, batch.counted))
        text = self._text(batch, micro_batch)
        now, then = (
            (self.data[n].to(self.device), self.noise[n].to(self.device)) for n in (batch.steps, batch.steps + 1)
        )
        target = step_target(states, following, now, then, str(self.objective.prediction))
        predicted = self.calls["unet"](states, self.times[batch.steps].to(self.device), text).sample
        errors = ((predicted.float() - target).square().mean((1, 3, 4)) * counted).sum(1) / counted.sum(1)
        loss = (errors * weights_of(self.objective, now[0].square())).mean()
        figures: dict[str, float | Tensor] = {
            f"step/{n}": errors.detach()[batch.steps.to(self.device) == n] for n in sorted(set(batch.steps.tolist()))
        }
        return Outcome(loss, figures, batch.items)
