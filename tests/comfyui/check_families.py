"""Reuse with every family of video models that ComfyUI loads, on tiny random models of their real classes."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
import family_runs as run
import pytest
import tiny_models
import torch
from family_runs import Chain, apart, frames, model_of, new_in, overlap_in, overlap_of, prompts, samples_of, tail_of
from family_table import Cells
from tiny_models import FAMILIES, empty_latent

NAMES = tuple(FAMILIES)
WHOLE_LIST = "Wan 2.1 t2v"  # the family that every sampler is tried with
TEMPORAL = tuple(name for name in NAMES if FAMILIES[name].frames > 1)
SAMPLERS = ("euler", "uni_pc", "lcm", "dpmpp_2m", "res_multistep", "er_sde", "sa_solver", "heun")
KEY, SEED, STEPS = "vidrd_trajectory", run.SEED, run.STEPS
EXACT, HALF = 1e-5, 2e-3  # relative to the largest value: kept in float32, in float16


@pytest.fixture(scope="module")
def chain(nodes: dict[str, Any]) -> Chain:
    return Chain(nodes)


@pytest.fixture(scope="module")
def cells() -> Cells:
    return Cells.of_this_comfyui()


def level(model: Any, sigma: float) -> float:
    """The share of noise in what the network sees, by the formulas of the model classes."""
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        return sigma
    spread = sampling.sigma_data if isinstance(sampling, comfy.model_sampling.EDM) else 1.0
    return sigma / (sigma + spread)


def sd_level(progress: float) -> float:
    """The level of Stable Diffusion after a share of its 1000 timesteps, as ComfyUI has them; 0 after the last."""
    left = 1000 * (1 - progress)
    sigma = float(comfy.model_sampling.ModelSamplingDiscrete().sigma(torch.tensor(max(left, 1.0) - 1)))
    return min(left, 1.0) * sigma / (1 + sigma)


@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
@pytest.mark.parametrize("name", NAMES)
def test_a_first_clip_is_what_the_stock_ksampler_makes(name: str, sampler: str, chain: Chain) -> None:
    ours = chain.prior(name)[0] if sampler == "euler" else chain.first(name, sampler_name=sampler)
    stock = run.ksampler(model_of(name), prompts(name)[::2], empty_latent(name), sampler_name=sampler)
    assert run.same(ours, stock)


def keep(monkeypatch: pytest.MonkeyPatch, part: Any, dtype: torch.dtype) -> None:
    """Record in this precision."""
    plan = part("nodes.steering").ClipPlan
    usual = plan.__init__
    monkeypatch.setattr(plan, "__init__", lambda self, *args, **kw: usual(self, *args, **{**kw, "dtype": dtype}))


@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float32, EXACT), (torch.float16, HALF)], ids=["float32", "float16"]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_next_clips_overlap_is_the_priors_tail_with_every_sampler(
    name: str, dtype: torch.dtype, allowed: float, chain: Chain, cells: Cells, part: Any, monkeypatch: Any
) -> None:
    if dtype == torch.float32:
        keep(monkeypatch, part, dtype)
    off = {}
    for sampler in SAMPLERS:
        prior = chain.first(name, sampler_name=sampler)
        kept = {state.dtype for state in prior[KEY].trajectory.states}
        assert kept == {dtype}
        off[sampler] = apart(overlap_in(name, chain.next(name, prior)[1]), tail_of(name, prior))
    assert max(off.values()) <= allowed, off
    if name != WHOLE_LIST:
        cells.add(name, "samplers", ", ".join(off))


@pytest.fixture(scope="module")
def replayed() -> list[str]:
    """Samplers whose overlap was the prior's tail."""
    return []


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_of_comfyui_is_recorded_without_a_trace_and_replayed(
    sampler: str, chain: Chain, nodes: dict[str, Any], replayed: list[str]
) -> None:
    name = WHOLE_LIST
    offered = next(
        i for i in nodes["VidRDSampleFirstClip"].node.define_schema().inputs if i.id == "sampler_name"
    ).options
    if sampler == "dpm_adaptive":
        with pytest.raises(ValueError, match="dpm_adaptive"):
            chain.first(name, sampler_name=sampler)
        assert sampler not in offered
        return
    assert sampler in offered
    prior = chain.first(name, sampler_name=sampler)
    stock = run.ksampler(model_of(name), prompts(name)[::2], empty_latent(name), sampler_name=sampler)
    assert run.same(prior, stock)
    assert apart(overlap_in(name, chain.next(name, prior)[1]), tail_of(name, prior)) <= HALF
    replayed.append(sampler)


