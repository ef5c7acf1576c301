"""Writes the generated parts of docs/evaluation.md (tables, charts, filmstrips) from stored results.

The document is written by hand except between markers ``<!-- generated: NAME -->`` and
``<!-- end: NAME -->``, which is replaced. A document that does not exist begins with :data:`FRAME`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..metrics import charts
from ..video import ContactSheet
from .comparison import CORRECTED, CORRECTED_PARTS, METHODS, SWEEPS, canonical, load_results, load_samples, stored_path
from .goals import document_part
from .measures import VideoRecord, summarise

Results = Mapping[str, Mapping[str, Any]]

SHARES = (
    "motion kept",
    "identity at the last clip",
    "background beyond 2 of 255 at the last clip",
    "background lost at the last clip",
    "shape lost at the last clip",
    "colour and shape as prompted, first clip",
    "colour and shape as prompted, last clip",
    "motion as prompted, first clip",
    "motion as prompted, later clips",
    "runs back after a seam",
    "replays its predecessor",
    "rewinds its predecessor",
)
MAIN = (
    "seam ratio",
    "motion kept",
    "identity at the last clip",
    "runs back after a seam",
    "replays its predecessor",
    "rewinds its predecessor",
)
STEADINESS = (
    "background drift at the last clip",
    "background beyond 2 of 255 at the last clip",
    "background lost at the last clip",
    "shape colour drift at the last clip",
    "shape lost at the last clip",
    "flicker inside clips",
    "flicker at seams",
    "shape flicker inside clips",
    "shape flicker at seams",
)
PROMPTED = (
    "colour and shape as prompted, first clip",
    "colour and shape as prompted, last clip",
    "motion as prompted, first clip",
    "motion as prompted, later clips",
    "step inside clips",
    "contrast at the last clip",
    "brightness drift at the last clip",
)
SHOWN_FRAMES = 32  # of each video in the filmstrips
OLD_PARTS = {"remedies": "corrections"}  # names in the markers of older documents

FRAME = """\
# Evaluation

## The measures

The bundled model was trained on the moving-shapes data set, whose ground truth is known; a rule-based tracker finds the
shape in every frame. Each method makes videos of the same prompts and seeds.

- **Seam ratio**: jump of the shape's centre over the seams between clips / its mean step inside clips. 1 is perfect.
- **Motion kept**: share of seams after which the shape keeps its direction (on an orbit: its sense of rotation).
- **Identity**: share of videos whose shape and colour in a clip are those of clip 1.
- **Drift**: change of the background's or the shape's mean colour against clip 1, in levels of 255, as a mean over the
  videos in which the tracker still finds it in the last clip; **lost** is the share of videos in which it does not,
  because the background has become as bright as a shape, or no shape is found.
- **Beyond 2 of 255**: share of videos whose background has drifted by more than 2 levels in the last clip; a lost
  background counts as one of them.
- **Runs back**: share of seams after which a straight motion has turned against its direction before the seam.
- **Replays, rewinds**: share of clips whose path repeats their predecessor's, forwards or backwards.
- **Flicker**: change from frame to frame not explained by the motion, in levels of 255: of background pixels, which
  never move, and of the shape's pixels along its track.
- **Frames**: length of the videos. Methods that trim make shorter videos of as many clips, so their last clip is fewer
  frames away from the first: compare drift and identity at the last clip with that in mind.

"ground truth" is the rendered video itself; "ground truth decoded" is the same encoded and decoded by the model's VAE,
the upper bound for every method.

<!-- generated: settings -->
<!-- end: settings -->

## The methods

<!-- generated: methods -->
<!-- end: methods -->

## The model before training with cleaner frames

<!-- generated: before -->
<!-- end: before -->

## Drift corrections

Each correction is measured with the methods that one would use to make a video. "last frame", "FNR" and "FNR PNS" are
simpler than the paper's method or parts of it; "forward guided" and "forward soft" are intermediate steps to "smooth".
They are measured without corrections, to save hours; `training/evaluate.py compare --sets "corrections of parts"` adds
them.

