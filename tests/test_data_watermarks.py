"""Watermarks over many videos: estimation, presence, removal by inpainting and cropping, whole runs on a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vidrd_core.data.engines import EngineSettings
from vidrd_core.data.panzoom import pan_and_zoom
from vidrd_core.data.sources import SourceSettings
from vidrd_core.data.watermarks.estimation import (
    EstimationSettings,
    Watermark,
    brightness_gradient,
    estimate,
    solve_poisson,
    video_gradient,
)
from vidrd_core.data.watermarks.removal import inpaint, largest_clear
from vidrd_core.data.watermarks.run import (
    RemovalSettings,
    WatermarkSettings,
    clean_video,
    list_videos,
    remove_watermarks,
)
from vidrd_core.video import read_video, write_video

ROOT = Path(__file__).parent.parent
HEIGHT, WIDTH, FRAMES = 96, 144, 4
MARKED, PLAIN = 24, 6  # videos of the folder with the watermark and without it


def dead_leaves(seed: int) -> np.ndarray:
    """A picture with the statistics of natural ones: objects of all sizes that hide each other, light and shade.

    The dead leaves model (Lee, Mumford and Huang 2001), uint8 [H, W, 3].
    """
    draw = np.random.default_rng(seed)
    height, width = HEIGHT * 3 // 2, WIDTH * 3 // 2
    image = np.full((height, width, 3), 128, np.uint8)
    radii = draw.permutation(1 / np.sqrt(draw.uniform(1 / 60**2, 1 / 3**2, 700)))
    base = draw.uniform(40, 215, 3)
    for radius in radii:
        centre = (int(draw.integers(width)), int(draw.integers(height)))
        axes = (int(radius) + 1, int(radius * draw.uniform(0.4, 1)) + 1)
        colour = (base + draw.normal(0, 55, 3)).clip(0, 255).tolist()
        cv2.ellipse(image, centre, axes, float(draw.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    light = cv2.resize(
        draw.uniform(0.5, 1.1, (3, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    texture = draw.normal(0, 4, (height, width, 1))
    return (image * light[..., None] + texture).clip(0, 255).astype(np.uint8)


def real_looking(seed: int) -> np.ndarray:
    """A video of a camera moving over such a picture, uint8 [T, H, W, 3]."""
    image = torch.from_numpy(dead_leaves(seed)).permute(2, 0, 1)[None].float()
    video = pan_and_zoom(image, FRAMES, (HEIGHT, WIDTH), torch.Generator().manual_seed(seed))
    return video[0].permute(1, 2, 3, 0).round().byte().numpy()


def drawn_mark() -> np.ndarray:
    """Text and a filled disc, float32 [H, W] in [0, 1]."""
    mark = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.putText(mark, "sample", (44, 84), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2, cv2.LINE_AA)
    cv2.circle(mark, (26, 78), 9, 255, -1, cv2.LINE_AA)
    return mark.astype(np.float32) / 255


def stamp(frames: np.ndarray, opacity: float, colour: float = 255.0) -> np.ndarray:
    share = (drawn_mark() * opacity)[None, :, :, None]
    return (frames * (1 - share) + colour * share).round().astype(np.uint8)


def gradient_of(frames: np.ndarray) -> np.ndarray:
    return np.median([brightness_gradient(frame) for frame in frames], axis=0).astype(np.float16)


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union."""
    return float((mask & truth).sum() / (mask | truth).sum())


def psnr(frames: np.ndarray, truth: np.ndarray, where: np.ndarray | None = None) -> float:
    """Decibels, over the whole frames or over the pixels `where`."""
    error = np.square(frames.astype(np.float64) - truth)
    return float(10 * np.log10(255**2 / (error if where is None else error[:, where]).mean()))


@pytest.fixture(scope="module")
def clean() -> list[np.ndarray]:
    return [real_looking(seed) for seed in range(MARKED + PLAIN)]


