"""VidRD, "Reuse and Diffuse: Iterative Denoising for Text-to-Video Generation" (arXiv 2309.03549), as a library.

Importing this package is cheap; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "VidRDUNet": ".models.unet",
    "VidRDAutoencoderKL": ".models.autoencoder",
    "VidRDPipeline": ".pipeline",
    "ReuseSettings": ".reuse.settings",
    "VideoState": ".sampling.state",
}
__all__ = ["ReuseSettings", "VidRDAutoencoderKL", "VidRDPipeline", "VidRDUNet", "VideoState", "__version__"]

if TYPE_CHECKING:
    from .models.autoencoder import VidRDAutoencoderKL
    from .models.unet import VidRDUNet
    from .pipeline import VidRDPipeline
    from .reuse.settings import ReuseSettings
    from .sampling.state import VideoState


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