<!-- generated: corrections -->
<!-- end: corrections -->

## Sweeps

<!-- generated: sweeps -->
<!-- end: sweeps -->

## Goals and loops

<!-- generated: goals -->
<!-- end: goals -->

## Filmstrips

<!-- generated: filmstrips -->
<!-- end: filmstrips -->

## UCF-101

<!-- generated: ucf101 -->
<!-- end: ucf101 -->
"""


def write_document(
    document: Path,
    results: Path | None = None,
    ucf101: Path | None = None,
    before: Path | None = None,
    goals: Path | None = None,
) -> list[Path]:
    """Update the generated parts of ``document``; pictures and a summary go into a folder beside it, named like it.

    Args:
        results: the folder of a comparison.
        ucf101: the JSON file of a UCF-101 evaluation.
        before: the folder of a comparison on the model before it was trained with cleaner frames.
        goals: the folder of :class:`vidrd_core.shapes.goals.GoalsComparison`.
            Parts whose results are None are left unchanged.

    Returns:
        All files written.

    Raises:
        ValueError: no results, results that do not belong together, or a document whose markers are broken.
    """
    text = document.read_text(encoding="utf-8") if document.is_file() else FRAME
    for old, current in OLD_PARTS.items():
        text = text.replace(f"generated: {old} -->", f"generated: {current} -->")
        text = text.replace(f"end: {old} -->", f"end: {current} -->")
    parts, written = ({}, []) if results is None else _comparison(results, document.with_suffix(""))
    if before is not None:
        found = load_results(before)
        methods = _chosen({name: result["summary"] for name, result in found.items()}, (*METHODS, *found))
        parts["before"] = "\n\n".join((_settings(found), tables(methods), table(methods, PROMPTED)))
    if goals is not None:
        parts["goals"] = document_part(goals)
    if ucf101 is not None:
        from ..metrics.ucf101 import markdown

        parts["ucf101"] = markdown(json.loads(ucf101.read_text(encoding="utf-8")))
    for name, content in parts.items():
        text = replace_part(text, name, content)
    write_text(document, text)
    return [document, *written]


def _comparison(results: Path, pictures: Path) -> tuple[dict[str, str], list[Path]]:
    """The parts of the document that show a comparison, and the files written into ``pictures``."""
    found = load_results(results)
    summaries = {name: result["summary"] for name, result in found.items()}
    written: list[Path] = []

    def picture(name: str, figure: Any, alternative: str) -> str:
        path = pictures / name
        charts.save(figure, path)
        written.append(path)
        return f"![{alternative}]({pictures.name}/{name})"

    parts = {"settings": _settings(found)}
    methods = _chosen(summaries, METHODS)
    if methods:
        made = {name: value for name, value in methods.items() if not name.startswith("ground truth")} or methods
        parts["methods"] = "\n\n".join(
            (
                tables(methods),
                picture("methods.png", charts.draw_bars(methods), "seam ratio, motion kept, identity, drift"),
                picture("profile.png", charts.draw_profiles(made), "motion by position in a clip"),
                picture("curves.png", charts.draw_curves(made), "identity, motion and drift by clip number"),
                table(methods, PROMPTED),
            )
        )
    corrected = _chosen(summaries, (*CORRECTED, *CORRECTED_PARTS))
    pairs = _chosen(summaries, [n for name in corrected for n in (name.partition(",")[0], name)])
    if corrections := _of_common_videos(results, pairs):
        parts["corrections"] = "\n\n".join(
            (tables(corrections), picture("corrections.png", charts.draw_curves(corrections), "drift by clip number"))
        )
    sweeps = _sweeps(results, summaries, picture)
    if sweeps:
        parts["sweeps"] = sweeps
    strips = _filmstrips(found, results, pictures)
    if strips:
        written += strips
        parts["filmstrips"] = "\n\n".join(
            f'"{_caption(found, number)}"\n\n![the same prompt by every method]({pictures.name}/{path.name})'
            for number, path in enumerate(strips)
        )
    summary = pictures / "summary.json"
    write_json(summary, {name: {k: v for k, v in result.items()} for name, result in found.items()}, indent=None)
    return parts, [summary, *written]


def replace_part(text: str, name: str, content: str) -> str:
    """Put ``content`` between the markers of ``name``."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the document needs `<!-- generated: {name} -->` and `<!-- end: {name} -->` once each")
    return pattern.sub(lambda match: match[1] + content.rstrip("\n") + "\n" + match[2], text)


