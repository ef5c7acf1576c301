"""Work that only one process may do at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` for the length of a ``with`` block; gives False at once where another process does.

    The system releases it when the process ends in whatever way.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
