"""Every benchmark runs, at tiny size on the CPU, and prints its table. What it measures is not judged here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark that the test names, imported as it is when it is run."""
    import importlib

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    contenders = importlib.import_module("contenders")
    measured = contenders.best_time
    # A machine's rate from one try instead of seven: the tests need no good one.
    monkeypatch.setattr(contenders, "best_time", lambda work, device, repeats=1: measured(work, device, 1))
    return importlib.import_module(request.param)


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("script", ["length"], indirect=True)
def test_length_compares_long_videos_with_short_ones(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--size", "tiny", "--pixels", "16", "--steps", "1", "--clips", "1", "3", "--background", "on"])
    found = rows(capsys.readouterr().out)
    assert [row[:3] for row in found] == [["1", "8", "on"], ["3", "24", "on"]]
    assert all(row[5] == "-" and float(row[7]) > 100 for row in found)
    assert found[0][8] == "-" and found[1][8].endswith("%")


@pytest.mark.parametrize("script", ["length"], indirect=True)
def test_length_compares_background_decoding_with_none(script: ModuleType) -> None:
    row = {"clips": 4, "frames": 32, "file": 0, "process": 2**30, "device": 0, "picture": 10**6}
    found = rows(
        script.table([{**row, "background": on, "seconds": s} for on, s in ((False, 3.0), (True, 2.0))], "cpu")
    )
    assert [(cells[2], cells[5]) for cells in found] == [("off", "1.000"), ("on", "1.500")]


@pytest.mark.parametrize("script", ["length"], indirect=True)
def test_length_fails_where_frames_are_kept_or_the_device_grows(script: ModuleType) -> None:
    first = {"picture": 10**6, "process": 5 * 10**8, "device": 10**8}
    further = 10**8  # bytes of frames
    long = {**first, "picture": first["picture"] + further}
    assert script.meets_targets([first, {**long, "process": first["process"] + further // 10}])
    assert not script.meets_targets([first, {**long, "process": first["process"] + further}])
    assert not script.meets_targets([first, {**long, "device": 1.03 * first["device"]}])


@pytest.mark.parametrize("script", ["unet_step"], indirect=True)
def test_the_help_names_every_package_that_the_released_unet_imports(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["unet_step.py", "--help"])
    with pytest.raises(SystemExit):
        script.main()
    (command,) = re.findall(r"pip install .*--target FOLDER (.*\\\n.*)", capsys.readouterr().out)
    packages = {word.split("==")[0] for word in command.replace("\\", " ").split()}
    assert packages == {"diffusers", "einops", "huggingface_hub", "tokenizers", "transformers"}


@pytest.mark.parametrize("script", ["unet_step"], indirect=True)
def test_unet_step_prints_the_contenders(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--size", "small", "--pixels", "32", "--frames", "2", "--rounds", "1", "--contenders", "ours-fp32"]
    monkeypatch.setattr("sys.argv", ["unet_step.py", *options])
    script.main()
    (row,) = rows(capsys.readouterr().out)
    assert row[0] == "ours-fp32" and float(row[2]) > 0 and float(row[7]) >= 0 and row[8] == "-"


@pytest.mark.parametrize("script", ["unet_step"], indirect=True)
def test_a_compiled_unet_pays_off_when_its_whole_time_is_no_longer(script: ModuleType) -> None:
    def entry(name: str, first: float, median: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, facts={"first": first}, median=median)

    plain = entry("ours-bf16", 2.0, 1.0)
    assert script.pays_off(entry("compiled-bf16", 32.0, 0.5), plain) == "61"  # 32 + 60 * 0.5 = 2 + 60 * 1
    assert script.pays_off(entry("compiled-bf16", 1.5, 0.5), plain) == "1"
    assert script.pays_off(entry("compiled-bf16", 32.0, 1.5), plain) == "never"
    assert script.pays_off(plain, plain) == "-" == script.pays_off(entry("compiled-fp32", 1, 1), None)


@pytest.mark.parametrize("script", ["decoder"], indirect=True)
def test_decoder_prints_the_contenders(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--size", "tiny", "--pixels", "32", "--rounds", "1", "--contenders", "ours-fp32"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row[0] == "ours-fp32" and float(row[2]) > 0


@pytest.mark.parametrize("script", ["peak_memory"], indirect=True)
def test_peak_memory_says_what_it_has_not_measured(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(script.cases(True)) == 16 and len(script.cases(False)) == 8
    row = {"pixels": 64, "frames": 8, "storage": "fp8", "offload": "model", "split_guidance": True}
    assert script.main(["--device", "cpu", "--row", json.dumps(row)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["process"] > 2**27 and found["device"] == 0
    text = script.table([(row, found), (row, None), (row, {"fits": False})], "cpu", "bf16")
    assert [cells[5] for cells in rows(text)] == ["not yet measured", "-", "-"] and "fp8" in text
    assert rows(text)[2][4] == "does not fit"


@pytest.mark.parametrize("script", ["peak_memory"], indirect=True)
def test_peak_memory_fails_where_a_row_failed_or_no_row_meets_an_aim(script: ModuleType) -> None:
    fits, too_much, no_memory = {"reserved": 3 * 2**30}, {"reserved": 9 * 2**30}, {"fits": False}
    small, large = ({"pixels": pixels, "frames": frames} for pixels, frames in script.SHAPES)
    assert script.exit_code([(small, fits), (small, no_memory), (large, fits)], True) == 0
    assert script.exit_code([(small, fits), (large, too_much)], True) == 1
    assert script.exit_code([(small, fits), (large, no_memory)], True) == 1
    assert script.exit_code([(small, fits), (large, fits), (large, None)], True) == 1


@pytest.mark.parametrize("script", ["peak_memory"], indirect=True)
def test_running_out_of_memory_is_a_result(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(script, "_measure", full)
    row = {"pixels": 64, "frames": 8, "storage": "same", "offload": "none", "split_guidance": True}
    assert script.main(["--device", "cpu", "--row", json.dumps(row)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"fits": False}


@pytest.mark.parametrize("script", ["peak_memory"], indirect=True)
def test_memory_of_a_large_card_is_limited_to_the_aim(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    script.hold_to_aim(SimpleNamespace(pixels=512, frames=16, device="cuda"))
    script.hold_to_aim(SimpleNamespace(pixels=640, frames=16, device="cuda"))
    assert shares == [7.5 / 80]


@pytest.mark.parametrize("script", ["peak_memory"], indirect=True)
def test_the_released_sizes_tensors_are_counted_without_a_card(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--estimate"]) == 0
    small, large = rows(capsys.readouterr().out)
    assert all(float(cell) < 1 for cell in small[1:])
    assert float(large[2]) < float(large[1]) < float(large[3]) < 4.1


@pytest.mark.parametrize("script", ["loading"], indirect=True)
def test_loading_is_compared_with_plain_reading(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--folder", str(tmp_path / "model"), "--frames", "2"]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] in (["cold", "warm"], ["warm"])
    assert all(float(row[4]) > 0 for row in found)


@pytest.mark.parametrize("script", ["few_steps"], indirect=True)
def test_few_steps_makes_a_row_for_each_sampler_and_number_of_steps(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--results", str(tmp_path), "--videos", "2", "--clips", "2", "--batch", "2"]
    call += ["--samplers", "ddim", "dpmpp-2m:trailing", "--steps", "2", "1"]
    assert script.main(call) == 0
    found = rows(capsys.readouterr().out)
    assert [row[:2] for row in found] == [[name, steps] for name in ("ddim", "dpmpp-2m:trailing") for steps in "21"]
    assert script.main([*call, "--table-only"]) == 0
    assert rows(capsys.readouterr().out) == found


@pytest.mark.parametrize("script", ["few_steps"], indirect=True)
def test_a_row_loses_where_its_videos_are_worse_beyond_chance(script: ModuleType) -> None:
    import numpy as np

    base = np.random.default_rng(1).normal(size=40)
    assert script.loses(base - 0.5, base, more_is_better=True)
    assert not script.loses(base - 0.5, base, more_is_better=False)
    assert not script.loses(base + np.random.default_rng(2).normal(size=40), base, more_is_better=True)


@pytest.mark.parametrize("script", ["few_steps"], indirect=True)
def test_slower_motion_does_not_score_better(script: ModuleType) -> None:
    def record(seam: float, step: float, motion: str = "moves left") -> SimpleNamespace:
        return SimpleNamespace(seams=[seam, None], steps=[step] * 4, motion=motion)

    true, still, jumping = record(2.5, 2.5), record(0.0, 0.1), record(7.5, 2.5)
    assert script.seam_off(true) == 0 == script.speed_off(true)
    assert script.seam_off(still) == 1 and script.speed_off(still) > 0.9
    assert script.seam_off(jumping) == 2 and script.speed_off(jumping) == 0
    assert script.seam_off(record(0.0, 0.0, "stays still")) is None
    assert not any(more for name, (_, more) in script.FIGURES.items() if name.endswith(" off"))


@pytest.mark.parametrize("script", ["few_steps"], indirect=True)
def test_a_row_shows_the_interval_of_its_difference(script: ModuleType) -> None:
    import numpy as np

    base = np.arange(10.0)
    assert script.cell(base, base, True) == "4.500"
    assert script.cell(base - 1, base, True) == "3.500 (-1.000 to -1.000)*"
    assert script.cell(base - 1, base, False) == "3.500 (-1.000 to -1.000)"
    assert script.cell(base * np.nan, base, False) == "-"


@pytest.mark.parametrize("script", ["options"], indirect=True)
def test_options_have_a_row_each_and_say_how_much_work_they_leave(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["none", "guidance-interval 0:0.5", "storage fp8", "half the steps"]
    call = ["--model", "tiny", "--results", str(tmp_path), "--videos", "2", "--clips", "2", "--batch", "2"]
    call += ["--steps", "2", "--options", *names]
    assert script.main(call) == 0
    found = rows(capsys.readouterr().out)
    assert [row[:2] for row in found] == [list(pair) for pair in zip(names, ("100%", "75%", "100%", "50%"))]
    assert script.main([*call, "--table-only"]) == 0
    assert rows(capsys.readouterr().out) == found


@pytest.mark.parametrize("script", ["options"], indirect=True)
def test_an_interval_gives_what_the_pipelines_own_gives(script: ModuleType, pipe: Any, tmp_path: Path) -> None:
    from components import make_pipeline

    from vidrd_core import ReuseSettings

    call = {"num_frames": 4, "num_inference_steps": 5, "num_clips": 2, "guidance_scale": 3.0, "output_type": "latent"}
    call["reuse"] = ReuseSettings(2)
    expected = pipe("a red dot", guidance_interval=(0.2, 0.8), **call).frames
    own = make_pipeline(tmp_path)
    script.Option((0.2, 0.8)).apply(own, 5)
    torch.testing.assert_close(own("a red dot", **call).frames, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("script", ["throughput"], indirect=True)
def test_throughput_counts_the_clips(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--processes", "1", "--videos", "1", "--clips", "1", "--steps", "1"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row[:2] == ["1", "1"] and float(row[2]) > 0


@pytest.mark.parametrize("script", ["profile_step"], indirect=True)
@pytest.mark.parametrize("what", [[], ["--decoder"]])
def test_a_profile_gives_the_time_by_kind_of_operation(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: list[str]
) -> None:
    assert script.main(["--pixels", "32", "--output", str(tmp_path / "trace.json"), *what]) == 0
    text = capsys.readouterr().out
    kinds = {row[0]: int(row[2].rstrip("%")) for row in rows(text)}
    assert kinds["convolution"] > 0 and 95 <= sum(kinds.values()) <= 105
    assert re.search(r"times that floor", text) and (tmp_path / "trace.json").stat().st_size > 1000


@pytest.mark.parametrize("script", ["memory"], indirect=True)
def test_memory_measures_a_call_that_returns_its_frames(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PIXELS", 32)
    found = script.make(1, None, "cpu")
    assert found["process"] > found["frames"] > 0 == found["device"]


def test_every_benchmark_is_explained() -> None:
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    helpers = {"allocations", "contenders", "models"}
    missing = [p.name for p in BENCHMARKS.glob("*.py") if p.stem not in helpers and p.name not in text]
    assert not missing
