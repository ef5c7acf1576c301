"""Which of our modules a file imports, at its top or inside functions, by its text alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from running_nodes(node)


def module_file(place: Path) -> Path | None:
    """The file of a module whose path without suffix is given, ``__init__.py`` for a package; None: there is none."""
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in files if file.is_file()), None)


def imported_files(file: Path, root: Path = ROOT, for_annotations: bool = False) -> set[Path]:
    """Our modules that a file imports.

    Args:
        root: of the repository; absolute imports are looked for in it and in its tests/, as pytest does.
        for_annotations: also those under ``if TYPE_CHECKING``.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[Path | None] = set()
    for node in ast.walk(tree) if for_annotations else running_nodes(tree):
        if isinstance(node, ast.ImportFrom):
            for start in [file.parents[node.level - 1]] if node.level else [root, root / "tests"]:
                package = start.joinpath(*(node.module or "").split("."))
                found |= {module_file(package / name.name) or _package(package, root) for name in node.names}
        elif isinstance(node, ast.Import):
            for name in node.names:
                found |= {_package(start.joinpath(*name.name.split(".")), root) for start in (root, root / "tests")}
    return {one for one in found if one is not None}


def _package(place: Path, root: Path) -> Path | None:
    # ComfyUI has a module of that name too, and nobody imports ours by the name alone.
    return None if place == root / "nodes" else module_file(place)
