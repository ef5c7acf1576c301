"""Clips have the wanted rate and length and lie between cuts; filters refuse what they name and nothing else."""

import random
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
from data_material import CLIP, FILTERS, moving_shapes, preparation, video
from engine_work import double_or_die, fail_at_two
from PIL import Image, ImageDraw, ImageFont

from vidrd_core.data import clips, engines
from vidrd_core.data.clips import ClipSettings, choose, target_size, windows
from vidrd_core.data.engines import EngineSettings, run_in_order
from vidrd_core.data.filters import FilterSettings, brightness, check_frames, motion, text_share
from vidrd_core.data.media import decode_image, decode_mp4, encode_image, encode_mp4, fit
from vidrd_core.data.preparation import prepare_item
from vidrd_core.data.sources import Item
from vidrd_core.video import VideoError, ffmpeg, write_video
from vidrd_core.video.ffmpeg import FileSource


def found(path, **changes):
    return list(windows(path, replace(CLIP, **changes)))


def test_a_video_is_cut_into_windows_of_the_wanted_rate_and_none_overlap(tmp_path):
    path = video(tmp_path / "a.mp4", frames=40, fps=16.0)
    made = found(path)
    assert [len(w.frames) for w in made] == [8, 8, 4] and [w.start for w in made] == [0.0, 1.0, 2.0]
    assert made[0].frames.shape == (8, 48, 48, 3) and made[0].source_size == (64, 64)
    assert [len(w.frames) for w in found(path, min_frames=5)] == [8, 8]
    slow = found(path, fps=4.0)
    assert [len(w.frames) for w in slow] == [8]
    every_fourth = fit(moving_shapes(0, 40)[::4][:8], 48, 48)
    assert np.abs(slow[0].frames.astype(int) - every_fourth).mean() < 4


def test_a_stretch_of_a_video_is_taken_by_its_times(tmp_path):
    path = video(tmp_path / "a.mp4", frames=32)
    made = list(windows(path, CLIP, 1.0, 2.5))
    assert [len(w.frames) for w in made] == [8, 4] and made[0].start == 1.0
    assert np.abs(made[0].frames.astype(int) - fit(moving_shapes(0, 32)[8:16], 48, 48)).mean() < 4


def test_no_window_crosses_a_cut_and_motion_is_no_cut(tmp_path):
    scenes = np.concatenate([moving_shapes(0, 10), 255 - moving_shapes(1, 14), moving_shapes(2, 9)])
    write_video(tmp_path / "cuts.mp4", scenes, 8.0, quality=9)
    made = found(tmp_path / "cuts.mp4")
    assert [(w.start, len(w.frames)) for w in made] == [(0.0, 8), (1.25, 8), (2.25, 6), (3.0, 8)]
    blind = found(tmp_path / "cuts.mp4", adaptive_threshold=0.0)
    assert [len(w.frames) for w in blind] == [8, 8, 8, 8]
    noise = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    write_video(tmp_path / "wild.mp4", noise, 8.0, quality=9)
    assert sum(len(w.frames) for w in found(tmp_path / "wild.mp4")) >= 12


def shots(path, **changes):
    """The numbers of the frames at which a shot begins."""
    settings = replace(CLIP, **changes)
    numbers = [shot for _, (shot, _) in clips._shots(FileSource(path).frames(), settings, 0.0, None)]
    return [n for n in range(1, len(numbers)) if numbers[n] != numbers[n - 1]]


def ramp(frames, first, last, level):
    """Frames of which each is a little more, or less, of one level: a fade."""
    share = np.linspace(first, last, len(frames))[:, None, None, None]
    return (frames * (1 - share) + level * share).round().astype(np.uint8)


@pytest.mark.parametrize(("level", "length"), [(0, 6), (0, 24), (0, 80), (255, 12)])
def test_a_fade_out_and_in_separates_two_shots(tmp_path, level, length):
    before, after = moving_shapes(0, 24 + length), moving_shapes(1, 24 + length)
    black = np.full((4, 64, 64, 3), level, np.uint8)
    faded = [before[:24], ramp(before[24:], 0, 1, level), black, ramp(after[:length], 1, 0, level), after[length:]]
    write_video(tmp_path / "fade.mp4", np.concatenate(faded), 24.0, quality=9)
    begins = shots(tmp_path / "fade.mp4")
    assert begins and all(24 < n < 28 + 2 * length for n in begins)


