"""The examples with other video models in a real ComfyUI: each fits its nodes, and runs with tiny random models of the
same classes in place of its files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import animatediff_evolved
import examples
import pytest
import torch
from comfy_server import Server, make_base, running_server
from model_examples import MODELS, VideoModel
from PIL import Image
from safetensors.torch import save_file

TINY_LOADERS = Path(__file__).parent / "tiny_loaders"
FAMILIES = {  # of tiny_models.py
    "8_wan2_2_14B": "Wan 2.1 t2v",
    "9_wan2_2_5B": "Wan 2.2 5B",
    "10_ltx_video": "LTXV",
    "11_hunyuan_video": "HunyuanVideo",
    "12_animatediff_evolved": "AnimateDiff",
}
TINY = {  # what stands in for a loader
    "UNETLoader": "TinyModel",
    "CLIPLoader": "TinyText",
    "DualCLIPLoader": "TinyText",
    "VAELoader": "TinyVAE",
    "CheckpointLoaderSimple": "TinyCheckpoint",
    "ADE_UseEvolvedSampling": "TinyModel",
}
NEEDLESS = ("ADE_LoadAnimateDiffModel", "ADE_ApplyAnimateDiffModelSimple")
# Width and height of the frames here, in pixels; lengths, steps and all else stay as they are.
SIDES = {
    "EmptyHunyuanLatentVideo": 32,
    "Wan22ImageToVideoLatent": 32,
    "EmptyLTXVLatentVideo": 64,
    "EmptyLatentImage": 32,
}

needs_animatediff_evolved = pytest.mark.skipif(
    animatediff_evolved.installed() is None,
    reason="AnimateDiff-Evolved is not among ComfyUI's custom nodes, nor at ANIMATEDIFF_EVOLVED_PATH",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = make_base(tmp_path_factory.mktemp("models") / "base")
    examples.prepare(base)
    examples.name_missing_files(base)
    for model in MODELS.values():
        for file in model.files:
            if file.directory == "loras":
                write_lora(base / "models" / "loras" / file.name)
    (base / "custom_nodes" / "tiny_loaders").symlink_to(TINY_LOADERS, target_is_directory=True)
    with running_server(base) as server:
        yield server


def write_lora(path: Path) -> None:
    """A LoRA of rank 1 for one layer of the tiny Wan."""
    layer, width = "diffusion_model.blocks.0.self_attn.q", 96
    generator = torch.Generator().manual_seed(len(path.name))
    down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((1, width), (width, 1)))
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, path)


def with_tiny_models(prompt: examples.Prompt, family: str) -> examples.Prompt:
    """The prompt with tiny models in place of the loaders, and small frames."""
    prompt = {key: node for key, node in copy.deepcopy(prompt).items() if node["class_type"] not in NEEDLESS}
    for seed, node in enumerate(prompt.values()):
        if node["class_type"] in TINY:
            node["class_type"] = TINY[node["class_type"]]
            node["inputs"] = {"family": family, "seed": seed}
    return with_small_frames(prompt)


def with_small_frames(prompt: examples.Prompt) -> examples.Prompt:
    for kind, side in SIDES.items():
        examples.change(prompt, kind, width=side, height=side)
    return prompt


class Outcome(NamedTuple):
    """What a run made: the video and the clip after each clip, both ``[C, T, h, w]``, the reports, the frames."""

    videos: list[torch.Tensor]
    clips: list[torch.Tensor]
    reports: list[str]
    frames: torch.Tensor


@pytest.fixture(scope="module")
def ran(server: Server) -> Callable[[str], Outcome]:
    done: dict[str, Outcome] = {}

    def once(name: str) -> Outcome:
        if name not in done:
            prompt = examples.to_prompt(examples.workflow(name), server.get("/object_info"))
            done[name] = run(server, with_tiny_models(prompt, FAMILIES[name]), MODELS[name])
        return done[name]

    return once


def run(server: Server, prompt: examples.Prompt, model: VideoModel) -> Outcome:
    prompt = examples.with_everything_saved(prompt)
    history = server.run(prompt)
    assert history["status"]["status_str"] == "success", history["status"]["messages"][-1]
    return outcome(server, prompt, history, model)


def outcome(server: Server, prompt: examples.Prompt, history: dict[str, Any], model: VideoModel) -> Outcome:
    output = server.base / "output"
    (save,) = examples.of_type(prompt, "SaveVideo")
    (file,) = history["outputs"][save]["images"]
    assert (output / file["subfolder"] / file["filename"]).stat().st_size > 500
    videos, clips = (
        [in_time(latents, model) for latents in sorted_by_length(examples.latents(history, output, label))]
        for label in ("video after ", "clip of ")
    )
    (frames,) = examples.frames(history, output).values()
    shown = examples.of_type(prompt, "PreviewAny")
    reports = [history["outputs"][node]["text"][0] for node in shown]
    return Outcome(videos, clips, reports, frames)


def sorted_by_length(saved: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """In the order of the nodes, whose ids grow along the chain."""
    return [saved[key] for key in sorted(saved, key=int)]


def in_time(latents: torch.Tensor, model: VideoModel) -> torch.Tensor:
    return latents[0] if model.frames_per_latent > 1 else latents.movedim(0, 1)


def num_latents(frames: int, model: VideoModel) -> int:
    return (frames - 1) // model.frames_per_latent + 1


@pytest.mark.parametrize("name", MODELS)
def test_every_wire_and_every_value_fits_its_node(server: Server, name: str) -> None:
    definitions = server.get("/object_info")
    prompt = examples.to_prompt(examples.workflow(name), definitions)
    assert examples.misfits(prompt, definitions) == []


def test_a_wrong_wire_a_missing_one_and_a_wrong_value_are_found(server: Server) -> None:
    definitions = server.get("/object_info")
    prompt = examples.to_prompt(examples.workflow("11_hunyuan_video"), definitions)
    examples.change(prompt, "BasicScheduler", scheduler="none", steps=0)
    (vae,), (decode,) = (examples.of_type(prompt, kind) for kind in ("VAELoader", "VAEDecodeTiled"))
    examples.change(prompt, "VAEDecodeTiled", samples=[vae, 0])
    del prompt[examples.of_type(prompt, "KSamplerSelect")[0]]["inputs"]["sampler_name"]
    found = examples.misfits(prompt, definitions)
    assert len(found) == 4 and any(f"VAEDecodeTiled {decode}: samples" in line for line in found)


@needs_animatediff_evolved
def test_the_schemas_of_animatediff_evolved_are_those_of_the_pack(server: Server) -> None:
    for kind, schema in animatediff_evolved.SCHEMAS.items():
        found = server.get(f"/object_info/{kind}")[kind]
        assert dict(zip(found["output_name"], found["output"])) == schema["outputs"]
        for section in ("required", "optional"):
            given = {key: kinds for key, (kinds, *_) in found["input"].get(section, {}).items()}
            wanted = {key: kinds for key, (kinds, *_) in schema[section].items()}
            files = {key for key, kinds in wanted.items() if kinds == "FILES"}
            assert {**given, **dict.fromkeys(files, "FILES")} == wanted


@needs_animatediff_evolved
def test_with_animatediff_evolved_itself_the_example_chains_its_clips(server: Server) -> None:
    """In two steps, with random weights of the true size: they take 6 GB."""
    name = "12_animatediff_evolved"
    model = MODELS[name]
    animatediff_evolved.write_motion_module(server.base / "models" / model.files[1].directory / model.files[1].name)
    prompt = examples.to_prompt(examples.workflow(name), server.get("/object_info"))
    for node in prompt.values():
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "WideCheckpoint", "inputs": {"family": FAMILIES[name], "seed": 0}}
    examples.change(prompt, "KSampler", steps=2)
    made = run(server, with_small_frames(prompt), model)
    assert [video.shape[1] for video in made.videos] == model.lengths
    assert_chained(model, made)


@pytest.mark.parametrize("name", MODELS)
def test_an_example_makes_the_frames_that_its_note_tells_of(name: str, ran: Callable) -> None:
    model, made = MODELS[name], ran(name)
    assert [video.shape[1] for video in made.videos] == [num_latents(frames, model) for frames in model.lengths]
    assert made.frames.shape[1] == model.lengths[-1]
    said = "\n".join(examples.words(examples.workflow(name)))
    for number in (*model.lengths, model.overlap_frames, model.added_frames):
        assert f" {number}" in said
    for report in made.reports[-2:]:
        assert f"keeps {model.overlap_frames} frames" in report and f"adds {model.added_frames} frames" in report


@pytest.mark.parametrize("name", MODELS)
def test_each_clip_begins_with_the_end_of_the_video_and_continues_it(name: str, ran: Callable) -> None:
    assert_chained(MODELS[name], ran(name))


def test_wan_5b_begins_with_an_image_where_its_note_says(server: Server) -> None:
    name = "9_wan2_2_5B"
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(server.base / "input" / "start.png")
    prompt = examples.to_prompt(examples.workflow(name), server.get("/object_info"))
    examples.change(prompt, "Wan22ImageToVideoLatent", start_image=["image", 0], length=21)
    examples.change(prompt, "VidRDSampleFirstClip", steps=4)
    prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": "start.png"}}
    model = replace(MODELS[name], clip_frames=21, overlap_latents=3)  # 5 in 8 of the latents behind the lead-in
    made = run(server, with_tiny_models(prompt, FAMILIES[name]), model)
    assert made.frames.shape[1] == model.lengths[-1]
    assert_chained(model, made)


def assert_chained(model: VideoModel, made: Outcome) -> None:
    dropped = model.lead_in + model.overlap_latents
    for (before, after), clip in zip(pairwise(made.videos), made.clips[1:]):
        assert torch.isfinite(clip).all()
        assert torch.equal(after[:, : before.shape[1]], before)
        assert torch.equal(after[:, before.shape[1] :], clip[:, dropped:])
        tail = before[:, before.shape[1] - model.overlap_latents :]
        assert difference(clip[:, model.lead_in : dropped], tail) < 0.01
        assert difference(clip[:, dropped:], before[:, : clip.shape[1] - dropped]) > 0.1


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean difference, in standard deviations of ``b``."""
    return float((a - b).abs().mean() / b.std())
