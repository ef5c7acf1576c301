"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidrd_core import files


def test_json_is_read_back_as_it_was_also_with_a_file_name_that_is_no_utf8(tmp_path: Path) -> None:
    value = {"name": "caf\udce9.mp4", "city": "Zürich", "numbers": [1, 2.5, None]}
    for indent in (None, 2):
        files.write_json(tmp_path / "new" / "value.json", value, indent=indent)
        assert json.loads((tmp_path / "new" / "value.json").read_bytes()) == value
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["value.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.replacing(path, keep_suffix=True) as partial:
        assert partial.suffix == ".png"
        partial.write_bytes(b"half")
        raise RuntimeError
    with pytest.raises(ValueError):
        files.write_text(path, "no \udce9 text")
    with pytest.raises(TypeError):
        files.write_json(path, object())
    assert path.read_bytes() == b"old"
    assert [other.name for other in tmp_path.iterdir()] == ["chart.png"]


def test_text_keeps_its_line_breaks_on_every_system(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "one\ntwo\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\r\n"


def test_tensors_are_read_back_with_their_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T}
    files.write_tensors(tmp_path / "a.safetensors", tensors, {"what": "a test"})
    found, metadata = files.read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(found["a"], tensors["a"]) and metadata == {"what": "a test"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_processes_that_write_json_need_no_torch() -> None:
    code = "import sys, vidrd_core.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
