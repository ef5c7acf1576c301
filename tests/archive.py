"""The archive of the ComfyUI registry: the files that .comfyignore leaves, and the modules that nodes import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from imports import ROOT, module_file, running_nodes
from pathspec import GitIgnoreSpec


def archived(file: Path) -> bool:
    """Whether .comfyignore leaves a file of the repository in the archive."""
    spec = GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    return not spec.match_file(file.relative_to(ROOT).as_posix())


def reached_modules() -> set[Path]:
    """Our modules that the pack's own file and those of nodes/ import, in functions too, and what these import."""
    pending, reached = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py")], set()
    while pending:
        file = pending.pop()
        if file not in reached:
            reached.add(file)
            pending += imported_files(file)
    return reached


def imported_files(file: Path) -> Iterator[Path]:
    """Files of the relative imports in a module, with the packages around them; not those for type checkers only."""
    for node in running_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1]
            parts = node.module.split(".") if node.module else []
            places = [folder.joinpath(*parts[:count]) for count in range(len(parts) + 1)]
            places += [places[-1] / alias.name for alias in node.names]
            yield from filter(None, map(module_file, places))
