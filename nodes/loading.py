"""From files to MODEL, CLIP and VAE. Everything heavy is imported here, when a loader node runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths

from ..vidrd_core.checkpoints import loading as checkpoints
from ..vidrd_core.checkpoints.assembly import RELEASED_SCHEDULER
from ..vidrd_core.checkpoints.recognition import recognise
from .model_defaults import defaults_of, family_defaults, folder_defaults, is_of_wans_kind, model_file, reuse_of
from .native.clip import build_clip
from .native.flow import build_transformer, build_vae
from .native.model import build_model
from .native.vae import WINDOW, VidRDVAE


def load_folder(path: Path, weight_dtype: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a model folder; one with a ``transformer`` is of Wan's kind."""
    if is_of_wans_kind(path):
        text, text_config = checkpoints.text_encoder_state_dict(path)
        clip = build_clip(text, text_config, path / "tokenizer", folder_paths.get_folder_paths("embeddings"))
        model = build_transformer(path, weight_dtype)
        model.model.family_defaults = family_defaults(path)
        return model, clip, build_vae(path)
    folder = recognise(path)
    unet, unet_config = checkpoints.unet_state_dict(folder)
    vae, vae_config = checkpoints.vae_state_dict(folder)
    text, text_config = checkpoints.text_encoder_state_dict(folder)
    scale = vae_config.get("scaling_factor", 0.18215)
    model = build_model(unet, unet_config, scheduler_config(path), scale, weight_dtype)
    model.model.reuse = reuse_of(path)
    model.model.defaults = defaults_of(path)
    tokenizer = folder.part_paths.get("tokenizer", path / "tokenizer")
    clip = build_clip(text, text_config, tokenizer, folder_paths.get_folder_paths("embeddings"))
    return model, clip, VidRDVAE(vae, vae_config, clip_frames(path))


def load_unet(path: Path, weight_dtype: str) -> tuple[Any, Any]:
    """MODEL of any checkpoint with a temporal U-Net, and CLIP where it carries a text encoder (else None)."""
    checkpoint = recognise(path)
    state, config = checkpoints.unet_state_dict(checkpoint)
    model = build_model(state, config, scheduler_config(path), scale_factor(path), weight_dtype)
    model.model.defaults = defaults_of(path)
    if "text_encoder" not in checkpoint.names:
        return model, None
    text, text_config = checkpoints.text_encoder_state_dict(checkpoint)
    tokenizer = checkpoint.part_paths.get("tokenizer")
    return model, build_clip(text, text_config, tokenizer, folder_paths.get_folder_paths("embeddings"))


def load_decoder(path: Path) -> Any:
    """VAE of a file or folder with or without temporal layers."""
    return VidRDVAE(*checkpoints.vae_state_dict(path), clip_frames(path))


def scale_factor(path: Path) -> float:
    """Of the VAE beside a U-Net folder, else Stable Diffusion's."""
    return model_file(path, "vae/config.json").get("scaling_factor", 0.18215)


def scheduler_config(path: Path) -> Mapping[str, Any]:
    """The noise schedule of a model folder, else the released one."""
    return model_file(path, "scheduler/scheduler_config.json") or RELEASED_SCHEDULER


def clip_frames(path: Path) -> int:
    """Frames of a clip by the defaults of a model folder, else of the release."""
    return folder_defaults(path).get("num_frames", WINDOW)