def test_all_samplers_but_one_can_be_replayed(cells: Cells, replayed: list[str]) -> None:
    if not replayed:
        pytest.skip("none was tried")
    assert set(comfy.samplers.SAMPLER_NAMES) - set(replayed) == {"dpm_adaptive"}
    cells.add(WHOLE_LIST, "samplers", f"all {len(replayed)} of ComfyUI but dpm_adaptive")


@pytest.mark.parametrize("name", NAMES)
def test_an_overlap_that_is_not_steered_departs_from_the_prior(name: str, chain: Chain) -> None:
    prior, _ = chain.prior(name)
    clip = chain.next(name, prior, guidance_beta=0.0)[1]
    assert apart(overlap_in(name, clip), tail_of(name, prior)) > 20 * HALF


@pytest.mark.parametrize("name", NAMES)
def test_clips_join_after_their_lead_in_and_overlap(name: str, chain: Chain, cells: Cells) -> None:
    """Formula of the length, no latent of the prior changed, none of a clip's first latents inside the video."""
    family, overlap = FAMILIES[name], overlap_of(name)
    video, _ = chain.prior(name)
    for index in range(1, 3):
        before = samples_of(video)
        video, clip, report = chain.next(name, video, seed=SEED + index)
        after, one = samples_of(video), samples_of(clip)
        added = family.length - family.lead_in - overlap
        assert one.shape[family.time] == family.length
        assert after.shape[family.time] == family.length + index * added
        assert torch.equal(frames(name, after, 0, before.shape[family.time]), before)
        assert torch.equal(frames(name, after, before.shape[family.time]), frames(name, one, -added))
        if family.frames > 1:
            assert f"{family.frames * overlap} frames ({overlap} latents)" in report
        assert f"{family.frames * added}" in report
    lead = f"{family.lead_in} lead-in, " if family.lead_in else ""
    model = model_of(name)
    kind = " and ".join([type(model.model).__name__, *(f"additional model {key}" for key in model.additional_models)])
    cells.add(name, "class", f"{kind}, {family.frames} per latent")
    new = f"{added} new ({family.frames * added} frames)"
    cells.add(name, "chains", f"of {family.length} latents {lead}{overlap} repeated, {new}")


@pytest.mark.parametrize("name", NAMES)
def test_new_frames_follow_what_the_prior_shows(name: str, chain: Chain, part: Any, monkeypatch: Any) -> None:
    """Two priors of equal noise and other prompts, which a clip without steering cannot tell apart.

    That they differ is no matter of the precision that states are kept in: it has a tenth of the effect at most.
    """

    def new_frames(prior: dict[str, Any], beta: float) -> torch.Tensor:
        return new_in(name, chain.next(name, prior, guidance_beta=beta)[1])

    priors = [chain.prior(name)[0], chain.first(name, prompt=1)]
    torch.testing.assert_close(*(new_frames(prior, 0.0) for prior in priors), rtol=0, atol=0)
    one, other = (new_frames(prior, 1.0) for prior in priors)
    keep(monkeypatch, part, torch.float32)
    precise = new_frames(chain.first(name), 1.0)
    assert apart(one, other) > 10 * apart(one, precise) and apart(one, other) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_noise_enters_as_the_models_own_sampling_says(name: str, chain: Chain) -> None:
    """What the first call of both clips' samplers holds, against the noise that the trajectory keeps."""
    sampling = model_of(name).get_model_object("model_sampling")
    prior, calls = chain.prior(name)
    with run.sampler_calls() as later:
        clip = chain.next(name, prior)[1]
    for made, held, sigma in ((prior, calls.states[0], calls.sigmas[0]), (clip, later.states[0], later.sigmas[0])):
        noise = made[KEY].trajectory.noise
        assert 0.9 < float(noise.std()) < 1.1
        expected = sampling.noise_scaling(torch.tensor(sigma), noise.clone(), torch.zeros_like(noise), True)
        assert apart(on_the_wire(name, expected), video_in(name, held)) <= EXACT
    told = prior[KEY].trajectory.noise
    if FAMILIES[name].time:
        assert torch.equal(told, noise_of_seed(name))


def on_the_wire(name: str, video: torch.Tensor) -> torch.Tensor:
    """Of the pack's own ``[B, C, T, h, w]`` what the family has on its wire."""
    return video if FAMILIES[name].time else video[0].movedim(1, 0)


