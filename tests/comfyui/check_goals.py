"""Goals in ComfyUI: clips that arrive at an image or a clip, loops of Many Clips, families with larger latents."""

from __future__ import annotations

from typing import Any

import family_runs as run
import pytest
import torch
from tiny_models import FAMILIES, conditioning, empty_latent, image_conditioning

KEY = "vidrd_trajectory"
SMOOTH = {"preset": "custom", "overlap_frames": 3, "noise_alpha": 0.0, "guidance_beta": 1.0, "order": "forward",
          "trim_frames": 3, "stages": "uniform", "guidance_lead": 0.8}  # fmt: skip


def latents(frames: int, seed: int = 5, size: int = 8) -> dict[str, Any]:
    return {"samples": torch.randn(1, 4, frames, size, size, generator=torch.Generator().manual_seed(seed))}


@pytest.fixture
def many(nodes: dict[str, Any], loaded: Any, conds: Any) -> Any:
    empty = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]

    def run_node(**changes: Any) -> tuple[Any, Any, str]:
        given = {"model": loaded[0], "clip": loaded[1], "negative": conds[1], "prior": empty, "num_clips": 3,
                 "prompts": "the red ball rolls", "seed": 4, "cfg": 3.0, "steps": 3, "sampler_name": "euler",
                 "scheduler": "normal", **SMOOTH}  # fmt: skip
        return nodes["VidRDManyClips"](**{**given, **changes})

    return run_node


@pytest.mark.parametrize("sampler", ["euler", "ddim", "uni_pc", "dpmpp_2m"])
def test_a_clip_ends_with_its_goal_whatever_samples_it(
    first: Any, nodes: Any, model: Any, conds: Any, sampler: str
) -> None:
    prior = first(sampler_name=sampler, scheduler="normal", steps=5)
    given = {"model": model, "positive": conds[0], "negative": conds[1], "prior": prior, "seed": 2, "cfg": 3.0}
    node = nodes["VidRDReuseAndDiffuse"]
    near = 1e-2 if sampler == "uni_pc" else 1e-4  # its last step is no full one
    for goal, count in ((latents(1), 1), (latents(6), 2)):
        video, clip, report = node(**given, **SMOOTH, goal=goal)
        torch.testing.assert_close(clip["samples"][:, :, -count:], goal["samples"][:, :, :count], rtol=1e-4, atol=near)
        assert video["samples"].shape[2] == 8 + 5 and f"ends with {count} frame" in report
        torch.testing.assert_close(clip["samples"][:, :, :3], prior["samples"][:, :, -3:], rtol=0.05, atol=0.05)
        again = node(**given, **SMOOTH)[1]["samples"]
        assert not torch.equal(again[:, :, 3:-count], clip["samples"][:, :, 3:-count])
    assert KEY in video


