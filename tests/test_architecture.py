"""docs/architecture.md and its picture against the code: every name exists, and rooms import what the page allows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
from imports import ROOT, imported_files, module_file

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
SVG = "{http://www.w3.org/2000/svg}"
NAMES = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
HOMES = (ROOT, ROOT / "vidrd_core")  # where a name on the page begins
TESTS = "tests/"  # may import every room

Rooms = Mapping[str, set[str]]  # a room's path -> the rooms that it may import


def definitions(body: Iterable[ast.stmt], reexports: bool = False) -> Iterator[tuple[str, ast.stmt]]:
    """What a module or class defines at its top level, with the name of each; as a package also what it imports."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom) and reexports:
            yield from ((alias.asname or alias.name, node) for alias in node.names)


def find(name: str, homes: Iterable[Path] = HOMES) -> Path | None:
    """The file or folder that a path or a dotted name is in; None where there is no such thing."""
    if "/" in name or name.endswith(".py"):
        place = ROOT / name
        return place if place.exists() and (place.is_dir() or not name.endswith("/")) else None
    parts = name.split(".")
    for home in homes:
        for length in range(len(parts), 0, -1):
            file = module_file(home.joinpath(*parts[:length]))
            if file is not None:
                if defines(file, parts[length:]):
                    return file
                break
    return None


def defines(file: Path, names: list[str]) -> bool:
    """Whether a module has a class, function or value, also inside a class: ``["VideoLatent", "read"]``."""
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    for name in names:
        found = dict(definitions(body, file.name == "__init__.py")).get(name)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def room_of(file: Path, rooms: Iterable[str]) -> str | None:
    """The innermost room that a file is in."""
    path = file.relative_to(ROOT).as_posix()
    holding = [room for room in rooms if path == room or (room.endswith("/") and path.startswith(room))]
    return max(holding, key=len, default=None)


def read_rooms() -> Rooms:
    """The table of the page."""
    rows = re.findall(r"^\| `([^`]+)` \| (?:.*) \| (.*)\|$", PAGE, re.MULTILINE)
    allowed: dict[str, set[str]] = {}
    for room, cell in rows:
        files = {name: find(name) for name in re.findall(r"`([^`]+)`", cell)}
        named = {name: room_of(file, [row[0] for row in rows]) for name, file in files.items() if file is not None}
        assert set(files) == {name for name, other in named.items() if other}, f"{room}: no room for one of {cell}"
        allowed[room] = {other for other in named.values() if other}
    return allowed


ROOMS = read_rooms()
FOLDERS = sorted({room.split("/")[0] for room in ROOMS if "/" in room})
FILES = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]


def imports_of_rooms() -> dict[tuple[str, str], str]:
    """Which room imports which, and the files of one such import."""
    found: dict[tuple[str, str], str] = {}
    for file in FILES:
        room = room_of(file, ROOMS)
        if room is None or room == TESTS:
            continue
        for other in imported_files(file, for_annotations=True):
            imported, path = room_of(other, ROOMS), other.relative_to(ROOT).as_posix()
            if imported != room:
                found[room, imported or path] = f"{file.relative_to(ROOT).as_posix()} imports {path}"
    return found


def reached(room: str, arrows: Iterable[tuple[str, str]]) -> set[str]:
    """The rooms that arrows lead to from a room, on any way."""
    found: set[str] = set()
    waiting = [room]
    while waiting:
        start = waiting.pop()
        new = {b for a, b in arrows if a == start} - found
        found |= new
        waiting += new
    return found


IMPORTS = imports_of_rooms()
ALLOWED = {(room, other) for room, others in ROOMS.items() for other in others}
BOXES = {group.attrib["data-room"]: group for group in PICTURE.iter(f"{SVG}g") if "data-room" in group.attrib}
PATHS = [path.attrib for path in PICTURE.iter(f"{SVG}path")]
ARROWS = {(path["data-from"], path["data-to"]) for path in PATHS if "data-from" in path}


def height(room: str) -> float:
    """Where the upper edge of a room's box is; 0 is the top of the picture."""
    box = BOXES[room].find(f"{SVG}rect")
    assert box is not None
    return float(box.attrib["y"])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name: str) -> None:
    assert find(name) is not None, f"docs/architecture.md names {name}, which is neither a path nor in a module"


@pytest.mark.parametrize("name", ["nodes.latents.VideoLatent.read", "reuse.presets.PRESETS", "jobs", "web/docs/"])
def test_paths_modules_values_and_methods_are_found(name: str) -> None:
    assert find(name) is not None


@pytest.mark.parametrize(
    "name",
    ["nodes.latents.VideoLatent.gone", "nodes.latents.gone", "nodes.gone.VideoLatent", "gone", "training/gone/",
     "nodes/latents.py/", "reuse.presets.PRESETS.gone", "nodes.clips.Prior"],  # the last is only imported there
)  # fmt: skip
def test_what_does_not_exist_is_not_found(name: str) -> None:
    assert find(name) is None


def test_every_module_is_in_a_room_of_the_page_and_every_room_exists() -> None:
    homeless = [str(file.relative_to(ROOT)) for file in FILES if room_of(file, ROOMS) is None]
    assert not homeless, f"docs/architecture.md has no room for {homeless}"
    assert [room for room in ROOMS if not (ROOT / room).exists()] == []


def test_rooms_import_only_what_the_page_allows() -> None:
    wrong = [f"{one} may not import {two}: {how}" for (one, two), how in IMPORTS.items() if (one, two) not in ALLOWED]
    assert not wrong, "\n".join(wrong)


def test_the_page_allows_no_import_that_the_code_does_not_have() -> None:
    assert sorted(ALLOWED - set(IMPORTS)) == []


def test_the_picture_shows_the_rooms_of_the_page_and_all_their_imports_but_those_that_a_longer_way_implies() -> None:
    assert set(BOXES) == set(ROOMS)
    assert sorted(ARROWS - ALLOWED) == []
    assert {room: reached(room, ARROWS) for room in ROOMS} == {room: reached(room, ALLOWED) for room in ROOMS}


def test_every_import_runs_downwards_in_the_picture() -> None:
    assert [how for (one, two), how in IMPORTS.items() if height(one) >= height(two)] == []


def test_an_import_in_a_function_of_what_lies_above_is_seen(tmp_path: Path) -> None:
    for name in ("vidrd_core/__init__.py", "vidrd_core/reuse/__init__.py", "vidrd_core/jobs/job.py", "nodes/words.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    file = tmp_path / "vidrd_core" / "reuse" / "noise.py"
    text = "def f():\n    from ..jobs.job import Plan\n    from nodes.words import AUTO\n    import nodes\n"
    file.write_text(text, encoding="utf-8")
    assert imported_files(file, tmp_path) == {tmp_path / "vidrd_core/jobs/job.py", tmp_path / "nodes/words.py"}
