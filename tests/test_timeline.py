"""Timelines as data, what of them is stale, and takes on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from vidrd_core.jobs.takes import KEPT_VIDEOS, TakeFolder
from vidrd_core.jobs.timeline import Settings, Surroundings, Timeline, plan, take_id, takes_of

AROUND = Surroundings("model", "text", "", True, {"auto": {"overlap_frames": 4}, "smooth": {"overlap_frames": 5}})
SETTINGS = Settings("watermark", 4.0, 20, "euler", "normal", "auto", 64, 64)


def timeline(*clips: dict[str, Any], **more: Any) -> Timeline:
    return Timeline.parse(json.dumps({"version": 1, "clips": clips, **more}))


def ids(one: Timeline) -> list[str]:
    return [clip.id for clip in one.shown()]


PLAIN = ({"id": "a", "seed": 1}, {"id": "b", "seed": 2}, {"id": "c", "seed": 3})


def test_a_timeline_is_written_with_one_clip_a_line_and_read_again() -> None:
    one = timeline(
        {"id": "a", "prompt": 'a "dog"\nruns, 狗', "seed": 2**63 - 1},
        {"id": "b", "seed": "9007199254740993", "frames": 5, "lock": True, "take": "0123456789abcdef"},
        {"id": "c", "after": "a", "branch": "ending"},
        end="c",
    )
    assert one.clips[1].seed == 9007199254740993  # beyond JavaScript's numbers
    assert Timeline.parse(one.text()) == one
    lines = one.text().splitlines()
    assert len(lines) == 5 and lines[3] == '{"id": "c", "prompt": "", "seed": 0, "after": "a", "branch": "ending"}'
    changed = replace(one, clips=(one.clips[0], replace(one.clips[1], seed=7), one.clips[2])).text().splitlines()
    assert sum(a != b for a, b in zip(lines, changed, strict=True)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        ("[]", "has no list of clips"),
        ('{"version": 1, "clips": []}', "has no clips: add one"),
        ('{"version": 2, "clips": []}', "version is 2"),
        ('{"clips": [{"id": "a"}]}', "version is null"),
        ('{"version": 1, "clips": ["a"]}', 'clip 1 of the timeline is "a"; expected an object'),
        ('{"version": 1, "clips": [{"prompt": ""}]}', "has the id null"),
        ('{"version": 1, "clips": [{"id": "a/b"}]}', "letters, digits"),
        ('{"version": 1, "clips": [{"id": "a", "promt": ""}]}', "has promt, which no clip has; known are id, prompt"),
        ('{"version": 1, "clips": [{"id": "a", "seed": -1}]}', r"\(a\): seed is -1; expected a whole number from 0"),
        ('{"version": 1, "clips": [{"id": "a", "seed": 1.5}]}', "seed is 1.5"),
        ('{"version": 1, "clips": [{"id": "a", "seed": true}]}', "seed is true"),
        ('{"version": 1, "clips": [{"id": "a", "frames": 5000}]}', "frames is 5000"),
        ('{"version": 1, "clips": [{"id": "a", "lock": 1}]}', "lock is 1; expected true or false"),
        ('{"version": 1, "clips": [{"id": "a", "prompt": 1}]}', "prompt is 1; expected text"),
        ('{"version": 1, "clips": [{"id": "a", "take": "../x"}]}', "take is"),
        ('{"version": 1, "clips": [{"id": "a", "after": 1}]}', "after is 1"),
        ('{"version": 1, "clips": [{"id": "a", "after": "x"}]}', "after 'x', which is none"),
        ('{"version": 1, "clips": [{"id": "a"}, {"id": "a"}]}', "more than one clip with the id a"),
        ('{"version": 1, "clips": [{"id": "a", "after": "b"}, {"id": "b"}]}', "in a circle"),
        ('{"version": 1, "clips": [{"id": "a"}], "end": "b"}', 'ends with "b", which is none of its clips: a'),
    ],
)  # fmt: skip
def test_what_is_no_timeline_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Timeline.parse(text)


def test_a_branch_is_the_way_from_the_beginning_to_its_end() -> None:
    clips = (*PLAIN, {"id": "d", "after": "a"}, {"id": "e"}, {"id": "f", "after": ""})
    assert ids(timeline(*clips)) == ["a", "b", "c"]
    assert ids(timeline(*clips, end="e")) == ["a", "d", "e"]
    assert ids(timeline(*clips, end="b")) == ["a", "b"]
    assert ids(timeline(*clips, end="f")) == ["f"]


def planned(one: Timeline, takes: dict[str, Any], settings: Settings = SETTINGS, around: Any = AROUND) -> list[str]:
    return [entry.state for entry in plan(one, settings, around, takes)]


def finished(one: Timeline, takes: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Takes as after a run of a timeline."""
    takes = dict(takes or {})
    before = None
    for entry in plan(one, changes.get("settings", SETTINGS), AROUND, takes):
        made = {"clip": entry.clip.id, "follows": before, "closes": entry.closes, "made": len(takes)}
        takes.setdefault(entry.take, made)
        before = entry.take
    return takes


