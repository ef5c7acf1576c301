"""Reuse: Prepare and Reuse: Join around ComfyUI's own and other packs' sampler nodes; masks, files and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import family_runs as run
import pytest
import tiny_models
import torch
from family_runs import Chain, apart, frames, model_of, new_in, overlap_in, overlap_of, prompts, samples_of, tail_of
from tiny_models import FAMILIES, empty_latent

NAMES = tuple(FAMILIES)
KEY, SEED, STEPS = "vidrd_trajectory", run.SEED, run.STEPS
EXACT, HALF = 1e-5, 2e-3  # relative to the largest value: kept in float32, in float16


@pytest.fixture(scope="module")
def chain(nodes: dict[str, Any]) -> Chain:
    return Chain(nodes)


def with_ltxv_schedule(model: Any, conds: Any, latent: Any) -> Any:
    return run.sampler_custom(model, conds, latent, sigmas=run.ltxv_sigmas({"samples": samples_of(latent)}))


def with_foreign_sampler(model: Any, conds: Any, latent: Any) -> Any:
    return run.sampler_custom(model, conds, latent, run.MidpointSampler())


def with_uni_pc(model: Any, conds: Any, latent: Any) -> Any:
    return run.ksampler(model, conds, latent, sampler_name="uni_pc")


FORMS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "KSampler": run.ksampler,
    "KSampler uni_pc": with_uni_pc,
    "SamplerCustomAdvanced": run.sampler_custom_advanced,
    "SamplerCustom LTXVScheduler": with_ltxv_schedule,
    "another pack's SAMPLER": with_foreign_sampler,
}


def continued(chain: Chain, name: str, form: Any, prompt: int = 1, model: Any = None, **settings: Any) -> Any:
    """A first clip and the next one, both made by a sampler node between Prepare and Join: (first, video, clip)."""
    conds = prompts(name)
    patched, _, latent, session, _ = chain.prepare(name, empty_latent(name), model)
    first = chain.join(form(patched, conds[::2], latent), session)[0]
    patched, _, latent, session, _ = chain.prepare(name, first, model, **settings)
    return first, *chain.join(form(patched, (conds[prompt], conds[2]), latent), session)[:2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_any_sampler_node_between_prepare_and_join(name: str, form: str, chain: Chain) -> None:
    """Recording alone leaves no trace, the next clip's overlap is the prior's tail, and the video grows by the rest."""
    if FAMILIES[name].audio and form == "SamplerCustom LTXVScheduler":
        pytest.skip("LTXVScheduler of this version counts the tokens of video alone")
    family = FAMILIES[name]
    first, video, clip = continued(chain, name, FORMS[form])
    assert set(first) == set(video) == {"samples", KEY}
    assert run.same(first, FORMS[form](model_of(name), prompts(name)[::2], empty_latent(name)))
    assert apart(overlap_in(name, clip), tail_of(name, first)) <= HALF
    added = family.length - family.lead_in - overlap_of(name)
    assert samples_of(video).shape[family.time] == family.length + added
    assert torch.equal(frames(name, samples_of(video), -added), new_in(name, clip))


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "Wan 2.2 14B i2v"])
@pytest.mark.parametrize(("sampler", "split", "steps"), [("euler", 2, 4), ("uni_pc", 2, 4), ("euler", 10, 20)])
def test_two_ksampler_advanced_between_prepare_and_join(
    name: str, sampler: str, split: int, steps: int, chain: Chain
) -> None:
    conds, low = prompts(name), model_of(name, 1)
    chosen = {"sampler_name": sampler, "steps": steps, "split": split}
    high, patched_low, latent, session, _ = chain.prepare(name, empty_latent(name), model_low=low)
    first = chain.join(run.two_ksamplers(high, patched_low, conds[::2], latent, **chosen), session)[0]
    assert run.same(first, run.two_ksamplers(model_of(name), low, conds[::2], empty_latent(name), **chosen))
    high, patched_low, latent, session, _ = chain.prepare(name, first, model_low=low)
    clip = chain.join(run.two_ksamplers(high, patched_low, conds[1:], latent, **chosen), session)[1]
    assert apart(overlap_in(name, clip), tail_of(name, first)) <= HALF


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "LTXV", "HunyuanVideo", "Mochi", "Cosmos 1", "Cosmos Predict2"])
def test_context_windows_below_the_steering(name: str, chain: Chain) -> None:
    windowed = run.with_context_windows(model_of(name), name)
    first, _, clip = continued(chain, name, run.ksampler, model=windowed)
    stock = run.ksampler(windowed, prompts(name)[::2], empty_latent(name))
    assert run.same(first, stock)
    assert not run.same(first, run.ksampler(model_of(name), prompts(name)[::2], empty_latent(name)))
    assert apart(overlap_in(name, clip), tail_of(name, first)) <= HALF


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "dpmpp_2m"])
def test_the_callers_sigmas_and_noise_stay_as_they_are(sampler: str, chain: Chain) -> None:
    name = "Wan 2.1 t2v"
    sigmas = run.sigmas_of(model_of(name))
    given = sigmas.clone()
    _, video, _ = continued(chain, name, lambda m, c, latent: run.sampler_custom(m, c, latent, sampler, sigmas))
    assert torch.equal(sigmas, given)
    chain.next(name, video, sigmas=sigmas, prior_trajectory="noise", sampler_name=sampler)
    chain.first(name, sigmas=sigmas, sampler_name=sampler)
    assert torch.equal(sigmas, given)


def test_a_sampler_whose_output_comfyui_kept_is_joined_by_the_session_that_it_was_made_in(chain: Chain) -> None:
    """Prepare ran again, so that Join gets a new session with the LATENT of the old one's sampler."""
    name = "Wan 2.1 t2v"
    prior, _ = chain.prior(name)
    patched, _, latent, session, _ = chain.prepare(name, prior)
    made = run.ksampler(patched, prompts(name)[1:], latent)
    expected = chain.join(made, session)[0]
    again = chain.prepare(name, prior)[3]
    video = chain.join(made, again)[0]
    assert run.same(video, expected)
    for one, other in zip(chain.next(name, video)[:2], chain.next(name, expected)[:2], strict=True):
        assert run.same(one, other)


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "LTXV"])
def test_own_sigmas_in_place_of_steps_and_scheduler(name: str, chain: Chain) -> None:
    sigmas = run.ltxv_sigmas(empty_latent(name))
    first = chain.first(name, sigmas=sigmas, steps=50, scheduler="karras")
    stock = run.sampler_custom(model_of(name), prompts(name)[::2], empty_latent(name), sigmas=sigmas)
    assert run.same(first, stock)
    clip = chain.next(name, first)[1]  # by the prior's sigmas
    assert apart(overlap_in(name, clip), tail_of(name, first)) <= HALF
    again = chain.next(name, first, sigmas=sigmas)[1]
    assert run.same(clip, again)


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "Wan 2.2 5B", "LTXV", "HunyuanVideo", "Cosmos 1"])
def test_masked_latents_stay_the_given_ones_while_the_overlap_is_replayed(name: str, chain: Chain) -> None:
    """Latents given to the sampler with a noise mask, in the first clip (image to video) and in the next."""
    family, conds = FAMILIES[name], prompts(name)
    generator = torch.Generator().manual_seed(4)
    given = torch.randn(family.with_length(1), generator=generator)

    def masked(latent: dict[str, Any], at: int) -> dict[str, Any]:
        samples, mask = samples_of(latent).clone(), torch.ones((1, 1, *family.shape[2:]))
        samples[:, :, at : at + 1], mask[:, :, at] = given, 0
        return {**latent, "samples": samples, "noise_mask": mask}

    start = masked(empty_latent(name), 0)
    patched, _, latent, session, _ = chain.prepare(name, empty_latent(name))
    first = chain.join(run.ksampler(patched, conds[::2], masked(latent, 0)), session)[0]
    assert run.same(first, run.ksampler(model_of(name), conds[::2], start))
    patched, _, latent, session, _ = chain.prepare(name, first)
    clip = chain.join(run.ksampler(patched, conds[1:], masked(latent, family.length - 1)), session)[1]
    assert apart(frames(name, samples_of(clip), -1), given) <= EXACT
    assert apart(overlap_in(name, clip), tail_of(name, first)) <= HALF
    free = chain.join(run.ksampler(patched, conds[1:], latent), session)[1]
    assert apart(frames(name, samples_of(free), -1), given) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_video_without_trajectory_is_followed_along_the_straight_line(name: str, chain: Chain) -> None:
    """Latents of VAE Encode, Load Latent or someone's KSampler: the overlap ends on them."""
    plain = run.ksampler(model_of(name), prompts(name)[::2], empty_latent(name))
    chosen = {"steps": STEPS, "sampler_name": "euler", "scheduler": "simple"}
    model, at, overlap = model_of(name), FAMILIES[name].lead_in, overlap_of(name)
    with run.sampler_calls() as calls, run.network_inputs(model) as seen:
        clip = chain.next(name, plain, prior_trajectory="noise", **chosen)[1]
    assert len(calls.sigmas) == STEPS == len(seen)  # no model calls but the clip's own
    tail = tail_of(name, plain)
    sampling, clean = model.get_model_object("model_sampling"), model.model.process_latent_in(tail)
    noise = clip[KEY].trajectory.noise[:, :, at : at + overlap]
    noise = noise if FAMILIES[name].time else noise[0].movedim(1, 0)
    for level, one in zip(calls.sigmas, seen, strict=True):
        sigma = torch.tensor([level])
        state = sampling.calculate_input(sigma, sampling.noise_scaling(sigma, noise.clone(), clean))
        expected = state[0] if FAMILIES[name].time else state.movedim(0, 1)
        shown = run.seen_frames(name, one, at, at + overlap)[: len(expected)]
        assert float((shown - expected).norm() / expected.norm()) < 0.01, level
    assert float((overlap_in(name, clip) - tail).norm() / tail.norm()) < 0.01
    assert run.same(clip, chain.next(name, plain, **chosen)[1])  # what auto does


