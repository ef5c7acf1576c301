"""Long jobs: killed at any moment and begun again, they end as if they had never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from components import make_pipeline

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.jobs import JobError, JobFolder, JobResult, Plan, check_space, default_folder, open_job, run_job
from vidrd_core.state import SamplingSettings, VideoState, read_tensors
from vidrd_core.video import read_metadata, read_video

SAMPLING = SamplingSettings(4, 16, 16, 4, 3.0, ReuseSettings(2, trim_frames=1))
PROMPTS = ["a red dot", "a blue dot", "a box", "a line"]


def run(pipe: VidRDPipeline, folder: Path, output: Path, plan: Plan | None = None, **options: Any) -> JobResult:
    plan = Plan(PROMPTS, SAMPLING, seed=3) if plan is None else plan
    return run_job(pipe, open_job(folder, pipe, plan), plan, output, 4.0, **options)


def stop_after(steps: int) -> Any:
    """A ``should_stop`` that says True once it was asked so often."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= steps


@pytest.fixture(scope="module")
def unbroken(pipe: VidRDPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert run(pipe, folder / "state", folder / "out.gif").is_complete
    return folder


def same_clips(first: Path, second: Path, count: int = 4) -> bool:
    """Whether all tensors and metadata are equal (safetensors orders its metadata as it likes)."""
    for name in [f"{kind}_{n:05d}.safetensors" for n in range(count) for kind in ("clip", "state")]:
        (ours, about_ours), (theirs, about_theirs) = read_tensors(first / name), read_tensors(second / name)
        if about_ours != about_theirs or ours.keys() != theirs.keys():
            return False
        if not all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items()):
            return False
    return True


def test_a_job_writes_the_video_of_one_call(pipe: VidRDPipeline, unbroken: Path, tmp_path: Path) -> None:
    run(pipe, tmp_path / "state", tmp_path / "frames")
    reuse = SAMPLING.reuse
    out = pipe(PROMPTS, num_clips=4, num_frames=4, num_inference_steps=4, guidance_scale=3.0, reuse=reuse, seed=3)
    expected = torch.from_numpy(out.frames[0]).mul(255).round().byte()
    frames = torch.from_numpy(read_video(tmp_path / "frames").frames)
    assert frames.shape[0] == reuse.num_joined_frames(4, 4) == 13
    assert (frames.int() - expected.int()).abs().max() <= 1  # [0, 1] and [-1, 1] may round differently
    folder = JobFolder(tmp_path / "state")
    assert all(torch.equal(folder.load(n).latents, clip) for n, clip in enumerate(out.clips))


@pytest.mark.parametrize("steps", [1, 5, 6, 11, 16, 17, 18])
def test_a_job_stopped_anywhere_goes_on_to_the_same_clips_and_the_same_file(
    pipe: VidRDPipeline, unbroken: Path, tmp_path: Path, steps: int
) -> None:
    output = tmp_path / "out.gif"
    first = run(pipe, tmp_path / "state", output, should_stop=stop_after(steps))
    assert first.clips < 4
    assert output.exists() == bool(first.clips)
    if first.clips:
        assert len(read_video(output).frames) == first.frames == 4 + 3 * (first.clips - 1)
    assert run(pipe, tmp_path / "state", output).is_complete
    assert same_clips(tmp_path / "state", unbroken / "state")
    assert output.read_bytes() == (unbroken / "out.gif").read_bytes()


KILLER = """
import os, signal, sys
from pathlib import Path
import vidrd_core.cli
fatal, real, count = int(sys.argv[1]), os.replace, 0
def replace(source, target):
    global count
    if Path(target).suffix != ".json":
        count += 1
        if count == fatal:
            if Path(source).is_file():  # as if the write itself had been cut off
                os.truncate(source, Path(source).stat().st_size // 2)
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    real(source, target)
os.replace = replace
sys.exit(vidrd_core.cli.main(sys.argv[2:]))
"""