def tables(summaries: Results) -> str:
    """A table of the measures at seams, and below it one of drift and flicker."""
    return f"{table(summaries, MAIN)}\n\n{table(summaries, STEADINESS)}"


def table(summaries: Results, figures: Sequence[str]) -> str:
    """One row per method, one column per figure."""
    lines = ["| method | videos | frames | " + " | ".join(figures) + " |", "|---" * (len(figures) + 3) + "|"]
    for name, summary in summaries.items():
        cells = [_cell(figure, summary["figures"][figure]) for figure in figures]
        lines.append(f"| {name} | {summary['videos']} | {summary['frames']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(figure: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if figure in SHARES else f"{value:.2f}"


def _chosen(summaries: Results, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    return {name: summaries[name] for name in dict.fromkeys(map(canonical, names)) if name in summaries}


def _of_common_videos(results: Path, summaries: Results) -> Results:
    """The summaries over the videos that all methods have: the first ones, of the same prompts and seeds."""
    count = min(summary["videos"] for summary in summaries.values()) if summaries else 0
    common = {}
    for name, summary in summaries.items():
        if summary["videos"] > count:
            stored = json.loads(stored_path(results, name).read_text(encoding="utf-8"))
            records = [VideoRecord(**record) for record in stored["records"][:count]]
            summary = {"frames": summary["frames"], **summarise(records, stored["settings"]["num_frames"])}
        common[name] = summary
    return common


def _sweeps(results: Path, summaries: Results, picture: Any) -> str:
    parts = []
    for title, names in SWEEPS.items():
        chosen = _chosen(summaries, names)
        if len(chosen) < 2:
            continue
        found = _of_common_videos(results, chosen)
        values = {name.rpartition("=")[2]: found[canonical(name)] for name in names if canonical(name) in found}
        field = title.partition(",")[0]
        file = "sweep_" + re.sub(r"\W+", "_", title) + ".png"
        parts += [f"### {title}", picture(file, charts.draw_sweep(field, values), f"sweep of {title}")]
        parts += [tables({f"{field} {value}": summary for value, summary in values.items()})]
    return "\n\n".join(parts)


def _filmstrips(found: Results, results: Path, pictures: Path) -> list[Path]:
    """One sheet per sample prompt, a row per method."""
    samples = {}
    for name in _chosen(found, METHODS):
        path = stored_path(results, name).with_suffix(".png")
        if path.is_file():
            samples[name] = load_samples(path, 64)
    if not samples:
        return []
    written = []
    for number in range(min(map(len, samples.values()))):
        sheet = ContactSheet(cell=64, max_columns=SHOWN_FRAMES, frame_numbers=False)
        for name, videos in samples.items():
            sheet.add_row(videos[number][:SHOWN_FRAMES], name)
        path = pictures / f"filmstrip_{number + 1}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.render().save(path)
        written.append(path)
    return written


def _caption(found: Results, number: int) -> str:
    return str(next(iter(found.values()))["captions"][number])


def _settings(found: Results) -> str:
    result = next(iter(found.values()))
    settings, videos = result["settings"], [r["summary"]["videos"] for r in found.values()]
    count = f"{min(videos)}" if min(videos) == max(videos) else f"{min(videos)} to {max(videos)}"
    return (
        f"{count} videos of {settings['clips']} clips of {settings['num_frames']} frames per method, "
        f"{settings['scheduler']} with {settings['steps']} steps, guidance scale {settings['guidance_scale']:g}, "
        f'negative prompt "{settings["negative_prompt"]}", '
        f"{settings['dtype']}; prompts of combinations that training never saw, first seed {settings['seed']}."
    )
