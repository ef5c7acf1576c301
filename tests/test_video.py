"""Videos on disk: every format round-trips with its metadata, stops cleanly, and refuses early and clearly."""

import _thread
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidrd_core.video import (
    ContactSheet,
    VideoError,
    VideoWriter,
    contact_sheet,
    estimate_bytes,
    probe_output,
    read_metadata,
    read_video,
    to_uint8,
    write_video,
)

NAMES = ["out.mp4", "out.webm", "out.gif", "out"]
FILES = NAMES[:3]
UNICODE = "ein schöner roter Kreis … 红色的圆 красный круг \N{LARGE RED CIRCLE}"


def moving_square(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A red square on blue that moves two pixels to the right in each frame; even edges survive 4:2:0."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = (20, 30, 120)
    for t in range(num_frames):
        left = 2 * t % (width - 16)
        frames[t, 8:24, left : left + 16] = (220, 40, 30)
    return frames


def noise(num_frames: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, size, size, 3), np.uint8)


def left_edges(frames: np.ndarray) -> list[int]:
    """The square's first column in each frame."""
    return [int((frame[16, :, 0] > 120).argmax()) for frame in frames]


@pytest.mark.parametrize("fps", [8, 24, 7.5])
@pytest.mark.parametrize("name", NAMES)
def test_frames_their_number_and_their_rate_survive_the_round_trip(tmp_path: Path, name: str, fps: float) -> None:
    frames = moving_square(20)
    write_video(tmp_path / name, frames, fps)
    clip = read_video(tmp_path / name)
    assert clip.frames.shape == frames.shape
    assert clip.frames.dtype == np.uint8
    assert clip.fps == pytest.approx(fps, rel=0 if name != "out.gif" else 0.01)
    assert left_edges(clip.frames) == left_edges(frames)
    assert np.abs(clip.frames.astype(int) - frames).mean() < 3
    # Flat colours are right to two levels: the matrix and the range that encode are those that decode.
    assert np.abs(clip.frames[0, 40, 50].astype(int) - frames[0, 40, 50]).max() <= 2
    assert os.listdir(tmp_path) == [name]


def test_png_and_a_gif_of_few_colours_are_lossless(tmp_path: Path) -> None:
    frames = moving_square(5)
    for name in ("out", "out.gif"):
        write_video(tmp_path / name, frames, 8)
        assert np.array_equal(read_video(tmp_path / name).frames, frames)


@pytest.mark.parametrize("name", NAMES)
def test_metadata_comes_back_whole_from_inside_the_file(tmp_path: Path, name: str) -> None:
    metadata = {"prompts": [UNICODE, 'a "quoted"\nline\0', "\udc80"], "seed": 2**53, "guidance": 10.5, "none": None}
    metadata["workflow"] = "長い " * 50_000
    write_video(tmp_path / name, moving_square(2), 8, metadata)
    assert read_metadata(tmp_path / name) == metadata
    assert len(read_video(tmp_path / name).frames) == 2


@pytest.mark.parametrize("name", NAMES)
def test_metadata_can_be_replaced_until_the_video_is_closed(tmp_path: Path, name: str) -> None:
    frames = noise(13)
    write_video(tmp_path / f"plain_{name}", frames, 7.5)
    with VideoWriter(tmp_path / name, 7.5, metadata={"clips": ["a", "b"], "frames": 99}) as writer:
        writer.write(frames)
        writer.describe({"clips": ["a"]})
    changed, plain = read_video(tmp_path / name), read_video(tmp_path / f"plain_{name}")
    assert read_metadata(tmp_path / name) == {"clips": ["a"]}
    assert np.array_equal(changed.frames, plain.frames) and changed.fps == plain.fps
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"plain_{name}"])


@pytest.mark.parametrize("name", NAMES)
def test_a_discarded_video_leaves_the_old_one(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, moving_square(3), 8)
    with VideoWriter(tmp_path / name, 8) as writer:
        writer.write(moving_square(1))
        writer.discard()
    assert len(read_video(tmp_path / name).frames) == 3
    assert os.listdir(tmp_path) == [name]


