"""Many clips in one node: runs that are resumed, changed and partly made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

KEY = "vidrd_trajectory"


@pytest.fixture(autouse=True)
def fresh_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without a name find no clips of other tests."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.fixture
def many(nodes: dict[str, Any], loaded: Any, conds: Any) -> Any:
    empty = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]

    def run(**changes: Any) -> tuple[Any, Any, str]:
        given = {"model": loaded[0], "clip": loaded[1], "negative": conds[1], "prior": empty,
                 "prompts": "the red ball rolls", "num_clips": 3, "seed": 4, "cfg": 3.0, "steps": 3,
                 "sampler_name": "euler", "scheduler": "normal", "preset": "custom"}  # fmt: skip
        return nodes["VidRDManyClips"](**{**given, **changes})

    return run


def test_many_clips_are_the_chain_of_single_nodes(many: Any, first: Any, following: Any, part: Any) -> None:
    seeds = part("nodes.many").per_clip_seeds(4, "", 3, 0)
    one = first(seed=seeds[0], steps=3, sampler_name="euler", scheduler="normal")
    two, _ = following(one, seed=seeds[1])
    three, last = following(two, seed=seeds[2])
    video, clip, report = many()
    torch.testing.assert_close(video["samples"], three["samples"])
    torch.testing.assert_close(clip["samples"], last["samples"])
    assert report.splitlines()[-1] == "3 made, 0 reused; 24 frames in all"


def test_a_run_is_resumed_and_only_what_changed_is_made(many: Any) -> None:
    video, _, _ = many(run_name="tale")
    again, _, report = many(run_name="tale")
    assert "0 made, 3 reused" in report
    torch.testing.assert_close(again["samples"], video["samples"], rtol=0, atol=0)
    longer, _, report = many(run_name="tale", num_clips=4)
    assert "1 made, 3 reused" in report
    torch.testing.assert_close(longer["samples"][:, :, :24], video["samples"], rtol=0, atol=0)
    changed, _, report = many(run_name="tale", prompts="the red ball rolls\nthe blue square\nthe red ball rolls")
    assert "2 made, 1 reused" in report
    torch.testing.assert_close(changed["samples"][:, :, :8], video["samples"][:, :, :8], rtol=0, atol=0)
    reseeded, _, report = many(
        run_name="tale", prompts="the red ball rolls\nthe blue square\nthe red ball rolls", clip_seeds="-, -, 77"
    )
    assert "1 made, 2 reused" in report and "seed 77" in report
    kept, _, report = many(run_name="tale", seed=99, regenerate_from=3)
    assert "1 made, 2 reused" in report
    torch.testing.assert_close(kept["samples"][:, :, :16], reseeded["samples"][:, :, :16], rtol=0, atol=0)


def test_many_clips_continue_a_prior_and_say_what_is_wrong(many: Any, first: Any, loaded: Any) -> None:
    prior = first(steps=2)
    video, _, _ = many(prior=prior, num_clips=2, steps=0, sampler_name="from prior", scheduler="from prior")
    assert video["samples"].shape[2] == 24
    with pytest.raises(ValueError, match="clip_seeds holds 'x'"):
        many(clip_seeds="1 x")
    with pytest.raises(ValueError, match="12 prompts were given for 3 clips: raise num_clips or drop prompts"):
        many(prompts="a dot\n" * 12)
    with pytest.raises(ValueError, match="clip_seeds lists 4 seeds for 3 clips"):
        many(clip_seeds="1 2 3 4")
    with pytest.raises(ValueError, match="was never saved"):
        many(run_name="new", regenerate_from=2)
    with pytest.raises(ValueError, match="CLIP is empty"):
        many(clip=None)


def made(run: tuple[Any, Any, str]) -> str:
    return run[2].splitlines()[-1].split(";")[0]


def empty(nodes: Any, **changes: int) -> dict[str, Any]:
    return nodes["VidRDEmptyLatent"](**{"width": 64, "height": 64, "frames": 8, "batch_size": 1, **changes})[0]


def test_kept_clips_belong_to_the_new_plan_and_tell_their_own_seeds(many: Any) -> None:
    begun, _, report = many(run_name="kept", seed=4)
    before = [line.replace("made", "reused") for line in report.splitlines()[:2]]
    kept, _, report = many(run_name="kept", seed=99, prompts="the blue square", regenerate_from=3)
    assert report.splitlines()[:2] == before and report.splitlines()[2].endswith("the blue square")
    longer = many(run_name="kept", seed=99, prompts="the blue square", num_clips=4)
    assert made(longer) == "1 made, 3 reused"
    assert longer[2].splitlines()[:2] == before
    torch.testing.assert_close(longer[0]["samples"][:, :, :24], kept["samples"], rtol=0, atol=0)
    back = many(run_name="kept", seed=4)
    assert made(back) == "0 made, 3 reused"  # nothing of this plan was overwritten
    torch.testing.assert_close(back[0]["samples"], begun["samples"], rtol=0, atol=0)


def test_nodes_that_share_a_run_name_leave_each_others_clips(many: Any) -> None:
    one = many(run_name="shared", num_clips=2)
    two = many(run_name="shared", num_clips=2, prior=one[0], steps=0, sampler_name="from prior")
    assert made(two) == "2 made, 0 reused"
    assert made(many(run_name="shared", num_clips=2)) == "0 made, 2 reused"
    again = many(run_name="shared", num_clips=2, prior=one[0], steps=0, sampler_name="from prior")
    assert made(again) == "0 made, 2 reused"
    torch.testing.assert_close(again[0]["samples"], two[0]["samples"], rtol=0, atol=0)


def test_new_videos_of_one_size_and_run_name_keep_their_clips_apart(many: Any, base: Path) -> None:
    plans: tuple[dict[str, Any], ...] = (
        {"seed": 1}, {"seed": 2}, {"seed": 1, "prompts": "the red ball rolls\nthe blue square"},
        {"seed": 1, "cfg": 2.0},
    )  # fmt: skip
    videos = []
    for plan in plans:
        videos.append(many(run_name="apart", num_clips=2, **plan)[0]["samples"])
        files = {path: path.read_bytes() for path in (base / "output/vidrd/apart").rglob("*.safetensors")}
    for plan, video in zip(plans, videos, strict=True):
        again = many(run_name="apart", num_clips=2, **plan)
        assert made(again) == "0 made, 2 reused", plan
        torch.testing.assert_close(again[0]["samples"], video, rtol=0, atol=0)
    assert len(files) == 7  # the third video begins as the first does
    assert {path: path.read_bytes() for path in (base / "output/vidrd/apart").rglob("*.safetensors")} == files


def test_clips_made_anew_of_one_video_leave_those_of_another_and_the_older_ones(many: Any, base: Path) -> None:
    one, two = (many(run_name="reroll", seed=seed, num_clips=2)[0]["samples"] for seed in (1, 2))
    other = many(run_name="reroll", seed=1, num_clips=2, clip_seeds="-, 77", regenerate_from=2)
    assert made(other) == "1 made, 1 reused"
    torch.testing.assert_close(other[0]["samples"][:, :, :8], one[:, :, :8], rtol=0, atol=0)
    for seed, video in ((1, one), (2, two)):
        again = many(run_name="reroll", seed=seed, num_clips=2)
        assert made(again) == "0 made, 2 reused"
        torch.testing.assert_close(again[0]["samples"], video, rtol=0, atol=0)


def test_regenerate_from_keeps_the_clips_of_the_node_s_own_video(
    part: Any, model: Any, conds: Any, nodes: dict[str, Any]
) -> None:
    plans, overrides = part("nodes.many"), part("nodes.clips").Overrides(3, "euler", "normal")
    reuse = part("vidrd_core.reuse.settings").ReuseSettings()
    start = part("nodes.latents").VideoLatent.read(empty(nodes), "prior")

    def run(node: str, *seeds: int, regenerate_from: int = 0) -> tuple[Any, Any, str]:
        plan = plans.Run(list(seeds), 3.0, reuse, overrides, regenerate_from)
        with torch.inference_mode():
            return plans.make_clips(
                part("nodes.schedules").Models(model),
                [("", conds[0])] * len(seeds),
                conds[1],
                start,
                plan,
                "nodes",
                node,
            )

    one, two = run("1", 10, 11), run("2", 20, 21)
    for node, video in (("1", one), ("2", two)):
        kept = run(node, 31, 32, 33, regenerate_from=3)
        assert made(kept) == "1 made, 2 reused"
        torch.testing.assert_close(kept[0].samples[:, :, :16], video[0].samples, rtol=0, atol=0)


def test_clips_that_an_earlier_version_kept_are_found(
    many: Any, part: Any, base: Path, monkeypatch: pytest.MonkeyPatch, first: Any
) -> None:
    prior = first(steps=3, sampler_name="euler", scheduler="normal")
    for name, changes in (("old", {}), ("older", {"prior": prior, "steps": 0, "sampler_name": "from prior"})):
        with monkeypatch.context() as old:  # its names of models and priors, and of files
            plans = part("nodes.many")
            old.setattr(plans, "model_identity", plans.old_model_identity)
            old.setattr(plans, "start_of", plans.old_start_of)
            video = many(run_name=name, num_clips=2, **changes)[0]["samples"]
        folder = base / "output/vidrd" / name / "clips"
        for path in folder.rglob("clip_*.safetensors"):
            path.rename(path.with_name(f"{path.name[:9]}.safetensors"))
        (path,) = folder.rglob("lines.json")
        path.unlink()
        assert made(many(run_name=name, num_clips=3, seed=99, regenerate_from=3, **changes)) == "1 made, 2 reused"
        again = many(run_name=name, num_clips=2, **changes)
        assert made(again) == "0 made, 2 reused"
        torch.testing.assert_close(again[0]["samples"], video, rtol=0, atol=0)


def test_the_precision_of_the_model_counts(model: Any, part: Any) -> None:
    identity = part("nodes.identity").model_identity
    before, held = identity(model), model.model.manual_cast_dtype
    model.model.manual_cast_dtype = torch.bfloat16
    try:
        assert identity(model) != before
    finally:
        model.model.manual_cast_dtype = held
    assert identity(model) == before


def test_it_counts_which_conditioning_an_entry_belongs_to(conds: Any, part: Any) -> None:
    one, two = conds
    identity = part("nodes.identity").conditioning_hash
    assert identity([*one, *two], two) != identity(one, [*two, *two])


def test_what_the_prior_shows_counts_for_the_clips_that_go_on_from_it(
    many: Any, first: Any, following: Any, conds: Any
) -> None:
    plain = {"samples": first(steps=2)["samples"]}
    told = many(run_name="told", num_clips=2, prior=plain, prior_positive=conds[0])
    assert made(many(run_name="told", num_clips=2, prior=plain, prior_positive=conds[0])) == "0 made, 2 reused"
    assert made(many(run_name="told", num_clips=2, prior=plain)) == "2 made, 0 reused"
    video, _, _ = many(num_clips=1, prior=plain, prior_positive=conds[0])
    torch.testing.assert_close(told[0]["samples"][:, :, :16], video["samples"], rtol=0, atol=0)
    begun = many(run_name="begun", num_clips=2)
    assert made(many(run_name="begun", num_clips=2, prior_positive=conds[0])) == "0 made, 2 reused"  # nothing to invert
    given = {"positive": conds[1], "prior_trajectory": "invert", "steps": 2}
    for told_or_not in ({}, {"prior_positive": conds[0]}):  # the prompt of the last clip
        again = following(begun[0], **given, **told_or_not)[1]["samples"]
        torch.testing.assert_close(again, following(begun[1], **given)[1]["samples"], rtol=0, atol=0)


def test_every_pixel_of_a_large_mask_counts(conds: Any, part: Any) -> None:
    import node_helpers

    identity, masks = part("nodes.identity").conditioning_hash, torch.zeros(2, 1, 1024, 1024)
    masks[1, 0, 501, 333] = 1
    assert len({identity(node_helpers.conditioning_set_values(conds[0], {"mask": mask})) for mask in masks}) == 2


def test_trimming_only_joins_anew(many: Any) -> None:
    whole = many(run_name="trimmed", prompts="the red ball rolls")
    cut = many(run_name="trimmed", prompts="the red ball rolls", trim_frames=2)
    assert made(cut) == "0 made, 3 reused" and cut[0]["samples"].shape[2] == 20
    torch.testing.assert_close(cut[0]["samples"], many(trim_frames=2)[0]["samples"], rtol=0, atol=0)
    longer = many(run_name="trimmed", num_clips=4, trim_frames=2)
    assert made(longer) == "1 made, 3 reused"
    torch.testing.assert_close(longer[0]["samples"], many(num_clips=4, trim_frames=2)[0]["samples"], rtol=0, atol=0)
    torch.testing.assert_close(whole[0]["samples"][:, :, :8], cut[0]["samples"][:, :, :8], rtol=0, atol=0)
    with pytest.raises(ValueError, match="trim_frames is 8"):
        many(run_name="trimmed", trim_frames=8)


def test_a_joined_video_goes_on_whatever_was_trimmed_when_its_clips_were_made(many: Any, following: Any) -> None:
    many(run_name="rejoined")
    video, clip, _ = many(run_name="rejoined", trim_frames=3)
    for latent in (video, clip):
        assert following(latent, seed=123)[1][KEY].context["clip_index"] == 3


def test_the_first_clip_of_a_new_video_depends_on_no_reuse_setting(many: Any) -> None:
    many(run_name="begin")
    assert made(many(run_name="begin", guidance_beta=0.8, clip_frames=8)) == "2 made, 1 reused"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, "clip 1 of the run 'fixed' was made with steps 3, this node asks for 5: set steps to 0"),
        ({"sampler_name": "heun"}, "made with sampler euler, this node asks for heun"),
        ({"scheduler": "karras"}, "made with scheduler normal, this node asks for karras"),
        ({"size": {"width": 128}}, "never saved for this prior at this size"),
        ({"size": {"frames": 4}}, "never saved for this prior at this size"),
        ({"size": {"batch_size": 2}}, "never saved for this prior at this size"),
        ({"run_name": ""}, "run_name is empty, so that clips are kept for this session"),
    ],
    ids=["steps", "sampler", "scheduler", "width", "frames", "batch", "no run"],
)
def test_kept_clips_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, many: Any, nodes: Any) -> None:
    many(run_name="fixed", num_clips=1)
    size = changes.pop("size", None)
    given = {"run_name": "fixed", "regenerate_from": 2, **changes}
    with pytest.raises(ValueError, match=message):
        many(**given, **({"prior": empty(nodes, **size)} if size else {}))


def samplings() -> dict[str, Callable[[Any], Any]]:
    """What other nodes do to the model, every one of which samples otherwise."""

    def discrete(sampling: str, zsnr: bool) -> Callable[[Any], Any]:
        from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete as Node

        return lambda model: Node().patch(model, sampling, zsnr)[0]

    def edm(sigma_max: float) -> Callable[[Any], Any]:
        from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM as Node

        return lambda model: Node().patch(model, "eps", sigma_max, 0.03)[0]

    def closure(held: Any) -> Callable[[Any], Any]:
        def patch(model: Any) -> Any:
            clone = model.clone()
            clone.set_model_sampler_post_cfg_function(lambda args: (args["denoised"], held)[0])
            return clone

        return patch

    def callable_object(scale: float) -> Callable[[Any], Any]:
        class Scaled:
            def __init__(self) -> None:
                self.scale = scale

            def __call__(self, args: dict[str, Any]) -> Any:
                return args["denoised"]

        def patch(model: Any) -> Any:
            clone = model.clone()
            clone.set_model_sampler_post_cfg_function(Scaled())
            return clone

        return patch

    return {
        "eps": discrete("eps", False),
        "v": discrete("v_prediction", False),
        "v, zsnr": discrete("v_prediction", True),
        "x0": discrete("x0", False),
        "edm 14.6": edm(14.6),
        "edm 5": edm(5.0),
        "dict": closure({"scale": 1.0}),
        "other dict": closure({"scale": 2.0}),
        "tensor": closure(torch.zeros(3)),
        "other tensor": closure(torch.ones(3)),
        "object": callable_object(1.0),
        "other object": callable_object(2.0),
    }


def test_models_that_sample_otherwise_are_told_apart_and_equal_ones_are_not(model: Any, part: Any, base: Path) -> None:
    from check_nodes import lora
    from safetensors.torch import save_file

    import nodes as stock

    identity = part("nodes.identity").model_identity
    found = {name: identity(patch(model)) for name, patch in samplings().items()}
    found["plain"] = identity(model)
    save_file(lora(model, "kohya"), base / "models/loras/identity.safetensors")
    for strength in (0.2, 0.4):
        with torch.inference_mode():
            patched = stock.LoraLoaderModelOnly().load_lora_model_only(model, "identity.safetensors", strength)[0]
        found[f"lora {strength}"] = identity(patched)
    assert len(set(found.values())) == len(found), found
    assert {name: identity(patch(model)) for name, patch in samplings().items()}.items() <= found.items()


def test_a_closure_that_holds_itself_ends(model: Any, part: Any) -> None:
    def patch(args: dict[str, Any]) -> Any:
        return (patch, later)[0] and args["denoised"]

    unfinished = part("nodes.identity").json_hash(part("nodes.identity").as_json(patch))  # later is not there yet
    later = 1
    assert part("nodes.identity").json_hash(part("nodes.identity").as_json(patch)) != unfinished


def test_masks_and_hooks_of_a_conditioning_count(many: Any, conds: Any, part: Any, model: Any) -> None:
    import comfy.hooks
    import node_helpers

    def masked(mask: torch.Tensor) -> Any:
        values = {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}
        return node_helpers.conditioning_set_values(conds[0], values)

    def hooked(strength: float, up: float) -> Any:
        weights = {"unet.mid_block.x.lora_A.weight": torch.full((2, 4), up)}
        return node_helpers.conditioning_set_values(
            conds[0], {"hooks": comfy.hooks.create_hook_lora(weights, strength, strength)}
        )

    def kept_at(strength: float) -> Any:
        (entry,) = hooked(1.0, 1.0)
        frames = comfy.hooks.HookKeyframeGroup()
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=0.5))
        entry[1]["hooks"].set_keyframes_on_hooks(frames)
        return [entry]

    identity = part("nodes.identity").conditioning_hash
    kinds = {
        "plain": lambda: conds[0],
        "ones": lambda: masked(torch.ones(1, 64, 64)),
        "zeros": lambda: masked(torch.zeros(1, 64, 64)),
        "hook": lambda: hooked(1.0, 1.0),
        "weaker": lambda: hooked(0.5, 1.0),
        "other weights": lambda: hooked(1.0, 2.0),
        "keyframe": lambda: kept_at(0.5),
        "other keyframe": lambda: kept_at(0.25),
    }
    found = {name: identity(make()) for name, make in kinds.items()}
    assert len(set(found.values())) == len(found), found
    assert {name: identity(make()) for name, make in kinds.items()} == found
    for mask in (torch.ones(1, 64, 64), torch.zeros(1, 64, 64)):
        assert made(many(run_name="masks", prompts="", positive=masked(mask), num_clips=1)) == "1 made, 0 reused"


@pytest.mark.parametrize("name", ["broken_off", ""])
def test_an_interrupted_run_goes_on_where_it_stopped(many: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import comfy.model_management as management
    import comfy.utils

    whole = many(run_name="whole")[0]
    steps: list[int] = []

    def cancel(value: int, total: int, *_: Any, **__: Any) -> None:
        steps.append(value)
        if len(steps) == 6:  # in the second clip: three steps, the finished clip, two steps
            management.interrupt_current_processing()
        management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)  # newer versions skip calls
    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(management.InterruptProcessingException):
            many(run_name=name)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        management.interrupt_current_processing(False)
    resumed = many(run_name=name)
    assert made(resumed) == "2 made, 1 reused"
    torch.testing.assert_close(resumed[0]["samples"], whole["samples"], rtol=0, atol=0)


def test_a_batch_is_resumed_and_one_of_it_picked(many: Any, nodes: Any, following: Any) -> None:
    import nodes as stock

    both = many(run_name="both", prior=empty(nodes, batch_size=2))
    assert both[0]["samples"].shape == (2, 4, 24, 8, 8)
    again = many(run_name="both", prior=empty(nodes, batch_size=2), num_clips=4)
    assert made(again) == "1 made, 3 reused"
    alone = many(clip_seeds=", ".join(str(int(line.split("seed ")[1].split(",")[0]) + 1) for line in lines(both)))
    torch.testing.assert_close(both[0]["samples"][1:], alone[0]["samples"], rtol=1e-3, atol=1e-3)
    picked = stock.LatentFromBatch().frombatch(both[0], 1, 1)[0]
    one = following(picked, seed=9)[1]["samples"]
    torch.testing.assert_close(one, following(alone[0], seed=9)[1]["samples"], rtol=1e-3, atol=1e-3)
    assert made(many(run_name="both", prior=picked, num_clips=1)) == "1 made, 0 reused"


def lines(run: tuple[Any, Any, str]) -> list[str]:
    return run[2].splitlines()[:-1]


def test_listed_seeds_may_repeat_and_stand_between_any_commas(many: Any, part: Any) -> None:
    seeds = part("nodes.many").per_clip_seeds
    assert seeds(4, "1\uff0c2\u3001 3,\n4", 4, 0) == [1, 2, 3, 4]
    noise = many(clip_seeds="7, 7, 7", noise_alpha=1.0)[0][KEY].trajectory.noise
    assert 0.93 < float(noise.std()) < 1.07
