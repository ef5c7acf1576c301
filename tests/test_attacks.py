"""Hostile, swapped and edited input: each is refused in a sentence, nothing of it is executed, and nothing is lost."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_material import folder_of_videos, preparation
from training_components import shard_folder

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.checkpoints import CheckpointError
from vidrd_core.checkpoints.assembly import load_pipeline_parts
from vidrd_core.cli import running
from vidrd_core.cli.models import read_defaults
from vidrd_core.data.engines import EngineSettings
from vidrd_core.data.preparation import PreparationSettings, prepare
from vidrd_core.data.shards import LOCK, ShardDataset
from vidrd_core.data.sources import SourceSettings, list_source
from vidrd_core.data.sources.listing import Item
from vidrd_core.files import alone, read_tensors, write_json, write_tensors
from vidrd_core.jobs.folder import JobError, JobFolder
from vidrd_core.jobs.job import JobResult, Plan, open_job, run_job
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.train.settings import TrainSettings
from vidrd_core.video import VideoError, probe_output
from vidrd_core.video.formats import check_name

ROOT = Path(__file__).parent.parent
SAMPLING = SamplingSettings(4, 16, 16, 2, 3.0, ReuseSettings(2, trim_frames=1))
PROMPTS = ["a red dot", "a blue dot", "a box"]
PLAN = Plan(PROMPTS, SAMPLING, seed=3)


def run(pipe: VidRDPipeline, folder: Path, plan: Plan = PLAN) -> JobResult:
    return run_job(pipe, open_job(folder / "state", pipe, plan), plan, folder / "out.gif", 4.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(pipe: VidRDPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished job, and others whose clips could be taken for its own."""
    plans = {
        "whole": PLAN,
        "another first prompt": replace(PLAN, prompts=["a cat", *PROMPTS[1:]]),
        "another size": replace(PLAN, sampling=replace(SAMPLING, width=32)),
        "another seed": replace(PLAN, seed=4),
        "other steps": replace(PLAN, sampling=replace(SAMPLING, num_inference_steps=3)),
    }
    found = {}
    for name, plan in plans.items():
        found[name] = tmp_path_factory.mktemp("job")
        run(pipe, found[name], plan)
    return found


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("another first prompt", "clip_00001 state_00001", r"clip 1 did not continue clip 0 as it is now"),
        ("another first prompt", "clip_00000 state_00000", r"clip 0 was made with the prompt 'a cat'"),
        ("another size", "clip_00001", r"clip 1 is another video's: .* latents \[4, 4, 8\], not 1, \[4, 4, 4\]"),
        ("another seed", "clip_00001", r"clip 1 was made with the seed"),
    ],
)
def test_clips_of_another_video_are_refused_and_nothing_is_changed(
    pipe: VidRDPipeline, made: dict[str, Path], tmp_path: Path, source: str, files: str, message: str
) -> None:
    job = Path(shutil.copytree(made["whole"], tmp_path / "job"))
    for name in files.split():
        shutil.copy(made[source] / "state" / f"{name}.safetensors", job / "state")
    before = contents(job)
    with pytest.raises(JobError, match=message):
        run(pipe, job)
    assert contents(job) == before


@pytest.mark.parametrize("source", ["another first prompt", "another size", "another seed", "other steps", "earlier"])
def test_a_state_of_another_video_is_never_continued(
    pipe: VidRDPipeline, made: dict[str, Path], tmp_path: Path, source: str
) -> None:
    job = Path(shutil.copytree(made["whole"], tmp_path / "job"))
    (job / "state" / "clip_00002.safetensors").unlink()
    taken = made["whole"] / "state" / "state_00000" if source == "earlier" else made[source] / "state" / "state_00001"
    shutil.copy(taken.with_suffix(".safetensors"), job / "state" / "state_00001.safetensors")
    before = contents(job)
    with pytest.raises(JobError, match="state_00001.safetensors is not the state after clip 1 of this video"):
        run(pipe, job)
    after = contents(job)
    assert {name: after[name] for name in before if name != "state/settings.json"} == {
        name: before[name] for name in before if name != "state/settings.json"
    }
    shutil.copy(made["whole"] / "state" / "state_00001.safetensors", job / "state")
    assert run(pipe, job).is_complete
    assert (job / "out.gif").read_bytes() == (made["whole"] / "out.gif").read_bytes()


