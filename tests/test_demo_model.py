"""The bundled model: what is shipped, and that its videos follow their prompts."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import vidrd_core
from vidrd_core import VidRDPipeline
from vidrd_core.shapes.prompted import METHODS, MovingShapesEvaluation, markdown_table

MODEL = Path(vidrd_core.__file__).parent / "demo_model"


@pytest.fixture(scope="module")
def pipe():
    pipe = VidRDPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small_and_holds_nothing_but_data():
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30 * 2**20  # of it 6 the LoRA for few steps
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_its_weights_are_float16():
    for path in MODEL.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}, path  # noqa: SIM118


def test_its_decoder_has_temporal_layers_that_were_trained(pipe):
    last = [p for name, p in pipe.vae.named_parameters() if "temp_convs" in name and name.endswith("convs.11.weight")]
    assert last and all(bool(weight.any()) for weight in last)


def test_first_clips_show_the_colour_and_the_shape_of_held_out_prompts(pipe):
    evaluation = MovingShapesEvaluation(pipe, prompts=12, clips=1, steps=20, guidance_scale=4.0, batch=12)
    figures = evaluation.run(METHODS["paper settings"])
    assert figures["videos"] == 12
    assert figures["first clip: colour"] >= 0.75
    assert figures["first clip: shape"] >= 0.75


def test_chained_clips_have_smaller_seam_jumps_than_independent_ones(pipe):
    rows = {}
    for name, settings in METHODS.items():
        rows[name] = MovingShapesEvaluation(pipe, prompts=6, clips=3, steps=15, guidance_scale=4.0, batch=6).run(
            settings
        )
    independent, paper, smooth = (row["seam jump (pixels)"] for row in rows.values())
    assert smooth < 0.25 * independent and smooth < paper < independent
    assert "| seam jump (pixels) |" in markdown_table(rows)


def test_the_evaluation_runs_in_reduced_precision_too():
    pipe = VidRDPipeline.from_pretrained(MODEL, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    evaluation = MovingShapesEvaluation(pipe, prompts=2, clips=1, steps=8, guidance_scale=4.0, batch=2)
    assert evaluation.run(METHODS["paper settings"])["first clip: colour"] >= 0.5
