"""The example workflows as the tests and the tool that makes them need them: files, API prompts, frames, stand-ins.

Nothing here imports ComfyUI: it runs in ComfyUI's interpreter and in the project's own.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import animatediff_evolved
import torch
from model_examples import MODELS

from vidrd_core.jobs.timeline import Timeline
from vidrd_core.reuse.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"
# By their number; then those of this pack's own models.
NAMES = sorted((path.stem for path in FOLDER.glob("*.json")), key=lambda name: int(name.partition("_")[0]))
OWN_NAMES = [name for name in NAMES if name not in MODELS]
OWN_VIDEO = FOLDER / "own_video.mp4"
RELEASED = "5_released_weights_upscaled_and_interpolated"
BUNDLED = "bundled demo model"
CLIP = 8  # frames of a clip in every example
OWN_FRAMES = 12  # of own_video.mp4
FACTOR = 4  # of the interpolation in the released example
FLOW = "14_bundled_flow_model"
FLOW_BUNDLED = "bundled flow model"
FLOW_CLIP, FLOW_ADDED, FLOW_RATIO = 29, 16, 4  # frames of a clip, that a later clip adds, and of a latent


def seams(clips: int, first: int = CLIP, preset: str = "smooth") -> list[int]:
    """Where the clips of a video begin when ``clips`` clips continue ``first`` frames, and how many frames it has."""
    added = CLIP - PRESETS[preset].reuse.fitted(CLIP).trim_frames
    return [0, *(first + n * added for n in range(clips + 1))]


CLIPS = {
    "1_chained_demo": seams(2),
    "2_prompt_per_clip": seams(3),
    "3_many_clips_with_resume": seams(5),
    "4_continue_your_own_video": seams(2, first=OWN_FRAMES),
    "6_save_a_video_to_continue_later": seams(1),
    "7_continue_a_saved_video": seams(2),
    "13_timeline": seams(4),
    FLOW: [0, *(FLOW_CLIP + n * FLOW_ADDED for n in range(4))],
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
STATED_NUMBERS = re.compile(rf"\b(\d+|{'|'.join(NUMBERS)})\W* (frames each|frames|in all|clips)\b", re.IGNORECASE)
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
ONLY_SHOWN = {"Note", "MarkdownNote"}  # nodes of the frontend alone
# Nodes that make a clip, and their output of it.
SAMPLERS = {"VidRDSampleFirstClip": 0, "VidRDReuseAndDiffuse": 1, "VidRDManyClips": 1, "VidRDReuseJoin": 1}

Prompt = dict[str, dict[str, Any]]


def workflow(name: str) -> dict[str, Any]:
    """An example in the frontend's own format."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def words(graph: dict[str, Any]) -> list[str]:
    """The text that a workflow shows: its notes, and the titles of groups and nodes."""
    notes = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] in ONLY_SHOWN]
    titles = [item["title"] for item in (*graph["groups"], *graph["nodes"]) if item.get("title")]
    return notes + titles


def stated_numbers(name: str) -> dict[str, set[int]]:
    """The numbers of frames and clips that an example states, by the words after them."""
    found: dict[str, set[int]] = {}
    for number, unit in STATED_NUMBERS.findall("\n".join(words(workflow(name)))):
        value = NUMBERS.index(number.lower()) if number.lower() in NUMBERS else int(number)
        found.setdefault(unit.lower(), set()).add(value)
    return found


def widget_slots(definition: dict[str, Any]) -> Iterator[str | None]:
    """What the entries of ``widgets_values`` are for, in order; None for what only the frontend uses.

    Args:
        definition: of the node type, as /object_info gives it.
    """
    for section in ("required", "optional"):
        for name, (kind, *rest) in definition["input"].get(section, {}).items():
            options = rest[0] if rest else {}
            if not isinstance(kind, list) and kind not in WIDGETS or options.get("forceInput"):
                continue
            yield name
            if options.get("control_after_generate") or name in ("seed", "noise_seed"):
                yield None
            if any(key.endswith("_upload") and options[key] for key in options):
                yield None