def test_a_change_makes_its_clip_and_those_after_it_stale_and_no_other() -> None:
    one = timeline(*PLAIN)
    takes = finished(one)
    assert planned(one, {}) == ["waiting"] * 3 and planned(one, takes) == ["finished"] * 3
    for change in ({"seed": 9}, {"prompt": "x"}, {"frames": 4}):
        changed = timeline(PLAIN[0], {**PLAIN[1], **change}, PLAIN[2])
        assert planned(changed, takes) == ["finished", "changed", "changed"]
    inserted = timeline(PLAIN[0], {"id": "new"}, *PLAIN[1:])
    assert planned(inserted, takes) == ["finished", "waiting", "changed", "changed"]
    assert planned(timeline(PLAIN[0], PLAIN[2]), takes) == ["finished", "changed"]
    assert planned(timeline(*PLAIN, {"id": "d"}), takes) == ["finished"] * 3 + ["waiting"]
    renamed = timeline({"id": "z", "seed": 1}, *PLAIN[1:])  # what made a take counts, not whose it was
    assert planned(renamed, takes) == ["finished"] * 3


def test_a_loop_s_last_clip_is_another_take_and_depends_on_the_beginning() -> None:
    one, loop = timeline(*PLAIN), replace(SETTINGS, loop=True)
    takes = finished(one)
    assert planned(one, takes, loop) == ["finished", "finished", "changed"]
    takes = finished(one, takes, settings=loop)
    assert planned(one, takes, loop) == planned(one, takes) == ["finished"] * 3
    closes = [entry.closes for entry in plan(one, loop, AROUND, takes)]
    assert closes == ["", "", plan(one, loop, AROUND, takes)[0].take]
    assert planned(timeline(*PLAIN, {"id": "d"}), takes, loop) == ["finished"] * 3 + ["waiting"]  # c is the open take
    continued = replace(AROUND, prior="a video", begins=False)
    assert plan(timeline(PLAIN[0]), loop, continued, {})[0].closes == "a video"
    assert plan(timeline(PLAIN[0]), loop, AROUND, {})[0].closes == ""


def test_a_loop_s_last_clip_is_known_by_how_it_is_chained_itself() -> None:
    one, loop = timeline(*PLAIN), replace(SETTINGS, loop=True)
    around = replace(AROUND, closing={"auto": {"overlap_frames": 3}, "smooth": {"overlap_frames": 3}})
    same = replace(AROUND, closing=AROUND.reuse)
    before, shorter, equal = (plan(one, loop, known, {}) for known in (AROUND, around, same))
    assert [entry.take for entry in before] == [entry.take for entry in equal]  # also where closing is not known
    assert [a.take == b.take for a, b in zip(before, shorter, strict=True)] == [True, True, False]
    assert [a.take for a in plan(one, SETTINGS, AROUND, {})] == [a.take for a in plan(one, SETTINGS, around, {})]
    assert Surroundings.of(json.loads(json.dumps(asdict(around)))) == around


