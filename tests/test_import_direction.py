"""Which module imports which: models know nothing of checkpoints, and no modules of the library import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vidrd_core

ROOT = Path(vidrd_core.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in ROOT.rglob("*.py")}


def only_for_annotations(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(name: str, node: ast.AST) -> set[str]:
    """Modules of the core that a module imports, at the top or inside functions."""
    if isinstance(node, ast.ImportFrom) and node.level:
        depth = node.level - (FILES[name].name == "__init__.py")
        base = ".".join([*name.split(".")[: len(name.split(".")) - depth], *([node.module] if node.module else [])])
        return {inner if (inner := f"{base}.{alias.name}") in FILES else base for alias in node.names}
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if not only_for_annotations(child):
            found |= imported(name, child)
    return found


IMPORTS = {name: imported(name, ast.parse(path.read_text(encoding="utf-8"))) for name, path in FILES.items()}


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
