"""Frames between frames: a moving shape moves smoothly, still things stay, ends are kept."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pytest
import torch

from vidrd_core.video.interpolation import interpolate

pytest.importorskip("cv2")


@pytest.mark.parametrize("cause", ["No module named 'cv2'", "libGL.so.1: cannot open shared object file"])
def test_without_opencv_the_message_says_what_to_install(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoOpenCV(MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "cv2":
                raise ImportError(cause)

    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.setattr(sys, "meta_path", [NoOpenCV(), *sys.meta_path])
    frames = torch.rand(2, 16, 16, 3)
    with pytest.raises(ValueError, match="pip install opencv-python-headless.* opencv-python, install that") as caught:
        interpolate(frames, 2)
    assert cause in str(caught.value)
    assert torch.equal(interpolate(frames, 1), frames)


def disc(x: float, y: float, size: int = 64, radius: float = 9.0) -> torch.Tensor:
    """A soft-edged red disc on a textured background, ``[H, W, 3]``."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (radius - ((columns - x) ** 2 + (rows - y) ** 2).sqrt() + 0.5).clamp(0, 1)[..., None]
    background = 0.25 + 0.1 * torch.sin(columns / 3.0)[..., None] * torch.cos(rows / 4.0)[..., None]
    return inside * torch.tensor([0.9, 0.2, 0.1]) + (1 - inside) * background.expand(-1, -1, 3)


def centre(frame: torch.Tensor) -> tuple[float, float]:
    red = (frame[..., 0] - frame[..., 2] - 0.1).clamp(min=0)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    return float((red * columns).sum() / red.sum()), float((red * rows).sum() / red.sum())


def test_a_disc_moves_evenly_between_its_places_and_keeps_its_shape() -> None:
    frames = torch.stack([disc(20 + 5 * n, 24 + 3 * n) for n in range(4)])
    out = interpolate(frames, 4)
    assert out.shape == (13, 64, 64, 3)
    for index, frame in enumerate(out):
        true_x, true_y = 20 + 5 * index / 4, 24 + 3 * index / 4
        x, y = centre(frame)
        assert abs(x - true_x) < 0.6 and abs(y - true_y) < 0.6, index
        error = (frame - disc(true_x, true_y)).abs().mean()
        assert error < 0.012, (index, error)


def test_it_is_better_than_a_blend() -> None:
    frames = torch.stack([disc(20, 30), disc(30, 30)])
    middle, true = interpolate(frames, 2)[1], disc(25, 30)
    assert (middle - true).abs().mean() < 0.45 * (frames.mean(0) - true).abs().mean()


def test_the_given_frames_stay_and_a_still_video_stays_still() -> None:
    frames = torch.rand(3, 40, 48, 3)
    torch.testing.assert_close(interpolate(frames, 3)[::3], frames)
    still = torch.rand(1, 40, 48, 3).expand(2, -1, -1, -1)
    torch.testing.assert_close(interpolate(still, 4), still[:1].expand(5, -1, -1, -1), atol=0.02, rtol=0)
    assert interpolate(frames, 1).shape == frames.shape and interpolate(frames[:1], 4).shape == (1, 40, 48, 3)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="expected \\[T, H, W, 3\\]"):
        interpolate(torch.rand(2, 3, 8, 8), 2)
    with pytest.raises(ValueError, match="factor is 0"):
        interpolate(torch.rand(2, 8, 8, 3), 0)
