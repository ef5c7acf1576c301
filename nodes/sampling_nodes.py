"""Nodes that sample: a first clip, the next clip, many clips."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from .rebuild import METHODS
from .steering import sampler_names
from .words import AUTO, CATEGORY, CUSTOM, FROM_PRIOR, REUSE_PRESETS

MAX_SEED = 2**63 - 1  # the highest that gives every clip noise of its own

MODEL_TIP = "A VidRD model from Load VidRD Model or Load VidRD Temporal U-Net, with or without LoRAs."
POSITIVE_TIP = "What the clip shows: CLIP Text Encode with the model's own CLIP."
NEGATIVE_TIP = "What to steer away from. The released model was used with the word watermark."
CFG_TIP = (
    "Classifier-free guidance scale. 1 ignores the negative prompt and halves the time; "
    "the release used 10. Higher follows the prompt more closely and saturates colours."
)
SAMPLER_TIP = (
    "Sampling method; the release used ddim. Samplers that add noise in every step "
    "(ancestral, sde, ddpm) keep less of the clip before. lcm, sa_solver, uni_pc, "
    "dpm_fast and dpm_adaptive cannot be steered and are left out."
)
SCHEDULER_TIP = "How noise falls over the steps; the release used ddim_uniform."


def seed_input() -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip=(
            "Seed of this clip's noise, 0 to 2^63 - 1. The same seed gives the same clip on any "
            "device; changing it makes this clip and those after it anew, and nothing before."
        ),
    )


def cfg_input() -> Any:
    return io.Float.Input("cfg", default=10.0, min=1.0, max=100.0, step=0.1, round=0.01, tooltip=CFG_TIP)


def reuse_inputs() -> list[Any]:
    """The settings of Reuse and Diffuse; defaults are the released values."""
    return [
        io.Combo.Input(
            "preset",
            options=[CUSTOM, *REUSE_PRESETS],
            default=CUSTOM,
            tooltip=(
                "paper and smooth set the seven settings below: the released values, and the best that we measured on "
                "the bundled model (docs/evaluation.md). custom takes what stands below."
            ),
        ),
        io.Int.Input(
            "overlap_frames",
            default=4,
            min=0,
            max=32,
            tooltip=(
                "M, the frames at the start of the new clip that are steered along frames of the "
                "prior, 0 to the clip's length. More holds on to the prior, fewer leave more freedom;"
                " the release used 4 of 8."
            ),
        ),
        io.Float.Input(
            "noise_alpha",
            default=4.0,
            min=0.0,
            max=1000.0,
            step=0.1,
            round=0.001,
            tooltip=(
                "How much of the prior's noise the other frames reuse: a / sqrt(1 + a^2) of it, the "
                "rest is fresh. 0 is all fresh, 4 (released) keeps 97 percent, 1000 practically all. "
                "More looks more alike and moves less."
            ),
        ),
        io.Float.Input(
            "guidance_beta",
            default=0.4,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip=(
                "b, the share of the steps through which the first overlap frame is steered, 0 to 1; "
                "each further frame for less: steps * b * (M - j) / M. Higher joins more smoothly and"
                " changes less; the release used 0.4."
            ),
        ),
        io.Combo.Input(
            "order",
            options=["reverse", "forward"],
            default="reverse",
            tooltip=(
                "reverse (the paper): the new clip starts at the prior's last frame and its overlap "
                "runs back through the prior's tail. forward: the overlap repeats the prior's last "
                "frames in their own order; then trim them."
            ),
        ),
        io.Int.Input(
            "trim_frames",
            default=0,
            min=0,
            max=31,
            tooltip=(
                "Frames cut from the start of the new clip when it joins the video. 0 keeps all, as "
                "the release does; with order forward use the overlap. Video length = prior + clip "
                "length - trimmed."
            ),
        ),
        io.Combo.Input(
            "stages",
            options=["linear", "uniform"],
            default="linear",
            tooltip=(
                "Which steps steer the overlap. linear (the paper): each further overlap frame for fewer steps; suits "
                "reverse. uniform: all for steps * b; suits forward, whose last overlap frame the new ones go on from."
            ),
        ),
        io.Float.Input(
            "guidance_lead",
            default=0.0,
            min=0.0,
            max=0.95,
            step=0.05,
            round=0.001,
            tooltip=(
                "How much cleaner than the new frames the overlap is shown, 0 to 0.95: at step s the prior's state "
                "before step s + lead * (steps - s). 0 (the paper): equally noisy. 0.8 joins without a jump where the "
                "model can use it, as the bundled one can."
            ),
        ),
    ]


def override_inputs() -> list[Any]:
    """What normally comes from the prior."""
    return [
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=1000,
            tooltip=(
                "Denoising steps. 0 takes the prior's (50 where it has none). Another number than the"
                " prior's needs prior_trajectory invert or noise."
            ),
        ),
        io.Combo.Input(
            "sampler_name",
            options=[FROM_PRIOR, *sampler_names()],
            default=FROM_PRIOR,
            tooltip=("from prior takes the one that made the prior (ddim where it has none). ") + SAMPLER_TIP,
        ),
        io.Combo.Input(
            "scheduler",
            options=[FROM_PRIOR, *comfy.samplers.SCHEDULER_NAMES],
            default=FROM_PRIOR,
            tooltip=("from prior takes the one that made the prior (ddim_uniform where it has none). ") + SCHEDULER_TIP,
        ),
        io.Combo.Input(
            "prior_trajectory",
            options=[AUTO, *METHODS],
            default=AUTO,
            tooltip=(
                "auto uses the noise and states that a sampling node stored in the prior, and "
                "rebuilds them for plain latents. invert always rebuilds by DDIM inversion (one pass "
                "per step); noise adds known noise (no cost)."
            ),
        ),
        io.Int.Input(
            "clip_frames",
            default=0,
            min=0,
            max=32,
            tooltip=(
                "Frames per clip, 0 to 32. 0 takes the prior's clip length, or its last 8 frames "
                "where it has no trajectory. Only a prior without trajectory can be continued with "
                "another length."
            ),
        ),
    ]


class SampleFirstClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
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
                io.Combo.Input("sampler_name", options=sampler_names(), default="ddim", tooltip=SAMPLER_TIP),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="ddim_uniform", tooltip=SCHEDULER_TIP
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Share of the noise, 0.01 to 1. 1 starts from pure noise; less keeps more of the "
                        "video in LATENT."
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
            ],
            outputs=[
                io.Latent.Output(
                    "latent_out", display_name="LATENT", tooltip="The clip, for VAE Decode and for Reuse and Diffuse."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, latent: Any, seed: int, steps: int, cfg: float,
        sampler_name: str, scheduler: str, denoise: float, progressive_alpha: float,
    ) -> io.NodeOutput:  # fmt: skip
        from .clips import Schedule, first_clip

        schedule = Schedule(steps, sampler_name, scheduler)
        return io.NodeOutput(
            first_clip(model, positive, negative, latent, seed, schedule, cfg, denoise, progressive_alpha)
        )


class ReuseAndDiffuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
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
                        "video latents work too (KSampler, VAE Encode); their trajectory is rebuilt."
                    ),
                ),
                seed_input(),
                cfg_input(),
                *reuse_inputs(),
                *override_inputs(),
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
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, prior: Any, seed: int, cfg: float, preset: str,
        overlap_frames: int, noise_alpha: float, guidance_beta: float, order: str, trim_frames: int, stages: str,
        guidance_lead: float, steps: int, sampler_name: str, scheduler: str, prior_trajectory: str, clip_frames: int,
    ) -> io.NodeOutput:  # fmt: skip
        from .clips import next_clip, reuse_settings

        chosen = (overlap_frames, noise_alpha, guidance_beta, order, trim_frames, stages, guidance_lead)
        settings = reuse_settings(preset, chosen, prior, clip_frames)
        rest = (steps, sampler_name, scheduler, prior_trajectory, clip_frames)
        return io.NodeOutput(*next_clip(model, positive, negative, prior, seed, cfg, settings, *rest))


class ManyClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDManyClips",
            display_name="Reuse and Diffuse (Many Clips)",
            category=CATEGORY,
            description=(
                "Continue a video by many clips in one node, with a prompt and a seed for each. "
                "Finished clips can be kept on disk, so that an interrupted or changed run goes on "
                "where it must."
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
                io.String.Input(
                    "clip_seeds",
                    default="",
                    tooltip=(
                        "Seeds of the clips in order, with commas between; - or nothing derives a clip's seed"
                        " from seed. Changing one re-makes that clip and those after it."
                    ),
                ),
                cfg_input(),
                *reuse_inputs(),
                *override_inputs(),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip=(
                        "Where finished clips are kept: ComfyUI/output/vidrd/<run name>. Running again reuses"
                        " every clip that nothing changed for. Empty keeps nothing."
                    ),
                ),
                io.Int.Input(
                    "regenerate_from",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip=(
                        "0 re-makes only what changed. k keeps clips 1 to k - 1 of the run as they are, "
                        "whatever else changed, and makes k and those after it anew."
                    ),
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=("Used for every clip in place of prompts, when prompts is empty."),
                ),
            ],
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

    @classmethod
    def execute(
        cls, model: Any, clip: Any, negative: Any, prior: Any, prompts: str, num_clips: int, seed: int, clip_seeds: str,
        cfg: float, preset: str, overlap_frames: int, noise_alpha: float, guidance_beta: float, order: str,
        trim_frames: int, stages: str, guidance_lead: float, steps: int, sampler_name: str, scheduler: str,
        prior_trajectory: str, clip_frames: int, run_name: str, regenerate_from: int, positive: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        from . import many
        from .clips import reuse_settings

        chosen = (overlap_frames, noise_alpha, guidance_beta, order, trim_frames, stages, guidance_lead)
        settings = reuse_settings(preset, chosen, prior, clip_frames)
        texts = many.per_clip_prompts(prompts, num_clips)
        seeds = many.per_clip_seeds(seed, clip_seeds, num_clips, many.first_index(prior))
        plan = many.Plan(
            texts, seeds, cfg, settings, steps, sampler_name, scheduler, prior_trajectory, clip_frames, regenerate_from
        )
        encoded = many.encode(clip, texts, positive if not prompts.strip() else None)
        return io.NodeOutput(*many.make_clips(model, encoded, negative, prior, plan, many.run_store(run_name)))
