"""A JSON-lines table that grows by whole lines and survives a kill at any moment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class GrowingTable:
    """Rows appended to a file of JSON lines; ``key`` is the column that tells rows apart.

    Opening it removes a last line that a kill has torn, and reads which rows are there. Rows are on the disk when
    :meth:`append` returns.
    """

    def __init__(self, path: Path, key: str):
        self.path, self._key = path, key
        path.parent.mkdir(parents=True, exist_ok=True)
        self.keys: set[str] = set()
        if path.exists():
            self._repair()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, in one write. ValueError for a row that is there already: nothing is done twice."""
        rows = list(rows)
        names = [str(row[self._key]) for row in rows]
        twice = [name for number, name in enumerate(names) if name in self.keys or name in names[:number]]
        if twice:
            raise ValueError(f"{self.path}: {twice[0]} is in the table already")
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.keys.update(names)

    def _repair(self) -> None:
        whole = 0
        with self.path.open("r+b") as file:
            for number, line in enumerate(file, 1):
                row = _parsed(line)
                # A machine that lost power can leave the length of a write without its bytes, always at the end.
                if row is None and not file.read(1):
                    break
                if row is None:
                    raise ValueError(f"{self.path}: line {number} is damaged; mend or remove it, then run again")
                if self._key not in row:
                    raise ValueError(f"{self.path}: line {number} has no {self._key!r}; this is another table")
                self.keys.add(str(row[self._key]))
                whole += len(line)
            size = file.seek(0, os.SEEK_END)
            if size > whole:
                logger.warning("%s: the last line, %d bytes, was torn and is removed", self.path, size - whole)
                file.truncate(whole)
                os.fsync(file.fileno())


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
