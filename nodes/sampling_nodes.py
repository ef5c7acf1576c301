"""Nodes that sample: a first clip, the next clip, many clips."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..vidrd_core.reuse.settings import ReuseSettings
from .samplers import sampler_names
from .sampling_inputs import (
    EXTENDING,
    MODEL_TIP,
    NEGATIVE_TIP,
    POSITIVE_TIP,
    SAMPLER_TIP,
    SCHEDULER_TIP,
    advanced,
    cfg_input,
    expert_inputs,
    found_by,
    goal_input,
    loop_input,
    override_inputs,
    prior_positive_input,
    reuse_inputs,
    seed_input,
    tell_input,
)
from .words import AUTO, CATEGORY, RELEASED_SAMPLER, RELEASED_SCHEDULER


class SampleFirstClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="VidRDSampleFirstClip",
            display_name="Sample First Clip",
            category=CATEGORY,
            description=("Sample the first clip of a video and keep what Reuse and Diffuse needs to continue it."),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Conditioning.Input("positive", tooltip=POSITIVE_TIP),
                io.Conditioning.Input("negative", tooltip=NEGATIVE_TIP),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "Empty VidRD Latent, which sets size and frames; or an encoded video to start from, "
                        "with denoise below 1."
                    ),
                ),
                seed_input(),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip=("Denoising steps; time grows with them. The release used 50, 20 to 30 often do."),
                ),
                cfg_input(),
                io.Combo.Input("sampler_name", options=sampler_names(), default=RELEASED_SAMPLER, tooltip=SAMPLER_TIP),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default=RELEASED_SCHEDULER,
                    tooltip=SCHEDULER_TIP,
                ),
                *advanced(
                    [
                        io.Float.Input(
                            "denoise",
                            default=1.0,
                            min=0.01,
                            max=1.0,
                            step=0.01,
                            tooltip=(
                                "Share of the noise, 0.01 to 1. 1 starts from pure noise and takes only the size of "
                                "LATENT; less keeps more of the video in it. Clips that follow start from pure noise "
                                "and take as many steps."
                            ),
                        ),
                        io.Float.Input(
                            "progressive_alpha",
                            default=0.0,
                            min=0.0,
                            max=1000.0,
                            step=0.1,
                            round=0.001,
                            tooltip=(
                                "Progressive noise inside the clip: each frame's noise takes a / sqrt(1 + a^2) from "
                                "the frame before. 0 (released) is off; more makes calmer motion."
                            ),
                        ),
                    ]
                ),
                *advanced(expert_inputs()),
            ],
            outputs=[
                io.Latent.Output(
                    "latent_out", display_name="LATENT", tooltip="The clip, for VAE Decode and for Reuse and Diffuse."
                )
            ],
        )
        return found_by(schema, "text to video", "t2v", "generate video", "long video")

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, latent: Any, seed: int, steps: int, cfg: float,
        sampler_name: str, scheduler: str, denoise: float, progressive_alpha: float, model_low: Any = None,
        switch_at_step: int = 0, sigmas: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .any_model.families import family_of
        from .clips import first_clip
        from .planning import read_latent
        from .said import ran, warn
        from .schedules import Models, Schedule

        schedule = Schedule(steps, sampler_name, scheduler)
        if sigmas is not None:
            schedule = Schedule.of_levels(sigmas, sampler_name)
        family = family_of(model)
        start = read_latent(latent, "LATENT", model, family)
        warnings = warn(model, start.samples, schedule.steps, cfg)
        models = Models(model, model_low, switch_at_step)
        made = first_clip(models, positive, negative, start, seed, schedule, cfg, denoise, progressive_alpha)
        return io.NodeOutput(made.to_wire(), ui=ran(made.samples.shape[2], None, family, warnings=warnings))


class ReuseAndDiffuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="VidRDReuseAndDiffuse",
            display_name="Reuse and Diffuse",
            category=CATEGORY,
            description=(
                "Continue a video by one clip that reuses the noise and follows the denoising of the "
                "clip before. Chain as many as you like."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Conditioning.Input("positive", tooltip=POSITIVE_TIP + " It may differ from the prior's."),
                io.Conditioning.Input("negative", tooltip=NEGATIVE_TIP),
                io.Latent.Input(
                    "prior",
                    tooltip=(
                        "The video to continue: LATENT of Sample First Clip or Reuse and Diffuse. Any other "
                        "video latents work too (KSampler, VAE Encode); their trajectory is rebuilt. A single image "
                        "becomes a still clip, which the new clip follows (image to video)."
                    ),
                ),
                seed_input(),
                cfg_input(),
                *advanced(reuse_inputs(), but=("preset",)),
                *advanced(override_inputs()),
                prior_positive_input(),
                *advanced(expert_inputs()),
                *advanced([tell_input()]),
                goal_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "video",
                    display_name="video so far",
                    tooltip=("The prior with the new clip at its end; continue from here, or decode it."),
                ),
                io.Latent.Output(
                    "clip",
                    display_name="new clip",
                    tooltip=("The new clip alone, all its frames; continuing from here starts a new video with it."),
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What the new clip keeps and adds, in frames and latents, and how it was chained.",
                ),
            ],
        )
        return found_by(
            schema,
            *EXTENDING,
            "next clip",
            "video extension",
            "image to video",
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, prior: Any, seed: int, cfg: float, preset: str,
        overlap_frames: int, noise_alpha: float, guidance_beta: float, order: str, trim_frames: int, stages: str,
        guidance_lead: float, steps: int, sampler_name: str, scheduler: str, prior_trajectory: str, clip_frames: int,
        prior_positive: Any = None, model_low: Any = None, switch_at_step: int = 0, sigmas: Any = None,
        tell_levels: str = AUTO, goal: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .any_model.families import family_of
        from .clips import next_clip
        from .planning import read_goal, read_latent, reuse_settings
        from .said import ran, warn
        from .schedules import Models, Overrides

        family = family_of(model)
        video = read_latent(prior, "prior", model, family)
        chosen = ReuseSettings(
            overlap_frames, noise_alpha, guidance_beta, order, trim_frames, stages, cleaner_overlap=guidance_lead
        )
        settings = reuse_settings(preset, chosen, family, video, clip_frames, model)
        overrides = Overrides(steps, sampler_name, scheduler, prior_trajectory, clip_frames)
        models = Models(model, model_low, switch_at_step)
        arrives = None
        if goal is not None:
            arrives = read_goal(goal, model, family, len(video.samples))
        asked = (prior_positive, sigmas, tell_levels, preset, arrives)
        longer, clip, report = next_clip(models, positive, negative, video, seed, cfg, settings, overrides, *asked)
        latents = longer.samples.shape[2]
        added = latents - video.samples.shape[2]
        shown = ran(latents, added, family, settings, preset, report, warn(model, None, 0, cfg))
        return io.NodeOutput(longer.to_wire(), clip.to_wire(), report, ui=shown)


class ManyClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="VidRDManyClips",
            display_name="Reuse and Diffuse (Many Clips)",
            category=CATEGORY,
            description=(
                "Continue a video by many clips in one node, with a prompt and a seed for each. "
                "Finished clips can be kept on disk, so that an interrupted or changed run makes "
                "only what is missing or changed."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Clip.Input("clip", tooltip="The model's text encoder, which encodes the prompts below."),
                io.Conditioning.Input("negative", tooltip=NEGATIVE_TIP),
                io.Latent.Input(
                    "prior",
                    tooltip=(
                        "The video to continue. Empty VidRD Latent begins a new one, whose first clip is then"
                        " sampled from noise."
                    ),
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip=(
                        "One prompt per line, one line per clip; the last line repeats for the clips that "
                        "remain. Empty lines are skipped."
                    ),
                ),
                io.Int.Input(
                    "num_clips",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip=(
                        "Clips to add, 1 to 1000. Frames added = clips * (clip length - trimmed); the first "
                        "clip of a new video is not trimmed."
                    ),
                ),
                seed_input(),
                *advanced(
                    [
                        io.String.Input(
                            "clip_seeds",
                            default="",
                            tooltip=(
                                "Seeds of the clips in order, with commas between; - or nothing derives a clip's seed"
                                " from seed. Changing one re-makes that clip and those after it."
                            ),
                        ),
                    ]
                ),
                cfg_input(),
                *advanced(reuse_inputs(), but=("preset",)),
                *advanced(override_inputs()),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip=(
                        "Where finished clips are kept: ComfyUI/output/vidrd/<run name>. Running again reuses"
                        " every clip that nothing changed for. Clips that continue different priors are kept apart."
                        " Empty keeps them until ComfyUI starts again."
                    ),
                ),
                *advanced(
                    [
                        io.Int.Input(
                            "regenerate_from",
                            default=0,
                            min=0,
                            max=1000,
                            tooltip=(
                                "0 re-makes only what changed. k keeps clips 1 to k - 1 of the run as they are, "
                                "whatever prompts, seeds, cfg or reuse are now, and makes k and those after it anew."
                            ),
                        ),
                    ]
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=("Used for every clip in place of prompts, when prompts is empty."),
                ),
                prior_positive_input(),
                *advanced(expert_inputs()),
                *advanced([tell_input()]),
                loop_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Latent.Output("video", display_name="video", tooltip="The prior with all new clips at its end."),
                io.Latent.Output("last_clip", display_name="last clip", tooltip="The last clip alone."),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip=("Which clips were reused and which made, with their seeds and prompts."),
                ),
            ],
        )
        return found_by(
            schema,
            *EXTENDING,
            "text to video",
            "prompt per clip",
            "prompt schedule",
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, negative: Any, prior: Any, prompts: str, num_clips: int, seed: int, clip_seeds: str,
        cfg: float, preset: str, overlap_frames: int, noise_alpha: float, guidance_beta: float, order: str,
        trim_frames: int, stages: str, guidance_lead: float, steps: int, sampler_name: str, scheduler: str,
        prior_trajectory: str, clip_frames: int, run_name: str, regenerate_from: int, positive: Any = None,
        prior_positive: Any = None, model_low: Any = None, switch_at_step: int = 0, sigmas: Any = None,
        tell_levels: str = AUTO, loop: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        from . import many
        from .any_model.families import family_of
        from .planning import read_latent, reuse_settings
        from .said import ran, warn
        from .schedules import Models, Overrides

        family = family_of(model)
        video = read_latent(prior, "prior", model, family)
        chosen = ReuseSettings(
            overlap_frames, noise_alpha, guidance_beta, order, trim_frames, stages, cleaner_overlap=guidance_lead
        )
        settings = reuse_settings(preset, chosen, family, video, clip_frames, model)
        texts = many.per_clip_prompts(prompts, num_clips)
        seeds = many.per_clip_seeds(seed, clip_seeds, num_clips, many.first_index(video))
        overrides = Overrides(steps, sampler_name, scheduler, prior_trajectory, clip_frames)
        asked = (sigmas, tell_levels, switch_at_step, preset, loop)
        run = many.Run(seeds, cfg, settings, overrides, regenerate_from, *asked)
        encoded = many.encode(clip, texts, positive if not prompts.strip() else None)
        node = str(getattr(cls.hidden, "unique_id", None) or "")
        kept = (run_name.strip(), node)
        models = Models(model, model_low, switch_at_step)
        warnings = warn(model, video.samples if video.begins else None, steps, cfg)
        longer, last, report = many.make_clips(models, encoded, negative, video, run, *kept, prior_positive)
        latents = longer.samples.shape[2]
        added = None if video.begins else latents - video.samples.shape[2]
        shown = ran(latents, added, family, settings, preset, report.splitlines()[-1], warnings)
        return io.NodeOutput(longer.to_wire(), last.to_wire(), report, ui=shown)
