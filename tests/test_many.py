"""Many videos: none made twice, the same whoever makes them, and a killed run continues where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.cli import main
from vidrd_core.jobs.batch import MAX_FAILURES, BatchResult, BatchSettings, VideosFolder, make_videos, number_videos
from vidrd_core.jobs.folder import JobError, JobFolder
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.video import read_metadata, read_video

SAMPLING = SamplingSettings(4, 16, 16, 2, 3.0, ReuseSettings(2))
PROMPTS = [["a red dot", "a blue dot"], ["a box", "a box"], ["a line", "a box"]]
ROOT = Path(__file__).parent.parent


def run(
    pipe: VidRDPipeline, path: Path, prompts: Any = PROMPTS, stop: Any = lambda: False, **options: Any
) -> BatchResult:
    opening = {name: options.pop(name) for name in ("redo", "restart") if name in options}
    videos = number_videos(prompts, 5)
    batch = BatchSettings(pipe, SAMPLING, 4.0, **options)
    folder = VideosFolder(path, "gif")
    folder.open(batch.made(videos), videos, **opening)
    return make_videos(folder, videos, batch, stop)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.gif"))}


@pytest.fixture(scope="module")
def uninterrupted(pipe: VidRDPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    result = run(pipe, folder)
    assert (result.made, result.clips, result.skipped, result.stopped) == (3, 6, 0, False)
    return folder


def test_every_line_becomes_a_video_and_nothing_else_is_left(uninterrupted: Path) -> None:
    names = sorted(p.name for p in uninterrupted.iterdir())
    assert names == ["00000.gif", "00001.gif", "00002.gif", "videos.json", "videos.lock"]
    assert all(len(read_video(uninterrupted / name).frames) == 8 for name in names[:3])
    assert len(set(content(uninterrupted).values())) == 3


def test_a_video_of_many_is_the_one_that_its_prompts_and_seed_give_alone(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# two\na red dot | a box\n\na line\n", encoding="utf-8")
    common = ["generate", "--model", str(model_folder), "--frames", "4", "--steps", "2", "--device", "cpu", "--quiet"]
    many = [
        "--videos",
        str(tmp_path / "list.txt"),
        "--output",
        str(tmp_path / "many"),
        "--format",
        "png",
        "--seed",
        "3",
    ]
    assert main([*common, *many, "--clips", "2"]) == 0
    alone = ["--prompt", "a line", "--clips", "2", "--seed", "4", "--output", str(tmp_path / "alone")]
    assert main([*common, *alone]) == 0
    assert (read_video(tmp_path / "many" / "00001").frames == read_video(tmp_path / "alone").frames).all()
    first = read_metadata(tmp_path / "many" / "00000")
    assert [clip["prompt"] for clip in first["clips"]] == ["a red dot", "a box"] and first["seed"] == 3


def test_processes_that_begin_elsewhere_make_the_same_videos_and_none_twice(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    asked = iter(range(100))
    assert run(pipe, tmp_path, stop=lambda: next(asked) >= 8, index=2, count=3).made == 1
    assert [name for name in content(tmp_path)] == ["00002.gif"]
    rest = run(pipe, tmp_path, index=1, count=3)
    assert (rest.made, rest.skipped) == (2, 1)
    assert content(tmp_path) == content(uninterrupted)
    assert run(pipe, tmp_path).skipped == 3


def test_a_video_that_another_process_makes_is_left_to_it(pipe: VidRDPipeline, tmp_path: Path) -> None:
    with FileLock(tmp_path / "00001.lock"):
        result = run(pipe, tmp_path)
    assert (result.made, result.skipped) == (2, 1)
    assert sorted(content(tmp_path)) == ["00000.gif", "00002.gif"]
    assert run(pipe, tmp_path).made == 1


@pytest.mark.parametrize("steps", [2, 4, 7])
def test_a_run_stopped_inside_a_video_continues_to_the_same_files(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path, steps: int
) -> None:
    asked = iter(range(100))
    assert run(pipe, tmp_path, stop=lambda: next(asked) >= steps).stopped
    assert run(pipe, tmp_path).stopped is False
    assert content(tmp_path) == content(uninterrupted)


def test_launched_processes_share_the_work_and_the_result_does_not_depend_on_their_number(
    model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("a red dot\na box\na line\na cat\n", encoding="utf-8")
    command = ["generate", "--model", str(model_folder), "--videos", str(tmp_path / "list.txt"), "--clips", "1"]
    command += ["--frames", "4", "--steps", "2", "--format", "gif", "--device", "cpu", "--quiet", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    call = [*launch, "-m", "vidrd_core.cli", *command, str(tmp_path / "two")]
    found = subprocess.run(
        call, env=environment, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    # Alone, with as many threads: another number of threads sums in another order.
    alone = [sys.executable, "-m", "vidrd_core.cli", *command, str(tmp_path / "one")]
    subprocess.run(alone, env=environment, capture_output=True, timeout=300, check=True, cwd=tmp_path)
    assert content(tmp_path / "two") == content(tmp_path / "one") and len(content(tmp_path / "one")) == 4
    assert all(found.stderr.count(f"{n:05d}.gif (") == 1 for n in range(4))
    assert "process 0: made" in found.stderr and "process 1: made" in found.stderr


def test_finished_states_are_kept_where_asked_for_and_can_be_extended(pipe: VidRDPipeline, tmp_path: Path) -> None:
    run(pipe, tmp_path, keep_states=True)
    assert JobFolder(tmp_path / "00001.state").num_finished() == 2
    assert run(pipe, tmp_path, keep_states=True).skipped == 3


def test_more_videos_are_added_and_changed_ones_need_redo(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    assert run(pipe, tmp_path, PROMPTS[:1]).made == 1
    assert run(pipe, tmp_path, PROMPTS).made == 2
    changed = [PROMPTS[0], ["a cat", "a cat"], PROMPTS[2]]
    with pytest.raises(JobError, match=r"number 1 had the prompts \['a box', 'a box'\] and has \['a cat'.*--redo"):
        run(pipe, tmp_path, changed)
    assert content(tmp_path) == content(uninterrupted)
    assert run(pipe, tmp_path, changed, redo=True).made == 1
    now, before = content(tmp_path), content(uninterrupted)
    assert now["00001.gif"] != before["00001.gif"] and now["00002.gif"] == before["00002.gif"]


def test_other_settings_are_refused_and_a_restart_deletes_the_videos(pipe: VidRDPipeline, tmp_path: Path) -> None:
    run(pipe, tmp_path, PROMPTS[:1])
    settings = json.loads((tmp_path / "videos.json").read_text(encoding="utf-8"))
    settings["made"]["sampling"]["guidance_scale"] = 9.0
    (tmp_path / "videos.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(JobError, match=r"guidance_scale was 9\.0 and is 3\.0.*--restart"):
        run(pipe, tmp_path, PROMPTS[:1])
    assert run(pipe, tmp_path, PROMPTS[:1], restart=True).made == 1
    (tmp_path / "videos.json").write_text("{}", encoding="utf-8")
    with pytest.raises(JobError, match="does not belong to a run of many videos"):
        run(pipe, tmp_path, PROMPTS[:1])


def test_a_video_that_fails_leaves_the_others_and_what_always_fails_is_raised(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    tmp_path.joinpath("00001.state").mkdir()
    (tmp_path / "00001.state" / "thesis.txt").write_text("mine", encoding="utf-8")
    result = run(pipe, tmp_path)
    assert result.made == 2 and list(result.failures) == [1] and "thesis.txt" in result.failures[1]
    for index in range(MAX_FAILURES):
        other = tmp_path / "all" / f"{index:05d}.state"
        other.mkdir(parents=True)
        (other / "thesis.txt").touch()
    with pytest.raises(JobError, match=r"thesis\.txt"):
        run(pipe, tmp_path / "all")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--height", "17"], "17; expected positive multiples"), (["--fps", "0"], "fps must be above 0"),
     (["--fps", "60"], "at most 50 for .gif"), (["--steps", "2000"], "2000")],
)  # fmt: skip
def test_a_refused_setting_costs_no_finished_video(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    (tmp_path / "list.txt").write_text("a red dot\n", encoding="utf-8")
    call = ["generate", "--model", str(model_folder), "--videos", str(tmp_path / "list.txt"), "--device", "cpu"]
    call += ["--output", str(tmp_path / "out"), "--format", "gif", "--clips", "1", "--frames", "4", "--quiet"]
    assert main([*call, "--steps", "2"]) == 0
    before = content(tmp_path / "out")
    assert main([*call, "--steps", "2", "--restart", *options]) == 1
    assert message in capsys.readouterr().err
    assert content(tmp_path / "out") == before and len(before) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--prompt", "x"], "--prompt goes with one video"), (["--contact-sheet", "a.png"], "--contact-sheet goes with"),
     (["--output", "out.mp4"], "out.mp4 looks like a file"), (["--videos", "empty.txt"], "holds no video"),
     (["--videos", "gap.txt"], "has an empty prompt")],
)  # fmt: skip
def test_what_does_not_go_with_many_videos_is_refused(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, text in (("list.txt", "a red dot"), ("empty.txt", "# nothing\n"), ("gap.txt", "a dot | | a box")):
        Path(name).write_text(text, encoding="utf-8")
    call = ["generate", "--model", str(model_folder), "--videos", "list.txt", "--output", "out", "--device", "cpu"]
    assert main([*call, *options]) == 1
    assert message in capsys.readouterr().err
