"""Long jobs: killed at any moment and begun again, they end as if they had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from components import make_pipeline

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.files import read_tensors
from vidrd_core.jobs.folder import JobError, JobFolder, default_folder
from vidrd_core.jobs.job import JobResult, Plan, check_job, check_space, made_with, open_job, run_job
from vidrd_core.models.fingerprints import old_fingerprint
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.sampling.state import Clip, VideoState
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
def uninterrupted(pipe: VidRDPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
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


def test_a_job_writes_the_video_of_one_call(pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path) -> None:
    run(pipe, tmp_path / "state", tmp_path / "frames")
    reuse = SAMPLING.reuse
    out = pipe(PROMPTS, num_clips=4, num_frames=4, num_inference_steps=4, guidance_scale=3.0, reuse=reuse, seed=3)
    expected = torch.from_numpy(out.frames[0]).mul(255).round().byte()
    frames = torch.from_numpy(read_video(tmp_path / "frames").frames)
    assert frames.shape[0] == 13
    assert (frames.int() - expected.int()).abs().max() <= 1  # [0, 1] and [-1, 1] may round differently
    folder = JobFolder(tmp_path / "state")
    assert all(torch.equal(folder.load(n).latents, clip) for n, clip in enumerate(out.clips))


@pytest.mark.parametrize("steps", [1, 5, 6, 11, 16, 17, 18])
def test_a_job_stopped_anywhere_continues_to_the_same_clips_and_the_same_file(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path, steps: int
) -> None:
    output = tmp_path / "out.gif"
    first = run(pipe, tmp_path / "state", output, should_stop=stop_after(steps))
    assert first.clips < 4
    assert output.exists() == bool(first.clips)
    if first.clips:
        assert len(read_video(output).frames) == first.frames == 4 + 3 * (first.clips - 1)
    assert run(pipe, tmp_path / "state", output).is_complete
    assert same_clips(tmp_path / "state", uninterrupted / "state")
    assert output.read_bytes() == (uninterrupted / "out.gif").read_bytes()


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


def test_a_process_killed_while_it_writes_continues_to_the_same_result(model_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}

    def call(folder: Path, fatal: int) -> int:
        options = ["generate", "--model", model_folder, "--output", folder / "out.gif", "--clips", "3", "--quiet"]
        options += ["--frames", "4", "--steps", "3", "--prompt", "a red dot", "--prompt", "a box", "--device", "cpu"]
        command = [sys.executable, "-c", KILLER, str(fatal), *map(str, options)]
        return subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False).returncode

    assert call(tmp_path / "whole", 0) == 0
    broken = tmp_path / "broken"
    clips = JobFolder(broken / "out.gif.state")
    # Killed in the first clip's latents, the second one's state, and (with all clips there) the video's last moment.
    for fatal, finished in ((2, 0), (3, 1), (5, 3)):
        assert call(broken, fatal) != 0
        assert clips.num_finished() == finished
        assert not (broken / "out.gif").exists()
    assert call(broken, 0) == 0
    assert same_clips(broken / "out.gif.state", tmp_path / "whole" / "out.gif.state", 3)
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
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in (uninterrupted / "state").glob("*.safetensors")}
    assert run(pipe, uninterrupted / "state", tmp_path / "again.gif").is_complete
    assert {p.name: p.stat().st_mtime_ns for p in (uninterrupted / "state").glob("*.safetensors")} == before
    assert (tmp_path / "again.gif").read_bytes() == (uninterrupted / "out.gif").read_bytes()


def test_more_clips_extend_a_job_and_fewer_take_its_beginning(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    short = run(pipe, tmp_path / "state", tmp_path / "short.gif", Plan(PROMPTS[:2], SAMPLING, seed=3))
    assert (short.clips, short.frames) == (2, 7)
    first = (tmp_path / "short.gif").read_bytes()
    run(pipe, tmp_path / "state", tmp_path / "out.gif")
    assert (tmp_path / "out.gif").read_bytes() == (uninterrupted / "out.gif").read_bytes()
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
    pipe: VidRDPipeline, uninterrupted: Path, plan: Plan, message: str
) -> None:
    before = (uninterrupted / "state" / "settings.json").read_bytes()
    with pytest.raises(JobError, match=message):
        open_job(uninterrupted / "state", pipe, plan)
    assert (uninterrupted / "state" / "settings.json").read_bytes() == before


def test_a_folder_made_with_another_model_scheduler_or_precision_is_refused(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    from diffusers import EulerDiscreteScheduler

    plan = Plan(PROMPTS, SAMPLING, seed=3)
    euler = VidRDPipeline(**{**pipe.components, "scheduler": EulerDiscreteScheduler()})
    other, half = make_pipeline(tmp_path, seed=8), make_pipeline(tmp_path).to(dtype=torch.bfloat16)
    cases = ((other, "the unet is another"), (euler, "scheduler was 'DDIMScheduler'"), (half, "dtype was 'float32'"))
    for changed, message in cases:
        with pytest.raises(JobError, match=message) as caught:
            open_job(uninterrupted / "state", changed, plan)
        assert "beta_start" not in str(caught.value)  # which follows from the other scheduler


def test_clips_from_a_changed_one_on_can_be_made_again(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    run(pipe, tmp_path / "state", tmp_path / "out.gif", Plan(["a red dot", "a blue dot", "a cat"], SAMPLING, 3))
    plan = Plan(PROMPTS, SAMPLING, 3)
    folder = open_job(tmp_path / "state", pipe, plan, redo=True)
    assert folder.num_finished() == 2
    run_job(pipe, folder, plan, tmp_path / "out.gif", 4.0)
    assert (tmp_path / "out.gif").read_bytes() == (uninterrupted / "out.gif").read_bytes()
    assert open_job(tmp_path / "state", pipe, plan, redo=True).num_finished() == 4  # nothing left to change


def test_a_job_can_continue_any_clips_state_in_a_folder_of_its_own(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    state = VideoState.load(JobFolder(uninterrupted / "state").state_path(1))
    plan = Plan(PROMPTS[2:], SAMPLING, start=state)
    first = run(pipe, tmp_path / "state", tmp_path / "out", plan, should_stop=stop_after(6))
    assert first.clips == 1
    result = run(pipe, tmp_path / "state", tmp_path / "out", plan, with_sheet=True)
    assert (result.clips, result.frames) == (2, 6)
    whole, rest = JobFolder(uninterrupted / "state"), JobFolder(tmp_path / "state")
    assert all(torch.equal(rest.load(n).latents, whole.load(n).latents) for n in (2, 3))
    run(pipe, uninterrupted / "state", tmp_path / "whole")
    frames = read_video(tmp_path / "whole").frames[7:]
    assert (read_video(tmp_path / "out").frames == frames).all()
    with pytest.raises(JobError, match="begins at clip 2 and not at 0"):
        open_job(tmp_path / "state", pipe, Plan(PROMPTS, SAMPLING, seed=3))


def going_on(pipe: VidRDPipeline, prompt: str, **options: Any) -> Plan:
    """A plan that continues a clip of seed 5, whatever its prompt or negative states are."""
    given = {"num_frames": 4, "num_inference_steps": 4, "guidance_scale": 3.0, "reuse": SAMPLING.reuse, **options}
    state = pipe(prompt, num_clips=1, seed=5, height=16, width=16, output_type="latent", **given).state
    return Plan(["a box", "a line"], SAMPLING, start=state)


def test_a_folder_is_not_used_by_a_job_that_continues_another_video_of_the_same_seed(
    pipe: VidRDPipeline, tmp_path: Path
) -> None:
    red = going_on(pipe, "a red dot")
    assert run(pipe, tmp_path / "state", tmp_path / "out.gif", red).is_complete
    words = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    assert red.start is not None
    longer = replace(red.start, num_joined=red.start.num_joined + 1)
    others = (going_on(pipe, "a blue dot"), going_on(pipe, "a red dot", num_inference_steps=3),
              going_on(pipe, "a red dot", negative_prompt_embeds=words), replace(red, start=longer))  # fmt: skip
    for other in others:
        with pytest.raises(JobError, match="the start is another one"):
            open_job(tmp_path / "state", pipe, other)
    red.start.save(tmp_path / "red.safetensors")
    again = replace(red, start=VideoState.load(tmp_path / "red.safetensors"))
    assert open_job(tmp_path / "state", pipe, again).num_finished() == 2


def test_a_start_s_digest_knows_the_types_of_its_tensors_and_no_order_of_its_settings(pipe: VidRDPipeline) -> None:
    plan = going_on(pipe, "a red dot")
    start = plan.start
    assert start is not None
    context = dict(reversed(list(start.trajectory.context.items())))
    turned = replace(start, trajectory=replace(start.trajectory, context=context))
    typed = replace(start, text=start.text.view(torch.int32))
    found = [made_with(pipe, replace(plan, start=one))["start"] for one in (start, turned, typed)]
    assert found[0] == found[1] != found[2]


def as_earlier_versions_wrote(folder: Path, start: VideoState | None = None) -> None:
    """Give a folder the settings of earlier versions: a digest of the start's noise, three digits of 64 weights."""
    settings = JobFolder(folder).read()
    made = settings["made"]
    made.update({name: old_fingerprint(made[name]) for name in ("unet", "vae", "text_encoder")})
    del made["text_encoder_dtype"]
    made["sampling"]["reuse"]["guidance_lead"] = made["sampling"]["reuse"].pop("cleaner_overlap")
    first, last = made["sampling"].pop("guidance_interval")
    if (first, last) != (0, 1):  # the interval was among the scheduler's settings
        made["scheduler"]["guidance_interval"] = f"{first:g} {last:g}"
    if start is not None:
        made["start"] = hashlib.sha256(start.trajectory.noise.numpy().tobytes()).hexdigest()[:12]
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def test_an_earlier_version_s_folder_is_continued_where_the_start_in_it_is_the_plan_s(
    pipe: VidRDPipeline, tmp_path: Path
) -> None:
    red, folder = going_on(pipe, "a red dot"), JobFolder(tmp_path / "state")
    assert run(pipe, folder.path, tmp_path / "out.gif", red, should_stop=stop_after(5)).clips == 1
    as_earlier_versions_wrote(folder.path, red.start)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(JobError, match="the start is another one"):
        open_job(folder.path, pipe, going_on(pipe, "a blue dot"))
    kept = folder.start_path.rename(tmp_path / "kept.safetensors")
    with pytest.raises(JobError, match=r"earlier version, .* without start\.safetensors .* Put that file back"):
        open_job(folder.path, pipe, red)
    kept.rename(folder.start_path)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert run(pipe, folder.path, tmp_path / "out.gif", red).is_complete
    assert run(pipe, tmp_path / "whole", tmp_path / "whole.gif", red).is_complete
    assert (tmp_path / "out.gif").read_bytes() == (tmp_path / "whole.gif").read_bytes()
    assert folder.read()["made"] == JobFolder(tmp_path / "whole").read()["made"]


