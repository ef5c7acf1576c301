"""Store latents and text states of a prepared data set, so that training runs neither encoder.

    python training/prepare_embeddings.py --data data/mine --model models/vidrd --output data/mine_latents
    python training/prepare_embeddings.py --data data/mine --model models/vidrd --output data/mine_latents --device cuda

``--embedding.null-captions "" watermark`` stores the text states of these, for an objective with such null captions.
``--model`` is a model folder with ``vae``, ``text_encoder`` and ``tokenizer`` (Stable Diffusion 2.1's or VidRD's).
Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import functools
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from transformers import CLIPTextModel, CLIPTokenizer

from vidrd_core.data.embeddings import EmbeddingSettings, embed
from vidrd_core.data.shards import ShardDataset
from vidrd_core.models.autoencoder import VidRDAutoencoderKL
from vidrd_core.train.text import encode_text


@dataclass(frozen=True)
class Arguments:
    data: Path  # folder that prepare_data.py made
    model: Path  # model folder
    output: Path  # folder to write
    embedding: EmbeddingSettings = EmbeddingSettings()
    device: str = "cpu"
    dry_run: bool = False  # say what would be done and stop


def main(arguments: Arguments) -> None:
    data = ShardDataset(arguments.data)
    for part in ("vae", "text_encoder", "tokenizer") if arguments.embedding.text else ("vae",):
        if not (arguments.model / part).is_dir():
            raise FileNotFoundError(f"{arguments.model / part}: no such folder; --model wants a whole model folder")
    if arguments.dry_run:
        logging.info("%d samples; %s", len(data), arguments)
        return
    vae = VidRDAutoencoderKL.from_pretrained(arguments.model / "vae").to(arguments.device)
    encode = None
    if arguments.embedding.text:
        tokenizer = CLIPTokenizer.from_pretrained(arguments.model / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(arguments.model / "text_encoder").eval()
        torch.nn.Module.to(encoder, arguments.device)  # transformers' own `to` is typed as a function without self
        encode = torch.no_grad()(functools.partial(encode_text, tokenizer, encoder))
    embed(data, arguments.output, vae, encode, {"folder": arguments.model.name}, arguments.embedding)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main(tyro.cli(Arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
