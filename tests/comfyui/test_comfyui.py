"""Runs the checks of this folder inside a real ComfyUI, each file in a process of ComfyUI's own interpreter.

The tree is COMFYUI_PATH, else ~/comfy/ComfyUI; the interpreter is COMFYUI_PYTHON, else the tree's .venv, else this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CHECKS = sorted(p.name for p in HERE.glob("check_*.py"))
TREE = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI")).expanduser()

pytestmark = pytest.mark.comfyui


def interpreter() -> str:
    named = os.environ.get("COMFYUI_PYTHON")
    own = [TREE / ".venv" / "bin" / "python", TREE / ".venv" / "Scripts" / "python.exe"]
    return named or next((str(p) for p in own if p.is_file()), sys.executable)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    if not (TREE / "comfy" / "sd.py").is_file():
        pytest.skip(f"there is no ComfyUI at {TREE}; set COMFYUI_PATH")
    probe = [interpreter(), "-c", "import aiohttp, torchsde, diffusers, pytest"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False, cwd=TREE)
    if tried.returncode:
        pytest.skip(f"{interpreter()} lacks what ComfyUI, this pack or the tests need: {tried.stderr.strip()[-200:]}")
    return TREE


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(check: str, comfyui: Path) -> None:
    command = [interpreter(), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command += [
        "--rootdir",
        str(HERE),
        f"--confcutdir={HERE}",
        "-c",
        os.devnull,
        "--import-mode=importlib",
        str(HERE / check),
    ]
    environment = {**os.environ, "VIDRD_INSIDE_COMFYUI": str(comfyui), "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE, env=environment)
    assert ran.returncode == 0, f"{ran.stdout[-6000:]}\n{ran.stderr[-3000:]}"
