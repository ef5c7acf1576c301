"""Every benchmark runs, at tiny size on the CPU, and prints its table. What it measures is not judged here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

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
    script.main(["--clips", "1", "3", "--steps", "1"])
    found = rows(capsys.readouterr().out)
    assert [(row[0], row[1]) for row in found] == [("1", "8"), ("3", "24")]
    assert found[0][6] == "1.000" and float(found[1][5]) > 100


@pytest.mark.parametrize("script", ["unet_step"], indirect=True)
def test_unet_step_prints_the_contenders(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--size", "small", "--pixels", "32", "--frames", "2", "--rounds", "1", "--contenders", "ours-fp32"]
    monkeypatch.setattr("sys.argv", ["unet_step.py", *options])
    script.main()
    (row,) = rows(capsys.readouterr().out)
    assert row[0] == "ours-fp32" and float(row[2]) > 0


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
    text = script.table([(row, found), (row, None)], "cpu", "bf16")
    assert [cells[5] for cells in rows(text)] == ["not yet measured", "-"] and "fp8" in text


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


@pytest.mark.parametrize("script", ["throughput"], indirect=True)
def test_throughput_counts_the_clips(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--processes", "1", "--videos", "1", "--clips", "1", "--steps", "1"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row[:2] == ["1", "1"] and float(row[2]) > 0


@pytest.mark.parametrize("script", ["profile_step"], indirect=True)
@pytest.mark.parametrize("what", [[], ["--decoder"]])
def test_a_profile_shares_the_time_out_by_kind_of_operation(
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
    helpers = {"contenders", "models"}
    missing = [p.name for p in BENCHMARKS.glob("*.py") if p.stem not in helpers and p.name not in text]
    assert not missing
