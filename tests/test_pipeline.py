"""The pipeline: parity of the chain, prompts, seeds, schedulers, callbacks, continuing, saving as a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from components import NOISE_SCHEDULE, Reference, make_pipeline, relative_error
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.pipeline import VidRDPipelineOutput
from vidrd_core.reuse.presets import PRESETS
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.sampling.state import VideoState

SMALL: dict[str, Any] = {
    "num_frames": 4,
    "num_inference_steps": 5,
    "guidance_scale": 3.0,
    "reuse": ReuseSettings(overlap_frames=2),
}


def call(pipe: VidRDPipeline, prompt: Any = "a red dot", **changes: Any) -> VidRDPipelineOutput:
    return pipe(prompt, **{**SMALL, "num_clips": 2, **changes})


def with_scheduler(pipe: VidRDPipeline, scheduler: Any) -> VidRDPipeline:
    other = VidRDPipeline(**{**pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    return other


# -- parity ------------------------------------------------------------------------------------------------------------


def test_a_chain_of_three_clips_equals_the_released_code(reference: Reference) -> None:
    recorded = reference.reuse
    keys = ("beta_start", "beta_end", "beta_schedule", "clip_sample", "set_alpha_to_one", "steps_offset")
    scheduler = DDIMScheduler(**{key: recorded[key] for key in keys}, prediction_type=recorded["prediction_type"])
    pipe = VidRDPipeline(reference.unet, reference.vae, None, None, scheduler)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        prompt_embeds=reference["in.prompt_embeds"],
        negative_prompt_embeds=reference["in.negative_prompt_embeds"],
        num_clips=3,
        num_frames=recorded["num_frames"],
        num_inference_steps=recorded["num_inference_steps"],
        guidance_scale=recorded["guidance_scale"],
        reuse=ReuseSettings(recorded["overlap_frames"], recorded["noise_alpha"], recorded["guidance_beta"]),
        noise=lambda i, shape: reference[f"in.fresh_noise_{i}" if i else "in.initial_noise"],
        output_type="latent",
    )
    for index, clip in enumerate(out.clips):
        assert relative_error(clip, reference[f"out.clip_{index}"]) < 1e-4


# -- prompts and outputs -----------------------------------------------------------------------------------------------


def test_one_prompt_serves_all_clips_and_the_last_of_several_repeats(pipe: VidRDPipeline) -> None:
    one = call(pipe, "a red dot", num_clips=3, output_type="latent")
    several = call(pipe, ["a red dot", "a blue dot"], num_clips=3, output_type="latent")
    spelled = call(pipe, ["a red dot", "a blue dot", "a blue dot"], num_clips=3, output_type="latent")
    assert torch.equal(one.clips[0], several.clips[0])
    assert not torch.equal(one.clips[1], several.clips[1])
    assert all(torch.equal(a, b) for a, b in zip(several.clips, spelled.clips))
    assert several.state.prompt == "a blue dot"


def test_the_output_types_hold_the_same_video(pipe: VidRDPipeline) -> None:
    arrays, tensors, latents = (call(pipe, output_type=kind) for kind in ("np", "pt", "latent"))
    assert arrays.frames.shape == (1, 8, 16, 16, 3) and arrays.frames.dtype == np.float32
    assert tensors.frames.shape == (1, 3, 8, 16, 16)
    assert latents.frames.shape == (1, 4, 8, 4, 4)
    assert arrays.frames.min() >= 0 and arrays.frames.max() <= 1
    assert np.array_equal(arrays.frames, ((tensors.frames + 1) / 2).permute(0, 2, 3, 4, 1).numpy())
    assert torch.equal(latents.frames, torch.cat(latents.clips, dim=2))


def test_trimmed_frames_are_dropped_from_the_video_but_not_from_the_clips(pipe: VidRDPipeline) -> None:
    out = call(pipe, num_clips=3, reuse=ReuseSettings(2, order="forward", trim_frames=2), output_type="latent")
    assert [clip.shape[2] for clip in out.clips] == [4, 4, 4]
    expected = torch.cat([out.clips[0], out.clips[1][:, :, 2:], out.clips[2][:, :, 2:]], dim=2)
    assert torch.equal(out.frames, expected)


def test_embeddings_in_place_of_prompts_give_the_same_clips(pipe: VidRDPipeline) -> None:
    embeds, negative = pipe.encode_text("a red dot"), pipe.encode_text("watermark")
    out = call(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative, output_type="latent")
    assert torch.equal(out.frames, call(pipe, output_type="latent").frames)


def test_the_negative_prompt_matters_only_with_guidance(pipe: VidRDPipeline) -> None:
    def latents(negative: str, scale: float) -> torch.Tensor:
        return call(pipe, negative_prompt=negative, guidance_scale=scale, output_type="latent").frames

    assert not torch.equal(latents("watermark", 3.0), latents("", 3.0))
    assert torch.equal(latents("watermark", 1.0), latents("", 1.0))


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_video_and_another_seed_another(pipe: VidRDPipeline) -> None:
    first, again, other = (call(pipe, seed=seed).frames for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_seed_makes_the_same_clips_in_any_batch(pipe: VidRDPipeline) -> None:
    embeds = torch.cat([pipe.encode_text(text) for text in ("a red dot", "a blue dot", "a box")])
    together = call(pipe, None, prompt_embeds=embeds, seed=[7, 8, 9], output_type="latent")
    for b, seed in enumerate((7, 8, 9)):
        alone = call(pipe, None, prompt_embeds=embeds[b : b + 1], seed=seed, output_type="latent")
        assert relative_error(together.frames[b : b + 1], alone.frames) < 1e-4


def test_a_clip_seed_replaces_the_derived_one_from_that_clip_on(pipe: VidRDPipeline) -> None:
    plain = call(pipe, num_clips=3, output_type="latent")
    other = call(pipe, num_clips=3, clip_seeds=[None, 99], output_type="latent")
    assert torch.equal(plain.clips[0], other.clips[0])
    assert not torch.equal(plain.clips[1], other.clips[1])


# -- schedulers --------------------------------------------------------------------------------------------------------

STEERABLE = {
    "ddim": DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **NOISE_SCHEDULE),
    "euler": EulerDiscreteScheduler(**NOISE_SCHEDULE),
    "dpm++ 2m": DPMSolverMultistepScheduler(**NOISE_SCHEDULE),
    "unipc": UniPCMultistepScheduler(**NOISE_SCHEDULE),
    "heun": HeunDiscreteScheduler(**NOISE_SCHEDULE),
    "deis": DEISMultistepScheduler(**NOISE_SCHEDULE),
}


@pytest.mark.parametrize("name", STEERABLE)
def test_deterministic_schedulers_make_the_same_video_twice(pipe: VidRDPipeline, name: str) -> None:
    other = with_scheduler(pipe, STEERABLE[name])
    first, again = (call(other, num_clips=3, output_type="latent").frames for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", STEERABLE)
def test_fully_guided_frames_repeat_the_last_clip_in_reverse(pipe: VidRDPipeline, name: str) -> None:
    other = with_scheduler(pipe, STEERABLE[name])
    reuse = ReuseSettings(overlap_frames=4, guidance_beta=1.0)
    out = call(other, num_inference_steps=8, reuse=reuse, guidance_scale=1.0, output_type="latent")
    last, first = out.clips[0][:, :, -1], out.clips[1][:, :, 0]
    # Steered to the last step, the frame follows the old one's path; the last step still sees new neighbours.
    assert relative_error(first, last) < 0.1
    assert relative_error(out.clips[1][:, :, 3], last) > relative_error(first, last)


@pytest.mark.parametrize("reuse", [ReuseSettings(), PRESETS["smooth"].reuse.fitted(4)], ids=["paper", "smooth"])
def test_euler_and_ddim_agree_on_a_chain(pipe: VidRDPipeline, reuse: ReuseSettings) -> None:
    """Their states differ in scale by up to 14, which a lead has to allow for."""
    options = {"num_inference_steps": 100, "guidance_scale": 1.0, "output_type": "latent", "reuse": reuse}
    leading = {"timestep_spacing": "leading", **NOISE_SCHEDULE}
    ddim = call(with_scheduler(pipe, DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **leading)), **options)
    euler = call(with_scheduler(pipe, EulerDiscreteScheduler(**leading)), **options)
    for ours, theirs in zip(ddim.clips, euler.clips):
        assert relative_error(ours, theirs) < 0.05


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [(PNDMScheduler, "rebuilds"), (LCMScheduler, "rebuilds"), (DDPMScheduler, "adds noise"),
     (EulerAncestralDiscreteScheduler, "adds noise")],
)  # fmt: skip
def test_schedulers_that_lose_guidance_or_add_noise_are_refused(
    pipe: VidRDPipeline, scheduler: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"{scheduler.__name__}.*{reason}.*use DDIMScheduler"):
        call(with_scheduler(pipe, scheduler()))


def test_a_stochastic_variant_of_a_deterministic_scheduler_is_refused(pipe: VidRDPipeline) -> None:
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **NOISE_SCHEDULE)
    with pytest.raises(ValueError, match="adds noise"):
        call(with_scheduler(pipe, scheduler))


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++ 2m"])
def test_latents_stay_in_float32_under_a_half_precision_model(pipe: VidRDPipeline, tmp_path: Path, name: str) -> None:
    half = with_scheduler(make_pipeline(tmp_path), STEERABLE[name]).to(dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    out = call(half)
    assert out.clips[1].dtype == torch.float32
    assert {state.dtype for state in out.state.trajectory.states} == {torch.float32}
    assert np.isfinite(out.frames).all()


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_a_callback_sees_every_step_and_may_change_the_latents(pipe: VidRDPipeline) -> None:
    seen = []

    def callback(_: Any, step: int, timestep: torch.Tensor, values: dict[str, Any]) -> dict[str, Any]:
        seen.append((values["clip_index"], step))
        return {"latents": torch.zeros_like(values["latents"])}

    out = call(pipe, callback_on_step_end=callback, output_type="latent")
    assert seen == [(clip, step) for clip in range(2) for step in range(5)]
    assert not out.frames.any()


def test_an_interrupt_returns_the_finished_clips(pipe: VidRDPipeline) -> None:
    def callback(running: Any, step: int, timestep: torch.Tensor, values: dict[str, Any]) -> None:
        running.interrupt = values["clip_index"] == 2 and step == 1

    out = call(pipe, num_clips=5, callback_on_step_end=callback)
    assert len(out.clips) == 2 and out.frames.shape[1] == 8
    assert np.array_equal(out.frames, call(pipe, num_clips=2).frames)
    assert call(pipe, num_clips=1).frames.shape[1] == 4  # an interrupt does not outlive its call


def test_an_interrupt_in_the_first_clip_says_that_there_is_nothing(pipe: VidRDPipeline) -> None:
    def callback(running: Any, *_: Any) -> None:
        running.interrupt = True

    with pytest.raises(RuntimeError, match="before the first clip"):
        call(pipe, callback_on_step_end=callback)


# -- continuing --------------------------------------------------------------------------------------------------------

CHAINS = {
    "released": ReuseSettings(2),
    "trimmed": ReuseSettings(2, trim_frames=1),
    "trimmed to one": ReuseSettings(3, trim_frames=3),
    "forward": ReuseSettings(2, order="forward", trim_frames=2),
    "no overlap": ReuseSettings(0),
    "all overlap": ReuseSettings(4, guidance_beta=1.0),
}


@pytest.mark.parametrize("split", [(1, 3), (2, 2), (3, 1), (1, 1, 2)])
@pytest.mark.parametrize("name", CHAINS)
def test_extending_a_saved_state_equals_the_unbroken_video_to_the_bit(
    pipe: VidRDPipeline, tmp_path: Path, name: str, split: tuple[int, ...]
) -> None:
    prompts = ["a red dot", "a blue dot", "a box", "a green line"]
    whole = call(pipe, prompts, num_clips=4, reuse=CHAINS[name], seed=11)
    part = call(pipe, prompts[: split[0]], num_clips=split[0], reuse=CHAINS[name], seed=11)
    clips, done = list(part.clips), split[0]
    for count in split[1:]:
        before = part.state.num_joined
        part.state.save(tmp_path / "state.safetensors")
        state = VideoState.load(tmp_path / "state.safetensors")
        part = pipe.extend(state, prompts[done : done + count], num_clips=count)
        clips += part.clips
        done += count
        end = part.state.num_joined
        if done == 4:
            assert np.array_equal(part.frames, whole.frames[:, before:end])
        assert part.frames.shape[1] == end - before
    assert all(torch.equal(a, b) for a, b in zip(clips, whole.clips, strict=True))


def test_extending_an_output_without_a_prompt_repeats_the_last_prompt(pipe: VidRDPipeline) -> None:
    whole = call(pipe, ["a red dot", "a blue dot"], num_clips=3)
    first = call(pipe, ["a red dot", "a blue dot"], num_clips=2)
    assert np.array_equal(pipe.extend(first).frames, whole.frames[:, 8:])


def test_extending_goes_on_with_the_text_states_that_were_given(pipe: VidRDPipeline, tmp_path: Path) -> None:
    text, away = (torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    given = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": away}
    whole = call(pipe, num_clips=2, **given)
    call(pipe, num_clips=1, **given).state.save(tmp_path / "state.safetensors")
    assert np.array_equal(pipe.extend(VideoState.load(tmp_path / "state.safetensors")).frames, whole.frames[:, 4:])


@pytest.mark.parametrize("name", ["euler", "dpm++ 2m", "unipc", "heun"])
def test_extending_is_exact_with_other_schedulers(pipe: VidRDPipeline, name: str) -> None:
    other = with_scheduler(pipe, STEERABLE[name])
    whole = call(other, num_clips=3)
    assert np.array_equal(other.extend(call(other, num_clips=1), num_clips=2).frames, whole.frames[:, 4:])


def test_the_clip_stream_holds_what_a_call_returns(pipe: VidRDPipeline) -> None:
    sampling = SamplingSettings(4, 16, 16, 5, 3.0, SMALL["reuse"])
    whole = call(pipe, num_clips=3)
    clips = list(pipe.stream("a red dot", sampling, 3))
    assert [clip.index for clip in clips] == [0, 1, 2]
    assert all(torch.equal(clip.latents, latents) for clip, latents in zip(clips, whole.clips))
    assert len({seed for clip in clips for seed in clip.seeds}) == 3


def test_a_state_of_another_model_is_refused(pipe: VidRDPipeline, tmp_path: Path) -> None:
    out = call(pipe, num_clips=1)
    with pytest.raises(ValueError, match="another U-Net"):
        make_pipeline(tmp_path, seed=5).extend(out)


def test_a_state_of_another_scheduler_is_refused(pipe: VidRDPipeline) -> None:
    out = call(pipe, num_clips=1)
    with pytest.raises(ValueError, match="made with DDIMScheduler, this one would be with EulerDiscreteScheduler"):
        with_scheduler(pipe, STEERABLE["euler"]).extend(out)
    with pytest.raises(ValueError, match="prediction_type was epsilon and is v_prediction"):
        changed = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
        with_scheduler(pipe, changed).extend(out)


# -- model folders -----------------------------------------------------------------------------------------------------


def test_a_saved_model_folder_loads_and_makes_the_same_video(pipe: VidRDPipeline, model_folder: Path) -> None:
    loaded = VidRDPipeline.from_pretrained(model_folder)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(call(loaded).frames, call(pipe).frames)
    assert not [p for p in model_folder.rglob("*") if p.suffix in (".bin", ".pth", ".pt", ".ckpt")]
    again = model_folder.parent / "again"
    loaded.save_pretrained(again)
    first, second = (json.loads((f / "model_index.json").read_text(encoding="utf-8")) for f in (model_folder, again))
    assert {**second, "_name_or_path": None} == {**first, "_name_or_path": None}


def test_a_models_defaults_travel_in_its_folder(pipe: VidRDPipeline, tmp_path: Path) -> None:
    defaults = {"fps": 8, "trim_frames": 1, "negative_prompt": ""}
    VidRDPipeline(**pipe.components, defaults=defaults).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))["defaults"] == defaults
    assert VidRDPipeline.from_pretrained(tmp_path).config["defaults"] == defaults


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_clips": 0}, "num_clips is 0"), ({"height": 18}, "16x18; expected positive multiples of 4"),
     ({"width": 0}, "0x16"), ({"output_type": "pil"}, "'pil'.*np, pt, latent"), ({"prompt": None}, "neither prompt"),
     ({"prompt": []}, "empty list"), ({"seed": [1, 2]}, "2 seeds were given for 1"),
     ({"noise": lambda i, shape: torch.zeros(1)}, r"noise returned \[1\]"),
     ({"prompt_embeds": torch.zeros(1, 7, 32)}, "both prompt and prompt_embeds")],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(pipe: VidRDPipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pipe, **changes)


@pytest.mark.parametrize("num_frames", [1, 2, 32])
def test_a_clip_of_any_length_from_1_to_32_frames_needs_no_other_settings(pipe: VidRDPipeline, num_frames: int) -> None:
    out = pipe("a cat", num_clips=2, num_frames=num_frames, num_inference_steps=2)
    assert out.frames.shape[1] == 2 * num_frames