def test_a_locked_last_clip_closes_a_loop_only_where_it_was_made_for_that() -> None:
    one, loop = timeline(*PLAIN), replace(SETTINGS, loop=True)
    takes = finished(one, finished(one), settings=loop)
    opened, closed = (plan(one, settings, AROUND, takes)[-1].take for settings in (SETTINGS, loop))
    for take, joins in ((opened, False), (closed, True)):
        locked = timeline(*PLAIN[:2], {**PLAIN[2], "lock": True, "take": take})
        last = plan(locked, loop, AROUND, takes)[-1]
        assert (last.state, last.joins, bool(last.closes)) == ("finished", joins, joins)
    locked = timeline(*PLAIN[:2], {**PLAIN[2], "lock": True, "take": closed}, {"id": "d"})
    assert plan(locked, SETTINGS, AROUND, takes)[2].joins


def test_settings_and_surroundings_count_where_they_act() -> None:
    one = timeline(*PLAIN)
    takes = finished(one)
    for change in ({"cfg": 5.0}, {"negative_prompt": ""}, {"steps": 9}, {"scheduler": "x"}, {"height": 32}):
        assert planned(one, takes, replace(SETTINGS, **change)) == ["changed"] * 3, change
    assert planned(one, takes, replace(SETTINGS, preset="smooth")) == ["finished", "changed", "changed"]
    continued = replace(AROUND, begins=False, prior="video")
    clip = one.clips[0]
    sizes = {take_id(clip, None, replace(SETTINGS, width=w), continued) for w in (32, 64)}
    presets = {take_id(clip, None, replace(SETTINGS, preset=p), continued) for p in ("auto", "smooth")}
    assert len(sizes) == 1 and len(presets) == 2  # the prior has its size, and is reused
    for name in ("model", "text", "added"):
        assert planned(one, takes, around=replace(AROUND, **{name: "other"})) == ["changed"] * 3
    assert planned(one, takes, around=None) == ["changed"] * 3 and planned(one, {}, around=None) == ["waiting"] * 3


def test_a_locked_clip_keeps_its_take_and_what_follows_goes_on_from_it() -> None:
    takes = finished(timeline(*PLAIN))
    kept = plan(timeline(*PLAIN), SETTINGS, AROUND, takes)[1].take
    one = timeline({"id": "a", "seed": 8}, {"id": "b", "seed": 5, "lock": True, "take": kept}, PLAIN[2])
    found = plan(one, SETTINGS, AROUND, takes)
    assert [entry.state for entry in found] == ["changed", "finished", "finished"]
    assert [entry.joins for entry in found] == [True, False, True] and found[1].take == kept
    takes[kept]["made"] = 99
    newest = timeline(PLAIN[0], {"id": "b", "prompt": "other", "lock": True}, PLAIN[2])
    assert planned(newest, takes) == ["finished"] * 3
    assert planned(timeline({"id": "x", "lock": True}), takes) == ["waiting"]  # there is nothing to keep yet
    del takes[kept]
    assert planned(one, takes) == ["changed", "lost", "finished"]
    assert [entry.seen for entry in plan(one, SETTINGS, AROUND, takes)][1] == ""


def test_the_takes_of_clips_come_oldest_first_and_with_those_that_are_used() -> None:
    takes = {"1": {"clip": "a", "made": 5}, "2": {"clip": "a", "made": 3}, "3": {"clip": "z"}, "4": {"clip": "y"}}
    assert takes_of(["a"], takes, ["3"]) == ["3", "2", "1"]


def test_settings_take_what_is_known_and_of_their_kind() -> None:
    assert Settings.of({"cfg": 4, "steps": 20.0, "width": "x", "preset": 3}, SETTINGS) == SETTINGS
    assert Settings.of({}) == Settings()


# Takes on disk

TAKE, OTHER = "0123456789abcdef", "fedcba9876543210"


