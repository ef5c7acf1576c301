"""The moving-shapes data set and its tracker."""

import dataclasses

import pytest
import torch

from vidrd_core.shapes.prompted import held_out_scenes
from vidrd_core.shapes.scenes import BACKGROUNDS, COLORS, KINDS, MOTIONS, SHAPES, SIZE, Scene, draw_scene, render
from vidrd_core.shapes.tracker import NOTHING, mean_step, seam_jump, track, wrapped


def scene(**changes):
    known = {"color": "red", "shape": "circle", "motion": "moves left", "background": "dark blue", "kind": "background"}
    numbers = {"x": 30.0, "y": 20.0, "phase": 0.2, "radius": 10.0}
    return Scene(**{**known, **numbers, **changes})


def test_a_caption_says_colour_shape_motion_and_background():
    assert scene().caption == "a red circle moves left over a dark blue background"
    assert scene(kind="striped background").caption == "a red circle moves left over a striped dark blue background"
    assert scene(kind="gradient").caption == "a red circle moves left over a dark blue gradient"


def test_the_data_set_has_the_documented_variety():
    assert len(COLORS) >= 6 and len(SHAPES) >= 4 and len(MOTIONS) >= 8 and len(KINDS) >= 3 and len(BACKGROUNDS) >= 3


def test_a_seed_gives_the_same_scene_and_the_same_frames():
    first, second = (draw_scene(torch.Generator().manual_seed(7)) for _ in range(2))
    assert first == second
    assert torch.equal(render([first], 3), render([second], 3))


def test_a_clip_continues_where_the_one_before_ended():
    for motion in MOTIONS:
        whole = render([scene(motion=motion)], 16)
        assert torch.equal(whole[:, :, 8:], render([scene(motion=motion)], 8, start=8))


def test_frames_are_pixels_in_minus_one_to_one():
    frames = render([scene(), scene(shape="cross")], 4)
    assert frames.shape == (2, 3, 4, SIZE, SIZE)
    assert float(frames.min()) >= -1 and float(frames.max()) <= 1


def test_training_and_test_never_share_a_combination():
    generator = torch.Generator().manual_seed(0)
    seen = [draw_scene(generator, "train") for _ in range(300)]
    assert not any(one.held_out for one in seen)
    held_out = {(one.color, one.shape, one.motion) for one in held_out_scenes(200)}
    assert held_out.isdisjoint({(one.color, one.shape, one.motion) for one in seen})


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train' or 'test'"):
        draw_scene(torch.Generator(), "validation")


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_tracker_recovers_the_ground_truth(motion, shape):
    generator = torch.Generator().manual_seed(MOTIONS.index(motion) * 10 + SHAPES.index(shape))
    for color in COLORS:
        truth = dataclasses.replace(draw_scene(generator), color=color, shape=shape, motion=motion)
        start = int(torch.randint(100, (), generator=generator))
        frames = render([truth], 8, start)[0]
        seen = track(frames + 0.05 * torch.randn(frames.shape, generator=generator))
        assert (seen.color, seen.shape, seen.motion) == (color, shape, motion)
        error = wrapped(seen.centers - truth.centers(torch.arange(start, start + 8))).norm(dim=1)
        assert float(error.max()) < 2


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_tracker_recovers_motions_at_another_speed(motion):
    generator = torch.Generator().manual_seed(MOTIONS.index(motion))
    for shape in SHAPES:
        truth = dataclasses.replace(draw_scene(generator), shape=shape, motion=motion)
        for num_frames in (17, 29):
            seen = track(render([truth], num_frames, speed=0.4)[0], speed=0.4)
            assert (seen.color, seen.shape, seen.motion) == (truth.color, shape, motion)
            assert seen[4:].motion == motion
            error = wrapped(seen.centers - truth.centers(torch.arange(num_frames) * 0.4)).norm(dim=1)
            assert float(error.max()) < 2


def test_the_tracker_finds_nothing_in_an_empty_frame():
    seen = track(torch.full((3, 8, SIZE, SIZE), -0.8))
    assert (seen.color, seen.shape, seen.motion) == (NOTHING, NOTHING, NOTHING)


def test_the_tracker_names_no_motion_for_a_shape_that_jumps_about():
    generator = torch.Generator().manual_seed(0)
    frames = torch.cat([render([draw_scene(generator)], 1)[0] for _ in range(8)], dim=1)
    assert track(frames).motion == NOTHING


def test_a_true_continuation_has_a_seam_of_one_step():
    whole = track(render([scene(shape="square")], 16)[0])
    assert seam_jump(whole[:8], whole[8:]) == pytest.approx(2.5, abs=0.6)
    assert mean_step([whole]) == pytest.approx(2.5, abs=0.3)