def test_a_process_killed_while_it_writes_goes_on_to_the_same_result(model_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}

    def call(folder: Path, fatal: int) -> int:
        options = ["generate", "--model", model_folder, "--output", folder / "out.gif", "--clips", "3", "--quiet"]
        options += ["--frames", "4", "--steps", "3", "--prompt", "a red dot", "--prompt", "a box", "--device", "cpu"]
        command = [sys.executable, "-c", KILLER, str(fatal), *map(str, options)]
        return subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False).returncode

    assert call(tmp_path / "whole", 0) == 0
    broken = tmp_path / "broken"
    clips = JobFolder(broken / "out.state")
    # Killed in the first clip's latents, the second one's state, and (with all clips there) the video's last moment.
    for fatal, finished in ((2, 0), (3, 1), (5, 3)):
        assert call(broken, fatal) != 0
        assert clips.num_finished() == finished
        assert not (broken / "out.gif").exists()
    assert call(broken, 0) == 0
    assert same_clips(broken / "out.state", tmp_path / "whole" / "out.state", 3)
    assert (broken / "out.gif").read_bytes() == (tmp_path / "whole" / "out.gif").read_bytes()
    assert not list(broken.rglob("*.partial*"))


def test_an_exception_keeps_the_frames_written_so_far_playable(pipe: VidRDPipeline, tmp_path: Path) -> None:
    asked = []

    def fail() -> bool:
        asked.append(1)
        if len(asked) > 14:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(pipe, tmp_path / "state", tmp_path / "out.gif", should_stop=fail)
    assert len(read_video(tmp_path / "out.gif").frames) >= 3
    assert JobFolder(tmp_path / "state").num_finished() == 2


def test_a_finished_job_run_again_makes_no_clip_and_the_same_file(
    pipe: VidRDPipeline, unbroken: Path, tmp_path: Path
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in (unbroken / "state").glob("*.safetensors")}
    assert run(pipe, unbroken / "state", tmp_path / "again.gif").is_complete
    assert {p.name: p.stat().st_mtime_ns for p in (unbroken / "state").glob("*.safetensors")} == before
    assert (tmp_path / "again.gif").read_bytes() == (unbroken / "out.gif").read_bytes()


def test_more_clips_extend_a_job_and_fewer_take_its_beginning(
    pipe: VidRDPipeline, unbroken: Path, tmp_path: Path
) -> None:
    short = run(pipe, tmp_path / "state", tmp_path / "short.gif", Plan(PROMPTS[:2], SAMPLING, seed=3))
    assert (short.clips, short.frames) == (2, 7)
    first = (tmp_path / "short.gif").read_bytes()
    run(pipe, tmp_path / "state", tmp_path / "out.gif")
    assert (tmp_path / "out.gif").read_bytes() == (unbroken / "out.gif").read_bytes()
    run(pipe, tmp_path / "state", tmp_path / "short.gif", Plan(PROMPTS[:2], SAMPLING, seed=3))
    assert (tmp_path / "short.gif").read_bytes() == first
    assert JobFolder(tmp_path / "state").num_finished() == 4


@pytest.mark.parametrize(
    ("plan", "message"),
    [(Plan(PROMPTS, SAMPLING, seed=4), "seed was 3 and is 4"),
     (Plan(PROMPTS, SamplingSettings(4, 16, 16, 5, 3.0, SAMPLING.reuse), 3), "num_inference_steps was 4 and is 5"),
     (Plan(PROMPTS, SamplingSettings(4, 16, 24, 4, 3.0, SAMPLING.reuse), 3), "width was 16 and is 24"),
     (Plan(PROMPTS, SamplingSettings(4, 16, 16, 4, 3.0, ReuseSettings(2)), 3), "trim_frames was 1 and is 0"),
     (Plan(["a red dot", "a cat"], SAMPLING, 3), "clip 1 was made with the prompt 'a blue dot', not 'a cat'"),
     (Plan(PROMPTS, SAMPLING, 3, {2: 77}), "clip 2 was made with the seed [0-9]+, not 77")],
)  # fmt: skip
def test_a_folder_made_with_other_settings_is_refused_with_the_difference(
    pipe: VidRDPipeline, unbroken: Path, plan: Plan, message: str
) -> None:
    before = (unbroken / "state" / "settings.json").read_bytes()
    with pytest.raises(JobError, match=message):
        open_job(unbroken / "state", pipe, plan)
    assert (unbroken / "state" / "settings.json").read_bytes() == before


