"""The models that a training run starts from: Stable Diffusion inflated, a VidRD model or checkpoint, or random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from ..checkpoints import CheckpointError, load_text_encoder, load_unet, load_vae
from ..models.autoencoder import VidRDAutoencoderKL
from ..models.unet import VidRDUNet
from ..weight_files import read_json
from .freezing import freeze
from .lora import LoraSettings, add_lora


def start_unet(
    image_model: Path | None,
    video_model: Path | None,
    config: Mapping[str, Any],
    trained: Sequence[str],
    lora: LoraSettings,
) -> VidRDUNet:
    """The U-Net to train, in float32, with what is not trained frozen; everything trains in one from scratch.

    Args:
        image_model: a folder or checkpoint with an image U-Net to inflate.
        video_model: a VidRD folder or checkpoint to fine-tune; at most one of the two.
        config: arguments of :class:`VidRDUNet`; from scratch all, for an image model's folder those to change.
        trained: patterns of the parameters to train.
        lora: rank 0: none; else it is trained in place of the weights.

    Raises:
        ValueError: both models are given, the weights do not fit, or ``config`` is given with a model that has its own.
    """
    if image_model is not None and video_model is not None:
        raise ValueError("image_model and video_model are both set: choose one to start from")
    is_folder = image_model is not None and (image_model / "unet" / "config.json").is_file()
    if config and not is_folder and (image_model or video_model):
        raise ValueError(
            f"unet sets {sorted(config)}, but {image_model or video_model} has its own settings: leave it out"
        )
    if image_model is not None and is_folder:
        unet = VidRDUNet.from_image_unet(image_model / "unet", **config)
    elif image_model is not None:
        unet = load_unet(image_model, dtype=torch.float32, inflate=True)
    elif video_model is not None:
        unet = load_unet(video_model, dtype=torch.float32)
    else:
        unet = VidRDUNet(**config)
    own_memory(unet)
    if lora.rank:
        add_lora(unet, lora)
    elif image_model is not None or video_model is not None:
        freeze(unet, trained)
    return unet


def start_defaults(video_model: Path | None) -> dict[str, Any]:
    """The recommended settings ("defaults") of the starting model's folder, for the folder that the run exports."""
    if video_model is None or not (video_model / "model_index.json").is_file():
        return {}
    return dict(read_json(video_model / "model_index.json").get("defaults") or {})


def start_text(
    places: Sequence[Path | None],
) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Text encoder, frozen, and tokenizer of the first of ``places`` that is given.

    Raises:
        ValueError: none is given, or it lacks one of the two.
    """
    given = [place for place in places if place is not None]
    if not given:
        raise ValueError("none of text_model, image_model and video_model is set: there is no text encoder")
    folder = given[0]
    if not (folder / "tokenizer").is_dir():
        raise ValueError(f"{folder} has no tokenizer folder: set text_model to a Stable Diffusion 2.1 folder")
    encoder = load_text_encoder(folder, dtype=torch.float32)
    own_memory(encoder)
    return encoder.requires_grad_(False), CLIPTokenizer.from_pretrained(folder / "tokenizer")


def start_vae(places: Sequence[Path | None]) -> VidRDAutoencoderKL | None:
    """The VAE, frozen, of the first of ``places`` that has one; None where none has.

    Raises:
        ValueError: a place that is given by name, the first, has none.
    """
    for number, place in enumerate(places):
        if place is None:
            continue
        try:
            vae = load_vae(place, dtype=torch.float32)
        except CheckpointError:
            if number == 0:
                raise
            continue
        return vae.requires_grad_(False)
    return None


def start_video_vae(place: Path) -> VidRDAutoencoderKL:
    """The autoencoder of a folder or file, in float32, with temporal layers, which start as the identity if new."""
    folders = [folder for folder in (place, place / "vae") if (folder / "config.json").is_file()]
    if folders:
        vae = VidRDAutoencoderKL.from_image_vae(folders[0], add_temp_conv=True)
    else:
        vae = load_vae(place, dtype=torch.float32, inflate=True)
    own_memory(vae)
    return vae


def own_memory(model: nn.Module) -> None:
    """Copy memory-mapped weights into memory, since training changes them and the file may change too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
