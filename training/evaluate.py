"""Evaluate a model: on the moving-shapes data set, whose ground truth is known, and on UCF-101 as in the paper.

    python training/evaluate.py shapes --model vidrd_core/demo_model --output docs/demo_evaluation
    python training/evaluate.py compare --model vidrd_core/demo_model --results runs/evaluation --dtype bf16
    python training/evaluate.py goals --model vidrd_core/demo_model --results runs/goals --dtype bf16
    python training/evaluate.py document --results runs/evaluation --document docs/evaluation.md
    accelerate launch training/evaluate.py ucf101 --model MODEL --output runs/ucf101 --trainlist trainlist01.txt \
        --videos UCF-101 --i3d i3d_torchscript.pt --c3d c3d_ucf101.pt

Every command resumes when it is called again, except `shapes`. Start several processes on CPUs with `torchrun
--nproc-per-node 2` instead of accelerate's launcher. On several machines the folders of `ucf101` (--output,
--real-statistics) must be on a shared disk.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from common import DTYPES, Precision

from vidrd_core.metrics.identity import NEGATIVE_PROMPT, changes, model_identity
from vidrd_core.metrics.ucf101 import Ucf101Settings, evaluate_ucf101
from vidrd_core.pipeline import VidRDPipeline
from vidrd_core.runtime.allocator import keep_freed_memory
from vidrd_core.shapes.comparison import SETS, Comparison, canonical
from vidrd_core.shapes.document import write_document
from vidrd_core.shapes.goals import CASES, GoalsComparison
from vidrd_core.shapes.prompted import METHODS, MovingShapesEvaluation, markdown_table

OLD_COMMANDS = {"world": "shapes"}
OLD_SETS = {"remedies": "corrections", "remedies of parts": "corrections of parts"}
OLD_REUSE = {"guidance_lead": "cleaner_overlap"}  # in stored settings
PROMPTS = Path(__file__).parent / "configs" / "ucf101_prompts.txt"


@dataclass(frozen=True)
class Shapes:
    """Share of videos of moving shapes that follow their prompts: independent clips, presets paper and smooth."""

    model: Path  # model folder
    output: Path | None = None  # name of the .json and .md files; other methods' rows of the same settings are kept
    prompts: int = 200  # distinct captions of the test split
    clips: int = 8  # per video
    steps: int = 50  # denoising steps per clip
    guidance_scale: float = 4.0
    batch: int = 20  # videos at a time
    methods: tuple[str, ...] = tuple(METHODS)
    dtype: Precision = "fp32"
    seed: int = 0


@dataclass(frozen=True)
class Compare:
    """Comparison of methods on long videos: seams, motion, identity, drift, repetition, flicker."""

    model: Path  # model folder
    results: Path  # folder for one JSON file and one picture per method; several processes may share it
    # Those of vidrd_core.shapes.comparison.
    sets: tuple[Literal["methods", "corrections", "corrections of parts", "sweeps"], ...] = ("methods",)
    methods: tuple[str, ...] = ()  # instead of sets, for example "paper" "paper, alpha=2, match"
    videos: int = 100  # distinct prompts
    clips: int = 16  # per video
    steps: int = 25  # denoising steps per clip
    guidance_scale: float = 4.0
    batch: int = 25  # videos at a time
    dtype: Precision = "fp32"
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Goals:
    """Clips that arrive at given frames, and loops: steps where they arrive, against the ground truth."""

    model: Path  # model folder
    results: Path  # folder for one JSON file per case
    videos: int = 10  # per case
    steps: int = 10  # denoising steps per clip
    guidance_scale: float = 4.0
    cases: int = len(CASES)  # the first so many of vidrd_core.shapes.goals.CASES
    dtype: Precision = "fp32"
    device: str = "cpu"


@dataclass(frozen=True)
class Document:
    """Update the tables, charts and filmstrips of the evaluation document from stored results."""

    results: Path | None = None  # folder of `compare`
    document: Path = Path("docs/evaluation.md")
    ucf101: Path | None = None  # results.json of `ucf101`
    before: Path | None = None  # folder of `compare` on the model before it was trained with cleaner frames
    goals: Path | None = None  # folder of `goals`


@dataclass(frozen=True)
class Ucf101:
    """The paper's UCF-101 evaluation: FVD, inception score and CLIP similarity of 10,000 videos."""

    model: Path  # model folder
    measure: tyro.conf.OmitArgPrefixes[Ucf101Settings]
    prompts: Path = PROMPTS  # one line per class, "ClassName: prompt"; the bundled ones are ours
    dtype: Precision = "fp32"


