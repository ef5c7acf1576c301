"""Saving memory: offloading changes no result, fp8 storage a little, split guidance nothing but rounding."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from components import make_pipeline, relative_error

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.cli import main
from vidrd_core.jobs.job import JobError, JobFolder, Plan, made_with, open_job
from vidrd_core.runtime.memory import MemoryOptions, save_memory
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.sampling.state import VideoState
from vidrd_core.video import read_video

SMALL: dict[str, Any] = {"num_frames": 4, "num_inference_steps": 5, "guidance_scale": 3.0, "reuse": ReuseSettings(2)}
SAMPLING = SamplingSettings(4, 16, 16, 5, 3.0, ReuseSettings(2))


def call(pipe: VidRDPipeline, **changes: Any) -> Any:
    return pipe("a red dot", **{**SMALL, "num_clips": 2, **changes})


@pytest.fixture
def own(tmp_path: Path) -> VidRDPipeline:
    """A pipeline that the test may change."""
    return make_pipeline(tmp_path / "tokenizer")


def test_models_that_wait_their_turn_make_the_same_video(pipe: VidRDPipeline, own: VidRDPipeline) -> None:
    save_memory(own, MemoryOptions("model"), "cpu")
    assert own.vae._hf_hook.execution_device == torch.device("cpu:0")
    out = call(own)
    assert np.array_equal(out.frames, call(pipe).frames)
    assert np.array_equal(own.extend(out).frames, pipe.extend(call(pipe)).frames)


def test_only_the_model_at_work_is_on_the_device_also_in_later_clips_and_videos(
    own: VidRDPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"text": own.text_encoder, "unet": own.unet, "vae": own.vae}
    there: set[str] = set()
    seen: list[set[str]] = []

    def move(name: str, model: torch.nn.Module, place: Any, *_: Any, **__: Any) -> torch.nn.Module:
        (there.add if str(place) == "cpu:0" else there.discard)(name)  # the waiting ones go to "cpu"
        return model

    for name, model in models.items():
        monkeypatch.setattr(model, "to", partial(move, name, model))
        inner = model.decoder if name == "vae" else model
        inner.register_forward_hook(lambda *_: seen.append(set(there)))
    save_memory(own, MemoryOptions("model"), "cpu")
    call(own)
    call(own)
    order = [sorted(names) for names in seen]
    assert all(len(names) == 1 for names in order)
    assert [names for names, before in zip(order, [None, *order]) if names != before] == [
        *([["text"], ["unet"], ["vae"], ["unet"], ["vae"]] * 2)
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize("storage", ["same", "fp8"])
def test_offloading_from_a_gpu_changes_nothing(tmp_path: Path, offload: str, storage: str) -> None:
    plain, own = (make_pipeline(tmp_path / name) for name in ("plain", "own"))
    save_memory(plain, MemoryOptions(storage=storage), "cuda")
    save_memory(own, MemoryOptions(offload, storage), "cuda")
    if offload == "sequential":
        assert {p.device.type for p in own.unet.parameters()} == {"meta"}
    frames, expected = call(own).frames, call(plain).frames
    assert np.abs(frames - expected).max() < 1e-3


def test_weights_in_fp8_take_a_quarter_of_float32_and_change_a_step_by_a_few_percent(
    pipe: VidRDPipeline, own: VidRDPipeline
) -> None:
    save_memory(own, MemoryOptions(storage="fp8"), "cpu")
    stored = sum(p.nbytes for p in own.unet.parameters())
    assert stored < 0.3 * sum(p.nbytes for p in pipe.unet.parameters())
    assert own.unet.dtype == torch.float32
    x, text = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 16, 32)
    with torch.no_grad():
        error = relative_error(own.unet(x, 500, text).sample, pipe.unet(x, 500, text).sample)
    assert 1e-4 < error < 0.1


def test_a_state_made_with_fp8_weights_is_the_same_models_but_a_job_keeps_to_one_storage(
    pipe: VidRDPipeline, own: VidRDPipeline, tmp_path: Path
) -> None:
    save_memory(own, MemoryOptions(storage="fp8"), "cpu")
    out = call(own, num_clips=1)
    assert pipe.extend(out).frames.shape == (1, 4, 16, 16, 3)
    plan = Plan(["a red dot"], SAMPLING)
    assert made_with(own, plan)["storage"] == "float8_e4m3fn" and "storage" not in made_with(pipe, plan)
    folder = open_job(tmp_path / "state", own, plan)
    for path in (folder.clip_path(0), folder.state_path(0)):  # settings of which no clip came bind nobody
        path.touch()
    with pytest.raises(JobError, match="storage was 'float8_e4m3fn' and is None"):
        open_job(tmp_path / "state", pipe, plan)


def test_split_guidance_gives_the_video_of_both_halves_at_once(pipe: VidRDPipeline, own: VidRDPipeline) -> None:
    batches: list[int] = []
    own.unet.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].shape[0]))
    save_memory(own, MemoryOptions(split_guidance=True), "cpu")
    split, together = call(own, output_type="latent").frames, call(pipe, output_type="latent").frames
    assert relative_error(split, together) < 1e-4
    assert batches == [1] * 20  # two clips of five steps, two halves


def test_outside_the_guidance_interval_the_prompt_runs_alone(pipe: VidRDPipeline) -> None:
    def latents(interval: tuple[float, float], scale: float = 3.0) -> torch.Tensor:
        return call(pipe, guidance_interval=interval, guidance_scale=scale, output_type="latent").frames

    whole = call(pipe, output_type="latent").frames
    assert torch.equal(latents((0, 1)), whole)
    assert relative_error(latents((0, 0)), latents((0, 1), 1.0)) < 1e-4
    assert relative_error(latents((0.2, 0.8)), whole) > 1e-3
    assert relative_error(latents((0.2, 0.8)), whole) < relative_error(latents((0, 0)), whole)


def test_a_guidance_interval_halves_the_work_of_the_steps_outside(own: VidRDPipeline) -> None:
    batches: list[int] = []
    own.unet.register_forward_pre_hook(lambda module, inputs: batches.append(inputs[0].shape[0]))
    call(own, num_clips=1, guidance_interval=(0.2, 0.8))
    assert batches == [1, 2, 2, 2, 1]


def test_a_videos_guidance_interval_goes_on_with_it(pipe: VidRDPipeline, tmp_path: Path) -> None:
    whole = call(pipe, num_clips=2, guidance_interval=(0.2, 0.8))
    part = call(pipe, num_clips=1, guidance_interval=(0.2, 0.8))
    part.state.save(tmp_path / "state.safetensors")
    state = VideoState.load(tmp_path / "state.safetensors")
    assert torch.equal(pipe.extend(state, output_type="latent").frames, whole.clips[1])
    with pytest.raises(ValueError, match=r"guidance_interval was \(0.2, 0.8\) in the clip before and is \(0.0, 1.0\)"):
        list(pipe.stream("a box", replace(state.sampling, guidance_interval=(0.0, 1.0)), 1, state=state))


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 1.0), (0.0, 1.5)])
def test_impossible_intervals_are_refused(pipe: VidRDPipeline, interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= from <= to <= 1"):
        call(pipe, guidance_interval=interval)


def test_unknown_options_and_offloading_under_background_decoding_are_refused(own: VidRDPipeline) -> None:
    with pytest.raises(ValueError, match="offload is 'disk'; expected one of none, model, sequential"):
        MemoryOptions("disk")
    with pytest.raises(ValueError, match="storage is 'int4'"):
        MemoryOptions(storage="int4")
    with pytest.raises(ValueError, match="a CPU has no memory of its own"):
        save_memory(own, MemoryOptions("sequential"), "cpu")
    own.background_decoding = True
    with pytest.raises(ValueError, match="decoding runs in the background"):
        save_memory(own, MemoryOptions("model"), "cpu")


@pytest.mark.parametrize("reuse", [ReuseSettings(2), ReuseSettings(2, trim_frames=1)])
def test_decoding_in_the_background_gives_the_same_video(
    pipe: VidRDPipeline, own: VidRDPipeline, reuse: ReuseSettings
) -> None:
    own.background_decoding = True
    out, expected = (call(p, num_clips=3, reuse=reuse) for p in (own, pipe))
    assert np.array_equal(out.frames, expected.frames)
    assert np.array_equal(own.extend(out).frames, pipe.extend(expected).frames)


def test_the_command_takes_the_options_and_extend_keeps_the_storage_and_the_interval(
    model_folder: Path, tmp_path: Path
) -> None:
    quick = ["--device", "cpu", "--quiet", "--prompt", "a red dot"]
    first = ["--model", str(model_folder), "--frames", "4", "--steps", "4", "--storage", "fp8", "--split-guidance"]
    first += ["--guidance-interval", "0.25:0.75"]
    assert main(["generate", *quick, *first, "--clips", "1", "--output", str(tmp_path / "out")]) == 0
    made = JobFolder(tmp_path / "out.state").read()["made"]
    assert made["storage"] == "float8_e4m3fn" and made["sampling"]["guidance_interval"] == [0.25, 0.75]
    background = ["--split-guidance", "--background-decoding", "--output", str(tmp_path / "long")]
    assert main(["extend", str(tmp_path / "out.state"), *quick, *background]) == 0
    assert main(["generate", *quick, *first, "--clips", "2", "--output", str(tmp_path / "whole")]) == 0
    assert (read_video(tmp_path / "long").frames == read_video(tmp_path / "whole").frames).all()
