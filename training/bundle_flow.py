"""Put the trained flow transformer, causal VAE and text encoder together as a model folder of diffusers, in float16.

    python training/bundle_flow.py --flow runs/flow --output runs/demo_flow

The folder is one of diffusers' ``WanPipeline``; give it prompts as ``prompt_embeds``, states of all the text encoder's
tokens, since the model is trained on those (the pipeline itself drops the states of padding). The VAE's latents are
given Wan 2.1's mean and deviation, so that ComfyUI's latent format of Wan suits them.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from vidrd_core.models.wan_latents import take_wan_statistics


@dataclass(frozen=True)
class Defaults:
    """What suits the model: the nodes read it as "defaults" of the folder's ``model_index.json``."""

    num_frames: int = 29  # of a clip
    num_inference_steps: int = 20
    guidance_scale: float = 4.0
    fps: int = 16
    negative_prompt: str = ""
    overlap_frames: int = 12  # that a clip repeats of the one before
    tell_levels: bool = True  # whether the network is told that they are cleaner than the new ones


@dataclass(frozen=True)
class Arguments:
    flow: Path  # run of the transformer
    output: Path  # model folder to write
    vae: Path | None = None  # run of another VAE with the same latents; None: the one that the transformer's run names
    shift: float = 3.0  # of the noise levels in sampling
    defaults: Defaults = Defaults()


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
    take_wan_statistics(pipe.vae)
    for part in (pipe.text_encoder, pipe.vae, pipe.transformer):
        part.to(torch.float16)
    fresh = arguments.output.with_name(arguments.output.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.save_pretrained(fresh)
    # vocab.json and merges.txt too, for older libraries.
    pipe.tokenizer.backend_tokenizer.model.save(str(fresh / "tokenizer"))
    for file in fresh.glob("*/config.json"):  # the folder that a part was trained in is nobody's business
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    index = fresh / "model_index.json"
    known = json.loads(index.read_text(encoding="utf-8")) | {"defaults": asdict(arguments.defaults)}
    index.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(arguments.output, ignore_errors=True)
    os.replace(fresh, arguments.output)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
