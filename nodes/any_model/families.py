"""The video model families: which one a MODEL is, how its latents are laid out, and how its clips are chained best.

A family is recognised by the class that ComfyUI gives its model. What is written here is taken from ComfyUI's source
(``model_base.py``, ``latent_formats.py``, ``sd.py``) and its templates.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from ...vidrd_core.reuse.settings import ReuseSettings
from ..native.model import VidRDModel
from .layouts import FramesInBatch, Layout, WithAudio

logger = logging.getLogger(__name__)

LATENT, PER_FRAME = "denoise_mask", "timestep per frame"  # how a network is told the noise level of each frame
CLEAN = 1.0
NEARLY_CLEAN = 0.8  # a network that is not told: joins without a jump (docs/evaluation.md), in distribution enough


@dataclass(frozen=True)
class Family:
    """A family of video models.

    Args:
        name: as its users call it.
        layout: of its latents.
        clip_frames: of a clip that nothing else gives a length; frames, as in ComfyUI's template.
        overlap_frames: that a clip repeats by default, in frames.
        tells: how the network can be told each frame's noise level; "" where it takes one timestep only.
        tells_by_default: whether it was trained for that.
        decoding: what a user should know of the decoder near a seam; "" where nothing changes.
    """

    name: str
    layout: Layout = Layout()
    clip_frames: int = 16
    overlap_frames: int = 4
    tells: str = ""
    tells_by_default: bool = False
    decoding: str = ""

    @property
    def is_vidrd(self) -> bool:
        return self.name == VIDRD

    @property
    def lead_in(self) -> int:
        """Latents before the overlap: a temporal VAE's first latent is of another kind than those that follow."""
        return 1 if self.layout.is_temporal else 0

    def settings(self) -> ReuseSettings:
        """How clips of this family are chained best, as far as is known; frames in latents."""
        overlap = self.layout.overlap_latents(self.overlap_frames)
        cleaner = CLEAN if self.tells_by_default else NEARLY_CLEAN
        return ReuseSettings(overlap, 0.0, 1.0, "forward", overlap, "uniform", cleaner)


VIDRD = "VidRD"
CAUSAL = "its decoder is causal: appending a clip changes no earlier frame"
AHEAD = "its decoder looks ahead: the last frames change once more when a clip is appended"
PLACED = "its decoder scales a latent by its place in runs of 16: decode each new clip alone"
GLOBAL = "its decoder looks at all frames at once: appending a clip changes every frame a little"
FOUR, SIX, EIGHT = Layout(4), Layout(6), Layout(8)
WAN = Family("Wan", FOUR, 81, 16, PER_FRAME, decoding=CAUSAL)
COSMOS = Family("Cosmos", EIGHT, 121, 16, decoding=PLACED)
HUNYUAN = Family("HunyuanVideo", FOUR, 73, 16, decoding=GLOBAL)
SVD = Family("Stable Video Diffusion", FramesInBatch(), 14, 4)
# By ComfyUI's class, the first that a model is an instance of.
FAMILIES: dict[str, Family] = {
    "WAN22": Family("Wan 2.2 5B", FOUR, 121, 16, LATENT, True, CAUSAL),
    "WAN21": WAN,
    "LTXAV": Family("LTX-2", WithAudio(8), 121, 16, LATENT, True, AHEAD),
    "LTXV": Family("LTX-Video", EIGHT, 97, 16, LATENT, True, AHEAD),
    "HunyuanVideo15": HUNYUAN,
    "HunyuanVideo": HUNYUAN,
    "GenmoMochi": Family("Mochi", SIX, 37, 12, decoding=CAUSAL),
    "CosmosPredict2": Family("Cosmos Predict2", FOUR, 93, 16, LATENT, True, CAUSAL),
    "CosmosVideo": COSMOS,
    "CogVideoX": Family("CogVideoX", FOUR, 49, 8, decoding=CAUSAL),
    "SVD_img2vid": SVD,
}
ANIMATEDIFF = Family("AnimateDiff", FramesInBatch(), 16, 4)
MODELSCOPE = Family("ModelScope", FramesInBatch(), 16, 4)
NATIVE = Family(VIDRD, Layout(), 8, 4)
# Models of images whose latents have a time axis all the same.
IMAGES = ("QwenImage", "HunyuanImage21", "HunyuanImage21Refiner", "Omnigen2", "Lumina2", "Flux")
IMAGE_TO_IMAGE_SVD = ("SV3D_u", "SV3D_p")  # turn around an object: no time that could go on
MODELSCOPE_NETWORKS = ("UNet3DConditionModel", "UNetSD", "UNet3DModel")


def family_of(model: Any) -> Family:
    """The family of a MODEL.

    Raises:
        ValueError: it makes images, or is no diffusion model of ComfyUI.
    """
    inner: Any = getattr(model, "model", None)
    if isinstance(inner, VidRDModel):
        return NATIVE
    names = [one.__name__ for one in type(inner).__mro__]
    shown = names[0]
    if not hasattr(inner, "latent_format"):
        raise ValueError(f"MODEL is {shown}, which is no diffusion model of ComfyUI: connect a video model's MODEL")
    if any(name in IMAGES for name in names):
        raise ValueError(f"MODEL is {shown}, an image model: connect the MODEL of a video model")
    if any(name in IMAGE_TO_IMAGE_SVD for name in names):
        raise ValueError(f"MODEL is {shown}, which turns around an object and has no time to go on in")
    for name in names:
        if name in FAMILIES:
            return as_built(FAMILIES[name], inner)
    if getattr(model, "additional_models", {}).get("ADE"):
        return ANIMATEDIFF
    if type(inner.diffusion_model).__name__ in MODELSCOPE_NETWORKS:
        return MODELSCOPE
    if inner.latent_format.latent_dimensions == 3:
        return unknown_family(inner)
    raise ValueError(
        f"MODEL is {shown}, an image model: connect a video model (VidRD, Wan, LTX-Video, HunyuanVideo, ...), or an "
        "image model with AnimateDiff's motion module applied"
    )


def as_built(family: Family, inner: Any) -> Family:
    """The family with what its model, the model's folder and the installed ComfyUI say themselves."""
    family = replace(family, **getattr(inner, "family_defaults", {}))
    stated = getattr(inner.latent_format, "temporal_downscale_ratio", 0)
    if family.layout.is_temporal and stated not in (0, 1, family.layout.frames_per_latent):
        family = replace(family, layout=replace(family.layout, frames_per_latent=stated))
    # Networks that grew out of Wan's (VACE, camera, S2V, Animate) have a forward pass of their own, for one timestep.
    if family.tells == PER_FRAME and type(inner.diffusion_model).__name__ != "WanModel":
        family = replace(family, tells="")
    return family


def unknown_family(inner: Any) -> Family:
    """A family that is not in the table: latents with a time axis, as temporal VAEs make them."""
    stated = getattr(inner.latent_format, "temporal_downscale_ratio", 0) or 4
    logger.warning(
        "%s is a video model that this node pack does not know; it is taken for one with %d frames per latent.",
        type(inner).__name__,
        stated,
    )
    return Family(type(inner).__name__, Layout(stated), 20 * stated + 1, 4 * stated)


def latent_format_of(model: Any) -> str:
    """The name of the format of a MODEL's latents, which both clips of a seam must share."""
    return type(model.model.latent_format).__name__
