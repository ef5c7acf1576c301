"""The harness that kills commands: it counts what is lost, and a killed `vidrd generate` loses nothing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the harness is for Linux")

WORKER = """
import os, sys, time
for number in range(4):
    path = os.path.join(sys.argv[1], f"{number}.txt")
    if not os.path.exists(path):
        end = time.process_time() + 0.03
        while time.process_time() < end:
            pass
        with open(path + ".partial", "w") as file:
            file.write(CONTENT)
        os.replace(path + ".partial", path)
"""


@pytest.fixture
def reliability(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # By its file, since the folder of the repository may have the same name.
    spec = importlib.util.spec_from_file_location("reliability_harness", BENCHMARKS / "reliability.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def small_work(reliability: ModuleType, folder: Path, script: str) -> Any:
    """A command that writes four files, one after the other."""

    class Small(reliability.Work):  # type: ignore[name-defined, misc]
        name = what = "small"

        def commands(self, folder: Path) -> list[Any]:
            folder.mkdir(exist_ok=True)
            return [reliability.Command(str(self.scratch / "worker.py"), (str(folder),))]

        def finished(self, folder: Path) -> dict[str, Any]:
            return {path.name: reliability.identity(path) for path in sorted(folder.glob("*.txt"))}

    work = Small(folder)
    (folder / "worker.py").write_text(script, encoding="utf-8")
    return work


def test_a_command_that_keeps_what_is_finished_loses_nothing(reliability: ModuleType, tmp_path: Path) -> None:
    work = small_work(reliability, tmp_path, WORKER.replace("CONTENT", "str(number)"))
    outcome = reliability.attack(work, kills=3, seed=1, cold=True)
    assert (outcome.kills, outcome.cold, outcome.losses) == (3, 3, []) and outcome.reached >= 1


@pytest.mark.parametrize(
    ("content", "lost"),
    [("str(os.getpid())", r"0\.txt"), ("str(number) + open(path + str(os.getpid()), 'w').mode[:0]", r"3\.txt\d")],
)
def test_results_that_differ_and_files_left_behind_are_losses(
    reliability: ModuleType, tmp_path: Path, content: str, lost: str
) -> None:
    outcome = reliability.attack(
        small_work(reliability, tmp_path, WORKER.replace("CONTENT", content)), kills=1, seed=1, cold=True
    )
    assert any(re.search(lost, loss) for loss in outcome.losses)


def test_a_file_made_again_with_the_same_content_is_another_one(reliability: ModuleType, tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"content")
    before = reliability.identity(path)
    assert reliability.identity(path) == before
    other.write_bytes(b"content")
    other.replace(path)
    assert reliability.identity(path) != before


def test_a_soak_is_flat_where_neither_memory_nor_handles_grow(reliability: ModuleType) -> None:
    flat = [reliability.Sample(n, 10**8 + n, 12) for n in range(1, 101)]
    assert reliability.soak_table(flat)[1]
    assert not reliability.soak_table([*flat[:-1], reliability.Sample(100, 10**8, 13)])[1]
    assert not reliability.soak_table([*flat[:-1], reliability.Sample(100, 11 * 10**7, 12)])[1]


def test_a_killed_generate_continues_to_the_same_files(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "reliability.py"), "generate", "--kills", "2"]
    done = subprocess.run([*command, "--scratch", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]
    assert (cells[1], cells[4]) == ("2", "0")