@pytest.mark.parametrize("edit", ["values", "shape", "no seeds"])
def test_edited_clips_are_refused(pipe: VidRDPipeline, made: dict[str, Path], tmp_path: Path, edit: str) -> None:
    job = Path(shutil.copytree(made["whole"], tmp_path / "job"))
    path = job / "state" / "clip_00001.safetensors"
    tensors, metadata = read_tensors(path)
    if edit == "values":
        tensors = {"latents": tensors["latents"] + 1e-3}
    elif edit == "shape":
        tensors = {"latents": torch.zeros(1, 4, 2, 2)}
    else:
        metadata = {**metadata, "clip": json.dumps({**json.loads(metadata["clip"]), "seeds": []})}
    write_tensors(path, tensors, metadata)
    before = contents(job)
    with pytest.raises(JobError, match=r"clip 2 did not continue clip 1|clip_00001.safetensors is broken"):
        run(pipe, job)
    assert contents(job) == before


def test_a_folder_of_clips_without_hashes_is_continued(
    pipe: VidRDPipeline, made: dict[str, Path], tmp_path: Path
) -> None:
    job = Path(shutil.copytree(made["whole"], tmp_path / "job"))
    for path in (job / "state").glob("clip_*.safetensors"):
        tensors, metadata = read_tensors(path)
        write_tensors(path, tensors, {key: value for key, value in metadata.items() if key != "after"})
    (job / "state" / "clip_00002.safetensors").unlink()
    assert run(pipe, job).is_complete
    assert (job / "out.gif").read_bytes() == (made["whole"] / "out.gif").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"first": "0"},
        {"first": -3},
        {"first": 10**30},
        {"made": [1]},
        {"made": {"seed": 1}},
        {"planned": 5},
        {"planned": [1, 2]},
        {"fps": "fast"},
        {"fps": float("nan")},
        {"loading": [1]},
        {"loading": {"torch_dtype": "x"}},
        {"extended_from": "x"},
        {"videos": [1]},
    ],
)
def test_edited_settings_are_refused_by_name(made: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    job = JobFolder(shutil.copytree(made["whole"] / "state", tmp_path / "state"))
    write_json(job.path / "settings.json", {**job.read(), **change})
    before = contents(job.path)
    with pytest.raises(JobError, match=rf"settings.json is broken .*{next(iter(change))}.*; put the right file back"):
        job.read()
    assert contents(job.path) == before


@pytest.mark.parametrize("lost", [True, False])
def test_clips_are_kept_where_the_settings_are_lost_or_begin_elsewhere(
    pipe: VidRDPipeline, made: dict[str, Path], tmp_path: Path, lost: bool
) -> None:
    job = Path(shutil.copytree(made["whole"], tmp_path / "job"))
    settings = job / "state" / "settings.json"
    if lost:
        settings.unlink()
    else:
        write_json(settings, {**JobFolder(job / "state").read(), "first": 7})
    before = contents(job)
    with pytest.raises(
        JobError, match=r"holds clips but no settings|says that the clips begin at 7, but clip 0 is there"
    ):
        run(pipe, job)
    assert contents(job) == before


def test_one_process_at_a_time_prepares_a_data_set(tmp_path: Path) -> None:
    settings = preparation(folder_of_videos(tmp_path / "raw", 1), tmp_path / "set", engine=EngineSettings(workers=1))
    with (
        alone(tmp_path / "set" / LOCK, "test"),
        pytest.raises(ValueError, match="prepare .*: another process is doing that"),
    ):
        prepare(settings)
    prepare(settings)
    assert not (tmp_path / "set" / LOCK).exists()


@dataclass(frozen=True)
class Configuration:
    train: TrainSettings


def test_one_process_at_a_time_trains_in_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    import common

    config, folder, trained = tmp_path / "train.yaml", tmp_path / "run", []
    config.write_text(f"train: {{run: {json.dumps(str(folder))}, samples: 2, batch_size: 1}}\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["train_unet.py", "--config", str(config)])
    monkeypatch.setattr(common, "train", lambda task, settings: trained.append(task))
    with (
        alone(folder / "train.lock", "test"),
        pytest.raises(SystemExit, match="train in .*: another process is doing that"),
    ):
        common.run(Configuration, lambda _: "task")
    assert not trained and not (folder / "config.txt").exists()
    common.run(Configuration, lambda _: "task")
    assert trained == ["task"] and [path.name for path in folder.iterdir()] == ["config.txt"]


HARMFUL = {
    "a call": "output: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [PWNED]]\n",
    "an object": "!!python/object/new:pathlib.Path [PWNED]\n",
    "a name": "output: !!python/name:os.system\n",
    "an open bracket": "output: [a\n",
    "bytes": "output: \x00\n",
    "a well of brackets": "[" * 20_000,
    "repetitions": "a: &a [x, x, x, x]\n"
    + "".join(
        f"{after}: &{after} [*{name}, *{name}, *{name}, *{name}]\n" for name, after in pairwise("abcdefghijklmnop")
    )
    + "output: *p\n",
    "itself": "&a {output: *a}\n",
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_configuration_executes_nothing_and_what_is_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    from common import parse

    config, pwned = tmp_path / "data.yaml", tmp_path / "pwned"
    config.write_text(HARMFUL[kind].replace("PWNED", json.dumps(str(pwned))), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data.yaml is no YAML of plain values \(.*\); nothing of it was used"):
        parse(PreparationSettings, ["--config", str(config)])
    assert not pwned.exists()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ROOT / "vidrd_core" / "demo_model", tmp_path_factory.mktemp("model") / "model"))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"block_out_channels": [10**12, 10**12]}),
        ("unet/config.json", {"block_out_channels": [64] * 5000}),
        ("unet/config.json", {"cross_attention_dim": 10**15}),
        ("unet/config.json", {"attention_head_dim": 0}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("vae/config.json", {"layers_per_block": 10**9}),
        ("vae/config.json", {"latent_channels": 10**18}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
        ("text_encoder/config.json", {"hidden_size": 10**12}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**13}),
        ("text_encoder/config.json", {"num_attention_heads": 0}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**13}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
    ],
)
def test_a_model_folder_with_absurd_sizes_is_refused(model_folder: Path, file: str, change: dict[str, Any]) -> None:
    path = model_folder / file
    before = path.read_bytes()
    try:
        write_json(path, {**json.loads(before), **change})
        with pytest.raises(
            CheckpointError, match=r"configuration|num_train_timesteps|does not fit|wide|latent channels"
        ):
            load_pipeline_parts(model_folder)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("defaults", [[1], 5, {"frames": 10**9}])