def video_in(name: str, x: torch.Tensor) -> torch.Tensor:
    """The video in a sampler's x, which may hold audio too."""
    shape = FAMILIES[name].shape
    count = torch.Size(shape).numel()
    return x.flatten()[:count].reshape(shape) if FAMILIES[name].audio else x


def noise_of_seed(name: str) -> torch.Tensor:
    import comfy.sample

    return samples_of({"samples": comfy.sample.prepare_noise(empty_latent(name)["samples"], SEED)})


def states_and_schedule(name: str, chain: Chain, **changes: Any) -> tuple[dict[str, Any], run.Calls]:
    """A first clip and what its sampler held."""
    with run.sampler_calls() as calls:
        prior = chain.first(name, **changes)
    return prior, calls


def between(name: str, calls: run.Calls, end: torch.Tensor, sigma: float) -> torch.Tensor:
    """The state at a level, on the straight line between the two around it that Euler's method walks."""
    levels = [*calls.sigmas, 0.0]
    states = [*(video_in(name, state) for state in calls.states), end]
    above = max(n for n, one in enumerate(levels) if one >= sigma)
    if levels[above] == sigma or above + 1 == len(levels):
        return states[above]
    share = (levels[above] - sigma) / (levels[above] - levels[above + 1])
    return torch.lerp(states[above], states[above + 1], share)


def shown_sigma(model: Any, sigma: float, cleaner: float) -> float:
    """Which level a cleaner overlap shows: the share ``cleaner`` of Stable Diffusion's remaining steps further on."""
    from scipy.optimize import brentq

    here = level(model, sigma)
    done = 0.0 if here >= sd_level(0) else brentq(lambda p: sd_level(p) - here, 0, 1)
    there = sd_level(done + cleaner * (1 - done))
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, comfy.model_sampling.CONST):
        return min(sigma, there)
    spread = sampling.sigma_data if isinstance(sampling, comfy.model_sampling.EDM) else 1.0
    return min(sigma, spread * there / (1 - there))


@pytest.mark.parametrize("name", NAMES)
def test_a_cleaner_overlap_is_the_priors_state_at_a_lower_level(name: str, chain: Chain) -> None:
    """As the network sees it, at each call, in both conditionings."""
    model, overlap = model_of(name), overlap_of(name)
    sampling = model.get_model_object("model_sampling")
    prior, calls = chain.prior(name)
    end = model.model.process_latent_in(samples_of(prior))
    with run.network_inputs(model) as seen:
        chain.next(name, prior, guidance_lead=0.6)
    at, channels = FAMILIES[name].lead_in, samples_of(prior).shape[1]
    assert len(seen) == STEPS
    for sigma, one in zip(calls.sigmas, seen, strict=True):
        lower = shown_sigma(model, sigma, 0.6)
        assert lower < sigma
        state = frames(name, between(name, calls, end, lower), -overlap)
        expected = sampling.calculate_input(torch.tensor([lower]), state)
        for row in (0, 1):
            shown = run.seen_frames(name, one, at, at + overlap, row)[:channels]
            wanted = expected[0] if FAMILIES[name].time else expected.movedim(0, 1)
            assert apart(shown, wanted) <= 4 * HALF, (sigma, lower)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_cleaner_overlap_shows_the_same_level_whatever_the_shift(shift: float, chain: Chain) -> None:
    """Of a call at one level; the steps of the schedule play no part."""
    name, cleaner = "Wan 2.1 t2v", 0.6
    model, at, overlap = run.with_shift(model_of(name), shift), 1, overlap_of(name)
    prior, calls = states_and_schedule(name, chain, model=model)
    end = model.model.process_latent_in(samples_of(prior))
    with run.network_inputs(model) as seen:
        chain.next(name, prior, model=model, guidance_lead=cleaner)
    for sigma, one in zip(calls.sigmas, seen, strict=True):
        lower = shown_sigma(model_of(name), sigma, cleaner)  # of the model at its own shift, 8
        state = frames(name, between(name, calls, end, lower), -overlap)
        assert apart(run.seen_frames(name, one, at, at + overlap), state[0]) <= 4 * HALF


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0, None], ids=["shift 1", "shift 3", "shift 8", "Stable Diffusion"])
def test_beta_ends_guidance_at_the_same_noise_level_whatever_the_schedule(shift: float | None, chain: Chain) -> None:
    """0.4 of Stable Diffusion's steps: an overlap steered no longer departs from the prior's states."""
    name, steps = ("AnimateDiff" if shift is None else "Wan 2.1 t2v"), 9
    model = model_of(name) if shift is None else run.with_shift(model_of(name), shift)
    prior, before = states_and_schedule(name, chain, model=model, steps=steps)
    with run.sampler_calls() as after:
        chain.next(name, prior, model=model, guidance_beta=0.4)
    at, overlap = FAMILIES[name].lead_in, overlap_of(name)
    followed = [
        apart(frames(name, new, at, at + overlap), frames(name, old, -overlap)) <= HALF
        for new, old in zip(after.states, before.states, strict=True)
    ]
    levels = [level(model, sigma) for sigma in before.sigmas]
    assert min(abs(one - sd_level(0.4)) for one in levels) > 1e-3
    assert followed == [one > sd_level(0.4) for one in levels]
    assert 0 < sum(followed) < steps


