"""Methods side by side on a tiny model of the size of rendered frames, and the document made of their results."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from components import tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae
from diffusers import DDIMScheduler

from vidrd_core import VidRDPipeline
from vidrd_core.reuse.settings import ReuseSettings
from vidrd_core.shapes.comparison import SETS, SWEEPS, Comparison, canonical, load_results, load_samples, result_path
from vidrd_core.shapes.document import FRAME, replace_part, write_document
from vidrd_core.shapes.methods import find_method
from vidrd_core.shapes.prompted import METHODS, MovingShapesEvaluation, markdown_table

NAMES = ("ground truth", "independent", "FNR", "paper", "forward", "FNR, match", "paper, match", "paper, alpha=0")


def scheduler(**changes: str) -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **changes)


def retrained(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    return model


@pytest.fixture(scope="module")
def shapes_pipe(tmp_path_factory: pytest.TempPathFactory) -> VidRDPipeline:
    """16x16 latents of 64x64 pixels."""
    pipe = VidRDPipeline(
        unet=tiny_unet(sample_size=16),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")),
        scheduler=scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def comparison(pipe: VidRDPipeline, folder: Path, **changes: int) -> Comparison:
    return Comparison(pipe, folder, **{"videos": 3, "clips": 2, "steps": 1, "batch": 2, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(shapes_pipe: VidRDPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for name in NAMES:
        comparison(shapes_pipe, folder).run(name)
    return folder


def test_the_ground_truth_scores_perfectly(results: Path) -> None:
    figures = load_results(results, ["ground truth"])["ground truth"]["summary"]["figures"]
    assert figures["identity at the last clip"] == 1 and figures["background drift at the last clip"] < 0.01


def test_results_are_kept_and_read_back_with_their_frames(results: Path) -> None:
    found = load_results(results, NAMES)
    assert list(found) == list(NAMES)
    assert all(result["summary"]["videos"] == 3 and result["summary"]["clips"] == 2 for result in found.values())
    first, second = load_samples(result_path(results, "ground truth").with_suffix(".png"), 64)
    assert first.shape == second.shape == (16, 64, 64, 3)


def test_an_interrupted_run_makes_the_missing_videos(shapes_pipe: VidRDPipeline, tmp_path: Path) -> None:
    comparison(shapes_pipe, tmp_path, videos=2).run("independent")
    stored = json.loads(result_path(tmp_path, "independent").read_text(encoding="utf-8"))
    stored["records"][0]["caption"] = "kept"
    result_path(tmp_path, "independent").write_text(json.dumps(stored), encoding="utf-8")
    assert comparison(shapes_pipe, tmp_path, videos=3).run("independent")["videos"] == 3
    records = json.loads(result_path(tmp_path, "independent").read_text(encoding="utf-8"))["records"]
    assert records[0]["caption"] == "kept" and len(records) == 3


def test_results_of_other_settings_are_refused(shapes_pipe: VidRDPipeline, results: Path) -> None:
    with pytest.raises(ValueError, match="steps was 1 and is 2"):
        comparison(shapes_pipe, results, steps=2).run("paper")
    with pytest.raises(ValueError, match="has no results"):
        load_results(results, ["FreeNoise"])


def test_results_of_another_model_scheduler_or_definition_are_not_taken_for_these(
    shapes_pipe: VidRDPipeline, results: Path, tmp_path: Path
) -> None:
    def refused(message: str, **parts: object) -> None:
        other = VidRDPipeline(**{**shapes_pipe.components, **parts})
        with pytest.raises(ValueError, match=message):
            comparison(other, results).run("paper")

    refused("holds results of other settings: vae was", vae=retrained(tiny_vae()))
    refused("text_encoder was", text_encoder=retrained(tiny_text_encoder()))
    refused("timestep_spacing was leading and is trailing", scheduler=scheduler(timestep_spacing="trailing"))
    shutil.copytree(results, tmp_path / "results")
    path = result_path(tmp_path / "results", "paper")
    path.write_text(path.read_text(encoding="utf-8").replace("Chain(overlap=4", "Chain(overlap=3"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"method was Chain\(overlap=3.* and is Chain\(overlap=4"):
        comparison(shapes_pipe, tmp_path / "results").run("paper")


def test_corrections_of_the_papers_parts_are_in_the_document_where_they_were_measured(
    results: Path, tmp_path: Path
) -> None:
    write_document(tmp_path / "evaluation.md", results)
    text = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    part = text.partition("## Drift corrections")[2].partition("## Sweeps")[0]
    assert "| FNR | 3 | 16 |" in part and "| FNR, match | 3 | 16 |" in part and "| independent |" not in part


def test_the_moving_shapes_evaluation_keeps_rows_of_the_same_model_and_presets_only(
    shapes_pipe: VidRDPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = importlib.import_module("training.evaluate")

    def measured(name: str) -> set[str]:
        monkeypatch.setattr(evaluate, "load", lambda model, dtype: pipe)
        small = {"prompts": 1, "clips": 1, "steps": 1, "batch": 1}
        evaluate.shapes(evaluate.Shapes(tmp_path, tmp_path / "shapes", methods=(name,), **small))
        return set(json.loads((tmp_path / "shapes.json").read_text(encoding="utf-8"))["methods"])

    pipe = shapes_pipe
    assert measured("independent clips") == {"independent clips"}
    assert measured("paper settings") == {"independent clips", "paper settings"}
    monkeypatch.setitem(evaluate.METHODS, "independent clips", ReuseSettings(overlap_frames=1))
    assert measured("paper settings") == {"paper settings"}
    pipe = VidRDPipeline(**{**shapes_pipe.components, "scheduler": scheduler(timestep_spacing="trailing")})
    pipe.set_progress_bar_config(disable=True)
    assert measured("preset smooth") == {"preset smooth"}


def stored_under_old_names(results: Path, folder: Path) -> Path:
    """The results as they were stored before the ground truth and the settings of methods had their current names."""
    folder.mkdir()
    path = result_path(results, "ground truth")
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored |= {"method": "truth", "definition": stored["definition"].replace("GroundTruth(", "Truth(")}
    (folder / "truth.json").write_text(json.dumps(stored), encoding="utf-8")
    shutil.copy(path.with_suffix(".png"), folder / "truth.png")
    return folder


def test_results_stored_under_old_names_are_read_and_resumed(
    results: Path, shapes_pipe: VidRDPipeline, tmp_path: Path
) -> None:
    folder = stored_under_old_names(results, tmp_path / "results")
    for names in (None, ["truth"], ["ground truth"]):
        found = load_results(folder, names)
        assert list(found) == ["ground truth"] and found["ground truth"]["method"] == "ground truth"
    write_document(tmp_path / "evaluation.md", folder)
    text = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert "| ground truth | 3 | 16 |" in text and "filmstrip_1.png" in text
    assert comparison(shapes_pipe, folder, videos=4).run("truth")["videos"] == 4
    assert {path.name for path in folder.iterdir()} == {"ground-truth.json", "ground-truth.png"}


def test_results_under_the_current_name_replace_those_under_an_old_one(results: Path, tmp_path: Path) -> None:
    folder = stored_under_old_names(results, tmp_path / "results")
    newer = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    newer["method"], newer["captions"] = "ground truth", ["newer"]
    result_path(folder, "ground truth").write_text(json.dumps(newer), encoding="utf-8")
    for names in (None, ["ground truth"]):
        assert load_results(folder, names)["ground truth"]["captions"] == ["newer"]


def test_old_names_of_methods_commands_and_sets_are_read() -> None:
    assert canonical("forward led") == "smooth" and canonical("truth decoded") == "ground truth decoded"
    assert canonical("forward led, lead=0.4, match") == "smooth, cleaner_overlap=0.4, match"
    assert canonical("forward led, lead=0.8") == "smooth"
    assert find_method("forward led, lead=0.4") == find_method("smooth, cleaner_overlap=0.4")
    evaluate = importlib.import_module("training.evaluate")
    old = ["world", "--model", "world"]
    assert evaluate.current_arguments(old) == ["shapes", "--model", "world"]
    old = ["compare", "--sets", "remedies", "remedies of parts", "sweeps", "--results", "remedies"]
    assert evaluate.current_arguments(old)[1:] == [
        "--sets", "corrections", "corrections of parts", "sweeps", "--results", "remedies",
    ]  # fmt: skip


def test_a_document_with_old_part_names_is_updated(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "evaluation.md"
    old = FRAME.replace("generated: corrections", "generated: remedies").replace("end: corrections", "end: remedies")
    document.write_text(old, encoding="utf-8")
    write_document(document, results)
    text = document.read_text(encoding="utf-8")
    assert "generated: remedies" not in text and "| paper, match | 3 | 16 |" in text.partition("generated: corr")[2]


def test_one_method_has_one_name_and_one_file() -> None:
    assert canonical("paper, alpha=4") == "paper" and canonical("paper ,alpha=2") == "paper, alpha=2"
    names = [canonical(name) for names in SETS.values() for name in names]
    files = {result_path(Path(), name) for name in names}
    assert len(files) == len(set(names))
    assert all(
        set(str(file)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") for file in files
    )
    assert all(find_method(name) for name in names) and all(
        "paper" in map(canonical, SWEEPS[k]) for k in ("alpha", "beta")
    )


def test_the_document_is_made_from_the_results_alone(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "docs" / "evaluation.md"
    written = write_document(document, results)
    text = document.read_text(encoding="utf-8")
    assert "| independent | 3 | 16 |" in text and "| paper, match | 3 | 16 |" in text and "| alpha 0 | 3 | 16 |" in text
    assert "| forward | 3 | 12 |" in text and "shorter videos of as many clips" in text
    assert "beyond 2 of 255" in text and "shape flicker at seams" in text and 'negative prompt "watermark"' in text
    assert all(path.is_file() for path in written)
    for picture in ("methods", "profile", "curves", "corrections", "sweep_alpha", "filmstrip_1", "filmstrip_2"):
        assert (
            f"](evaluation/{picture}.png)" in text and (tmp_path / "docs" / "evaluation" / f"{picture}.png").is_file()
        )
    summary = json.loads((tmp_path / "docs" / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) == set(NAMES) and "records" not in summary["paper"]


def test_what_people_wrote_in_the_document_stays(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "evaluation.md"
    document.write_text(FRAME.replace("## The methods\n", "## The methods\n\nOur own words.\n"), encoding="utf-8")
    write_document(document, results)
    once = document.read_text(encoding="utf-8")
    write_document(document, results)
    assert "Our own words." in once and document.read_text(encoding="utf-8") == once


def test_the_model_before_training_with_cleaner_frames_has_its_own_table(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "evaluation.md"
    write_document(document, results)
    without = document.read_text(encoding="utf-8")
    assert write_document(document, before=results) == [document]
    before = document.read_text(encoding="utf-8").partition("<!-- generated: before -->")[2].partition("<!-- end")[0]
    assert "| paper | 3 | 16 |" in before and "3 videos of 2 clips" in before and "motion as prompted" in before
    assert document.read_text(encoding="utf-8").replace(before, "\n") == without


def test_a_document_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="generated: methods"):
        replace_part("# Evaluation\n", "methods", "| a |")


def test_the_table_of_prompted_videos_has_a_column_per_method(shapes_pipe: VidRDPipeline) -> None:
    evaluation = MovingShapesEvaluation(shapes_pipe, prompts=2, clips=2, steps=1, guidance_scale=2.0, batch=2)
    table = markdown_table({name: evaluation.run(settings) for name, settings in METHODS.items()})
    assert table.startswith("| figure | independent clips | paper settings |") and "| videos | 2 | 2 |" in table
