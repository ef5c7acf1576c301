"""The node Seam Report as a user meets it: a chart in the graph, a report as text, and what it says to wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def test_the_chart_is_shown_and_the_report_says_what_was_measured(nodes: dict[str, Any], base: Path) -> None:
    call = nodes["VidRDSeamReport"]
    found = call.node.execute(images=torch.rand(12, 32, 32, 3), clip_length=4, trim_frames=1)
    chart, report = found.args
    assert chart.ndim == 4 and chart.shape[0] == 1 and chart.shape[3] == 3 and 0 <= float(chart.min()) < 0.9
    assert "12 frames in 4 clips of up to 4" in report
    (shown,) = found.ui.as_dict()["images"]
    assert (base / "temp" / shown["filename"]).is_file()


def test_a_single_picture_is_no_video(nodes: dict[str, Any], base: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 frames"):
        nodes["VidRDSeamReport"](images=torch.rand(1, 32, 32, 3), clip_length=4, trim_frames=0)
    with pytest.raises(ValueError, match="less trimmed"):
        nodes["VidRDSeamReport"](images=torch.rand(4, 32, 32, 3), clip_length=4, trim_frames=4)
