"""Ways to make a long video, on tiny real models, and the drift corrections as functions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from components import tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae
from diffusers import DDIMScheduler

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.sampling.drift import channel_statistics, match_statistics, soft_guide, soft_weight
from vidrd_core.sampling.guidance import rescale_guidance
from vidrd_core.sampling.seeds import clip_seed
from vidrd_core.shapes.methods import BASES, Chain, GroundTruth, VideoBatch, Windows, find_method, rescheduled_noise
from vidrd_core.shapes.prompted import held_out_scenes


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> VideoBatch:
    pipe = VidRDPipeline(
        unet=tiny_unet(),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return VideoBatch(pipe, held_out_scenes(2), [0, 1], clips=3, num_frames=4, steps=4, guidance_scale=3.0)


def made(method: object, job: VideoBatch) -> torch.Tensor:
    with torch.no_grad():
        latents = method.make(job).latents  # type: ignore[attr-defined]
    assert torch.isfinite(latents).all()
    return latents


@pytest.mark.parametrize("settings", [ReuseSettings(2), ReuseSettings(2, 1.0, 1.0, "forward", 2)])
def test_a_chain_is_what_the_pipeline_makes(job: VideoBatch, settings: ReuseSettings) -> None:
    text, _ = job.texts()
    expected = job.pipe(
        prompt_embeds=text,
        num_clips=3,
        num_frames=4,
        num_inference_steps=4,
        guidance_scale=3.0,
        reuse=settings,
        seed=0,
        output_type="latent",
    ).frames
    chain = Chain(2, settings.noise_alpha, settings.guidance_beta, settings.order)
    assert torch.allclose(made(chain, job), expected, atol=1e-5)


def test_every_method_makes_the_frames_it_says(job: VideoBatch) -> None:
    long = replace(job, num_frames=6, clips=2, steps=2)
    frames = {"last frame": 11, "forward": 8, "forward guided": 8, "forward soft": 8, "smooth": 7}
    for name, method in BASES.items():
        if isinstance(method, GroundTruth):  # of the size of rendered frames
            continue
        with torch.no_grad():
            result = method.make(long)
        assert result.starts == [0, 6], name
        assert result.latents is not None and result.latents.shape == (2, 4, frames.get(name, 12), 4, 4), name


def test_every_method_begins_with_the_same_clip(job: VideoBatch) -> None:
    first = made(BASES["independent"], job)[:, :, :4]
    for name in ("last frame", "FNR", "FNR PNS"):
        assert torch.allclose(made(BASES[name], job)[:, :, :4], first, atol=1e-5), name


def test_guiding_to_the_end_leaves_no_difference_where_clips_overlap(job: VideoBatch) -> None:
    whole = made(find_method("forward guided, overlap=2, trim=0"), job)
    assert torch.allclose(whole[:, :, 2:4], whole[:, :, 4:6], atol=1e-3)
    loose = made(find_method("forward, overlap=2, trim=0"), job)
    assert not torch.allclose(loose[:, :, 2:4], loose[:, :, 4:6], atol=1e-3)


def test_soft_guidance_lies_between_no_guidance_and_guidance_to_the_end(job: VideoBatch) -> None:
    apart = [
        float((whole[:, :, 2:4] - whole[:, :, 4:6]).norm())
        for changes in ("stages=uniform, beta=0", "stages=soft, beta=0", "stages=soft, beta=1")
        for whole in [made(find_method(f"forward guided, overlap=2, trim=0, {changes}"), job)]
    ]
    assert apart[0] > apart[1] > apart[2]


def test_matching_gives_later_clips_the_statistics_of_the_first(job: VideoBatch) -> None:
    for name in ("independent, match", "joint windows, stride=2, match"):
        first, *later = made(find_method(name), job).split(4, dim=2)
        wanted = channel_statistics(first)
        for clip in later:
            found = channel_statistics(clip)
            assert torch.allclose(found.mean, wanted.mean, atol=1e-3)
            assert torch.allclose(found.deviation, wanted.deviation, rtol=1e-3)


def test_rescaled_guidance_changes_a_method_and_none_does_not(job: VideoBatch) -> None:
    plain = made(find_method("independent"), job)
    assert torch.equal(made(find_method("independent, rescale=0"), job), plain)
    assert not torch.allclose(made(find_method("independent, rescale"), job), plain, atol=1e-3)


def test_windows_as_long_as_their_stride_are_independent_clips(job: VideoBatch) -> None:
    assert torch.allclose(made(Windows(stride=4), job), made(BASES["independent"], job), atol=1e-5)


def test_rescheduled_noise_is_a_shuffle_of_the_first_clips_and_the_same_in_any_batch(job: VideoBatch) -> None:
    noise = rescheduled_noise(job, 2)
    assert noise.shape[2] == 12 and torch.equal(noise[:, :, :4], job.noise(0))
    for start in range(4, 12, 2):
        before, after = noise[:, :, start - 4 : start - 2], noise[:, :, start : start + 2]
        assert torch.allclose(before.sum(2), after.sum(2), atol=1e-5)
    alone = VideoBatch(job.pipe, job.scenes[1:], job.seeds[1:], 3, 4, 4, 3.0)
    assert torch.equal(rescheduled_noise(alone, 2), noise[1:])


def test_a_seed_makes_the_same_video_in_any_batch(job: VideoBatch) -> None:
    alone = VideoBatch(job.pipe, job.scenes[1:], job.seeds[1:], 3, 4, 4, 3.0)
    assert clip_seed(1, 0) == 1
    assert torch.allclose(made(BASES["paper"], job)[1:], made(BASES["paper"], alone), atol=1e-4)


def test_names_are_methods_with_changes() -> None:
    assert find_method("paper") == Chain()
    assert find_method("paper, alpha=inf, match=0.5, rescale") == Chain(alpha=math.inf, match=0.5, rescale=0.7)
    assert find_method("joint windows, stride=2") == Windows(stride=2)
    assert find_method("forward, overlap=3").settings == ReuseSettings(3, order="forward", trim_frames=3)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("magic", "is no method; known are: ground truth"),
        ("paper, speed=2", "known are: overlap="),
        ("paper, alpha", "known are: overlap="),
        ("paper, alpha=much", "no number"),
        ("FreeNoise, weighted=1", "is no change"),
    ],
)
def test_a_wrong_name_says_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_method(name)


def test_wrong_stages_and_strides_are_refused(job: VideoBatch) -> None:
    with pytest.raises(ValueError, match="linear, uniform, soft"):
        find_method("paper, stages=hard").make(job)
    with pytest.raises(ValueError, match="1 to 4"):
        Windows(stride=5).make(job)


def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction() -> None:
    cond, guided = torch.randn(2, 4, 3, 5, 5), 3 * torch.randn(2, 4, 3, 5, 5)
    full = rescale_guidance(guided, cond, 1.0)
    assert torch.allclose(full.std((1, 2, 3, 4)), cond.std((1, 2, 3, 4)))
    assert torch.equal(rescale_guidance(guided, cond, 0.0), guided)
    with pytest.raises(ValueError, match="0 .* to 1"):
        rescale_guidance(guided, cond, 2.0)


def test_matching_in_part_goes_part_of_the_way() -> None:
    latents = torch.randn(1, 2, 3, 4, 4)
    wanted = channel_statistics(5 + 2 * torch.randn(1, 2, 3, 4, 4))
    half = channel_statistics(match_statistics(latents, wanted, 0.5)).mean
    assert torch.allclose(half, (channel_statistics(latents).mean + wanted.mean) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="strength"):
        match_statistics(latents, wanted, -1)


def test_soft_weights_fall_from_one_after_the_guided_steps() -> None:
    weights = [soft_weight(step, 10, 0.4) for step in range(10)]
    assert weights[:4] == [1] * 4 and weights[4] == pytest.approx(1) and weights[9] == pytest.approx(1 / 6)
    assert weights[4:] == sorted(weights[4:], reverse=True)
    assert [soft_weight(step, 10, 1.0) for step in range(10)] == [1] * 10


def test_soft_guidance_blends_the_first_frames_only() -> None:
    latents, past = torch.zeros(1, 1, 4, 1, 1), torch.ones(1, 1, 2, 1, 1)
    assert soft_guide(latents, past, 0.25).flatten().tolist() == [0.25, 0.25, 0, 0]
    assert soft_guide(latents, None, 1.0) is latents
