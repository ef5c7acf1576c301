"""Put the trained flow transformer, causal VAE and text encoder together as a model folder of diffusers, in float16.

    python training/bundle_flow.py --flow runs/flow_polish --output runs/demo_flow

The folder is one of diffusers' ``WanPipeline``; give it prompts as ``prompt_embeds``, states of all the text encoder's
tokens, since the model is trained on those (the pipeline itself drops the states of padding).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Arguments:
    flow: Path  # run of the transformer
    output: Path  # model folder to write
    vae: Path | None = None  # run of another VAE with the same latents; None: the one that the transformer's run names
    shift: float = 3.0  # of the noise levels in sampling


def main(arguments: Arguments) -> None:
    model = arguments.flow / "model"
    vae = model / "vae" if arguments.vae is None else arguments.vae / "model"
    text_encoder: Any = CLIPTextModel.from_pretrained(model / "text_encoder")  # Wan's own is a T5
    pipe = WanPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(model / "tokenizer"),
        text_encoder=text_encoder,
        vae=AutoencoderKLWan.from_pretrained(vae),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=arguments.shift),
        transformer=WanTransformer3DModel.from_pretrained(model / "transformer"),
    )
    for part in (pipe.text_encoder, pipe.vae, pipe.transformer):
        part.to(torch.float16)
    fresh = arguments.output.with_name(arguments.output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.save_pretrained(fresh)
    # vocab.json and merges.txt too, for older libraries.
    pipe.tokenizer.backend_tokenizer.model.save(str(fresh / "tokenizer"))
    shutil.rmtree(arguments.output, ignore_errors=True)
    os.replace(fresh, arguments.output)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
