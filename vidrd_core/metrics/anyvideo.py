"""Seams, motion and drift of any video, without a tracker and without weights.

Differences of neighbouring frames are measured at the seams between clips and inside clips; where seams are invisible,
the two agree. Optical flow is OpenCV's DIS (arXiv 1603.03590).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..video.interpolation import optical_flow

if TYPE_CHECKING:
    from .detectors import Clip

MAX_SIDE = 256  # pixels of the shorter side; larger videos are measured at this size
OCCLUDED = 1.0  # pixels by which forward and backward flow may disagree where nothing is hidden
AROUND = 2  # steps before and after a step that give the motion there
MOVING = 0.1  # pixels per frame, mean, below which a flow has no direction


@dataclass
class VideoReport:
    """The measurements of a video. Step t is the one from frame t - 1 to frame t; lists by step begin with step 1.

    Args:
        seams: first frame of every clip but the first.
        change: mean absolute difference of the frames, 0 to 255.
        trim_frames: that later clips lost at their start.
        warping_error: the same after the earlier frame was moved along the optical flow, over the pixels that both
            frames show. It has the idea, not the formula, of arXiv 1808.00449: see :func:`warping_error`.
        motion: mean length of the flow, in pixels per frame of ``size``.
        agreement: cosine of the flows of the :data:`AROUND` steps before and after this one, -1 to 1; None where
            nothing moves. Reversed motion is negative, even where a frame is repeated at the turn.
        color_drift: by frame, mean red, green and blue against the first clip's, -255 to 255.
        consistency: cosine of the CLIP embeddings of the frames; None without CLIP.
        similarity: mean cosine of frames and prompt; None without CLIP or prompt.
    """

    frames: int
    clip_length: int
    trim_frames: int
    seams: list[int]
    size: tuple[int, int]
    change: list[float]
    warping_error: list[float]
    motion: list[float]
    agreement: list[float | None]
    color_drift: list[tuple[float, float, float]]
    consistency: list[float] | None = None
    similarity: float | None = None

    def figures(self) -> dict[str, float | None]:
        """Means inside clips and at seams, their ratios, and the drift of the last clip."""
        found: dict[str, float | None] = {}
        for name, values in self._series().items():
            # Agreement looks at the steps around: those near a seam are neither inside a clip nor at the seam.
            inside, at_seams = self._split(values, AROUND if name == "flow agreement" else 0)
            found[f"{name}, inside clips"], found[f"{name}, at seams"] = inside, at_seams
            if name != "flow agreement" and inside and at_seams is not None:
                found[f"{name}, seams / inside"] = at_seams / inside
        last = self.color_drift[self.seams[-1] if self.seams else 0 :]
        for channel, values in zip(("red", "green", "blue"), zip(*last)):
            found[f"drift of {channel}, last clip"] = statistics.fmean(values)
        found["largest drift of a frame"] = max(abs(value) for frame in self.color_drift for value in frame)
        if self.similarity is not None:
            found["CLIP similarity to the prompt"] = self.similarity
        return {name: None if value is None else round(value, 5) for name, value in found.items()}

    def _series(self) -> dict[str, Sequence[float | None]]:
        series: dict[str, Sequence[float | None]] = {
            "change from frame to frame": self.change,
            "warping error": self.warping_error,
            "motion": self.motion,
            "flow agreement": self.agreement,
        }
        return series if self.consistency is None else {**series, "CLIP consistency": self.consistency}

    def _split(self, values: Sequence[float | None], margin: int) -> tuple[float | None, float | None]:
        groups: tuple[list[float], list[float]] = ([], [])
        for step, value in enumerate(values, 1):
            nearest = min((abs(step - seam) for seam in self.seams), default=margin + 1)
            if value is not None and (nearest == 0 or nearest > margin):
                groups[nearest == 0].append(value)
        inside, at_seams = (statistics.fmean(group) if group else None for group in groups)
        return inside, at_seams

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "figures": self.figures()}

    def text(self) -> str:
        """The report as text."""
        figures = self.figures()
        clips = f"{len(self.seams) + 1} clip{'s' if self.seams else ''} of up to {self.clip_length}"
        lines = [f"{self.frames} frames in {clips}, measured at {self.size[1]}x{self.size[0]}"]
        if not self.seams:
            lines.append("There is no seam to measure: the video ends with its first clip. Is the clip length right?")
        lines.append("")
        lines.append(f"{'':<28}{'inside clips':>14}{'at seams':>12}{'ratio':>9}")
        for name in self._series():
            cells = [figures.get(f"{name}, {part}") for part in ("inside clips", "at seams", "seams / inside")]
            digits = 4 if name == "CLIP consistency" else 2  # cosines near 1
            shown = ["-" if cell is None else f"{cell:.{digits}f}" for cell in cells]
            lines.append(f"{name:<28}{shown[0]:>14}{shown[1]:>12}{shown[2]:>9}")
        drift = ", ".join(f"{channel} {figures[f'drift of {channel}, last clip']:+.1f}" for channel in _CHANNELS)
        lines += ["", f"mean colour of the last clip against the first, of 255: {drift}"]
        lines.append(f"largest drift of a single frame: {figures['largest drift of a frame']:.1f}")
        if self.similarity is not None:
            lines.append(f"CLIP similarity to the prompt: {self.similarity:.3f}")
        return "\n".join(lines) + "\n"


_CHANNELS = ("red", "green", "blue")


def clip_seams(
    frames: int, clip_length: int, trim_frames: int = 0, first_clip: int | None = None, num_clips: int | None = None
) -> list[int]:
    """First frame of every clip but the first, where later clips lost their first ``trim_frames``.

    Args:
        first_clip: frames of the first clip; None: ``clip_length``.
        num_clips: where it is known; the last one may be longer than the others, as a loop's.
    """
    if clip_length < 1 or not 0 <= trim_frames < clip_length:
        raise ValueError(
            f"clip length is {clip_length} and trimmed frames {trim_frames}; expected at least 1, and less trimmed"
        )
    if first_clip is not None and not 1 <= first_clip <= clip_length:
        raise ValueError(f"the first clip has {first_clip} frames; expected 1 to {clip_length}, the clip length")
    seams = list(range(first_clip or clip_length, frames, clip_length - trim_frames))
    return seams if num_clips is None else seams[: max(num_clips - 1, 0)]


@torch.no_grad()
def evaluate_video(
    frames: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
    clip_length: int,
    trim_frames: int = 0,
    clip: Clip | None = None,
    prompt: str | None = None,
    on_step: Callable[[], Any] | None = None,
    first_clip: int | None = None,
    num_clips: int | None = None,
) -> VideoReport:
    """Measure a video, two neighbouring frames at a time.

    Args:
        frames: ``[T, H, W, 3]``, uint8 or float in [0, 1]: a tensor, an array, or an iterable of frames ``[H, W, 3]``,
            of which no more than two are held at once.
        clip_length: N, frames of a whole clip.
        trim_frames: frames that later clips lost at their start, as in ``ReuseSettings``.
        clip: CLIP, where its weights are at hand; ``prompt`` is compared with all frames.
        on_step: called after every step; may raise to stop.
        first_clip: frames of the first clip, where it is shorter than a whole one.
        num_clips: as in :func:`clip_seams`.

    Raises:
        ValueError: another shape, fewer than 2 frames, or an impossible clip length.
    """
    clip_seams(2, clip_length, trim_frames, first_clip)  # raises early on impossible lengths
    smaller = _small_frames(frames)
    before = next(smaller)
    report = VideoReport(0, clip_length, trim_frames, [], (before.shape[1], before.shape[2]), [], [], [], [], [])
    means, embedded = [before.mean((1, 2)) * 255], [_embedded(clip, before)]
    recent: deque[Tensor] = deque(maxlen=2 * AROUND + 1)
    for after in smaller:
        flow, back = optical_flow(before, after), optical_flow(after, before)
        report.change.append(round(float((after - before).abs().mean()) * 255, 4))
        report.warping_error.append(round(warping_error(before, after, flow, back), 4))
        report.motion.append(round(float(flow.norm(dim=0).mean()), 4))
        recent.append(flow)
        report.agreement.append(None)
        if len(recent) == recent.maxlen:
            flows = torch.stack(tuple(recent))
            report.agreement[-1 - AROUND] = flow_agreement(flows[:AROUND].mean(0), flows[-AROUND:].mean(0))
        means.append(after.mean((1, 2)) * 255)
        embedded.append(_embedded(clip, after))
        before = after
        if on_step is not None:
            on_step()
    report.frames = len(means)
    if report.frames < 2:
        raise ValueError(f"frames are {[1, *report.size, 3]}; expected [T, H, W, 3] with at least 2 frames")
    report.seams = clip_seams(report.frames, clip_length, trim_frames, first_clip, num_clips)
    first = torch.stack(means[: first_clip or clip_length]).mean(0)
    report.color_drift = [tuple(round(float(v), 4) for v in mean - first) for mean in means]  # type: ignore[misc]
    if clip is not None:
        images = torch.cat([image for image in embedded if image is not None])
        report.consistency = [round(float(v), 5) for v in (images[1:] * images[:-1]).sum(1)]
        if prompt:
            report.similarity = round(float((images @ clip.texts([prompt])[0]).mean()), 5)
    return report


def _small_frames(frames: Tensor | np.ndarray | Iterable[Tensor | np.ndarray]) -> Iterator[Tensor]:
    """Each frame ``[3, h, w]``, float in 0 to 1, at the size in which it is measured."""
    if isinstance(frames, Tensor | np.ndarray) and (frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 2):
        raise ValueError(f"frames are {list(frames.shape)}; expected [T, H, W, 3] with at least 2 frames")
    size: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        size = size or tuple(frame.shape)
        if len(size) != 3 or size[2] != 3 or tuple(frame.shape) != size:
            raise ValueError(f"frame {number} is {list(frame.shape)}; expected all to be [H, W, 3] of one size")
        yield _small(frame)
    if size is None:
        raise ValueError("there are no frames; expected at least 2")


def _small(frame: Tensor | np.ndarray) -> Tensor:
    """``[H, W, 3]`` to ``[3, h, w]``, float in 0 to 1, the shorter side at most :data:`MAX_SIDE`."""
    pixels = frame if isinstance(frame, Tensor) else torch.from_numpy(np.array(frame, order="C"))
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    pixels = rearrange(pixels, "h w c -> c h w").cpu()
    scale = MAX_SIDE / min(pixels.shape[1:])
    if scale >= 1:
        return pixels
    size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
    return F.interpolate(pixels[None], size, mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)


def _embedded(clip: Clip | None, frame: Tensor) -> Tensor | None:
    return None if clip is None else clip.images(frame[None, :, None] * 2 - 1)[0].cpu()


def _sample(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """``image`` ``[C, H, W]`` read at every pixel moved by ``flow`` ``[2, H, W]``, and where that lies inside it."""
    height, width = flow.shape[1:]
    x = torch.arange(width, dtype=torch.float32) + flow[0]
    y = torch.arange(height, dtype=torch.float32)[:, None] + flow[1]
    grid = torch.stack((2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1), dim=-1)
    read = F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    return read, (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def warping_error(before: Tensor, after: Tensor, flow: Tensor, back: Tensor) -> float:
    """Mean absolute difference, 0 to 255, of ``after`` and of ``before`` moved along the flow.

    Counted are the pixels of ``after`` that ``before`` shows too: those for which the flow back and forth returns
    within :data:`OCCLUDED` pixel. Where none does, all pixels count.

    Not to be compared with published warping errors: the one of arXiv 1808.00449, whose idea this is, squares the
    differences of values in 0 to 1, and takes pixels for hidden by a test relative to the length of the flow.

    Args:
        before, after: frames ``[3, H, W]`` in 0 to 1.
        flow, back: from ``before`` to ``after`` and the other way, ``[2, H, W]`` in pixels.
    """
    moved, inside = _sample(before, back)
    returned, _ = _sample(flow, back)
    seen = inside & ((returned + back).norm(dim=0) < OCCLUDED)
    error = (after - moved).abs().mean(0)
    return float(error[seen].mean() if bool(seen.any()) else error.mean()) * 255


def flow_agreement(before: Tensor, after: Tensor) -> float | None:
    """Cosine of two flows ``[2, H, W]``; None where either does not move."""
    lengths = [float(flow.norm(dim=0).mean()) for flow in (before, after)]
    if min(lengths) < MOVING:
        return None
    cosine = float((before * after).sum() / (before.norm() * after.norm()))
    return round(cosine, 4) if math.isfinite(cosine) else None