def to_prompt(graph: dict[str, Any], definitions: dict[str, Any]) -> Prompt:
    """The API prompt of a workflow in the frontend's format.

    Raises:
        ValueError: a node has other widgets than its definition says.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in ONLY_SHOWN:
            continue
        slots = list(widget_slots(definitions[node["type"]]))
        values = node.get("widgets_values", [])
        if len(slots) != len(values):
            raise ValueError(f"{node['type']} has the widgets {slots} but the values {values}")
        inputs = {name: value for name, value in zip(slots, values) if name is not None}
        inputs |= {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry.get("link") is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def misfits(prompt: Prompt, definitions: dict[str, Any]) -> list[str]:
    """What in a prompt does not fit its nodes: missing inputs, wires of another type, values out of range.

    Args:
        definitions: of all node types, as /object_info gives them.
    """
    found = []
    for identity, node in prompt.items():
        definition = definitions[node["class_type"]]["input"]
        known = {**definition.get("required", {}), **definition.get("optional", {})}
        where = f"{node['class_type']} {identity}"
        found += [f"{where}: {name} is missing" for name in set(definition.get("required", {})) - set(node["inputs"])]
        found += [f"{where}: there is no {name}" for name in set(node["inputs"]) - set(known)]
        for name, value in node["inputs"].items():
            kind, *rest = known.get(name, ("*",))
            options = rest[0] if rest else {}
            if isinstance(value, list):
                origin = definitions[prompt[value[0]]["class_type"]]["output"][value[1]]
                fits = "*" in (kind, origin) or origin == kind
            elif isinstance(kind, list) or kind == "COMBO":
                fits = value in (kind if isinstance(kind, list) else options["options"])
            elif kind in ("INT", "FLOAT"):
                fits = options.get("min", value) <= value <= options.get("max", value)
            else:
                fits = isinstance(value, {"STRING": str, "BOOLEAN": bool}.get(kind, object))
            found += [] if fits else [f"{where}: {name} is {value}, wanted {kind} {options}"]
    return found


def of_type(prompt: Prompt, kind: str) -> list[str]:
    """The ids of all nodes of a type."""
    return [identity for identity, node in prompt.items() if node["class_type"] == kind]


def with_everything_saved(prompt: Prompt) -> Prompt:
    """The prompt with lossless copies of all that it shows or saves: frames of each video, and decoded latents.

    Keys of the added nodes: "frames of <node id>" for each Create Video, "latents of <node id>" for each VAE Decode and
    Timeline, "video after <node id>" and "clip of <node id>" for each node that samples.
    """
    prompt = copy.deepcopy(prompt)
    for identity in of_type(prompt, "CreateVideo"):
        inputs = {"images": prompt[identity]["inputs"]["images"], "filename_prefix": f"frames_{identity}"}
        prompt[f"frames of {identity}"] = {"class_type": "SaveImage", "inputs": inputs}
    kept = {f"latents of {n}": prompt[n]["inputs"]["samples"] for n in of_type(prompt, "VAEDecode")}
    kept |= {f"latents of {n}": [n, 1] for n in of_type(prompt, "VidRDTimeline")}
    for kind, clip_output in SAMPLERS.items():
        for identity in of_type(prompt, kind):
            kept |= {f"video after {identity}": [identity, 0], f"clip of {identity}": [identity, clip_output]}
    for key, samples in kept.items():
        inputs = {"samples": samples, "filename_prefix": key.replace(" ", "_")}
        prompt[key] = {"class_type": "SaveLatent", "inputs": inputs}
    return prompt


def frames(history: dict[str, Any], output: Path) -> dict[str, torch.Tensor]:
    """The frames ``[3, T, H, W]``, -1 to 1, that each Create Video got, by its node's id."""
    import numpy as np
    from PIL import Image

    found = {}
    for key, entry in history["outputs"].items():
        if key.startswith("frames of "):
            files = [output / image["subfolder"] / image["filename"] for image in entry["images"]]
            pictures = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
            found[key.removeprefix("frames of ")] = pictures.permute(3, 0, 1, 2).float() / 127.5 - 1
    return found


