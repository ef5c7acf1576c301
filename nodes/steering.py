"""Record and steer any sampler: a wrapper on the MODEL between the sampler and its guider.

Below whatever node samples, the sampler calls a guider with its x and is handed the denoised prediction. A session
puts itself in between: it gives the clip its noise, records both at every call, and in a clip that follows another
replays the recorded path of the overlap (:mod:`vidrd_core.reuse.replay`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..vidrd_core.reuse.noise import initial_noise
from ..vidrd_core.reuse.replay import TOLERANCE, Recording, Replay, Steered, overlap_noise
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.seeds import clip_seed
from .any_model.conditioning import renewed
from .any_model.families import Family
from .any_model.noise import ModelNoise
from .any_model.telling import tell
from .samplers import name_of

logger = logging.getLogger(__name__)

KEY = "vidrd_reuse"


@dataclass
class ClipPlan:
    """What one clip is, and what it follows.

    Args:
        family: of the model.
        noise: how noise enters its samples.
        num_latents: N, of the clip.
        replay: the overlap and the clip that it follows; None for a first clip.
        past_noise: the last clip's noise ``[B, C, N, h, w]``, which the new frames may reuse; None: theirs is fresh.
        overlap: unscaled latents of the overlap in the new clip's order, for the conditioning of image-to-video models.
        lead_in: latents before the overlap.
        kept: K, the last latents that are recorded for the clip after this one.
        dtype: that they are kept in.
        tells: whether the network is told that the overlap is cleaner.
        records_shown: whether a steered frame is recorded as the network saw it, as VidRD's pipeline does, or as the
            sampler held it; they differ where the overlap is cleaner.
        seeds: that the video's noise was drawn from.
    """

    family: Family
    noise: ModelNoise
    num_latents: int
    replay: Replay | None = None
    past_noise: Tensor | None = None
    overlap: Tensor | None = None
    lead_in: int = 0
    kept: int = 0
    dtype: torch.dtype = torch.float32
    tells: bool = False
    records_shown: bool = False
    seeds: tuple[int, ...] = ()

    def start_noise(self, fresh: Tensor) -> Tensor:
        """FNR and PNS: the unit-variance noise that the clip starts from, ``[B, C, N, h, w]``."""
        if self.replay is None:
            return fresh
        settings, body = self.replay.settings, fresh[:, :, self.lead_in :]
        if self.replay.takes_own_noise:
            return fresh
        if self.past_noise is not None and self.past_noise.shape == fresh.shape:
            mixed = initial_noise(self.past_noise[:, :, self.lead_in :].to(fresh), body, settings)
        else:
            mixed = overlap_noise(self.replay.past.noise, body, settings, self.replay.back)
        return torch.cat((fresh[:, :, : self.lead_in], mixed), dim=2)


@dataclass
class Run:
    """One call of a sampler; a clip made by two experts or two sampler nodes has two."""

    start: float
    recording: Recording = field(default_factory=Recording)


class Session:
    """The sampling of one clip, recorded and steered.

    A session lives as long as the nodes that share it; a sampler node that runs again starts its record anew.
    """

    def __init__(self, plan: ClipPlan):
        self.plan = plan
        self.runs: list[Run] = []
        self.noise: Tensor | None = None  # of the clip, [B, C, N, h, w], unit variance
        self.sigmas: list[float] = []
        self.seed: int | None = None
        self.sampler = ""  # its name; "" of one that no menu offers
        self.samples: Tensor | None = None  # that the last run ended with, unscaled, as on a wire
        self.told: Tensor | None = None

    def attach(self, model: Any) -> Any:
        """A clone of a MODEL whose samplers this session records and steers."""
        model = model.clone()
        for kind in (
            WrappersMP.SAMPLER_SAMPLE,
            WrappersMP.OUTER_SAMPLE,
            WrappersMP.APPLY_MODEL,
            WrappersMP.DIFFUSION_MODEL,
        ):
            model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.sample)
        if self.plan.overlap is not None:
            model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.renew_conditioning)
        if self.plan.tells:
            tell(model, self.plan.family, KEY, lambda: self.told)
        return model

    def renew_conditioning(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """``OUTER_SAMPLE``: the overlap in the conditioning of image-to-video models."""
        guider, plan = executor.class_obj, self.plan
        assert plan.overlap is not None
        guider.conds = renewed(guider.conds, plan.overlap, plan.lead_in, plan.num_latents)
        return executor(*args, **kwargs)

    def sample(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """``SAMPLER_SAMPLE``: one run of a sampler."""
        if len(sigmas) < 2:
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
        layout, start = self.plan.family.layout, float(sigmas[0])
        if torch.count_nonzero(noise) or not self.runs:
            self.runs, self.sigmas = [], []
            noise = self.begin(guider, noise, latent_image, start, (extra_args or {}).get("seed"))
        else:  # leftover noise of the run before: the second expert, or the second sampler node
            self.runs = [run for run in self.runs if run.start > start]
        self.sampler = name_of(executor.class_obj)
        run = Run(start)
        self.runs.append(run)
        self.sigmas = [level for level in self.sigmas if level > start] + [float(level) for level in sigmas]
        self.check_shape(layout.to_video(noise))
        steered = SteeredGuider(guider, self, run, [float(level) for level in sigmas])
        # A clone, since some samplers write into the levels that they are given (uni_pc its last one).
        given = (steered, sigmas.clone(), extra_args, callback, noise, latent_image, denoise_mask)
        try:
            samples = executor(*given, *args, **kwargs)
        finally:
            self.told = None
        self.samples = guider.inner_model.process_latent_out(samples.to(torch.float32)).cpu()
        return samples

    def check_shape(self, noise: Tensor) -> None:
        """Raise ``ValueError`` where the clip that is sampled is not the one that was planned."""
        replay = self.plan.replay
        if noise.shape[2] != self.plan.num_latents:
            raise ValueError(
                f"the sampler makes a clip of {noise.shape[2]} latents but {self.plan.num_latents} were prepared: give "
                "the sampler the LATENT of Reuse: Prepare"
            )
        if replay is not None and replay.past.end.shape[3:] != noise.shape[3:]:
            raise ValueError(
                f"the clip is {list(noise.shape[3:])} latents high and wide but the prior is "
                f"{list(replay.past.end.shape[3:])}: a video keeps one size, sample the clip at the prior's"
            )
        if replay is not None and len(replay.past.end) != len(noise):
            raise ValueError(
                f"{len(noise)} videos are sampled but the prior holds {len(replay.past.end)}: use the same batch size"
            )

    def begin(self, guider: Any, noise: Tensor, latent_image: Tensor | None, start: float, seed: int | None) -> Tensor:
        """The noise to hand to the sampler of a clip's first run."""
        plan, layout = self.plan, self.plan.family.layout
        has_data = latent_image is not None and bool(torch.count_nonzero(latent_image))
        if not torch.count_nonzero(noise):  # added by someone else: the latent is the noisy state
            self.seed = None
            state = layout.to_video(latent_image if latent_image is not None else noise)
            of_noise, of_data = plan.noise.coefficients(start)
            self.noise = state.detach().float().cpu() * (of_data / of_noise)
            if plan.replay is not None:
                plan.replay.begin(self.noise[:, :, plan.lead_in :])
            return noise
        fresh = layout.to_video(noise)
        self.check_shape(fresh)
        if seed in plan.seeds and plan.replay is not None:
            seed, number = clip_seed(seed, len(plan.seeds)), len(plan.seeds)
            while seed in plan.seeds:
                number += 1
                seed = clip_seed(seed, number)
            logger.info("The video has used this seed already, so its noise is drawn from %d.", seed)
            generator = torch.Generator().manual_seed(seed)
            fresh = layout.to_video(torch.randn(noise.shape, generator=generator)).to(fresh)
        self.seed = seed
        unit = plan.start_noise(fresh)
        self.noise = unit.detach().float().cpu()
        if plan.replay is not None:
            plan.replay.begin(self.noise[:, :, plan.lead_in :])
        factor = plan.noise.start_factor(start, has_data)
        return layout.from_video(unit if factor == 1 else unit * factor)

    @property
    def recording(self) -> Recording:
        """All calls of the clip's runs."""
        whole = Recording()
        for run in self.runs:
            whole.sigmas += run.recording.sigmas
            whole.states += run.recording.states
            whole.predictions += run.recording.predictions
        return whole

    def trajectory(self, context: dict[str, Any]) -> Trajectory:
        """What the next clip needs of this one.

        Raises:
            ValueError: nothing was sampled.
        """
        recorded = self.recording
        if self.noise is None or not recorded.sigmas:
            raise ValueError("nothing was sampled: connect the MODEL of Reuse: Prepare to the sampler")
        everything = ReuseSettings(overlap_frames=self.plan.kept, guidance_beta=1.0)
        steps = len(self.sigmas) - 1
        return Trajectory(
            self.noise, recorded.states, everything, steps, context, recorded.predictions, recorded.sigmas
        )


