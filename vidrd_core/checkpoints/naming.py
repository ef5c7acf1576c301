"""Parameter names: from the layouts people have to the ones our models use.

U-Net and VAE are wanted in diffusers' names plus the released ``temp_`` ones, the text encoder in those of
transformers' ``CLIPTextModel`` without the ``text_model.`` prefix that versions before 5 add.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..weight_files import CheckpointError

# Of a CLIP text model's dict, what is no weight of the text encoder: a constant, and the projection of CLIP itself.
CLIP_EXTRAS = ("embeddings.position_ids", "text_projection.weight", "text_projection", "logit_scale")
LDM_LAYERS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "openclip": "cond_stage_model.model."}


def to_our_names(part: str, layout: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename one part's tensors, their common prefix already gone.

    Args:
        part: ``unet``, ``vae`` or ``text_encoder``.
        layout: ``diffusers`` or ``ldm``; for the text encoder ``clip`` or ``openclip``.

    Raises:
        CheckpointError: names that the layout does not have.
    """
    if part == "unet":
        return _ldm_unet(state) if layout == "ldm" else dict(state)
    if part == "vae":
        return _ldm_vae(state) if layout == "ldm" else _diffusers_vae(state)
    return _open_clip(state) if layout == "openclip" else _clip(state)


def _diffusers_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from ..models.old_names import rename_old_attention

    return {rename_old_attention(k): v for k, v in state.items()}


def _ldm_unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    # The first level ends in a downsampler, in the block after its residual blocks.
    downsamplers = [int(m[1]) for m in (re.match(r"input_blocks\.(\d+)\.0\.op\.weight", k) for k in state) if m]
    if not downsamplers:
        raise CheckpointError("the U-Net is in no known layout: it has a single resolution; pass a diffusers folder")
    config: dict[str, Any] = {"layers_per_block": min(downsamplers) - 1}
    converted = convert_ldm_unet_checkpoint({LDM_LAYERS["unet"] + k: v for k, v in state.items()}, config)
    return _complete(converted, state, "U-Net")


def _ldm_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = len({k.split(".")[2] for k in state if k.startswith("encoder.down.")})
    config = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}  # only their number is read
    # Files of a VAE alone carry what its training needed.
    weights = {
        k: v for k, v in state.items() if k.split(".")[0] in ("encoder", "decoder", "quant_conv", "post_quant_conv")
    }
    converted = convert_ldm_vae_checkpoint({LDM_LAYERS["vae"] + k: v for k, v in weights.items()}, config)
    return _complete(converted, weights, "VAE")


def _complete(converted: dict[str, Tensor], state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The conversion leaves out names it does not know; that must not pass in silence."""
    kept = {v.data_ptr() for v in converted.values()}
    lost = [k for k, v in state.items() if v.data_ptr() not in kept]
    if lost:
        raise CheckpointError(
            f"the {what} has {len(lost)} weights that Stable Diffusion's has not, for example {lost[0]}: "
            "it is of another family; take one of Stable Diffusion 1.x or 2.x"
        )
    return converted


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    prefix = LDM_LAYERS["openclip"]
    width = state["token_embedding.weight"].shape[1]
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
    # The projection may be of another width and would mislead the conversion about the size of q, k and v.
    wanted = {prefix + k: v for k, v in state.items() if k not in CLIP_EXTRAS and k != "attn_mask"}
    return _clip(convert_open_clip_checkpoint(model, wanted, prefix=prefix))


def _clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bare = {k.removeprefix("text_model."): v for k, v in state.items()}
    return {k: v for k, v in bare.items() if k not in CLIP_EXTRAS}
