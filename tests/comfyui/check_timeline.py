"""Timeline: takes on disk, only what is stale is made again, the same decision for the node and for its display."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BALL, SQUARE = "the red ball rolls", "the blue square"
SETTINGS = {"cfg": 3.0, "steps": 3, "sampler_name": "euler", "scheduler": "normal", "preset": "paper",
            "width": 64, "height": 64, "negative_prompt": "watermark"}  # fmt: skip


def clip(identity: str, prompt: str = BALL, seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": identity, "prompt": prompt, "seed": seed, **more}


def text(*clips: dict[str, Any], **more: Any) -> str:
    return json.dumps({"version": 1, "clips": clips, **more})


THREE = (clip("a"), clip("b", seed=2), clip("c", SQUARE, 3))


@pytest.fixture
def timeline(nodes: dict[str, Any], loaded: Any) -> Callable[..., Any]:
    def run(*clips: dict[str, Any], run_name: str, end: str = "", **changes: Any) -> Any:
        plan = text(*clips, **({"end": end} if end else {}))
        given = {"model": loaded[0], "clip": loaded[1], "vae": loaded[2], "timeline": plan, "run_name": run_name}
        return nodes["VidRDTimeline"](**{**given, **SETTINGS, **changes})

    return run


@pytest.fixture
def status(part: Any) -> Callable[..., Any]:
    def ask(*clips: dict[str, Any], run_name: str, end: str = "", **settings: Any) -> Any:
        plan = text(*clips, **({"end": end} if end else {}))
        asked = {"run": run_name, "timeline": plan, "settings": {**SETTINGS, **settings}, "fps": 8}
        return part("nodes.timeline_routes").status(asked)

    return ask


def states(answer: Any) -> list[str]:
    return [one["state"] for one in answer["clips"]]


def made(run: Any) -> str:
    return run[2].splitlines()[-2]


def folder(base: Path, name: str) -> Path:
    return base / "output" / "vidrd" / name


def test_a_timeline_is_the_chain_of_single_nodes(timeline: Any, nodes: Any, loaded: Any, conds: Any) -> None:
    images, video, report = timeline(*THREE, run_name="chain")
    encoded = {words: loaded[1].encode_from_tokens_scheduled(loaded[1].tokenize(words)) for words in (BALL, SQUARE)}
    empty = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]
    common = {"model": loaded[0], "negative": conds[1], "cfg": 3.0}
    schedule = {"steps": 3, "sampler_name": "euler", "scheduler": "normal"}
    first = nodes["VidRDSampleFirstClip"](**common, **schedule, positive=encoded[BALL], latent=empty, seed=1)[0]
    more = {**common, "preset": "paper"}
    second = nodes["VidRDReuseAndDiffuse"](**more, positive=encoded[BALL], prior=first, seed=2)[0]
    third = nodes["VidRDReuseAndDiffuse"](**more, positive=encoded[SQUARE], prior=second, seed=3)[0]
    torch.testing.assert_close(video["samples"], third["samples"], rtol=0, atol=0)
    assert images.shape == (24, 64, 64, 3) and "3 made, 0 kept" in report
    with torch.inference_mode():
        whole = loaded[2].decode(third["samples"])
    torch.testing.assert_close(images, whole.reshape(images.shape), rtol=0, atol=0)
    longer = nodes["VidRDReuseAndDiffuse"](**more, positive=encoded[BALL], prior=video, seed=9)[0]
    assert longer["samples"].shape[2] == 32  # the LATENT carries the trajectory


def test_only_what_is_stale_is_made_again_and_everything_finished_stays(timeline: Any, status: Any, base: Path) -> None:
    name = "stale"
    assert states(status(*THREE, run_name=name)) == ["waiting"] * 3
    begun = timeline(*THREE, run_name=name)
    assert states(status(*THREE, run_name=name)) == ["finished"] * 3
    assert made(timeline(*THREE, run_name=name)) == "0 made, 3 kept"
    files = {path: path.read_bytes() for path in (folder(base, name) / "takes").iterdir()}
    assert len(files) == 3 * 4

    changed = (THREE[0], clip("b", SQUARE, 2), THREE[2])
    assert states(status(*changed, run_name=name)) == ["finished", "changed", "changed"]
    other = timeline(*changed, run_name=name)
    assert made(other) == "2 made, 1 kept"
    torch.testing.assert_close(other[1]["samples"][:, :, :8], begun[1]["samples"][:, :, :8], rtol=0, atol=0)
    assert not torch.equal(other[1]["samples"][:, :, 8:16], begun[1]["samples"][:, :, 8:16])
    assert all(path.read_bytes() == content for path, content in files.items())

    assert states(status(*THREE, run_name=name)) == ["finished"] * 3  # back to the former prompt
    back = timeline(*THREE, run_name=name)
    assert made(back) == "0 made, 3 kept"
    torch.testing.assert_close(back[1]["samples"], begun[1]["samples"], rtol=0, atol=0)
    takes = status(*changed, run_name=name)["takes"]
    assert sorted(take["clip"] for take in takes.values()) == ["a", "b", "b", "c", "c"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cfg": 2.0}, ["changed"] * 3),
        ({"negative_prompt": "blur"}, ["changed"] * 3),
        ({"steps": 2}, ["changed"] * 3),
        ({"width": 32}, ["changed"] * 3),
        ({"preset": "smooth"}, ["finished", "changed", "changed"]),  # a first clip reuses nothing
    ],
)
def test_what_the_display_calls_stale_is_what_a_run_makes(
    timeline: Any, status: Any, changes: dict[str, Any], expected: list[str]
) -> None:
    name = "alike_" + "_".join(changes)
    timeline(*THREE, run_name=name)
    before = states(status(*THREE, run_name=name, **changes))
    assert before == expected
    run = timeline(*THREE, run_name=name, **changes)
    kept = before.count("finished")
    assert made(run) == f"{3 - kept} made, {kept} kept"
    assert states(status(*THREE, run_name=name, **changes)) == ["finished"] * 3


def test_another_model_or_text_encoder_makes_every_clip_stale(
    timeline: Any, status: Any, nodes: Any, make_model: Any, base: Path
) -> None:
    timeline(*THREE[:2], run_name="models")
    make_model(base / "models" / "vidrd" / "tiny_other", seed=5)
    other = nodes["VidRDLoadModel"](model_name="tiny_other", weight_dtype="fp32")
    run = timeline(*THREE[:2], run_name="models", model=other[0], clip=other[1], vae=other[2])
    assert made(run) == "2 made, 0 kept"
    assert states(status(*THREE[:2], run_name="models")) == ["finished"] * 2  # of the model that ran last
    assert made(timeline(*THREE[:2], run_name="models")) == "0 made, 2 kept"


def test_a_locked_clip_keeps_its_take_and_what_follows_continues_from_it(timeline: Any, status: Any) -> None:
    name = "locked"
    begun = timeline(*THREE, run_name=name)
    take = status(*THREE, run_name=name)["clips"][1]["take"]
    locked = (clip("a", SQUARE, 7), clip("b", "another prompt", 9, lock=True, take=take), THREE[2])
    answer = status(*locked, run_name=name)
    assert states(answer) == ["changed", "finished", "finished"]
    assert [one["joins"] for one in answer["clips"]] == [True, False, True]
    run = timeline(*locked, run_name=name)
    assert made(run) == "1 made, 2 kept" and "the seam may show" in run[2]
    torch.testing.assert_close(run[1]["samples"][:, :, 8:], begun[1]["samples"][:, :, 8:], rtol=0, atol=0)
    newest = (THREE[0], clip("b", "another prompt", 9, lock=True), THREE[2])  # without a name: its newest take
    assert states(status(*newest, run_name=name)) == ["finished"] * 3
    with pytest.raises(ValueError, match="clip 2 .b. is locked to the take 0123456789abcdef, which is not in"):
        timeline(THREE[0], clip("b", lock=True, take="0123456789abcdef"), run_name=name)


def test_a_loop_is_cut_where_it_begins_again_as_that_of_many_clips(
    timeline: Any, status: Any, nodes: Any, loaded: Any, conds: Any, base: Path
) -> None:
    name = "looped"
    timeline(*THREE, run_name=name)
    assert states(status(*THREE, run_name=name, loop=True)) == ["finished", "finished", "changed"]
    images, video, report = timeline(*THREE, run_name=name, loop=True)
    frames = len(images)
    assert "1 made, 2 kept" in report and report.endswith(
        f"{frames} frames, {frames / 8:.1f} s at 8 per second, a loop"
    )
    assert frames == video["samples"].shape[2] and 20 <= frames < 3 * 8 and "vidrd_trajectory" not in video
    empty = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]
    encoded = loaded[1].encode_from_tokens_scheduled(loaded[1].tokenize("watermark"))
    same = {name: SETTINGS[name] for name in ("cfg", "steps", "sampler_name", "scheduler", "preset")}
    many = nodes["VidRDManyClips"](
        model=loaded[0], clip=loaded[1], negative=encoded, prior=empty, num_clips=3, seed=1, clip_seeds="1, 2, 3",
        prompts="\n".join(one["prompt"] for one in THREE), loop=True, **same,
    )  # fmt: skip
    torch.testing.assert_close(video["samples"], many[0]["samples"], rtol=0, atol=0)
    shown = status(*THREE, run_name=name, loop=True)
    assert states(shown) == ["finished"] * 3 and shown["video"]["frames"] == frames
    assert states(status(*THREE, run_name=name, loop=False)) == ["finished"] * 3  # the open one stays
    assert status(*THREE, run_name=name, loop=False)["video"]["frames"] == 24
    again = timeline(*THREE, run_name=name, loop=True)
    assert "0 made, 3 kept" in again[2] and torch.equal(again[1]["samples"], video["samples"])
    opened = status(*THREE, run_name=name, loop=False)["clips"][2]["take"]
    locked = (*THREE[:2], {**THREE[2], "lock": True, "take": opened})
    assert "does not arrive at the beginning" in timeline(*locked, run_name=name, loop=True)[2]
    with pytest.raises(ValueError, match="a loop of one clip .* add a second clip"):
        timeline(THREE[0], run_name=name, loop=True)


def test_the_last_take_of_a_loop_has_its_own_overlap_and_shows_what_it_adds(
    timeline: Any, status: Any, nodes: Any, loaded: Any, base: Path, part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"run_name": "closing", "preset": "smooth", "loop": True}
    images, video, report = timeline(*THREE, **asked)
    shown = status(*THREE, **asked)
    takes = [shown["takes"][one["take"]] for one in shown["clips"]]
    assert [take["new_frames"] for take in takes[:2]] == [8, 3] and 1 <= takes[2]["new_frames"] <= 4
    assert len(images) == shown["video"]["frames"] == sum(take["new_frames"] for take in takes)
    assert f"clip 3: made, seed 3, {takes[2]['new_frames']} new frames" in report
    read = part("vidrd_core.video.reading").read_video
    played = folder(base, "closing") / "takes" / f"{shown['clips'][2]['take']}.mp4"
    assert len(read(played).frames) == takes[2]["new_frames"]
    empty = nodes["VidRDEmptyLatent"](width=64, height=64, frames=8, batch_size=1)[0]
    encoded = loaded[1].encode_from_tokens_scheduled(loaded[1].tokenize("watermark"))
    same = {name: SETTINGS[name] for name in ("cfg", "steps", "sampler_name", "scheduler")}
    many = nodes["VidRDManyClips"](
        model=loaded[0], clip=loaded[1], negative=encoded, prior=empty, num_clips=3, seed=1, clip_seeds="1, 2, 3",
        prompts="\n".join(one["prompt"] for one in THREE), loop=True, preset="smooth", **same,
    )  # fmt: skip
    torch.testing.assert_close(video["samples"], many[0]["samples"], rtol=0, atol=0)
    # An earlier version's take, of the overlap of the others, is another one.
    monkeypatch.setattr(part("nodes.timeline"), "closing_reuse", lambda *given: given[-1])
    assert made(timeline(*THREE, **asked)) == "1 made, 2 kept"


def test_it_says_which_clip_and_step_it_is_at(timeline: Any, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(part("nodes.progress"), "say", said.append)
    timeline(*THREE[:2], run_name="progress")
    assert said == [f"clip {clip} of 2, step {step} of 3" for clip in (1, 2) for step in (1, 2, 3)]


def test_branches_share_their_beginning(timeline: Any, status: Any) -> None:
    name, other = "branches", clip("d", "the red square", 8, after="a")
    main = timeline(*THREE, other, run_name=name)
    assert made(main) == "3 made, 0 kept"
    branch = timeline(*THREE, other, run_name=name, end="d")
    assert made(branch) == "1 made, 1 kept" and branch[0].shape[0] == 16
    torch.testing.assert_close(branch[1]["samples"][:, :, :8], main[1]["samples"][:, :, :8], rtol=0, atol=0)
    answer = status(*THREE, other, run_name=name, end="d")
    assert [one["id"] for one in answer["clips"]] == ["a", "d"] and states(answer) == ["finished"] * 2
    assert len(answer["takes"]) == 4


def test_a_finished_take_is_a_state_for_the_command_line_and_for_load_state(
    timeline: Any, status: Any, nodes: Any, base: Path, part: Any, capsys: Any
) -> None:
    from vidrd_core.cli import main as vidrd
    from vidrd_core.sampling.state import VideoState

    timeline(*THREE[:2], run_name="shell")
    take = status(*THREE[:2], run_name="shell")["clips"][1]["take"]
    path = folder(base, "shell") / "takes" / f"{take}.safetensors"
    state = VideoState.load(path)
    assert state.clip_index == 1 and state.sampling.num_frames == 8
    assert vidrd(["info", str(path)]) == 0
    assert "1" in capsys.readouterr().out
    output = base / "extended.mp4"
    model = str(base / "models" / "vidrd" / "tiny")
    arguments = ["extend", str(path), "--model", model, "--clips", "1", "--prompt", BALL, "--device", "cpu", "--quiet"]
    assert vidrd([*arguments, "--output", str(output)]) == 0 and output.is_file()
    assert not [name for name in part("nodes.files").saved_states() if take in name]  # no list of hashes
    loaded = nodes["VidRDLoadState"](name=f"shell/takes/{take}.safetensors")[0]
    assert loaded["samples"].shape[2] == 8


def test_a_timeline_continues_a_prior(timeline: Any, status: Any, first: Any, nodes: Any) -> None:
    prior = first(steps=2)
    own = {"steps": 0, "sampler_name": "from prior", "scheduler": "from prior"}
    images, video, _ = timeline(*THREE[:2], run_name="prior", prior=prior, **own)
    assert images.shape[0] == 24
    torch.testing.assert_close(video["samples"][:, :, :8], prior["samples"], rtol=0, atol=0)
    assert status(*THREE[:2], run_name="prior", **own)["video"]["seams"] == [8, 16]
    assert made(timeline(*THREE[:2], run_name="prior", prior=first(steps=2), **own)) == "0 made, 2 kept"
    assert made(timeline(*THREE[:2], run_name="prior", prior=first(steps=2, seed=9), **own)) == "2 made, 0 kept"
    with pytest.raises(ValueError, match="prior holds 2 videos side by side"):
        timeline(*THREE[:2], run_name="prior", prior=first(batch_size=2), **own)


def test_the_first_clip_sets_the_length_and_another_length_is_refused_before_anything_is_made(
    timeline: Any, base: Path
) -> None:
    images, _, report = timeline(clip("a", frames=4), clip("b", seed=2, frames=4), run_name="lengths")
    assert images.shape[0] == 8 and report.count("4 new frames") == 2
    with pytest.raises(ValueError, match=r"clip 2 \(b\) asks for 5 new frames, but .* set its frames to 0 or 4"):
        timeline(clip("a", frames=4), clip("b", seed=2, frames=5), clip("c", seed=3), run_name="refused")
    assert not list((folder(base, "refused") / "takes").glob("*.json"))


def test_an_interrupted_run_keeps_its_finished_clips(timeline: Any, status: Any, part: Any, monkeypatch: Any) -> None:
    engine = part("nodes.timeline")
    original, count = engine.next_clip, []

    def failing(*arguments: Any) -> Any:
        count.append(1)
        if len(count) == 2:
            raise RuntimeError("out of memory")
        return original(*arguments)

    monkeypatch.setattr(engine, "next_clip", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        timeline(*THREE, run_name="stopped")
    assert states(status(*THREE, run_name="stopped")) == ["finished", "finished", "waiting"]
    monkeypatch.setattr(engine, "next_clip", original)
    assert made(timeline(*THREE, run_name="stopped")) == "1 made, 2 kept"


def test_two_runs_of_one_name_at_once_make_each_take_once(timeline: Any, status: Any, part: Any) -> None:
    takes = part("vidrd_core.jobs.takes")
    folder_of_run = takes.TakeFolder(part("nodes.files").output_path("twice"))
    expected = timeline(*THREE[:1], run_name="twice_reference")
    wanted = status(*THREE[:1], run_name="twice_reference")["clips"][0]["take"]
    results: list[Any] = []
    with folder_of_run.making(wanted) as missing:  # another process is at it
        assert missing
        thread = threading.Thread(target=lambda: results.append(timeline(*THREE[:1], run_name="twice")))
        thread.start()
        thread.join(3)
        assert thread.is_alive() and not results  # it waits
        source = takes.TakeFolder(part("nodes.files").output_path("twice_reference"))
        for suffix in (".safetensors", ".mp4", ".jpg", ".json"):
            folder_of_run.file(wanted, suffix).write_bytes(source.file(wanted, suffix).read_bytes())
    thread.join(60)
    assert made(results[0]) == "0 made, 1 kept"
    torch.testing.assert_close(results[0][1]["samples"], expected[1]["samples"], rtol=0, atol=0)


def test_a_deleted_take_is_made_again_and_equal(timeline: Any, status: Any, part: Any, nodes: Any, base: Path) -> None:
    routes, fingerprint = part("nodes.timeline_routes"), nodes["VidRDTimeline"].node.fingerprint_inputs
    begun = timeline(*THREE[:2], run_name="deleted")
    before = fingerprint(run_name="deleted")
    take = status(*THREE[:2], run_name="deleted")["clips"][1]["take"]
    assert routes.delete({"run": "deleted", "take": take}) == {"deleted": True}
    assert routes.delete({"run": "deleted", "take": take}) == {"deleted": False}
    assert fingerprint(run_name="deleted") != before  # so that ComfyUI runs the node again
    assert states(status(*THREE[:2], run_name="deleted")) == ["finished", "waiting"]
    again = timeline(*THREE[:2], run_name="deleted")
    assert made(again) == "1 made, 1 kept"
    torch.testing.assert_close(again[1]["samples"], begun[1]["samples"], rtol=0, atol=0)
    for wrong in ("../../etc", "x", ""):
        with pytest.raises(ValueError, match="is no take"):
            routes.delete({"run": "deleted", "take": wrong})
    with pytest.raises(ValueError, match="cannot be used"):
        routes.delete({"run": "../outside", "take": take})


def test_seam_figures_are_those_of_seam_report(timeline: Any, status: Any, part: Any, nodes: Any) -> None:
    pytest.importorskip("cv2", reason="optical flow needs OpenCV")
    images, _, _ = timeline(*THREE, run_name="figures")
    video = status(*THREE, run_name="figures")["video"]
    assert video["seams"] == [8, 16] and video["frames"] == 24
    found = part("nodes.timeline_routes").seams({"run": "figures", "video": video["name"]})
    report = part("vidrd_core.metrics.anyvideo").evaluate_video(images, 8)
    assert [seam["frame"] for seam in found["seams"]] == report.seams
    # The joined video is compressed, which changes every pixel a little.
    assert [seam["change"] for seam in found["seams"]] == pytest.approx([report.change[7], report.change[15]], abs=3)
    assert found["inside"]["change"] == pytest.approx(
        report.figures()["change from frame to frame, inside clips"], abs=3
    )
    assert part("nodes.timeline_routes").seams({"run": "figures", "video": video["name"]}) == found
    with pytest.raises(ValueError, match="not there any more"):
        part("nodes.timeline_routes").seams({"run": "figures", "video": "0" * 16})


def test_what_cannot_be_is_said_before_anything_runs(timeline: Any, nodes: Any, loaded: Any) -> None:
    node = nodes["VidRDTimeline"].node
    assert node.validate_inputs(timeline=text(*THREE)) is True
    assert "is no JSON" in node.validate_inputs(timeline="a prompt")
    with pytest.raises(ValueError, match="run_name is empty"):
        timeline(*THREE, run_name=" ")
    with pytest.raises(ValueError, match="the size is 60x64; VidRD needs multiples of 8"):
        timeline(*THREE, run_name="size", width=60)
    with pytest.raises(ValueError, match="CLIP is empty"):
        timeline(*THREE, run_name="noclip", clip=None)
