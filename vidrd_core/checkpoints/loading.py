"""Build models from recognised weights, without holding them twice in memory.

Weights that need no change of type or device stay mapped to their file: the system reads a page when it is used and may
drop it again. So do not overwrite a file while a model loaded from it is in use.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..weight_files import CheckpointError, copy_tensors
from .configs import describe, infer_config, is_temporal, unsupported_model
from .recognition import Checkpoint, Part, recognise

if TYPE_CHECKING:
    from transformers import CLIPTextModel

    from ..models.autoencoder import VidRDAutoencoderKL
    from ..models.unet import VidRDUNet

logger = logging.getLogger(__name__)

Source = str | Path | Checkpoint
PART_LABELS = {"unet": "U-Net", "vae": "VAE", "text_encoder": "text encoder"}


def load_unet(
    path: Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
    operations: Any = None,
    inflate: bool = False,
) -> VidRDUNet:
    """Load a temporal U-Net in evaluation mode from any layout.

    Args:
        path: a file or folder, see :func:`vidrd_core.checkpoints.inspect`.
        dtype: of the weights; None keeps the stored one.
        device: where the weights go.
        config: the U-Net's configuration; None takes the file's or folder's own, else it is inferred from the shapes.
        operations: namespace of leaf layers, default ``torch.nn``.
        inflate: accept an image U-Net; its temporal layers start as the identity.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no such model; the message says what to do.
    """
    return load_part(find_part(path, "unet"), dtype, device, config, operations, inflate)


def load_vae(
    path: Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
    operations: Any = None,
    inflate: bool = False,
) -> VidRDAutoencoderKL:
    """Load a VAE in evaluation mode from any layout; arguments and errors as in :func:`load_unet`.

    An image VAE has no temporal layers and is loaded without them (``add_temp_conv=False``), unless ``inflate``.
    """
    return load_part(find_part(path, "vae"), dtype, device, config, operations, inflate)


def load_text_encoder(
    path: Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
) -> CLIPTextModel:
    """Load a CLIP text encoder in evaluation mode from any layout; arguments and errors as in :func:`load_unet`."""
    return load_part(find_part(path, "text_encoder"), dtype, device, config)


def unet_state_dict(path: Source, config: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A temporal U-Net's tensors in the released names, mapped to the file, and the configuration that fits them.

    Raises:
        CheckpointError: as in :func:`load_unet`.
    """
    return _checked_state(find_part(path, "unet"), config)


