"""Statistics of a training run: JSON lines always, and any of accelerate's trackers (TensorBoard, wandb, ...)."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from torch import Tensor

from ..files import write_text

logger = logging.getLogger(__name__)


class Means:
    """Running means of named figures."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, figures: Mapping[str, float | Tensor]) -> None:
        """Count numbers, or tensors of several."""
        for name, value in figures.items():
            total, count = self.sums.get(name, (0.0, 0))
            if isinstance(value, Tensor):
                self.sums[name] = (total + float(value.detach().double().sum()), count + value.numel())
            else:
                self.sums[name] = (total + value, count + 1)

    def over(self, gather: Callable[[list[Any]], list[Any]]) -> dict[str, float]:
        """The means over all processes, in the order of the names; every process must call it."""
        return {name: total / count for name, (total, count) in sorted(self.together(gather).items()) if count}

    def together(self, gather: Callable[[list[Any]], list[Any]]) -> dict[str, tuple[float, int]]:
        """Sums and counts over all processes; every process must call it."""
        together: dict[str, tuple[float, int]] = {}
        for name, total, count in gather([(n, *s) for n, s in self.sums.items()]):
            before = together.get(name, (0.0, 0))
            together[name] = (before[0] + total, before[1] + count)
        return together


class JsonLines(GeneralTracker):
    """A tracker that appends a JSON object a line, whose ``samples`` are the step.

    Args:
        path: of the file.
        samples: where the run begins or resumes; later lines, which will be written again, are dropped.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path, samples: int):
        super().__init__()
        self.path = path
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            write_text(path, "".join(line + "\n" for line in lines if _is_before(line, samples)))

    @property
    def tracker(self) -> Path:
        return self.path

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"samples": step, **values}) + "\n")


def make_trackers(names: Sequence[str], run: Path, samples: int) -> list[GeneralTracker]:
    """Trackers by accelerate's names, started. TensorBoard and wandb continue what a killed run has written.

    Args:
        run: folder of the run; trackers of a service take its name for the project's.
        samples: where the run begins or resumes.

    Raises:
        ValueError: accelerate has no such tracker, or its package is not installed.
    """
    trackers = []
    for name in dict.fromkeys(names):
        kind = _tracker_class(name)
        if name == "tensorboard":
            tracker = kind("tensorboard", run, purge_step=samples or None)
        elif name == "wandb":
            tracker = kind(run.name, id=_run_id(run, fresh=samples == 0), resume="allow", dir=str(run))
        else:
            tracker = kind(run.name, *([run] if kind.requires_logging_directory else []))
        tracker.start()
        trackers.append(tracker)
    return trackers


def _tracker_class(name: str) -> Any:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"log_with names {name!r}; expected of {', '.join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))}")
    if name in LoggerType.list() and name not in _installed():
        raise ValueError(f"log_with names {name!r}, whose package is not installed: install it or leave it out")
    return LOGGER_TYPE_TO_CLASS[name]


def _installed() -> set[str]:
    return {str(name) for name in get_available_trackers()}


def _run_id(run: Path, fresh: bool) -> str:
    path = run / "run_id.txt"
    if fresh or not path.exists():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


class Statistics:
    """Means of figures since the last line.

    Args:
        run: folder of ``statistics.jsonl`` and of what trackers write.
        samples: where the run begins or resumes; later lines, which will be written again, are dropped.
        gather: makes one list of the lists of every process; every process must write at the same time.
        is_main: whether this process writes.
        tensorboard: whether to log to TensorBoard where it is installed.
        log_with: further trackers, by accelerate's names.
    """

    def __init__(
        self,
        run: Path,
        samples: int,
        gather: Callable[[list[Any]], list[Any]] = list,
        is_main: bool = True,
        tensorboard: bool = True,
        log_with: Sequence[str] = (),
    ):
        self.gather = gather
        self.means = Means()
        self.since = time.monotonic()
        self.first = samples
        self.trackers: list[GeneralTracker] = []
        if not is_main:
            return
        if tensorboard and "tensorboard" in _installed():
            log_with = ("tensorboard", *log_with)
        elif tensorboard:
            logger.info("tensorboard is not installed: statistics do not go to it")
        self.trackers = [JsonLines(run / "statistics.jsonl", samples), *make_trackers(log_with, run, samples)]

    def add(self, figures: Mapping[str, float | Tensor]) -> None:
        self.means.add(figures)

    def write(self, samples: int, **more: float) -> dict[str, Any]:
        """Write the means over all processes since the last line, and return them."""
        means = self.means.over(self.gather)
        seconds = max(time.monotonic() - self.since, 1e-9)
        line = {
            "samples": samples,
            **more,
            "loss": means.get("loss"),
            **means,
            "samples_per_second": (samples - self.first) / seconds,
        }
        self.note(line)
        self.means, self.since, self.first = Means(), time.monotonic(), samples
        return line

    def note(self, line: Mapping[str, Any]) -> None:
        """Write a line, as it is: figures, and the ``samples`` that they were measured after."""
        figures = {name: value for name, value in line.items() if name != "samples"}
        for tracker in self.trackers:
            known = figures if isinstance(tracker, JsonLines) else {n: v for n, v in figures.items() if v is not None}
            tracker.log(known, step=line["samples"])

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


def _is_before(line: str, samples: int) -> bool:
    """Whether a line is of no more samples than these; one that a full disk or a kill cut short is of none."""
    try:
        return json.loads(line)["samples"] <= samples
    except json.JSONDecodeError:
        return False