@pytest.mark.parametrize("name", ["SVD", "AnimateDiff"])
def test_on_euler_replay_is_what_overwriting_in_place_makes(name: str, chain: Chain) -> None:
    """DSG as the paper writes it: beta 0.4, linear stages, reversed order, x overwritten before each guided step."""
    overlap, steps = overlap_of(name), 9
    prior, calls = states_and_schedule(name, chain, steps=steps)
    paper = {"guidance_beta": 0.4, "stages": "linear", "order": "reverse", "trim_frames": 0}
    with run.sampler_calls() as ours:
        clip = chain.next(name, prior, **paper)[1]
    reference = overwritten(name, calls, clip[KEY].trajectory.noise, overlap, 0.4)
    for mine, theirs in zip(ours.predictions, reference, strict=True):
        free = slice(overlap, None)
        assert apart(mine[free], theirs[free]) <= 2 * HALF
    assert apart(ours.states[-1], calls.states[-1]) > 20 * HALF


def overwritten(name: str, calls: run.Calls, noise: torch.Tensor, overlap: int, beta: float) -> list[torch.Tensor]:
    """The denoised predictions of an Euler run in which DSG overwrites x in place."""
    model, conds = model_of(name), prompts(name)
    predictions: list[torch.Tensor] = []
    levels = [level(model, sigma) for sigma in calls.sigmas]

    def euler(inner: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any], **_: Any) -> torch.Tensor:
        for step, (here, there) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            for frame in range(overlap):
                if levels[step] > sd_level(beta * (overlap - frame) / overlap):
                    x[frame] = calls.states[step][-1 - frame]
            denoised = inner(x, here * x.new_ones(len(x)), **extra_args)
            predictions.append(denoised.clone())
            x = x + (x - denoised) / here * (there - here)
        return x

    import comfy.sample

    start = on_the_wire(name, noise).clone()
    sigmas = torch.tensor([*calls.sigmas, 0.0])
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model, start, run.CFG, comfy.samplers.KSAMPLER(euler), sigmas, conds[1], conds[2],
            torch.zeros_like(start), disable_pbar=True, seed=0,
        )  # fmt: skip
    return predictions


@pytest.mark.parametrize("name", ["SVD", "AnimateDiff"])
def test_an_overlap_as_long_as_the_clip_makes_the_clip_again(name: str, chain: Chain) -> None:
    prior, _ = chain.prior(name)
    whole = {"overlap_frames": FAMILIES[name].length, "trim_frames": 0, "prompt": 0}
    again = chain.next(name, prior, **whole)[1]
    assert apart(samples_of(again), samples_of(prior)) <= HALF


def timesteps_of_frames(name: str, seen: run.Seen) -> torch.Tensor | None:
    """``[rows, T]``: what the network was told of each frame; None where it was told one timestep."""
    told = seen.timestep[0] if isinstance(seen.timestep, (list, tuple)) else seen.timestep
    if told.ndim < 2 or told[0].numel() == 1:
        return None
    length = FAMILIES[name].length
    tokens = told.reshape(len(told), length, -1)
    assert torch.equal(tokens, tokens[:, :, :1].expand_as(tokens))  # the same over a frame
    return tokens[:, :, 0]


