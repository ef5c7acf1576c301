"""What nodes offer and say: folded inputs, search words, what suits the model, what was taken, where a run is."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SHOWN = {  # widgets of a fresh node that are not folded
    "VidRDReuseAndDiffuse": ["seed", "cfg", "preset"],
    "VidRDManyClips": ["prompts", "num_clips", "seed", "cfg", "preset", "run_name", "loop"],
    "VidRDReusePrepare": ["preset", "clip_frames"],
}
SOCKETS = ("MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "SIGMAS", "VIDRD_SESSION")


def inputs_of(node: Any) -> dict[str, Any]:
    return {
        name: entry for kind in ("required", "optional") for name, entry in node.INPUT_TYPES().get(kind, {}).items()
    }


@pytest.mark.parametrize("node_id", SHOWN)
def test_a_fresh_node_shows_few_widgets_and_folds_the_rest(nodes: dict[str, Any], node_id: str) -> None:
    widgets = {name: given for name, (kind, *given) in inputs_of(nodes[node_id].node).items() if kind not in SOCKETS}
    shown = [name for name, given in widgets.items() if not given[0].get("advanced")]
    assert shown == SHOWN[node_id]
    assert {"guidance_lead", "overlap_frames"} <= widgets.keys() - set(shown)


def test_the_node_search_finds_the_sampling_nodes_by_what_people_type(nodes: dict[str, Any]) -> None:
    from comfy_api.latest import io

    for node_id, words in {
        "VidRDSampleFirstClip": {"text to video"},
        "VidRDReuseAndDiffuse": {"extend video", "long video", "continue video", "chain clips"},
        "VidRDManyClips": {"extend video", "long video", "text to video"},
    }.items():
        schema = nodes[node_id].node.define_schema()
        assert words <= set(schema.search_aliases)
        if "search_aliases" in {field.name for field in fields(io.Schema)}:
            assert words <= set(nodes[node_id].node.GET_NODE_INFO_V1()["search_aliases"])


def told(output: Any) -> dict[str, Any]:
    (line,) = output.ui["vidrd"]
    return json.loads(line)


@pytest.fixture
def suited(model: Any, part: Any) -> Any:
    """The tiny model with a folder's word on how it is used."""
    known = part("nodes.model_defaults").ModelDefaults(64, 64, 8, 3, 3.0, 8.0, "", chains=True)
    settings = part("nodes.model_defaults").ReuseSettings(3, 0.0, 1.0, "forward", 3, "uniform", 0.8)
    before = model.model.defaults, model.model.reuse
    model.model.defaults, model.model.reuse = replace(known, reuse=settings), settings
    yield model
    model.model.defaults, model.model.reuse = before


def test_a_node_says_what_auto_took_and_how_long_the_video_is(
    nodes: dict[str, Any], suited: Any, conds: Any, first: Any
) -> None:
    given = {"model": suited, "positive": conds[0], "negative": conds[1], "cfg": 3.0, "seed": 2}
    node = nodes["VidRDReuseAndDiffuse"].node
    rest = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    with torch.inference_mode():
        said = told(node.execute(**{**rest, **given, "prior": first(steps=3)}))
    assert (said["frames"], said["added"]) == (13, 5)
    assert said["took"] == (
        "auto took overlap_frames 3, noise_alpha 0, guidance_beta 1, order forward, trim_frames 3, stages uniform, "
        "cleaner_overlap 0.8"
    )
    assert said["warnings"] == []
    with torch.inference_mode():
        said = told(node.execute(**{**rest, **given, "preset": "custom", "prior": first(steps=3)}))
    assert said["took"] == "" and said["added"] == 8


