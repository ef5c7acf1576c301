"""Charts of measurements, drawn with matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from .anyvideo import VideoReport

INK, MUTED, GRID = "#1f2328", "#6e7781", "#d8dee4"
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#bf8700", "#8250df", "#0a7ea4", "#bc4c00", "#57606a", "#d63384", "#0d9488")


def new_figure(rows: int, width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with its axes, drawn by the Agg backend wherever it is made; sizes in inches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("charts need matplotlib: install it with `pip install matplotlib`") from error

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(colors=MUTED, labelsize=8)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write the picture whole or not at all."""
    with replacing(path, keep_suffix=True) as partial:
        figure.savefig(partial, dpi=120, facecolor="white")


def to_pixels(figure: Figure) -> Tensor:
    """The picture as ``[H, W, 3]`` in [0, 1]."""
    import numpy as np
    import torch

    figure.set_dpi(120)
    figure.set_facecolor("white")
    figure.canvas.draw()
    buffer = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    return torch.from_numpy(buffer[..., :3].copy()).float() / 255


def _title(axis: Axes, text: str, x: str = "", y: str = "") -> None:
    axis.set_title(text, loc="left", fontsize=10, color=INK)
    axis.set_xlabel(x, fontsize=8, color=MUTED)
    axis.set_ylabel(y, fontsize=8, color=MUTED)


def _line(axis: Axes, y: Sequence[float | None], label: str, number: int, first: int = 1) -> None:
    x = range(first, first + len(y))
    values = [float("nan") if v is None else v for v in y]
    style = "-" if number < len(COLORS) else "--"
    axis.plot(
        x, values, style, color=COLORS[number % len(COLORS)], linewidth=1.5, marker=".", markersize=4, label=label
    )


def draw_bars(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Seam ratio, motion kept, identity and drift of every method, with 95% intervals over videos."""
    names = list(summaries)
    figure, axes = new_figure(1, 11, 1.2 + 0.3 * len(names), 4)
    goals = {
        "seam ratio": (0.9, 1.1),
        "motion kept": (0.98, 1.0),
        "identity at the last clip": (0.98, 1.0),
        "background drift at the last clip": (0.0, 2.0),
    }
    for column, (axis, (figure_name, goal)) in enumerate(zip(axes, goals.items(), strict=True)):
        axis.axvspan(*goal, color="#1a7f37", alpha=0.18, linewidth=0)
        for row, name in enumerate(names):
            value = summaries[name]["figures"][figure_name]
            if value is None:
                continue
            axis.barh(row, value, color="#54aeff", height=0.6)
            low, high = summaries[name]["intervals"].get(figure_name, (value, value))
            axis.plot((low, high), (row, row), color=INK, linewidth=1)
        axis.set_yticks(range(len(names)), names if column == 0 else [""] * len(names), fontsize=8, color=INK)
        axis.set_ylim(len(names) - 0.5, -0.5)
        _title(axis, figure_name.replace(" at the last clip", ",\nlast clip"))
    return figure


def draw_curves(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Identity, prompt, background and shape colour by clip number."""
    figure, axes = new_figure(2, 11, 7, 2)
    parts = {
        "identity": "share whose colour and shape are clip 1's",
        "background drift": "levels of 255",
        "motion as prompted": "share",
        "shape colour drift": "levels of 255",
    }
    for axis, (curve, unit) in zip(axes, parts.items(), strict=True):
        for number, (name, summary) in enumerate(summaries.items()):
            _line(axis, summary["curves"][curve], name, number)
        _title(axis, curve.capitalize(), "clip", unit)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def draw_profiles(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Progress of straight motions by position in a continuing clip: 1 is the true speed, below 0 is reversed."""
    figure, (axis,) = new_figure(1, 8, 4.5)
    axis.axhline(1, color=MUTED, linewidth=1)
    axis.axhline(0, color=MUTED, linewidth=1, linestyle=":")
    for number, (name, summary) in enumerate(summaries.items()):
        _line(axis, summary["profile"], name, number, first=0)
    _title(
        axis, "Motion by position in a clip", "step in the clip; 0 is the step over the seam", "progress / true speed"
    )
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def draw_sweep(title: str, summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Main figures of one setting's values; ``summaries`` by value."""
    figure, axes = new_figure(1, 11, 2.8, 4)
    parts = ("seam ratio", "motion kept", "identity at the last clip", "background drift at the last clip")
    for number, (axis, part) in enumerate(zip(axes, parts, strict=True)):
        values = [s["figures"][part] for s in summaries.values()]
        axis.plot(range(len(values)), [float("nan") if v is None else v for v in values], "o-", color=COLORS[number])
        axis.set_xticks(range(len(values)), list(summaries))
        _title(axis, part.replace(" at the last clip", ", last clip"), title)
    return figure


def draw_report(report: VideoReport) -> Figure:
    """The measures of any video over time, its seams marked."""
    series: dict[str, tuple[Sequence[float | None], str]] = {
        "Change from frame to frame": (report.change, "levels of 255"),
        "Warping error along the optical flow": (report.warping_error, "levels of 255"),
        "Agreement of the flow before and after: below 0 the motion is reversed": (report.agreement, "cosine"),
    }
    if report.consistency is not None:
        series["CLIP consistency of neighbouring frames"] = (report.consistency, "cosine")
    figure, axes = new_figure(len(series) + 1, 10, 2.2 * (len(series) + 1))
    for number, (axis, (title, (values, unit))) in enumerate(zip(axes, series.items())):
        known = [float("nan") if value is None else value for value in values]
        axis.plot(range(1, report.frames), known, ".-", color=COLORS[2 * number], linewidth=1.2, markersize=3)
        at_seams = [(seam, known[seam - 1]) for seam in report.seams]
        axis.plot(*(zip(*at_seams) if at_seams else ((), ())), "o", color=COLORS[1], markersize=4)
        _title(axis, title, "", unit)
    axes[2].set_ylim(-1.1, 1.1)
    axes[2].axhline(0, color=MUTED, linewidth=0.8)
    colors = axes[-1]
    for channel, color in zip(zip(*report.color_drift), ("#d1242f", "#1a7f37", "#1f6feb")):
        colors.plot(range(report.frames), channel, color=color, linewidth=1.2)
    _title(colors, "Mean colour against the first clip", "frame", "levels of 255")
    for axis in axes:
        axis.set_xlim(0, max(1, report.frames - 1))
        for seam in report.seams:
            axis.axvline(seam - 0.5 if axis is colors else seam, color=MUTED, linewidth=0.8, linestyle=":")
    return figure
