"""Noise schedule and prediction type of a run: the starting model's, unless the configuration overrides them."""

from __future__ import annotations

import fnmatch
import logging
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler

from ..checkpoints.assembly import RELEASED_SCHEDULER, read_schedule
from ..checkpoints.recognition import recognise
from .objective import PREDICTIONS

logger = logging.getLogger(__name__)

# Settings of a diffusers scheduler that a model is trained with, and those that only concern sampling.
SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type",
)  # fmt: skip
SAMPLING = ("steps_offset", "set_alpha_to_one", "timestep_spacing")
# Values of "modelspec.prediction_type" in a safetensors file, https://github.com/Stability-AI/ModelSpec
MODELSPEC = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def start_scheduler(
    scheduler: Path | None, model: Path | None, prediction: str | None = None, for_lora: bool = False
) -> Any:
    """A DDIMScheduler, as in the release, with the noise schedule to train with and to export.

    Args:
        scheduler: a folder with ``scheduler_config.json`` whose schedule is to be used; None: the model's own.
        model: what the run starts from; None: from scratch, with the release's schedule.
        prediction: "epsilon" or "v_prediction" in place of what the schedule says.
        for_lora: a LoRA is to be trained, which is used with the model as it is.

    Raises:
        ValueError: ``scheduler`` has none, a LoRA would be trained otherwise than its model, or the schedule
            cannot be trained with.
    """
    given = None if scheduler is None else stored_schedule(scheduler)
    if scheduler is not None and given is None:
        raise ValueError(f"{scheduler} holds no scheduler_config.json: name the scheduler folder of a diffusers model")
    own = None if model is None else stored_schedule(model)
    chosen = own if given is None else given
    if model is not None and chosen is None:
        logger.warning(
            "%s does not say with which noise schedule it was trained; Stable Diffusion's with %s is taken. Where that "
            "is wrong (Stable Diffusion 2.1 of 768 pixels predicts v), set 'scheduler' or 'objective.prediction'",
            model, prediction or RELEASED_SCHEDULER["prediction_type"],
        )  # fmt: skip
    made = _ddim({**(chosen or {}), **({} if prediction is None else {"prediction_type": prediction})})
    if own is not None:
        _warn_of_changes(model, _ddim(own), made, for_lora)
    _check(made)
    logger.info("noise schedule: %s", {k: made.config[k] for k in SCHEDULE if made.config[k] is not None})
    return made


def stored_schedule(place: Path) -> dict[str, Any] | None:
    """The noise schedule that a model or scheduler folder states, by diffusers' names; None where it states none.

    A component's folder takes it from the model folder around it; the released file has the release's schedule.
    """
    around = [place.parent] if (place / "config.json").is_file() else []
    for folder in [place, place / "scheduler", *(a / "scheduler" for a in around)]:
        if (folder / "scheduler_config.json").is_file():
            config = read_schedule(folder)
            return {k: v for k, v in config.items() if k in (*SCHEDULE, *SAMPLING)}
    if place.name == "scheduler":
        return None
    checkpoint = recognise(place)
    if checkpoint.kind == "release_folder" or fnmatch.fnmatchcase(place.name, "ModelT2V*.pth"):
        return {k: v for k, v in RELEASED_SCHEDULER.items() if k in (*SCHEDULE, *SAMPLING)}
    unet = checkpoint.part("unet")
    known = MODELSPEC.get(unet.stored.metadata.get("modelspec.prediction_type", "")) if unet is not None else None
    return None if known is None else {"prediction_type": known}


def _ddim(schedule: dict[str, Any]) -> Any:
    return DDIMScheduler(**{**RELEASED_SCHEDULER, **schedule})


def _warn_of_changes(model: Path | None, own: Any, made: Any, for_lora: bool) -> None:
    before, now = ({k: s.config[k] for k in SCHEDULE} for s in (own, made))
    changed = {k: f"{before[k]} -> {now[k]}" for k in SCHEDULE if before[k] != now[k]}
    if changed and for_lora:
        raise ValueError(
            f"the configuration changes the noise schedule of {model} ({changed}), but a LoRA is used with the model "
            "as it is: leave out 'scheduler' and 'objective.prediction'"
        )
    if changed:
        logger.warning(
            "the configuration changes the noise schedule of %s: %s. The model has to adapt to that, and the exported "
            "folder has the new schedule",
            model, changed,
        )  # fmt: skip


def _check(scheduler: Any) -> None:
    prediction = scheduler.config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"the noise schedule has prediction_type {prediction!r}; expected one of {', '.join(PREDICTIONS)}: set "
            "objective.prediction, or start from another model"
        )
    if prediction == "epsilon" and scheduler.config["rescale_betas_zero_snr"]:
        raise ValueError(
            "the noise schedule ends in pure noise (rescale_betas_zero_snr), of which epsilon says nothing: set "
            "objective.prediction to v_prediction, or 'scheduler' to another schedule"
        )