def test_defaults_of_a_model_that_are_none_are_refused_by_name(tmp_path: Path, defaults: Any) -> None:
    write_json(tmp_path / "model_index.json", {"defaults": defaults})
    with pytest.raises(ValueError, match="model_index.json: (defaults is|unknown defaults)"):
        read_defaults(tmp_path)


def test_an_infinite_number_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    from common import build

    with pytest.raises(ValueError, match="TrainSettings.samples is inf"):
        build(TrainSettings, {"run": "x", "samples": float("inf"), "batch_size": 1})


def test_a_member_of_a_tar_is_unpacked_under_no_name_of_its_own(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    tar.write_bytes(b"0123456789")
    for name in ("0.tar/..\\..\\evil.mp4", "0.tar/C:evil.mp4", "0.tar/con.mp4"):
        with Item(name, tar, "video", span=(2, 3)).file() as path:
            assert path.name == "video.mp4" and path.read_bytes() == b"234"


def huge_header(blob: bytes, at: bytes) -> bytes:
    """A tar with an extended header of 8 TiB before the member ``at``."""
    header = tarfile.TarInfo("header")
    header.type = tarfile.XHDTYPE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + (8 << 40).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return blob.replace(at, bytes(block) + at, 1)


@pytest.mark.parametrize("attack", ["traversal", "links", "well of brackets", "huge header"])
def test_hostile_members_of_a_tar_cost_only_themselves(tmp_path: Path, attack: str) -> None:
    root, picture = tmp_path / "raw", b"no picture is opened here"
    root.mkdir()
    members = {"a.png": picture, "a.txt": b"a thing", "b.png": picture, "b.json": b"[" * 100_000}
    if attack == "traversal":
        members |= {"../../c.png": picture, "../../c.txt": b"out", "/c.png": picture, "/c.txt": b"out"}
    with tarfile.open(root / "0.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if attack == "links":
            for kind, name in ((tarfile.SYMTYPE, "d.png"), (tarfile.LNKTYPE, "e.png"), (tarfile.FIFOTYPE, "f.png")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
    blob = (root / "0.tar").read_bytes()
    if attack == "huge header":
        (root / "0.tar").write_bytes(huge_header(blob, blob[blob.index(b"b.json") :][:512]))
    listing = list_source(SourceSettings("laion", root))
    inside = {item.name: item.read() for item in listing.items}
    assert inside.pop("0.tar/a.png") == picture
    for item in listing.items:
        with item.file() as path:
            assert path.name == "image.png" and path.parent.parent == Path(tempfile.gettempdir())
    assert set(inside) == ({"0.tar/../../c.png", "0.tar//c.png"} if attack == "traversal" else set())
    dropped = {drop.source: drop.reason for drop in listing.dropped}
    assert dropped == ({"0.tar": "broken"} if attack == "huge header" else {"0.tar/b.png": "no caption"})


def edited(folder: Path, name: str, change: Any) -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    change(values)
    write_json(folder / name, values)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("index.json", lambda v: v["shards"][0].update(name="../elsewhere.tar")),
        ("index.json", lambda v: v["shards"][0].update(name="C:\\elsewhere.tar")),
        ("index.json", lambda v: v.pop("shards")),
        ("shard-000000.json", lambda v: v["samples"][0]["members"].update(mp4=[-5, 3])),
        ("shard-000000.json", lambda v: v["samples"][0]["members"].update(mp4=[0, 8 << 40])),
        ("shard-000000.json", lambda v: v["samples"][0].pop("frames")),
        ("shard-000000.json", lambda v: v.update(samples=5)),
    ],
)
def test_an_edited_data_set_is_refused_by_the_name_of_its_file(tmp_path: Path, name: str, change: Any) -> None:
    folder = shard_folder(tmp_path / "set", 2)
    shutil.copy(folder / "shard-000000.tar", tmp_path / "elsewhere.tar")
    shutil.copy(folder / "shard-000000.json", tmp_path / "elsewhere.json")
    edited(folder, name, change)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*; copy the data set again"):
        ShardDataset(folder)


@pytest.mark.parametrize("name", ["a:b.mp4", "CON.mp4", "aux", "lpt1.state.gif", "what?.mp4", "end .", "new\nline.mp4"])
def test_names_that_windows_forbids_are_refused_there(name: str) -> None:
    check_name(Path("videos") / name, windows=False)
    with pytest.raises(VideoError, match="cannot be the name of a file or folder on this system; choose another name"):
        check_name(Path("videos") / name, windows=True)
    check_name(Path("..") / "videos" / "contact.mp4", windows=True)


def test_a_name_with_a_zero_byte_is_refused_before_the_work() -> None:
    with pytest.raises(VideoError, match=r"'a\\x00.mp4' cannot be the name"):
        probe_output("a\0.mp4")


def test_one_process_at_a_time_writes_a_video(pipe: VidRDPipeline, tmp_path: Path) -> None:
    output = tmp_path / "out.gif"
    options = SimpleNamespace(output=str(output), quiet=True, contact_sheet=None, model=None)
    plan = replace(PLAN, prompts=PROMPTS[:1])
    jobs = [open_job(tmp_path / name, pipe, plan) for name in ("first", "second")]
    with (
        alone(tmp_path / "out.gif.lock", "test"),
        pytest.raises(ValueError, match="write .*out.gif: another process is doing that"),
    ):
        running.run(pipe, jobs[0], plan, options, 4.0)  # type: ignore[arg-type]
    assert not output.exists() and not jobs[0].num_finished()
    assert running.run(pipe, jobs[1], plan, options, 4.0) == 0  # type: ignore[arg-type]
    assert output.exists() and not (tmp_path / "out.gif.lock").exists()


def test_a_lock_goes_with_its_work_also_after_an_error_and_no_one_elses_does(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(RuntimeError, match="in the work"), alone(lock, "work"):
        raise RuntimeError("in the work")
    assert not lock.exists()
    with alone(lock, "work"):
        with pytest.raises(ValueError, match="work: another process"), alone(lock, "work"):
            pass
        assert lock.exists()
        with pytest.raises(ValueError, match="work: another process"), alone(lock, "work"):
            pass
