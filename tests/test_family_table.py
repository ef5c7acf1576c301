"""docs/families.md holds the table that the checks inside ComfyUI found, cell by cell."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    import sys

    path = ROOT / "tests" / "comfyui" / "family_table.py"
    spec = importlib.util.spec_from_file_location("family_table", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_checks_found(maker: ModuleType) -> None:
    page = maker.PAGE.read_text(encoding="utf-8")
    assert page == maker.page_with(page, maker.stored())


def test_every_family_has_every_cell(maker: ModuleType) -> None:
    found = maker.stored()
    assert len(found) == 2
    for families in found.values():
        for name, cells in families.items():
            assert set(cells) == set(maker.COLUMNS) and all(cells.values()), name


def test_a_cell_typed_by_hand_is_noticed(maker: ModuleType) -> None:
    page = maker.PAGE.read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("| Wan 2.1 t2v"))
    typed = page.replace(line, line.replace("| none |", "| all of it |"))
    assert typed != page and maker.page_with(typed, maker.stored()) == page


def test_versions_that_differ_are_told_apart(maker: ModuleType) -> None:
    cells = dict.fromkeys(maker.COLUMNS, "same")
    found = {"0.3.64": {"A": cells}, "0.17.0": {"A": {**cells, "told": "no"}, "B": cells}}
    rows = maker.table(found).splitlines()[2:]
    assert rows[0].startswith("| A | same | same | same (0.3.64); no (0.17.0) |")
    assert rows[0].endswith("| 0.3.64, 0.17.0 |")
    assert rows[1].startswith("| B |") and rows[1].endswith("| 0.17.0 |")