@pytest.mark.parametrize("name", [name for name in NAMES if not FAMILIES[name].audio])
def test_an_inverted_video_is_followed_to_its_end(name: str, chain: Chain) -> None:
    plain = run.ksampler(model_of(name), prompts(name)[::2], empty_latent(name))
    chosen = {"steps": 8, "sampler_name": "euler", "scheduler": "simple", "prior_trajectory": "invert"}
    clip = chain.next(name, plain, prior_positive=prompts(name)[0], **chosen)[1]
    tail = tail_of(name, plain)
    assert float((overlap_in(name, clip) - tail).norm() / tail.norm()) < 0.01


# Of SVD, whose sigma begins at 700, an inversion as exact as this takes a hundred steps: half a minute.
@pytest.mark.parametrize("name", [name for name in NAMES if not FAMILIES[name].audio and name != "SVD"])
def test_inversion_is_undone_by_sampling(name: str, part: Any) -> None:
    """Euler's steps from a clip's inverted noise, with its prompt and no guidance, lead back to the clip.

    Random networks bend the way more than trained ones: these are smoother.
    """
    steps = 60 if name == "Cosmos 1" else 24  # whose sigma begins at 80
    model = tiny_models.tiny(name, smoothness=2.0)
    image = tiny_models.image_conditioning(name) if FAMILIES[name].image else {}
    conds = [tiny_models.conditioning(name, seed, **image) for seed in (1, 2, 3)]
    layout = part("nodes.any_model.families").family_of(model).layout
    sigmas = run.sigmas_of(model, steps, "karras")
    plain = samples_of(
        run.ksampler(model, (conds[0], conds[0]), empty_latent(name), cfg=1.0, steps=steps, scheduler="karras")
    )
    with torch.inference_mode():
        noise = part("nodes.any_model.noise").ModelNoise(model)
        unit, states = part("nodes.rebuild").invert(model, noise, conds[0], conds[2], layout.to_video(plain), sigmas)
        again = comfy.sample.sample_custom(
            model, layout.from_video(unit), 1.0, comfy.samplers.sampler_object("euler"), sigmas, conds[0], conds[2],
            torch.zeros_like(plain), disable_pbar=True, seed=0,
        )  # fmt: skip
    assert len(states) == steps
    assert float((again - plain).norm() / plain.norm()) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_video_of_someones_sampler_is_continued_between_prepare_and_join(name: str, chain: Chain) -> None:
    plain = run.ksampler(model_of(name), prompts(name)[::2], empty_latent(name))
    patched, _, latent, session, report = chain.prepare(name, plain, clip_frames=clip_length(name))
    assert samples_of(latent).shape == FAMILIES[name].shape and "not recorded" in report
    video, clip, _ = chain.join(run.ksampler(patched, prompts(name)[1:], latent), session)
    tail = tail_of(name, plain)
    assert float((overlap_in(name, clip) - tail).norm() / tail.norm()) < 0.01
    assert samples_of(video).shape[FAMILIES[name].time] > FAMILIES[name].length
    later = chain.next(name, video)[1]
    assert apart(overlap_in(name, later), tail_of(name, video)) <= HALF


