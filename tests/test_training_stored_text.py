"""Runs on prepared embeddings: they need no text encoder, and train as with one."""

import functools
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from components import make_pipeline, tiny_text_encoder, tiny_tokenizer, tiny_vae
from training_components import shard_folder

from vidrd_core import VidRDPipeline
from vidrd_core.data.embeddings import EmbeddingSettings, embed
from vidrd_core.data.shards import ShardDataset
from vidrd_core.train.loop import train
from vidrd_core.train.micro_batches import MicroBatch, derived_generator
from vidrd_core.train.text import encode_text
from vidrd_core.video import read_video

ROOT = Path(__file__).parent.parent
PROMPTS = {"prompts": ["A red circle!"], "clips": 2, "frames": 4, "steps": 2, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole VidRD model folder."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline(folder / "tokenizer_only").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def textless(model, tmp_path_factory):
    """The same without text encoder and tokenizer."""
    folder = tmp_path_factory.mktemp("textless") / "model"
    shutil.copytree(model, folder)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    return folder


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return shard_folder(tmp_path_factory.mktemp("media") / "set", 3, sizes=((32, 32),))


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return functools.partial(encode_text, tokenizer, tiny_text_encoder().requires_grad_(False))


@pytest.fixture(scope="module")
def stored(media, encode, tmp_path_factory):
    """The data set as latents and text states, with those of the empty caption."""
    folder = tmp_path_factory.mktemp("stored") / "set"
    embed(ShardDataset(media), folder, tiny_vae(), encode, {}, EmbeddingSettings())
    return folder


@pytest.fixture
def made_task(monkeypatch, tmp_path):
    """What training/train_unet.py makes of a YAML configuration: the task and the settings of its training."""
    monkeypatch.syspath_prepend(ROOT / "training")
    script, common = (importlib.import_module(name) for name in ("train_unet", "common"))

    def make(model, shards, data=(), training=(), **configuration):
        values = {
            "video_model": str(model),
            "data": {"shards": [str(shards)], "sizes": [[32, 32]], "frames": [4], "workers": 1, **dict(data)},
            "train": {
                "run": str(tmp_path / "run"), "samples": 4, "batch_size": 2, "tensorboard": False, **dict(training),
            },
            **configuration,
        }  # fmt: skip
        built = common.build(script.Configuration, values)
        return script.make_task(built), built.train

    return make


def test_a_run_on_prepared_embeddings_needs_no_text_encoder(made_task, textless, stored, tmp_path):
    task, training = made_task(textless, stored)
    assert set(task.modules) == {"unet", "vae"}
    train(task, training)
    exported = tmp_path / "run" / "model"
    assert {path.name for path in exported.iterdir()} == {"unet", "vae", "scheduler"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vidrd_core.cli", "convert", str(exported), str(tmp_path / "whole")),
            *("--base", str(make_base(tmp_path))),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    VidRDPipeline.from_pretrained(tmp_path / "whole")


def make_base(tmp_path):
    """A folder with the parts that the exported one lacks."""
    make_pipeline(tmp_path / "base_tokenizer").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_dropped_captions_take_the_stored_states_of_the_null_captions(made_task, textless, media, encode, tmp_path):
    nulls = ("", "watermark", "nothing")
    embed(ShardDataset(media), tmp_path / "set", tiny_vae(), encode, {}, EmbeddingSettings(null_captions=nulls))
    objective = {"caption_dropout": 0.6, "null_captions": list(nulls)}
    task, _ = made_task(textless, tmp_path / "set", objective=objective)
    found = set()
    for step in range(12):
        micro_batch = MicroBatch(0, step, 2, 2)
        batch = task.source.source.batch(micro_batch)
        drawn = [float(torch.rand(1, generator=derived_generator(0, "caption", n))) for n in micro_batch.samples]
        texts = [nulls[int(d / 0.6 * 3)] if d < 0.6 else c for d, c in zip(drawn, batch.captions, strict=True)]
        found |= set(texts)
        assert torch.allclose(task._text(batch, micro_batch), encode(texts), atol=2e-3)
    assert set(nulls) < found


def test_stored_text_trains_as_encoded_text_does(made_task, model, textless, stored, media):
    objective = {"caption_dropout": 0.5, "temp_conv_dropout": 0.0}
    losses = []
    for start, shards in ((textless, stored), (model, media)):
        task, _ = made_task(start, shards, objective=objective)
        with torch.no_grad():
            losses.append([float(task.loss(MicroBatch(0, step, 2, 2)).loss) for step in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_a_null_caption_that_is_not_stored_is_an_error_and_can_be_added_to_a_finished_data_set(
    made_task, textless, media, encode, tmp_path
):
    folder, nulls = tmp_path / "set", ("", "watermark")
    embed(ShardDataset(media), folder, tiny_vae(), encode, {}, EmbeddingSettings())
    shards = {path.name: path.read_bytes() for path in folder.glob("shard-*")}
    assert list(ShardDataset(folder).null_states) == [""]
    objective = {"null_captions": list(nulls)}
    with pytest.raises(
        ValueError, match=r"null captions \['watermark'\], only of \[''\].*--embedding.null-captions \"\" \"watermark\""
    ):
        made_task(textless, folder, objective=objective)
    made_task(textless, folder, objective={**objective, "caption_dropout": 0})  # none is dropped

    embed(ShardDataset(media), folder, tiny_vae(), encode, {}, EmbeddingSettings(null_captions=nulls))
    assert {path.name: path.read_bytes() for path in folder.glob("shard-*")} == shards
    task, _ = made_task(textless, folder, objective=objective)
    assert torch.allclose(task.null_states, encode(list(nulls)), atol=2e-3)


def test_the_exported_folder_is_whole_where_the_starting_model_has_a_text_encoder(made_task, model, stored, tmp_path):
    task, training = made_task(model, stored)
    assert "text_encoder" not in task.modules
    train(task, training)
    pipe = VidRDPipeline.from_pretrained(tmp_path / "run" / "model")
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a red circle", num_clips=1, num_frames=4, height=32, width=32, num_inference_steps=2, output_type="pt")
    assert out.frames.shape == (1, 3, 4, 32, 32)
    with pytest.raises(ValueError, match="lacks a text encoder or a tokenizer folder"):
        made_task(model, stored, text_model=str(model / "unet"))


def test_previews_are_those_of_the_text_encoder_or_say_that_they_need_one(
    made_task, model, textless, stored, media, tmp_path
):
    frames = []
    for shards in (stored, media):
        task, _ = made_task(model, shards, training={"validate_samples": 2}, previews=PROMPTS)
        task.preview(tmp_path / shards.parent.name)
        (file,) = (tmp_path / shards.parent.name).iterdir()
        frames.append(read_video(file).frames)
        assert ("text_encoder" in task.modules) == (shards == media)
    assert torch.equal(*map(torch.as_tensor, frames)) and len(frames[0]) == 8
    with pytest.raises(ValueError, match="previews.prompts are texts, and there is no text encoder.*set text_model"):
        made_task(textless, stored, training={"validate_samples": 2}, previews=PROMPTS)
    made_task(textless, stored, previews=PROMPTS)  # validate_samples is 0, so none are made
    task, _ = made_task(
        textless, stored, training={"validate_samples": 2}, previews=PROMPTS, text_model=str(model)
    )  # read once, at the start
    assert set(task.stored_text.previews) == {"A red circle!", "watermark"} and set(task.modules) == {"unet", "vae"}


def test_previews_without_a_vae_are_warned_of(made_task, textless, stored, tmp_path, caplog):
    shutil.copytree(textless, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")
    made_task(tmp_path / "model", stored, training={"validate_samples": 2}, previews=PROMPTS)
    assert "no VAE to decode with" in caplog.text


def test_text_states_that_do_not_belong_together_are_refused(made_task, textless, model, stored, media, tmp_path):
    other = functools.partial(
        encode_text, tiny_tokenizer(tmp_path / "tokenizer"), tiny_text_encoder().requires_grad_(False)
    )

    def shifted(texts):
        return other(texts) + 1

    def wider(texts):
        return torch.nn.functional.pad(other(texts), (0, 4))

    for name, encoder in (("shifted", shifted), ("wider", wider)):
        embed(ShardDataset(media), tmp_path / name, tiny_vae(), encoder, {}, EmbeddingSettings())
    with pytest.raises(ValueError, match="text states of different text encoders"):
        made_task(textless, stored, data={"shards": [str(stored), str(tmp_path / "shifted")]})
    with pytest.raises(ValueError, match="stored text states are 36 wide, the U-Net reads 32"):
        made_task(textless, tmp_path / "wider")
    # A held-out set of pixels has captions to encode.
    with pytest.raises(ValueError, match="has no tokenizer folder"):
        made_task(textless, stored, data={"held_out": [str(media)]})
    task, _ = made_task(model, stored, data={"held_out": [str(media)]})
    assert "text_encoder" in task.modules


def test_the_script_stores_the_null_captions_that_it_is_given(media, model, tmp_path):
    command = [sys.executable, str(ROOT / "training" / "prepare_embeddings.py"), "--data", str(media)]
    command += ["--model", str(model), "--output", str(tmp_path / "set"), "--embedding.null-captions", "", "watermark"]
    subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found = ShardDataset(tmp_path / "set").null_states
    assert list(found) == ["", "watermark"] and not torch.equal(found[""], found["watermark"])
