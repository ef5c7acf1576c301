"""Nodes around any sampler node: Reuse: Prepare patches its MODEL, Reuse: Join makes the video of what it sampled."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..vidrd_core.reuse.settings import ReuseSettings
from .sampling_inputs import EXTENDING, MODEL_TIP, advanced, found_by, reuse_inputs, tell_input
from .words import AUTO, CATEGORY, STRAIGHT


class ReusePrepare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="VidRDReusePrepare",
            display_name="Reuse: Prepare",
            category=CATEGORY,
            description=(
                "Reuse and Diffuse for your own graph: patches MODEL so that whatever sampler node comes next "
                "(KSampler, two KSamplerAdvanced, SamplerCustomAdvanced with any guider) makes the clip that follows "
                "prior. Then Reuse: Join."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Latent.Input(
                    "prior",
                    tooltip=(
                        "The video to continue: video so far of Reuse: Join, or any video latents (VAE Encode, a "
                        "sampler). An empty latent of the model's family begins a video: its first clip is recorded."
                    ),
                ),
                *advanced(reuse_inputs(), but=("preset",)),
                *advanced(
                    [
                        io.Combo.Input(
                            "prior_trajectory",
                            options=[AUTO, STRAIGHT],
                            default=AUTO,
                            tooltip=(
                                "auto follows the recorded denoising of the prior, and of latents that were not "
                                "recorded the straight line from noise to them, as noise always does. No extra passes "
                                "of the model."
                            ),
                        ),
                    ]
                ),
                io.Int.Input(
                    "clip_frames",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip=(
                        "Frames of the new clip, with the overlap. 0: as the prior's last clip, else what is usual for "
                        "the model's family (Wan 81, LTX-Video 97, HunyuanVideo 73, AnimateDiff 16)."
                    ),
                ),
                *advanced([tell_input()]),
                io.Model.Input(
                    "model_low",
                    optional=True,
                    tooltip="The low-noise expert of Wan 2.2 14B, for the second of two KSamplerAdvanced.",
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="MODEL", tooltip="For the sampler, or its guider."),
                io.Model.Output("model_low_out", display_name="MODEL low", tooltip="For the second sampler."),
                io.Latent.Output(
                    "latent",
                    display_name="LATENT",
                    tooltip="Empty, of the clip's length and size: what to sample from.",
                ),
                io.Custom("VIDRD_SESSION").Output("session", display_name="session", tooltip="For Reuse: Join."),
                io.String.Output(
                    "report", display_name="report", tooltip="What the new clip keeps and adds, in frames and latents."
                ),
            ],
        )
        return found_by(schema, *EXTENDING, "reuse and diffuse")

    @classmethod
    def execute(
        cls, model: Any, prior: Any, preset: str, overlap_frames: int, noise_alpha: float, guidance_beta: float,
        order: str, trim_frames: int, stages: str, guidance_lead: float, prior_trajectory: str, clip_frames: int,
        tell_levels: str = AUTO, model_low: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        from .prepared import prepare
        from .said import ran

        chosen = ReuseSettings(
            overlap_frames, noise_alpha, guidance_beta, order, trim_frames, stages, cleaner_overlap=guidance_lead
        )
        made = prepare(model, model_low, prior, preset, chosen, prior_trajectory, clip_frames, tell_levels)
        added = made.session.plan.video.num_latents - made.trim
        before = 0 if made.settings is None else made.prior.samples.shape[2]
        shown = ran(before + added, added, made.family, made.settings, preset, made.report)
        return io.NodeOutput(*made.models, made.latent, made, made.report, ui=shown)


class ReuseJoin(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="VidRDReuseJoin",
            display_name="Reuse: Join",
            category=CATEGORY,
            description=(
                "Join the clip that a sampler made with Reuse: Prepare's MODEL to the video, with what the next clip "
                "needs of it."
            ),
            inputs=[
                io.Latent.Input("latent", tooltip="The finished LATENT of the (last) sampler node, straight from it."),
                io.Custom("VIDRD_SESSION").Input(
                    "session", tooltip="Of the Reuse: Prepare whose MODEL the sampler used."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "video",
                    display_name="video so far",
                    tooltip="The prior with the new clip at its end; continue from here, or decode it.",
                ),
                io.Latent.Output("clip", display_name="new clip", tooltip="The new clip alone, as it was sampled."),
                io.String.Output(
                    "report", display_name="report", tooltip="What the clip kept and added, in frames and latents."
                ),
            ],
        )
        return found_by(schema, *EXTENDING, "reuse and diffuse")

    @classmethod
    def execute(cls, latent: Any, session: Any) -> io.NodeOutput:
        from .prepared import join
        from .said import ran

        video, clip, report = join(latent, session)
        latents = video.samples.shape[2]
        added = None if session.settings is None else latents - session.prior.samples.shape[2]
        shown = ran(latents, added, session.family, report=report)
        return io.NodeOutput(video.to_wire(), clip.to_wire(), report, ui=shown)