def clip_length(name: str) -> int:
    """Pixel frames of a clip of these checks."""
    return (FAMILIES[name].length - 1) * FAMILIES[name].frames + 1


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "LTXV", "HunyuanVideo"])
def test_an_image_is_the_first_latent_of_the_clip_that_follows_it(name: str, chain: Chain) -> None:
    """No lead-in there: a video's first latent is what an image is."""
    image = {"samples": torch.randn(FAMILIES[name].with_length(1), generator=torch.Generator().manual_seed(7))}
    chosen = {"steps": STEPS, "sampler_name": "euler", "scheduler": "simple", "clip_frames": clip_length(name)}
    video, clip, report = chain.next(name, image, overlap_frames=1, **chosen)
    assert samples_of(clip).shape == FAMILIES[name].shape
    assert float((frames(name, samples_of(clip), 0, 1) - image["samples"]).norm() / image["samples"].norm()) < 0.01
    assert samples_of(video).shape == FAMILIES[name].shape
    assert torch.equal(frames(name, samples_of(video), 1), frames(name, samples_of(clip), 1))
    assert f"adds {(FAMILIES[name].length - 1) * FAMILIES[name].frames} frames" in report


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "LTXV"])
def test_videos_of_a_batch_are_continued_each_by_its_own(name: str, chain: Chain) -> None:
    prior = chain.first(name, latent=empty_latent(name, batch=2))
    clip = chain.next(name, prior)[1]
    assert len(samples_of(clip)) == 2
    assert apart(overlap_in(name, clip), tail_of(name, prior)) <= HALF
    assert apart(samples_of(clip)[:1], samples_of(clip)[1:]) > 0.1


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "Wan 2.2 5B", "AnimateDiff"])
def test_many_clips_are_the_chain_and_go_on_where_they_were_interrupted(
    name: str, chain: Chain, nodes: dict[str, Any]
) -> None:
    conds = prompts(name)
    settings = run.reuse(
        name, overlap_frames=2 * FAMILIES[name].frames, trim_frames=2 if FAMILIES[name].frames == 1 else 0
    )
    given = {"model": model_of(name), "clip": None, "positive": conds[0], "negative": conds[2], "cfg": run.CFG,
             "prior": empty_latent(name), "seed": 0, "clip_seeds": "11, 12, 13", "steps": STEPS,
             "sampler_name": "euler", "scheduler": "simple", **settings}  # fmt: skip

    def many(number: int, **changes: Any) -> Any:
        seeds = ", ".join(given["clip_seeds"].split(", ")[:number])
        return nodes["VidRDManyClips"](**{**given, "num_clips": number, "clip_seeds": seeds, **changes})

    whole = many(3)[0]
    video = chain.first(name)
    for seed in (12, 13):
        video = chain.next(name, video, prompt=0, seed=seed, **settings)[0]
    assert run.same(whole, video)
    kept = "families " + name.replace(" ", "_").replace(".", "_")
    many(2, run_name=kept)
    longer, _, report = many(3, run_name=kept)
    assert run.same(longer, whole)
    assert report.lower().count("reused") >= 2 or report.lower().count("kept") >= 2, report


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "LTXV", "AnimateDiff"])
def test_the_usual_overlap_leaves_new_latents_in_clips_as_short_as_the_latent_that_they_begin_with(
    name: str, nodes: dict[str, Any]
) -> None:
    conds, latent = prompts(name), {"samples": torch.zeros(FAMILIES[name].with_length(4))}
    video, _, report = nodes["VidRDManyClips"](
        model=model_of(name), clip=None, positive=conds[0], negative=conds[2], prior=latent, num_clips=3, seed=1,
        cfg=run.CFG, steps=STEPS, sampler_name="euler", scheduler="simple", preset="auto",
    )  # fmt: skip
    added = {samples_of(video).shape[2 if FAMILIES[name].time else 0] - 4}
    assert added <= {2, 4}, report  # 1 or 2 by each of the two clips that follow


