"""Put a pipeline together from several sources: a VidRD checkpoint, a VAE, Stable Diffusion for the rest."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..weight_files import CheckpointError, read_json
from .configs import is_temporal
from .loading import PART_LABELS, find_part, load_part, resolve_config
from .recognition import PART_NAMES, Checkpoint, Part, recognise

logger = logging.getLogger(__name__)

Paths = str | Path | Sequence[str | Path]

# Noise schedule of Stable Diffusion 2.1-base, with which the release was trained.
RELEASED_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}

MOST_TIMESTEPS = 100_000


@dataclass(frozen=True)
class Assembly:
    """Where each component of a pipeline comes from."""

    parts: Mapping[str, Part]
    configs: Mapping[str, dict[str, Any]]
    tokenizer: Path
    scheduler_class: str
    scheduler_config: dict[str, Any]
    defaults: dict[str, Any]  # of sampling, where the U-Net comes from a model folder that names them

    @property
    def text_length(self) -> int:
        """Tokens that the text encoder reads at most."""
        return int(self.configs["text_encoder"].get("max_position_embeddings", 77))


def assemble(
    source: Paths, base: str | Path | None = None, vae: str | Path | None = None, tokenizer: str | Path | None = None
) -> Assembly:
    """Decide where the components come from: ``vae`` and ``tokenizer`` if given, the sources in order, then ``base``.

    The U-Net never comes from ``base``, and a text encoder in a source replaces the base's.

    Raises:
        CheckpointError: a component is missing, or two do not fit each other.
    """
    listed = [source] if isinstance(source, (str, Path)) else list(source)
    sources = [recognise(p) for p in listed]
    if not sources:
        raise CheckpointError("no source was given: name a VidRD checkpoint or folder")
    everything = [*sources, *([recognise(base)] if base is not None else [])]
    parts = {
        "unet": _temporal_unet(sources),
        "vae": find_part(vae, "vae") if vae is not None else _first(everything, "vae"),
        "text_encoder": _first(everything, "text_encoder"),
    }
    parts = {n: _with_config(p, everything) for n, p in parts.items()}
    configs = {n: resolve_config(p, p.state()) for n, p in parts.items()}
    _check_widths(parts, configs)
    scheduler_class, scheduler_config = _scheduler(sources, everything)
    tokenizer_folder, defaults = _tokenizer(everything, tokenizer), _defaults(sources, parts["unet"])
    return Assembly(parts, configs, tokenizer_folder, scheduler_class, scheduler_config, defaults)


def load_pipeline_parts(
    path: Paths,
    base: str | Path | None = None,
    *,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The components of a pipeline: ``VidRDPipeline(**load_pipeline_parts(...))``.

    Args:
        path: a model folder, a VidRD checkpoint, or several files and folders.
        base: a Stable Diffusion 2.1 folder or single file for the parts that ``path`` lacks.
        vae: a VAE to use in place of the others.
        tokenizer: a tokenizer folder, where neither has one.
        dtype, device: of the weights; None keeps the stored type.

    Raises:
        CheckpointError: something cannot be read safely, is missing or does not fit; the message says what to do.
    """
    import diffusers
    from transformers import CLIPTokenizer

    plan = assemble(path, base, vae, tokenizer)
    loaded = {n: load_part(plan.parts[n], dtype, device, plan.configs[n]) for n in PART_NAMES}
    scheduler = getattr(diffusers, plan.scheduler_class).from_config(plan.scheduler_config)
    tokenizer_model = CLIPTokenizer.from_pretrained(plan.tokenizer)
    tokenizer_model.model_max_length = min(tokenizer_model.model_max_length, plan.text_length)
    return {**loaded, "tokenizer": tokenizer_model, "scheduler": scheduler}


def _temporal_unet(sources: Sequence[Checkpoint]) -> Part:
    found = [(c, p) for c in sources if (p := c.part("unet")) is not None]
    for _, part in found:
        if is_temporal(part.state()):
            return part
    if found:  # an image U-Net or one of another family; the error tells which
        resolve_config(found[0][1], found[0][1].state())
    held = "; ".join(f"{c.path} holds {', '.join(PART_LABELS[n] for n in c.names) or 'no model'}" for c in sources)
    raise CheckpointError(f"there is no VidRD U-Net ({held}): name the released ModelT2V.pth or another VidRD U-Net")


def _defaults(sources: Sequence[Checkpoint], unet: Part) -> dict[str, Any]:
    for checkpoint in sources:
        part = checkpoint.part("unet")
        if part is not None and part.stored.path == unet.stored.path:
            indices = [root / "model_index.json" for root in checkpoint.roots]
            return next((read_json(i).get("defaults") or {} for i in indices if i.is_file()), {})
    return {}


def _first(checkpoints: Sequence[Checkpoint], name: str) -> Part:
    for checkpoint in checkpoints:
        part = checkpoint.part(name)
        if part is not None:
            return part
    where = ", ".join(str(c.path) for c in checkpoints)
    raise CheckpointError(
        f"there is no {PART_LABELS[name]} in {where}: give a Stable Diffusion 2.1 folder or file as the base"
    )


