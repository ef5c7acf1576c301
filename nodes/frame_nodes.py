"""Nodes on finished frames: play them, and put frames between them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .frames import in_colour
from .words import CATEGORY


class PreviewClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDPreviewClip",
            display_name="Preview VidRD Clip",
            category=CATEGORY,
            description="Play a clip inside the node without saving it.",
            inputs=[
                io.Latent.Input(
                    "samples", optional=True, tooltip="Latents to decode and play; of a batch the first video."
                ),
                io.Vae.Input("vae", optional=True, tooltip="Decodes samples; not needed for images."),
                io.Image.Input("images", optional=True, tooltip="Frames to play, instead of samples."),
                io.Float.Input(
                    "fps",
                    default=4.0,
                    min=0.5,
                    max=120.0,
                    step=0.5,
                    tooltip=(
                        "Frames per second, 0.5 to 120. The released model was trained on 4; after "
                        "Interpolate Frames by 4 use 16."
                    ),
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, fps: float, samples: Any = None, vae: Any = None, images: Any = None) -> io.NodeOutput:
        from .preview import images_of, write_preview

        return io.NodeOutput(ui=write_preview(images_of(images, samples, vae), fps))


class InterpolateFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDInterpolateFrames",
            display_name="Interpolate Frames",
            category=CATEGORY,
            description=("Put frames between frames along the optical flow; no weights to download."),
            inputs=[
                io.Image.Input("images", tooltip="The frames of one video, in order."),
                io.Int.Input(
                    "factor",
                    default=4,
                    min=1,
                    max=16,
                    tooltip=(
                        "How many steps one step becomes, 1 to 16. Frames out = (frames in - 1) * factor + 1;"
                        " play them at factor times the rate."
                    ),
                ),
            ],
            outputs=[io.Image.Output("images_out", display_name="IMAGE", tooltip="The frames with those between.")],
        )

    @classmethod
    def execute(cls, images: Any, factor: int) -> io.NodeOutput:
        from comfy.utils import ProgressBar

        from ..vidrd_core.video.interpolation import interpolate

        bar = ProgressBar(max(1, images.shape[0] - 1))
        return io.NodeOutput(interpolate(in_colour(images).cpu(), factor, on_pair=lambda: bar.update(1)))
