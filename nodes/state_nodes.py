"""Nodes that save and load what continuing a video needs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import files
from .words import CATEGORY


class SaveState(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDSaveState",
            display_name="Save VidRD State",
            category=CATEGORY,
            description=(
                "Save a video's latents with the trajectory of its last clip. Continuing from the "
                "file gives the very frames that continuing now would give."
            ),
            inputs=[
                io.Latent.Input("latent", tooltip="LATENT of Sample First Clip or Reuse and Diffuse."),
                io.String.Input(
                    "name",
                    default="my_video",
                    tooltip=(
                        "File name under ComfyUI/output/vidrd, without ending; / makes sub-folders. An older "
                        "file of that name is replaced."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output("latent_out", display_name="LATENT", tooltip="The same LATENT, to continue at once.")
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: Any, name: str) -> io.NodeOutput:
        from . import states
        from .latents import VideoLatent

        states.save(VideoLatent.read(latent, "LATENT"), files.output_path(name, ".safetensors"))
        return io.NodeOutput(latent)


class LoadState(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDLoadState",
            display_name="Load VidRD State",
            category=CATEGORY,
            description=(
                "Load what Save VidRD State or the vidrd command saved, to continue the video with the same model."
            ),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=files.saved_states(),
                    tooltip=(
                        "A state in ComfyUI/output/vidrd, or one copied into ComfyUI/input, whose name then ends in "
                        "[input]. Press R to refresh the list."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output("latent_out", display_name="LATENT", tooltip="For Reuse and Diffuse and VAE Decode.")
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return files.complaint(lambda: files.state_path(name))

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        return files.fingerprint(files.state_path(name))

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        from . import states

        return io.NodeOutput(states.load(files.state_path(name)).to_wire())
