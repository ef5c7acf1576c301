"""What a run tells while it goes: JSON lines always, TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

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


class Statistics:
    """Means of figures since the last line.

    Args:
        run: folder of ``statistics.jsonl`` and ``tensorboard/``.
        samples: where the run begins or resumes; later lines, which will be written again, are dropped.
        gather: makes one list of the lists of every process; every process must write at the same time.
        is_main: whether this process writes files.
    """

    def __init__(
        self,
        run: Path,
        samples: int,
        gather: Callable[[list[Any]], list[Any]] = list,
        is_main: bool = True,
        tensorboard: bool = True,
    ):
        self.path = run / "statistics.jsonl"
        self.gather = gather
        self.is_main = is_main
        self.means = Means()
        self.since = time.monotonic()
        self.first = samples
        if is_main and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            fresh = self.path.with_name(self.path.name + ".new")
            fresh.write_text("".join(line + "\n" for line in lines if _is_before(line, samples)), encoding="utf-8")
            os.replace(fresh, self.path)
        self.board: Any = None
        if is_main and tensorboard:
            if importlib.util.find_spec("tensorboard") is None:
                logger.info("tensorboard is not installed: statistics go to %s only", self.path)
            else:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(run / "tensorboard"), purge_step=samples if samples else None)

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
        """Write a line, as it is."""
        if not self.is_main:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in line.items():
                if name != "samples" and value is not None:
                    self.board.add_scalar(name, value, line["samples"])
            self.board.flush()

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _is_before(line: str, samples: int) -> bool:
    """Whether a line is of no more samples than these; one that a full disk or a kill cut short is of none."""
    try:
        return json.loads(line)["samples"] <= samples
    except json.JSONDecodeError:
        return False
