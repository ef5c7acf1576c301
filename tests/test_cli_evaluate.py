"""vidrd evaluate, from its arguments to what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidrd_core.cli import main
from vidrd_core.video import write_video


@pytest.fixture
def video(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / "out.mp4", frames, fps=4)
    return tmp_path / "out.mp4"


def made_by_vidrd(folder: Path, more: dict[str, object] | None = None, **settings: object) -> Path:
    path = folder / "made.mp4"
    frames = np.zeros((15, 32, 32, 3), np.uint8)
    write_video(path, frames, fps=4, metadata={"settings": settings, **(more or {})})
    return path


def seams_of(*arguments: str, into: Path) -> list[int]:
    assert main(["evaluate", *arguments, "--no-chart", "--json", str(into / "out.json")]) == 0
    seams: list[int] = json.loads((into / "out.json").read_text(encoding="utf-8"))["seams"]
    return seams


def test_evaluate_prints_a_report_and_writes_numbers_and_a_chart(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, chart = tmp_path / "new" / "out.json", tmp_path / "new" / "chart.png"
    assert main(["evaluate", str(video), "--clip-length", "4", "--json", str(numbers), "--chart", str(chart)]) == 0
    printed = capsys.readouterr()
    assert "12 frames in 3 clips of up to 4" in printed.out and f"wrote {chart}" in printed.err
    stored = json.loads(numbers.read_text(encoding="utf-8"))
    assert stored["seams"] == [4, 8] and "warping error, at seams" in stored["figures"]
    with Image.open(chart) as image:
        assert image.width > 1000


def test_the_chart_goes_beside_the_video_unless_it_is_not_wanted(video: Path) -> None:
    chart = video.with_name("out_seams.png")
    assert main(["evaluate", str(video), "--clip-length", "4", "--no-chart"]) == 0 and not chart.exists()
    assert main(["evaluate", str(video), "--clip-length", "4"]) == 0 and chart.is_file()


def test_a_video_that_says_how_it_was_made_needs_no_clip_length(tmp_path: Path) -> None:
    path = made_by_vidrd(tmp_path, num_frames=4, reuse={"trim_frames": 1})
    assert seams_of(str(path), into=tmp_path) == [4, 7, 10, 13]
    assert seams_of(str(path), "--clip-length", "5", into=tmp_path) == [5, 10]


def test_a_video_that_continues_a_state_says_how_long_its_first_clip_is(tmp_path: Path) -> None:
    path = made_by_vidrd(tmp_path, {"first_clip_frames": 5}, num_frames=8, reuse={"trim_frames": 3})
    assert seams_of(str(path), into=tmp_path) == [5, 10]
    assert seams_of(str(path), "--clip-length", "8", into=tmp_path) == [5, 10]
    assert seams_of(str(path), "--clip-length", "6", into=tmp_path) == [6, 12]


def test_a_last_clip_that_is_longer_than_the_others_as_a_loop_s_has_no_seam_within(tmp_path: Path) -> None:
    path = made_by_vidrd(tmp_path, {"clips": [{"prompt": "a dot"}] * 4}, num_frames=4, reuse={"trim_frames": 1})
    assert seams_of(str(path), into=tmp_path) == [4, 7, 10]
    assert seams_of(str(path), "--clip-length", "3", into=tmp_path) == [3, 6, 9, 12]


def test_pngs_of_another_tool_need_no_frame_rate(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    assert seams_of(str(tmp_path), "--clip-length", "3", into=tmp_path) == [3]


def test_the_current_folder_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(folder / f"{number}.png")
    monkeypatch.chdir(folder)
    assert main(["evaluate", ".", "--clip-length", "2"]) == 0
    assert (tmp_path / "frames_seams.png").is_file()


def test_a_clip_length_beyond_the_video_is_reported(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(video), "--clip-length", "40", "--no-chart"]) == 0
    assert "Is the clip length right?" in capsys.readouterr().out


def test_a_long_video_is_not_held_in_memory(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "stack", None)  # what puts all frames into one array
    assert main(["evaluate", str(video), "--clip-length", "4", "--no-chart"]) == 0


def test_the_help_says_that_the_warping_error_is_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "not the published one" in capsys.readouterr().out


def test_mistakes_end_in_one_line_that_says_what_to_do(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in [
        ([str(video)], "give --clip-length"),
        ([str(tmp_path / "none.mp4"), "--clip-length", "4"], "no such video"),
        ([str(video), "--clip-length", "0"], "at least 1"),
        ([str(video), "--clip-length", "4", "--chart", "chart.txt"], "ends in .png"),
        ([str(video), "--clip-length", "4", "--prompt", "a dog"], "needs --clip-model"),
        ([str(video), "--clip-length", "4", "--clip-model", str(tmp_path)], "CLIPModel"),
    ]:
        assert main(["evaluate", *arguments]) == 1
        assert message in capsys.readouterr().err