def test_a_cut_is_found_at_the_ends_of_a_video_too_and_no_frame_is_lost(tmp_path):
    for first, last in ((1, 20), (20, 1), (2, 2), (1, 1)):
        frames = np.concatenate([moving_shapes(0, first), 255 - moving_shapes(1, last)])
        write_video(tmp_path / "cut.mp4", frames, 24.0, quality=9)
        assert shots(tmp_path / "cut.mp4") == [first]
        timed = list(clips._shots(FileSource(tmp_path / "cut.mp4").frames(), CLIP, 0.0, None))
        assert [time for time, _ in timed] == [time for time, _ in FileSource(tmp_path / "cut.mp4").frames()]


def test_motion_that_begins_suddenly_is_no_cut(tmp_path):
    picture = np.random.default_rng(3).integers(0, 256, (16, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    lefts = [0] * 20 + [20 * n for n in range(20)]
    write_video(tmp_path / "pan.mp4", np.stack([picture[:64, x : x + 64] for x in lefts]), 24.0, quality=9)
    assert shots(tmp_path / "pan.mp4") == []


def test_the_former_setting_of_cuts_is_refused_by_a_message_that_names_the_present_one(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "training"))
    from common import build

    with pytest.raises(ValueError, match="cut_threshold is no longer a setting.*: set adaptive_threshold"):
        build(ClipSettings, {"cut_threshold": 0.12})


def test_a_video_that_breaks_off_is_broken_even_after_good_windows(tmp_path):
    data = video(tmp_path / "a.mp4", frames=60).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(VideoError):
        found(tmp_path / "cut.mp4")


def test_damaged_times_do_not_repeat_a_frame_for_ever(tmp_path):
    """A file whose second half is dated four months later; without a limit this takes hours."""
    with av.open(str(tmp_path / "late.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        for number, picture in enumerate(moving_shapes(0, 12)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + (number >= 6) * 8 * 10**7, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="shows one frame for 1e"):
        found(tmp_path / "late.mkv")


def textured(path, frames=120, times=None, format=None, muxer=None, **encoder):
    """A panned picture with key frames every dozen frames and B-frames between them; times in 1/80 s."""
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w", format=format, options=muxer or {}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.codec_context.time_base = Fraction(1, 80)
        stream.options = {"g": "12", "bf": "3", **encoder}
        for number in range(frames):
            cut_out = np.ascontiguousarray(picture[number : number + 64, 2 * number % 200 : 2 * number % 200 + 64])
            frame = av.VideoFrame.from_ndarray(cut_out, format="rgb24")
            frame.pts, frame.time_base = (times[number] if times else 10 * number), Fraction(1, 80)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


UNEVEN = np.random.default_rng(2).integers(3, 40, 120).cumsum().tolist()


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("b-frames.mp4", {}),
        ("open.mp4", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
        ("open.mkv", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
        ("variable.mp4", {"times": UNEVEN}),
        ("variable.mkv", {"times": UNEVEN}),
        ("no_index.mkv", {"format": "matroska", "muxer": {"live": "1"}}),
        ("fragments.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
        ("refresh.mp4", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
        ("stream.ts", {}),
    ],
)
def test_frames_from_any_second_on_are_those_of_decoding_from_the_beginning(tmp_path, name, made):
    source = FileSource(textured(tmp_path / name, **made))
    whole = list(source.frames())
    assert len(whole) == 120
    shares = [share * whole[-1][0] for share in (0.01, 0.2, 0.45, 0.81, 1.0, 1.1)]
    for start in [*shares, whole[11][0], whole[60][0]]:
        part = list(source.frames(start))
        expected = [(time, frame) for time, frame in whole if time >= start]
        assert [time for time, _ in part] == [time for time, _ in expected]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(part, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("plain.mp4", {}),
        ("variable.mkv", {"times": UNEVEN}),
        ("no_index.mkv", {"format": "matroska", "muxer": {"live": "1"}}),
    ],
)
def test_a_late_stretch_of_a_video_decodes_little_of_what_lies_before_it(tmp_path, monkeypatch, name, made):
    path = textured(tmp_path / name, **made)
    last = [time for time, _ in FileSource(path).frames()][-1]
    decoded = []
    whole = av.container.InputContainer.decode

    class Counting:
        """A container that notes what is decoded of it."""

        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._container.close()

        def decode(self, stream):
            for frame in whole(self._container, stream):
                decoded.append(frame.time)
                yield frame

    opened = ffmpeg.open_media
    monkeypatch.setattr(ffmpeg, "open_media", lambda path: Counting(opened(path)))
    found_late = list(windows(path, replace(CLIP, adaptive_threshold=0.0), 0.8 * last, 0.8 * last + 1.0))
    assert [len(window.frames) for window in found_late] == [8]
    assert 8 <= len(decoded) < 48
    assert sorted(decoded)[0] < 0.1 * last and sorted(decoded)[2] > 0.5 * last


def test_windows_are_chosen_by_the_seed_from_the_whole_length_and_whole_ones_first(tmp_path):
    made = found(video(tmp_path / "a.mp4", frames=44))
    assert [len(w.frames) for w in made] == [8] * 5 + [4]
    starts = {choose(made, 1, 8, random.Random(seed))[0].start for seed in range(40)}
    assert starts == {0.0, 1.0, 2.0, 3.0, 4.0}
    two = choose(made, 2, 8, random.Random(3))
    assert two[0].start < two[1].start and [w.start for w in two] == [
        w.start for w in choose(made, 2, 8, random.Random(3))
    ]
    assert [len(w.frames) for w in choose(made, 9, 8, random.Random(0))] == [8] * 5 + [4]


def test_a_random_crop_varies_with_the_item_and_a_kept_aspect_keeps_the_pixels(tmp_path):
    path = video(tmp_path / "a.mp4", frames=8)
    settings = preparation(tmp_path, tmp_path / "set", clip=replace(CLIP, height=32, width=48, crop="random"))
    crops = set()
    for number in range(5):
        item = Item(f"{number}.mp4", path, "video", ("a clip",))
        made = prepare_item((0, item), settings).samples[0]
        assert made.members == prepare_item((0, item), settings).samples[0].members
        crops.add(made.members["mp4"])
    assert len(crops) > 1
    assert target_size(ClipSettings(aspect="keep"), 720, 1280) == (192, 344)
    assert target_size(ClipSettings(), 720, 1280) == (256, 256)


def test_mp4_in_memory_is_the_same_every_time_and_close_to_what_went_in():
    frames = moving_shapes(1, 6)
    data = encode_mp4(frames, 8.0, 9.0)
    assert data == encode_mp4(frames, 8.0, 9.0)
    assert np.abs(decode_mp4(data).astype(int) - frames).mean() < 3
    assert np.array_equal(decode_mp4(data, 2, 3), decode_mp4(data)[2:5])
    for damaged in (b"", data[: len(data) // 2], b"\0" * 100):
        with pytest.raises(ValueError, match="readable MP4"):
            decode_mp4(damaged)
    with pytest.raises(ValueError, match="the video ends after 2"):
        decode_mp4(data, 4, 3)


def test_the_encoder_leaves_out_the_code_whose_output_varies():
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture(local=False) as logged:
            encode_mp4(moving_shapes(1, 2), 8.0, 9.0)
    finally:
        av.logging.set_level(None)
    used = [message for *_, message in logged if "cpu capabilities" in message]
    assert used and "AVX512" not in used[0]


def test_images_of_any_kind_become_rgb_and_broken_ones_are_told(tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert decode_image((tmp_path / "clear.png").read_bytes()).tolist()[0][0] == [255, 255, 255]
    Image.new("I;16", (8, 8), 65535).save(tmp_path / "deep.png")
    assert np.unique(decode_image((tmp_path / "deep.png").read_bytes())) == 255
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "grey.png")
    assert np.unique(decode_image((tmp_path / "grey.png").read_bytes())) == 128
    whole = encode_image(moving_shapes(0, 1)[0], "jpg", 9.0)
    for damaged in (b"", b"GIF89a", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="readable image"):
            decode_image(damaged)


def picture_of_text(lines, size=256):
    picture = np.random.default_rng(0).normal(120, 8, (size, size, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(picture)
    font = ImageFont.load_default(16)
    for line in range(lines):
        ImageDraw.Draw(image).text((10, 8 + line * 22), "Subscribe to the channel", fill="white", font=font)
    return np.asarray(image)[None]


def test_text_is_measured_by_the_room_it_takes():
    shares = [text_share(picture_of_text(lines)) for lines in (0, 1, 3, 8)]
    assert shares[0] == 0 and shares == sorted(shares) and shares[1] < 0.1 < 0.3 < shares[3]
    assert max(text_share(moving_shapes(seed, 2)) for seed in range(4)) == 0


def test_filters_refuse_what_they_are_named_for():
    settings = FilterSettings()
    scene = moving_shapes(2, 8)
    assert check_frames(settings, scene) is None and motion(scene) > 1
    assert check_frames(settings, scene[:1].repeat(8, 0)) == "too static"
    assert check_frames(settings, scene // 16) == "too dark" and brightness(scene // 16) < 16
    assert check_frames(settings, picture_of_text(8)) == "text-heavy"
    off = FilterSettings(0, 0, 0, 0, 0)
    assert check_frames(off, np.zeros((8, 64, 64, 3), np.uint8)) is None


@pytest.mark.parametrize("frames, reason", [(2, "too short"), (0, "too static"), (-1, "too dark")])
def test_a_video_is_dropped_for_the_reason_of_its_clips(tmp_path, frames, reason):
    pictures = {2: moving_shapes(0, 2), 0: moving_shapes(0, 1).repeat(12, 0), -1: moving_shapes(0, 12) // 20}[frames]
    write_video(tmp_path / "a.mp4", pictures, 8.0, quality=9)
    item = Item("a.mp4", tmp_path / "a.mp4", "video", ("a clip",))
    dropped = prepare_item((0, item), preparation(tmp_path, tmp_path / "set", filters=FILTERS)).dropped
    assert dropped is not None and dropped.reason == reason


@pytest.mark.parametrize("changes", [{"fps": 0}, {"min_frames": 9, "frames": 8}, {"height": 33}, {"crop": "left"}])
def test_impossible_clips_are_refused(changes):
    with pytest.raises(ValueError):
        ClipSettings(**changes)


def test_an_item_that_kills_its_process_costs_only_itself():
    made = list(run_in_order(double_or_die, range(9), EngineSettings(workers=1)))
    assert made == [0, 2, 4, 6, 8, None, 12, 14, 16]


def test_a_result_is_not_lost_where_the_pool_breaks_just_after_it(monkeypatch):
    """A process may die over a later item at any moment, so also when the next item is about to be handed in."""

    class Breaking:
        def __init__(self, submissions):
            self.left = submissions

        def submit(self, work, item):
            if self.left == 0:
                raise BrokenProcessPool
            self.left -= 1
            done = Future()
            done.set_result(work(item))
            return done

    for submissions in range(12):
        pools = iter([submissions, *[100] * 9])
        monkeypatch.setattr(engines, "_pool", lambda workers, pools=pools: nullcontext(Breaking(next(pools))))
        assert list(run_in_order(str, range(9), EngineSettings(workers=1))) == list("012345678")


def test_an_error_in_our_own_code_ends_the_run():
    with pytest.raises(KeyError):
        list(run_in_order(fail_at_two, range(9), EngineSettings(workers=1)))


def test_unknown_engines_are_refused():
    with pytest.raises(ValueError, match="process or ray"):
        EngineSettings("threads")
    with pytest.raises(ValueError, match="needs engine ray"):
        EngineSettings(address="ray://head:10001")
