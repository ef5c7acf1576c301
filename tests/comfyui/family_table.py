"""The table of docs/families.md: its cells are what the checks of check_families.py found, and nothing else.

The checks compare what they find with families.json beside this file, a test compares the page with the table made of
it. After a change: ``VIDRD_WRITE_FAMILIES=1`` in the environment of the checks writes both anew, for the ComfyUI that
they run in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOUND = HERE / "families.json"
PAGE = HERE.parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- the table begins: written by tests/comfyui/family_table.py -->", "<!-- the table ends -->"
COLUMNS = {
    "class": "Class",
    "chains": "Chains",
    "told": "Told the overlap's noise level",
    "image": "Image conditioning of the next clip",
    "experts": "Two experts",
    "samplers": "Samplers",
    "decode": "Decoding the joined video",
}
Found = dict[str, dict[str, dict[str, str]]]  # version of ComfyUI -> family -> column -> cell


def stored() -> Found:
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}


def table(found: Found) -> str:
    """The table in Markdown; where versions of ComfyUI differ, a cell says which is which."""
    lines = ["| Family | " + " | ".join(COLUMNS.values()) + " | ComfyUI |", "|---" * (len(COLUMNS) + 2) + "|"]
    names = dict.fromkeys(name for families in reversed(list(found.values())) for name in families)  # newest has most
    for name in names:
        versions = [version for version in found if name in found[version]]
        cells = []
        for column in COLUMNS:
            said = {version: found[version][name].get(column, "") for version in versions}
            told = set(said.values())
            cells.append(told.pop() if len(told) == 1 else "; ".join(f"{text} ({v})" for v, text in said.items()))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {', '.join(versions)} |")
    return "\n".join(lines)


def page_with(text: str, found: Found) -> str:
    """A page with its table made anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.split(END)[1]}"


@dataclass
class Cells:
    """What the checks find in one version of ComfyUI."""

    version: str
    writes: bool = False
    found: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of_this_comfyui(cls) -> Cells:
        from comfyui_version import __version__

        return cls(__version__, bool(os.environ.get("VIDRD_WRITE_FAMILIES")))

    def add(self, family: str, column: str, cell: str) -> None:
        """Note a cell; one that is not the table's is an error, in versions of ComfyUI that the table is of."""
        assert column in COLUMNS
        self.found.setdefault(family, {})[column] = cell
        known = stored().get(self.version)
        if known is None or self.writes:
            return
        told = known.get(family, {}).get(column)
        assert cell == told, (
            f"{family}, {column}: the check found {cell!r}, docs/families.md says {told!r}; run the checks with "
            "VIDRD_WRITE_FAMILIES=1 and look at what changes"
        )

    def finish(self, order: Iterable[str]) -> None:
        """After the last check: no cell of the table may be without a check.

        Args:
            order: of the families.
        """
        families = stored()
        if self.writes:
            families[self.version] = {name: self.found[name] for name in order}
            ordered = dict(sorted(families.items(), key=lambda item: [int(n) for n in item[0].split(".")]))
            FOUND.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), ordered), encoding="utf-8")
        elif self.version in families:
            assert self.found == families[self.version]
