"""Text to clips to video outside ComfyUI: :class:`VidRDPipeline`, a diffusers pipeline (arXiv 2309.03549).

The work is cut in three: :func:`vidrd_core.sampling.denoising.denoise_clip` denoises one clip,
:meth:`VidRDPipeline.stream` chains clips one at a time, and :meth:`VidRDPipeline.__call__` and
:meth:`VidRDPipeline.extend` collect them into a video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor

from .models.autoencoder import VidRDAutoencoderKL
from .models.fingerprints import fingerprint
from .models.unet import VidRDUNet
from .reuse.goal import SHORT, Goal, Goals, GoalSettings
from .reuse.noise import initial_noise
from .reuse.presets import PRESETS, find_preset
from .reuse.settings import ReuseSettings
from .reuse.trajectory import Trajectory, frames_hash
from .sampling.denoising import denoise_clip
from .sampling.guidance import GuidedDenoiser
from .sampling.images import Images, pixels_of
from .sampling.prompts import encode_text, negative_states, prompts_of_clips
from .sampling.schedulers import check_context, make_scheduler, prepare_scheduler, scheduler_context
from .sampling.seeds import clip_noise, clip_seed
from .sampling.settings import ALWAYS, Interval, SamplingSettings
from .sampling.state import Clip, VideoState
from .sampling.windows import WindowDecoder, cut_stream, decode_stream, joined

NoiseSource = Callable[[int, Sequence[int]], Tensor]
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any] | None]
OUTPUT_TYPES = ("np", "pt", "latent")
__all__ = ["Goals", "VidRDPipeline", "VidRDPipelineOutput", "denoise_clip"]


@dataclass
class VidRDPipelineOutput(BaseOutput):
    """What a call returns.

    Args:
        frames: the video: "np" ``[B, T, H, W, 3]`` in [0, 1], "pt" ``[B, 3, T, H, W]`` in [-1, 1], "latent" the joined
            latents ``[B, C, T, h, w]``.
        clips: the latents of each clip, ``[B, C, N, h, w]``, as the diffusion model makes them: not divided by the
            VAE's scaling factor, no frames trimmed; on the CPU.
        state: what :meth:`VidRDPipeline.extend` continues.
    """

    frames: np.ndarray | Tensor
    clips: list[Tensor]
    state: VideoState


class _Interrupted(Exception):
    """Sampling was stopped by ``pipe.interrupt`` in the middle of a clip."""


class VidRDPipeline(DiffusionPipeline):
    """Text-to-video of any length, clip by clip.

    Saves to and loads from a model folder like every diffusers pipeline. Any deterministic diffusers scheduler that
    updates its own sample works; others are refused with the reason.

    Args:
        defaults: what suits this model where its user says nothing: "fps", "num_frames", "num_inference_steps",
            "guidance_scale", "negative_prompt", and the names of :class:`ReuseSettings`. Saved in ``model_index.json``.
            The command line uses them; a call's own defaults are the released values.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"  # type: ignore[assignment]
    _callback_tensor_inputs = ["latents"]
    unet: VidRDUNet
    vae: VidRDAutoencoderKL
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    _execution_device: torch.device

    def __init__(
        self,
        unet: VidRDUNet,
        vae: VidRDAutoencoderKL,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        defaults: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(defaults=dict(defaults or {}))
        self.interrupt = False
        self.split_guidance = False
        self.background_decoding = False
        self.preset = PRESETS["paper"]
        self._fingerprints: dict[str, str] = {}

    # -- public calls --------------------------------------------------------------------------------------------------

    def use_preset(self, name: str) -> None:
        """Let the calls that follow use a named preset where they say nothing else, its sampler included.

        Raises:
            ValueError: there is no preset of that name; the message lists them.
        """
        self.preset = find_preset(name)
        self.scheduler = make_scheduler(self.preset.scheduler, self.scheduler.config, self.preset.scheduler_options)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = "watermark",
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        negative_prompt_embeds: Tensor | None = None,
        num_clips: int = 4,
        num_frames: int = 8,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 10.0,
        reuse: ReuseSettings | None = None,
        seed: int | Sequence[int] = 0,
        noise: NoiseSource | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        clip_seeds: Sequence[int | None] | None = None,
        guidance_interval: Interval = ALWAYS,
        guidance_rescale: float | None = None,
        start_image: Images | None = None,
        end_image: Images | None = None,
        loop: bool = False,
    ) -> VidRDPipelineOutput:
        """Make a video of ``num_clips`` chained clips.

        Args:
            prompt: one prompt, or one per clip; the last repeats.
            negative_prompt: what to steer away from; used where ``guidance_scale`` is above 1.
            prompt_embeds: text states ``[B, M, D]`` in place of ``prompt``, or one tensor per clip; B videos are made.
            negative_prompt_embeds: ``[B, M, D]`` or ``[1, M, D]``.
            num_frames: N, frames per clip, 1 to 32.
            height, width: pixels, multiples of the VAE's factor (8); None: the size the model was trained on.
            num_inference_steps: S, denoising steps per clip; None: the preset's (:meth:`use_preset`), at first 50.
            guidance_scale: of classifier-free guidance; 1 or less turns it off and halves the work.
            reuse: how clips reuse one another; None: the preset's, at first the released values, with no longer
                overlap than the clip allows.
            seed: from which every clip's own seed is derived; with several videos one each, or the first of a row.
            noise: ``(clip_index, shape) -> tensor`` of unit variance, in place of seeded noise.
            output_type: "np", "pt" or "latent", see :class:`VidRDPipelineOutput`.
            callback_on_step_end: ``(pipe, step, timestep, {"latents", "clip_index"}) -> dict | None``; may return other
                "latents", and may set ``pipe.interrupt = True`` to stop: finished clips are returned.
            clip_seeds: a seed per clip that replaces the derived one; None entries and missing ones stay derived.
            guidance_interval: the share of the steps, from and to, in which classifier-free guidance runs; the others
                run the prompt alone, in half the time. Changes the result.
            guidance_rescale: 0 (off) to 1, how far a guided prediction is given the contrast of the prompt's own
                (arXiv 2305.08891); None: the preset's, at first 0.
            start_image: what the video begins with: an image, or a clip, whose last frames it repeats and goes on from.
                A PIL image, an array or a tensor (:func:`vidrd_core.sampling.images.pixels_of`); it is scaled and
                cropped to the video's size.
            end_image: what the video ends with: an image, or a clip, at whose first frames it arrives.
            loop: the last clip arrives at the first one's beginning and is cut there, so that the frame after the last
                is the first. It is sampled up to 4 times, to arrive where the motion is most even
                (:func:`vidrd_core.reuse.goal.close`), without the 1 to 4 frames of the beginning that it ends with, and
                with an overlap that leaves room for them (:func:`vidrd_core.reuse.goal.closing`).

        Raises:
            ValueError: an argument does not fit; the message says what came and what was expected.
        """
        known_steps = self.preset.num_inference_steps or SamplingSettings.num_inference_steps
        sampling = SamplingSettings(
            num_frames=num_frames,
            height=self.default_size if height is None else height,
            width=self.default_size if width is None else width,
            num_inference_steps=known_steps if num_inference_steps is None else num_inference_steps,
            guidance_scale=guidance_scale,
            reuse=self.preset.reuse.fitted(num_frames) if reuse is None else reuse,
            negative_prompt=negative_prompt,
            guidance_rescale=self.preset.guidance_rescale if guidance_rescale is None else guidance_rescale,
            guidance_interval=guidance_interval,
        )
        goals = self.make_goals(sampling, start_image, end_image, loop)
        stream = self.stream(
            prompt,
            sampling,
            num_clips,
            goals=goals,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            seed=seed,
            clip_seeds=clip_seeds,
            noise=noise,
            callback_on_step_end=callback_on_step_end,
        )
        return self._collect(stream, sampling, output_type, num_clips, goals=goals)

    @torch.no_grad()
    def extend(
        self,
        previous: VidRDPipelineOutput | VideoState,
        prompt: str | Sequence[str] | None = None,
        num_clips: int = 1,
        *,
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        negative_prompt_embeds: Tensor | None = None,
        guidance_scale: float | None = None,
        reuse: ReuseSettings | None = None,
        clip_seeds: Sequence[int | None] | None = None,
        noise: NoiseSource | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        end_image: Images | None = None,
    ) -> VidRDPipelineOutput:
        """Continue an output or a saved state; returns the *new* clips and their frames.

        The clips are bit-identical to those that one longer call would have made. Settings that are None are the
        previous ones; clip indices count on, and with them derived seeds and a ``noise`` function.

        Args:
            previous: what a call returned, or :meth:`VideoState.load`.
            prompt: None repeats the last one.
            clip_seeds: as in a call, counted from the first new clip.
            end_image: as in a call.
        """
        state = previous if isinstance(previous, VideoState) else previous.state
        sampling = state.sampling
        if guidance_scale is not None:
            sampling = replace(sampling, guidance_scale=guidance_scale)
        if reuse is not None:
            sampling = replace(sampling, reuse=reuse)
        goals = self.make_goals(sampling, None, end_image)
        stream = self.stream(
            prompt,
            sampling,
            num_clips,
            goals=goals,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            state=state,
            clip_seeds=clip_seeds,
            noise=noise,
            callback_on_step_end=callback_on_step_end,
        )
        return self._collect(stream, sampling, output_type, num_clips, state, goals)

    @torch.no_grad()
    def stream(
        self,
        prompt: str | Sequence[str] | None,
        sampling: SamplingSettings,
        num_clips: int,
        *,
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        negative_prompt_embeds: Tensor | None = None,
        state: VideoState | None = None,
        seed: int | Sequence[int] = 0,
        clip_seeds: Sequence[int | None] | None = None,
        noise: NoiseSource | None = None,
        callback_on_step_end: StepCallback | None = None,
        goals: Goals | None = None,
        beginning: Tensor | None = None,
    ) -> Iterator[Clip]:
        """Yield the clips one at a time, each on the CPU with the state to continue from.

        Args as in :meth:`__call__`; ``state`` makes the clips that follow it. ``goals`` are of
        :meth:`make_goals`, an end or a loop being the last of these clips'; ``beginning`` are the latents of a loop's
        first clip, where ``state`` follows it.
        """
        goals = goals or Goals()
        self.check_sampling(sampling, num_clips, state, goals, state is None or beginning is not None)
        past = None if state is None else state.trajectory
        self.interrupt = False
        where = (self._execution_device, self.unet.dtype)
        prompts, known = prompts_of_clips(self.encode_text, prompt, prompt_embeds, num_clips, state)
        texts = [text.to(*where) for text in known]
        batch = texts[0].shape[0]
        if negative_prompt_embeds is None and state is not None:
            negative_prompt_embeds = state.negative
        negative = negative_states(self.encode_text, negative_prompt_embeds, sampling, batch)
        negative = None if negative is None else negative.to(*where)
        given_negative = None if negative_prompt_embeds is None else negative_prompt_embeds.cpu()
        first = 0 if state is None else state.clip_index + 1
        seeds = _batch_seeds(seed if state is None else state.seeds, batch)
        shape = self._latent_shape(batch, sampling)
        model = self.fingerprint_of("unet")
        clips = self.progress_bar(range(num_clips))
        clips.set_description("clips")
        for number in clips:
            index = first + number
            chosen = clip_seeds[number] if clip_seeds is not None and number < len(clip_seeds) else None
            drawn = [clip_seed(s, index) if chosen is None else chosen + b for b, s in enumerate(seeds)]
            fresh = clip_noise(drawn, shape) if noise is None else _checked_noise(noise(index, shape), shape)
            ends = index == 0, number + 1 == num_clips
            reuse = goals.reuse_of(sampling.reuse, ends[1], sampling.num_frames)
            start = fresh if past is None else initial_noise(past.noise, fresh, reuse)
            denoiser = self._guided(texts[number], negative, sampling)
            own = replace(sampling, reuse=reuse)
            run = partial(self._denoise, denoiser, start, own, past, index, callback_on_step_end)
            length = sampling.num_frames
            try:
                (latents, trajectory), goals = goals.make_clip(run, *ends, length, reuse.overlap_frames, beginning)
            except _Interrupted:
                return
            described = goals.describe(*ends, sampling.reuse, length)
            left_out = goals.skipped(*ends), reuse.trim_frames
            clip = Clip(latents.cpu(), index, prompts[number], drawn, None, described, *left_out)
            beginning = clip.latents if index == 0 else beginning
            text, factor = texts[number].cpu(), float(self.vae.config["scaling_factor"])
            clip.state = VideoState.after(clip, trajectory, own, seeds, text, model, state, given_negative, factor)
            state, past = clip.state, trajectory
            yield clip

    def check_sampling(
        self,
        sampling: SamplingSettings,
        num_clips: int,
        state: VideoState | None = None,
        goals: Goals | None = None,
        begins: bool | None = None,
    ) -> None:
        """Find out whether clips can be sampled with these settings, and whether they can follow ``state``.

        Args:
            goals: of the video.
            begins: whether the clips are a video's from its first one on, of which some may be made already; None:
                where there is no ``state``.

        Raises:
            ValueError: they cannot; the message says what came and what was expected.
        """
        factor = self.vae.spatial_factor
        if sampling.height % factor or sampling.width % factor or min(sampling.height, sampling.width) < factor:
            raise ValueError(f"size is {sampling.width}x{sampling.height}; expected positive multiples of {factor}")
        if num_clips < 1:
            raise ValueError(f"num_clips is {num_clips}; expected at least 1")
        prepare_scheduler(self.scheduler, sampling, "cpu")
        if goals:
            begins = state is None if begins is None else begins
            clips = num_clips + (0 if state is None or not begins else state.clip_index + 1)
            goals.check(clips, sampling.num_frames, sampling.reuse, begins)
        if state is not None:
            state.check_open()
            state.check_model(self.fingerprint_of("unet"))
            check_context(state.trajectory.context, scheduler_context(self.scheduler))
            for name in ("sigmas", "guidance_interval"):
                before, now = getattr(state.sampling, name), getattr(sampling, name)
                if before != now:
                    raise ValueError(f"{name} was {before} in the clip before and is {now}; set it back")

    def encode_text(self, text: str) -> Tensor:
        """The states ``[1, M, D]`` that the text encoder makes of a prompt."""
        return encode_text(self.tokenizer, self.text_encoder, text, self._execution_device)

    @torch.no_grad()
    def make_goals(
        self,
        sampling: SamplingSettings,
        start_image: Images | None = None,
        end_image: Images | None = None,
        loop: bool = False,
        joins: bool = False,
        settings: GoalSettings | None = None,
    ) -> Goals:
        """Given frames as the goals of a video, encoded by the VAE; arguments as in a call and :class:`Goals`.

        Raises:
            ValueError: they do not go together, or are no images.
        """
        settings = settings or GoalSettings()
        size = sampling.height, sampling.width
        start = None if start_image is None else pixels_of(start_image, *size)[:, :, -settings.start_frames :]
        end = None if end_image is None else pixels_of(end_image, *size)[:, :, : settings.frames]
        begins, ends = (None if frames is None else self.encode_frames(frames) for frames in (start, end))
        first, last = ("" if frames is None else frames_hash(frames)[:SHORT] for frames in (start, end))
        return Goals(begins, ends, loop, joins, settings, (first, last))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Latents ``[B, C, T, h, w]`` as the diffusion model makes them, on the CPU, of frames ``[B, 3, T, H, W]``."""
        self._bring_vae()
        encoded = self.vae.encode(frames.to(self._execution_device, self.vae.dtype)).latent_dist.mode()
        return encoded.float().cpu() * self.vae.config["scaling_factor"]

    def _bring_vae(self) -> None:
        """Have the VAE on its device: encode and decode are no forward, for which offloading would bring it in."""
        offloading: Any = getattr(self.vae, "_hf_hook", None)
        if hasattr(offloading, "pre_forward"):
            offloading.pre_forward(self.vae)

    def make_decoder(self, sampling: SamplingSettings) -> WindowDecoder:
        """A streaming decoder of the clips' latents (as :class:`Clip` holds them) to frames on the CPU."""

        @torch.no_grad()
        def decode(latents: Tensor) -> Tensor:
            self._bring_vae()
            latents = latents.to(self._execution_device, self.vae.dtype) / self.vae.config["scaling_factor"]
            return self.vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1).cpu()

        return WindowDecoder(decode, sampling.num_frames)

    @torch.no_grad()
    def decode_clips(
        self, clips: Iterable[Clip], sampling: SamplingSettings, state: VideoState | None = None
    ) -> Iterator[Tensor]:
        """Join clips and yield their frames ``[B, 3, t, H, W]`` in [-1, 1] on the CPU, piece by piece, as they come.

        Args:
            state: that the first of ``clips`` continues; its frames are not repeated.
        """
        skipped = [0, 0]  # the decoder sees the frames that are left out, which the video goes on with elsewhere

        def latents() -> Iterator[Tensor]:
            for clip in clips:
                skipped[0], skipped[1] = skipped[0] + clip.skipped[0], clip.skipped[1]
                yield clip.trimmed(sampling.reuse)

        device = self._execution_device if self.background_decoding else None
        tail = None if state is None else state.tail
        yield from cut_stream(decode_stream(self.make_decoder(sampling), latents(), tail, device), skipped)

    def fingerprint_of(self, name: str) -> str:
        """The fingerprint of a component as it was loaded, also where its weights are cast or away from memory now."""
        return self._fingerprints.get(name) or fingerprint(getattr(self, name))

    def keep_fingerprints(self) -> None:
        """Remember the fingerprints of all models; called before their weights are cast or moved away."""
        models = {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}
        self._fingerprints = {name: fingerprint(model) for name, model in models.items()}

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _guided(self, text: Tensor, negative: Tensor | None, sampling: SamplingSettings) -> GuidedDenoiser:
        return GuidedDenoiser(
            self.unet,
            text,
            negative,
            sampling.guidance_scale,
            sampling.guidance_interval,
            sampling.guidance_rescale,
            self.split_guidance,
        )

    def _denoise(
        self,
        denoiser: GuidedDenoiser,
        start: Tensor,
        sampling: SamplingSettings,
        past: Trajectory | None,
        index: int,
        callback: StepCallback | None,
        goals: Sequence[Goal] = (),
    ) -> tuple[Tensor, Trajectory]:
        device = self._execution_device
        scheduler = prepare_scheduler(self.scheduler, sampling, device)
        with self.progress_bar(total=len(scheduler.timesteps)) as bar:
            bar.set_description(f"clip {index}")

            def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
                bar.update()
                changed = None
                if callback is not None:
                    changed = callback(self, step, timestep, {"latents": latents, "clip_index": index})
                if self.interrupt:
                    raise _Interrupted
                return None if changed is None else changed.get("latents")

            start = start.to(device, torch.float32)
            latents, trajectory = denoise_clip(denoiser, scheduler, start, sampling.reuse, past, on_step, goals)
        return latents, replace(trajectory, context=scheduler_context(self.scheduler))

    def _collect(
        self,
        stream: Iterator[Clip],
        sampling: SamplingSettings,
        output_type: str,
        num_clips: int,
        state: VideoState | None = None,
        goals: Goals | None = None,
    ) -> VidRDPipelineOutput:
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}")
        clips: list[Tensor] = []
        last = state

        def collected() -> Iterator[Clip]:
            nonlocal last
            for clip in stream:
                clips.append(clip.latents)
                last = clip.state
                yield clip

        total = (goals or Goals()).num_added(num_clips, sampling.num_frames, sampling.reuse, state is None)
        pieces: Iterator[Any]
        if output_type == "latent":
            pieces = (clip.joined(sampling.reuse) for clip in collected())
        else:
            pieces = (_to_output(piece, output_type) for piece in self.decode_clips(collected(), sampling, state))
        frames = joined(pieces, total, axis=1 if output_type == "np" else 2)
        if last is None or not clips:
            raise RuntimeError("interrupted before the first clip was finished: there is nothing to return")
        return VidRDPipelineOutput(frames=frames, clips=clips, state=last)

    @property
    def default_size(self) -> int:
        """Height and width in pixels of the frames this model was trained on."""
        return (self.unet.config["sample_size"] or 32) * self.vae.spatial_factor

    def _latent_shape(self, batch: int, sampling: SamplingSettings) -> tuple[int, ...]:
        factor = self.vae.spatial_factor
        size = (sampling.num_frames, sampling.height // factor, sampling.width // factor)
        return (batch, self.unet.config["in_channels"], *size)


def _to_output(piece: Tensor, output_type: str) -> np.ndarray | Tensor:
    if output_type == "pt":
        return piece
    return rearrange((piece + 1) / 2, "b c t h w -> b t h w c").contiguous().numpy()


def _batch_seeds(seed: int | Sequence[int], batch: int) -> list[int]:
    seeds = [seed + b for b in range(batch)] if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise ValueError(f"{len(seeds)} seeds were given for {batch} videos; give one each, or a single number")
    return seeds


def _checked_noise(noise: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(noise.shape) != tuple(shape):
        raise ValueError(f"noise returned {list(noise.shape)}; expected {list(shape)}")
    return noise
