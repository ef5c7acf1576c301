"""The identity of measured videos: stored results of another model or other settings must not be mixed with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.fingerprints import same_model, short_name
from ..pipeline import VidRDPipeline
from ..sampling.schedulers import scheduler_context
from ..sampling.settings import SamplingSettings

MODELS = ("model", "vae", "text_encoder")  # whose entries are fingerprints
NEGATIVE_PROMPT = str(SamplingSettings.negative_prompt)  # of evaluations, unless the model has its own


def model_identity(pipe: VidRDPipeline) -> dict[str, Any]:
    """The weights, their precision, and the scheduler with its settings."""
    scheduler = scheduler_context(pipe.scheduler)
    return {
        "model": pipe.fingerprint_of("unet"),
        "vae": pipe.fingerprint_of("vae"),
        "text_encoder": pipe.fingerprint_of("text_encoder"),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "scheduler": scheduler.pop("scheduler"),
        **{f"scheduler: {key}": value for key, value in scheduler.items()},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences as text, such as "steps was 25 and is 50"; empty where there are none."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if key in MODELS and old is not None and new is not None:
            if same_model(str(old), str(new)):
                continue
            old, new = short_name(str(old)), short_name(str(new))
        if old != new:
            found.append(f"{key} was {old} and is {new}")
    return ", ".join(found)
