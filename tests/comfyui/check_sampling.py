"""Chains of clips through ComfyUI's own samplers."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import comfy.samplers
import pytest
import torch

KEY = "vidrd_trajectory"


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def ksampler(model: Any, conds: Any, latent: Any, **changes: Any) -> Any:
    import nodes as stock

    given = {
        "seed": 1,
        "steps": 5,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        **changes,
    }
    with torch.inference_mode():
        return stock.KSampler().sample(model, positive=conds[0], negative=conds[1], latent_image=latent, **given)[0]


def test_first_clip_is_what_the_stock_ksampler_makes(first: Any, model: Any, conds: Any, nodes: Any) -> None:
    empty = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]
    for sampler in ("euler", "dpmpp_2m"):
        ours = first(sampler_name=sampler, scheduler="normal")["samples"]
        torch.testing.assert_close(ours, ksampler(model, conds, empty, sampler_name=sampler)["samples"])


def test_samples_through_sampler_custom_advanced(model: Any, conds: Any, nodes: Any) -> None:
    import comfy_extras.nodes_custom_sampler as custom

    latent = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(3.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 3)
    run = custom.SamplerCustomAdvanced
    call = getattr(run, "sample", None)
    with torch.inference_mode():
        given = (custom.Noise_RandomNoise(1), guider, comfy.samplers.sampler_object("dpmpp_2m"), sigmas, latent)
        out = call(run(), *given)[0] if call and not hasattr(run, "execute") else run.execute(*given).args[0]
    assert out["samples"].shape == (1, 4, 8, 8, 8) and torch.isfinite(out["samples"]).all()


@pytest.mark.parametrize(
    "chosen",
    [
        {"overlap_frames": 3, "noise_alpha": 2.0, "guidance_beta": 0.6},
        {"overlap_frames": 3, "guidance_beta": 1.0, "order": "forward", "stages": "uniform", "guidance_lead": 0.8},
    ],
    ids=["reverse", "cleaner overlap"],
)
def test_chain_agrees_with_the_pipeline_outside_comfyui(
    chosen: dict[str, Any], first: Any, following: Any, pipe: Any, part: Any, conds: Any
) -> None:
    """The same noise, DDIM, the same timesteps; only the last step differs.

    The released DDIM ends at the alphas of timestep 0 (``set_alpha_to_one=False``), ComfyUI at sigma 0. So the states
    before the last step are compared, where both conventions agree.
    """
    from vidrd_core.reuse.settings import ReuseSettings

    reuse = ReuseSettings.from_json(chosen)
    one = first(seed=7, steps=10, cfg=3.0)
    _, two = following(one, seed=8, **chosen)
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def keep(_: Any, step: int, __: Any, values: dict[str, Any]) -> None:
        seen[values["clip_index"], step] = values["latents"].clone()

    pipe("the red ball rolls", negative_prompt="watermark", num_clips=2, num_frames=8, height=64, width=64,
         num_inference_steps=10, guidance_scale=3.0, reuse=reuse, seed=7, clip_seeds=[7, 8], output_type="latent",
         callback_on_step_end=keep)  # fmt: skip
    for index, latent in enumerate((one, two)):
        trajectory = latent[KEY].trajectory
        for step in range(1, 10):
            sigma = trajectory.context["sigmas"][step]
            ours = trajectory.states[step] / (1 + sigma**2) ** 0.5
            theirs = seen[index, step - 1]
            free = slice(3 if index else 0, None)  # the overlap is compared before guidance there, after it here
            assert relative(ours[:, :, free], theirs[:, :, free]) < 1e-4, (index, step)


def test_steps_that_do_not_divide_1000_are_the_pipelines_with_noisier_ones_before_them(
    model: Any, pipe: Any, part: Any, first: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sampling = model.get_model_object("model_sampling")
    made = {}
    for steps in (10, 15, 20, 25, 30, 50):
        sigmas = part("nodes.samplers").noise_levels(model, steps, "ddim", "ddim_uniform")
        pipe.scheduler.set_timesteps(steps)
        expected = sampling.sigma(pipe.scheduler.timesteps)
        torch.testing.assert_close(sigmas[-steps - 1 : -1], expected.float(), rtol=1e-4, atol=1e-5)
        assert bool((sigmas[:-1].diff() < 0).all())
        made[steps] = len(sigmas) - 1
    assert made == {10: 10, 15: 16, 20: 20, 25: 25, 30: 31, 50: 50}
    with caplog.at_level("INFO"):
        assert first(steps=15)[KEY].trajectory.num_steps == 16
        assert "ddim_uniform makes 16 steps of 15" in caplog.text
        caplog.clear()
        first(steps=10)
        assert "steps of" not in caplog.text


@pytest.mark.parametrize("scheduler", ["ddim_uniform", "normal"])
def test_denoise_1_makes_the_clip_of_an_empty_latent_whatever_the_latent_holds(scheduler: str, first: Any) -> None:
    held = {"samples": 2 + torch.randn((1, 4, 8, 8, 8), generator=torch.Generator().manual_seed(0))}
    ours, empty = first(latent=held, scheduler=scheduler), first(scheduler=scheduler)
    torch.testing.assert_close(ours["samples"], empty["samples"], rtol=0, atol=0)
    trajectory = ours[KEY].trajectory
    start = trajectory.noise * (1 + trajectory.context["sigmas"][0] ** 2) ** 0.5
    torch.testing.assert_close(trajectory.states[0], start, rtol=1e-4, atol=1e-4)


SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if name != "dpm_adaptive"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_steered_clip_repeats_the_priors_frames_and_its_new_frames_differ_from_an_unsteered_clips(
    sampler: str, first: Any, following: Any, conds: Any
) -> None:
    """The prior follows another prompt, so that an unsteered clip departs from it although it has the same noise."""
    prior = first(sampler_name=sampler, scheduler="karras", steps=4, positive=conds[1], negative=conds[0])
    chosen = {"overlap_frames": 4, "order": "forward", "stages": "uniform"}
    steered, free = (following(prior, guidance_beta=beta, **chosen)[1]["samples"] for beta in (1.0, 0.0))
    tail = prior["samples"][:, :, 4:]
    near, far = (relative(clip[:, :, :4], tail) for clip in (steered, free))
    led = relative(steered[:, :, 4:], free[:, :, 4:])
    # These end above noise level 0, so that their last x is not quite the last prediction.
    assert near < (1e-2 if sampler in ("uni_pc", "uni_pc_bh2", "dpm_fast") else 1e-5) and far > 0.1 and led > 1e-3


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "uni_pc", "lcm", "heun"])
def test_new_frames_depend_on_what_the_prior_shows_only_where_they_are_steered(
    sampler: str, first: Any, following: Any, conds: Any
) -> None:
    """Two priors of equal noise and other prompts."""
    chosen = {"sampler_name": sampler, "scheduler": "karras", "steps": 4}
    reuse = {"overlap_frames": 4, "order": "forward", "stages": "uniform"}
    priors = [first(**chosen), first(**chosen, positive=conds[1], negative=conds[0])]

    def new_frames(beta: float) -> list[torch.Tensor]:
        return [following(p, guidance_beta=beta, **reuse)[1]["samples"][:, :, 4:] for p in priors]

    assert torch.equal(*new_frames(0.0))
    assert relative(*new_frames(1.0)) > 1e-4


def sampled(part: Any, model: Any, conds: Any, noise: Any, start: Any, sigmas: Any, sampler: str, cfg: float) -> Any:
    """Latents and the recorded session of one clip that is only recorded."""
    clips, family = part("nodes.clips"), part("nodes.any_model.families").NATIVE
    session = part("nodes.steering").Session(part("nodes.planning").first_plan(model, family, noise.shape[1:]))
    models = part("nodes.schedules").Models(model)
    return clips.denoise(models, session, *conds, noise, start, sigmas, sampler, cfg, 0), session


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_callers_sigmas_and_noise_stay_as_they_are(sampler: str, model: Any, conds: Any, part: Any) -> None:
    sigmas = part("nodes.samplers").noise_levels(model, 4, "euler", "karras")
    noise = torch.randn(1, 4, 8, 8, 8)
    given = sigmas.clone(), noise.clone()
    with torch.inference_mode():
        sampled(part, model, conds, noise, torch.zeros_like(noise), sigmas, sampler, 3.0)
    assert torch.equal(sigmas, given[0]) and torch.equal(noise, given[1])


def test_a_sampler_that_cannot_be_steered_is_refused(first: Any, nodes: Any) -> None:
    with pytest.raises(ValueError, match="cannot be steered"):
        first(sampler_name="dpm_adaptive")
    inputs = {i.id: i for i in nodes["VidRDSampleFirstClip"].node.define_schema().inputs}
    assert set(inputs["sampler_name"].options) == {*SAMPLERS}


def test_video_and_clip_are_joined_and_trimmed(first: Any, following: Any) -> None:
    one = first()
    video, clip = following(one, trim_frames=3)
    assert video["samples"].shape[2] == 8 + 5 and clip["samples"].shape[2] == 8
    torch.testing.assert_close(video["samples"][:, :, :8], one["samples"])
    torch.testing.assert_close(video["samples"][:, :, 8:], clip["samples"][:, :, 3:])
    longer, third = following(video, seed=3)
    alone, same = following(clip, seed=3)
    torch.testing.assert_close(third["samples"], same["samples"])
    assert longer["samples"].shape[2] == 21 and alone["samples"].shape[2] == 16


def test_any_overlap_beta_and_order_can_follow_without_sampling_again(first: Any, following: Any) -> None:
    one = first()
    kept = copy.deepcopy(one)
    for overlap, beta, order in ((0, 0.0, "reverse"), (8, 1.0, "forward"), (5, 0.7, "forward"), (8, 1.0, "reverse")):
        clip = following(one, overlap_frames=overlap, guidance_beta=beta, order=order)[1]
        assert torch.isfinite(clip["samples"]).all()
    torch.testing.assert_close(one["samples"], kept["samples"], rtol=0, atol=0)
    for a, b in zip(one[KEY].trajectory.states, kept[KEY].trajectory.states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_chain_in_forward_order_equals_plain_euler_with_the_last_frames_written_over_the_first(
    first: Any, following: Any, model: Any, conds: Any
) -> None:
    """Against a reference that shares no code with the nodes but ComfyUI's own model call."""
    import comfy.sample

    chosen = {"sampler_name": "euler", "scheduler": "normal", "steps": 6}
    one = first(**chosen)
    clip = following(one, overlap_frames=3, guidance_beta=1.0, order="forward", stages="uniform")[1]
    sigmas = comfy.samplers.KSampler(model, steps=6, device="cpu", sampler="euler", scheduler="normal").sigmas

    def euler(noise: torch.Tensor, shown: list[torch.Tensor] | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        visited = []

        def run(inner: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any = None, **_: Any) -> torch.Tensor:
            for step, (sigma, following_sigma) in enumerate(itertools.pairwise(sigmas)):
                if shown is not None:
                    x = torch.cat((shown[step][:, :, 5:], x[:, :, 3:]), dim=2)
                visited.append(x)
                clean = inner(x, sigma * x.new_ones(1), **extra_args)
                x = clean + (x - clean) * following_sigma / sigma
            return x

        zeros = torch.zeros_like(noise)
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model, noise, 3.0, comfy.samplers.KSAMPLER(run), sigmas, *conds, zeros, disable_pbar=True, seed=0
            ), visited

    first_clip, visited = euler(one[KEY].trajectory.noise, None)
    assert relative(first_clip, one["samples"]) < 1e-4
    second_clip, _ = euler(clip[KEY].trajectory.noise, visited)
    assert relative(clip["samples"][:, :, 3:], second_clip[:, :, 3:]) < 1e-4
    # The written frames go their own way in the last step, a replay to its end: the prior's frames.
    assert relative(clip["samples"][:, :, :3], one["samples"][:, :, 5:]) < 1e-5
    unsteered, _ = euler(clip[KEY].trajectory.noise, None)
    assert relative(unsteered[:, :, :3], second_clip[:, :, :3]) > 1e-3  # which the bound above would tell apart


