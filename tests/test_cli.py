"""The vidrd command, from its arguments to the files and messages it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.cli import build_parser, main
from vidrd_core.cli.inputs import read_prompts, repeat_last
from vidrd_core.cli.models import load_pipeline, read_defaults
from vidrd_core.cli.running import INTERRUPTED, stop_on_signal
from vidrd_core.jobs.folder import JobFolder
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.video import read_metadata, read_video

QUICK = ["--frames", "4", "--steps", "2", "--device", "cpu", "--quiet"]


def generate(model: Path, output: Path, *options: str, prompts: tuple[str, ...] = ("a red dot",)) -> int:
    texts = [part for prompt in prompts for part in ("--prompt", prompt)]
    return main(["generate", "--model", str(model), "--output", str(output), *texts, *QUICK, *options])


# -- generate ----------------------------------------------------------------------------------------------------------


def test_generate_writes_a_video_with_its_history_and_a_contact_sheet(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, sheet = tmp_path / "new" / "out.mp4", tmp_path / "sheets" / "out.png"
    options = ("--clips", "3", "--seed", "5", "--contact-sheet", str(sheet), "--clip-seed", "2=99")
    assert generate(model_folder, output, *options, prompts=("a red dot", "a box")) == 0
    video = read_video(output)
    assert (len(video.frames), video.fps) == (12, 4.0)
    metadata = read_metadata(output)
    assert [clip["prompt"] for clip in metadata["clips"]] == ["a red dot", "a box", "a box"]
    assert (metadata["clips"][0]["seed"], metadata["clips"][2]["seed"]) == (5, 99)
    assert metadata["settings"]["num_inference_steps"] == 2
    assert {"vidrd", "torch", "diffusers"} <= metadata["versions"].keys()
    with Image.open(sheet) as image:
        assert image.height > 3 * 128
    assert JobFolder(tmp_path / "new" / "out.mp4.state").num_finished() == 3
    assert "12 frames" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.webm", "out.gif", "frames"])
def test_generate_writes_every_format(model_folder: Path, tmp_path: Path, name: str) -> None:
    assert generate(model_folder, tmp_path / name, "--clips", "1") == 0
    assert len(read_video(tmp_path / name).frames) == 4
    assert read_metadata(tmp_path / name)["clips"][0]["prompt"] == "a red dot"


def test_a_model_folders_defaults_hold_where_nothing_is_given(model_folder: Path, tmp_path: Path) -> None:
    index = json.loads((model_folder / "model_index.json").read_text(encoding="utf-8"))
    copy = tmp_path / "model"
    copy.mkdir()
    for part in model_folder.iterdir():
        if part.is_dir():
            copy.joinpath(part.name).symlink_to(part, target_is_directory=True)
    index["defaults"] = {"fps": 8, "trim_frames": 1, "negative_prompt": "", "overlap_frames": 3}
    (copy / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    assert generate(copy, tmp_path / "out.mp4", "--clips", "2", "--overlap-frames", "2") == 0
    assert len(read_video(tmp_path / "out.mp4").frames) == 7
    metadata = read_metadata(tmp_path / "out.mp4")
    assert metadata["fps"] == 8 and metadata["settings"]["negative_prompt"] == ""
    assert metadata["settings"]["reuse"]["overlap_frames"] == 2


def test_other_settings_in_the_same_state_folder_are_refused_with_the_difference(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, state = tmp_path / "out.mp4", ("--clips", "1", "--state", str(tmp_path / "kept"))
    assert generate(model_folder, output, *state) == 0
    before = output.read_bytes()
    assert generate(model_folder, output, *state, "--guidance-scale", "2") == 1
    assert "guidance_scale was 10.0 and is 2.0" in capsys.readouterr().err
    assert generate(model_folder, output, *state, prompts=("a box",)) == 1
    message = capsys.readouterr().err
    assert "clip 0 was made with the prompt 'a red dot', not 'a box'" in message and "--redo" in message
    assert "Traceback" not in message
    assert output.read_bytes() == before
    assert generate(model_folder, output, *state, "--redo", prompts=("a box",)) == 0
    assert generate(model_folder, output, *state, "--restart", "--guidance-scale", "2") == 0


def test_a_new_video_under_the_name_of_a_finished_one_needs_restart(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.mp4"
    assert generate(model_folder, output, "--clips", "2") == 0
    before = output.read_bytes()
    assert generate(model_folder, output, "--clips", "1", prompts=("a box",)) == 1
    assert "clip 0 was made with the prompt 'a red dot', not 'a box'" in capsys.readouterr().err
    assert generate(model_folder, output, "--clips", "1", "--seed", "9") == 1
    message = capsys.readouterr().err
    assert "seed was 0 and is 9" in message and "--restart" in message
    assert output.read_bytes() == before
    assert generate(model_folder, output, "--clips", "1", "--restart", prompts=("a box",)) == 0
    assert read_metadata(output)["clips"][0]["prompt"] == "a box"
    assert JobFolder(tmp_path / "out.mp4.state").num_finished() == 1


def test_videos_of_one_name_and_several_formats_keep_their_own_clips(model_folder: Path, tmp_path: Path) -> None:
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1") == 0
    assert generate(model_folder, tmp_path / "out.gif", "--clips", "1", prompts=("a box",)) == 0
    assert JobFolder(tmp_path / "out.mp4.state").load(0).prompt == "a red dot"
    assert JobFolder(tmp_path / "out.gif.state").load(0).prompt == "a box"


@pytest.mark.parametrize("options", [("--height", "17"), ("--fps", "1000"), ("--steps", "2000"), ("--height", "0")])
def test_a_refused_setting_costs_no_finished_clip(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    output, state = tmp_path / "out.mp4", JobFolder(tmp_path / "out.mp4.state")
    assert generate(model_folder, output, *options) == 1
    assert not state.path.exists()
    assert generate(model_folder, output, "--clips", "1") == 0
    before = state.read()
    capsys.readouterr()
    assert generate(model_folder, output, *options) == 1
    assert generate(model_folder, output, *options, "--restart") == 1
    assert options[1] in capsys.readouterr().err
    assert state.num_finished() == 1 and state.read() == before


def test_a_job_that_another_process_makes_is_left_to_it(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = JobFolder(tmp_path / "out.mp4.state")
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1") == 0
    extension = ["extend", str(state.path), "--output", str(tmp_path / "long.mp4"), "--device", "cpu", "--quiet"]
    with state.locked():
        assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1", "--restart") == 1
        assert main(extension) == 1
    assert capsys.readouterr().err.count("is in use: another process") == 2
    assert state.num_finished() == 1
    assert main(extension) == 0


def test_nothing_else_may_lie_in_a_folder_of_pngs(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = tmp_path / "frames"
    for name, inside in (("--contact-sheet", frames / "sheet.png"), ("--state", frames / "state")):
        assert generate(model_folder, frames, "--clips", "1", name, str(inside)) == 1
        assert f"{name} {inside} is inside --output" in capsys.readouterr().err
    assert not frames.exists()


def test_metadata_say_how_the_scheduler_was_set_and_stay_json(model_folder: Path, tmp_path: Path) -> None:
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1", "--noise-alpha", "inf") == 0
    metadata = read_metadata(tmp_path / "out.mp4")
    assert metadata["scheduler"] == "DDIMScheduler"
    assert metadata["scheduler_settings"]["beta_schedule"] == "scaled_linear"
    assert metadata["settings"]["reuse"]["noise_alpha"] == "inf"
    assert metadata["frames"] == 4


# -- given frames ------------------------------------------------------------------------------------------------------

FORWARD = ("--order", "forward", "--overlap-frames", "1", "--trim-frames", "1")


def test_generate_arrives_at_an_image_and_closes_a_loop(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 20), (250, 10, 10)).save(tmp_path / "end.png")
    output, ends = tmp_path / "out.mp4", ("--end-image", str(tmp_path / "end.png"))
    assert generate(model_folder, output, "--clips", "3", *FORWARD) == 0
    assert len(read_video(output).frames) == 10
    assert generate(model_folder, output, "--clips", "3", *FORWARD, "--loop") == 1
    assert "clip 2 was made with no goal, not a loop" in capsys.readouterr().err
    assert generate(model_folder, output, "--clips", "3", *FORWARD, "--loop", "--redo") == 0
    assert len(read_video(output).frames) == 8 and read_metadata(output)["goals"]["loop"] is True
    assert generate(model_folder, output, "--clips", "3", *FORWARD, *ends, "--redo") == 0
    assert read_metadata(output)["goals"]["end_image"] == "end.png"
    call = ["extend", str(tmp_path / "out.mp4.state"), "--output", str(tmp_path / "long.mp4"), "--quiet"]
    assert main([*call, "--device", "cpu"]) == 1
    assert "extend the state file" in capsys.readouterr().err
    for wrong, message in ((("--loop", *ends), "leave out one"), (("--start-image", "no.png"), "does not exist")):
        assert generate(model_folder, tmp_path / "other.mp4", *wrong) == 1
        assert message in capsys.readouterr().err


def test_bridge_joins_two_videos(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert generate(model_folder, tmp_path / name, "--clips", "2", prompts=(name,)) == 0
    call = ["bridge", str(tmp_path / "a"), str(tmp_path / "b"), "--model", str(model_folder), "--prompt", "a red dot",
            "--frames", "8", "--steps", "2", "--device", "cpu", "--quiet"]  # fmt: skip
    assert main([*call, "--output", str(tmp_path / "joined")]) == 0
    a, b, joined = (read_video(tmp_path / name).frames for name in ("a", "b", "joined"))
    assert len(joined) == 8 + 3 + 8 and (joined[:8] == a).all() and (joined[-8:] == b).all()
    assert read_metadata(tmp_path / "joined")["frames"] == 19
    assert main([*call, "--output", str(tmp_path / "a")]) == 1
    assert "would replace A" in capsys.readouterr().err


# -- extend ------------------------------------------------------------------------------------------------------------


def test_extend_makes_what_one_longer_call_would_have_made(model_folder: Path, tmp_path: Path) -> None:
    prompts = ("a red dot", "a box", "a line")
    assert generate(model_folder, tmp_path / "whole", prompts=prompts) == 0
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1") == 0
    state = tmp_path / "out.mp4.state"
    more = ["--prompt", "a box", "--prompt", "a line", "--quiet", "--device", "cpu"]
    assert main(["extend", str(state / "state_00000.safetensors"), *more, "--output", str(tmp_path / "new")]) == 0
    assert main(["extend", str(state), *more, "--output", str(tmp_path / "long")]) == 0
    whole = read_video(tmp_path / "whole").frames
    assert (read_video(tmp_path / "long").frames == whole).all()
    assert (read_video(tmp_path / "new").frames == whole[4:]).all()
    assert read_metadata(tmp_path / "long")["clips"] == read_metadata(tmp_path / "whole")["clips"]


def test_metadata_of_a_video_that_continues_a_state_file_say_where_its_seams_are(
    model_folder: Path, tmp_path: Path
) -> None:
    trim = ["--order", "forward", "--overlap-frames", "1", "--trim-frames", "1"]
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1", *trim) == 0
    state = tmp_path / "out.mp4.state" / "state_00000.safetensors"
    call = ["--clips", "2", "--quiet", "--device", "cpu", "--output", str(tmp_path / "new.mp4")]
    assert main(["extend", str(state), *call]) == 0
    assert main(["evaluate", str(tmp_path / "new.mp4"), "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["seams"] == [3]


def test_an_interrupted_extension_is_continued_and_not_made_twice(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1") == 0
    state = JobFolder(tmp_path / "out.mp4.state")
    call = ["extend", str(state.path), "--quiet", "--device", "cpu", "--output", str(tmp_path / "long.mp4")]
    assert main([*call, "--prompt", "a box", "--clips", "2"]) == 0
    assert state.num_finished() == 3
    state.drop_from(2)
    state.write(complete=False)  # as after a crash in the last clip
    assert main([*call, "--prompt", "a cat", "--clips", "2"]) == 1
    assert "2 of 3 clips" in capsys.readouterr().err
    assert main([*call, "--prompt", "a box", "--clips", "2"]) == 0
    assert state.num_finished() == 3
    assert main([*call, "--prompt", "a box", "--clips", "2"]) == 0  # complete: two more
    assert state.num_finished() == 5


def test_extend_continues_the_last_complete_video_and_not_from_abandoned_clips(
    model_folder: Path, tmp_path: Path
) -> None:
    state = JobFolder(tmp_path / "out.mp4.state")
    call = ["extend", str(state.path), "--quiet", "--device", "cpu", "--output", str(tmp_path / "long.mp4")]
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "2") == 0
    assert main([*call, "--prompt", "a cat", "--clips", "2"]) == 0
    state.drop_from(3)
    state.write(complete=False)  # as if that had been stopped after one clip
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "2") == 0
    assert main([*call, "--prompt", "a box"]) == 0
    assert [clip["prompt"] for clip in read_metadata(tmp_path / "long.mp4")["clips"]] == ["a red dot"] * 2 + ["a box"]
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1") == 0  # a beginning of the three clips
    assert main([*call, "--prompt", "a line"]) == 0
    prompts = [clip["prompt"] for clip in read_metadata(tmp_path / "long.mp4")["clips"]]
    assert prompts == ["a red dot", "a line"] and state.num_finished() == 2


def test_a_video_with_a_clip_missing_is_not_extended(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = JobFolder(tmp_path / "out.mp4.state")
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "2") == 0
    state.clip_path(1).unlink()
    call = ["extend", str(state.path), "--quiet", "--device", "cpu", "--output", str(tmp_path / "long.mp4")]
    assert main(call) == 1
    assert "unfinished job (1 of 2 clips)" in capsys.readouterr().err


def test_extend_advises_only_what_it_has_options_for(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = JobFolder(tmp_path / "out.mp4.state")
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1") == 0
    common = ["--quiet", "--device", "cpu", "--output", str(tmp_path / "long.mp4")]
    capsys.readouterr()
    assert main(["extend", str(state.path), *common, "--scheduler", "euler"]) == 1
    message = capsys.readouterr().err
    assert "scheduler was 'DDIMScheduler' and is 'EulerDiscreteScheduler'. Leave out the options" in message
    assert "beta_" not in message
    file = str(state.state_path(0))
    assert main(["extend", file, *common]) == 0
    assert main(["extend", file, *common, "--prompt", "a box"]) == 1
    message = capsys.readouterr().err
    assert "clip 1 was made with the prompt 'a red dot', not 'a box'. Choose another --output or --state" in message
    assert "--restart" not in message and "--redo" not in message


def test_extend_without_a_prompt_keeps_the_text_states_of_a_video_made_with_them(
    pipe: VidRDPipeline, model_folder: Path, tmp_path: Path
) -> None:
    import torch

    text = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    options = {"num_frames": 4, "num_inference_steps": 2, "output_type": "latent"}
    whole = pipe(prompt_embeds=text, num_clips=3, **options)
    pipe(prompt_embeds=text, num_clips=1, **options).state.save(tmp_path / "state.safetensors")
    call = ["--device", "cpu", "--quiet"]
    first = ["extend", str(tmp_path / "state.safetensors"), "--model", str(model_folder), "--output"]
    assert main([*first, str(tmp_path / "new"), *call]) == 0
    assert main(["extend", str(tmp_path / "new.state"), *call, "--output", str(tmp_path / "newer")]) == 0
    state = JobFolder(tmp_path / "new.state")
    assert all(torch.equal(state.load(number).latents, whole.clips[number]) for number in (1, 2))


def test_extend_follows_stored_noise_levels_with_the_euler_scheduler_and_refuses_another(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    sampling = SamplingSettings(4, 16, 16, 2, 3.0, ReuseSettings(2), sigmas=(9.0, 2.0, 0.0))
    euler, _ = load_pipeline(str(model_folder), scheduler="euler", device="cpu")
    whole = [(clip.latents, clip.state) for clip in euler.stream("a red dot", sampling, 4)]
    whole[0][1].save(tmp_path / "state.safetensors")
    call = ["--device", "cpu", "--quiet", "--output"]
    file = ["extend", str(tmp_path / "state.safetensors"), "--model", str(model_folder), *call]
    assert main([*file, str(tmp_path / "other"), "--scheduler", "ddim"]) == 1
    message = capsys.readouterr().err
    assert "DDIMScheduler cannot follow" in message and "--scheduler euler" in message
    assert not (tmp_path / "other.state").exists()
    assert main([*file, str(tmp_path / "new")]) == 0
    assert main(["extend", str(tmp_path / "new.state"), *call, str(tmp_path / "newer")]) == 0
    state = JobFolder(tmp_path / "new.state")
    assert state.read()["made"]["scheduler"]["scheduler"] == "EulerDiscreteScheduler"
    assert main(["extend", str(state.state_path(2)), *call, str(tmp_path / "last")]) == 0
    clips = [state.load(1), state.load(2), JobFolder(tmp_path / "last.state").load(3)]
    assert all(torch.equal(clip.latents, latents) for clip, (latents, _) in zip(clips, whole[1:], strict=True))


# -- info and convert --------------------------------------------------------------------------------------------------


def test_info_describes_models_states_state_folders_and_videos(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "1") == 0
    paths = [
        model_folder,
        tmp_path / "out.mp4",
        tmp_path / "out.mp4.state",
        tmp_path / "out.mp4.state/state_00000.safetensors",
    ]
    assert main(["info", *map(str, paths)]) == 0
    text = capsys.readouterr().out
    for words in ("VidRD temporal U-Net", '"prompt": "a red dot"', "1 clips finished, complete", "after clip 0"):
        assert words in text


def test_convert_writes_a_model_folder_that_generates(model_folder: Path, tmp_path: Path) -> None:
    assert main(["convert", str(model_folder), str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert generate(tmp_path / "half", tmp_path / "out.mp4", "--clips", "1") == 0


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_asks_to_stop_and_the_second_stops(capsys: pytest.CaptureFixture[str]) -> None:
    import signal

    with pytest.raises(KeyboardInterrupt), stop_on_signal() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        assert "press Ctrl-C again" in capsys.readouterr().err
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_the_finished_clips_playable_and_the_command_continues_after_them(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    from vidrd_core.jobs import job as jobs

    real = jobs.JobFolder.save

    def save_and_interrupt(folder: JobFolder, clip: jobs.Clip) -> None:
        real(folder, clip)
        if clip.index == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(jobs.JobFolder, "save", save_and_interrupt)
        assert generate(model_folder, tmp_path / "out", "--clips", "3") == INTERRUPTED
    assert "stopped after 2 of 3 clips" in (message := capsys.readouterr().err)
    assert message.endswith("Run the same command again to continue\n")
    assert len(read_metadata(tmp_path / "out")["clips"]) == 2
    part = read_video(tmp_path / "out").frames
    assert len(part) == 8
    assert generate(model_folder, tmp_path / "out", "--clips", "3") == 0
    assert len(read_video(tmp_path / "out").frames) == 12
    # Frame 6 fades into the next window, which is another one where the video ends at frame 7.
    assert (read_video(tmp_path / "out").frames[:6] == part[:6]).all()


def test_after_a_stop_of_a_restart_the_command_is_to_be_run_without_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    real = JobFolder.save

    def save_and_interrupt(*parts: Any) -> None:
        real(*parts)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(JobFolder, "save", save_and_interrupt)
    assert generate(model_folder, tmp_path / "out.mp4", "--clips", "2", "--restart") == INTERRUPTED
    assert capsys.readouterr().err.endswith("Run the same command again without --restart to continue\n")


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--output", "out.avi"], "unknown suffix '.avi'"), (["--prompts", "missing.txt"], "missing.txt"),
     (["--clips", "1", "--prompt", "another"], "2 prompts were given for 1 clips"),
     (["--model", "nowhere"], "nowhere"), (["--steps", "0"], "num_inference_steps is 0"),
     (["--height", "17"], "17; expected positive multiples of 4"),
     (["--height", "0"], "size is 16x0"), (["--fps", "nan"], "got nan"), (["--clip-seed", "9=3"], "--clip-seed 9=3"),
     (["--prompts", "latin.txt"], "latin.txt is not UTF-8 text (at byte 2); save it as UTF-8"),
     (["--videos", "latin.txt", "--output", "many"], "latin.txt is not UTF-8"),
     (["--contact-sheet", "latin.txt/sheet.png"], "sheet.png: its folder cannot be made"),
     (["--state", "latin.txt/state"], "the state folder cannot be written"),
     (["--overlap-frames", "9"], "overlap_frames is 9"),
     (["--contact-sheet", "sheet.txt"], "sheet.txt"), (["--device", "cuda:99"], "--device cuda:99 cannot be used")],
)  # fmt: skip
def test_mistakes_end_in_one_line_that_says_what_to_do(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("blå".encode("latin-1") + b"\n")
    prompts = () if {"--prompts", "--videos"} & set(options) else ("a red dot",)
    assert generate(model_folder, Path("out.mp4"), *options, prompts=prompts) == 1
    text = capsys.readouterr().err
    assert message in text and "Traceback" not in text and text.count("error:") == 1
    assert not (tmp_path / "out.mp4").exists()


def test_a_broken_state_is_refused(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--prompt", "x", "--model", str(model_folder), "--output", str(tmp_path / "out.mp4"), "--device", "cpu"]
    assert main(["extend", str(tmp_path / "missing.safetensors"), *call]) == 1
    (tmp_path / "empty").mkdir()
    assert main(["extend", str(tmp_path / "empty"), *call]) == 1
    assert "is no state folder" in capsys.readouterr().err


def test_a_wrong_command_line_exits_with_two() -> None:
    for arguments in ([], ["generate"], ["fly"], ["generate", "--clips", "0"]):
        with pytest.raises(SystemExit) as stopped:
            build_parser().parse_args(arguments)
        assert stopped.value.code == 2


def test_help_needs_no_heavy_import() -> None:
    code = "import sys, vidrd_core.cli as c; c.build_parser(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_a_prompt_file_holds_one_prompt_per_line_or_per_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# two\na red dot\n  a blå dot 红 \n", encoding="utf-8")
    assert read_prompts(None, str(file)) == ["a red dot", "a blå dot 红"]
    file.write_text("a red dot\nthat moves\n\n# then\n\na box\n\n", encoding="utf-8")
    assert read_prompts(None, str(file)) == ["a red dot that moves", "a box"]
    file.write_text("# nothing\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(None, str(file))
    with pytest.raises(ValueError, match="both"):
        read_prompts(["a"], str(file))


def test_the_last_prompt_repeats() -> None:
    assert repeat_last(["a", "b"], 4) == ["a", "b", "b", "b"]


def test_unknown_defaults_in_a_model_folder_are_refused_by_name(tmp_path: Path) -> None:
    assert read_defaults(tmp_path) == {}
    (tmp_path / "model_index.json").write_text('{"defaults": {"fsp": 8}}', encoding="utf-8")
    with pytest.raises(ValueError, match="unknown defaults fsp"):
        read_defaults(tmp_path)
