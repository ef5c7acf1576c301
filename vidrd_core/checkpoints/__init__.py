"""Recognise, read safely, convert and write checkpoints of every layout people have VidRD weights in.

``recognition`` finds the models in a file or folder, ``naming`` renames their parameters, ``configs`` infers their
configurations, ``loading`` builds models, ``assembly`` puts a pipeline together, ``writing`` writes, ``report``
describes what is there. :mod:`vidrd_core.weight_files` opens the files.
Nothing that a file holds is ever executed, and no pickle is ever written.
"""

from __future__ import annotations

from ..weight_files import CheckpointError
from .assembly import load_pipeline_parts
from .loading import (
    load_text_encoder,
    load_unet,
    load_vae,
    text_encoder_state_dict,
    unet_state_dict,
    vae_state_dict,
)
from .report import CheckpointReport, PartReport, inspect
from .writing import convert, save_model

__all__ = [
    "CheckpointError",
    "CheckpointReport",
    "PartReport",
    "convert",
    "inspect",
    "load_pipeline_parts",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "save_model",
    "text_encoder_state_dict",
    "unet_state_dict",
    "vae_state_dict",
]