def test_a_folder_made_with_another_model_scheduler_or_precision_is_refused(
    pipe: VidRDPipeline, unbroken: Path, tmp_path: Path
) -> None:
    from diffusers import EulerDiscreteScheduler

    plan = Plan(PROMPTS, SAMPLING, seed=3)
    euler = VidRDPipeline(**{**pipe.components, "scheduler": EulerDiscreteScheduler()})
    other, half = make_pipeline(tmp_path, seed=8), make_pipeline(tmp_path).to(dtype=torch.bfloat16)
    cases = ((other, "the unet is another"), (euler, "scheduler was 'DDIMScheduler'"), (half, "dtype was 'float32'"))
    for changed, message in cases:
        with pytest.raises(JobError, match=message):
            open_job(unbroken / "state", changed, plan)


def test_clips_from_a_changed_one_on_can_be_made_again(pipe: VidRDPipeline, unbroken: Path, tmp_path: Path) -> None:
    run(pipe, tmp_path / "state", tmp_path / "out.gif", Plan(["a red dot", "a blue dot", "a cat"], SAMPLING, 3))
    plan = Plan(PROMPTS, SAMPLING, 3)
    folder = open_job(tmp_path / "state", pipe, plan, redo=True)
    assert folder.num_finished() == 2
    run_job(pipe, folder, plan, tmp_path / "out.gif", 4.0)
    assert (tmp_path / "out.gif").read_bytes() == (unbroken / "out.gif").read_bytes()
    assert open_job(tmp_path / "state", pipe, plan, redo=True).num_finished() == 4  # nothing left to change


def test_a_job_can_go_on_from_any_clips_state_in_a_folder_of_its_own(
    pipe: VidRDPipeline, unbroken: Path, tmp_path: Path
) -> None:
    state = VideoState.load(JobFolder(unbroken / "state").state_path(1))
    plan = Plan(PROMPTS[2:], SAMPLING, start=state)
    first = run(pipe, tmp_path / "state", tmp_path / "out", plan, should_stop=stop_after(6))
    assert first.clips == 1
    result = run(pipe, tmp_path / "state", tmp_path / "out", plan, with_sheet=True)
    assert (result.clips, result.frames) == (2, 6)
    whole, rest = JobFolder(unbroken / "state"), JobFolder(tmp_path / "state")
    assert all(torch.equal(rest.load(n).latents, whole.load(n).latents) for n in (2, 3))
    run(pipe, unbroken / "state", tmp_path / "whole")
    frames = read_video(tmp_path / "whole").frames[7:]
    assert (read_video(tmp_path / "out").frames == frames).all()
    with pytest.raises(JobError, match="begins at clip 2 and not at 0"):
        open_job(tmp_path / "state", pipe, Plan(PROMPTS, SAMPLING, seed=3))


def test_each_clip_gets_its_row_in_the_contact_sheet(pipe: VidRDPipeline, unbroken: Path, tmp_path: Path) -> None:
    result = run(pipe, unbroken / "state", tmp_path / "out.gif", with_sheet=True, metadata={"a": [1]})
    assert result.sheet is not None and result.sheet.height > 4 * 128
    assert read_metadata(tmp_path / "out.gif") == {"a": [1]}


def test_a_folder_with_other_peoples_files_is_refused_and_left_alone(pipe: VidRDPipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(JobError, match=r"thesis\.txt"):
        open_job(tmp_path, pipe, Plan(PROMPTS, SAMPLING))
    (tmp_path / "settings.json").write_text(json.dumps({"format": "other"}), encoding="utf-8")
    with pytest.raises(JobError, match="not a VidRD job"):
        open_job(tmp_path, pipe, Plan(PROMPTS, SAMPLING))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["settings.json", "thesis.txt"]


def test_clearing_a_folder_deletes_only_what_a_job_wrote(pipe: VidRDPipeline, tmp_path: Path) -> None:
    folder = open_job(tmp_path, pipe, Plan(PROMPTS, SAMPLING))
    folder.clip_path(0).touch()
    (tmp_path / "note.txt").touch()
    folder.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_disk_that_is_too_small_is_noticed_first(
    pipe: VidRDPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_space(tmp_path, pipe, Plan(PROMPTS, SAMPLING))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="MiB are needed"):
        check_space(tmp_path, pipe, Plan(PROMPTS, SAMPLING))


def test_the_default_folder_lies_beside_the_output() -> None:
    assert default_folder("videos/out.gif") == Path("videos/out.state")
    assert default_folder("videos/out") == Path("videos/out.state")
