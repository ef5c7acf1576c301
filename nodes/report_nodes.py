"""A node that measures how much the seams between clips show."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .frames import in_colour
from .words import CATEGORY


class SeamReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDSeamReport",
            display_name="Seam Report",
            category=CATEGORY,
            description=(
                "Measure how much the seams between clips show, and draw a chart over time with the seams marked; no"
                " weights to download."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The frames of one video, in order; at least two."),
                io.Int.Input(
                    "clip_length",
                    default=8,
                    min=1,
                    max=4096,
                    tooltip=(
                        "Frames per clip, 1 to 4096. After Interpolate Frames by F the clips are F times as long."
                    ),
                ),
                io.Int.Input(
                    "trim_frames",
                    default=0,
                    min=0,
                    max=4095,
                    tooltip=(
                        "Frames cut from the start of each later clip, 0 to clip_length - 1; the value of Reuse and"
                        " Diffuse. Places the seams, cuts nothing."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("chart", display_name="CHART", tooltip="The chart as one picture."),
                io.String.Output("report", display_name="REPORT", tooltip="The figures as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Any, clip_length: int, trim_frames: int) -> io.NodeOutput:
        from comfy.utils import ProgressBar
        from comfy_api.latest import ui

        from ..vidrd_core.metrics.anyvideo import evaluate_video
        from ..vidrd_core.metrics.charts import draw_report, to_pixels

        bar = ProgressBar(max(1, images.shape[0] - 1))
        report = evaluate_video(in_colour(images), clip_length, trim_frames, on_step=lambda: bar.update(1))
        chart = to_pixels(draw_report(report))[None]
        return io.NodeOutput(chart, report.text(), ui=ui.PreviewImage(chart, cls=cls))
