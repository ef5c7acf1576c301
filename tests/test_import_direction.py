"""Which module imports which: models know nothing of checkpoints, and no modules of the library import each other."""

from __future__ import annotations

from pathlib import Path

import imports
import pytest
from imports import imported_files

ROOT = imports.ROOT / "vidrd_core"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in ROOT.rglob("*.py")}


IMPORTS = {
    name: {module_name(other) for other in imported_files(path) if other.is_relative_to(ROOT)}
    for name, path in FILES.items()
}


def reached(name: str) -> set[str]:
    """Modules that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = IMPORTS.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("vidrd_core.models.")))
def test_models_reach_nothing_of_checkpoints(name: str) -> None:
    assert IMPORTS["vidrd_core.models.unet"] >= {"vidrd_core.models.layers", "vidrd_core.models.inflate"}
    assert not [other for other in reached(name) if other.startswith("vidrd_core.checkpoints")]


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_module_imports_itself_through_others(name: str) -> None:
    assert name not in reached(name)
