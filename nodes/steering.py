"""Record and steer any sampler: a wrapper on the MODEL between the sampler and its guider.

Below whatever node samples, the sampler calls a guider with its x and is handed the denoised prediction. A session
puts itself in between: it gives the clip its noise, records both at every call, and in a clip that follows another
replays the recorded path of the overlap (:mod:`vidrd_core.reuse.replay`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..vidrd_core.reuse.noise import initial_noise
from ..vidrd_core.reuse.replay import TOLERANCE, Recording, Replay, Steered, overlap_noise
from ..vidrd_core.reuse.settings import ReuseSettings
from ..vidrd_core.reuse.trajectory import Trajectory
from ..vidrd_core.sampling.seeds import fresh_seed
from .any_model.conditioning import renewed
from .any_model.families import Family
from .any_model.noise import ModelNoise
from .any_model.telling import tell
from .samplers import name_of

logger = logging.getLogger(__name__)

KEY = "vidrd_reuse"


@dataclass
class Track:
    """One stream of a clip, with time in its third axis: the video, or the sound that is packed with it.

    Args:
        shape: of the stream without the batch, ``(C, N, ...)``.
        replay: the overlap and the clip that it follows; None for a first clip.
        past_noise: the last clip's noise ``[B, C, N, ...]``, which the new frames may reuse; None: theirs is fresh.
        lead_in: latents before the overlap.
        kept: K, the last latents that are recorded for the clip after this one.
        goal: what the last frames arrive at; None: nothing is given.
    """

    shape: tuple[int, ...]
    replay: Replay | None = None
    past_noise: Tensor | None = None
    lead_in: int = 0
    kept: int = 0
    goal: Replay | None = None

    @property
    def num_latents(self) -> int:
        return self.shape[1]

    def start_noise(self, fresh: Tensor) -> Tensor:
        """FNR and PNS: the unit-variance noise that the clip starts from, ``[B, C, N, ...]``."""
        if self.replay is None or self.replay.takes_own_noise:
            return fresh
        settings, body = self.replay.settings, fresh[:, :, self.lead_in :]
        if self.past_noise is not None and self.past_noise.shape == fresh.shape:
            mixed = initial_noise(self.past_noise[:, :, self.lead_in :].to(fresh), body, settings)
        else:
            mixed = overlap_noise(self.replay.past.noise, body, settings, self.replay.back)
        return torch.cat((fresh[:, :, : self.lead_in], mixed), dim=2)

    @property
    def steered(self) -> list[tuple[int, Replay]]:
        """The replays of the overlap and of the goal, each with the place of its first frame."""
        goal_at = 0 if self.goal is None else self.num_latents - self.goal.settings.overlap_frames
        return [(at, replay) for at, replay in ((self.lead_in, self.replay), (goal_at, self.goal)) if replay]

    @staticmethod
    def write(stream: Tensor, at: int, frames: Tensor) -> None:
        """Overwrite frames from a place on, in place."""
        stream[:, :, at : at + frames.shape[2]] = frames.to(stream)

    def last(self, stream: Tensor, dtype: torch.dtype) -> Tensor:
        """The frames that are kept."""
        return stream[:, :, stream.shape[2] - self.kept :].detach().to("cpu", dtype, copy=True)

    def told_shares(self, steered: list[tuple[int, Steered]], sigma: float, noise: ModelNoise) -> Tensor:
        """Of each frame, the share of the call's timestep that its own noise level is."""
        shares = torch.ones(self.num_latents)
        for at, one in steered:
            if one.shown_sigma != sigma:
                shares[at : at + one.shown.shape[2]] = noise.told(one.shown_sigma) / noise.told(sigma)
        return shares


@dataclass
class ClipPlan:
    """What one clip is, and what it follows.

    Args:
        family: of the model.
        noise: how noise enters its samples.
        tracks: the video, and sound that is packed with it.
        overlap: unscaled latents of the overlap in the new clip's order, for the conditioning of image-to-video models.
        goal: likewise, of the clip's last frames where they are given.
        dtype: that recorded states are kept in.
        tells: whether the network is told that the overlap is cleaner.
        seeds: that the video's noise was drawn from.
    """

    family: Family
    noise: ModelNoise
    tracks: tuple[Track, ...]
    overlap: Tensor | None = None
    goal: Tensor | None = None
    dtype: torch.dtype = torch.float32
    tells: bool = False
    seeds: tuple[int, ...] = ()

    @property
    def video(self) -> Track:
        return self.tracks[0]

    def streams(self, latents: Tensor) -> list[Tensor]:
        """What a sampler holds, as views of its streams."""
        return self.family.layout.streams(latents, [track.shape for track in self.tracks])