def latents(history: dict[str, Any], output: Path, label: str = "latents of ") -> dict[str, torch.Tensor]:
    """The latents that were saved under ``label``, by the node's id; those that each VAE Decode got to begin with."""
    from safetensors.torch import load_file

    found = {}
    for key, entry in history["outputs"].items():
        if key.startswith(label):
            (file,) = entry["latents"]
            path = output / file["subfolder"] / file["filename"]
            found[key.removeprefix(label)] = load_file(path)["latent_tensor"]
    return found


def made(prompt: Prompt, history: dict[str, Any], output: Path) -> dict[str, set[int]]:
    """The numbers of frames and clips that a run really made, by the words of :func:`stated_numbers`."""
    loaded = [prompt[identity]["inputs"]["model_name"] for identity in of_type(prompt, "VidRDLoadModel")]

    def counted(label: str) -> list[int]:
        found = sorted(samples.shape[2] for samples in latents(history, output, label).values())
        return [1 + (count - 1) * FLOW_RATIO for count in found] if FLOW_BUNDLED in loaded else found

    videos, clips = counted("video after "), set(counted("clip of "))
    finished = {video.shape[1] for video in frames(history, output).values()}
    many = [prompt[identity]["inputs"]["num_clips"] for identity in of_type(prompt, "VidRDManyClips")]
    timelines = [prompt[identity]["inputs"]["timeline"] for identity in of_type(prompt, "VidRDTimeline")]
    many += [len(Timeline.parse(text).shown()) for text in timelines]
    return {
        "frames each": {after - before for before, after in pairwise(videos)},
        "frames": clips | set(videos) | finished,
        "in all": finished,
        "clips": set(many) or {len(videos)},
    }


def seam_jumps(name: str, video: torch.Tensor) -> list[float]:
    """How far the tracked shape is off, in pixels, from each clip's last frame to the next clip's first."""
    from vidrd_core.shapes.tracker import seam_jump, track

    seen = track(video)
    return [seam_jump(seen[seam - 1 : seam], seen[seam : seam + 1]) for seam in CLIPS[name][1:-1]]


def with_bundled_model(prompt: Prompt) -> Prompt:
    """A prompt for the released weights with the bundled model in their place, its size and its settings."""
    prompt = copy.deepcopy(prompt)
    outputs: dict[tuple[str, int], list[Any]] = {}
    prompt["bundled"] = {
        "class_type": "VidRDLoadModel",
        "inputs": {"model_name": BUNDLED, "weight_dtype": "default"},
    }
    for kind, slots in (("VidRDLoadUNet", (0, 1)), ("VidRDLoadVideoDecoder", (2,)), ("CLIPLoader", (1,))):
        for identity in of_type(prompt, kind):
            del prompt[identity]
            outputs |= {(identity, slot): ["bundled", target] for slot, target in enumerate(slots)}
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = outputs.get((value[0], value[1]), value)
    texts = ["a red circle moves right over a dark blue background", ""]
    for identity, text in zip(of_type(prompt, "CLIPTextEncode"), texts):
        prompt[identity]["inputs"]["text"] = text
    change(prompt, "VidRDEmptyLatent", width=64, height=64)
    change(prompt, "VidRDSampleFirstClip", steps=25, cfg=4.0)
    change(prompt, "VidRDReuseAndDiffuse", cfg=4.0)
    return prompt


def change(prompt: Prompt, kind: str, **values: Any) -> None:
    """Set inputs of every node of a type."""
    for identity in of_type(prompt, kind):
        prompt[identity]["inputs"] |= values


def write_own_video(path: Path, num_frames: int = OWN_FRAMES) -> None:
    """A video that the continuing example takes for a user's own: a scene of the moving-shapes data set."""
    from vidrd_core.shapes.scenes import Scene, render
    from vidrd_core.video import write_video

    scene = Scene("green", "square", "moves down", "brown", "gradient", 30.0, 12.0, 0.0, 10.0)
    pictures = (render([scene], num_frames)[0].permute(1, 2, 3, 0) + 1) / 2
    write_video(path, pictures.numpy(), fps=8)


