"""Inputs that the sampling nodes share: seed, guidance, settings of the reuse, what normally comes from the prior."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from .samplers import sampler_names
from .words import AUTO, CUSTOM, FROM_PRIOR, METHODS, OFF, ON, REUSE_PRESETS

MAX_SEED = 2**63 - 1  # the highest that gives every clip noise of its own

MODEL_TIP = (
    "Any video model: VidRD's own (Load VidRD Model), Wan, LTX-Video, HunyuanVideo, Mochi, Cosmos, Stable Video "
    "Diffusion, or an image model with AnimateDiff, with or without LoRAs."
)
POSITIVE_TIP = "What the clip shows: CLIP Text Encode with the model's own CLIP."
NEGATIVE_TIP = "What to steer away from. The released model was used with the word watermark."
CFG_TIP = (
    "Classifier-free guidance scale. 1 ignores the negative prompt and halves the time; "
    "the release used 10. Higher follows the prompt more closely and saturates colours."
)
SAMPLER_TIP = (
    "Sampling method; the release used ddim. Samplers that add noise in every step "
    "(ancestral, sde, ddpm) keep less of the clip before. dpm_adaptive cannot be steered and is left out."
)
SCHEDULER_TIP = (
    "How noise falls over the steps; the release used ddim_uniform. Where steps do not divide 1000, "
    "ddim_uniform makes a few more of them, as in KSampler: 16 of 15."
)

EXTENDING = ("extend video", "continue video", "long video", "chain clips")  # what people search for


def advanced(inputs: list[Any], but: tuple[str, ...] = ()) -> list[Any]:
    """The same inputs; their widgets, but for those named, are shown only when the user asks for the advanced ones."""
    for one in inputs:
        if isinstance(one, io.WidgetInput) and one.id not in but:
            one.extra_dict["advanced"] = True  # the argument ``advanced`` is missing in ComfyUI 0.3.64
    return inputs


def found_by(schema: io.Schema, *words: str) -> io.Schema:
    """A schema that the node search finds by these words too, where ComfyUI knows search aliases (0.3.64 does not)."""
    schema.search_aliases = list(words)
    return schema


def seed_input() -> Any:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip=(
            "Seed of this clip's noise, 0 to 2^63 - 1. The same seed gives the same clip on any "
            "device; changing it makes this clip and those after it anew, and nothing before. Where the video has used "
            "it already, another is derived from it, so that no noise repeats."
        ),
    )


def cfg_input() -> Any:
    return io.Float.Input("cfg", default=10.0, min=1.0, max=100.0, step=0.1, round=0.01, tooltip=CFG_TIP)


def reuse_inputs() -> list[Any]:
    """The settings of Reuse and Diffuse; defaults are the released values."""
    return [
        io.Combo.Input(
            "preset",
            options=[AUTO, CUSTOM, *REUSE_PRESETS],
            default=AUTO,
            tooltip=(
                "auto chains as suits the model's family, or as a VidRD model's folder says, and tells how in report. "
                "paper and smooth: the released values, and the best that we measured on the bundled model. "
                "custom takes what stands below."
            ),
        ),
        io.Int.Input(
            "overlap_frames",
            default=4,
            min=0,
            max=512,
            tooltip=(
                "M, the frames at the start of the new clip that are steered along frames of the "
                "prior, 0 to the clip's length; rounded up to whole latents. More holds on to the prior, fewer leave "
                "more freedom; the release used 4 of 8."
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
                "frames in their own order; then trim them. Families with several frames per latent: forward only."
            ),
        ),
        io.Int.Input(
            "trim_frames",
            default=0,
            min=0,
            max=512,
            tooltip=(
                "Frames cut from the start of the new clip when it joins the video. 0 keeps all, as "
                "the release does; with order forward use the overlap. Video length = prior + clip "
                "length - trimmed. Families with several frames per latent always cut the overlap."
            ),
        ),
        io.Combo.Input(
            "stages",
            options=["linear", "uniform"],
            default="linear",
            tooltip=(
                "Which steps steer the overlap. linear (the paper): each further overlap frame for fewer steps; suits "
                "reverse. uniform: all for steps * b; suits forward, whose last overlap frame the new ones continue."
            ),
        ),
        io.Float.Input(
            "guidance_lead",  # its id in every saved workflow
            display_name="cleaner_overlap",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip=(
                "How much cleaner than the new frames the overlap is, 0 to 1: at step s it is the prior's state "
                "before step s + this * (steps - s); with other families by noise levels, as in Stable Diffusion's "
                "schedule. 0 (the paper): equally noisy. 0.8: nearly clean, joins without a jump. 1: clean."
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
                "Denoising steps. 0 takes the prior's (where it has none what a VidRD model's folder says or 50, for "
                "other families 20). Of a VidRD video another number than the prior's needs prior_trajectory invert or "
                "noise."
            ),
        ),
        *prior_sampler_inputs(),
        io.Combo.Input(
            "prior_trajectory",
            options=[AUTO, *METHODS],
            default=AUTO,
            tooltip=(
                "auto uses the noise and states that a sampling node stored in the prior, and rebuilds them for plain "
                "latents: VidRD by invert, other families by noise. invert rebuilds by DDIM inversion (one pass of the "
                "model per step); noise follows the straight line from noise to the prior (no cost)."
            ),
        ),
        io.Int.Input(
            "clip_frames",
            default=0,
            min=0,
            max=1024,
            tooltip=(
                "Frames per clip. 0 takes the prior's clip length, else what is usual for the model's family (Wan 81). "
                "Of VidRD: at most 32 and those of the prior unless it is an image; 0 takes the last 8 frames where it "
                "has no trajectory (all of a shorter one), and only such a prior can be continued with another length."
            ),
        ),
    ]


def prior_sampler_inputs() -> list[Any]:
    """Sampler and scheduler, which normally come from the prior."""
    return [
        io.Combo.Input(
            "sampler_name",
            options=[FROM_PRIOR, *sampler_names()],
            default=FROM_PRIOR,
            tooltip="from prior takes the one that made the prior (else ddim, of other families euler). " + SAMPLER_TIP,
        ),
        io.Combo.Input(
            "scheduler",
            options=[FROM_PRIOR, *comfy.samplers.SCHEDULER_NAMES],
            default=FROM_PRIOR,
            tooltip=(
                "from prior takes the one that made the prior (else ddim_uniform, of other families simple). "
                + SCHEDULER_TIP
            ),
        ),
    ]


def prior_positive_input() -> Any:
    return io.Conditioning.Input(
        "prior_positive",
        optional=True,
        tooltip=(
            "What the prior shows (CLIP Text Encode), for inverting a prior without a usable trajectory. Unconnected, "
            "the prompt that its last clip was sampled with counts, where that is known; else negative, so that an "
            "empty negative prompt inverts unconditionally."
        ),
    )


def expert_inputs() -> list[Any]:
    """The second expert of Wan 2.2 14B, and noise levels of a scheduler node."""
    return [
        io.Model.Input(
            "model_low",
            optional=True,
            tooltip="The low-noise expert of Wan 2.2 14B, which takes over at switch_at_step; model is then the other.",
        ),
        io.Int.Input(
            "switch_at_step",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="The step from which model_low samples. 0: the middle, in later clips the prior's.",
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels of a scheduler node (LTXVScheduler, BasicScheduler) in place of steps and scheduler.",
        ),
    ]


def tell_input() -> Any:
    return io.Combo.Input(
        "tell_levels",
        options=[AUTO, ON, OFF],
        default=AUTO,
        optional=True,
        tooltip=(
            "Whether the network is told that the overlap is cleaner than the new frames. auto: where it was trained "
            "for that (LTX-Video, Wan 2.2 5B, Cosmos Predict2). on also suits Wan models trained by Diffusion Forcing "
            "(SkyReels-V2-DF)."
        ),
    )


def goal_input() -> Any:
    return io.Latent.Input(
        "goal",
        optional=True,
        tooltip=(
            "What the new clip arrives at: an image or a clip (VAE Encode, of the video's size), whose first 2 frames "
            "become the clip's last ones. With an image as prior: in-betweening. Families with several frames per "
            "latent need a clip here and leave its first frame out."
        ),
    )


def loop_input() -> Any:
    return io.Boolean.Input(
        "loop",
        default=False,
        optional=True,
        tooltip=(
            "The last clip arrives at the video's beginning and is cut there, so that the video repeats without a "
            "seam. A VidRD model makes that clip up to 4 times, with an overlap that leaves room for it, and keeps the "
            "one whose motion is most even, without the 1 to 4 frames of the beginning that it ends with; other "
            "families make it once, 2 latents shorter. The outputs cannot be continued."
        ),
    )