@pytest.mark.parametrize("name", NAMES)
def test_networks_with_a_timestep_per_frame_are_told_that_the_overlap_is_cleaner(
    name: str, chain: Chain, cells: Cells
) -> None:
    model, family, overlap = model_of(name), FAMILIES[name], overlap_of(name)
    sampling, at = model.get_model_object("model_sampling"), FAMILIES[name].lead_in
    prior, calls = chain.prior(name)
    told = {}
    for choice in ("off", "auto", "on"):
        if choice == "on" and not family.told and type(model.model.diffusion_model).__name__ != "WanModel":
            with pytest.raises(ValueError, match="takes one timestep for all frames"):
                chain.next(name, prior, guidance_lead=0.6, tell_levels=choice)
            told[choice] = [None]
            continue
        with run.network_inputs(model) as seen:
            chain.next(name, prior, guidance_lead=0.6, tell_levels=choice)
        told[choice] = [timesteps_of_frames(name, one) for one in seen]
        for sigma, frame_times in zip(calls.sigmas, told[choice], strict=True):
            if frame_times is None:
                continue
            lower = shown_sigma(model, sigma, 0.6)
            expected = torch.full((family.length,), float(sampling.timestep(torch.tensor(sigma))))
            expected[at : at + overlap] = float(sampling.timestep(torch.tensor(lower)))
            assert len(frame_times) == 2  # cond and uncond
            torch.testing.assert_close(frame_times, expected.expand_as(frame_times), rtol=1e-3, atol=1e-4)
    assert all(one is None for one in told["off"])
    by_default, asked = (all(one is not None for one in told[choice]) for choice in ("auto", "on"))
    assert by_default == bool(family.told)
    cells.add(name, "told", f"yes, per {family.told}" if by_default else "if asked, per frame" if asked else "no")


def with_image(name: str) -> dict[str, Any]:
    """Conditionings of an image-to-video node for a first clip."""
    image = tiny_models.image_conditioning(name)
    return {
        "positive": tiny_models.conditioning(name, 1, **image),
        "negative": tiny_models.conditioning(name, 3, **image),
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_overlap_takes_the_images_place_in_the_next_clips_conditioning(
    name: str, chain: Chain, cells: Cells
) -> None:
    """Concatenated latents and their mask, as the network sees them; the user's image stays in latent 0."""
    family, model, overlap, at = FAMILIES[name], model_of(name), overlap_of(name), FAMILIES[name].lead_in
    if not family.image:
        cells.add(name, "image", "none")
        return
    conds = with_image(name)
    with run.network_inputs(model) as before:
        prior = chain.first(name, **conds)
    with run.network_inputs(model) as after:
        clip = chain.next(name, prior, **conds)[1]
    assert apart(overlap_in(name, clip), tail_of(name, prior)) <= HALF
    channels = samples_of(prior).shape[1]
    tail = tail_of(name, prior)
    for row in (0, 1):
        old, new = (run.seen_frames(name, one[0], 0, family.length, row)[channels:] for one in (before, after))
        if not family.time:
            first = tail[:1].movedim(0, 1).expand_as(new)
            torch.testing.assert_close(new, first, rtol=1e-3, atol=1e-3)
            continue
        masks = 4 if name.startswith("Wan") else 1
        (image, mask), (old_image, old_mask) = (
            (one[masks:], one[:masks]) if name.startswith("Wan") else (one[:-masks], one[-masks:]) for one in (new, old)
        )
        given = model.model.process_latent_in(tail)[0]
        assert apart(image[:, at : at + overlap], given) <= HALF
        assert bool((mask[:, at : at + overlap] == 1).all()) and bool((mask[:, at + overlap :] == 0).all())
        for held in (slice(0, at), slice(at + overlap, None)):
            assert torch.equal(image[:, held], old_image[:, held]) and torch.equal(mask[:, held], old_mask[:, held])
        assert bool((mask[:, 0] == 1).all())
    where = "the overlap in the concat latents, mask 0, the image still in latent 0"
    cells.add(name, "image", where if family.time else "the overlap's first frame as the image")


@pytest.mark.parametrize("name", NAMES)
def test_two_experts_make_one_chain(name: str, chain: Chain, cells: Cells) -> None:
    """The split 2 of 4, recorded without a trace and replayed by both."""
    two = {"model_low": model_of(name, 1), "switch_at_step": 2}
    prior = chain.first(name, **two)
    if not FAMILIES[name].audio:  # whose latents a KSamplerAdvanced without noise cannot go on with in 0.17
        stock = run.two_ksamplers(model_of(name), model_of(name, 1), prompts(name)[::2], empty_latent(name), 2)
        assert apart(samples_of(prior), samples_of(stock)) <= EXACT
    assert apart(samples_of(prior), samples_of(chain.prior(name)[0])) > 20 * HALF
    clip = chain.next(name, prior, **two)[1]
    assert apart(overlap_in(name, clip), tail_of(name, prior)) <= HALF
    cells.add(name, "experts", "one chain over both")


@pytest.mark.parametrize(("sampler", "split", "steps"), [("uni_pc", 2, 4), ("lcm", 2, 4), ("euler", 10, 20)])
def test_two_experts_with_the_samplers_and_splits_of_wan_2_2(
    sampler: str, split: int, steps: int, chain: Chain
) -> None:
    name = "Wan 2.2 14B i2v"
    chosen = {"sampler_name": sampler, "steps": steps, **with_image(name)}
    two = {"model_low": model_of(name, 1), "switch_at_step": split}
    prior = chain.first(name, **chosen, **two)
    stock = run.two_ksamplers(
        model_of(name), model_of(name, 1), (chosen["positive"], chosen["negative"]), empty_latent(name), split,
        sampler_name=sampler, steps=steps,
    )  # fmt: skip
    assert apart(samples_of(prior), samples_of(stock)) <= EXACT
    for low in ({"model_low": model_of(name, 1)}, two):  # the split is the prior's
        clip = chain.next(name, prior, **with_image(name), **low)[1]
        assert apart(overlap_in(name, clip), tail_of(name, prior)) <= HALF


DECODED = [name for name in NAMES if name in tiny_models.VAES]


def decoded(vae: Any, samples: torch.Tensor) -> torch.Tensor:
    import nodes as stock

    return run.call(stock.VAEDecode, vae=vae, samples={"samples": samples})[0]


@pytest.mark.parametrize("name", DECODED)
def test_which_decoded_frames_an_appended_clip_changes(name: str, chain: Chain, cells: Cells) -> None:
    """Of a video of 9 latents that grows by 2, by ComfyUI's VAE Decode with a tiny VAE of the family's class."""
    family, vae = FAMILIES[name], tiny_models.tiny_vae(name)
    shape = (*family.with_length(11)[:-2], 2, 2) if family.time else (11, *family.shape[1:])
    longer = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = (decoded(vae, frames(name, longer, 0, length)) for length in (9, 11))
    assert len(after) == len(before) + 2 * family.frames and float(before.std()) > 0.05
    assert len(before) == (9 if family.frames == 1 else 1 + 8 * family.frames)
    changed = [n for n, (a, b) in enumerate(zip(before, after, strict=False)) if apart(a, b) > 1e-4]
    if not changed:
        told = "earlier frames stay as they are"
    elif len(changed) == len(before):
        told = "every frame changes a little"
    else:
        told = f"the last frames change once more ({len(before) - changed[0]} of this decoder)"
    cells.add(name, "decode", told)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DECODED])
