"""Real ComfyUI for the checks in this folder: the tree, the pack loaded as ComfyUI loads it, and tiny real models.

The ``check_*.py`` files run inside ComfyUI's own interpreter; ``test_comfyui.py`` starts them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[2]

if os.environ.get("VIDRD_INSIDE_COMFYUI"):
    TREE = os.environ["COMFYUI_PATH"]
    sys.path.insert(0, TREE)
    os.chdir(TREE)
    _arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = _arguments
    import torch

    import nodes as _stock  # noqa: F401  (ComfyUI's own, before the pack's folder of that name can be seen)

    torch.set_num_threads(1)
    sys.path += [str(PACK), str(PACK / "tests"), str(PACK / "benchmarks")]  # the core as a library, to compare with
    sys.path.append(str(PACK / "tests" / "comfyui"))  # tiny_models.py and what else the checks share


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folders in a temporary place."""
    import folder_paths

    root = tmp_path_factory.mktemp("comfy")
    for kind in ("input", "output", "temp", "models/loras", "models/vae", "models/diffusion_models", "models/vidrd"):
        (root / kind).mkdir(parents=True)
    folder_paths.set_output_directory(str(root / "output"))
    folder_paths.set_input_directory(str(root / "input"))
    folder_paths.set_temp_directory(str(root / "temp"))
    folder_paths.models_dir = str(root / "models")
    for kind in ("loras", "vae", "diffusion_models"):
        folder_paths.add_model_folder_path(kind, str(root / "models" / kind), is_default=True)
    return root


@pytest.fixture(scope="session")
def pack(base: Path) -> ModuleType:
    """The node pack, loaded as ComfyUI loads a folder in custom_nodes."""
    name = "custom_nodes.VidRD"
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nodes(pack: ModuleType) -> dict[str, Any]:
    """Every node by its id, called as ``nodes[id](input=value, ...)`` -> tuple of outputs."""
    import asyncio

    async def collect() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    def caller(node: Any) -> Any:
        def call(**inputs: Any) -> tuple[Any, ...]:
            node.INPUT_TYPES()
            given = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
            with torch.inference_mode():
                return node.execute(**{**given, **inputs}).args

        call.node = node
        return call

    return {n.define_schema().node_id: caller(n) for n in asyncio.run(collect())}


@pytest.fixture(scope="session")
def part(pack: ModuleType) -> Any:
    """A module of the pack by its dotted name inside it."""
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
VAE = {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.7}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
             "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon"}  # fmt: skip


def make_model_folder(folder: Path, seed: int = 0, **unet: Any) -> Path:
    """A tiny random model folder; zero-initialised layers are filled, so that nothing is the identity."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from vidrd_core import VidRDAutoencoderKL, VidRDPipeline, VidRDUNet

    torch.manual_seed(seed)
    models = [VidRDUNet(**{**UNET, **unet}), VidRDAutoencoderKL(**VAE)]
    for model in models:
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = letters + [f"{c}</w>" for c in letters] + ["th", "the</w>"] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "vocab.json").write_text(json.dumps({w: n for n, w in enumerate(vocab)}), encoding="utf-8")
    (folder / "words" / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=32
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=32, hidden_act="quick_gelu", bos_token_id=len(vocab) - 2,
            eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1,
        )
    ).eval()  # fmt: skip
    for parameter in text.parameters():  # random norms too, so that a missing one would show
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.1)
    pipe = VidRDPipeline(*(m.eval() for m in models), text, tokenizer, diffusers.DDIMScheduler(**SCHEDULER))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def make_model() -> Any:
    return make_model_folder


@pytest.fixture(scope="session")
def folder(base: Path) -> Path:
    return make_model_folder(base / "models" / "vidrd" / "tiny")


@pytest.fixture(scope="session")
def pipe(folder: Path) -> Any:
    """The same model in VidRD's own pipeline, outside ComfyUI."""
    from vidrd_core.checkpoints import load_pipeline_parts
    from vidrd_core.pipeline import VidRDPipeline

    pipe = VidRDPipeline(**load_pipeline_parts(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def loaded(nodes: dict[str, Any], folder: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the tiny model."""
    return nodes["VidRDLoadModel"](model_name="tiny", weight_dtype="fp32")


@pytest.fixture(scope="session")
def model(loaded: tuple[Any, Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture(scope="session")
def conds(loaded: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """Positive and negative conditioning."""
    clip = loaded[1]
    with torch.inference_mode():
        return tuple(clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("the red ball rolls", "watermark"))


@pytest.fixture
def first(nodes: dict[str, Any], model: Any, conds: tuple[Any, Any]) -> Any:
    """Sample a first clip of the tiny model: ``first(steps=4, ...)`` -> LATENT."""

    def sample(**changes: Any) -> dict[str, Any]:
        latent = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=changes.pop("batch_size", 1))[0]
        given = {
            "model": model,
            "positive": conds[0],
            "negative": conds[1],
            "latent": latent,
            "seed": 1,
            "steps": 5,
            "cfg": 3.0,
        }
        return nodes["VidRDSampleFirstClip"](**{**given, **changes})[0]

    return sample


@pytest.fixture
def following(nodes: dict[str, Any], model: Any, conds: tuple[Any, Any]) -> Any:
    """Continue: ``following(prior, seed=2, ...)`` -> (video, clip)."""

    def sample(prior: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        given = {"model": model, "positive": conds[0], "negative": conds[1], "prior": prior, "seed": 2, "cfg": 3.0}
        return nodes["VidRDReuseAndDiffuse"](**{"preset": "custom", **given, **changes})[:2]

    return sample
