"""Seams, motion and drift of any video: what the measures say of faults that were put in."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from vidrd_core.metrics.anyvideo import clip_seams, evaluate_video, flow_agreement, warping_error
from vidrd_core.metrics.charts import draw_report, to_pixels

SIZE, SPEED = 96, 3


def picture() -> Tensor:
    """A smooth pattern with detail everywhere, wider than the view."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 12, 40, generator=generator)
    return torch.nn.functional.interpolate(coarse, (SIZE, 320), mode="bicubic")[0].clamp(0, 1)


def view(time: int) -> Tensor:
    """The picture moving to the left, ``[H, W, 3]``."""
    return picture()[:, :, SPEED * time : SPEED * time + SIZE].permute(1, 2, 0)


def video(*times: int) -> Tensor:
    return torch.stack([view(time) for time in times])


def test_a_smooth_video_has_no_seams() -> None:
    figures = evaluate_video(video(*range(16)), 8).figures()
    assert figures["change from frame to frame, seams / inside"] == pytest.approx(1, abs=0.1)
    assert figures["motion, inside clips"] == pytest.approx(SPEED, rel=0.15)
    assert figures["flow agreement, at seams"] > 0.9
    assert figures["warping error, inside clips"] < 0.5 * figures["change from frame to frame, inside clips"]


def test_a_jump_over_a_seam_shows_in_change_and_motion() -> None:
    figures = evaluate_video(video(*range(8), *range(11, 19)), 8).figures()
    assert figures["change from frame to frame, seams / inside"] > 1.5
    assert figures["motion, seams / inside"] > 2


def test_motion_that_reverses_after_a_seam_has_negative_agreement() -> None:
    for back in (range(6, -1, -1), range(7, -1, -1)):  # the second repeats the frame at the turn
        report = evaluate_video(video(*range(8), *back), 8)
        assert report.agreement[7] is not None and report.agreement[7] < -0.8
        figures = report.figures()
        assert figures["flow agreement, inside clips"] > 0.8 and figures["flow agreement, at seams"] < -0.8


def test_colour_drift_is_reported_by_channel() -> None:
    frames = video(*range(8), *range(8, 16)) * 0.5
    frames[8:, :, :, 0] += 10 / 255
    figures = evaluate_video(frames, 8).figures()
    assert figures["drift of red, last clip"] - figures["drift of green, last clip"] == pytest.approx(10, abs=3)


def test_bytes_and_floats_measure_alike() -> None:
    frames = video(*range(6))
    levels = np.rint(frames.numpy() * 255).astype(np.uint8)
    assert evaluate_video(levels, 3).change == pytest.approx(evaluate_video(frames, 3).change, abs=0.5)


def test_large_frames_are_measured_at_256_pixels() -> None:
    assert evaluate_video(torch.rand(2, 300, 600, 3), 1).size == (256, 512)


def test_a_shift_along_the_flow_has_no_warping_error() -> None:
    before, after = (view(time).permute(2, 0, 1) for time in (0, 1))
    flow = torch.zeros(2, SIZE, SIZE)
    flow[0] = -SPEED
    assert warping_error(before, after, flow, -flow) == pytest.approx(0, abs=0.05)
    assert warping_error(before, after, torch.zeros_like(flow), torch.zeros_like(flow)) > 1


def test_flow_agreement_is_a_cosine_and_nothing_where_nothing_moves() -> None:
    flow = torch.ones(2, 4, 4)
    turned = torch.stack((flow[0], -flow[1]))
    assert flow_agreement(flow, 3 * flow) == pytest.approx(1) and flow_agreement(flow, -flow) == pytest.approx(-1)
    assert flow_agreement(flow, turned) == pytest.approx(0)
    assert flow_agreement(flow, 0 * flow) is None


def test_streamed_frames_give_the_same_report_and_are_not_held() -> None:
    held: list[weakref.ref[Tensor]] = []
    most = 0

    def frames() -> Iterator[Tensor]:
        nonlocal most
        for time in range(12):
            frame = view(time).clone()
            held.append(weakref.ref(frame))
            most = max(most, sum(reference() is not None for reference in held))
            yield frame
            del frame

    report, whole = evaluate_video(frames(), 4), evaluate_video(video(*range(12)), 4)
    assert (report.frames, report.seams) == (whole.frames, whole.seams) == (12, [4, 8])
    assert report.change == pytest.approx(whole.change) and report.agreement == pytest.approx(whole.agreement)
    assert most <= 3