def _with_config(part: Part, checkpoints: Sequence[Checkpoint]) -> Part:
    """Give a part without configuration that of the same component, if as wide, of a diffusers folder at hand."""
    if part.config is not None:
        return part
    shapes = {k: tuple(v.shape) for k, v in part.state().items()}
    for root in (r for checkpoint in checkpoints for r in checkpoint.roots):
        file = root / part.name / "config.json"
        if not file.is_file():
            continue
        config = read_json(file)
        config.pop("sample_size", None)  # of its own training
        if _widths(part.name, config) == _stored_widths(part.name, shapes):
            return dataclasses.replace(part, config=config, config_source=str(file))
    return part


def _widths(name: str, config: Mapping[str, Any]) -> list[int]:
    return [config.get("hidden_size", 0)] if name == "text_encoder" else list(config.get("block_out_channels", ()))


def _stored_widths(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    if name == "text_encoder":
        return [shapes["embeddings.token_embedding.weight"][-1]]
    stem = "encoder.down_blocks" if name == "vae" else "down_blocks"
    widths: list[int] = []
    while (key := f"{stem}.{len(widths)}.resnets.0.conv2.weight") in shapes:
        widths.append(shapes[key][0])
    return widths


def _check_widths(parts: Mapping[str, Part], configs: Mapping[str, Mapping[str, Any]]) -> None:
    where = {n: p.stored.path for n, p in parts.items()}
    text = configs["text_encoder"].get("hidden_size", 512)
    context = configs["unet"].get("cross_attention_dim", 1024)
    if text != context:
        raise CheckpointError(
            f"the text encoder of {where['text_encoder']} is {text} wide, "
            f"the U-Net of {where['unet']} reads {context}: give the one it was trained with "
            "(Stable Diffusion 2.1's has 1024)"
        )
    latent, channels = (configs["vae"].get("latent_channels", 4), configs["unet"].get("in_channels", 4))
    if latent != channels:
        raise CheckpointError(
            f"the VAE of {where['vae']} has {latent} latent channels, the U-Net of {where['unet']} has {channels}: "
            "give the VAE it was trained with"
        )


def _tokenizer(checkpoints: Sequence[Checkpoint], given: str | Path | None) -> Path:
    if given is not None:
        folders = [Path(given)]
    else:
        folders = [c.part_paths["tokenizer"] for c in checkpoints if "tokenizer" in c.part_paths]
    for folder in folders:
        if any((folder / n).is_file() for n in ("vocab.json", "tokenizer.json")):
            return folder
    looked = ", ".join(str(f) for f in folders or [c.path for c in checkpoints])
    raise CheckpointError(
        f"there is no tokenizer in {looked}: give the tokenizer/ folder of Stable Diffusion 2.1, or a whole Stable "
        "Diffusion 2.1 folder as the base"
    )


def _scheduler(sources: Sequence[Checkpoint], everything: Sequence[Checkpoint]) -> tuple[str, dict[str, Any]]:
    """The sampler of a VidRD model folder as it is; the base's noise schedule for DDIM; else the released values."""
    for checkpoint in everything:
        scheduler_folder = checkpoint.part_paths.get("scheduler")
        if scheduler_folder is None or not (scheduler_folder / "scheduler_config.json").is_file():
            continue
        config = read_schedule(scheduler_folder)
        unet = checkpoint.part("unet") if checkpoint in sources and checkpoint.kind == "model_folder" else None
        if unet is not None and is_temporal(unet.state()):
            return _known_scheduler(scheduler_folder, config), config
        kept = {k: v for k, v in config.items() if k in RELEASED_SCHEDULER}
        if kept.get("prediction_type", "epsilon") != "epsilon":
            logger.warning(
                "%s predicts %s, VidRD was trained to predict epsilon, which is used: Stable Diffusion 2.1-base is the "
                "right base, not the 768-pixel version",
                checkpoint.path,
                kept["prediction_type"],
            )
        return "DDIMScheduler", {**RELEASED_SCHEDULER, **kept, "prediction_type": "epsilon"}
    return "DDIMScheduler", dict(RELEASED_SCHEDULER)


def read_schedule(folder: Path) -> dict[str, Any]:
    """A diffusers scheduler's configuration.

    Raises:
        CheckpointError: it cannot be read, or has a number of timesteps that no model was trained with.
    """
    file = folder / "scheduler_config.json"
    config = read_json(file)
    steps = config.get("num_train_timesteps", RELEASED_SCHEDULER["num_train_timesteps"])
    if type(steps) is not int or not 1 <= steps <= MOST_TIMESTEPS:
        raise CheckpointError(
            f"{file} says num_train_timesteps {steps!r}, expected 1 to {MOST_TIMESTEPS} (most models have 1000): "
            "correct it, or download the folder again"
        )
    return config


def _known_scheduler(scheduler_folder: Path, config: Mapping[str, Any]) -> str:
    import diffusers

    name = str(config.get("_class_name", "DDIMScheduler"))
    if not name.endswith("Scheduler") or not hasattr(diffusers, name):
        raise CheckpointError(
            f"{scheduler_folder} names the scheduler {name}, which diffusers does not have: use DDIMScheduler"
        )
    return name
