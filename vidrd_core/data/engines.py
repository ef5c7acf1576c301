"""Run one function over many items and give the results in order: in a pool of processes, or on Ray Data.

The function runs in fresh processes, so it and what it is given must be importable and picklable. An item whose
process dies, as a decoder can on a bad file, costs that item alone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Given = TypeVar("Given")
Made = TypeVar("Made")

_AHEAD = 4  # items per process that are under way or wait for their turn to be given back
_RAY_ITEMS, _RAY_BLOCK = 8192, 8  # items of one Ray data set, and of one of its tasks
LOST = object()  # stands for the result of an item whose Ray process died


@dataclass(frozen=True)
class EngineSettings:
    """What does the work."""

    engine: str = "process"  # or "ray"
    workers: int = 0  # processes; 0: as many as there are processor cores, or all that a Ray cluster has
    address: str | None = None  # of a Ray cluster; None: Ray on this machine alone

    def __post_init__(self) -> None:
        if self.engine not in ("process", "ray"):
            raise ValueError(f"engine must be process or ray, got {self.engine!r}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"a Ray address, {self.address}, needs engine ray, got {self.engine}")


def run_in_order(
    work: Callable[[Given], Made], items: Sequence[Given], settings: EngineSettings
) -> Iterator[Made | None]:
    """``work(item)`` of every item, in the items' order; None where the process died over an item.

    An exception of ``work`` is raised here and ends the run.
    """
    if settings.engine == "ray":
        return _on_ray(work, items, settings)
    return _in_pool(work, items, settings.workers or usable_cores())


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_pool(work: Callable[[Given], Made], items: Sequence[Given], workers: int) -> Iterator[Made | None]:
    done = 0
    while done < len(items):
        with _pool(min(workers, len(items) - done)) as pool:
            for made in _until_broken(pool, work, items[done:], _AHEAD * workers):
                done += 1
                yield made
        if done < len(items):
            doubtful = items[done : done + _AHEAD * workers]
            logger.warning("a process died; the %d items that were under way are done one by one", len(doubtful))
            yield from _one_by_one(work, doubtful)
            done += len(doubtful)


def _until_broken(
    pool: ProcessPoolExecutor, work: Callable[[Given], Made], items: Sequence[Given], at_once: int
) -> Iterator[Made]:
    """The results in order, as far as the pool comes before a process of it dies."""
    ahead: deque[Future[Made]] = deque()
    waiting = iter(items)

    def submit_ahead() -> None:
        ahead.extend(pool.submit(work, item) for item in itertools.islice(waiting, at_once - len(ahead)))

    with contextlib.suppress(BrokenProcessPool):
        submit_ahead()
        while ahead:
            made = ahead.popleft().result()
            # Before giving the result away, so that the pool has work while the caller writes. A pool that has just
            # broken must not take the result along.
            with contextlib.suppress(BrokenProcessPool):
                submit_ahead()
            yield made


def _one_by_one(work: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made | None]:
    """Never two items under way, so that it is known which one a process died over."""
    waiting = deque(items)
    while waiting:
        with _pool(1) as pool:
            try:
                while waiting:
                    made = pool.submit(work, waiting[0]).result()
                    waiting.popleft()
                    yield made
            except BrokenProcessPool:
                waiting.popleft()
                yield None


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _use_one_thread()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _use_one_thread() -> None:
    """There is a process for every core already."""
    import cv2

    cv2.setNumThreads(1)


@contextlib.contextmanager
def ray_session(settings: EngineSettings, spare_cores: int = 0) -> Iterator[None]:
    """Ray on this machine, with ``spare_cores`` more than workers, or a cluster; results come in order."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    # Ray's workers would starve on a machine that does anything else; those of the pool are not niced either.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    import ray.data

    started = not ray.is_initialized()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if started and settings.address:
        ray.init(settings.address, **quiet)
    elif started:
        ray.init(num_cpus=(settings.workers or usable_cores()) + spare_cores, include_dashboard=False, **quiet)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars, context.max_errored_blocks
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    context.max_errored_blocks = -1  # a block lost with its process shows as missing rows, see `ray_outcomes`
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars, context.max_errored_blocks = before
        if started:
            ray.shutdown()


def _on_ray(work: Callable[[Given], Made], items: Sequence[Given], settings: EngineSettings) -> Iterator[Made | None]:
    with ray_session(settings):
        for first in range(0, len(items), _RAY_ITEMS):
            yield from _ray_results(work, items[first : first + _RAY_ITEMS], settings.workers)


def _ray_results(work: Callable[[Given], Made], items: Sequence[Given], workers: int) -> Iterator[Made | None]:
    import ray.data

    rows = [{"index": index, "item": item} for index, item in enumerate(items)]
    blocks = -(-len(rows) // _RAY_BLOCK)
    data = ray.data.from_items(rows, override_num_blocks=blocks).map(
        _RayWork(work),
        compute=ray.data.TaskPoolStrategy(size=workers or None),
        ray_remote_args_fn=_retry_once,  # Ray Data's own default is to try for ever
    )
    for item, outcome in zip(items, ray_outcomes(data.iter_rows(), len(items)), strict=True):
        if outcome is LOST:
            yield from _one_by_one(work, [item])
        else:
            yield outcome


def ray_outcomes(rows: Iterable[dict[str, Any]], count: int) -> Iterator[Any]:
    """What :func:`ray_row` made of each of ``count`` rows, in order; ``LOST`` where the process died."""
    found = iter(rows)
    row = next(found, None)
    for index in range(count):
        if row is None or row["index"] != index:
            logger.warning("a Ray process died over item %d or its neighbours; it is done here", index)
            yield LOST
            continue
        if isinstance(row["made"], _Failure):
            raise row["made"].error
        yield row["made"]
        row = next(found, None)
    assert row is None


def ray_row(work: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    """``work`` on the ``item`` of a row of a Ray data set, for :func:`ray_outcomes`."""
    try:
        made = work(row["item"])
    except Exception as error:  # noqa: BLE001 (raised again by the caller)
        made = _Failure(error)
    return {"index": row["index"], "made": made}


def _retry_once() -> dict[str, Any]:
    return {"max_retries": 1}


@dataclass(frozen=True)
class _Failure:
    """An exception of the work, carried past Ray, which would take it for a lost block."""

    error: BaseException


class _RayWork:
    """The work on one row of a Ray data set."""

    def __init__(self, work: Callable[[Any], Any]):
        self._work = work
        self.__name__ = getattr(work, "__name__", "work")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        _use_one_thread()
        return ray_row(self._work, row)