def test_frames_turned_upright_can_be_measured() -> None:
    turned = [np.rot90(frame.numpy(), 1) for frame in video(0, 1, 2)]
    assert evaluate_video(iter(turned), 2).change == pytest.approx(evaluate_video(video(0, 1, 2), 2).change, abs=1e-3)


def test_frames_that_come_one_by_one_are_checked() -> None:
    for frames, message in (
        ([], "no frames"),
        ([torch.zeros(8, 8, 3)], "at least 2 frames"),
        ([torch.zeros(8, 8, 3), torch.zeros(8, 9, 3)], r"frame 1 is \[8, 9, 3\]"),
        ([torch.zeros(8, 8)], r"frame 0 is \[8, 8\]"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_video(iter(frames), 2)


def test_a_first_clip_that_was_trimmed_too_moves_all_seams() -> None:
    assert clip_seams(15, 8, 3, first_clip=5) == [5, 10]
    with pytest.raises(ValueError, match="first clip has 9 frames"):
        clip_seams(15, 8, 3, first_clip=9)
    frames = torch.zeros(15, 16, 16, 3)
    frames[5:] = 0.5
    report = evaluate_video(frames, 8, 3, first_clip=5)
    assert report.seams == [5, 10] and report.color_drift[0] == (0, 0, 0)
    assert report.figures()["change from frame to frame, inside clips"] == 0


class TinyClip:
    """Embeds a frame as its mean colour, tilted a little."""

    def images(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.normalize(frames.mean((3, 4)).transpose(1, 2) + 3, dim=-1)


def test_clip_consistency_is_printed_finely_enough_to_tell_videos_apart_and_drawn() -> None:
    report = evaluate_video(video(*range(12)), 4, clip=TinyClip())  # type: ignore[arg-type]
    figures = report.figures()
    assert f"{figures['CLIP consistency, inside clips']:.4f}" in report.text()
    titles = [axis.get_title(loc="left") for axis in draw_report(report).axes]
    assert len(titles) == 5 and "CLIP consistency of neighbouring frames" in titles


def test_the_chart_shows_where_motion_reverses() -> None:
    report = evaluate_video(video(*range(8), *range(6, -1, -1)), 8)
    (axis,) = [a for a in draw_report(report).axes if "reversed" in a.get_title(loc="left")]
    drawn = [float(y) for y in axis.lines[0].get_ydata()]  # type: ignore[union-attr, arg-type]
    assert min(y for y in drawn if y == y) < -0.8


def test_seams_lie_where_clips_begin() -> None:
    assert clip_seams(32, 8) == [8, 16, 24] and clip_seams(8, 8) == []
    assert clip_seams(20, 8, 4) == [8, 12, 16]
    with pytest.raises(ValueError, match="at least 1"):
        clip_seams(8, 4, 4)


def test_a_report_is_text_json_and_a_picture() -> None:
    report = evaluate_video(video(*range(6)), 3)
    assert "2 clips of up to 3" in report.text() and "warping error" in report.text()
    stored = json.loads(json.dumps(report.to_json()))
    assert len(stored["change"]) == 5 and stored["seams"] == [3]
    assert (stored["clip_length"], stored["trim_frames"]) == (3, 0)
    assert all(value is None or math.isfinite(value) for value in stored["figures"].values())
    chart = to_pixels(draw_report(report))
    assert chart.shape[2] == 3 and chart.shape[1] > 1000 and 0 <= float(chart.min()) < 0.5 < float(chart.max()) <= 1


def test_a_single_clip_and_a_still_video_can_be_measured() -> None:
    report = evaluate_video(torch.full((4, 32, 32, 3), 0.5), 8)
    assert "4 frames in 1 clip of up to 8" in report.text() and "Is the clip length right?" in report.text()
    assert report.seams == [] and report.figures()["change from frame to frame, at seams"] is None
    assert to_pixels(draw_report(report)).ndim == 3


def test_other_shapes_are_refused() -> None:
    for shape in ((1, 8, 8, 3), (4, 8, 8), (4, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"expected \[T, H, W, 3\]"):
            evaluate_video(torch.zeros(shape), 2)