@dataclass
class Run:
    """One call of a sampler; a clip made by two experts or two sampler nodes has two."""

    start: float
    recordings: list[Recording]  # one for each track


class Session:
    """The sampling of one clip, recorded and steered.

    A session lives as long as the nodes that share it; a sampler node that runs again starts its record anew.
    """

    def __init__(self, plan: ClipPlan):
        self.plan = plan
        self.runs: list[Run] = []
        self.noise: list[Tensor] = []  # of the clip's tracks, [B, C, N, ...], unit variance
        self.sigmas: list[float] = []
        self.seed: int | None = None
        self.sampler = ""  # its name; "" of one that no menu offers
        self.samples: Tensor | None = None  # that the last run ended with, unscaled, as on a wire
        self.told: list[Tensor] = []

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
        guider.conds = renewed(guider.conds, plan.overlap, plan.video.lead_in, plan.video.num_latents)
        if plan.goal is not None:
            at = plan.video.num_latents - plan.goal.shape[2]
            guider.conds = renewed(guider.conds, plan.goal, at, plan.video.num_latents)
        return executor(*args, **kwargs)

    def sample(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """``SAMPLER_SAMPLE``: one run of a sampler."""
        if len(sigmas) < 2:
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
        self.check_shape(noise)
        start = float(sigmas[0])
        if torch.count_nonzero(noise) or not self.runs:
            self.runs, self.sigmas = [], []
            noise = self.begin(noise, latent_image, start, (extra_args or {}).get("seed"))
        else:  # leftover noise of the run before: the second expert, or the second sampler node
            self.runs = [run for run in self.runs if run.start > start]
        self.sampler = name_of(executor.class_obj)
        run = Run(start, [Recording() for _ in self.plan.tracks])
        self.runs.append(run)
        self.sigmas = [level for level in self.sigmas if level > start] + [float(level) for level in sigmas]
        steered = SteeredGuider(guider, self, run, [float(level) for level in sigmas])
        # A clone, since some samplers write into the levels that they are given (uni_pc its last one).
        given = (steered, sigmas.clone(), extra_args, callback, noise, latent_image, denoise_mask)
        try:
            samples = executor(*given, *args, **kwargs)
        finally:
            self.told = []
        self.samples = guider.inner_model.process_latent_out(samples.to(torch.float32)).cpu()
        return samples

    def check_shape(self, noise: Tensor) -> None:
        """Raise ``ValueError`` where the clip that is sampled is not the one that was planned."""
        video = self.plan.family.layout.to_video(noise)
        if len(self.plan.tracks) > 1:
            planned = sum(math.prod(track.shape) for track in self.plan.tracks)
            if noise.shape[-1] != planned:
                raise ValueError(
                    "the sampler makes another clip than was prepared: give it the LATENT of Reuse: Prepare"
                )
            video = self.plan.streams(noise)[0]
        track = self.plan.video
        if video.shape[2] != track.num_latents:
            raise ValueError(
                f"the sampler makes a clip of {video.shape[2]} latents but {track.num_latents} were prepared: give the "
                "sampler the LATENT of Reuse: Prepare"
            )
        if track.replay is None:
            return
        end = track.replay.past.end
        if end.shape[3:] != video.shape[3:]:
            raise ValueError(
                f"the clip is {list(video.shape[3:])} latents high and wide but the prior is {list(end.shape[3:])}: a "
                "video keeps one size, sample the clip at the prior's"
            )
        if len(end) != len(video):
            raise ValueError(f"{len(video)} videos are sampled but the prior holds {len(end)}: use the same batch size")

    def begin(self, noise: Tensor, latent_image: Tensor | None, start: float, seed: int | None) -> Tensor:
        """The noise to hand to the sampler of a clip's first run."""
        plan = self.plan
        has_data = latent_image is not None and bool(torch.count_nonzero(latent_image))
        if not torch.count_nonzero(noise):  # added by someone else: the latent is the noisy state
            self.seed = None
            of_noise, of_data = plan.noise.coefficients(start)
            state = noise if latent_image is None else latent_image
            units = [stream * (of_data / of_noise) for stream in plan.streams(state)]
        else:
            self.seed, fresh = self.fresh_noise(noise, seed)
            streams = plan.streams(fresh)
            units = [track.start_noise(stream) for track, stream in zip(plan.tracks, streams, strict=True)]
        self.noise = [unit.detach().float().cpu().contiguous() for unit in units]
        for track, unit in zip(plan.tracks, self.noise, strict=True):
            for at, replay in track.steered:
                replay.begin(unit[:, :, at:])
        if not torch.count_nonzero(noise):
            return noise
        factor = plan.noise.start_factor(start, has_data)
        handed = plan.family.layout.packed(units)
        return handed if factor == 1 else handed * factor

    def fresh_noise(self, noise: Tensor, seed: int | None) -> tuple[int | None, Tensor]:
        """The noise that a sampler brought, or other where the video has used that seed already, and its seed."""
        used = self.plan.seeds
        if seed is None or seed not in used or self.plan.video.replay is None:
            return seed, noise
        seed = fresh_seed(seed, len(used), used)
        logger.info("The video has used this seed already, so its noise is drawn from %d.", seed)
        drawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed))
        return seed, drawn.to(noise)

    def recording(self, track: int = 0) -> Recording:
        """All calls of the clip's runs, of one track."""
        whole = Recording()
        for run in self.runs:
            recorded = run.recordings[track]
            whole.sigmas += recorded.sigmas
            whole.states += recorded.states
            whole.predictions += recorded.predictions
        return whole

    def trajectory(self, context: dict[str, Any], track: int = 0) -> Trajectory:
        """What the next clip needs of this one.

        Raises:
            ValueError: nothing was sampled.
        """
        recorded = self.recording(track)
        if not recorded.sigmas:
            raise ValueError("nothing was sampled: connect the MODEL of Reuse: Prepare to the sampler")
        everything = ReuseSettings(overlap_frames=self.plan.tracks[track].kept, guidance_beta=1.0)
        known = (everything, len(self.sigmas) - 1, context)
        return Trajectory(self.noise[track], recorded.states, *known, recorded.predictions, recorded.sigmas)


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
        sigma = float(timestep.flatten()[0])
        call = sum(len(run.recordings[0]) for run in session.runs)
        below = self.next_level(sigma)
        steered = [
            [(at, one) for at, replay in track.steered if (one := replay.at(call, sigma, below)) is not None]
            for track in plan.tracks
        ]
        seen = self.overwritten(x, [[(at, one.shown) for at, one in of_track] for of_track in steered])
        if plan.tells and any(steered):
            told = zip(plan.tracks, steered, strict=True)
            session.told = [track.told_shares(of_track, sigma, plan.noise) for track, of_track in told]
        denoised = self.guider(seen, timestep, *args, **kwargs)
        session.told = []
        predicted = [[(at, one.prediction) for at, one in of_track] for of_track in steered]
        denoised = self.overwritten(denoised, predicted)
        held = plan.streams(x)  # a steered frame as the sampler holds it, not as clean as it is shown
        for track, recorded, state, clean in zip(
            plan.tracks, self.run.recordings, held, plan.streams(denoised), strict=True
        ):
            recorded.add(sigma, track.last(state, plan.dtype), track.last(clean, plan.dtype))
        return denoised

    def overwritten(self, latents: Tensor, frames: list[list[tuple[int, Tensor]]]) -> Tensor:
        """The latents with frames of their tracks at their places; a copy where there are any."""
        plan = self.session.plan
        if not any(one.shape[2] for of_track in frames for _, one in of_track):
            return latents
        latents = latents.clone()
        for track, stream, of_track in zip(plan.tracks, plan.streams(latents), frames, strict=True):
            for at, one in of_track:
                track.write(stream, at, one)
        return latents

    def next_level(self, sigma: float) -> float:
        """The level of the schedule below this one; 0 below the last."""
        return max((level for level in self.levels if level < sigma * (1 - TOLERANCE)), default=0.0)