def write(folder: TakeFolder, take: str, **record: Any) -> None:
    for suffix in (".safetensors", ".mp4", ".jpg"):
        folder.file(take, suffix).parent.mkdir(parents=True, exist_ok=True)
        folder.file(take, suffix).write_bytes(b"content")
    folder.finish(take, {"clip": "a", **record})


def test_a_take_counts_once_it_is_recorded_and_goes_when_it_is_deleted(tmp_path: Path) -> None:
    folder = TakeFolder(tmp_path)
    assert folder.records() == {} and folder.deletions() == "" and not folder.delete(TAKE)
    write(folder, TAKE, seed=3)
    folder.file(OTHER, ".safetensors").write_bytes(b"unfinished")
    folder.file(OTHER, ".json").write_text("{broken", encoding="utf-8")
    (folder.takes_path / "readme.json").write_text("{}", encoding="utf-8")
    assert list(folder.records()) == [TAKE] and folder.record(TAKE)["seed"] == 3
    assert folder.is_finished(TAKE)
    with pytest.raises(ValueError, match="gone or broken"):
        folder.record(OTHER)
    before = folder.deletions()
    assert folder.delete(TAKE) and folder.deletions() != before
    assert not folder.is_finished(TAKE) and not list(folder.takes_path.glob(f"{TAKE}*"))
    for wrong in ("../../x", "", "ABC"):
        with pytest.raises(ValueError, match="is no take"):
            folder.file(wrong, ".json")
        with pytest.raises(ValueError, match="is no video"):
            folder.video_file(wrong)


def make_slowly(path: str, log: str) -> None:
    folder = TakeFolder(path)
    with folder.making(TAKE, lambda seconds: time.sleep(0.02)) as is_missing:
        if is_missing:
            time.sleep(0.5)
            write(folder, TAKE)
            with Path(log).open("a", encoding="utf-8") as file:
                file.write("made\n")


def test_processes_that_want_the_same_take_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "run"), str(tmp_path / "log"))
    processes = [context.Process(target=make_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text(encoding="utf-8") == "made\n"


def test_waiting_for_a_take_can_be_stopped_and_a_failed_one_is_free_again(tmp_path: Path) -> None:
    folder, second = TakeFolder(tmp_path), TakeFolder(tmp_path)

    def stop(seconds: float) -> None:
        raise InterruptedError

    with folder.making(TAKE) as is_missing:
        assert is_missing
        with pytest.raises(InterruptedError), second.making(TAKE, stop):
            pass
    with pytest.raises(RuntimeError), folder.making(TAKE):
        raise RuntimeError
    with second.making(TAKE) as is_missing:
        assert is_missing


def test_the_joined_videos_are_the_most_recent_ones(tmp_path: Path) -> None:
    folder = TakeFolder(tmp_path)
    names = [f"{number:016x}" for number in range(KEPT_VIDEOS + 2)]
    for number, name in enumerate(names):
        folder.videos_path.mkdir(exist_ok=True)
        folder.video_file(name).write_bytes(b"video")
        folder.finish_video(name, {"takes": [name]})
        path = folder.video_file(name).with_suffix(".json")
        if path.is_file():
            os.utime(path, (number, number))
    folder.finish_video(names[-1], {"takes": [names[-1]]})
    assert [bool(folder.video(name)) for name in names] == [False] * 2 + [True] * KEPT_VIDEOS
    assert not folder.video_file(names[0]).is_file()
    folder.video_file(names[-1]).unlink()
    assert folder.video(names[-1]) == {}


def test_what_was_connected_is_found_by_any_clip_of_the_timeline(tmp_path: Path) -> None:
    folder = TakeFolder(tmp_path)
    assert folder.remembered(["a"]) == {}
    folder.remember("a", ["a", "b"], {"around": 1})
    folder.remember("x", ["x"], {"around": 2})
    assert folder.remembered(["b", "new"])["around"] == 1  # whose first clip is gone
    assert folder.remembered(["unknown"])["around"] == 2  # else the last of all
    (tmp_path / "timelines" / "x.json").write_text("[]", encoding="utf-8")
    assert folder.remembered(["x"])["around"] == 1
