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


def made_by_vidrd(folder: Path, **settings: object) -> Path:
    path = folder / "made.mp4"
    write_video(path, np.zeros((10, 32, 32, 3), np.uint8), fps=4, metadata={"settings": settings})
    return path


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


def test_a_video_that_says_how_it_was_made_needs_no_clip_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made_by_vidrd(tmp_path, num_frames=4, reuse={"trim_frames": 1})
    numbers = tmp_path / "out.json"
    assert main(["evaluate", str(path), "--no-chart", "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text(encoding="utf-8"))["seams"] == [4, 7]
    assert main(["evaluate", str(path), "--no-chart", "--clip-length", "5", "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text(encoding="utf-8"))["seams"] == [5]


def test_mistakes_end_in_one_line_with_a_remedy(
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
