"""The line that says which groups of tests ran, and `make test-comfyui`, which leaves none out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import frontends
import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
SAMPLE = """
import pytest


def test_plain(): pass


@pytest.mark.parametrize("fails", [False, True])
def test_sometimes(fails): assert not fails


@pytest.mark.gpu
@pytest.mark.skipif(True, reason="needs a CUDA device")
def test_gpu(): pass


@pytest.mark.comfyui
class TestInside:
    def test_one(self): pytest.skip("there is no ComfyUI")

    def test_two(self): pytest.skip("there is no ComfyUI")


@pytest.mark.slow
@pytest.mark.gpu
def test_long(): pass
"""


def run_sample(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest, with the hooks of groups.py alone, on a file of a few tests."""
    (folder / "test_sample.py").write_text(SAMPLE, encoding="utf-8")
    settings = folder / "pytest.ini"
    settings.write_text(
        "[pytest]\naddopts = -q -m 'not slow' -p groups\nmarkers =\n    gpu\n    comfyui\n    browser\n    slow\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(ROOT)))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_line_before_the_last_says_which_groups_ran_and_which_were_left_out_and_why(tmp_path: Path) -> None:
    ran = run_sample(tmp_path, "--deselect", "test_sample.py::test_sometimes[True]")
    *_, line, last = ran.stdout.strip().splitlines()
    assert line == (
        "Test groups: core ran (2; left out 1: not asked for); "
        "comfyui LEFT OUT (2: there is no ComfyUI); "
        "browser LEFT OUT (none collected); "
        "gpu LEFT OUT (1: needs a CUDA device); "
        "slow LEFT OUT (1: not asked for: make test-slow)"
    )
    assert re.fullmatch(r"2 passed, 3 skipped, 2 deselected in [\d.]+s", last)
    assert ran.returncode == 0


def test_a_failed_test_has_run(tmp_path: Path) -> None:
    ran = run_sample(tmp_path, "-k", "plain or sometimes")
    assert ran.returncode == 1
    assert "Test groups: core ran (3); comfyui LEFT OUT (2: not asked for: make test-comfyui);" in ran.stdout


def test_nothing_may_be_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    ran = run_sample(tmp_path, "--none-left-out", "-k", "plain or gpu")
    assert ran.returncode == 1
    assert "left out: needs a CUDA device" in ran.stdout and "1 passed, 5 deselected, 1 error" in ran.stdout


@pytest.fixture
def make_test_comfyui(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """`make test-comfyui` where COMFYUI_PATH is an empty folder."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    given = {"COMFYUI_PATH": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = ["make", "-o", "setup-browser", "test-comfyui", f"BIN={Path(sys.executable).parent}"]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_comfyui_target_fails_without_a_comfyui_and_says_what_to_do(
    make_test_comfyui: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    ran = make_test_comfyui
    assert ran.returncode != 0
    assert f"there is no ComfyUI at {tmp_path}: clone https://github.com/comfyanonymous/ComfyUI" in ran.stderr
    assert "set COMFYUI_PATH" in ran.stderr and "passed" not in ran.stdout


def test_a_python_without_comfyuis_packages_is_named_with_what_to_install(tmp_path: Path) -> None:
    for name in ("main.py", "comfy/sd.py", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    environment = {**os.environ, "COMFYUI_PATH": str(tmp_path), "COMFYUI_PYTHON": sys.executable}
    environment["PYTHONPATH"] = str(TESTS)
    ask = "import comfy_server; comfy_server.NEEDED = 'json, nopackage'; print(comfy_server.missing())"
    command = [sys.executable, "-c", ask]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.startswith("ModuleNotFoundError: No module named 'nopackage': run `")
    assert f"pip install -r {tmp_path / 'requirements.txt'} -r {ROOT / 'requirements.txt'} pytest`" in told


def test_a_missing_browser_and_a_missing_frontend_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "")
    told = frontends.missing_tool()
    assert told is not None and ("set CHROMIUM" if find_spec("playwright") else "run `make setup-browser`") in told
    assert frontends.missing_version("0.0.1") == (
        "comfyui-frontend-package 0.0.1 is not on this machine: run `make setup-browser`"
    )


def test_the_registrys_frontend_is_the_oldest_that_is_tested_and_requirements_leave_a_users_alone() -> None:
    wanted = f'"{frontends.PACKAGE}>={frontends.OLDEST}"'
    assert (ROOT / "pyproject.toml").read_text(encoding="utf-8").count(wanted) == 2
    assert f"{frontends.PACKAGE}=={frontends.OLDEST}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "frontend" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")