@pytest.fixture(scope="module")
def estimated(clean: list[np.ndarray]) -> Watermark:
    return estimate([gradient_of(stamp(v, 0.45)) for v in clean[:MARKED]], EstimationSettings())


@pytest.fixture(scope="module")
def folder(clean: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Marked and plain videos as h264 files, one caption, one broken file."""
    root = tmp_path_factory.mktemp("raw")
    for number, frames in enumerate(clean):
        frames = stamp(frames, 0.45) if number < MARKED else frames
        (root / f"class_{number % 2}").mkdir(exist_ok=True)
        write_video(root / f"class_{number % 2}" / f"{number:02d}.mp4", frames, 4, quality=9)
    (root / "class_0" / "00.txt").write_text("a caption", encoding="utf-8")
    (root / "class_0" / "broken.mp4").write_bytes(b"\0" * 100)
    return root


def watermark_settings(folder: Path, output: Path, **changes: object) -> WatermarkSettings:
    settings = WatermarkSettings(SourceSettings("folder", folder), output, engine=EngineSettings(workers=1))
    return replace(settings, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("opacity", "colour", "least"), [(0.6, 255.0, 0.75), (0.3, 255.0, 0.75), (0.15, 255.0, 0.7), (0.6, 0.0, 0.75)]
)
def test_the_mask_lies_on_the_watermark(clean: list[np.ndarray], opacity: float, colour: float, least: float) -> None:
    """Bright, faint, very faint and dark; the truth is where the mark has half its strength."""
    gradients = [gradient_of(stamp(v, opacity, colour)) for v in clean[:MARKED]]
    found = estimate(gradients, EstimationSettings())
    assert overlap(found.mask, drawn_mark() > 0.5) > least
    sign = np.sign(colour - 128)
    assert (found.matte[found.mask] * sign > 0).mean() > 0.95


@pytest.mark.parametrize("count", [20, 30])
def test_videos_without_a_watermark_give_an_empty_mask(clean: list[np.ndarray], count: int) -> None:
    gradients = [gradient_of(v) for v in clean[:count]]
    found = estimate(gradients, EstimationSettings())
    assert not found and not found.mask.any()


def test_still_videos_without_a_watermark_give_an_empty_mask(clean: list[np.ndarray]) -> None:
    """What stands still in one video is not what recurs over videos."""
    assert not estimate([gradient_of(v[:1]) for v in clean], EstimationSettings())


def test_a_watermark_that_not_every_video_has_is_found_and_told_apart(clean: list[np.ndarray]) -> None:
    gradients = [gradient_of(stamp(v, 0.45) if n % 4 else v) for n, v in enumerate(clean)]
    found = estimate(gradients, EstimationSettings())
    assert overlap(found.mask, drawn_mark() > 0.5) > 0.7
    told = [found.presence(g) for g in gradients]
    marked, plain = [p for n, p in enumerate(told) if n % 4], [p for n, p in enumerate(told) if not n % 4]
    assert min(marked) > 0.5 and max(plain) < 0.2


def test_the_matte_of_a_gradient_is_the_picture_itself() -> None:
    picture = np.zeros((40, 56), np.float32)
    picture[5:30, 8:40] = np.random.default_rng(0).normal(0, 30, (25, 32))
    gradient = np.zeros((2, 40, 56), np.float32)
    gradient[0, :-1], gradient[1, :, :-1] = np.diff(picture, axis=0), np.diff(picture, axis=1)
    assert np.abs(solve_poisson(gradient) - picture).max() < 1e-3


def test_too_few_videos_and_several_sizes_are_refused(clean: list[np.ndarray]) -> None:
    gradients = [gradient_of(v) for v in clean]
    with pytest.raises(ValueError, match="5 videos are too few.*20 of one size"):
        estimate(gradients[:5], EstimationSettings())
    with pytest.raises(ValueError, match="one size"):
        estimate([*gradients, gradients[0][:, :50]], EstimationSettings())


def test_inpainting_brings_the_picture_nearer_to_the_original(clean: list[np.ndarray], estimated: Watermark) -> None:
    """Where the watermark was by 4 dB and more, over all videos; elsewhere not a pixel changes."""
    touched = cv2.dilate((drawn_mark() > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    before, after = [], []
    for truth in clean[:MARKED]:
        marked = stamp(truth, 0.45)
        freed = np.stack([inpaint(frame, estimated.mask) for frame in marked])
        assert np.array_equal(freed[:, ~touched], marked[:, ~touched])
        before.append(psnr(marked, truth, drawn_mark() > 0))
        after.append(psnr(freed, truth, drawn_mark() > 0))
    assert np.mean(after) > np.mean(before) + 4
    assert np.mean(np.array(after) > np.array(before)) > 0.8


def test_the_largest_clear_rectangle_is_the_largest_of_all() -> None:
    draw = np.random.default_rng(3)
    for _ in range(20):
        mask = draw.random((12, 16)) > 0.93
        found = largest_clear(mask, grow=0)
        part = mask[found.top : found.top + found.height, found.left : found.left + found.width]
        assert part.shape == (found.height, found.width) and not part.any()
        best = max(
            h * w
            for h in range(2, 13, 2)
            for w in range(2, 17, 2)
            for top in range(13 - h)
            for left in range(17 - w)
            if not mask[top : top + h, left : left + w].any()
        )
        assert found.height * found.width == best


def test_a_mask_over_everything_leaves_nothing_to_crop() -> None:
    with pytest.raises(ValueError, match="inpaint it instead"):
        largest_clear(np.ones((8, 8), bool))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> WatermarkSettings:
    """A finished run of the script: first the estimate alone, then the removal."""
    output = tmp_path_factory.mktemp("cleaned")
    done = call(folder, output, "--estimate-only")
    assert (output / "watermarks" / f"{WIDTH}x{HEIGHT}" / "picture.png").exists() and not (output / "clean").exists()
    done = call(folder, output)
    assert f"'inpainted': {MARKED}" in done and f"'copied': {PLAIN}" in done and "'broken': 1" in done
    return watermark_settings(folder, output)


def call(folder: Path, output: Path, *flags: str) -> str:
    config = output / "run.yaml"
    config.write_text(
        yaml.safe_dump(
            {"source": {"layout": "folder", "root": str(folder)}, "output": str(output), "engine": {"workers": 1}}
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "training/remove_watermarks.py", "--config", str(config), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_folder_of_files_comes_out_clean(run: WatermarkSettings, clean: list[np.ndarray]) -> None:
    """Measured after decoding what the script wrote: the mask, and PSNR against the originals that had no mark."""
    mask = np.asarray(Image.open(run.found / f"{WIDTH}x{HEIGHT}" / "mask.png")) > 127
    assert overlap(mask, drawn_mark() > 0.5) > 0.7
    there = drawn_mark() > 0
    gains = []
    for number in range(MARKED):
        name = f"class_{number % 2}/{number:02d}.mp4"
        marked = read_video(run.source.root / name).frames
        freed = read_video(run.clean / name).frames
        gains.append(psnr(freed, clean[number], there) - psnr(marked, clean[number], there))
        assert psnr(freed, clean[number]) > psnr(marked, clean[number]) - 0.5
    assert np.mean(gains) > 3.5
    for number in range(MARKED, MARKED + PLAIN):
        name = f"class_{number % 2}/{number:02d}.mp4"
        assert (run.clean / name).read_bytes() == (run.source.root / name).read_bytes()
    assert (run.clean / "class_0" / "00.txt").read_text(encoding="utf-8") == "a caption"


def test_every_video_is_in_the_report_with_its_reason(run: WatermarkSettings) -> None:
    rows = [json.loads(line) for line in (run.output / "report.jsonl").read_text(encoding="utf-8").splitlines()]
    actions = {row["source"]: row for row in rows}
    assert len(rows) == len(actions) == MARKED + PLAIN + 1
    assert actions["class_0/broken.mp4"]["action"] == "broken"
    assert actions["class_0/00.mp4"]["presence"] > 0.5
    assert actions[f"class_1/{MARKED + 1:02d}.mp4"]["reason"] == "not in this video"


def test_running_again_does_nothing_and_other_settings_are_refused(run: WatermarkSettings) -> None:
    assert not remove_watermarks(run)
    with pytest.raises(ValueError, match="begun with other settings of removal"):
        remove_watermarks(replace(run, removal=RemovalSettings("crop")))


def test_a_mask_drawn_by_hand_is_what_is_removed_and_a_crop_leaves_nothing_of_it(folder: Path, tmp_path: Path) -> None:
    settings = watermark_settings(folder, tmp_path, removal=RemovalSettings("crop", quality=10))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[66:90, 14:130] = 255
    place = settings.found / f"{WIDTH}x{HEIGHT}"
    place.mkdir(parents=True)
    Image.fromarray(mask).save(place / "mask.png")
    item = next(i for i in list_videos(settings.source) if i.name == "class_0/00.mp4")
    assert clean_video(item, settings)["action"] == "cropped"
    cropped = read_video(settings.clean / item.name).frames
    assert cropped.shape == (FRAMES, 64, WIDTH, 3)
    assert psnr(cropped, read_video(item.path).frames[:, :64]) > 40


def test_a_crop_that_would_leave_too_little_paints_over_instead(folder: Path, tmp_path: Path) -> None:
    settings = watermark_settings(folder, tmp_path, removal=RemovalSettings("crop", min_share=0.9))
    place = settings.found / f"{WIDTH}x{HEIGHT}"
    place.mkdir(parents=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:44, 60:80] = 255
    Image.fromarray(mask).save(place / "mask.png")
    item = list_videos(settings.source)[0]
    assert clean_video(item, settings)["action"] == "inpainted"
    assert read_video(settings.clean / item.name).frames.shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_a_mask_of_another_size_is_told_before_it_costs_a_video(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "watermarks" / f"{WIDTH}x{HEIGHT}"
    place.mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT + 2), 255).save(place / "mask.png")
    with pytest.raises(ValueError, match=rf"mask\.png is {WIDTH}x{HEIGHT + 2}, the videos are {WIDTH}x{HEIGHT}"):
        remove_watermarks(watermark_settings(folder, tmp_path))
    assert not (tmp_path / "report.jsonl").exists()


def test_two_videos_that_would_become_one_file_are_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.avi"):
        (tmp_path / name).write_bytes(b"no matter")
    with pytest.raises(ValueError, match=r"a\.avi and a\.mp4 would both become one MP4"):
        remove_watermarks(watermark_settings(tmp_path, tmp_path / "out"))


def test_a_video_that_breaks_off_leaves_no_torso(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    whole = (folder / "class_0" / "00.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    settings = watermark_settings(root, tmp_path / "out")
    place = settings.found / f"{WIDTH}x{HEIGHT}"
    place.mkdir(parents=True)
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(place / "mask.png")
    assert clean_video(list_videos(settings.source)[0], settings)["action"] == "broken"
    assert not list(settings.clean.rglob("*.mp4"))


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    assert f"{MARKED + PLAIN + 1} videos" in call(folder, tmp_path, "--dry-run")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_broken_video_has_no_gradient_and_says_so(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        video_gradient(folder / "class_0" / "broken.mp4", 3)


def test_only_the_script_that_removes_watermarks_needs_their_code():
    files = [*(ROOT / "vidrd_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py"), *(ROOT / "training").glob("*.py")]
    others = [path for path in files if path.parent.name != "watermarks"]
    assert [path.name for path in others if ".watermarks" in path.read_text(encoding="utf-8")] == [
        "remove_watermarks.py"
    ]