@pytest.mark.parametrize("name", ["Wan 2.2 5B", "LTXV", "Cosmos Predict2"])
def test_an_image_given_with_a_noise_mask_begins_a_first_clip(name: str, chain: Chain) -> None:
    """The LATENT of ComfyUI's image-to-video nodes for models that take their image so."""
    family = FAMILIES[name]
    image = torch.randn(family.with_length(1), generator=torch.Generator().manual_seed(4))
    samples, mask = samples_of(empty_latent(name)).clone(), torch.ones((1, 1, *family.shape[2:]))
    samples[:, :, :1], mask[:, :, 0] = image, 0
    latent = {"samples": samples, "noise_mask": mask}
    first = chain.first(name, latent=latent)
    assert run.same(first, run.ksampler(model_of(name), prompts(name)[::2], latent))
    assert apart(frames(name, samples_of(first), 0, 1), image) <= EXACT
    clip = chain.next(name, first)[1]
    assert apart(overlap_in(name, clip), tail_of(name, first)) <= HALF


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_video_goes_on_as_if_it_had_never_been_saved(name: str, chain: Chain, nodes: dict[str, Any]) -> None:
    prior, _ = chain.prior(name)
    file = "family " + name.replace(" ", "_").replace(".", "_")
    nodes["VidRDSaveState"](latent=prior, name=file)
    (loaded,) = nodes["VidRDLoadState"](name=f"{file}.safetensors")
    for one, other in zip(chain.next(name, prior)[:2], chain.next(name, loaded)[:2], strict=True):
        assert run.same(one, other)