def test_an_image_at_either_end_is_in_betweening(nodes: Any, model: Any, conds: Any) -> None:
    start, end = latents(1, 1), latents(1, 2)
    given = {"model": model, "positive": conds[0], "negative": conds[1], "prior": start, "seed": 2, "cfg": 3.0}
    choice = {**SMOOTH, "overlap_frames": 1, "trim_frames": 1, "steps": 3, "sampler_name": "euler",
              "scheduler": "normal", "prior_trajectory": "noise", "clip_frames": 8}  # fmt: skip
    video, clip, _ = nodes["VidRDReuseAndDiffuse"](**given, **choice, goal=end)
    assert clip["samples"].shape[2] == video["samples"].shape[2] == 8
    torch.testing.assert_close(clip["samples"][:, :, -1:], end["samples"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clip["samples"][:, :, :1], start["samples"], rtol=1e-4, atol=1e-4)


def test_what_a_clip_cannot_arrive_at_is_refused(first: Any, nodes: Any, model: Any, conds: Any) -> None:
    given = {"model": model, "positive": conds[0], "negative": conds[1], "prior": first(), "seed": 2, "cfg": 3.0}
    node = nodes["VidRDReuseAndDiffuse"]
    with pytest.raises(ValueError, match="goal is empty"):
        node(**given, **SMOOTH, goal={"samples": torch.zeros(1, 4, 1, 8, 8)})
    with pytest.raises(ValueError, match=r"goal is \[4, 4\] latents high and wide but the video is \[8, 8\]"):
        node(**given, **SMOOTH, goal=latents(1, size=4))
    with pytest.raises(ValueError, match="of which 6 repeat the prior and 2 are the goal's"):
        node(**given, **{**SMOOTH, "overlap_frames": 6}, goal=latents(2))
    with pytest.raises(ValueError, match="goal holds 2 videos but 1 are sampled"):
        node(**given, **SMOOTH, goal={"samples": latents(1)["samples"].repeat(2, 1, 1, 1, 1)})


def test_a_loop_of_many_clips_is_cut_where_it_begins_again(many: Any) -> None:
    plain, clip, _ = many(run_name="loop")
    looped, last, report = many(run_name="loop", loop=True)
    frames = looped["samples"].shape[2]
    assert report.splitlines()[-1] == f"1 made, 2 reused; {frames} frames in all, a loop"
    assert plain["samples"].shape[2] == 8 + 5 + 5 and 14 <= frames <= 17
    torch.testing.assert_close(looped["samples"][:, :, :13], plain["samples"][:, :, :13], rtol=0, atol=0)
    assert not torch.equal(looped["samples"][:, :, 13:], plain["samples"][:, :, 13:frames])
    assert KEY not in looped and last["samples"].shape[2] == frames - 13
    again, _, report = many(run_name="loop", loop=True)
    assert "0 made, 3 reused" in report and torch.equal(again["samples"], looped["samples"])
    back, _, report = many(run_name="loop")
    assert "0 made, 3 reused" in report and torch.equal(back["samples"], plain["samples"])
    with pytest.raises(ValueError, match="set num_clips to at least 2"):
        many(num_clips=1, loop=True)


@pytest.mark.parametrize(("overlap", "trim"), [(5, 5), (7, 7), (6, 0)])
def test_the_last_clip_of_a_loop_has_an_overlap_that_leaves_room_for_its_end(
    many: Any, part: Any, monkeypatch: pytest.MonkeyPatch, overlap: int, trim: int
) -> None:
    choice = {**SMOOTH, "overlap_frames": overlap, "trim_frames": trim, "run_name": f"room {overlap}"}
    plain, looped = many(**choice)[0]["samples"], many(**choice, loop=True)
    before, frames, own = plain.shape[2] - (8 - trim), looped[0]["samples"].shape[2], min(trim, 3)
    assert 1 <= 8 - own - (frames - before) <= 4 and looped[1]["samples"].shape[2] == frames - before
    torch.testing.assert_close(looped[0]["samples"][:, :, :before], plain[:, :, :before], rtol=0, atol=0)
    if trim:  # the clip goes on where its overlap ends
        monkeypatch.setattr(part("nodes.many"), "closing_reuse", lambda *given: given[-1])
        choice |= {"overlap_frames": 3, "trim_frames": 3}
        assert "2 made, 1 reused" in many(**choice, loop=True)[2]  # by the overlap of all clips, another run


def test_a_kept_last_clip_of_a_loop_is_joined_by_the_overlap_that_it_was_made_with(
    many: Any, part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = {**SMOOTH, "overlap_frames": 5, "trim_frames": 5, "run_name": "kept", "loop": True}
    with monkeypatch.context() as earlier:  # a version that gave the last clip the overlap of the others
        earlier.setattr(part("nodes.many"), "closing_reuse", lambda *given: given[-1])
        first = many(**choice)
    kept = many(**choice, regenerate_from=4)
    assert "0 made, 3 reused" in kept[2] and torch.equal(kept[0]["samples"], first[0]["samples"])
    now = many(**{**choice, "run_name": "kept now"})
    kept = many(**{**choice, "run_name": "kept now"}, regenerate_from=4)
    assert "0 made, 3 reused" in kept[2] and torch.equal(kept[0]["samples"], now[0]["samples"])


def test_the_last_clip_of_a_loop_ends_with_the_video_s_first_frames_where_that_is_most_even(
    many: Any, part: Any, nodes: Any
) -> None:
    goals, clips, closed, tried = part("nodes.goals"), part("nodes.many"), [], []
    close, real = goals.close, clips.closed

    def keep(family: Any, pieces: Any, *more: Any) -> Any:
        closed.append((list(pieces), more[0]))
        return real(family, pieces, *more)

    def keep_tried(make: Any, latents_of: Any, beginning: Any, overlap: int, counts: range) -> Any:
        tried.append({count: latents_of(make(count)) for count in counts})
        made = tried[-1]
        best, _ = close(made.get, lambda clip: clip, beginning, overlap, counts)
        found = close(make, latents_of, beginning, overlap, counts)
        assert found[0] == best and torch.equal(latents_of(found[1]), made[best])
        return found

    clips.closed, goals.close = keep, keep_tried
    try:
        begun = many(num_clips=1)[0]
        many(loop=True)
        many(prior=begun, num_clips=1, steps=0, sampler_name="from prior", scheduler="from prior", loop=True)
    finally:
        clips.closed, goals.close = real, close
    for pieces, repeated in closed:
        torch.testing.assert_close(pieces[-1][:, :, -repeated:], pieces[0][:, :, :repeated], rtol=1e-4, atol=1e-4)
    assert [len(pieces) for pieces, _ in closed] == [3, 2] and [list(made) for made in tried] == [[1, 2, 3, 4]] * 2


def test_a_loop_of_another_family_is_made_once(nodes: Any, part: Any) -> None:
    name = next(name for name, family in FAMILIES.items() if family.lead_in)
    model, conds, clips = run.model_of(name), run.prompts(name), part("nodes.many")
    choice = {"overlap_frames": 1, "preset": "custom", "order": "forward", "stages": "uniform", "guidance_beta": 1.0}
    goals, real = [], clips.next_clip

    def keep(*given: Any) -> Any:
        goals.append(given[-1])
        return real(*given)

    clips.next_clip = keep
    try:
        video, _, report = nodes["VidRDManyClips"](
            model=model, clip=None, positive=conds[0], negative=conds[2], prior=empty_latent(name), num_clips=2,
            prompts="", seed=1, steps=3, cfg=3.0, sampler_name="euler", scheduler="simple", loop=True, **choice,
        )  # fmt: skip
    finally:
        clips.next_clip = real
    repeated = [goal.shape[2] for goal in goals]
    assert repeated == [min(2, run.samples_of(empty_latent(name)).shape[2] - 1)]
    assert report.endswith("which the last one shows already") and "a loop" in report


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.lead_in])
def test_a_family_with_several_frames_per_latent_arrives_at_latents_of_a_clip_and_refuses_an_image(
    name: str, nodes: Any
) -> None:
    model, conds = run.model_of(name), run.prompts(name)
    first = nodes["VidRDSampleFirstClip"](
        model=model, positive=conds[0], negative=conds[2], latent=empty_latent(name), seed=1, steps=3, cfg=3.0,
        sampler_name="euler", scheduler="simple",
    )[0]  # fmt: skip
    node, samples = nodes["VidRDReuseAndDiffuse"], run.samples_of(first)
    given = {"model": model, "positive": conds[1], "negative": conds[2], "prior": first, "seed": 2, "cfg": 3.0}
    with pytest.raises(ValueError, match="is one image, whose latent in .* is of the kind that begins a video"):
        node(
            **given,
            overlap_frames=4,
            preset="custom",
            order="forward",
            stages="uniform",
            goal={"samples": samples[:, :, :1] + 1},
        )
    goal = torch.randn(samples.shape, generator=torch.Generator().manual_seed(3))
    choice = {"overlap_frames": 1, "preset": "custom", "order": "forward", "stages": "uniform", "guidance_beta": 1.0}
    _, clip, report = node(**given, **choice, goal={"samples": goal})
    count = min(2, goal.shape[2] - 1)
    made = run.samples_of(clip)[:, :, -count:]
    assert run.apart(made, goal[:, :, 1 : 1 + count]) < 2e-3, report


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.image and family.lead_in])
def test_an_image_to_video_model_sees_its_goal_beside_the_overlap(name: str, nodes: Any) -> None:
    """In the concatenated latents and their mask, as in a model's own first-and-last-frame node."""
    family, model = FAMILIES[name], run.model_of(name)
    image = image_conditioning(name)
    positive, negative = (conditioning(name, seed, **image) for seed in (1, 3))
    first = nodes["VidRDSampleFirstClip"](
        model=model, positive=positive, negative=negative, latent=empty_latent(name), seed=1, steps=3, cfg=3.0,
        sampler_name="euler", scheduler="simple",
    )[0]  # fmt: skip
    goal = torch.randn(run.samples_of(first).shape, generator=torch.Generator().manual_seed(3))
    with run.network_inputs(model) as seen:
        _, clip, report = nodes["VidRDReuseAndDiffuse"](
            model=model, positive=positive, negative=negative, prior=first, seed=2, cfg=3.0, overlap_frames=1,
            preset="custom", order="forward", stages="uniform", guidance_beta=1.0, goal={"samples": goal},
        )  # fmt: skip
    length, at = family.length, family.lead_in
    count = min(2, length - at - 2)
    wanted = goal[:, :, 1 : 1 + count]
    assert run.apart(run.samples_of(clip)[:, :, -count:], wanted) < 2e-3, report
    channels, masks = goal.shape[1], 4 if name.startswith("Wan") else 1
    extra = run.seen_frames(name, seen[0], 0, length)[channels:]
    shown, mask = (extra[masks:], extra[:masks]) if name.startswith("Wan") else (extra[:-masks], extra[-masks:])
    given = model.model.process_latent_in(wanted)[0]
    assert run.apart(shown[:, length - count :], given) < 2e-3
    known = mask[0] > 0.5
    expected = [n in (0, at) or n >= length - count for n in range(length)]
    assert known.flatten(1).all(1).tolist() == expected