def vae_state_dict(path: Source, config: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As :func:`unet_state_dict`, of a VAE with or without temporal layers."""
    return _checked_state(find_part(path, "vae"), config)


def text_encoder_state_dict(
    path: Source, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As :func:`unet_state_dict`, of a CLIP text encoder, in names without ``text_model.``."""
    return _checked_state(find_part(path, "text_encoder"), config)


def _checked_state(part: Part, config: Mapping[str, Any] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = part.state()
    config = resolve_config(part, state, config)
    check_fit(part, empty_model(part.name, config), state)
    return state, config


def find_part(path: Source, name: str) -> Part:
    """The part ``name`` of whatever ``path`` is.

    Raises:
        CheckpointError: it cannot be read safely or has no such part.
    """
    checkpoint = path if isinstance(path, Checkpoint) else recognise(path)
    part = checkpoint.part(name)
    if part is None:
        there = ", ".join(PART_LABELS[n] for n in checkpoint.names) or "no model"
        raise CheckpointError(
            f"{path} holds no {PART_LABELS[name]} (it holds: {there}): choose a file or folder with one"
        )
    return part


def resolve_config(
    part: Part, state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, inflate: bool = False
) -> dict[str, Any]:
    """The constructor configuration for a part: given, stored with the weights, or inferred from the shapes.

    Raises:
        CheckpointError: the weights are of another family.
    """
    where = part.stored.path
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    other = unsupported_model(part.name, shapes)
    if other:
        raise CheckpointError(f"{where} holds {other}, which is no VidRD {PART_LABELS[part.name]}: choose another file")
    temporal = is_temporal(shapes)
    if part.name == "unet" and not (temporal or inflate):
        raise CheckpointError(
            f"{where} holds an {describe('unet', shapes)}, without temporal layers, so it makes no video: "
            "choose a VidRD U-Net; to begin training from this one, use VidRDUNet.from_image_unet"
        )
    given = dict(part.config or {}) if config is None else dict(config)
    if not given:
        try:
            given = infer_config(part.name, shapes, part.stored.hyper_parameters)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        logger.info("%s: configuration of the %s inferred from the shapes: %s", where, PART_LABELS[part.name], given)
    if part.name == "text_encoder":
        return given
    return _temporal_settings(part, given, shapes, inflate)


def _temporal_settings(part: Part, config: dict[str, Any], names: Mapping[str, Any], inflate: bool) -> dict[str, Any]:
    """Complete a configuration, perhaps an image model's, by what the weights hold."""
    config = dict(config)
    temp_convs = any(".temp_convs." in n for n in names)
    if inflate and not is_temporal(names):
        config.setdefault("add_temp_conv", True)
    else:
        config["add_temp_conv"] = temp_convs or bool(config.get("add_temp_conv"))
    if part.name == "unet":
        config.setdefault("add_temp_embed", bool(part.stored.hyper_parameters.get("add_temp_embed", True)))
    elif not config["add_temp_conv"]:
        logger.info("%s: an image VAE; its decoder has no temporal layers", part.stored.path)
    return config


def empty_model(name: str, config: Mapping[str, Any], dtype: torch.dtype | None = None, operations: Any = None) -> Any:
    """The model of a part on the meta device.

    Raises:
        CheckpointError: the configuration is no such model's; the message lacks the file's name.
    """
    made: dict[str, Any] = {"dtype": dtype, "operations": operations or nn}
    if name == "text_encoder":
        return _empty_text_encoder(config, dtype)
    from ..models.inflate import build_empty, check_settings

    try:
        if name == "vae":
            from ..models.autoencoder import VidRDAutoencoderKL

            return build_empty(VidRDAutoencoderKL, {**config, **made})
        from ..models.unet import FIXED_SETTINGS, VidRDUNet

        check_settings(VidRDUNet, config, FIXED_SETTINGS)
        return build_empty(VidRDUNet, {**config, **made})
    except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"its configuration is not one of a VidRD {PART_LABELS[name]}: {error}") from error


def _empty_text_encoder(config: Mapping[str, Any], dtype: torch.dtype | None) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    from ..models.inflate import check_sizes

    settings = config.get("text_config", config)  # of a whole CLIP
    known = {k: v for k, v in settings.items() if k not in ("dtype", "torch_dtype", "architectures")}
    try:
        check_sizes(known)
        with torch.device("meta"):
            model = CLIPTextModel(CLIPTextConfig(**known))
    except (ValueError, TypeError, ArithmeticError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"its configuration is not one of a CLIP text encoder: {error}") from error
    return model if dtype is None else torch.nn.Module.to(model, dtype=dtype)


def check_fit(part: Part, model: nn.Module, state: Mapping[str, Tensor], inflate: bool = False) -> None:
    """Raise CheckpointError unless names and shapes of ``state`` are those of ``model``."""
    from ..models.inflate import compare

    shapes = {installed_name(model, k): tuple(v.shape) for k, v in state.items()}
    problem = compare(model, shapes).problem(temporal_may_miss=inflate)
    if problem:
        raise CheckpointError(
            f"{part.stored.path}: the {PART_LABELS[part.name]} does not fit the configuration from "
            f"{part.config_source}: {problem}. "
            "Pass the configuration it was trained with, or choose another file"
        )


def installed_name(model: nn.Module, name: str) -> str:
    """A parameter's name in the installed transformers, whose versions before 5 put ``text_model.`` before it."""
    return f"text_model.{name}" if hasattr(model, "text_model") else name


def load_part(
    part: Part,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    config: Mapping[str, Any] | None = None,
    operations: Any = None,
    inflate: bool = False,
) -> Any:
    """Build a part's model; see :func:`load_unet`."""
    from ..models.inflate import assign_weights, initialise_missing

    state = part.state()
    config = resolve_config(part, state, config, inflate)
    dtype = dtype or stored_dtype(part, state)
    try:
        model = empty_model(part.name, config, dtype, operations)
    except CheckpointError as error:
        raise CheckpointError(f"{part.stored.path}: {error}") from error
    check_fit(part, model, state, inflate)
    if needs_copy(state, dtype, device):
        del state
        weights = copy_tensors(part.state, dtype, device)
    else:
        weights = iter(state.items())
    assign_weights(model, ((installed_name(model, k), v) for k, v in weights), temporal_may_miss=inflate)
    if inflate:
        initialise_missing(model, device)
    for buffer_name, buffer in model.named_buffers():
        if buffer.is_meta:  # a constant of CLIP, which its state dict no longer holds
            owner = model.get_submodule(buffer_name.rpartition(".")[0])
            owner.position_ids = torch.arange(buffer.shape[-1], device=device).expand(1, -1)
    return model.eval()


def needs_copy(state: Mapping[str, Tensor], dtype: torch.dtype | None, device: torch.device | str = "cpu") -> bool:
    """Whether the tensors cannot stay as they lie in the file."""
    same = all(v.dtype == dtype for v in state.values() if v.is_floating_point())
    return not same or torch.device(device).type != "cpu"


def stored_dtype(part: Part, state: Mapping[str, Tensor]) -> torch.dtype:
    """The float type of the weights, the widest where they are mixed.

    Raises:
        CheckpointError: torch cannot compute in it.
    """
    dtypes = sorted({v.dtype for v in state.values() if v.is_floating_point()}, key=str)
    if not dtypes:
        raise CheckpointError(f"{part.stored.path} holds no floating-point weights: choose another file")
    if any(d.itemsize == 1 for d in dtypes):
        raise CheckpointError(
            f"{part.stored.path} is stored as {dtypes[0]}: pass dtype=torch.float16 or another to load it"
        )
    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    if len(dtypes) > 1:
        logger.info("%s: weights of %s are loaded as %s", part.stored.path, dtypes, widest)
    return widest