def one_sentence(told: pytest.ExceptionInfo[ValueError]) -> str:
    """The message of an error, which has to be one sentence that says what to do."""
    text = str(told.value)
    assert "\n" not in text and len(text) < 400, text
    assert ". " not in text.replace("Wan 2.", "").rstrip("."), text
    return text


def unchanged(latent: dict[str, Any], before: dict[str, Any]) -> bool:
    return run.same(latent, before) and latent[KEY] is before[KEY]


@pytest.mark.parametrize(
    ("made_by", "model", "words"),
    [
        ("Wan 2.1 t2v", "HunyuanVideo", "made with Wan, whose latents"),
        ("Wan 2.1 t2v", "Wan 2.2 5B", "channels|format|another"),
        ("LTXV", "Wan 2.1 t2v", "channels|format|another"),
        ("AnimateDiff", "Wan 2.1 t2v", "latents"),
        ("Wan 2.1 t2v", "SVD", "latents"),
    ],
)
def test_another_model_family_in_the_middle_of_a_chain_is_refused(
    made_by: str, model: str, words: str, chain: Chain
) -> None:
    prior = chain.first(made_by)
    kept = dict(prior)
    for attempt in (chain.next, chain.prepare):
        with pytest.raises(ValueError, match=words) as told:
            attempt(model, prior)
        one_sentence(told)
        assert unchanged(prior, kept)
    assert samples_of(chain.next(made_by, prior)[1]).shape == FAMILIES[made_by].shape


