"""Write a clip as a small video into ComfyUI's temporary folder, to play inside a node."""

from __future__ import annotations

import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import InputImpl, Types, io, ui
from torch import Tensor

from .frames import decoded, in_colour


def images_of(images: Tensor | None, latent: dict[str, Any] | None, vae: Any) -> Tensor:
    """The IMAGE to show, ``[T, H, W, 3]``; of a batch of latents the first video.

    Raises:
        ValueError: neither images nor latents with a VAE were connected.
    """
    if images is not None:
        return images
    if latent is None or vae is None:
        raise ValueError("there is nothing to show: connect images, or samples together with vae")
    return decoded(vae, latent["samples"][:1])


def write_preview(images: Tensor, fps: float) -> ui.PreviewVideo:
    """Encode frames ``[T, H, W, C]`` and tell the frontend to play them."""
    even = in_colour(images)[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]  # yuv420p has no odd sizes
    name = f"vidrd_preview_{uuid.uuid4().hex[:12]}.mp4"
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    components = Types.VideoComponents(images=even.cpu(), audio=None, frame_rate=Fraction(fps).limit_denominator(1000))
    InputImpl.VideoFromComponents(components).save_to(str(folder / name))
    return ui.PreviewVideo([ui.SavedResult(name, "", io.FolderType.temp)])
