"""Preparation: broken files are counted and skipped, a killed run goes on, and the same seed gives the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from data_material import CLIP, caption, folder_of_traps, folder_of_videos, image, preparation, video
from engine_work import double_or_die, fail_at_two

from vidrd_core.data.engines import EngineSettings, run_in_order
from vidrd_core.data.preparation import PreparationSettings, prepare
from vidrd_core.data.shards import ShardDataset
from vidrd_core.data.sources import LAYOUTS, SourceSettings

ROOT = Path(__file__).parent.parent
ONE = EngineSettings(workers=1)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return folder_of_videos(tmp_path_factory.mktemp("videos"), 7)


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    """A data set of the folder of videos, made by one process without interruption."""
    output = tmp_path_factory.mktemp("prepared") / "set"
    prepare(preparation(videos, output, engine=ONE))
    return output


def test_damaged_and_hostile_files_are_dropped_each_for_its_reason(tmp_path):
    expected = folder_of_traps(tmp_path / "raw")
    statistics = prepare(preparation(tmp_path / "raw", tmp_path / "set", engine=ONE))
    lines = (tmp_path / "set" / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert {row["source"]: row["reason"] for row in map(json.loads, lines)} == expected
    assert sum(statistics["dropped"].values()) == len(expected) and statistics["dropped"]["broken"] == 5
    assert statistics["samples"] == {"video": 1, "image": 1} and statistics["items"] == len(expected) + 2
    assert {s.caption for s in ShardDataset(tmp_path / "set").samples} == {"a good video", "a good image"}


def test_a_data_set_holds_clips_of_the_wanted_rate_size_and_length(prepared):
    data = ShardDataset(prepared)
    assert len(data) == 7 and [s["samples"] for s in data.shards] == [2, 2, 2, 1]
    for index, sample in enumerate(data.samples):
        assert (sample.kind, sample.frames, sample.height, sample.width, sample.fps) == ("video", 8, 48, 48, 8.0)
        assert data.read(index, 4, 48, 48)["pixels"].shape == (3, 4, 48, 48)
    assert (prepared / "sample_sheet.png").stat().st_size > 1000
    statistics = json.loads((prepared / "statistics.json").read_text(encoding="utf-8"))
    assert statistics["sizes"] == {"48x48": 7} and statistics["seconds"] == 7.0


def test_two_processes_make_the_same_bytes_as_one_and_another_seed_other_ones(videos, prepared, tmp_path):
    prepare(preparation(videos, tmp_path / "two", engine=EngineSettings(workers=2)))
    assert contents(tmp_path / "two") == contents(prepared)
    prepare(preparation(videos, tmp_path / "other", engine=ONE, seed=1))
    assert contents(tmp_path / "other")["shard-000000.tar"] != contents(prepared)["shard-000000.tar"]


@pytest.fixture(scope="module")
def ray_engine():
    """Ray on this machine, started once for the tests that need it."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)  # Ray's processes import engine_work
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield EngineSettings("ray", workers=1)
        ray.shutdown()


def test_ray_makes_the_same_bytes_as_the_process_pool(videos, prepared, ray_engine, tmp_path):
    prepare(preparation(videos, tmp_path / "ray", engine=ray_engine))
    assert contents(tmp_path / "ray") == contents(prepared)


def test_an_item_that_kills_its_process_on_ray_costs_only_itself(ray_engine):
    made = list(run_in_order(double_or_die, range(12), ray_engine))
    assert made == [0, 2, 4, 6, 8, None, 12, 14, 16, 18, 20, 22]


