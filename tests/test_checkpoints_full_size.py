"""Files as large as the released ones, with random weights: to load and convert them takes about their size in memory.

Slow: writes about 20 GB to the temporary folder. Run with ``pytest -m slow tests/test_checkpoints_full_size.py``.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from components import tiny_tokenizer
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from vidrd_core import VidRDAutoencoderKL, VidRDUNet
from vidrd_core.checkpoints import inspect
from vidrd_core.models.old_names import OLD_ATTENTION_NAMES

pytestmark = pytest.mark.slow

GIB = 2**30
logger = logging.getLogger(__name__)
FIXED = 0.35 * GIB  # one chunk of the file, and what the libraries keep once they have worked
TEXT_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}

# Prints by how much the memory of a process grows, at its peak, while a statement runs; imports do not count.
MEASURE = """
import json, sys
import diffusers, torch, transformers
from transformers import CLIPTextModel
from vidrd_core import VidRDAutoencoderKL, VidRDUNet
from vidrd_core.checkpoints import *
import diffusers.loaders.single_file_utils

def status(key):
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak so far is forgotten
before = status("VmRSS:")
{statement}
print(json.dumps(status("VmHWM:") - before))
"""


def peak_memory(statement: str) -> int:
    """Bytes by which a fresh process grows at its peak."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc")
    code = MEASURE.replace("{statement}", statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(json.loads(done.stdout.splitlines()[-1]))
    logger.info("%.2f GiB: %s", peak / GIB, statement)
    return peak


def random_state(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape).uniform_(-0.05, 0.05) for name, shape in shapes.items()}


def shapes_of(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``ModelT2V.pth`` with text encoder (6.1 GB), ``vae_finetuned/`` and a Stable Diffusion folder without U-Net."""
    folder = tmp_path_factory.mktemp("assets")
    with torch.device("meta"):
        unet, vae, text = VidRDUNet(), VidRDAutoencoderKL(), CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(1182.4e6, rel=1e-4)
    clip = {k if k.startswith("text_model.") else f"text_model.{k}": s for k, s in shapes_of(text).items()}
    names = {f"unet.{k}": s for k, s in shapes_of(unet).items()} | {f"text_encoder.{k}": s for k, s in clip.items()}
    torch.save({"state_dict": random_state(names), "epoch": 1}, folder / "ModelT2V.pth")

    (folder / "vae_finetuned").mkdir()
    old = {new: name for name, new in OLD_ATTENTION_NAMES.items()}
    names = {}
    for name, shape in shapes_of(vae).items():
        if ".attentions.0." in name:
            name = next((name.replace(f".{new}.", f".{o}.") for new, o in old.items() if f".{new}." in name), name)
        names[name] = shape
    torch.save(random_state(names), folder / "vae_finetuned" / "diffusion_pytorch_model.bin")
    config = {k: v for k, v in vae.config.items() if k != "add_temp_conv" and not k.startswith("_")}
    (folder / "vae_finetuned" / "config.json").write_text(json.dumps(config), encoding="utf-8")

    base = folder / "stable-diffusion-2-1-base"
    tiny_tokenizer(base / "tokenizer")
    (base / "text_encoder").mkdir(parents=True)
    text.config.save_pretrained(base / "text_encoder")
    (base / "model_index.json").write_text("{}", encoding="utf-8")
    yield folder
    for file in folder.rglob("*"):
        if file.is_file():
            file.unlink()


def test_the_released_files_are_recognised(released: Path) -> None:
    report = inspect(released)
    assert list(report.parts) == ["unet", "vae", "text_encoder"] and report.absent == ["scheduler"]
    assert all(part.is_whole for part in report.parts.values())
    assert report.parts["unet"].temporal_parameters == pytest.approx(316.5e6, rel=1e-3)
    assert report.parts["vae"].temporal_parameters == pytest.approx(16.4e6, rel=1e-2)
    assert report.parts["unet"].config is not None
    assert report.parts["unet"].config["attention_head_dim"] == [5, 10, 20, 20]


TOUCH = "; sum(float(p.sum()) for p in model.parameters())"


@pytest.mark.parametrize("options", ["", ", dtype=torch.float16"])
def test_loading_a_full_size_checkpoint_needs_no_more_than_its_size(released: Path, options: str) -> None:
    file = released / "ModelT2V.pth"
    peak = peak_memory(f"model = load_unet({str(file)!r}{options}){TOUCH}")
    assert peak < 1.2 * file.stat().st_size + FIXED


def test_loading_in_half_precision_needs_the_halves_only(released: Path) -> None:
    unet_bytes = 4 * 1182.4e6
    peak = peak_memory(f"model = load_unet({str(released / 'ModelT2V.pth')!r}, dtype=torch.float16)")
    assert peak < 0.5 * unet_bytes + 2 * FIXED


@pytest.mark.parametrize("options", ["", ", dtype=torch.float16"])
def test_converting_the_released_files_needs_no_more_than_their_size(
    released: Path, tmp_path: Path, options: str
) -> None:
    peak = peak_memory(f"convert({str(released)!r}, {str(tmp_path / 'out')!r}{options})")
    assert peak < 1.2 * (released / "ModelT2V.pth").stat().st_size + FIXED
    report = inspect(tmp_path / "out")
    assert report.absent == [] and all(part.is_whole for part in report.parts.values())
    folder_peak = peak_memory(f"model = load_unet({str(tmp_path / 'out')!r}){TOUCH}")
    assert folder_peak < 1.2 * report.parts["unet"].size + FIXED
    for file in (tmp_path / "out").rglob("*.safetensors"):
        file.unlink()


def test_a_full_size_image_unet_inflates_within_its_models_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = VidRDUNet()
    state = random_state({k: s for k, s in shapes_of(unet).items() if "temp_" not in k})
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    del state
    config = {k: v for k, v in unet.config.items() if not k.startswith(("_", "add_temp"))}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    peak = peak_memory(f"model = VidRDUNet.from_image_unet({str(tmp_path)!r})")
    assert peak < 1.2 * 4 * 1182.4e6 + FIXED
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
