"""A real server on the CPU, driven over HTTP as the browser drives it."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_server import PACK, TREE, Server, make_base, running_server
from examples import filled, write_released_vae
from node_schemas import read_nodes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Iterator[Server]:
    base = make_base(tmp_path_factory.mktemp("server") / "ComfyUI")
    make_model(base / "models" / "vidrd" / "tiny")
    with running_server(base) as server:
        yield server


def chain() -> dict[str, Any]:
    """Two clips with the one-wire chain, decoded and saved."""
    sampling = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 3.0}
    reuse = {"preset": "custom", "overlap_frames": 4, "noise_alpha": 4.0, "guidance_beta": 0.4, "order": "reverse",
             "trim_frames": 0, "stages": "linear", "guidance_lead": 0.0, "steps": 0, "sampler_name": "from prior",
             "scheduler": "from prior", "prior_trajectory": "auto", "clip_frames": 0}  # fmt: skip
    return {
        "1": {"class_type": "VidRDLoadModel", "inputs": {"model_name": "tiny", "weight_dtype": "default"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "the red ball", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "watermark", "clip": ["1", 1]}},
        "4": {"class_type": "VidRDEmptyLatent", "inputs": {"width": 64, "height": 64, "frames": 8, "batch_size": 1}},
        "5": {"class_type": "VidRDSampleFirstClip", "inputs": {
            **sampling, "latent": ["4", 0], "seed": 1, "steps": 3, "sampler_name": "ddim", "scheduler": "ddim_uniform",
            "denoise": 1.0, "progressive_alpha": 0.0}},
        "6": {"class_type": "VidRDReuseAndDiffuse", "inputs": {**sampling, **reuse, "prior": ["5", 0], "seed": 2}},
        "7": {"class_type": "VidRDReuseAndDiffuse", "inputs": {**sampling, **reuse, "prior": ["6", 0], "seed": 3}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "chain"}},
        "10": {"class_type": "VidRDPreviewClip", "inputs": {"samples": ["7", 1], "vae": ["1", 2], "fps": 4.0}},
    }  # fmt: skip


def cached(history: dict[str, Any]) -> set[str]:
    messages = dict((name, value) for name, value in history["status"]["messages"])
    return set(messages["execution_cached"]["nodes"])


LOAD = """
import asyncio, importlib.util, sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import nodes
before = set(sys.modules)
options = dict(submodule_search_locations=[{root!r}])
spec = importlib.util.spec_from_file_location("custom_nodes.VidRD", {root!r} + "/__init__.py", **options)
module = importlib.util.module_from_spec(spec)
sys.modules["custom_nodes.VidRD"] = module
spec.loader.exec_module(module)
async def schemas():
    return [node.GET_SCHEMA() for node in await (await module.comfy_entrypoint()).get_node_list()]