def test_infinite_numbers_are_text_that_float_reads(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", moving_square(1), 8, {"reuse": {"noise_alpha": float("inf")}, "list": [(1.5,)]})
    metadata = read_metadata(tmp_path / "out.mp4")
    assert metadata == {"reuse": {"noise_alpha": "inf"}, "list": [[1.5]]}
    assert float(metadata["reuse"]["noise_alpha"]) == float("inf")


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [("out.mp4", 0, "got 0"), ("out.mp4", float("nan"), "got nan"), ("out.mp4", float("inf"), "got inf"),
     ("out.webm", 1000, "at most 240 for .webm"), ("out.gif", 60, "at most 50 for .gif"),
     ("out", -1, "at most 240 for a folder of PNGs"), ("out.mp4", 1e-9, "above 0")],
)  # fmt: skip
def test_probing_refuses_a_rate_that_the_format_cannot_have(
    tmp_path: Path, name: str, fps: float, message: str
) -> None:
    with pytest.raises(VideoError, match=message):
        probe_output(tmp_path / name, fps=fps)
    with pytest.raises(VideoError, match=message):
        VideoWriter(tmp_path / name, fps)


@pytest.mark.parametrize("name", NAMES)
def test_a_video_without_metadata_reads_as_an_empty_dictionary(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, moving_square(2), 8)
    assert read_metadata(tmp_path / name) == {}


def test_metadata_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="JSON"):
        VideoWriter(tmp_path / "out.mp4", 8, metadata={"seed": object()})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_frames_give_the_same_file_however_they_are_cut(tmp_path: Path, name: str) -> None:
    frames = noise(13)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_video(tmp_path / "a" / name, frames, 8, {"seed": 1})
    write_video(tmp_path / "b" / name, (frames[i : i + 4] for i in range(0, 13, 4)), 8, {"seed": 1})
    first, second = ([f.read_bytes() for f in sorted((tmp_path / x).rglob("*.*"))] for x in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("name", "shape"), [("out.mp4", (66, 34)), ("out.webm", (66, 34)), ("out.gif", (65, 33)), ("out", (65, 33))]
)
def test_odd_sizes_are_padded_with_the_last_row_and_column_where_the_format_needs_even_ones(
    tmp_path: Path, name: str, shape: tuple[int, int]
) -> None:
    frames = np.full((3, 65, 33, 3), 200, np.uint8)
    write_video(tmp_path / name, frames, 8)
    back = read_video(tmp_path / name).frames
    assert back.shape[1:3] == shape
    assert np.abs(back.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_single_tiny_frame_is_a_video(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, np.zeros((1, 2, 2, 3), np.uint8), 8)
    clip = read_video(tmp_path / name)
    assert clip.frames.shape == (1, 2, 2, 3)
    assert clip.fps == 8


def test_floats_in_zero_to_one_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    floats = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(1, 64, 64, 3)
    write_video(tmp_path / "out", floats, 8)
    assert np.array_equal(read_video(tmp_path / "out").frames, np.rint(floats * 255))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 3, 64, 64), np.uint8), r"\[2, 3, 64, 64\]"),
        (np.zeros((64, 64, 3), np.uint8), r"\[64, 64, 3\]"),
        (np.full((1, 8, 8, 3), -1.0), r"-1 to -1"),
        (np.full((1, 8, 8, 3), 255.0), r"255"),
        (np.full((1, 8, 8, 3), np.nan), r"nan"),
        (np.zeros((1, 8, 8, 3), np.int64), r"int64"),
    ],
)
def test_frames_in_another_convention_are_refused_with_what_came(
    tmp_path: Path, frames: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "out.mp4", frames, 8)
    assert not os.listdir(tmp_path)


