"""What a running node says of itself: "clip 2 of 4, step 7 of 15", in ComfyUI's progress bar and progress text."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import latent_preview
from comfy_execution.utils import get_executing_context

from .server import running_server


@dataclass(frozen=True)
class Place:
    """Which of a node's clips is being made; both count from 1."""

    clip: int = 1
    clips: int = 1

    def words(self, step: int, steps: int) -> str:
        of_clip = f"clip {self.clip} of {self.clips}, " if self.clips > 1 else ""
        return f"{of_clip}step {step} of {steps}"


ALONE = Place()
_place = contextvars.ContextVar("vidrd_place", default=ALONE)


@contextmanager
def making(clip: int, clips: int) -> Iterator[None]:
    """While this lasts, the clip that is sampled is one of several that its node makes."""
    token = _place.set(Place(clip, clips))
    try:
        yield
    finally:
        _place.reset(token)


def prepare_callback(model: Any, first: int, last: int, steps: int) -> Callable[..., None]:
    """A sampler's callback for steps ``first`` to ``last`` of a clip's ``steps``.

    It draws ComfyUI's own preview, moves the bar on over all clips of the node, and says where it is.
    """
    place = _place.get()
    drawn = latent_preview.prepare_callback(model, steps * place.clips)
    before = (place.clip - 1) * steps + first

    def callback(step: int, x0: Any, x: Any, total_steps: int) -> None:
        say(place.words(min(first + step + 1, steps), steps))
        drawn(before + min(step, last - first - 1), x0, x, steps * place.clips)

    return callback


def say(text: str) -> None:
    """Show a line in the node that runs; ComfyUI without a server or without progress text shows nothing."""
    server = running_server()
    running = get_executing_context()
    if running is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, running.node_id, server.client_id)
