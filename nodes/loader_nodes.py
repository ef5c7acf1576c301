"""Nodes that load models and make empty latents."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import files
from .words import CATEGORY

DTYPE_TIP = (
    "How the U-Net's weights are held. default: as ComfyUI chooses for your device. bf16 "
    "and fp16 halve the memory of fp32; fp8 halves it again and costs some quality."
)
WEIGHT_DTYPES = ["default", "fp32", "bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2"]


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDLoadModel",
            display_name="Load VidRD Model",
            category=CATEGORY,
            description=("Load a whole VidRD model folder: temporal U-Net, text encoder and video decoder."),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.model_folders(),
                    default=files.BUNDLED,
                    tooltip=(
                        "A model folder (diffusers layout with model_index.json) under ComfyUI/models/vidrd, "
                        "or a small bundled model, which runs on a CPU at 64x64: the demo model with 8 frames, or the "
                        "flow model, one of Wan's kind, with 29."
                    ),
                ),
                io.Combo.Input("weight_dtype", options=WEIGHT_DTYPES, default="default", tooltip=DTYPE_TIP),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="MODEL", tooltip="The temporal U-Net, for any sampler node."),
                io.Clip.Output("clip_out", display_name="CLIP", tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output(
                    "vae_out", display_name="VAE", tooltip="The video decoder, for VAE Decode and VAE Encode."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        return files.complaint(lambda: files.model_folder(model_name))

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> str:
        return files.fingerprint(files.model_folder(model_name))

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        from .loading import load_folder

        return io.NodeOutput(*load_folder(files.model_folder(model_name), weight_dtype))


class LoadUNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDLoadUNet",
            display_name="Load VidRD Temporal U-Net",
            category=CATEGORY,
            description=(
                "Load a VidRD temporal U-Net; where the checkpoint carries its own text encoder, that comes too."
            ),
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=files.weights("diffusion_models"),
                    tooltip=(
                        "A file or folder in ComfyUI/models/diffusion_models: the released ModelT2V.pth, a "
                        "safetensors file, or a diffusers U-Net folder."
                    ),
                ),
                io.Combo.Input("weight_dtype", options=WEIGHT_DTYPES, default="default", tooltip=DTYPE_TIP),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "The text encoder for a checkpoint that has none of its own: Load CLIP with Stable Diffusion "
                        "2.1's. A checkpoint's own one goes before it."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="MODEL", tooltip="The temporal U-Net, for any sampler node."),
                io.Clip.Output(
                    "clip_out",
                    display_name="CLIP",
                    tooltip=(
                        "The checkpoint's own text encoder, else the one connected to clip. Empty where there is "
                        "neither."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, unet_name: str) -> bool | str:
        return files.complaint(lambda: files.weights_path("diffusion_models", unet_name))

    @classmethod
    def fingerprint_inputs(cls, unet_name: str, **_: Any) -> str:
        return files.fingerprint(files.weights_path("diffusion_models", unet_name))

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str, clip: Any = None) -> io.NodeOutput:
        from .loading import load_unet

        model, own = load_unet(files.weights_path("diffusion_models", unet_name), weight_dtype)
        return io.NodeOutput(model, clip if own is None else own)


class LoadDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDLoadVideoDecoder",
            display_name="Load VidRD Video Decoder",
            category=CATEGORY,
            description=(
                "Load the VAE whose decoder has temporal layers. A plain Stable Diffusion VAE works "
                "too, frame by frame."
            ),
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=files.weights("vae"),
                    tooltip=(
                        "A file or folder in ComfyUI/models/vae: the released vae_finetuned folder, a "
                        "safetensors file, or any Stable Diffusion 1.x or 2.x VAE."
                    ),
                )
            ],
            outputs=[
                io.Vae.Output(
                    "vae_out",
                    display_name="VAE",
                    tooltip=(
                        "For VAE Decode and VAE Encode, also tiled. Long videos are decoded in crossfaded "
                        "windows of a clip's length, so memory does not grow with them."
                    ),
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str) -> bool | str:
        return files.complaint(lambda: files.weights_path("vae", vae_name))

    @classmethod
    def fingerprint_inputs(cls, vae_name: str) -> str:
        return files.fingerprint(files.weights_path("vae", vae_name))

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        from .loading import load_decoder

        return io.NodeOutput(load_decoder(files.weights_path("vae", vae_name)))


class EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidRDEmptyLatent",
            display_name="Empty VidRD Latent",
            category=CATEGORY,
            description=("Empty video latents that say how large and how long each clip is."),
            inputs=[
                io.Int.Input(
                    "width",
                    default=256,
                    min=16,
                    max=4096,
                    step=8,
                    tooltip=(
                        "Pixels, a multiple of 8. 256 is what the released model was trained on; the bundled "
                        "one wants 64."
                    ),
                ),
                io.Int.Input(
                    "height",
                    default=256,
                    min=16,
                    max=4096,
                    step=8,
                    tooltip=(
                        "Pixels, a multiple of 8. 256 is what the released model was trained on; the bundled "
                        "one wants 64."
                    ),
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=32,
                    tooltip=(
                        "Frames per clip, 1 to 32. Both the released and the bundled model were trained on 8;"
                        " more is possible, but the motion suffers."
                    ),
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=64,
                    tooltip=(
                        "How many videos are made side by side, each from a seed of its own (seed, seed + 1, "
                        "...). Memory and time grow with it."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent_out",
                    display_name="LATENT",
                    tooltip=("Zeros [batch, 4, frames, height / 8, width / 8], for Sample First Clip or KSampler."),
                )
            ],
        )

    @classmethod
    def execute(cls, width: int, height: int, frames: int, batch_size: int) -> io.NodeOutput:
        from .latents import empty

        return io.NodeOutput({"samples": empty(batch_size, frames, height, width)})