def test_other_decoders_were_not_tried(name: str, cells: Cells) -> None:
    cells.add(name, "decode", "not tried")


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].audio])
def test_sound_is_replayed_and_joined_with_its_frames(name: str, chain: Chain) -> None:
    """One latent of sound per frame here, so that both are as long as each other in every video."""
    family = FAMILIES[name]
    video, _ = chain.prior(name)
    for index in range(1, 3):
        before = run.audio_of(video)
        video, clip, _ = chain.next(name, video, seed=SEED + index)
        after, one = run.audio_of(video), run.audio_of(clip)
        length = samples_of(video).shape[2]
        assert after.shape[2] == 1 + (length - 1) * family.frames
        assert torch.equal(after[:, :, : before.shape[2]], before)
        added = after.shape[2] - before.shape[2]
        repeated = one.shape[2] - added
        assert repeated > 0 and torch.equal(after[:, :, -added:], one[:, :, -added:])
        assert apart(one[:, :, :repeated], before[:, :, -repeated:]) <= HALF


@pytest.mark.parametrize("name", ["Wan 2.1 t2v", "Wan 2.2 5B"])
def test_appending_a_clip_changes_no_decoded_frame_of_a_wan_video(name: str, chain: Chain) -> None:
    vae = tiny_models.tiny_vae(name)
    prior, _ = chain.prior(name)
    video = chain.next(name, prior)[0]
    longer = chain.next(name, video, seed=SEED + 2)[0]
    one, two, three = (decoded(vae, samples_of(latent)) for latent in (prior, video, longer))
    assert torch.equal(two[: len(one)], one) and torch.equal(three[: len(two)], two)
    assert (len(one), len(two), len(three)) == (17, 25, 33)


def test_the_table_in_the_docs_has_no_cell_without_a_check(cells: Cells, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("keyword"):
        pytest.skip("some of the checks were not asked for")
    cells.finish(NAMES)
