"""Decode video of any length in bounded memory: windows of the clip length whose overlaps are crossfaded.

The decoder's temporal layers see one window at a time. Neighbouring windows share a few frames, over which one fades
into the other, so that no window edge shows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

Decode = Callable[[Tensor], Tensor]


def default_overlap(window: int) -> int:
    """Frames that neighbouring windows share: a quarter of the window, at least one where there are two."""
    return max(window // 4, min(1, window - 1))


def last_window_start(total: int, window: int, overlap: int | None = None) -> int:
    """Where the last full window of ``total`` frames starts: from there a decoder gives the same end as from 0."""
    hop = window - (default_overlap(window) if overlap is None else overlap)
    return max(0, total - window) // hop * hop


class WindowDecoder:
    """Turn latents that arrive piece by piece into frames, holding at most about two windows of either.

    Windows start at multiples of ``window - overlap`` frames, counted from the first frame pushed; the last one ends at
    the last frame. Each frame of an overlap is a linear crossfade of its two windows.

    Args:
        decode: latents ``[B, C, t, h, w]`` of one window to pixels ``[B, 3, t, H, W]``.
        window: frames per window, usually the clip length the decoder was trained on.
        overlap: frames shared by neighbouring windows, 0 to ``window - 1``; None: :func:`default_overlap`.
    """

    def __init__(self, decode: Decode, window: int, overlap: int | None = None):
        overlap = default_overlap(window) if overlap is None else overlap
        if window < 1 or not 0 <= overlap < window:
            raise ValueError(
                f"window is {window} and overlap {overlap}; expected window >= 1 and 0 <= overlap < window"
            )
        self.decode = decode
        self.window = window
        self.overlap = overlap
        self.latents: Tensor | None = None  # from the start of the next window, less what is dropped
        self.history: Tensor | None = None  # the last window's worth before that, for a short final window
        self.fading: Tensor | None = None  # frames of the last window that the next one overlaps

    def push(self, latents: Tensor) -> Iterator[Tensor]:
        """Take ``[B, C, t, h, w]`` and yield the frames ``[B, 3, t', H, W]`` that are final now."""
        self.latents = latents if self.latents is None else torch.cat((self.latents, latents), dim=2)
        hop = self.window - self.overlap
        while self.latents.shape[2] >= self.window:
            yield self._emit(self.decode(self.latents[:, :, : self.window]), self.overlap)
            self.history = self.latents[:, :, : self.window].clone()
            self.latents = self.latents[:, :, hop:]

    def flush(self) -> Iterator[Tensor]:
        """Yield the frames still held back; the decoder is empty afterwards."""
        latents, fading, history = self.latents, self.fading, self.history
        fresh = 0 if latents is None else latents.shape[2] - (0 if fading is None else self.overlap)
        if latents is not None and fresh > 0:
            if history is not None and fading is not None:  # a full window that ends at the last frame
                latents = torch.cat((history, latents[:, :, self.overlap :]), dim=2)[:, :, -self.window :]
                frames = self.decode(latents)
                yield self._emit(frames[:, :, -(fresh + self.overlap) :] if self.overlap else frames[:, :, -fresh:], 0)
            else:
                yield self._emit(self.decode(latents), 0)
        elif fading is not None and fading.shape[2]:
            yield fading
        self.latents = self.fading = self.history = None

    def _emit(self, frames: Tensor, hold: int) -> Tensor:
        """Crossfade the start of a window with the last one's end; keep its last ``hold`` frames back."""
        if self.fading is not None and self.overlap:
            weight = torch.arange(1, self.overlap + 1, device=frames.device, dtype=frames.dtype) / (self.overlap + 1)
            weight = weight[:, None, None]
            mixed = self.fading * (1 - weight) + frames[:, :, : self.overlap] * weight
            frames = torch.cat((mixed, frames[:, :, self.overlap :]), dim=2)
        end = frames.shape[2] - hold
        self.fading = frames[:, :, end:]
        return frames[:, :, :end]


def decode_windows(decode: Decode, latents: Tensor, window: int, overlap: int | None = None) -> Iterator[Tensor]:
    """Frames ``[B, 3, t, H, W]``, piece by piece, of latents ``[B, C, T, h, w]`` of any length."""
    decoder = WindowDecoder(decode, window, overlap)
    yield from decoder.push(latents)
    yield from decoder.flush()


def decode_stream(
    decoder: WindowDecoder,
    latents: Iterable[Tensor],
    before: Tensor | None = None,
    ahead: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Frames ``[B, 3, t, H, W]`` of latents that arrive piece by piece, as they come.

    Args:
        before: latents that the first piece follows; the decoder sees them, their frames are not repeated.
        ahead: the device on which pieces are decoded in a thread, while the next one is fetched; None: no thread.
    """
    skip = 0

    def trimmed(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        nonlocal skip
        for piece in pieces:
            dropped = min(skip, piece.shape[2])
            skip -= dropped
            if dropped < piece.shape[2]:
                yield piece[:, :, dropped:]

    def tasks() -> Iterator[Callable[[], Iterator[Tensor]]]:
        nonlocal skip
        started = False
        for piece in latents:
            if before is not None and not started:  # the decoder's window reaches back over these frames
                skip = before.shape[2]
                yield partial(decoder.push, before)
            started = True
            yield partial(decoder.push, piece)
        if started:
            yield decoder.flush

    if ahead is not None:
        yield from trimmed(decode_ahead(tasks(), ahead))
    else:
        for task in tasks():
            yield from trimmed(task())


def cut_stream(pieces: Iterable[Tensor], cut: Sequence[int]) -> Iterator[Tensor]:
    """Frames ``[B, 3, t, H, W]`` without the first ``cut[0]`` and the last ``cut[1]`` of them.

    Args:
        cut: read anew at every piece, as the producer of the pieces may learn it on the way: the second number before
            so many frames at the end have come.
    """
    dropped, held = 0, None
    for piece in pieces:
        first = min(cut[0] - dropped, piece.shape[2])
        dropped += first
        piece = piece[:, :, first:]
        piece = piece if held is None else torch.cat((held, piece), dim=2)
        end = max(0, piece.shape[2] - cut[1])
        held = piece[:, :, end:] if cut[1] else None
        if end:
            yield piece[:, :, :end]


def decode_ahead(
    tasks: Iterable[Callable[[], Iterator[Tensor]]], device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """The pieces of all tasks in order, each task run by a thread while the next one is fetched.

    Where fetching a task means sampling the next clip, decoding and sampling overlap: on a GPU in a stream of its own,
    so that neither waits for the other. At most one task waits or runs at a time, hence memory stays bounded; the
    pieces are those that running the tasks one after the other gives.

    Args:
        device: where the tasks compute; their results must be on the CPU.
    """
    module: Any = getattr(torch, torch.device(device).type, None)
    stream: Any = module.Stream(device) if hasattr(module, "Stream") and module.is_available() else None

    def run(task: Callable[[], Iterator[Tensor]]) -> list[Tensor]:
        with module.stream(stream) if stream is not None else contextlib.nullcontext():
            return list(task())

    pending: Future[list[Tensor]] | None = None
    with ThreadPoolExecutor(1, "decoder") as worker:
        for task in tasks:
            if pending is not None:
                yield from pending.result()
            pending = worker.submit(run, task)
        if pending is not None:
            yield from pending.result()


def joined(pieces: Iterable[Any], total: int, axis: int) -> Any:
    """Pieces of a video in one array or tensor of at most ``total`` frames, without ever holding the frames twice."""
    out: Any = None
    end = 0
    for piece in pieces:
        if out is None:
            shape = (*piece.shape[:axis], total, *piece.shape[axis + 1 :])
            is_tensor = isinstance(piece, Tensor)
            out = torch.empty(shape, dtype=piece.dtype) if is_tensor else np.empty(shape, piece.dtype)
        start, end = end, end + piece.shape[axis]
        out[(slice(None),) * axis + (slice(start, end),)] = piece
    return None if out is None else out[(slice(None),) * axis + (slice(0, end),)]