def test_a_model_of_the_same_latents_may_go_on_and_is_named(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    prior, _ = chain.prior("SVD")
    with caplog.at_level("INFO"):
        clip = chain.next("AnimateDiff", prior, steps=STEPS, sampler_name="euler", scheduler="simple")[1]
    assert "made with SVD_img2vid and is continued with BaseModel" in caplog.text
    assert apart(overlap_in("AnimateDiff", clip), tail_of("SVD", prior)) <= 0.01


def test_another_resolution_in_the_middle_of_a_chain_is_refused(chain: Chain) -> None:
    name = "Wan 2.1 t2v"
    prior = chain.first(name)
    patched, _, latent, session, _ = chain.prepare(name, prior)
    wider = {"samples": torch.zeros(1, 16, 5, 8, 12)}
    with pytest.raises(ValueError, match="size|resolution|wide") as told:
        run.ksampler(patched, prompts(name)[::2], wider)
    one_sentence(told)
    longer = {"samples": torch.zeros(1, 16, 7, 8, 8)}
    with pytest.raises(ValueError, match="latents") as told:
        run.ksampler(patched, prompts(name)[::2], longer)
    one_sentence(told)
    clip = chain.join(run.ksampler(patched, prompts(name)[1:], latent), session)[1]  # the session is still good
    assert apart(overlap_in(name, clip), tail_of(name, prior)) <= HALF


def image_models() -> dict[str, Any]:
    """Stable Diffusion without AnimateDiff, and its empty latent."""
    plain = model_of("AnimateDiff").clone()
    plain.remove_additional_models("ADE")
    plain.remove_injections("ADE")
    return {"Stable Diffusion": (plain, {"samples": torch.zeros(4, 4, 8, 8)})}


@pytest.mark.parametrize("name", image_models())
def test_image_models_are_refused_in_one_sentence(name: str, chain: Chain) -> None:
    model, latent = image_models()[name]
    for attempt in (
        lambda: chain.first("AnimateDiff", model=model, latent=latent),
        lambda: chain.next("AnimateDiff", latent, model=model),
        lambda: chain.prepare("AnimateDiff", latent, model=model),
    ):
        with pytest.raises(ValueError, match="image") as told:
            attempt()
        assert "video" in one_sentence(told)


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].frames > 1])
def test_reversed_order_is_refused_where_a_latent_holds_several_frames(name: str, chain: Chain) -> None:
    prior = chain.first(name)
    for chosen in ({"order": "reverse"}, {"preset": "paper"}):
        with pytest.raises(ValueError, match="forward") as told:
            chain.next(name, prior, **chosen)
        one_sentence(told)


def test_join_without_sampling_or_with_another_clip_is_refused_and_a_changed_clip_noticed(
    chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    name = "Wan 2.1 t2v"
    prior = chain.first(name)
    patched, _, latent, session, _ = chain.prepare(name, prior)
    with pytest.raises(ValueError, match="sampled") as told:
        chain.join(latent, session)
    one_sentence(told)
    made = run.ksampler(patched, prompts(name)[1:], latent)
    with pytest.raises(ValueError, match="LATENT") as told:
        chain.join({"samples": made["samples"][:, :, 1:]}, session)
    one_sentence(told)
    with caplog.at_level("WARNING"):
        video = chain.join({"samples": made["samples"] * 2}, session)[0]
    assert KEY not in video and "changed after it was sampled" in caplog.text
    assert apart(overlap_in(name, chain.join(made, session)[1]), tail_of(name, prior)) <= HALF


def test_a_sampler_that_goes_past_comfyuis_is_noticed(chain: Chain) -> None:
    """A wrapper pack with its own loop: nothing was recorded, so nothing can be continued."""
    name = "Wan 2.1 t2v"
    _, _, latent, session, _ = chain.prepare(name, chain.first(name))
    with pytest.raises(ValueError, match="Prepare") as told:
        chain.join({"samples": torch.randn(FAMILIES[name].shape)}, session)
    one_sentence(told)


@pytest.mark.parametrize("name", NAMES)
def test_the_familys_own_defaults_continue_a_video(name: str, chain: Chain) -> None:
    """Preset auto: a clip of a length at which its overlap fits, and what is said about it."""
    family = FAMILIES[name]
    length = 9 if family.time else 16
    latent = empty_latent(name, length) if not family.audio else empty_latent(name)
    first = chain.first(name, latent=latent)
    video, clip, report = chain.next(name, first, preset="auto")
    added = samples_of(video).shape[family.time] - samples_of(first).shape[family.time]
    assert 0 < added < samples_of(clip).shape[family.time]
    assert f"{family.frames * added} frames" in report or f"adds {family.frames * added}" in report