def write_upscaler(path: Path) -> None:
    """A stand-in for an upscaling model: the compact Real-ESRGAN network, whose zero weights repeat each pixel."""
    width, factor = 16, 2
    layers: dict[str, torch.Tensor] = {}
    sizes = [(3, width), (width, width), (width, 3 * factor**2)]
    for number, (before, after) in enumerate(sizes):
        layers[f"body.{2 * number}.weight"] = torch.zeros(after, before, 3, 3)
        layers[f"body.{2 * number}.bias"] = torch.zeros(after)
        if number < len(sizes) - 1:
            layers[f"body.{2 * number + 1}.weight"] = torch.full((after,), 0.25)
    torch.save({"params": layers}, path)


def prepare(base: Path) -> None:
    """Put into ComfyUI's folders what the examples look for: the own video, the stand-in upscaler, another pack."""
    animatediff_evolved.add_to(base)
    (base / "models" / "upscale_models").mkdir(parents=True, exist_ok=True)
    shutil.copy(OWN_VIDEO, base / "input")
    write_upscaler(base / "models" / "upscale_models" / "RealESRGAN_x2plus.pth")


def write_released(models: Path) -> None:
    """Files in the layout of the release under the names that the example asks for; small random models are in them.

    Only the text encoder has its true size, since ComfyUI's own loader knows no other.
    """
    from safetensors.torch import save_file

    from vidrd_core import VidRDUNet

    torch.manual_seed(0)
    folders = {name: models / name for name in ("diffusion_models", "vae/vae_finetuned", "text_encoders")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    unet = VidRDUNet(block_out_channels=(64, 64), layers_per_block=1, attention_head_dim=1)
    state = {f"unet.{k}": filled(v) for k, v in unet.state_dict().items()}
    torch.save({"state_dict": state}, folders["diffusion_models"] / "ModelT2V.pth")

    write_released_vae(folders["vae/vae_finetuned"])
    save_file(stable_diffusion_2_text_encoder(), folders["text_encoders"] / "sd2.1_text_encoder.safetensors")


def write_released_vae(folder: Path) -> None:
    """``vae_finetuned`` with small random weights in the names of its time, into a folder that is there."""
    from vidrd_core import VidRDAutoencoderKL

    settings: dict[str, Any] = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "norm_num_groups": 32}
    vae = VidRDAutoencoderKL(**settings)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {k: filled(v) for k, v in vae.state_dict().items()}
    for new_name, old_name in old.items():
        state = {k.replace(new_name, old_name): v for k, v in state.items()}
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.14.0", **settings, "sample_size": 512}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def filled(weights: torch.Tensor) -> torch.Tensor:
    """Weights, or small random ones where all are zero, so that no layer is the identity."""
    return weights.clone() if weights.any() else torch.randn_like(weights) * 0.02


def stable_diffusion_2_text_encoder() -> dict[str, torch.Tensor]:
    """Random weights in the names and shapes of Stable Diffusion 2.1's text encoder."""
    width, inner, layers = 1024, 4096, 23
    shapes: dict[str, tuple[int, ...]] = {"embeddings.token_embedding.weight": (49408, width)}
    shapes["embeddings.position_embedding.weight"] = (77, width)
    linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for layer in range(layers):
        for name, shape in linear.items():
            shapes[f"encoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layers.{layer}.{name}.bias"] = shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"encoder.layers.{layer}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    shapes |= {f"final_layer_norm.{kind}": (width,) for kind in ("weight", "bias")}
    state = {}
    for name, shape in shapes.items():
        norm = "layer_norm" in name and name.endswith("weight")
        values = torch.ones(shape) if norm else torch.randn(shape) * 0.02
        state[f"text_model.{name}"] = values.half()
    return state


def name_missing_files(base: Path) -> None:
    """Empty files under the names that the examples ask for, where they are only opened and nothing is loaded."""
    models = ["diffusion_models/ModelT2V.pth", "text_encoders/sd2.1_text_encoder.safetensors"]
    models += ["vae/vae_finetuned/config.json", "vae/vae_finetuned/diffusion_pytorch_model.bin"]
    models += [f"{file.directory}/{file.name}" for model in MODELS.values() for file in model.files]
    for name in (*(f"models/{model}" for model in models), "output/vidrd/my_video.safetensors"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()