def test_an_earlier_version_s_folder_of_a_new_video_is_continued(pipe: VidRDPipeline, tmp_path: Path) -> None:
    plan = Plan(PROMPTS[:2], replace(SAMPLING, guidance_interval=(0.0, 0.5)), seed=3)
    assert run(pipe, tmp_path / "state", tmp_path / "out.gif", plan, should_stop=stop_after(5)).clips == 1
    as_earlier_versions_wrote(tmp_path / "state")
    with pytest.raises(JobError, match="guidance_interval was"):
        open_job(tmp_path / "state", pipe, Plan(PROMPTS[:2], SAMPLING, seed=3))
    with pytest.raises(JobError, match="the unet is another one"):
        open_job(tmp_path / "state", make_pipeline(tmp_path / "words", seed=8), plan)
    assert run(pipe, tmp_path / "state", tmp_path / "out.gif", plan).is_complete


def test_a_folder_takes_its_model_in_no_other_precision_and_no_neighbouring_checkpoint(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    changed = make_pipeline(tmp_path)
    changed.text_encoder.to(torch.bfloat16)
    with pytest.raises(JobError, match="other settings: text_encoder_dtype was 'float32' and is 'bfloat16'"):
        open_job(uninterrupted / "state", changed, Plan(PROMPTS, SAMPLING, seed=3))
    further = make_pipeline(tmp_path)
    with torch.no_grad():
        for parameter in further.vae.parameters():
            parameter.mul_(1.0001)
    with pytest.raises(JobError, match="other settings: the vae is another one"):
        open_job(uninterrupted / "state", further, Plan(PROMPTS, SAMPLING, seed=3))


def test_each_clip_gets_its_row_in_the_contact_sheet(pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path) -> None:
    result = run(pipe, uninterrupted / "state", tmp_path / "out.gif", with_sheet=True, metadata=lambda _: {"a": [1]})
    assert result.sheet is not None and result.sheet.height > 4 * 128
    assert read_metadata(tmp_path / "out.gif") == {"a": [1], "frames": 13}


def test_a_folder_with_other_peoples_files_is_refused_and_left_alone(pipe: VidRDPipeline, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(JobError, match=r"thesis\.txt"):
        open_job(tmp_path, pipe, Plan(PROMPTS, SAMPLING))
    (tmp_path / "settings.json").write_text(json.dumps({"format": "other"}), encoding="utf-8")
    with pytest.raises(JobError, match="does not belong to a VidRD job"):
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
        check_space(tmp_path / "new" / "state", pipe, Plan(PROMPTS, SAMPLING))
    assert not (tmp_path / "new").exists()


def test_a_state_folder_that_cannot_be_written_is_refused_by_name(pipe: VidRDPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.state: the state folder cannot be written .* choose another one"):
        check_space(tmp_path / "file" / "state", pipe, Plan(PROMPTS, SAMPLING))


@pytest.mark.parametrize(
    ("sampling", "output", "fps", "message"),
    [(replace(SAMPLING, height=17), "out.gif", 4.0, "size is 16x17"),
     (replace(SAMPLING, num_inference_steps=2000), "out.gif", 4.0, "2000"),
     (SAMPLING, "out.gif", 60.0, "at most 50 for .gif, got 60"), (SAMPLING, "out.avi", 4.0, "unknown suffix")],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_before_anything_is_changed(
    pipe: VidRDPipeline, tmp_path: Path, sampling: SamplingSettings, output: str, fps: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_job(pipe, Plan(PROMPTS, sampling), tmp_path / "state", tmp_path / output, fps)
    assert not list(tmp_path.iterdir())


def test_a_state_of_another_model_or_scheduler_is_refused_before_a_folder_is_made(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    from diffusers import EulerDiscreteScheduler

    plan = Plan(["a box"], SAMPLING, start=JobFolder(uninterrupted / "state").load_state(1))
    euler = VidRDPipeline(**{**pipe.components, "scheduler": EulerDiscreteScheduler()})
    for changed, message in ((make_pipeline(tmp_path / "tokens", seed=8), "another U-Net"), (euler, "one scheduler")):
        with pytest.raises(ValueError, match=message):
            check_job(changed, plan, tmp_path / "state", tmp_path / "out.gif", 4.0)
    assert not (tmp_path / "state").exists()


def test_settings_of_a_folder_without_clips_do_not_matter(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path
) -> None:
    first = Plan(
        PROMPTS, replace(SAMPLING, guidance_scale=2.0), 4, start=JobFolder(uninterrupted / "state").load_state(0)
    )
    assert run(pipe, tmp_path / "state", tmp_path / "out.gif", first, should_stop=stop_after(2)).clips == 0
    assert run(pipe, tmp_path / "state", tmp_path / "out.gif").is_complete
    assert same_clips(tmp_path / "state", uninterrupted / "state")
    assert not JobFolder(tmp_path / "state").start_path.exists()


def test_a_stop_never_makes_a_video_shorter(pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gif"
    run(pipe, tmp_path / "state", output)
    whole = output.read_bytes()
    assert run(pipe, tmp_path / "state", output, should_stop=lambda: True).is_complete
    assert output.read_bytes() == whole
    more = Plan([*PROMPTS, "a cat"], SAMPLING, 3)
    assert run(pipe, tmp_path / "state", output, more, should_stop=lambda: True).clips == 4
    assert output.read_bytes() == whole


def test_a_crash_while_finished_clips_are_decoded_leaves_the_video_alone(
    pipe: VidRDPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.gif"
    run(pipe, tmp_path / "state", output)
    whole, real = output.read_bytes(), JobFolder.load

    def load(folder: JobFolder, index: int) -> Clip:
        if index == 3:
            raise KeyboardInterrupt
        return real(folder, index)

    monkeypatch.setattr(JobFolder, "load", load)
    plan = Plan(PROMPTS, SAMPLING, seed=3)
    with pytest.raises(KeyboardInterrupt):
        run_job(pipe, JobFolder(tmp_path / "state"), plan, output, 4.0)
    assert output.read_bytes() == whole and not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("name", ["out.gif", "out.mp4", "out.webm", "out"])
def test_the_metadata_of_a_stopped_video_describe_only_what_is_in_it(
    pipe: VidRDPipeline, tmp_path: Path, name: str
) -> None:
    def about(plan: Plan) -> dict[str, Any]:
        return {"prompts": list(plan.prompts)}

    result = run(pipe, tmp_path / "state", tmp_path / name, should_stop=stop_after(10), metadata=about)
    assert (result.clips, result.frames) == (2, 7)
    assert read_metadata(tmp_path / name) == {"prompts": PROMPTS[:2], "frames": 7}
    assert len(read_video(tmp_path / name).frames) == 7
    run(pipe, tmp_path / "state", tmp_path / name, metadata=about)
    assert read_metadata(tmp_path / name) == {"prompts": PROMPTS, "frames": 13}


def test_a_plan_knows_which_clips_a_number_of_frames_shows(uninterrupted: Path) -> None:
    plan = Plan(PROMPTS, SAMPLING)
    assert [len(plan.beginning(frames).prompts) for frames in (1, 4, 5, 7, 8, 13)] == [1, 1, 2, 2, 3, 4]
    later = replace(plan, start=JobFolder(uninterrupted / "state").load_state(3))
    assert (plan.num_frames, later.num_frames) == (13, 12)
    assert [len(later.beginning(frames).prompts) for frames in (3, 4, 12)] == [1, 2, 4]


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "state")
    with folder.locked():
        with pytest.raises(JobError, match="is in use: another process makes its clips"), folder.locked():
            pass
        folder.clear()  # the lock holds on
        with pytest.raises(JobError, match="is in use"), folder.locked():
            pass
    with JobFolder(tmp_path / "state").locked():
        pass
    folder.remove()
    assert not folder.path.exists()


def test_a_clip_with_nan_is_not_saved(pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path) -> None:
    whole, folder = JobFolder(uninterrupted / "state"), JobFolder(tmp_path)
    clip = whole.load(0)
    clip.state = whole.load_state(0)
    clip.latents[..., 0] = float("nan")
    with pytest.raises(JobError, match="clip 0 came out as NaN or infinity.*float32"):
        folder.save(clip)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip_00001.safetensors", "state_00003.safetensors"])
def test_a_broken_file_is_named_and_once_deleted_it_is_made_again(
    pipe: VidRDPipeline, uninterrupted: Path, tmp_path: Path, name: str
) -> None:
    run(pipe, tmp_path / "state", tmp_path / "out.gif")
    file = tmp_path / "state" / name
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(JobError, match=rf"{name} is broken .*; delete it and run the command"):
        folder = open_job(tmp_path / "state", pipe, Plan(PROMPTS, SAMPLING, 3))
        folder.load_state(3)
    file.unlink()
    assert run(pipe, tmp_path / "state", tmp_path / "out.gif").is_complete
    assert same_clips(tmp_path / "state", uninterrupted / "state")


def test_clips_behind_a_gap_are_not_used_for_the_new_video(pipe: VidRDPipeline, tmp_path: Path) -> None:
    run(pipe, tmp_path / "state", tmp_path / "out.gif")
    folder = JobFolder(tmp_path / "state")
    folder.clip_path(1).unlink()
    changed = Plan(["a red dot", "a cat", *PROMPTS[2:]], SAMPLING, 3)
    assert run(pipe, tmp_path / "state", tmp_path / "out.gif", changed, should_stop=stop_after(6)).clips == 2
    assert folder.num_finished() == 2


def test_a_video_of_text_states_is_continued_with_them(pipe: VidRDPipeline, tmp_path: Path) -> None:
    text = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    options = {"num_frames": 4, "num_inference_steps": 4, "guidance_scale": 3.0, "reuse": SAMPLING.reuse}
    out = pipe(prompt_embeds=text, num_clips=2, output_type="latent", **options)
    begun = pipe(prompt_embeds=text, num_clips=1, output_type="latent", **options).state
    run(pipe, tmp_path / "state", tmp_path / "out.gif", Plan([begun.prompt], SAMPLING, start=begun))
    assert torch.equal(JobFolder(tmp_path / "state").load(1).latents, out.clips[1])


def test_the_default_folder_lies_beside_the_output_and_is_its_alone() -> None:
    outputs = ("videos/out.gif", "videos/out.mp4", "videos/out")
    folders = ("videos/out.gif.state", "videos/out.mp4.state", "videos/out.state")
    assert [default_folder(output) for output in outputs] == [Path(folder) for folder in folders]