def by_input(settings: Any) -> dict[str, Any]:
    """Reuse settings by the ids of the node's inputs."""
    return {{"cleaner_overlap": "guidance_lead"}.get(name, name): value for name, value in vars(settings).items()}


def test_a_preset_stands_for_its_settings(first: Any, following: Any, part: Any) -> None:
    one = first()
    wanted = part("vidrd_core.reuse.presets").PRESETS["smooth"].reuse.fitted(8)
    named = following(one, preset="smooth", overlap_frames=1, order="reverse", guidance_lead=0.2)
    spelled = following(one, **by_input(wanted))
    for a, b in zip(named, spelled, strict=True):
        torch.testing.assert_close(a["samples"], b["samples"], rtol=0, atol=0)
    assert named[0]["samples"].shape[2] == 16 - wanted.trim_frames
    torch.testing.assert_close(following(one, preset="paper")[1]["samples"], following(one)[1]["samples"])


def test_each_video_of_a_batch_is_the_one_of_its_seed(first: Any, following: Any) -> None:
    both = following(first(batch_size=2, seed=5), seed=9)[1]["samples"]
    alone = following(first(seed=6), seed=10)[1]["samples"]
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)


def test_progressive_noise_makes_frames_alike_and_keeps_the_variance(first: Any) -> None:
    noise = first(progressive_alpha=3.0)[KEY].trajectory.noise
    plain = first()[KEY].trajectory.noise
    torch.testing.assert_close(noise[:, :, 0], plain[:, :, 0])
    correlation = torch.corrcoef(noise[0].transpose(0, 1).flatten(1))[0, 1]
    assert correlation > 0.8 and abs(float(noise.std()) - 1) < 0.15


