"""Presets: named settings, the same wherever they are used."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from components import make_pipeline, relative_error
from diffusers import DPMSolverMultistepScheduler
from einops import rearrange

from vidrd_core import VidRDPipeline
from vidrd_core.cli import main
from vidrd_core.cli.inputs import RELEASED
from vidrd_core.cli.models import read_defaults
from vidrd_core.jobs.batch import JobFolder
from vidrd_core.reuse.presets import PRESETS, Preset, find_preset
from vidrd_core.reuse.settings import ReuseSettings
from vidrd_core.sampling.schedulers import make_scheduler
from vidrd_core.shapes.methods import VideoBatch, find_method
from vidrd_core.shapes.prompted import held_out_scenes
from vidrd_core.video import read_video


class Seen:
    """What the U-Net of a pipeline is shown: the conditional latents ``[C, N, h, w]`` of every step, clip by clip."""

    def __init__(self, pipe: VidRDPipeline, clips: int = 2, **call: Any):
        shown: list[torch.Tensor] = []
        hook = pipe.unet.register_forward_pre_hook(lambda _, given: shown.append(given[0][-1].clone()))
        try:
            settings = {"num_clips": clips, "num_frames": 8, "guidance_scale": 3.0, "output_type": "latent", **call}
            self.made = pipe("a red dot", **settings)
        finally:
            hook.remove()
        self.steps = len(shown) // clips
        assert len(shown) == clips * self.steps
        self.clips = [torch.stack(shown[n * self.steps : (n + 1) * self.steps]) for n in range(clips)]

    def steered_steps(self, frame: int, source: int) -> int:
        """Through how many steps from the first a frame of clip 1 is a frame of clip 0 at the same step."""
        equal = (self.clips[1][:, :, frame] == self.clips[0][:, :, source]).flatten(1).all(1)
        return int(equal.cumprod(0).sum())

    def reused_noise(self, frame: int) -> torch.Tensor:
        """Correlation of the noise of a frame of clip 1 with that of each frame of clip 0, ``[N]``."""
        noise = torch.cat((self.clips[1][0, :, frame : frame + 1], self.clips[0][0]), dim=1)
        return torch.corrcoef(rearrange(noise, "c n h w -> n (c h w)"))[0, 1:]


@pytest.fixture(scope="module")
def larger_pipe(tmp_path_factory: pytest.TempPathFactory) -> VidRDPipeline:
    """A pipeline that makes 8x8 latents: enough numbers per frame to distinguish noises."""
    pipe = make_pipeline(tmp_path_factory.mktemp("tokenizer"), sample_size=8)
    assert pipe.default_size == 32
    return pipe


def test_the_preset_of_the_paper_steers_and_mixes_as_published(larger_pipe: VidRDPipeline) -> None:
    """Of 50 steps the overlap's four frames are steered through 20, 15, 10 and 5; a = 4 keeps 0.97 of the noise."""
    larger_pipe.use_preset("paper")
    seen = Seen(larger_pipe)
    assert seen.steps == 50 and type(larger_pipe.scheduler).__name__ == "DDIMScheduler"
    assert [seen.steered_steps(frame, 7 - frame) for frame in range(4)] == [20, 15, 10, 5]
    for frame in range(8):
        kept = seen.reused_noise(frame)
        assert int(kept.argmax()) == 7 - frame  # in reverse order
        assert abs(float(kept[7 - frame]) - (1 if frame < 4 else 0.970)) < 0.02
    assert seen.made.frames.shape[2] == 16  # all frames are joined
    assert torch.equal(seen.made.frames[:, :, 8:], seen.made.clips[1])


