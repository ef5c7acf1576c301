"""Every example workflow on a real server, queued through the HTTP API; the frames that come out are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import examples
import pytest
import torch
from comfy_server import Server, make_base, running_server
from model_examples import MODELS

from vidrd_core.shapes.tracker import NOTHING, track

JUMP = 8.0  # pixels; the shapes' radius is 9 to 11, and the mean distance of two places in this world is 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = make_base(tmp_path_factory.mktemp("examples") / "base")
    examples.prepare(base)
    examples.write_released(base / "models")
    with running_server(base) as server:
        yield server


class Outcome(NamedTuple):
    """Frames and latents by the ids of the nodes that got them, and the numbers of frames and clips that were made."""

    videos: dict[str, torch.Tensor]
    latents: dict[str, torch.Tensor]
    made: dict[str, set[int]]


@pytest.fixture(scope="module")
def ran(server: Server) -> Callable[[str], Outcome]:
    """The outcome of an example, which runs once. Small random weights stand in for the released ones, under their
    names and in their layout."""
    done: dict[str, Outcome] = {}

    def run(name: str) -> Outcome:
        if name not in done:
            if name.startswith("7"):
                run("6_save_a_video_to_continue_later")
            prompt = examples.to_prompt(examples.workflow(name), server.get("/object_info"))
            if name == examples.RELEASED:
                examples.change(prompt, "VidRDSampleFirstClip", steps=4)
                examples.change(prompt, "VidRDEmptyLatent", width=128, height=128)
            done[name] = outcome(server, prompt)
        return done[name]

    return run


def outcome(server: Server, prompt: examples.Prompt) -> Outcome:
    history = server.run(examples.with_everything_saved(prompt))
    assert history["status"]["status_str"] == "success", history["status"]["messages"][-1]
    for identity in (*examples.of_type(prompt, "SaveVideo"), *examples.of_type(prompt, "VidRDPreviewClip")):
        (file,) = history["outputs"][identity]["images"]
        assert (server.base / file["type"] / file["subfolder"] / file["filename"]).stat().st_size > 500
    output = server.base / "output"
    made = examples.made(prompt, history, output)
    return Outcome(examples.frames(history, output), examples.latents(history, output), made)


def test_there_are_examples_of_all_that_is_promised() -> None:
    assert set(examples.OWN_NAMES) == {*examples.CLIPS, examples.RELEASED}
    assert set(examples.NAMES) == {*examples.OWN_NAMES, *MODELS}
    for name in examples.NAMES:
        assert (examples.FOLDER / f"{name}.jpg").stat().st_size < 200_000


@pytest.mark.parametrize("name", examples.CLIPS)
def test_an_example_makes_its_frames_and_the_shape_continues_over_every_seam(name: str, ran: Callable) -> None:
    videos, latents, _ = ran(name)
    (video,) = videos.values()
    assert video.shape == (3, examples.CLIPS[name][-1], 64, 64)
    frames = examples.CLIPS[name][-1]
    shape = (1, 16, 1 + (frames - 1) // examples.FLOW_RATIO, 8, 8) if name == examples.FLOW else (1, 4, frames, 8, 8)
    for samples in latents.values():
        assert samples.shape == shape and torch.isfinite(samples).all()
    seen = track(video)
    assert NOTHING not in seen.colors
    clips = [seen[first:end] for first, end in pairwise(examples.CLIPS[name])]
    assert len({clip.color for clip in clips}) == 1, [clip.colors for clip in clips]
    jumps = examples.seam_jumps(name, video)
    assert sum(jumps) / len(jumps) < JUMP, jumps
    for first, end in pairwise(examples.CLIPS[name]):
        assert not torch.equal(video[:, first:end], video[:, :1].expand(-1, end - first, -1, -1))


@pytest.mark.parametrize("name", examples.OWN_NAMES)
def test_the_frames_and_clips_that_an_example_tells_of_are_those_that_it_makes(name: str, ran: Callable) -> None:
    made = ran(name).made
    for unit, numbers in examples.stated_numbers(name).items():
        assert numbers <= made[unit], f"the notes or titles tell of {sorted(numbers)} {unit}; the run made {made[unit]}"


def test_the_continued_video_begins_with_the_saved_one(ran: Callable) -> None:
    (saved,) = ran("6_save_a_video_to_continue_later").latents.values()
    (longer,) = ran("7_continue_a_saved_video").latents.values()
    torch.testing.assert_close(longer[:, :, : saved.shape[2]], saved, rtol=0, atol=0)


def test_the_own_video_is_kept_in_front_of_what_continues_it(ran: Callable) -> None:
    (video,) = ran("4_continue_your_own_video").videos.values()
    seen = track(video[:, : examples.OWN_FRAMES])
    assert (seen.color, seen.shape, seen.motion) == ("green", "square", "moves down")


def test_a_run_with_a_name_reuses_its_clips(server: Server, ran: Callable) -> None:
    name = "3_many_clips_with_resume"
    ran(name)
    prompt = examples.to_prompt(examples.workflow(name), server.get("/object_info"))
    examples.change(prompt, "VidRDManyClips", num_clips=5)
    (report,) = examples.of_type(prompt, "PreviewAny")
    assert (
        f"0 made, 5 reused; {examples.CLIPS['3_many_clips_with_resume'][5]} frames in all"
        in server.run(prompt)["outputs"][report]["text"][0]
    )


def test_files_in_the_released_layout_make_29_and_61_frames(server: Server, ran: Callable) -> None:
    videos, latents, _ = ran(examples.RELEASED)
    assert sorted(video.shape for video in videos.values()) == [(3, 29, 256, 256), (3, 61, 256, 256)]
    assert sorted(samples.shape[2] for samples in latents.values()) == [8, 16]
    assert all(torch.isfinite(samples).all() for samples in latents.values())
    log = server.log.read_text(encoding="utf-8")
    assert "unet unexpected" not in log and "unet missing" not in log


def test_the_released_example_shows_one_shape_with_the_bundled_model(server: Server) -> None:
    prompt = examples.to_prompt(examples.workflow(examples.RELEASED), server.get("/object_info"))
    for video in outcome(server, examples.with_bundled_model(prompt)).videos.values():
        seen = track(video[:, ::4, ::2, ::2])
        assert NOTHING not in seen.colors and len(set(seen.colors)) == 1