def test_an_error_in_our_own_code_ends_the_run_on_ray(ray_engine):
    with pytest.raises(KeyError):
        list(run_in_order(fail_at_two, range(4), ray_engine))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_a_run_killed_in_the_middle_goes_on_and_makes_the_same_bytes(videos, prepared, tmp_path):
    script = (
        "from pathlib import Path\nfrom data_material import preparation\n"
        "from vidrd_core.data.engines import EngineSettings\nfrom vidrd_core.data.preparation import prepare\n"
        "if __name__ == '__main__':\n"
        f"    prepare(preparation(Path({str(videos)!r}), Path({str(tmp_path / 'set')!r}), "
        "engine=EngineSettings(workers=1)))\n"
    )
    (tmp_path / "killed.py").write_text(script, encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = subprocess.Popen([sys.executable, str(tmp_path / "killed.py")], env={**os.environ, "PYTHONPATH": paths})
    first = tmp_path / "set" / "shard-000000.json"
    while not first.exists() and run.poll() is None:
        time.sleep(0.005)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert workers and psutil.wait_procs(workers, timeout=60)[1] == []
    assert not (tmp_path / "set" / "index.json").exists()
    prepare(preparation(videos, tmp_path / "set", engine=ONE))
    resumed, unbroken = contents(tmp_path / "set"), contents(prepared)
    assert set(resumed) == set(unbroken)
    assert {name: first_difference(resumed[name], unbroken[name]) for name in resumed} == dict.fromkeys(resumed)


def first_difference(ours: bytes, theirs: bytes) -> str | None:
    """Where two files part, for the message; None where they are equal."""
    if ours == theirs:
        return None
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    around = slice(max(0, place - 60), place + 60)
    return f"{len(ours)} and {len(theirs)} bytes, from byte {place}: {ours[around]!r}, {theirs[around]!r}"


def test_running_again_changes_nothing_and_other_settings_are_refused(videos, prepared):
    before = contents(prepared)
    prepare(preparation(videos, prepared, engine=ONE))
    assert contents(prepared) == before
    with pytest.raises(ValueError, match="other settings.*clip"):
        prepare(preparation(videos, prepared, engine=ONE, clip=replace(CLIP, fps=4.0)))


def test_a_source_of_nothing_but_broken_files_says_so(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    caption(raw / "a.mp4", "a clip").write_bytes(b"no video")
    with pytest.raises(ValueError, match="nothing is left.*1 broken"):
        prepare(preparation(raw, tmp_path / "set", engine=ONE))
    assert "broken" in (tmp_path / "set" / "dropped.jsonl").read_text(encoding="utf-8")


def test_captions_of_a_model_or_of_the_label_go_with_uncaptioned_videos(tmp_path):
    raw = tmp_path / "UCF-101"
    for number, name in enumerate(("ApplyEyeMakeup", "YoYo")):
        video(raw / name / f"v_{name}_g01_c01.avi".replace(".avi", ".mp4"), seed=number)
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n", encoding="utf-8")
    names = [f"{n}/v_{n}_g01_c01.mp4" for n in ("ApplyEyeMakeup", "YoYo")]
    (lists / "trainlist01.txt").write_text(f"{names[0]} 1\n{names[1]} 2\n", encoding="utf-8")
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps({"source": names[1], "caption": "a boy plays yo-yo"}) + "\n", encoding="utf-8")
    source = SourceSettings("ucf101", raw)
    prepare(preparation(raw, tmp_path / "set", source=source, captions=captions, engine=ONE))
    found = {s.label: s.caption for s in ShardDataset(tmp_path / "set").samples}
    assert found == {"apply eye makeup": "a video of apply eye makeup", "yo yo": "a boy plays yo-yo"}


def test_rows_of_one_name_are_several_captions_and_a_table_of_other_files_is_refused(tmp_path):
    video(tmp_path / "raw" / "a.mp4")
    rows = [("a.mp4", "one"), ("a.mp4", "two"), ("elsewhere.mp4", "three")]
    lines = [json.dumps({"source": name, "caption": text}) + "\n" for name, text in rows]
    (tmp_path / "mine.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "other.jsonl").write_text(lines[2], encoding="utf-8")
    prepare(preparation(tmp_path / "raw", tmp_path / "set", captions=tmp_path / "mine.jsonl", engine=ONE))
    assert [s.captions for s in ShardDataset(tmp_path / "set").samples] == [("one", "two")]
    with pytest.raises(ValueError, match="names none of the 1 files.*'elsewhere.mp4'"):
        prepare(preparation(tmp_path / "raw", tmp_path / "no", captions=tmp_path / "other.jsonl", engine=ONE))


def test_a_caption_of_the_label_with_other_fields_is_refused(tmp_path):
    for text in ("a {label} by {author}", "a video", "{label} {}"):
        with pytest.raises(ValueError, match="and no other field"):
            preparation(tmp_path, tmp_path / "set", label_caption=text)


def test_images_keep_their_aspect_and_are_not_enlarged(tmp_path):
    for name in ("a.png", "b.jpg"):
        caption(image(tmp_path / "raw" / name), "an image")
    small = replace(CLIP, image_side=512, image_format="png")
    prepare(preparation(tmp_path / "raw", tmp_path / "set", clip=small, engine=ONE))
    assert [(s.height, s.width, s.frames) for s in ShardDataset(tmp_path / "set").samples] == [(64, 64, 1)] * 2


def test_every_configuration_of_the_repository_is_one_of_a_preparation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    from common import build

    paths = sorted((ROOT / "training" / "configs").glob("data_*.yaml"))
    made = [build(PreparationSettings, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in paths]
    assert {settings.source.layout for settings in made} == set(LAYOUTS)


def test_the_script_prepares_by_a_configuration_file_and_shows_it_when_dry(videos, prepared, tmp_path):
    config = tmp_path / "data.yaml"
    config.write_text(
        f"source: {{layout: folder, root: {json.dumps(str(videos))}}}\noutput: {json.dumps(str(tmp_path / 'set'))}\n"
        "samples_per_shard: 2\nfilters: {min_side: 32}\nengine: {workers: 1}\n"
        "clip: {fps: 8.0, frames: 8, min_frames: 4, height: 48, width: 48, image_side: 48}\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(ROOT / "training" / "prepare_data.py"), "--config", str(config)]
    dry = subprocess.run([*command, "--dry-run", "--seed", "3"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "seed=3" in dry.stderr and not (tmp_path / "set").exists()
    subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert contents(tmp_path / "set") == contents(prepared)