def test_the_preset_smooth_repeats_the_end_nearly_clean_and_joins_only_what_is_new(larger_pipe: VidRDPipeline) -> None:
    larger_pipe.use_preset("smooth")
    seen = Seen(larger_pipe, num_inference_steps=10)
    first, second = seen.made.clips
    new = seen.made.frames.shape[2] - 8
    assert new == 3  # README.md: "of 8 frames of each further clip 3 are new"
    assert torch.equal(seen.made.frames, torch.cat((first, second[:, :, 8 - new :]), dim=2))
    overlap, tail = slice(0, 8 - new), slice(new, 8)
    end = first[0][:, tail]
    shown_noise = [relative_error(shown[:, overlap], end) for shown in seen.clips[1]]
    prior_noise = [relative_error(shown[:, tail], end) for shown in seen.clips[0]]
    assert shown_noise[0] < 0.1 * prior_noise[0]
    for step, later in ((0, 8), (5, 9)):  # 0.8 of the way to the end is here a whole number of steps
        assert torch.equal(seen.clips[1][step][:, overlap], seen.clips[0][later][:, tail]), step
    assert shown_noise == sorted(shown_noise, reverse=True) and shown_noise[-1] > 0
    for step in range(9):  # in every step cleaner than the prior's end was one step later
        assert shown_noise[step] < prior_noise[step + 1], step
    assert shown_noise[9] < prior_noise[9]
    for frame in range(8 - new, 8):  # their noise is fresh
        assert seen.reused_noise(frame).abs().max() < 0.25


def documented_values() -> dict[str, str]:
    """The last column of the table in README.md, by option."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "`--preset paper` is the last column" in readme
    rows = re.findall(r"^\| `(--[a-z-]+)`[^|]* \|.*\| ([^|]+) \|$", readme, flags=re.MULTILINE)
    return {option: value.split()[0] for option, value in rows}


def test_the_preset_of_the_paper_makes_what_the_values_in_the_readme_make(model_folder: Path, tmp_path: Path) -> None:
    values = documented_values()
    assert {option.removeprefix("--").replace("-", "_") for option in values} == {
        field.name for field in fields(ReuseSettings)
    }
    call = ["generate", "--model", str(model_folder), "--prompt", "a dot", "--clips", "2", "--frames", "8"]
    call += ["--steps", "5", "--device", "cpu", "--quiet"]
    spelled = [word for option in values.items() for word in option]
    assert main([*call, "--preset", "paper", "--output", str(tmp_path / "named.gif")]) == 0
    assert main([*call, "--preset", "smooth", *spelled, "--output", str(tmp_path / "spelled.gif")]) == 0
    named, by_option = (read_video(tmp_path / name).frames for name in ("named.gif", "spelled.gif"))
    assert named.shape[0] == 16 and np.array_equal(named, by_option)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_video_with_clips_of_any_length(larger_pipe: VidRDPipeline, name: str) -> None:
    larger_pipe.use_preset(name)
    for frames in (1, 3, 8):
        made = larger_pipe("a dot", num_clips=2, num_frames=frames, num_inference_steps=2, output_type="latent")
        assert frames < made.frames.shape[2] <= 2 * frames and torch.isfinite(made.frames).all()


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


def test_a_preset_goes_before_the_models_defaults_and_after_what_is_given(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = replace(PRESETS["fast"], num_inference_steps=7, scheduler="dpmpp-2m")  # neither is the model's
    monkeypatch.setitem(PRESETS, "fast", fast)
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
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    pipe.use_preset("fast")
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
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


def test_smooth_makes_what_the_method_makes_that_its_figures_were_measured_with(larger_pipe: VidRDPipeline) -> None:
    """docs/evaluation.md measures it in the row "smooth"."""
    batch = VideoBatch(larger_pipe, held_out_scenes(1), [0], clips=2, num_frames=8, steps=4, guidance_scale=3.0)
    larger_pipe.use_preset("smooth")
    text, _ = batch.texts()
    call = {"num_clips": 2, "num_frames": 8, "num_inference_steps": 4, "guidance_scale": 3.0, "seed": 0}
    made = larger_pipe(prompt_embeds=text, output_type="latent", **call).frames
    with torch.no_grad():
        measured = find_method("smooth").make(batch).latents
    assert measured is not None and relative_error(made, measured) < 1e-5


def test_of_a_presets_trim_no_more_is_dropped_than_a_chosen_overlap_repeats(model_folder: Path, tmp_path: Path) -> None:
    call = ["generate", "--model", str(model_folder), "--prompt", "a dot", "--clips", "2", "--frames", "8"]
    call += ["--steps", "1", "--device", "cpu", "--quiet", "--preset", "smooth", "--overlap-frames", "2"]
    for trim, frames in ([], 8 + 6), (["--trim-frames", "3"], 8 + 5):
        assert main([*call, *trim, "--output", str(tmp_path / f"{frames}.gif")]) == 0
        assert len(read_video(tmp_path / f"{frames}.gif").frames) == frames