def test_frames_of_another_size_are_refused_with_both_sizes(tmp_path: Path) -> None:
    with (
        pytest.raises(VideoError, match="96x64 so far, got one of 32x48"),
        VideoWriter(tmp_path / "o.gif", 8) as writer,
    ):
        writer.write(moving_square(2))
        writer.write(moving_square(2, 48, 32))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1000])
def test_an_impossible_frame_rate_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(VideoError, match="fps"):
        VideoWriter(tmp_path / "out.mp4", fps)


def test_a_gif_faster_than_browsers_play_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="50"):
        VideoWriter(tmp_path / "out.gif", 60)


def test_a_video_without_frames_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no frames"), VideoWriter(tmp_path / "out.mp4", 8):
        pass
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_before_an_interrupt_stays_playable(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(tmp_path / name, 8, metadata={"seed": 3}) as writer,
    ):
        writer.write(moving_square(11))
        raise KeyboardInterrupt
    clip = read_video(tmp_path / name)
    assert left_edges(clip.frames) == left_edges(moving_square(11))
    assert clip.fps == 8
    assert read_metadata(tmp_path / name) == {"seed": 3}
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(
    sys.platform == "win32", reason="a lock cannot be interrupted there, so the frame is finished first"
)
@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_in_the_middle_of_encoding_loses_no_frame(tmp_path: Path, name: str) -> None:
    frames = noise(4)
    timer = threading.Timer(0.15, _thread.interrupt_main)
    try:
        with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / name, 8) as writer:
            timer.start()
            for _ in range(5000):
                writer.write(frames)
    finally:
        timer.cancel()
    assert len(read_video(tmp_path / name).frames) == writer.frames_written > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_before_the_first_frame_leaves_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / name, 8):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_writer_leaves_the_old_video_alone_and_a_rerun_cleans_up(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, moving_square(3), 8)
    script = (
        "import os, sys, numpy; from vidrd_core.video import VideoWriter\n"
        "VideoWriter(sys.argv[1], 8).write(numpy.zeros((5, 16, 16, 3), 'uint8')); os._exit(9)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], cwd=root)
    assert done.returncode == 9
    assert np.array_equal(left_edges(read_video(tmp_path / name).frames), left_edges(moving_square(3)))
    write_video(tmp_path / name, moving_square(4), 8)
    assert len(read_video(tmp_path / name).frames) == 4
    assert os.listdir(tmp_path) == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fills_up_is_reported_by_the_name_of_the_file(tmp_path: Path, name: str) -> None:
    script = (
        "import resource, sys, numpy; from vidrd_core.video import write_video, VideoError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "frames = numpy.random.default_rng(0).integers(0, 256, (60, 96, 96, 3), 'uint8')\n"
        "try: write_video(sys.argv[1], frames, 8)\n"
        "except VideoError as error: sys.exit(str(error))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / name)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"{tmp_path / name}: " in done.stderr
    assert "is the disk full?" in done.stderr
    assert not (tmp_path / name).exists()


FULL_DISK = """
import os, resource, sys, numpy
from vidrd_core.video import VideoError, VideoWriter
frames = numpy.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), "uint8")
for room in (0, 100, 4096, 33000):
    for count in (1, 80):
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            try:
                with VideoWriter(sys.argv[1], 8, metadata={"seed": 1}) as writer:
                    writer.write(frames[:count])
                    writer.describe({"prompt": "x" * 40000})
            except VideoError as error:
                os._exit(0 if "is the disk full?" in str(error) or "no frames" in str(error) else 2)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit, and processes that fork")
@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_from_any_block_on_is_an_error_and_never_a_crash(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / name)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["0"] * 8, done.stderr
    assert set(os.listdir(tmp_path)) <= {"out"}  # of a folder of PNGs, the frames that did fit


@pytest.mark.skipif(sys.platform != "linux", reason="needs a small disk of its own, which Linux makes in memory")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("blocks", [0, 2])
def test_a_file_system_without_room_is_an_error_and_never_a_crash(tmp_path: Path, name: str, blocks: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only an administrator may make a disk")
    script = (
        "import os, sys, numpy; from vidrd_core.video import VideoWriter, VideoError\n"
        "disk, blocks = os.path.dirname(sys.argv[1]), int(sys.argv[2])\n"
        "writer = VideoWriter(sys.argv[1], 8)\n"
        "room = os.statvfs(disk)\n"
        "open(disk + '/other', 'wb').write(bytes((room.f_bavail - blocks) * room.f_bsize))\n"
        "frames = numpy.random.default_rng(0).integers(0, 256, (80, 64, 64, 3), 'uint8')\n"
        "try:\n"
        "    with writer: writer.write(frames)\n"
        "except VideoError as error: sys.exit(str(error))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(disk / name), str(blocks)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr
        assert "is the disk full?" in done.stderr
        assert os.listdir(disk) == ["other"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", FILES[:2])
def test_the_same_frames_give_the_same_file_in_several_threads_at_once(tmp_path: Path, name: str) -> None:
    # Rows of macroblocks that are no multiple of eight, on which x264's AVX-512 code differs from run to run.
    random = np.random.default_rng(0)
    world = random.integers(0, 250, (60, 40, 3)).repeat(8, 0).repeat(8, 1)
    pan = [world[2 * t : 2 * t + 256, t : t + 96] + random.integers(0, 6, (256, 96, 3)) for t in range(40)]
    frames = np.stack(pan).astype(np.uint8)

    def written(number: int) -> bytes:
        path = tmp_path / str(number) / name
        write_video(path, frames, 8)
        return path.read_bytes()

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(written, range(12 if name == "out.mp4" else 3)))) == 1


def test_a_folder_of_pngs_never_mixes_two_runs(tmp_path: Path) -> None:
    write_video(tmp_path / "out", moving_square(9), 8)
    write_video(tmp_path / "out", moving_square(4), 8)
    assert sorted(os.listdir(tmp_path / "out")) == [f"frame_{i:05d}.png" for i in range(4)]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(VideoError, match=r"thesis\.tex"):
        VideoWriter(tmp_path / "out", 8)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_probing_makes_the_folder_and_leaves_no_file(tmp_path: Path) -> None:
    probe_output(tmp_path / "new" / "folder" / "out.mp4", estimate_bytes("out.mp4", 1000, 256, 256))
    assert os.listdir(tmp_path / "new" / "folder") == []


def test_probing_leaves_an_existing_video_as_it_is(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", moving_square(2), 8)
    before = (tmp_path / "out.mp4").read_bytes()
    probe_output(tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == before


def test_outputs_that_cannot_work_are_refused_before_the_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "folder.mp4").mkdir()
    for path, message in [
        (tmp_path / "out.avi", r"\.avi"),
        (tmp_path / "out.png", r"without a suffix"),
        (tmp_path / "file" / "out.mp4", r"folder cannot be made"),
        (tmp_path / "file", r"is a file"),
        (tmp_path / "folder.mp4", r"is a folder"),
    ]:
        with pytest.raises(VideoError, match=message) as caught:
            probe_output(path)
        assert str(path) in str(caught.value)
    with pytest.raises(VideoError, match="disk has"):
        probe_output(tmp_path / "out.mp4", estimated_bytes=2**60)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(VideoError, match="cannot be written"):
            probe_output(tmp_path / "out.mp4")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, name: str, share: float) -> None:
    write_video(tmp_path / name, noise(40), 8)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(VideoError) as caught:
        read_video(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"hello world\n" * 50),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>"),
        ("list.mp4", b"ffconcat version 1.0\nfile out.mp4\n"),
        ("noise.webm", noise(1).tobytes()),
        ("head.gif", b"GIF89a"),
    ],
)
def test_what_is_not_a_video_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    write_video(tmp_path / "out.mp4", moving_square(2), 8)
    (tmp_path / name).write_bytes(content)
    for read in (read_video, read_metadata):
        with pytest.raises(VideoError) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_and_a_file_with_sound_only_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="no video"):
        read_video(tmp_path / "sound.wav")


def test_a_folder_of_pngs_with_a_gap_a_broken_or_an_odd_frame_says_which(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_video(folder, moving_square(5), 8)
    Image.new("RGB", (10, 10)).save(folder / "frame_00004.png")
    with pytest.raises(VideoError, match=r"frame_00004\.png: is 10x10"):
        read_video(folder)
    whole = (folder / "frame_00003.png").read_bytes()
    (folder / "frame_00003.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match=r"frame_00003\.png"):
        read_video(folder)
    (folder / "frame_00002.png").unlink()
    with pytest.raises(VideoError, match="frame 2 is missing"):
        read_video(folder)


def test_pngs_of_another_tool_need_their_frame_rate_to_be_given(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        Image.new("L", (8, 8), ord(name[0])).save(tmp_path / name)
    with pytest.raises(VideoError, match="pass fps"):
        read_video(tmp_path)
    clip = read_video(tmp_path, fps=12)
    assert clip.fps == 12
    assert clip.frames[:, 0, 0, 0].tolist() == [ord("a"), ord("b")]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    for read in (read_video, read_metadata):
        with pytest.raises(VideoError, match="no PNG"):
            read(tmp_path)


def test_reading_at_another_rate_shows_what_a_player_shows_at_those_instants(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(12, dtype=np.uint8) * 20, 64 * 3).reshape(12, 8, 8, 3)
    for name in ("out", "out.gif"):
        write_video(tmp_path / name, frames, 12)
        slower, faster = read_video(tmp_path / name, fps=4), read_video(tmp_path / name, fps=24)
        assert (slower.frames[:, 0, 0, 0] // 20).tolist() == [0, 3, 6, 9]
        assert (faster.frames[:, 0, 0, 0] // 20).tolist() == [i // 2 for i in range(24)]
        assert (slower.fps, faster.fps) == (4, 24)
        assert len(read_video(tmp_path / name, fps=24, max_frames=5).frames) == 5


def test_reading_at_a_size_crops_around_the_centre_and_keeps_the_aspect(tmp_path: Path) -> None:
    frames = np.zeros((2, 64, 128, 3), np.uint8)
    frames[:, :, 32:96] = 255
    write_video(tmp_path / "out", frames, 8)
    small = read_video(tmp_path / "out", size=(32, 32), max_frames=1).frames
    assert small.shape == (1, 32, 32, 3)
    assert small[:, :, 1:-1].min() > 250


def test_a_phone_video_is_read_upright(tmp_path: Path) -> None:
    frames = np.zeros((4, 64, 96, 3), np.uint8)
    frames[:, :16, :16] = 255
    write_video(tmp_path / "out.mp4", frames, 8)
    data = bytearray((tmp_path / "out.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    quarter_turn = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]  # clockwise, as phones write it
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter_turn)
    (tmp_path / "out.mp4").write_bytes(data)
    upright = read_video(tmp_path / "out.mp4").frames
    assert upright.shape == (4, 96, 64, 3)
    assert upright[0, 4, -4, 0] > 200 > 50 > upright[0, 4, 4, 0]


def test_mp4_is_what_every_player_takes(tmp_path: Path) -> None:
    write_video(tmp_path / "out.mp4", moving_square(2), 8)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # starts playing in a browser before it is loaded


def test_tensors_are_rounded_to_the_nearest_level_and_overshoot_is_clamped() -> None:
    levels = torch.arange(256, dtype=torch.float64)
    values = torch.cat([levels / 127.5 - 1, (levels + 0.4) / 127.5 - 1, torch.tensor([-1.7, 1.3])])
    tensor = values.reshape(1, 1, 1, 1, -1).expand(1, 3, 2, 4, -1)
    frames = to_uint8(tensor)
    assert frames.shape == (2, 4, 514, 3)
    assert frames[1, 2, :, 0].tolist() == [*range(256), *range(255), 255, 0, 255]
    assert np.array_equal(to_uint8(tensor[0]), frames)
    assert to_uint8(torch.full((3, 1, 2, 2), 1.0, dtype=torch.bfloat16)).min() == 255


def test_tensors_of_another_shape_or_with_nan_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 1, 8, 8\]"):
        to_uint8(torch.zeros(2, 3, 1, 8, 8))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 3, 1, 8, 8), float("nan")))


def test_a_contact_sheet_has_one_row_per_clip_with_frames_enlarged_by_a_whole_factor() -> None:
    clip = np.full((8, 64, 64, 3), (200, 10, 10), np.uint8)
    one, two = contact_sheet([clip], "a red square"), contact_sheet([clip, clip], ["a red square", "another"])
    assert one.width == 8 * 128 + 7 * 6 + 2 * 20
    assert two.height - 2 * 20 == 2 * (one.height - 2 * 20) + 18
    red = (np.asarray(two) == (200, 10, 10)).all(-1).sum()
    assert red == 16 * 126 * 126  # all but the hairline around each frame


def test_frame_numbers_run_over_the_whole_video_and_can_be_left_out() -> None:
    clip = np.zeros((4, 64, 64, 3), np.uint8)
    numbered, again = contact_sheet([clip, clip], "x"), contact_sheet([clip], "x")
    assert contact_sheet([clip], "x", frame_numbers=False).height < again.height
    strip = np.asarray(numbered)
    first, second = strip[20 + 25 + 128 :][:18], strip[again.height - 20 + 18 + 25 + 128 :][:18]
    assert (first < 200).any() and (second < 200).any()
    assert not np.array_equal(first, second)


def test_a_long_clip_shows_evenly_spaced_frames_and_large_frames_are_reduced() -> None:
    frames = np.zeros((100, 200, 400, 3), np.uint8)
    sheet = contact_sheet([frames], "x", cell=100, max_columns=5)
    assert sheet.size == (5 * 100 + 4 * 6 + 40, 21 + 4 + 50 + 18 + 40)


def test_a_contact_sheet_shows_frames_of_one_row_of_pixels_too() -> None:
    sheet = contact_sheet([np.zeros((2, 1, 400, 3))], "x")
    assert (np.asarray(sheet)[20 + 21 + 4, 20 : 20 + 128] < 255).all()


def test_a_contact_sheet_of_any_number_of_clips_stays_small() -> None:
    sheet = ContactSheet(max_rows=8)
    for index in range(100):
        sheet.add_row(np.zeros((2, 64, 64, 3)), f"clip {index}")
    assert sheet.render().height <= 8 * (21 + 4 + 128 + 18 + 18) + 2 * 20


@pytest.mark.parametrize(
    "prompt", [UNICODE, "", "word " * 2000, "x" * 100_000, "a\nb\tc\0d\udc80", "\N{LARGE RED CIRCLE}"]
)
def test_any_prompt_fits_into_at_most_two_lines(prompt: str) -> None:
    clip = np.zeros((4, 64, 64, 3), np.uint8)
    sheet, plain = contact_sheet([clip], prompt), contact_sheet([clip], "x")
    assert sheet.width == plain.width
    assert sheet.height <= plain.height + 21
    assert (np.asarray(sheet)[:, -20:] == 255).all()  # nothing runs into the margin


def test_a_contact_sheet_without_clips_or_with_too_many_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        contact_sheet([], "x")
    with pytest.raises(ValueError, match="got 2"):
        contact_sheet([np.zeros((1, 8, 8, 3))], ["x", "y"])
    with pytest.raises(ValueError, match=r"\[0, 8, 8, 3\]"):
        contact_sheet([np.zeros((0, 8, 8, 3))], "x")