class SteeredGuider:
    """The guider as a sampler sees it."""

    def __init__(self, guider: Any, session: Session, run: Run, sigmas: list[float]):
        self.guider = guider
        self.session = session
        self.run = run
        self.levels = sigmas

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guider, name)

    def __call__(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        session, plan = self.session, self.session.plan
        layout, replay = plan.family.layout, plan.replay
        sigma = float(timestep.flatten()[0])
        steered = None
        if replay is not None:
            call = sum(len(run.recording) for run in session.runs)
            steered = replay.at(call, sigma, self.next_level(sigma))
        seen = x
        if steered is not None:
            seen = x.clone()
            write(layout.to_video(seen), plan.lead_in, steered.shown)
        session.told = told_shares(plan, steered, sigma)
        denoised = self.guider(seen, timestep, *args, **kwargs)
        session.told = None
        if steered is not None and steered.prediction.shape[2]:
            denoised = denoised.clone()
            write(layout.to_video(denoised), plan.lead_in, steered.prediction)
        held = seen if plan.records_shown else x
        self.run.recording.add(sigma, *(kept(layout.to_video(one), plan) for one in (held, denoised)))
        return denoised

    def next_level(self, sigma: float) -> float:
        """The level of the schedule below this one; 0 below the last."""
        return max((level for level in self.levels if level < sigma * (1 - TOLERANCE)), default=0.0)


def write(video: Tensor, start: int, frames: Tensor) -> None:
    """Overwrite the frames of ``video`` from ``start`` on, in place."""
    video[:, :, start : start + frames.shape[2]] = frames.to(video)


def kept(video: Tensor, plan: ClipPlan) -> Tensor:
    """The last frames, for the clip after this one."""
    return video[:, :, video.shape[2] - plan.kept :].detach().to("cpu", plan.dtype, copy=True)


def told_shares(plan: ClipPlan, steered: Steered | None, sigma: float) -> Tensor | None:
    """Of each frame, the share of the call's timestep that its own noise level is."""
    if steered is None or not plan.tells or steered.shown_sigma == sigma:
        return None
    shares = torch.ones(plan.num_latents)
    end = plan.lead_in + steered.shown.shape[2]
    shares[plan.lead_in : end] = plan.noise.told(steered.shown_sigma) / plan.noise.told(sigma)
    return shares
