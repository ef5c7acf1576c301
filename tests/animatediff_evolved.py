"""The nodes of AnimateDiff-Evolved that an example uses: the pack itself where it is installed, else their schemas.

The schemas are written down from its source, animatediff/nodes_gen2.py and utils_model.py of version 1.5.7, commit
d8d163cd90b1111f6227495e3467633676fbb346 of https://github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved. With them a
workflow can be opened and checked; it cannot be run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from comfy_server import TREE

NAME = "ComfyUI-AnimateDiff-Evolved"
CNR_ID, VERSION = "comfyui-animatediff-evolved", "1.5.7"
MODELS = "animatediff_models"  # its folder of motion models under ComfyUI/models
BETA_SCHEDULES = [
    "autoselect", "use existing", "sqrt_linear (AnimateDiff)", "linear (AnimateDiff-SDXL)",
    "linear (HotshotXL/default)", "avg(sqrt_linear,linear)", "lcm avg(sqrt_linear,linear)", "lcm", "lcm[100_ots]",
    "lcm >> sqrt_linear", "sqrt", "cosine", "squaredcos_cap_v2",
]  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "ADE_LoadAnimateDiffModel": {
        "name": "Load AnimateDiff Model 🎭🅐🅓②",
        "required": {"model_name": ["FILES"]},
        "optional": {"ad_settings": ["AD_SETTINGS"]},
        "outputs": {"MOTION_MODEL": "MOTION_MODEL_ADE"},
    },
    "ADE_ApplyAnimateDiffModelSimple": {
        "name": "Apply AnimateDiff Model 🎭🅐🅓②",
        "required": {"motion_model": ["MOTION_MODEL_ADE"]},
        "optional": {
            "motion_lora": ["MOTION_LORA"],
            "scale_multival": ["MULTIVAL"],
            "effect_multival": ["MULTIVAL"],
            "ad_keyframes": ["AD_KEYFRAMES"],
            "per_block": ["PER_BLOCK"],
        },
        "outputs": {"M_MODELS": "M_MODELS"},
    },
    "ADE_UseEvolvedSampling": {
        "name": "Use Evolved Sampling 🎭🅐🅓②",
        "required": {"model": ["MODEL"], "beta_schedule": [BETA_SCHEDULES, {"default": "autoselect"}]},
        "optional": {
            "m_models": ["M_MODELS"],
            "context_options": ["CONTEXT_OPTIONS"],
            "sample_settings": ["SAMPLE_SETTINGS"],
        },
        "outputs": {"MODEL": "MODEL"},
    },
}
STAND_IN = '''"""Schemas of nodes that are not installed here: they can be shown and wired, not run."""

import os

import folder_paths

FOLDER = os.path.join(folder_paths.models_dir, {folder!r})
folder_paths.add_model_folder_path({folder!r}, FOLDER)
folder_paths.folder_names_and_paths[{folder!r}][1].update((".ckpt", ".safetensors"))
SCHEMAS = {schemas!r}


def stand_in(schema):
    class Node:
        CATEGORY = "stand-in"
        FUNCTION = "run"
        RETURN_TYPES = tuple(schema["outputs"].values())
        RETURN_NAMES = tuple(schema["outputs"])

        @classmethod
        def INPUT_TYPES(cls):
            files = folder_paths.get_filename_list({folder!r})
            return {{
                section: {{
                    key: (files if kind == "FILES" else kind, *rest)
                    for key, (kind, *rest) in schema[section].items()
                }}
                for section in ("required", "optional")
            }}

        def run(self, **given):
            raise RuntimeError("{name} is not installed")

    return Node


NODE_CLASS_MAPPINGS = {{key: stand_in(schema) for key, schema in SCHEMAS.items()}}
NODE_DISPLAY_NAME_MAPPINGS = {{key: schema["name"] for key, schema in SCHEMAS.items()}}
'''


def installed() -> Path | None:
    """The folder of the pack: ANIMATEDIFF_EVOLVED_PATH, else among ComfyUI's custom nodes; None without it."""
    given = os.environ.get("ANIMATEDIFF_EVOLVED_PATH")
    folder = Path(given).expanduser() if given else TREE / "custom_nodes" / NAME
    return folder if (folder / "animatediff" / "nodes.py").is_file() else None


def add_to(base: Path) -> None:
    """Put the pack, or the schemas of its nodes, among the custom nodes of a ComfyUI with the folders in ``base``."""
    target = base / "custom_nodes" / NAME
    (base / "models" / MODELS).mkdir(parents=True, exist_ok=True)
    if (folder := installed()) is not None:
        target.symlink_to(folder, target_is_directory=True)
        return
    target.mkdir()
    source = STAND_IN.format(folder=MODELS, schemas=json.loads(json.dumps(SCHEMAS)), name=NAME)
    (target / "__init__.py").write_text(source, encoding="utf-8")


def write_motion_module(path: Path) -> None:
    """A motion module in the layout of v3_sd15_mm with small random weights."""
    import torch

    channels = (320, 640, 1280, 1280)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        scales = name.endswith("weight") and len(shape) == 1
        state[name] = torch.ones(shape) if scales else torch.randn(shape, generator=generator) * 0.02

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    places = [("down", block, module) for block in range(4) for module in range(2)]
    places += [("up", block, module) for block in range(4) for module in range(3)]
    for way, block, module in places:
        width = channels[block] if way == "down" else channels[3 - block]
        base = f"{way}_blocks.{block}.motion_modules.{module}.temporal_transformer"
        norm(f"{base}.norm", width)
        linear(f"{base}.proj_in", width, width)
        linear(f"{base}.proj_out", width, width)
        inner = f"{base}.transformer_blocks.0"
        for number in (0, 1):
            attention = f"{inner}.attention_blocks.{number}"
            for part in ("to_q", "to_k", "to_v"):
                linear(f"{attention}.{part}", width, width, bias=False)
            linear(f"{attention}.to_out.0", width, width)
            add(f"{attention}.pos_encoder.pe", 1, 32, width)
            norm(f"{inner}.norms.{number}", width)
        linear(f"{inner}.ff.net.0.proj", width, 8 * width)
        linear(f"{inner}.ff.net.2", 4 * width, width)
        norm(f"{inner}.ff_norm", width)
    torch.save(state, path)
