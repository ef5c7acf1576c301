"""What the long-video measures say of videos whose faults are known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from vidrd_core.shapes.measures import VideoRecord, from_json, measure, summarise, to_json
from vidrd_core.shapes.scenes import MOTIONS, Scene, render

N = 8


def scene(motion: str = "moves left", **changes: str) -> Scene:
    words = {"color": "red", "shape": "circle", "background": "dark blue", "kind": "striped background", **changes}
    return Scene(motion=motion, x=30.0, y=20.0, phase=0.2, radius=10.0, **words)


def clip(start: int, motion: str = "moves left", **changes: str) -> Tensor:
    return render([scene(motion, **changes)], N, start)[0]


def record(clips: list[Tensor], motion: str = "moves left") -> VideoRecord:
    starts = [sum(c.shape[1] for c in clips[:n]) for n in range(len(clips))]
    return measure(scene(motion), torch.cat(clips, dim=1), starts)


def figures(clips: list[Tensor], motion: str = "moves left") -> dict[str, float]:
    return summarise([record(clips, motion)], N)["figures"]


def test_rendered_videos_of_every_motion_score_perfectly() -> None:
    records = [record([clip(n * N, motion) for n in range(4)], motion) for motion in MOTIONS]
    found = summarise(records, N)["figures"]
    assert found["seam ratio"] == pytest.approx(1, abs=0.05)
    assert found["motion kept"] == found["identity at the last clip"] == 1
    assert found["motion as prompted, first clip"] == found["motion as prompted, later clips"] == 1
    assert found["background drift at the last clip"] < 0.01 and found["shape colour drift at the last clip"] < 3
    assert found["runs back after a seam"] == found["replays its predecessor"] == found["rewinds its predecessor"] == 0
    assert found["flicker inside clips"] < 0.01 and found["flicker at seams"] < 0.01
    assert found["shape flicker inside clips"] < 0.2 and found["shape flicker at seams"] < 0.2
    assert found["background beyond 2 of 255 at the last clip"] == found["background lost at the last clip"] == 0
    assert found["shape lost at the last clip"] == 0
    assert found["contrast at the last clip"] == pytest.approx(1, abs=0.01)


def test_a_clip_that_replays_its_predecessor_is_found_and_jumps_back() -> None:
    found = figures([clip(0), clip(0)])
    assert found["replays its predecessor"] == 1 and found["rewinds its predecessor"] == 0
    assert found["seam ratio"] == pytest.approx(7, rel=0.1)
    assert found["motion kept"] == 1


def test_a_clip_that_rewinds_its_predecessor_is_found_and_runs_back() -> None:
    found = figures([clip(0), clip(0).flip(1), clip(0)])
    assert found["rewinds its predecessor"] == 1 and found["replays its predecessor"] == 0
    assert found["motion kept"] == 0 and found["runs back after a seam"] == 1


def test_the_profile_shows_where_in_a_clip_motion_runs_back() -> None:
    backwards = torch.cat((clip(0).flip(1)[:, :4], clip(3)[:, :4]), dim=1)
    profile = summarise([record([clip(0), backwards])], N)["profile"]
    assert profile[0] == pytest.approx(0, abs=0.2)
    assert profile[1:4] == pytest.approx([-1, -1, -1], abs=0.3)
    assert profile[5:] == pytest.approx([1, 1, 1], abs=0.3)


def test_a_jump_over_a_seam_is_measured_in_steps() -> None:
    assert figures([clip(0), clip(N + 3)])["seam ratio"] == pytest.approx(4, rel=0.1)


def test_an_orbit_that_turns_round_has_not_kept_its_motion() -> None:
    orbit = "orbits the center"
    assert figures([clip(0, orbit), clip(N, orbit)], orbit)["motion kept"] == 1
    assert figures([clip(0, orbit), clip(0, orbit).flip(1)], orbit)["motion kept"] == 0


def test_another_shape_or_colour_is_another_identity() -> None:
    assert record([clip(0), clip(N), clip(2 * N, shape="cross")]).identity == [True, True, False]
    assert record([clip(0), clip(N, color="green")]).identity == [True, False]


def test_a_lost_shape_is_no_kept_motion_and_no_identity() -> None:
    empty = torch.full((3, N, 64, 64), -0.8)
    found = record([clip(0), empty])
    assert found.identity == [True, False] and found.kept == [False]
    assert summarise([found], N)["figures"]["seam ratio"] is None


def test_drift_is_the_change_of_the_background_in_levels_of_255() -> None:
    found = record([clip(0), clip(N) + 4 / 127.5])
    assert found.background == pytest.approx([0, 4], abs=0.05) and found.brightness == found.background
    faded = record([clip(0), clip(N) * 0.8 + 0.1])
    assert faded.contrast[1] == pytest.approx(0.8, abs=0.02)


def test_flicker_is_the_change_of_the_background_that_nothing_moves() -> None:
    noise = torch.zeros(N, 1, 1)
    noise[1::2] = 6 / 127.5
    found = record([clip(0) + noise, clip(N) + noise])
    assert found.flicker == pytest.approx(6, abs=0.05) and found.seam_flicker == pytest.approx(6, abs=0.05)


@pytest.mark.parametrize("brightness", [0.75, 0.3])  # the tracker finds the first, and loses the second
def test_flicker_of_the_shape_shows_though_the_background_is_still(brightness: float) -> None:
    levels = (torch.cat([clip(0, color="white"), clip(N, color="white")], dim=1) + 1) / 2
    dark = levels.amax(0) > 0.64
    dark[::2] = False
    found = measure(scene(), torch.where(dark, levels * brightness, levels) * 2 - 1, [0, N])
    assert found.flicker == pytest.approx(0, abs=0.5)
    for flicker in (found.shape_flicker, found.shape_seam_flicker):
        assert flicker == pytest.approx(245 * (1 - brightness), rel=0.1)


def test_a_shape_that_fades_over_the_clips_drifts() -> None:
    levels = (clip(N, color="white") + 1) / 2
    faded = torch.where(levels.amax(0) > 0.64, levels * 0.9, levels) * 2 - 1
    assert record([clip(0, color="white"), faded]).shape_color[1] == pytest.approx(24.5, rel=0.1)


def test_a_background_as_bright_as_a_shape_counts_as_drifted_too_far() -> None:
    lost = torch.full((3, N, 64, 64), 0.9)
    records = [record([clip(0), clip(N)]), record([clip(0), lost])]
    assert records[1].background == [0, None]
    found = summarise(records, N)
    assert found["figures"]["background drift at the last clip"] < 0.01
    assert found["figures"]["background lost at the last clip"] == 0.5
    assert found["figures"]["background beyond 2 of 255 at the last clip"] == 0.5
    assert found["curves"]["background beyond 2 of 255"] == [0, 0.5]


def test_videos_beyond_the_goal_are_counted() -> None:
    still, drifted = record([clip(0), clip(N)]), record([clip(0), clip(N) + 3 / 127.5])
    found = summarise([still, still, still, drifted], N)["figures"]
    assert found["background drift at the last clip"] < 2
    assert found["background beyond 2 of 255 at the last clip"] == 0.25


def test_trimmed_clips_are_measured_at_their_own_seams() -> None:
    whole = render([scene()], 20)[0]
    found = measure(scene(), whole, [0, 8, 12, 16])
    assert found.seams == pytest.approx([2.5] * 3, abs=0.6) and found.kept == [True] * 3
    assert len(summarise([found], N)["profile"]) == 4


def test_records_survive_json_and_carry_intervals() -> None:
    records = [record([clip(n * N) for n in range(3)]), record([clip(0), clip(0), clip(0)])]
    again = [from_json(json.loads(json.dumps(to_json(r)))) for r in records]
    assert again == records
    low, high = summarise(again, N)["intervals"]["seam ratio"]
    assert low < summarise(again, N)["figures"]["seam ratio"] < high


def test_impossible_clip_starts_are_refused() -> None:
    with pytest.raises(ValueError, match="increasing frames from 0"):
        measure(scene(), clip(0), [0, 8])
    with pytest.raises(ValueError, match="no video"):
        summarise([], N)
