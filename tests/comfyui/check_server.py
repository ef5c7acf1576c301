"""A real server on the CPU, driven over HTTP as the browser drives it."""

from __future__ import annotations

import ast
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
from comfy_server import PACK, TREE, Server, make_base, running_server
from node_schemas import read_nodes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_model: Any) -> Iterator[Server]:
    base = make_base(tmp_path_factory.mktemp("server") / "base")
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
