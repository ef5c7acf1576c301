"""What the examples with other video models are built and checked with: each model's files, sizes and frame counts.

Files, folders, samplers and settings are those of the templates that ComfyUI 0.3.64 installs (package
comfyui_workflow_templates 0.1.95), AnimateDiff's of Stable Diffusion 1.5's template and AnimateDiff-Evolved's README.
"""

from __future__ import annotations

from dataclasses import dataclass

HUGGING_FACE = "https://huggingface.co"
WAN_22 = f"{HUGGING_FACE}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
WAN_21 = f"{HUGGING_FACE}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
HUNYUAN = f"{HUGGING_FACE}/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files"
FLUX_TEXT = f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main"
NUM_CLIPS = 3  # of every example: one from noise, two that continue it


@dataclass(frozen=True)
class File:
    """A model file: its name, its folder under ``ComfyUI/models``, and where it comes from."""

    name: str
    directory: str
    url: str

    @property
    def metadata(self) -> dict[str, str] | None:
        """The entry of ``properties.models`` by which ComfyUI offers the download; it takes safetensors alone."""
        safe = self.name.endswith((".safetensors", ".sft"))
        return {"name": self.name, "url": self.url, "directory": self.directory} if safe else None


@dataclass(frozen=True)
class VideoModel:
    """A video model as its example uses it.

    Args:
        title: as people call it.
        frames_per_latent: r, pixel frames of a latent after the first; 1 where each frame has a latent.
        clip_frames: pixel frames of a clip.
        overlap_latents: M, those of the clip before that the next clip repeats with its default settings.
        lead_in: latents before the overlap, which are made anew and dropped.
        width: pixels.
        height: pixels.
        fps: frames per second of the saved video.
        files: what has to be downloaded.
    """

    title: str
    frames_per_latent: int
    clip_frames: int
    overlap_latents: int
    lead_in: int
    width: int
    height: int
    fps: int
    files: tuple[File, ...]

    @property
    def clip_latents(self) -> int:
        return (self.clip_frames - 1) // self.frames_per_latent + 1

    @property
    def overlap_frames(self) -> int:
        return self.overlap_latents * self.frames_per_latent

    @property
    def added_frames(self) -> int:
        """What each further clip adds to the video."""
        return (self.clip_latents - self.lead_in - self.overlap_latents) * self.frames_per_latent

    @property
    def lengths(self) -> list[int]:
        """Frames of the video after each clip."""
        return [self.clip_frames + n * self.added_frames for n in range(NUM_CLIPS)]

    def file(self, name: str) -> File:
        """The file whose name begins so."""
        (found,) = (file for file in self.files if file.name.startswith(name))
        return found


UMT5 = File(
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "text_encoders",
    f"{WAN_21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
)


def wan_22(directory: str, name: str) -> File:
    return File(name, directory, f"{WAN_22}/{directory}/{name}")


MODELS = {
    "8_wan2_2_14B": VideoModel(
        "Wan 2.2 14B", 4, 81, 4, 1, 640, 640, 16,
        (
            wan_22("diffusion_models", "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"),
            wan_22("diffusion_models", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"),
            wan_22("loras", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"),
            wan_22("loras", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors"),
            UMT5,
            wan_22("vae", "wan_2.1_vae.safetensors"),
        ),
    ),
    "9_wan2_2_5B": VideoModel(
        "Wan 2.2 5B", 4, 121, 4, 1, 1280, 704, 24,
        (
            wan_22("diffusion_models", "wan2.2_ti2v_5B_fp16.safetensors"),
            UMT5,
            wan_22("vae", "wan2.2_vae.safetensors"),
        ),
    ),
    "10_ltx_video": VideoModel(
        "LTX-Video", 8, 97, 2, 1, 768, 512, 24,
        (
            File(
                "ltx-video-2b-v0.9.safetensors",
                "checkpoints",
                f"{HUGGING_FACE}/Lightricks/LTX-Video/resolve/main/ltx-video-2b-v0.9.safetensors",
            ),
            File("t5xxl_fp16.safetensors", "text_encoders", f"{FLUX_TEXT}/t5xxl_fp16.safetensors"),
        ),
    ),
    "11_hunyuan_video": VideoModel(
        "HunyuanVideo", 4, 73, 4, 1, 848, 480, 24,
        (
            File(
                "hunyuan_video_t2v_720p_bf16.safetensors",
                "diffusion_models",
                f"{HUNYUAN}/diffusion_models/hunyuan_video_t2v_720p_bf16.safetensors",
            ),
            File("clip_l.safetensors", "text_encoders", f"{FLUX_TEXT}/clip_l.safetensors"),
            File(
                "llava_llama3_fp8_scaled.safetensors",
                "text_encoders",
                f"{HUNYUAN}/text_encoders/llava_llama3_fp8_scaled.safetensors",
            ),
            File("hunyuan_video_vae_bf16.safetensors", "vae", f"{HUNYUAN}/vae/hunyuan_video_vae_bf16.safetensors"),
        ),
    ),
    "12_animatediff_evolved": VideoModel(
        "AnimateDiff", 1, 16, 4, 0, 512, 512, 8,
        (
            File(
                "v1-5-pruned-emaonly-fp16.safetensors",
                "checkpoints",
                f"{HUGGING_FACE}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
                "v1-5-pruned-emaonly-fp16.safetensors",
            ),
            File(
                "v3_sd15_mm.ckpt",
                "animatediff_models",
                f"{HUGGING_FACE}/guoyww/animatediff/resolve/main/v3_sd15_mm.ckpt",
            ),
        ),
    ),
}  # fmt: skip
