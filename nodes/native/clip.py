"""CLIP: any CLIP text encoder (the bundled small one, a checkpoint's own, Stable Diffusion 2.1's) as ComfyUI's CLIP."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_FLOAT32_PARAMETERS = (
    50_000_000  # parameters up to which a text encoder is held in float32 whatever the host's default is
)


class TextModel(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model with a vocabulary of any size."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any):
        super().__init__(config, dtype, device, operations)
        size = (config["vocab_size"], config["hidden_size"])
        self.text_model.embeddings.token_embedding = operations.Embedding(*size, dtype=dtype, device=device)


def build_clip(
    state: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Path | None, embeddings: list[str] | None = None
) -> comfy.sd.CLIP:
    """A CLIP whose text states are those of the transformers model: the last layer after the final norm.

    Args:
        state: tensors in names with or without ``text_model.``.
        config: of ``CLIPTextModel``.
        tokenizer: a folder with ``vocab.json`` and ``merges.txt``; None takes CLIP's own vocabulary with Stable
            Diffusion 2.x's padding.
        embeddings: folders of textual inversion embeddings.
    """
    config = dict(config.get("text_config", config))
    width, length = config["hidden_size"], config["max_position_embeddings"]
    tokens = special_tokens(tokenizer)
    config["eos_token_id"] = tokens["end"]

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None, **_: Any):
            super().__init__(
                None if tokenizer is None else str(tokenizer),
                max_length=length,
                pad_token=tokens["pad"],
                embedding_directory=embedding_directory,
                embedding_size=width,
                embedding_key="clip_h",
                tokenizer_data=tokenizer_data or {},
            )

    class Tokenizers(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None):
            super().__init__(embedding_directory, tokenizer_data or {}, clip_name="h", tokenizer=Tokenizer)

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(
            self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] | None = None, **_: Any
        ):
            super().__init__(
                device=device,
                max_length=length,
                layer="last",
                textmodel_json_config=dict(config),
                dtype=dtype,
                model_class=TextModel,
                special_tokens=tokens,
                return_projected_pooled=True,
                model_options=model_options or {},
            )

    class Encoders(comfy.sd1_clip.SD1ClipModel):
        def __init__(
            self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] | None = None, **_: Any
        ):
            super().__init__(device, dtype, model_options or {}, clip_name="h", clip_model=Encoder)

    parameters = comfy.utils.calculate_parameters(state)
    target = SimpleNamespace(params={}, clip=Encoders, tokenizer=Tokenizers)
    options = {"dtype": torch.float32} if parameters <= MAX_FLOAT32_PARAMETERS else {}
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, parameters=parameters, model_options=options)
    load_weights(clip, state, width)
    return clip


def load_weights(clip: comfy.sd.CLIP, state: Mapping[str, Tensor], width: int) -> None:
    """Load every tensor; a missing projection of the pooled output, which VidRD does not use, becomes the identity."""
    named = {k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v for k, v in state.items()}
    named.pop("text_model.embeddings.position_ids", None)
    named.setdefault("text_projection.weight", torch.eye(width))
    missing, unexpected = clip.load_sd(named)
    if missing or unexpected:
        raise ValueError(
            f"the text encoder does not fit its configuration: missing {list(missing)[:5]}, "
            f"unexpected {list(unexpected)[:5]}"
        )


def special_tokens(tokenizer: Path | None) -> dict[str, int]:
    """Ids of the tokens that begin, end and fill a text."""
    if tokenizer is None:
        return {"start": 49406, "end": 49407, "pad": 0}
    from transformers import CLIPTokenizer

    loaded = CLIPTokenizer.from_pretrained(str(tokenizer))
    return {"start": loaded.bos_token_id, "end": loaded.eos_token_id, "pad": loaded.pad_token_id}
