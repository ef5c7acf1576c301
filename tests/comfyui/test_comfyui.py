"""Runs the checks of this folder inside a real ComfyUI, each file in a process of ComfyUI's own interpreter.

Which ComfyUI and which interpreter: see comfy_server.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from comfy_server import TREE, interpreter, missing

HERE = Path(__file__).resolve().parent
CHECKS = sorted(p.name for p in HERE.glob("check_*.py"))

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="session")
def comfyui() -> Path:
    lacks = missing()
    if lacks:
        pytest.skip(lacks)
    return TREE


@pytest.mark.parametrize("check", CHECKS)
def test_inside_comfyui(check: str, comfyui: Path) -> None:
    command = [interpreter(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    command += [
        "--rootdir",
        str(HERE),
        f"--confcutdir={HERE}",
        "-c",
        os.devnull,
        "--import-mode=importlib",
        str(HERE / check),
    ]
    environment = {**os.environ, "VIDRD_INSIDE_COMFYUI": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    environment |= {"COMFYUI_PATH": str(comfyui), "COMFYUI_PYTHON": interpreter()}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE, env=environment)
    assert ran.returncode == 0, f"{ran.stdout[-6000:]}\n{ran.stderr[-3000:]}"
