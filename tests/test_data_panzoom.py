"""Pan and zoom: images as video, vidrd_core.data.panzoom."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vidrd_core.data.panzoom import PanZoomSettings, camera_windows, pan_and_zoom

ROOT = Path(__file__).parent.parent


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texture(height: int, width: int, seed: int = 0, count: int = 1) -> torch.Tensor:
    """Pictures with the 1/f spectrum of natural images, [count, 3, H, W] in [-1, 1]."""
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    noise = torch.randn(count, 3, height, width, generator=seeded(seed))
    image = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency.clamp(min=1 / max(height, width)), s=(height, width))
    return (image / image.abs().amax(dim=(1, 2, 3), keepdim=True)).float()


def ramps(height: int, width: int) -> torch.Tensor:
    """An image whose red says the row and green the column of each point, as shares of the image."""
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack([y, x, torch.zeros_like(x)])[None]


@pytest.mark.parametrize("image_size", [(64, 64), (80, 200), (300, 70)])
@pytest.mark.parametrize("size", [(64, 64), (32, 56)])
def test_the_camera_never_leaves_the_image(image_size: tuple[int, int], size: tuple[int, int]) -> None:
    settings = PanZoomSettings(max_speed=0.3, max_zoom_speed=0.2, max_zoom=4.0)
    windows = camera_windows(400, 16, image_size, size, seeded(0), settings)
    ends = windows[..., :2] + windows[..., 2:]
    assert windows.min() > -1e-12 and ends.max() < 1 + 1e-12
    # The window keeps the wanted aspect ratio: nothing is stretched.
    aspect = windows[..., 3] * image_size[1] / (windows[..., 2] * image_size[0])
    assert torch.allclose(aspect, torch.full_like(aspect, size[1] / size[0]))


def test_directions_positions_speeds_and_zooms_vary_and_are_not_biased() -> None:
    settings = PanZoomSettings(min_zoom=1.5)
    windows = camera_windows(2000, 8, (200, 200), (64, 64), seeded(1), settings)
    centres = windows[..., :2] + windows[..., 2:] / 2
    travel = centres[:, -1] - centres[:, 0]
    angle = torch.atan2(travel[:, 0], travel[:, 1])
    octants = torch.histc(angle, 8, -math.pi, math.pi) / 2000
    assert octants.min() > 0.09 and octants.max() < 0.16
    growth = windows[:, -1, 3] / windows[:, 0, 3]
    assert 0.2 < (growth < 0.999).double().mean() < 0.45  # zooms in
    assert 0.2 < (growth > 1.001).double().mean() < 0.45  # zooms out
    assert 0.2 < ((growth - 1).abs() <= 0.001).double().mean() < 0.5
    # Start: any place of the image, evenly to both sides.
    assert (centres[:, 0].mean(0) - 0.5).abs().max() < 0.02
    assert centres[:, 0].std(0).min() > 0.08
    speed = travel.norm(dim=1) / 7 / windows[:, :, 3].mean(1)
    assert speed.max() <= settings.max_speed + 1e-9
    assert speed.quantile(0.9) > 2 * speed.quantile(0.1)


def test_each_pixel_shows_the_point_of_the_image_that_the_window_says() -> None:
    video = pan_and_zoom(ramps(96, 160), 5, (32, 40), seeded(3))
    windows = camera_windows(1, 5, (96, 160), (32, 40), seeded(3))[0]
    centre_row = (windows[:, 0] + windows[:, 2] / 2).float()
    centre_column = (windows[:, 1] + windows[:, 3] / 2).float()
    middle = video[0, :, :, 15:17, 19:21].mean(dim=(2, 3))
    assert torch.allclose(middle[0], centre_row, atol=1e-3)
    assert torch.allclose(middle[1], centre_column, atol=1e-3)
    # The visible heights: from the first to the last row of pixel centres.
    span = (video[0, 0, :, -1, 20] - video[0, 0, :, 0, 20]) * 32 / 31
    assert torch.allclose(span, windows[:, 2].float(), rtol=0.02)


def test_motion_is_smooth_without_jitter_of_whole_pixels() -> None:
    """The shift between neighbouring frames, measured in the pictures, is the same all along, to 1/20 pixel."""
    settings = PanZoomSettings(min_speed=0.004, max_speed=0.02, zoom_probability=0.0, min_zoom=1.5)
    video = pan_and_zoom(texture(160, 160), 9, (64, 64), seeded(5), settings)[0].mean(0)
    shifts = torch.stack([measured_shift(video[t], video[t + 1]) for t in range(8)])
    assert shifts.norm(dim=1).min() > 0.1  # below one pixel per frame: rounding would show
    assert (shifts - shifts.mean(0)).abs().max() < 0.05
    windows = camera_windows(1, 9, (160, 160), (64, 64), seeded(5), settings)[0]
    expected = (windows[1, :2] - windows[0, :2]) / windows[0, 2:] * 64
    assert torch.allclose(shifts.mean(0).double(), expected, atol=0.05)


def measured_shift(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(rows, columns) the camera has moved, by least squares on the gradients (Lucas and Kanade, 1981)."""
    shift = torch.zeros(2)
    inner = (slice(4, -4), slice(4, -4))
    for _ in range(4):
        moved = resample(second, -shift)
        mean = (first + moved) / 2
        dy, dx = torch.gradient(mean)
        a = torch.stack([dy[inner].flatten(), dx[inner].flatten()], 1)
        shift = shift + torch.linalg.lstsq(a, (moved - first)[inner].flatten()[:, None]).solution[:, 0]
    return shift


