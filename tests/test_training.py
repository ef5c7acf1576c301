"""The training loop, its tasks and the scripts, at tiny size."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from vidrd_core.models.autoencoder import VidRDAutoencoderKL
from vidrd_core.models.unet import VidRDUNet
from vidrd_core.shapes.latents import LatentClips, encode_moving_shapes
from vidrd_core.train.autoencoder import AutoencoderLoss, ImageAutoencoderTask, TemporalDecoderTask
from vidrd_core.train.checkpoint import load_checkpoint
from vidrd_core.train.loop import train
from vidrd_core.train.micro_batches import MicroBatch
from vidrd_core.train.settings import TrainSettings
from vidrd_core.train.sources import LatentSource
from vidrd_core.train.statistics import make_trackers
from vidrd_core.train.text import TextTask, encode_text, make_text_encoder, write_tokenizer
from vidrd_core.train.unet import PAPER_POLICY, UNetObjective, UNetTask, freeze

ROOT = Path(__file__).parent.parent
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 64}
TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}


def tiny_vae(**changes):
    torch.manual_seed(0)
    return VidRDAutoencoderKL(**{**TINY_VAE, **changes})


def settings(run, **changes):
    known = {
        "samples": 8,
        "batch_size": 2,
        "warmup_samples": 4,
        "log_samples": 2,
        "save_samples": 2,
        "tensorboard": False,
    }
    return TrainSettings(run=run, **{**known, **changes})


class Interrupting(ImageAutoencoderTask):
    """Stops like a killed run, in the middle of a step."""

    steps_left = 2

    def loss(self, micro_batch):
        if self.steps_left == 0:
            raise KeyboardInterrupt
        self.steps_left -= 1
        return super().loss(micro_batch)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "train.safetensors"
    encode_moving_shapes(tiny_vae(), path, num_clips=6, num_frames=5, seed=0, split="train")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory, latents):
    torch.manual_seed(0)
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), LatentClips(latents).captions, max_tokens=32)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return tokenizer, make_text_encoder(tokenizer, **size)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    train(ImageAutoencoderTask(uninterrupted := tiny_vae(), AutoencoderLoss()), settings(tmp_path / "uninterrupted"))
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(tiny_vae(), AutoencoderLoss()), settings(tmp_path / "resumed"))
    train(ImageAutoencoderTask(resumed := tiny_vae(), AutoencoderLoss()), settings(tmp_path / "resumed"))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(uninterrupted).items())
    logs = [(tmp_path / name / "statistics.jsonl").read_text().splitlines() for name in ("uninterrupted", "resumed")]
    losses = [[(json.loads(line)["samples"], json.loads(line)["loss"]) for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_the_ema_weights_are_exported(tmp_path):
    train(ImageAutoencoderTask(vae := tiny_vae(), AutoencoderLoss()), settings(tmp_path, ema_decay=0.9))
    exported = weights(VidRDAutoencoderKL.from_pretrained(tmp_path / "model"))
    assert not torch.equal(exported["encoder.conv_in.weight"], weights(vae)["encoder.conv_in.weight"])


def test_a_loss_that_is_not_finite_stops_with_step_items_and_checkpoint(tmp_path):
    class Broken(Interrupting):
        def loss(self, micro_batch):
            outcome = ImageAutoencoderTask.loss(self, micro_batch)
            outcome.loss = outcome.loss * (float("nan") if micro_batch.step == 2 else 1)
            return outcome

    with pytest.raises(
        FloatingPointError, match=r"loss is nan at step 2; the last good checkpoint is .*; the batch"
    ) as e:
        train(Broken(tiny_vae(), AutoencoderLoss()), settings(tmp_path))
    items = ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()).source.batch(MicroBatch(0, 2, 2, 2)).items
    assert len(items) == 2 and all(item in str(e.value) for item in items)
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 2


def test_an_exploding_loss_stops(tmp_path):
    class Exploding(ImageAutoencoderTask):
        def loss(self, micro_batch):
            outcome = super().loss(micro_batch)
            outcome.loss = outcome.loss * (1000 if micro_batch.step == 25 else 1)
            return outcome

    with pytest.raises(FloatingPointError, match="times its running mean at step 25"):
        train(Exploding(tiny_vae(), AutoencoderLoss()), settings(tmp_path, samples=100, save_samples=100))


def test_a_kill_between_the_renames_of_a_checkpoint_loses_nothing(tmp_path):
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path))
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    task = ImageAutoencoderTask(tiny_vae(), AutoencoderLoss())
    train(task, settings(tmp_path, samples=10))
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 5


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path))
    with pytest.raises(ValueError, match="another set of trained parameters"):
        load_checkpoint(tmp_path / "checkpoint", {}, None, None)


def test_the_image_vae_task_learns_and_sets_the_scaling_factor(tmp_path):
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path, samples=60, learning_rate=5e-3))
    lines = [json.loads(line) for line in (tmp_path / "statistics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert VidRDAutoencoderKL.from_pretrained(tmp_path / "model").config.scaling_factor != 0.18215


def test_the_decoder_task_trains_only_the_temporal_layers(tmp_path):
    vae = tiny_vae()
    before = weights(vae)
    train(TemporalDecoderTask(vae, AutoencoderLoss(motion=1.0), num_frames=3), settings(tmp_path))
    changed = {name for name, value in weights(vae).items() if not torch.equal(value, before[name])}
    assert changed and all("temp_convs" in name for name in changed)


def test_the_paper_policy_trains_temporal_and_attention_layers_only(tmp_path, latents, text):
    torch.manual_seed(0)
    unet = VidRDUNet(**TINY_UNET)
    freeze(unet, PAPER_POLICY)
    text[1].requires_grad_(False)
    before = weights(unet)
    objective = UNetObjective(num_frames=4, image_share=0.3, images_per_clip=2)
    source = LatentSource(LatentClips(latents), 4, objective.image_share, objective.images_per_clip)
    train(UNetTask(unet, text[1], text[0], source, objective), settings(tmp_path, samples=16))
    changed = {name for name, value in weights(unet).items() if not torch.equal(value, before[name])}
    assert {part for name in changed for part in ("temp_convs", "temp_attn", "attn1", "attn2") if part in name} == {
        "temp_convs",
        "temp_attn",
        "attn1",
        "attn2",
    }
    assert not any("resnets" in name or ".ff." in name for name in changed)


def test_the_text_encoder_is_trained_only_where_it_needs_gradients(tmp_path, latents, text):
    encoder = text[1].requires_grad_(True)
    before = weights(encoder)
    source = LatentSource(LatentClips(latents), 1)
    task = UNetTask(VidRDUNet(**TINY_UNET), encoder, text[0], source, UNetObjective(num_frames=1))
    train(task, settings(tmp_path))
    assert any(not torch.equal(value, before[name]) for name, value in weights(encoder).items())


def test_latents_are_scaled_captioned_and_cut_from_random_starts(latents):
    clips = LatentClips(latents)
    batch, captions = clips.batch(50, 3, torch.Generator().manual_seed(0))
    assert batch.shape == (50, 4, 3, 8, 8) and len(captions) == 50
    assert set(captions) <= set(clips.captions)
    with pytest.raises(ValueError, match="num_frames is 6; expected at most 5"):
        clips.batch(1, 6, torch.Generator())


def test_every_word_of_the_captions_is_one_token_and_any_other_text_is_spelled(text, latents):
    tokenizer, encoder = text
    caption = LatentClips(latents).captions[0]
    assert len(tokenizer.tokenize(caption)) == len(caption.split())
    assert tokenizer.decode(tokenizer("Zürich, déjà vu!").input_ids, skip_special_tokens=True).startswith("zürich")
    states = encode_text(tokenizer, encoder, [caption, "", caption])
    assert states.shape == (3, 32, 16) and torch.equal(states[0], states[2])


def test_the_text_task_learns_to_tell_captions_apart(tmp_path, text):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = make_text_encoder(text[0], **size)
    train(TextTask(encoder, text[0]), settings(tmp_path, samples=3200, batch_size=32, learning_rate=1e-2))
    lines = [json.loads(line) for line in (tmp_path / "statistics.jsonl").read_text().splitlines()]
    assert lines[-1]["accuracy"] > lines[0]["accuracy"] + 0.3


SCRIPTS = {"demo_vae": "vae", "demo_text": "text", "demo_decoder": "decoder", "decoder": "decoder"}


@pytest.mark.parametrize("name", ["demo_vae", "demo_text", "demo_image", "demo", "demo_decoder", "decoder"])
def test_every_demo_configuration_is_valid(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    script, common = (importlib.import_module(m) for m in (f"train_{SCRIPTS.get(name, 'unet')}", "common"))
    file = ROOT / "training" / "configs" / f"{name}.yaml"
    made, _ = common.parse(script.Configuration, ["--config", str(file), "--train.samples", "123"])
    assert made.train.samples == 123 and made.train.batch_size > 1
    assert "='runs/" not in repr(made) and "='models/" not in repr(made)  # every path is a Path


UNETS = ["demo_motion", "demo_lines", "demo_cleaner_frames", "demo_directions", "demo_settle", "demo_polish"]


@pytest.mark.parametrize("name", [*UNETS, "paper", "lora"])
def test_every_unet_configuration_is_valid(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    script, common = (importlib.import_module(m) for m in ("train_unet", "common"))
    made, _ = common.parse(script.Configuration, ["--config", str(ROOT / "training" / "configs" / f"{name}.yaml")])
    assert bool(made.data.shards) == (made.latents is None)
    assert made.train.micro_batches(processes=1)[0] >= 1


def test_the_bundled_models_configurations_name_its_null_captions(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    common, unet_script, text_script = (importlib.import_module(m) for m in ("common", "train_unet", "train_text"))

    def parse(script, name, *more):
        file = ROOT / "training" / "configs" / f"{name}.yaml"
        return common.parse(script.Configuration, ["--config", str(file), *more])[0]

    for name in ["demo_image", "demo", *UNETS]:
        assert parse(unet_script, name).objective.null_captions == ("", "watermark")
    for name in ["paper", "lora"]:
        assert parse(unet_script, name).objective.null_captions == ("",)
    assert parse(text_script, "demo_text").null_captions == ("", "watermark")


def test_null_captions_are_words_of_the_tokenizer(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    script = importlib.import_module("train_text")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for nulls, is_word in [(("", "watermark"), True), (("",), False)]:
        made = script.make_task(script.Configuration(settings(tmp_path), size, captions=20, null_captions=nulls))
        assert (len(made.tokenizer.tokenize("watermark")) == 1) == is_word


def test_a_dry_run_prints_the_configuration_and_trains_nothing(tmp_path):
    command = [sys.executable, "training/train_text.py", "--config", "training/configs/demo_text.yaml", "--dry-run"]
    command += ["--train.run", str(tmp_path / "run"), "--train.samples", "123"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "samples=123" in done.stderr and not (tmp_path / "run").exists()


def test_an_unknown_setting_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    common, script = (importlib.import_module(m) for m in ("common", "train_text"))
    with pytest.raises(ValueError, match=r"unknown settings \['sample'\]; TrainSettings has .*'samples'"):
        common.build(script.Configuration, {"train": {"sample": 3}})


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 0"):
        settings(tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="clip_norm is 0; expected above 0"):
        settings(tmp_path, clip_norm=0)
    with pytest.raises(ValueError, match="'fp32', 'bf16'"):
        settings(tmp_path, precision="fp8")


def test_an_early_stop_does_not_change_the_learning_rate_schedule(tmp_path):
    whole, early = settings(tmp_path, samples=80), settings(tmp_path, samples=80, stop_samples=40)
    assert early.steps * 2 == whole.steps and early.rate(40) == whole.rate(40)
    with pytest.raises(ValueError, match="stop_samples is 0; expected at least 1"):
        settings(tmp_path, samples=80, stop_samples=0)


def test_a_batch_that_cannot_be_divided_evenly_is_refused(tmp_path):
    assert settings(tmp_path, batch_size=8, micro_batch=2).micro_batches(2) == (2, 2)
    with pytest.raises(ValueError, match="make it a multiple of 6"):
        settings(tmp_path, batch_size=8, micro_batch=3).micro_batches(2)


def test_statistics_go_to_tensorboard_too(tmp_path):
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path, tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "statistics.jsonl").read_text().splitlines()]
    assert [e.step for e in events.Scalars("loss")] == [2, 4, 6, 8]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_statistics_go_to_every_tracker_of_accelerate_that_is_asked_for(tmp_path):
    class Kept(GeneralTracker):
        """A tracker registered with accelerate, as those of its users are."""

        name, requires_logging_directory, main_process_only = "kept", True, True
        runs: ClassVar = []

        def __init__(self, run_name, logging_dir):
            super().__init__()
            self.about, self.lines, self.finished = (run_name, logging_dir), [], False

        tracker = property(lambda self: self.lines)

        def start(self):
            self.runs.append(self)

        def log(self, values, step=None, **kwargs):
            self.lines.append({"samples": step, **values})

        def finish(self):
            self.finished = True

    LOGGER_TYPE_TO_CLASS["kept"] = Kept  # accelerate.tracking.register_tracker_class in newer versions
    try:
        train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path / "run", log_with=("kept",)))
    finally:
        del LOGGER_TYPE_TO_CLASS["kept"]
    (kept,) = Kept.runs
    lines = [json.loads(line) for line in (tmp_path / "run" / "statistics.jsonl").read_text().splitlines()]
    assert kept.lines == lines and kept.finished and kept.about == ("run", tmp_path / "run")


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="log_with names 'wandbb'; expected of aim, clearml, comet_ml"):
        make_trackers(["wandbb"], tmp_path, 0)
    missing = next(name for name in ("swanlab", "dvclive", "clearml") if importlib.util.find_spec(name) is None)
    with pytest.raises(ValueError, match=f"log_with names '{missing}', whose package is not installed"):
        make_trackers([missing], tmp_path, 0)


def test_a_kill_between_two_lines_of_statistics_changes_neither(tmp_path):
    known = {"samples": 12, "log_samples": 6, "save_samples": 4}
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path / "uninterrupted", **known))
    with pytest.raises(KeyboardInterrupt):  # after the checkpoint of 4 samples
        train(Interrupting(tiny_vae(), AutoencoderLoss()), settings(tmp_path / "resumed", **known))
    with (tmp_path / "resumed" / "statistics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"samples": 4, "lo')  # cut short by a full disk
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path / "resumed", **known))
    logs = [(tmp_path / name / "statistics.jsonl").read_text().splitlines() for name in ("uninterrupted", "resumed")]
    figures = [[{**json.loads(line), "samples_per_second": 0} for line in log] for log in logs]
    assert figures[0] == figures[1] and [line["samples"] for line in figures[0]] == [6, 12]


def test_a_model_that_could_not_be_exported_at_the_end_is_exported_when_the_run_resumes(tmp_path):
    class Full(ImageAutoencoderTask):
        def export(self, folder):
            raise OSError("no space left")

    known = settings(tmp_path, samples=4, save_samples=4)
    with pytest.raises(OSError, match="no space left"):
        train(Full(tiny_vae(), AutoencoderLoss()), known)
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), known)
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_run_resumes_with_its_batch_size_only(tmp_path):
    train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path))
    with pytest.raises(ValueError, match="a run with batch_size 2, this is 4"):
        train(ImageAutoencoderTask(tiny_vae(), AutoencoderLoss()), settings(tmp_path, batch_size=4, samples=16))


def test_values_of_another_type_are_refused_by_name(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    common, script = (importlib.import_module(m) for m in ("common", "train_text"))
    made = common.build(script.Configuration, {"train": {"run": "a", "samples": "1e3", "batch_size": 2}})
    assert made.train.samples == 1000 and isinstance(made.train.samples, int)
    wrong = [({"samples": "many"}, "samples is 'many'"), ({"samples": 2.5}, "not a whole number")]
    for change, message in [*wrong, ({"tensorboard": "no"}, "tensorboard is 'no': neither true nor false")]:
        with pytest.raises(ValueError, match=message):
            common.build(script.Configuration, {"train": {"run": "a", "samples": 2, "batch_size": 2, **change}})
    with pytest.raises(ValueError, match=r"settings \['train'\] of Configuration are missing"):
        common.build(script.Configuration, {})
    with pytest.raises(ValueError, match="Configuration is None; expected settings by name"):
        common.build(script.Configuration, None)


def test_old_names_of_settings_are_read_in_configurations_and_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    common, script = (importlib.import_module(m) for m in ("common", "train_unet"))
    old = {"latents": "clips.safetensors", "train": {"run": "a", "samples": 2, "batch_size": 2}}
    old["objective"] = {"anchor_share": 0.5, "anchor_level": 0.1}
    (tmp_path / "old.yaml").write_text(json.dumps(old), encoding="utf-8")  # JSON is YAML
    made, _ = common.parse(script.Configuration, ["--config", str(tmp_path / "old.yaml")])
    assert (made.objective.cleaner_frame_share, made.objective.cleaner_frame_level) == (0.5, 0.1)
    changes = ["--objective.anchor-share", "0.25", "--objective.anchor_level=0.3", "--train.seed", "3"]
    made, _ = common.parse(script.Configuration, ["--config", str(tmp_path / "old.yaml"), *changes])
    assert (made.objective.cleaner_frame_share, made.objective.cleaner_frame_level, made.train.seed) == (0.25, 0.3, 3)