def test_settings_far_from_the_model_are_said_in_the_node_and_in_the_log(
    nodes: dict[str, Any], suited: Any, conds: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node = nodes["VidRDSampleFirstClip"].node
    rest = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    given = {**rest, "model": suited, "positive": conds[0], "negative": conds[1], "seed": 1}
    large, small = (nodes["VidRDEmptyLatent"](width=size, height=size, frames=8)[0] for size in (128, 64))
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        said = told(node.execute(**{**given, "latent": large, "cfg": 10.0, "steps": 6}))
    assert [sentence.partition(" ")[0] for sentence in said["warnings"]] == ["The", "cfg", "6"]
    assert "trained at 64x64 pixels, this clip has 128x128" in said["warnings"][0]
    assert all(sentence in caplog.text for sentence in said["warnings"])
    with torch.inference_mode():
        said = told(node.execute(**{**given, "latent": small, "cfg": 3.0, "steps": 3}))
    assert said["warnings"] == [] and (said["frames"], said["added"]) == (8, 8)


def test_many_clips_begin_in_as_many_steps_as_suit_the_model(nodes: dict[str, Any], suited: Any, loaded: Any) -> None:
    given = {"clip": loaded[1], "negative": [[torch.zeros(1, 32, 128), {}]], "cfg": 3.0, "prompts": "the red ball"}
    prior = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8)[0]
    video, *_ = nodes["VidRDManyClips"](**given, model=suited, prior=prior, num_clips=1)
    assert video["vidrd_trajectory"].context["steps"] == 3


def test_a_running_node_says_which_clip_and_step_it_is_at(
    nodes: dict[str, Any], loaded: Any, conds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils
    from comfy_execution.utils import CurrentNodeContext

    said: list[tuple[str, str]] = []
    bars: list[float] = []
    server = SimpleNamespace(client_id="me", send_progress_text=lambda text, node, _: said.append((text, node)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: bars.append(value / total))
    prior = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8)[0]
    try:
        with CurrentNodeContext("prompt", "17"):
            nodes["VidRDManyClips"](
                model=loaded[0], clip=loaded[1], negative=conds[1], prior=prior, prompts="the red ball", num_clips=2,
                cfg=3.0, steps=2, sampler_name="euler", scheduler="normal",
            )  # fmt: skip
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert said == [(f"clip {clip} of 2, step {step} of 2", "17") for clip in (1, 2) for step in (1, 2)]
    assert bars == sorted(bars) and bars[-1] == 1


@pytest.mark.usefixtures("nodes")  # with which the pack tells ComfyUI where its models are
def test_the_browser_is_told_what_suits_every_model_folder(folder: Path, part: Any) -> None:
    settings = part("nodes.routes").settings()
    bundled = settings["models"]["VidRDLoadModel"]["bundled demo model"]
    assert (bundled["width"], bundled["height"], bundled["frames"]) == (64, 64, 8)
    assert (bundled["steps"], bundled["cfg"], bundled["fps"], bundled["negative"]) == (25, 4.0, 8, "")
    assert bundled["chains"] and bundled["reuse"] == settings["presets"]["smooth"]
    assert settings["models"]["VidRDLoadModel"][folder.name]["width"] == 64
    assert settings["released"]["negative"] == "watermark" and settings["released"]["cfg"] == 10
    assert settings["presets"]["paper"] == asdict(part("nodes.model_defaults").ReuseSettings())
    few = settings["models"]["VidRDLoadModel"]["bundled demo model, 4 steps"]
    assert few == {**bundled, "steps": 4, "cfg": 1.0, "scheduler": "simple"} and bundled["scheduler"] == "ddim_uniform"
    flow = settings["models"]["VidRDLoadModel"]["bundled flow model"]
    assert flow == {"steps": 20, "cfg": 4.0, "fps": 16, "negative": ""}  # its latents are not this pack's own
    goal = part("vidrd_core.reuse.goal")
    repeated, least = goal.MOST_REPEATED, goal.GoalSettings.start_frames
    assert settings["loop"] == {"most_repeated": repeated, "least_overlap": least, "latents": 2}
    json.dumps(settings)
