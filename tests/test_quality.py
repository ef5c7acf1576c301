"""`make quality` on a pack of a few lines: what it must complain of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NODE = '''"""A node."""

from ..vidrd_core.frames import doubled

FRAMES: int = doubled({argument})
'''


def quality(folder: Path, argument: str) -> subprocess.CompletedProcess[str]:
    """Run it on a node that calls the library with ``argument``, a number of frames."""
    for name in ("Makefile", "pyproject.toml", "__init__.py"):
        shutil.copy(ROOT / name, folder)
    files = {
        "vidrd_core/__init__.py": "",
        "vidrd_core/frames.py": "def doubled(frames: int) -> int:\n    return 2 * frames\n",
        "training/train.py": "",
        "nodes/__init__.py": "",
        "nodes/extension.py": "def comfy_entrypoint() -> None:\n    pass\n",
        "nodes/node.py": NODE.format(argument=argument),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    command = ["make", "-o", "setup", "quality", f"BIN={BIN}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.skipif(
    not shutil.which("make") or not (BIN / "mypy").is_file() or not (BIN / "ruff").is_file(),
    reason="make, or mypy and ruff beside this Python, are missing",
)
def test_a_node_that_calls_the_library_with_a_wrong_type_is_reported(tmp_path: Path) -> None:
    right, wrong = tmp_path / "a-pack", tmp_path / "b"
    for folder in (right, wrong):
        folder.mkdir()
    ran = quality(right, "8")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ran = quality(wrong, '"8"')
    assert ran.returncode != 0
    assert 'nodes/node.py:5: error: Argument 1 to "doubled" has incompatible type "str"' in ran.stdout