def resample(image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    height, width = image.shape
    theta = torch.tensor([[1.0, 0.0, 2 * shift[1] / width], [0.0, 1.0, 2 * shift[0] / height]])[None]
    grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
    return F.grid_sample(image[None, None], grid, "bicubic", "border", align_corners=False)[0, 0]


def test_frames_between_two_pixels_are_as_sharp_as_those_on_them() -> None:
    settings = PanZoomSettings(min_speed=0.003, max_speed=0.01, zoom_probability=0.0, min_zoom=2.0)
    video = pan_and_zoom(texture(192, 192, seed=2), 12, (64, 64), seeded(8), settings)[0]
    detail = torch.stack([(video[:, t, 1:] - video[:, t, :-1]).std() for t in range(12)])
    assert (detail.max() - detail.min()) / detail.mean() < 0.06


def test_fine_patterns_turn_grey_instead_of_aliasing() -> None:
    """A checkerboard of single pixels, seen six times smaller, holds no detail that a pixel could show."""
    board = ((torch.arange(384)[:, None] + torch.arange(384)[None]) % 2 * 2.0 - 1)[None, None].expand(1, 3, -1, -1)
    settings = PanZoomSettings(max_zoom=1.2)
    video = pan_and_zoom(board, 6, (64, 64), seeded(0), settings)
    assert video.abs().max() < 0.1


def test_the_same_seed_moves_alike_and_another_does_not() -> None:
    image = texture(96, 96)
    first, again, other = (pan_and_zoom(image, 4, (48, 48), seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.01)


def test_an_image_moves_alike_alone_and_in_a_batch() -> None:
    images = texture(96, 128, count=3)
    batch = pan_and_zoom(images, 4, (48, 48), [seeded(s) for s in (4, 5, 6)])
    alone = pan_and_zoom(images[1:2], 4, (48, 48), seeded(5))
    assert batch.shape == (3, 3, 4, 48, 48)
    assert torch.allclose(batch[1], alone[0], atol=1e-6)


@pytest.mark.gpu
def test_a_gpu_shows_what_the_cpu_shows() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = texture(96, 128)
    cpu = pan_and_zoom(image, 4, (48, 48), seeded(5))
    gpu = pan_and_zoom(image.cuda(), 4, (48, 48), seeded(5)).cpu()
    assert torch.allclose(cpu, gpu, atol=1e-3)


def test_half_precision_and_a_single_frame_work() -> None:
    video = pan_and_zoom(texture(64, 64).half(), 1, (64, 64), seeded(0))
    assert video.dtype == torch.float16 and video.shape == (1, 3, 1, 64, 64)
    assert bool(video.isfinite().all()) and video.abs().max() <= 1


@pytest.mark.parametrize(
    ("image", "frames", "message"),
    [
        (torch.zeros(1, 3, 1, 1), 4, "1x1 image is smaller than the wanted 32x32"),
        (torch.zeros(1, 1, 64, 64), 4, r"\[B, 3, H, W\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), 4, "floating-point"),
        (torch.zeros(1, 3, 64, 64), 0, "num_frames"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_their_size(image: torch.Tensor, frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pan_and_zoom(image, frames, (32, 32), seeded(0))


def test_a_sample_sheet_shows_a_row_per_image_and_skips_what_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        pixels = (texture(72, 96, seed=index)[0].permute(1, 2, 0).numpy() * 127 + 128).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, "training/preview_panzoom.py", "--images", str(folder), "--output", str(sheet)]
    done = subprocess.run(
        [*command, "--size", "64", "64", "--num-frames", "4"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 images" in done.stderr and "broken.jpg" in done.stderr and "dot.png" in done.stderr
    with Image.open(sheet) as image:
        assert image.width > 4 * 64
