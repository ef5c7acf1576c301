"""Presets: named settings, the same wherever they are used."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from components import make_pipeline
from diffusers import DPMSolverMultistepScheduler

from vidrd_core.cli import main
from vidrd_core.cli.inputs import RELEASED
from vidrd_core.cli.models import read_defaults
from vidrd_core.jobs import JobFolder
from vidrd_core.metrics.methods import Chain, find_method
from vidrd_core.presets import PRESETS, REUSE_FIELDS, Preset, find_preset, make_scheduler
from vidrd_core.reuse import ReuseSettings
from vidrd_core.state import SamplingSettings


def test_the_preset_of_the_paper_holds_the_released_values() -> None:
    settings, reuse, sampling = PRESETS["paper"].settings, ReuseSettings(), SamplingSettings()
    assert settings.pop("num_inference_steps") == sampling.num_inference_steps == 50
    assert settings.pop("guidance_rescale") == sampling.guidance_rescale == 0
    assert settings == vars(reuse)
    assert settings.items() <= RELEASED.items()


def test_every_preset_names_a_scheduler_and_a_reuse_that_exist() -> None:
    for preset in PRESETS.values():
        settings = dict(preset.settings)
        assert settings.pop("num_inference_steps", 1) >= 1 and 0 <= settings.pop("guidance_rescale") <= 1
        ReuseSettings(**settings).check(8)
        make_scheduler(preset.scheduler, {}, preset.scheduler_options)


def test_presets_know_all_fields_of_the_reuse() -> None:
    assert tuple(field.name for field in fields(ReuseSettings)) == REUSE_FIELDS


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'slow' is no preset; known are: paper, smooth, fast"):
        find_preset("slow")
    with pytest.raises(ValueError, match="'lcm' is no scheduler; known are: ddim"):
        make_scheduler("lcm", {})
    with pytest.raises(ValueError, match="scheduler is 'lcm'"):
        Preset("x", scheduler="lcm")


def test_a_scheduler_takes_over_the_models_noise_schedule_but_for_the_options() -> None:
    made = make_scheduler("dpmpp-2m", {"beta_end": 0.02, "beta_schedule": "linear"}, {"timestep_spacing": "trailing"})
    assert isinstance(made, DPMSolverMultistepScheduler)
    assert (made.config.beta_end, made.config.timestep_spacing) == (0.02, "trailing")


def test_a_preset_goes_before_the_models_defaults_and_after_what_is_given(model_folder: Path, tmp_path: Path) -> None:
    fast = PRESETS["fast"]
    call = ["generate", "--model", str(model_folder), "--preset", "fast", "--prompt", "a red dot", "--clips", "1"]
    call += [
        "--frames",
        "4",
        "--device",
        "cpu",
        "--quiet",
        "--overlap-frames",
        "2",
        "--output",
        str(tmp_path / "a.gif"),
    ]
    assert main(call) == 0
    made = JobFolder(tmp_path / "a.gif.state").read()
    assert made["made"]["sampling"]["num_inference_steps"] == fast.num_inference_steps
    assert made["made"]["sampling"]["reuse"]["overlap_frames"] == 2
    assert made["made"]["scheduler"]["scheduler"] == type(make_scheduler(fast.scheduler, {})).__name__
    extend = ["extend", str(tmp_path / "a.gif.state"), "--device", "cpu", "--quiet"]
    assert main([*extend, "--output", str(tmp_path / "b.gif")]) == 0  # with the preset's scheduler again
    assert main([*call[:-1], str(tmp_path / "c.gif"), "--steps", "3", "--scheduler", "euler"]) == 0
    made = JobFolder(tmp_path / "c.gif.state").read()["made"]
    assert made["sampling"]["num_inference_steps"] == 3
    assert made["scheduler"]["scheduler"] == "EulerDiscreteScheduler"


def test_a_models_own_defaults_know_no_more_than_the_command(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"defaults": RELEASED}), encoding="utf-8")
    assert read_defaults(tmp_path) == RELEASED


def test_a_pipeline_goes_by_its_preset_where_a_call_says_nothing(tmp_path: Path) -> None:
    pipe = make_pipeline(tmp_path)
    call = {"prompt": "a red dot", "num_clips": 2, "num_frames": 4, "output_type": "latent"}
    assert pipe(**call, num_inference_steps=2).state.sampling.reuse == ReuseSettings()
    pipe.use_preset("smooth")
    made = pipe(**call, num_inference_steps=2)
    # Of a trimmed clip 3 frames in 8 are new, so that of 4 no more than 2 overlap.
    assert made.state.sampling.reuse == ReuseSettings(2, 0.0, 1.0, "forward", 2, "uniform", 0.8)
    assert made.frames.shape[2] == 4 + 2
    first, second = made.clips
    assert torch.allclose(second[:, :, :2], first[:, :, 2:], atol=0.2)  # steered to the last step but one
    pipe.use_preset("fast")
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert pipe(**call).state.sampling.num_inference_steps == PRESETS["fast"].num_inference_steps
    chosen = pipe(**call, num_inference_steps=2, reuse=ReuseSettings(1), guidance_rescale=0.5).state.sampling
    assert chosen.reuse == ReuseSettings(1) and chosen.guidance_rescale == 0.5


def test_guidance_rescale_changes_guided_steps_only(tmp_path: Path) -> None:
    pipe = make_pipeline(tmp_path)
    call = {"prompt": "a red dot", "num_clips": 1, "num_frames": 4, "num_inference_steps": 2, "output_type": "latent"}
    plain, rescaled = (pipe(**call, guidance_rescale=strength).frames for strength in (0.0, 0.7))
    assert not torch.equal(plain, rescaled)
    plain, rescaled = (pipe(**call, guidance_scale=1.0, guidance_rescale=s).frames for s in (0.0, 0.7))
    assert torch.equal(plain, rescaled)
    with pytest.raises(ValueError, match="guidance_rescale is 2; expected 0"):
        pipe(**call, guidance_rescale=2)


def test_smooth_is_the_measured_method_of_its_description() -> None:
    method = find_method("forward led")
    assert isinstance(method, Chain) and method.settings == PRESETS["smooth"].reuse(8)