def test_partial_denoise_can_be_continued_in_as_many_steps(first: Any, following: Any, model: Any, conds: Any) -> None:
    start = first()
    changed = first(latent=start, denoise=0.5, steps=4, scheduler="normal")
    stock = ksampler(model, conds, {"samples": start["samples"]}, denoise=0.5, steps=4)
    torch.testing.assert_close(changed["samples"], stock["samples"], rtol=1e-4, atol=1e-4)
    trajectory = changed[KEY].trajectory
    assert trajectory.context["steps"] == trajectory.num_steps == len(trajectory.states) == 4
    clip = following(changed)[1]
    assert clip[KEY].trajectory.num_steps == 4 and torch.isfinite(clip["samples"]).all()


@pytest.mark.parametrize("denoise", [0.02, 0.3, 0.99])
def test_states_of_a_partial_denoise_lie_on_the_way_that_was_walked(
    denoise: float, first: Any, model: Any, conds: Any, part: Any
) -> None:
    steering = part("nodes.samplers")
    start = first()["samples"]
    trajectory = first(latent={"samples": start}, denoise=denoise, steps=6, sampler_name="euler", scheduler="normal")[
        KEY
    ].trajectory
    noise = trajectory.noise
    with torch.inference_mode():
        visited = steering.noise_levels(model, 6, "euler", "normal", denoise)
        end, session = sampled(part, model, conds, noise, start, visited, "euler", 3.0)
        walked = session.recording().states
        clean, end = (model.model.process_latent_in(one) for one in (start, end))
    for sigma, state in zip(trajectory.context["sigmas"], trajectory.states, strict=False):
        if sigma > visited[0]:
            expected = clean + sigma * noise
        else:
            step = int((visited[:-1] >= sigma - 1e-6).sum()) - 1
            share = (sigma - visited[step]) / (visited[step + 1] - visited[step])
            expected = walked[step] + share * ([*walked, end][step + 1] - walked[step])
        torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chosen", [{}, {"preset": "smooth"}], ids=["released", "smooth"])
