"""Presets: named settings, the same wherever they are used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import DPMSolverMultistepScheduler

from vidrd_core.cli import main
from vidrd_core.cli.inputs import RELEASED
from vidrd_core.cli.models import read_defaults
from vidrd_core.jobs import JobFolder
from vidrd_core.presets import PRESETS, Preset, find_preset, make_scheduler
from vidrd_core.reuse import ReuseSettings
from vidrd_core.state import SamplingSettings


def test_the_preset_of_the_paper_holds_the_released_values() -> None:
    settings, reuse, sampling = PRESETS["paper"].settings, ReuseSettings(), SamplingSettings()
    assert settings.pop("num_inference_steps") == sampling.num_inference_steps == 50
    assert settings == vars(reuse)
    assert settings.items() <= RELEASED.items()


def test_every_preset_names_a_scheduler_and_a_reuse_that_exist() -> None:
    for preset in PRESETS.values():
        settings = dict(preset.settings)
        assert settings.pop("num_inference_steps") >= 1
        ReuseSettings(**settings).check(8)
        make_scheduler(preset.scheduler, {}, preset.scheduler_options)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'slow' is no preset; known are: paper, fast"):
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
    made = JobFolder(tmp_path / "a.state").read()
    assert made["made"]["sampling"]["num_inference_steps"] == fast.num_inference_steps
    assert made["made"]["sampling"]["reuse"]["overlap_frames"] == 2
    assert made["made"]["scheduler"]["scheduler"] == type(make_scheduler(fast.scheduler, {})).__name__
    extend = ["extend", str(tmp_path / "a.state"), "--device", "cpu", "--quiet", "--output", str(tmp_path / "b.gif")]
    assert main(extend) == 0  # with the preset's scheduler again
    assert main([*call[:-1], str(tmp_path / "c.gif"), "--steps", "3", "--scheduler", "euler"]) == 0
    made = JobFolder(tmp_path / "c.state").read()["made"]
    assert made["sampling"]["num_inference_steps"] == 3
    assert made["scheduler"]["scheduler"] == "EulerDiscreteScheduler"


def test_a_models_own_defaults_know_no_more_than_the_command(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"defaults": RELEASED}), encoding="utf-8")
    assert read_defaults(tmp_path) == RELEASED
