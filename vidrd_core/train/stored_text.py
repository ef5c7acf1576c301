"""Text states stored with the data, which replace the text encoder in a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.recognition import recognise
from ..data.shards import ShardDataset
from ..sampling.settings import SamplingSettings
from .sources import ShardSource, Source
from .start import start_text
from .text import encode_text

logger = logging.getLogger(__name__)

TOLERANCE = 0.05  # between the same states, stored in float16 by different machines


@dataclass(frozen=True)
class StoredText:
    """Stored text states, in place of a text encoder.

    Args:
        null: states of the null captions ``[K, M, D]``; None where no caption is dropped.
        previews: states ``[1, M, D]`` of the previews' prompts and of their negative prompt, by text.
        home: folder with the text encoder and the tokenizer, which complete an exported model; None: there are none.
    """

    null: Tensor | None
    previews: Mapping[str, Tensor] = field(default_factory=dict)
    home: Path | None = None


def start_stored_text(
    sources: Sequence[Source | None],
    null_captions: Sequence[str],
    prompts: Sequence[str],
    places: Sequence[Path | None],
    width: int,
) -> StoredText | None:
    """The text states of data sets that hold them for all samples; None where one does not: captions must be encoded.

    Args:
        sources: of training clips and of held-out ones.
        null_captions: of the objective; none where no caption is dropped.
        prompts: of the previews that the run makes; encoded here, once, by the text encoder of ``places``.
        places: the folder that was named for the text encoder, and the starting model.
        width: D, the text width that the U-Net reads.

    Raises:
        ValueError: a null caption is not stored, the states are of different text encoders or of another width, or
            there are prompts and no text encoder.
    """
    given = [source for source in sources if source is not None]
    datasets = [data for source in given if isinstance(source, ShardSource) for data in source.datasets]
    if not all(isinstance(source, ShardSource) and source.stores_text for source in given):
        return None
    null = _null_states(datasets, null_captions) if null_captions else None
    if null is not None and null.shape[-1] != width:
        raise ValueError(
            f"stored text states are {null.shape[-1]} wide, the U-Net reads {width}: prepare the embeddings with the "
            "text encoder of the model that is trained"
        )
    home = _home(places)
    previews = _encoded(prompts, home) if prompts else {}
    logger.info("text states are stored with the data: no text encoder is loaded for training")
    return StoredText(null, previews, home)


def _null_states(datasets: Sequence[ShardDataset], captions: Sequence[str]) -> Tensor:
    """``[K, M, D]``, of the first data set; the others must agree."""
    found = []
    for data in datasets:
        known = data.null_states
        missing = [caption for caption in captions if caption not in known]
        if missing:
            wanted = " ".join(f'"{caption}"' for caption in captions)
            raise ValueError(
                f"{data.folder} holds no text states of the null captions {missing}, only of {list(known)}: run "
                f"prepare_embeddings.py again with --embedding.null-captions {wanted}, or set objective.null_captions"
            )
        found.append(torch.stack([known[caption] for caption in captions]))
        first = found[0]
        if found[-1].shape != first.shape or not torch.allclose(found[-1], first, rtol=TOLERANCE, atol=TOLERANCE):
            raise ValueError(
                f"{data.folder} and {datasets[0].folder} hold text states of different text encoders: prepare the "
                "embeddings of all data sets with one model"
            )
    return found[0]


def _home(places: Sequence[Path | None]) -> Path | None:
    """The first place that is given, if it has text encoder and tokenizer; one that is named for them must."""
    for number, place in enumerate(places):
        if place is None:
            continue
        if (place / "tokenizer").is_dir() and "text_encoder" in recognise(place).names:
            return place
        if number == 0:
            raise ValueError(f"{place} lacks a text encoder or a tokenizer folder: name another text_model, or none")
        logger.info("%s has no text encoder and tokenizer, so exported folders have none", place)
        return None
    return None


def _encoded(prompts: Sequence[str], home: Path | None) -> dict[str, Tensor]:
    if home is None:
        raise ValueError(
            "previews.prompts are texts, and there is no text encoder to read them: set text_model to a folder with "
            "text_encoder and tokenizer, which is needed at the start only, or leave previews.prompts empty"
        )
    encoder, tokenizer = start_text([home])
    texts = [*prompts, str(SamplingSettings.negative_prompt)]
    with torch.no_grad():
        return {text: encode_text(tokenizer, encoder, [text]) for text in texts}