def shapes(options: Shapes) -> None:
    pipe = load(options.model, options.dtype)
    evaluation = MovingShapesEvaluation(
        pipe,
        options.prompts,
        options.clips,
        options.steps,
        options.guidance_scale,
        options.batch,
        options.seed,
    )
    rows = {name: evaluation.run(METHODS[name]) for name in options.methods}
    logging.info("\n%s", markdown_table(rows))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {k: str(v) for k, v in vars(options).items() if k not in ("output", "methods")}
        settings |= {"torch": torch.__version__, **model_identity(pipe), "negative_prompt": NEGATIVE_PROMPT}
        reuse = {name: asdict(value) for name, value in METHODS.items()}
        path = options.output.with_suffix(".json")
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        chained = stored.get("settings", {}).pop("reuse", {})
        before, now = ({name: current_settings(value) for name, value in each.items()} for each in (chained, reuse))
        if "settings" in stored and not changes(stored["settings"], settings):  # rows of earlier calls
            known = {name: row for name, row in stored["methods"].items() if before.get(name) == now.get(name)}
            rows = {name: row for name in METHODS if (row := {**known, **rows}.get(name)) is not None}
        settings["reuse"] = reuse
        path.write_text(json.dumps({"settings": settings, "methods": rows}, indent=2), encoding="utf-8")
        options.output.with_suffix(".md").write_text(markdown_table(rows), encoding="utf-8")


def compare(options: Compare) -> None:
    pipe = load(options.model, options.dtype).to(options.device)
    comparison = Comparison(
        pipe,
        options.results,
        options.videos,
        options.clips,
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        batch=options.batch,
        seed=options.seed,
    )
    names = options.methods or tuple(name for chosen in options.sets for name in SETS[chosen])
    for name in dict.fromkeys(map(canonical, names)):
        logging.info("%s: %s", name, json.dumps(comparison.run(name)["figures"], indent=1))


def goals(options: Goals) -> None:
    pipe = load(options.model, options.dtype).to(options.device)
    comparison = GoalsComparison(pipe, options.results, options.videos, options.steps, options.guidance_scale)
    for case in CASES[: options.cases]:
        logging.info("%s: %s", case.name, json.dumps(comparison.run(case)["figures"]))


def document(options: Document) -> None:
    for path in write_document(options.document, options.results, options.ucf101, options.before, options.goals):
        logging.info("wrote %s", path)


def ucf101(options: Ucf101) -> None:
    pipe = load(options.model, options.dtype)
    evaluate_ucf101(pipe, options.prompts, options.measure, name=options.model.name)


def load(model: Path, dtype: Precision) -> VidRDPipeline:
    pipe = VidRDPipeline.from_pretrained(model, torch_dtype=DTYPES[dtype])
    keep_freed_memory(pipe.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def current_settings(reuse: dict[str, Any]) -> dict[str, Any]:
    """Settings of reuse under their current names."""
    return {OLD_REUSE.get(name, name): value for name, value in reuse.items()}


def current_arguments(arguments: list[str]) -> list[str]:
    """Command and sets of a command line under their current names."""
    current, option = [], ""
    for place, argument in enumerate(arguments):
        option = argument if argument.startswith("--") else option
        old = OLD_COMMANDS if place == 0 else OLD_SETS if option == "--sets" else {}
        current.append(old.get(argument, argument))
    return current


Command = (
    Annotated[Shapes, tyro.conf.subcommand("shapes")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Goals, tyro.conf.subcommand("goals")]
    | Annotated[Document, tyro.conf.subcommand("document")]
    | Annotated[Ucf101, tyro.conf.subcommand("ucf101")]
)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = tyro.cli(Command, args=current_arguments(sys.argv[1:] if arguments is None else arguments))
    if isinstance(options, Shapes):
        shapes(options)
    elif isinstance(options, Compare):
        compare(options)
    elif isinstance(options, Goals):
        goals(options)
    elif isinstance(options, Document):
        document(options)
    else:
        ucf101(options)


if __name__ == "__main__":
    main()
