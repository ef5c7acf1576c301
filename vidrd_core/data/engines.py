"""Run one function over many items and give the results in order: in a pool of processes, or in actors of Ray.

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
    work: Callable[[Given], Made], items: Sequence[Given], settings: EngineSettings, gpus: float | None = None
) -> Iterator[Made | None]:
    """``work(item)`` of every item, in the items' order; None where the process died over an item.

    An exception of ``work`` is raised here and ends the run.

    Args:
        gpus: that Ray reserves for each process; None: the work runs on one processor core.
    """
    if settings.engine == "ray":
        return _on_ray(work, items, settings, gpus)
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


class _RayWorker:
    """What a process of Ray's does."""

    def __init__(self, one_thread: bool):
        if one_thread:
            _use_one_thread()

    def ready(self) -> None:
        """Return once the process is there."""

    def do(self, work: Callable[[Any], Any], item: Any) -> Any:
        return work(item)


def _on_ray(
    work: Callable[[Given], Made], items: Sequence[Given], settings: EngineSettings, gpus: float | None
) -> Iterator[Made | None]:
    """An actor has one item at a time, so that its death costs no other."""
    with _ray_session(settings):
        import ray

        actors = _ray_actors(settings, gpus, len(items))
        shared = ray.put(work)
        running: dict[Any, tuple[int | None, Any]] = {actor.ready.remote(): (None, actor) for actor in actors}
        finished: dict[int, Any] = {}
        waiting, idle, done = deque(range(len(items))), deque[Any](), 0
        try:
            while done < len(items):
                while idle and waiting and waiting[0] < done + _AHEAD * len(actors):
                    number, actor = waiting.popleft(), idle.popleft()
                    running[actor.do.remote(shared, items[number])] = number, actor
                for reference in ray.wait(list(running), num_returns=1)[0]:
                    of_item, actor = running.pop(reference)
                    idle.append(actor)
                    if of_item is not None:
                        finished[of_item] = reference
                while done in finished:
                    yield _ray_result(finished.pop(done), work, items[done])
                    done += 1
        finally:
            for actor in actors:
                ray.kill(actor)


def _ray_result(reference: Any, work: Callable[[Given], Made], item: Given) -> Made | None:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError):
        logger.warning("a Ray process died over an item, twice; it is done here")
        return next(_one_by_one(work, [item]))


def _ray_actors(settings: EngineSettings, gpus: float | None, most: int) -> list[Any]:
    """As many as asked for, and no more than ``most``; those that the cluster has no room for yet are not ready."""
    import ray

    resources = ray.cluster_resources()
    free = resources.get("CPU", 0) if gpus is None else resources.get("GPU", 0) // (gpus or 1)
    needs = {"num_cpus": 1, "num_gpus": gpus or 0, "max_restarts": -1, "max_task_retries": 1}
    actor = ray.remote(_RayWorker).options(**needs)
    return [actor.remote(gpus is None) for _ in range(min(settings.workers or max(1, int(free)), most))]


@contextlib.contextmanager
def _ray_session(settings: EngineSettings) -> Iterator[None]:
    """Ray on this machine, or a cluster; the one that is running already is left running."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    # Ray's workers would starve on a machine that does anything else; those of the pool are not niced either.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if settings.address:
        ray.init(settings.address, **quiet)
    else:
        ray.init(num_cpus=settings.workers or usable_cores(), include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