assert len(asyncio.run(schemas())) > 5
print("ADDED", sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
"""


def test_importing_the_pack_and_describing_its_nodes_loads_no_library() -> None:
    code = LOAD.format(root=str(PACK))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TREE)
    added = next(line for line in ran.stdout.splitlines() if line.startswith("ADDED"))
    assert ast.literal_eval(added.removeprefix("ADDED ")) == ["custom_nodes"]


def test_the_pack_registers_all_nodes(server: Server) -> None:
    known = server.get("/object_info")
    ours = {name for name in known if name.startswith("VidRD")}
    assert ours == set(read_nodes())
    assert all(known[name]["category"] == "VidRD" for name in ours)
    log = server.log.read_text(encoding="utf-8")
    (line,) = [text for text in log.splitlines() if "seconds" in text and "VidRD" in text]
    assert "IMPORT FAILED" not in line


def test_a_chain_runs_and_only_what_changed_runs_again(server: Server) -> None:
    prompt = chain()
    done = server.run(prompt)
    assert done["status"]["status_str"] == "success", done["status"]
    assert len(done["outputs"]["9"]["images"]) == 24
    assert done["outputs"]["10"]["images"][0]["filename"].endswith(".mp4")
    prompt["7"]["inputs"]["seed"] = 4
    again = server.run(prompt)
    assert again["status"]["status_str"] == "success"
    assert {"1", "2", "3", "4", "5", "6"} <= cached(again) and "7" not in cached(again)
    prompt["6"]["inputs"]["guidance_beta"] = 0.8
    assert {"5"} <= cached(server.run(prompt))


def test_a_missing_model_is_told_before_anything_runs(server: Server) -> None:
    prompt = chain()
    prompt["1"]["inputs"]["model_name"] = "gone"
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.run(prompt)
    assert "no model folder with a model_index.json at gone" in refused.value.read().decode()


def test_an_error_reaches_the_node_as_one_sentence(server: Server) -> None:
    prompt = chain()
    prompt["6"]["inputs"]["overlap_frames"] = 9
    failed = server.run(prompt)
    messages = dict((name, value) for name, value in failed["status"]["messages"])
    assert messages["execution_error"]["node_id"] == "6"
    assert "overlap_frames is 9 but the clip has 8 frames" in messages["execution_error"]["exception_message"]


def write_downloads(folder: Path, make_model: Any) -> Path:
    """What README.md's commands name, side by side: ``ModelT2V.pth`` with a text encoder of its own, ``vae_finetuned``,
    and a Stable Diffusion folder for the tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from vidrd_core import VidRDUNet

    torch.manual_seed(0)
    (folder / "vae_finetuned").mkdir(parents=True)
    write_released_vae(folder / "vae_finetuned")
    unet = VidRDUNet(block_out_channels=(64, 64), layers_per_block=1, attention_head_dim=1, cross_attention_dim=64)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=49408, hidden_act="gelu"))
    state = {f"unet.{k}": filled(v) for k, v in unet.state_dict().items()}
    state |= {f"text_encoder.text_model.{k.removeprefix('text_model.')}": v for k, v in text.state_dict().items()}
    torch.save({"state_dict": state}, folder / "ModelT2V.pth")
    base = make_model(folder / "stable-diffusion-2-1-base")
    shutil.rmtree(base / "tokenizer")
    words = (str(TREE / "comfy" / "sd1_tokenizer" / name) for name in ("vocab.json", "merges.txt"))
    CLIPTokenizer(*words, pad_token="!", model_max_length=77).save_pretrained(str(base / "tokenizer"))
    return folder


def readme_conversions() -> list[str]:
    """The ``vidrd convert`` lines of the documents that say where to put a model for ComfyUI."""
    pages = ("README.md", "web/docs/VidRDLoadModel.md")
    texts = [(PACK / page).read_text(encoding="utf-8") for page in pages]
    return [line.strip() for text in texts for line in re.findall(r"^ *(vidrd convert .*)$", text, re.MULTILINE)]


def test_released_files_make_the_same_frames_from_comfyuis_folders_and_converted_as_the_documents_say(
    server: Server, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from vidrd_core.cli import main

    downloads = write_downloads(tmp_path / "downloads", make_model)
    lines = readme_conversions()
    assert len(lines) == 2
    monkeypatch.chdir(downloads)
    for number, line in enumerate(lines):
        arguments = shlex.split(line)[1:]
        (target,) = [a for a in arguments if "models/vidrd" in a]
        place = Path(server.base.parent, target)
        assert main([str(place) if a == target else a for a in arguments]) == 0
        listed = server.get("/object_info/VidRDLoadModel")["VidRDLoadModel"]["input"]["required"]["model_name"]
        assert place.name in listed[1]["options"] if listed[0] == "COMBO" else place.name in listed[0]
        if number < len(lines) - 1:
            shutil.rmtree(place)  # the next document may name the same

    models = server.base / "models"
    (models / "diffusion_models").mkdir(exist_ok=True)
    shutil.copy(downloads / "ModelT2V.pth", models / "diffusion_models")
    shutil.copytree(downloads / "vae_finetuned", models / "vae" / "vae_finetuned")
    converted = chain()
    converted["1"]["inputs"] = {"model_name": place.name, "weight_dtype": "fp32"}
    by_parts = chain()
    by_parts["1"] = {"class_type": "VidRDLoadUNet", "inputs": {"unet_name": "ModelT2V.pth", "weight_dtype": "fp32"}}
    by_parts["11"] = {"class_type": "VidRDLoadVideoDecoder", "inputs": {"vae_name": "vae_finetuned/"}}
    for node in ("8", "10"):
        by_parts[node]["inputs"]["vae"] = ["11", 0]
    frames = []
    for prompt in (converted, by_parts):
        done = server.run(prompt)
        assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
        files = done["outputs"]["9"]["images"]
        pictures = [Image.open(server.base / "output" / file["subfolder"] / file["filename"]) for file in files]
        frames.append(torch.stack([torch.from_numpy(np.array(p.convert("L"))) for p in pictures]).float())
    assert frames[0].shape == (24, 64, 64) and frames[0].std() > 1
    assert (frames[0] - frames[1]).abs().max() <= 1