def test_equal_seeds_in_a_chain_keep_the_noise_independent(chosen: Any, first: Any, following: Any) -> None:
    """The default: every node has seed 0, and each clip's fresh noise must still be its own."""
    video = first(seed=0, steps=2)
    for index in range(1, 5):
        video, _ = following(video, seed=0, **chosen)
        noise = video[KEY].trajectory.noise
        assert 0.93 < float(noise.std()) < 1.07, index
        off_diagonal = torch.corrcoef(noise[0].transpose(0, 1).flatten(1)) - torch.eye(8)
        assert float(off_diagonal.abs().max()) < 0.3, index
    seeds = video[KEY].context["seeds"]
    assert seeds[0] == 0 and len(seeds) == len(set(seeds)) == 5


def test_distinct_seeds_are_used_as_they_are(first: Any, following: Any) -> None:
    one = first(seed=3, steps=2)
    two = following(one, seed=4)[0]
    assert two[KEY].context["seeds"] == [3, 4]
    older = copy.deepcopy(one)
    del older[KEY].trajectory.context["seeds"]  # as saved by earlier versions
    torch.testing.assert_close(following(older, seed=4)[0]["samples"], two["samples"], rtol=0, atol=0)


def test_videos_of_a_batch_are_picked_with_their_trajectories(
    first: Any, following: Any, nodes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import nodes as stock

    batch = first(batch_size=3, seed=5, steps=3, sampler_name="euler")
    alone = first(seed=6, steps=3, sampler_name="euler")
    picked = stock.LatentFromBatch().frombatch(batch, 1, 1)[0]
    with caplog.at_level("INFO"):
        video, clip = following(picked, seed=9)
    assert "Of the 3 videos sampled together, number 2 is continued" in caplog.text
    assert "changed after" not in caplog.text
    assert clip[KEY].context["sampler"] == "euler" and clip[KEY].context["seeds"] == [6, 9]
    torch.testing.assert_close(clip["samples"], following(alone, seed=9)[1]["samples"], rtol=1e-3, atol=1e-3)
    again = following(picked, seed=6)[1]
    assert again[KEY].context["seeds"][1] != 6  # which the second video was made from
    two = stock.LatentFromBatch().frombatch(batch, 1, 2)[0]
    assert following(two, seed=9)[1]["samples"].shape[0] == 2
    torch.testing.assert_close(following(two, seed=9)[1]["samples"][:1], clip["samples"], rtol=1e-3, atol=1e-3)
    nodes["VidRDSaveState"](latent=picked, name="picked")
    (loaded,) = nodes["VidRDLoadState"](name="picked.safetensors")
    torch.testing.assert_close(following(loaded, seed=9)[0]["samples"], video["samples"], rtol=0, atol=0)


def test_changed_latents_go_on_with_the_schedule_that_made_them(
    first: Any, following: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one = first(steps=3, sampler_name="euler", scheduler="normal")
    changed = {**one, "samples": one["samples"] * 1.01}
    with caplog.at_level("INFO"):
        context = following(changed)[1][KEY].context
    assert (context["steps"], context["sampler"], context["scheduler"]) == (3, "euler", "normal")
    assert "changed after they were sampled" in caplog.text and "with 3 steps of euler, normal" in caplog.text
    assert following(one, prior_trajectory="invert", steps=2)[1][KEY].context["sampler"] == "euler"


@pytest.mark.parametrize(("preset", "joined"), [("smooth", {2: 1, 3: 2, 5: 2}), ("paper", {2: 2, 3: 3, 5: 5})])
def test_presets_suit_priors_that_are_shorter_than_a_clip(preset: str, joined: dict[int, int], following: Any) -> None:
    for frames, added in joined.items():
        short = {"samples": torch.randn((1, 4, frames, 8, 8), generator=torch.Generator().manual_seed(0))}
        video, clip = following(short, preset=preset, steps=2)
        assert clip["samples"].shape[2] == frames and video["samples"].shape[2] == frames + added
    with pytest.raises(ValueError, match="clip_frames is 16 but prior has 10 frames"):
        following({"samples": torch.randn(1, 4, 10, 8, 8)}, clip_frames=16, steps=2)


def test_a_ksamplers_latent_starts_a_chain(model: Any, conds: Any, nodes: Any, following: Any) -> None:
    empty = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]
    plain = ksampler(model, conds, empty)
    assert KEY not in plain
    for method in ("auto", "invert", "noise"):
        video, clip = following(plain, steps=4, sampler_name="euler", scheduler="normal", prior_trajectory=method)
        assert video["samples"].shape[2] == 16 and torch.isfinite(clip["samples"]).all()
    longer, _ = following(video, seed=3)
    assert longer["samples"].shape[2] == 24


def test_a_changed_latent_is_noticed(first: Any, following: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = first()
    one["samples"] = one["samples"] * 1.01
    with caplog.at_level("WARNING"):
        following(one, steps=3, sampler_name="euler", scheduler="normal")
    assert "changed after they were sampled" in caplog.text


def test_an_encoded_video_is_continued(loaded: Any, following: Any) -> None:
    import nodes as stock

    with torch.inference_mode():
        latent = stock.VAEEncode().encode(loaded[2], torch.rand(13, 64, 64, 3))[0]
    video, clip = following(latent, steps=4, clip_frames=6, overlap_frames=3)
    assert video["samples"].shape[2] == 19 and clip["samples"].shape[2] == 6


def test_an_image_is_followed_by_a_clip_of_full_length_and_the_user_is_told(
    loaded: Any, following: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import nodes as stock

    with torch.inference_mode():
        image = stock.VAEEncode().encode(loaded[2], torch.rand(1, 64, 64, 3))[0]
    for asked, frames in ((0, 8), (6, 6)):
        caplog.clear()
        with caplog.at_level("WARNING"):
            video, clip = following(image, steps=4, clip_frames=asked, preset="smooth")
        trimmed = frames * 5 // 8
        assert clip["samples"].shape[2] == frames and video["samples"].shape[2] == 1 + frames - trimmed
        torch.testing.assert_close(video["samples"][:, :, :1], image["samples"].cpu())
        assert f"the new clip follows a still clip of it, of {frames} frames" in caplog.text
    assert following(video)[0]["samples"].shape[2] == video["samples"].shape[2] + 6  # a clip like any other from here


def test_a_prior_without_its_number_of_steps_says_how_many_are_taken(
    model: Any, conds: Any, nodes: Any, first: Any, following: Any, caplog: pytest.LogCaptureFixture
) -> None:
    latent = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]
    plain = ksampler(model, conds, latent, steps=4)
    with caplog.at_level("WARNING"):
        assert following(plain, prior_trajectory="noise")[1][KEY].trajectory.num_steps == 50
    assert "does not say its number of steps, so 50 are sampled: set steps" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        following(plain, steps=4)
        following(first(steps=3), prior_trajectory="invert")
    assert "number of steps" not in caplog.text


def test_inversion_is_undone_by_sampling(first: Any, model: Any, conds: Any, part: Any) -> None:
    steering, rebuild = part("nodes.samplers"), part("nodes.rebuild")
    with torch.inference_mode():
        sigmas = steering.noise_levels(model, 20, "euler", "normal")
        clip = first(steps=20, sampler_name="euler", scheduler="normal", cfg=1.0)["samples"]
        process = part("nodes.any_model.noise").ModelNoise(model, unit_start=True)
        noise, states = rebuild.invert(model, process, *conds, clip, sigmas)
        again, _ = sampled(part, model, conds, noise, torch.zeros_like(noise), sigmas, "euler", 1.0)
    assert len(states) == 20 and relative(again, clip) < 0.1


def texts(loaded: Any, *words: str) -> list[Any]:
    with torch.inference_mode():
        return [loaded[1].encode_from_tokens_scheduled(loaded[1].tokenize(text)) for text in words]


def same(a: Any, b: Any) -> bool:
    return torch.equal(a[1]["samples"], b[1]["samples"])


def test_a_clip_is_inverted_by_the_prompt_that_made_it_and_not_by_the_next_one(
    first: Any, following: Any, loaded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = texts(loaded, "the green cross falls", "the blue square stays")
    one = first(positive=own, steps=4)
    inverted = {"positive": other, "prior_trajectory": "invert", "steps": 3}
    with caplog.at_level("INFO"):
        plain = following(one, **inverted)
    assert "rebuilt (invert by its own prompt)" in caplog.text
    assert same(plain, following(one, **inverted, prior_positive=own))
    assert not same(plain, following(one, **inverted, prior_positive=other))
    assert same(following(one), following(one, prior_positive=other))  # its trajectory needs no inversion
    for longer in following(one, positive=other):
        given = {"prior": longer, "prior_trajectory": "invert"}
        assert same(following(**given), following(**given, prior_positive=other))
    changed = {**one, "samples": one["samples"] * 1.01}
    assert same(following(changed, positive=other), following(changed, positive=other, prior_positive=own))


def test_latents_of_unknown_origin_are_inverted_unconditionally_unless_told_what_they_show(
    first: Any, following: Any, loaded: Any, conds: Any, nodes: Any, make_model: Any, base: Any
) -> None:
    (own,) = texts(loaded, "the green cross falls")
    plain = {"samples": first(positive=own, steps=2)["samples"]}
    by_default = following(plain, steps=3)
    assert same(by_default, following(plain, steps=3, prior_positive=conds[1]))
    assert not same(by_default, following(plain, steps=3, prior_positive=own))
    assert not same(by_default, following(plain, steps=3, prior_positive=conds[0]))
    make_model(base / "models" / "vidrd" / "other", seed=5)
    other = nodes["VidRDLoadModel"](model_name="other", weight_dtype="fp32")[0]
    by_other = first(positive=own, steps=2, model=other)
    given = {"prior_trajectory": "invert", "steps": 3}
    assert same(following(by_other, **given), following(by_other, **given, prior_positive=conds[1]))


def test_a_saved_state_keeps_the_prompt_of_its_clip(first: Any, following: Any, loaded: Any, nodes: Any) -> None:
    own, other = texts(loaded, "the green cross falls", "the blue square stays")
    one = first(positive=own, steps=2)
    nodes["VidRDSaveState"](latent=one, name="prompted")
    (loaded_again,) = nodes["VidRDLoadState"](name="prompted.safetensors")
    given = {"positive": other, "prior_trajectory": "invert", "steps": 3}
    assert same(following(one, **given), following(loaded_again, **given))
    hooked = first(positive=[[own[0][0], {**own[0][1], "strength": 0.5}]], steps=2)
    nodes["VidRDSaveState"](latent=hooked, name="hooked")
    (without,) = nodes["VidRDLoadState"](name="hooked.safetensors")
    assert without[KEY].positive is None


def test_each_video_of_a_batch_is_inverted_by_its_own_prompt(first: Any, following: Any, loaded: Any) -> None:
    import nodes as stock

    own, other, third = texts(loaded, "the green cross falls", "the blue square stays", "the red ball")
    both = [[torch.cat((own[0][0], other[0][0])), {}]]
    batch = first(positive=both, batch_size=2, steps=2)
    second = stock.LatentFromBatch().frombatch(batch, 1, 1)[0]
    given = {"positive": third, "prior_trajectory": "invert", "steps": 3}
    assert same(following(second, **given), following(second, **given, prior_positive=other))
    changed = {**second, "samples": second["samples"] * 1.01}  # which of the two it was cannot be told any more
    assert same(following(changed, **given), following({"samples": changed["samples"]}, **given))


def test_cancel_stops_between_steps_and_leaves_no_clip(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management
    import comfy.utils

    steps: list[int] = []

    def cancel(value: int, *_: Any, **__: Any) -> None:
        steps.append(value)
        if value == 2:
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)  # newer versions skip calls
    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(management.InterruptProcessingException):
            first(steps=6)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        management.interrupt_current_processing(False)
    assert steps == [1, 2]
    assert torch.isfinite(first(steps=2)["samples"]).all()


def test_everything_between_nodes_is_on_the_cpu(first: Any, following: Any) -> None:
    _, clip = following(first())
    trajectory = clip[KEY].trajectory
    assert {t.device.type for t in (clip["samples"], trajectory.noise, *trajectory.states)} == {"cpu"}
    assert trajectory.nbytes() == 4 * (5 + 5 + 1) * 4 * 8 * 8 * 8
