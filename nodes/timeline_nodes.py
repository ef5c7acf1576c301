"""The node Timeline: a video of many clips as plain data, whose takes are kept on disk."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..vidrd_core.jobs.timeline import Timeline as TimelineData
from .sampling_inputs import MODEL_TIP, cfg_input, expert_inputs, loop_input, prior_sampler_inputs, tell_input
from .words import AUTO, CATEGORY, REUSE_PRESETS

NEW_TIMELINE = '{"version": 1, "clips": [\n{"id": "a1", "prompt": "", "seed": 1}\n]}'

SIZE_TIP = "Pixels of a new video. The released model was trained on 256, the bundled one on 64."


class Timeline(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDTimeline",
            display_name="Timeline",
            category=CATEGORY,
            description=(
                "Direct a long video on a strip of clips, each with its prompt, seed and takes: re-roll one, lock it, "
                "insert, delete, branch. Every finished take is kept on disk, and only what a change makes stale is "
                "made again."
            ),
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TIP),
                io.Clip.Input("clip", tooltip="The model's text encoder, which encodes the clips' prompts."),
                io.Vae.Input("vae", tooltip="The model's VAE: it decodes the video and what the cards show."),
                io.String.Input(
                    "run_name",
                    default="my_film",
                    tooltip=(
                        "Where the takes are kept: ComfyUI/output/vidrd/<run name>. On another day the same name finds"
                        " them again; nodes may share one."
                    ),
                ),
                io.String.Input(
                    "timeline",
                    default=NEW_TIMELINE,
                    multiline=True,
                    tooltip=(
                        "The clips as JSON, one a line, which the strip below edits: id, prompt, seed, frames (new "
                        "ones; 0: as usual), lock, take (that lock keeps), after (where a branch begins). The help "
                        "page describes it."
                    ),
                ),
                io.String.Input(
                    "negative_prompt",
                    default="watermark",
                    tooltip="What all clips steer away from. The released model was used with the word watermark.",
                ),
                io.Int.Input("width", default=256, min=16, max=8192, step=8, tooltip=SIZE_TIP),
                io.Int.Input("height", default=256, min=16, max=8192, step=8, tooltip=SIZE_TIP),
                cfg_input(),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip=(
                        "Denoising steps of the first clip, which the others take over. 0 takes the prior's, else 50, "
                        "for other families than VidRD 20."
                    ),
                ),
                *prior_sampler_inputs(),
                io.Combo.Input(
                    "preset",
                    options=[AUTO, *REUSE_PRESETS],
                    default=AUTO,
                    tooltip=(
                        "How each clip continues the one before. auto chains as suits the model's family, or as a "
                        "VidRD model's folder says. paper and smooth: the released values, and the best that we "
                        "measured on the bundled model."
                    ),
                ),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.5,
                    max=120.0,
                    step=0.5,
                    tooltip="Frames per second at which takes and video play in the node, 0.5 to 120.",
                ),
                io.Latent.Input(
                    "prior",
                    optional=True,
                    tooltip=(
                        "A video to continue, or latents of an image to begin with. Unconnected, a new video of width "
                        "and height begins."
                    ),
                ),
                *expert_inputs(),
                tell_input(),
                loop_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output("images", display_name="IMAGE", tooltip="The frames of the whole video."),
                io.Latent.Output(
                    "video", display_name="video", tooltip="The whole video, to continue or to save as a state."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Which clips were made and which were kept, with seeds."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, timeline: str) -> bool | str:
        try:
            TimelineData.parse(timeline)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run_name: Any = None, **_: Any) -> str:
        from . import files
        from .timeline_routes import deletions

        return deletions(files.output_path(run_name)) if isinstance(run_name, str) and run_name.strip() else ""

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, run_name: str, timeline: str, negative_prompt: str, width: int,
        height: int, cfg: float, steps: int, sampler_name: str, scheduler: str, preset: str, fps: float,
        prior: Any = None, model_low: Any = None, switch_at_step: int = 0, sigmas: Any = None, tell_levels: str = AUTO,
        loop: bool = False,
    ) -> io.NodeOutput:  # fmt: skip
        from ..vidrd_core.jobs.timeline import Settings
        from .any_model.families import family_of
        from .planning import read_latent
        from .schedules import Models
        from .timeline import Request, make_video
        from .timeline_routes import teller

        settings = Settings(negative_prompt, float(cfg), steps, sampler_name, scheduler, preset, width, height, loop)
        start = None if prior is None else read_latent(prior, "prior", model, family_of(model))
        models = Models(model, model_low, switch_at_step)
        plan = (TimelineData.parse(timeline), settings, run_name.strip(), start, fps, sigmas, tell_levels)
        node = str(getattr(cls.hidden, "unique_id", None) or "")
        made = make_video(Request(models, clip, vae, *plan), teller(node))
        return io.NodeOutput(made.images, made.video.to_wire(), made.report)
