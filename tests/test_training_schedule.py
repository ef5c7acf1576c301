"""The noise schedule and the prediction type: from the starting model into the loss and into what is exported."""

import dataclasses
import importlib
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from components import make_pipeline, tiny_unet, tiny_vae
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from training_components import settings, shard_folder, unet_task

from vidrd_core import VidRDPipeline, VidRDUNet
from vidrd_core.checkpoints import load_pipeline_parts
from vidrd_core.train.loop import train
from vidrd_core.train.micro_batches import MicroBatch
from vidrd_core.train.objective import draw_noise, draw_times, make_scheduler
from vidrd_core.train.schedule import start_scheduler
from vidrd_core.train.unet import UNetObjective

ROOT = Path(__file__).parent.parent
BETAS = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
V_SCHEDULE = {**BETAS, "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return shard_folder(tmp_path_factory.mktemp("shards") / "set", 3)


@pytest.fixture(scope="module")
def v_model(tmp_path_factory):
    """A VidRD model folder of v-prediction with betas of its own, whose sampler is Euler's."""
    folder = tmp_path_factory.mktemp("v")
    pipe = make_pipeline(folder / "tokenizer_only")
    pipe.register_modules(scheduler=EulerDiscreteScheduler(**V_SCHEDULE, steps_offset=1))
    pipe.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    return importlib.import_module("train_unet"), importlib.import_module("common")


def made_task(script, tmp_path, shards, **configuration):
    """The task that training/train_unet.py makes of a YAML configuration."""
    train_unet, common = script
    values = {
        "data": {"shards": [str(shards)], "sizes": [[32, 32]], "frames": [4], "workers": 1},
        "train": {"run": str(tmp_path / "run"), "samples": 4, "batch_size": 2, "tensorboard": False},
        **configuration,
    }
    built = common.build(train_unet.Configuration, values)
    return train_unet.make_task(built), built.train


def schedule(folder):
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))


def settings_of(scheduler):
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def image_model(folder, video_model, scheduler):
    """An image model folder with the other parts of ``video_model``."""
    shutil.copytree(video_model, folder)
    for part in ("unet", "scheduler"):
        shutil.rmtree(folder / part)
    spatial = {name: value for name, value in tiny_unet().state_dict().items() if "temp_" not in name}
    flat = VidRDUNet.from_image_unet(spatial, dict(tiny_unet().config), add_temp_conv=False)
    kept = {n: v for n, v in flat.state_dict().items() if "temp_" not in n}
    flat.save_config(folder / "unet")
    save_file(kept, folder / "unet" / "diffusion_pytorch_model.safetensors")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def test_a_model_of_v_prediction_is_fine_tuned_and_exported_as_one(script, tmp_path, shards, v_model):
    task, training = made_task(script, tmp_path, shards, video_model=str(v_model))
    micro_batch = MicroBatch(0, 0, 2, 2)
    with torch.no_grad():
        loss = float(task.loss(micro_batch).loss)
        batch = task.source.source.batch(micro_batch)
        latents, text = task._latents(batch), task._text(batch, micro_batch)
        noise = draw_noise(UNetObjective(), micro_batch, latents.shape)
        times = draw_times(UNetObjective(), micro_batch, 2, 1000)
        betas = torch.linspace(0.001**0.5, 0.02**0.5, 1000) ** 2
        signal = (1 - betas).cumprod(0)[times][:, None, None, None, None]
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        expected = (task.unet(noisy, times, text).sample - velocity).square().mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    train(task, training)
    assert V_SCHEDULE.items() <= schedule(tmp_path / "run" / "model").items()
    pipe = VidRDPipeline.from_pretrained(tmp_path / "run" / "model")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler" and pipe.scheduler.config.steps_offset == 1


def test_an_export_without_a_vae_holds_its_noise_schedule_too(tmp_path, script, shards, v_model):
    without = tmp_path / "no_vae"
    shutil.copytree(v_model, without)
    shutil.rmtree(without / "vae")
    task = made_task(script, tmp_path, shards, video_model=str(without))[0]
    assert task.vae is None
    task.export(tmp_path / "model")
    assert V_SCHEDULE.items() <= schedule(tmp_path / "model").items()
    parts = load_pipeline_parts(tmp_path / "model", vae=v_model / "vae")
    assert V_SCHEDULE.items() <= dict(parts["scheduler"].config).items()
    assert settings_of(start_scheduler(None, tmp_path / "model")) == settings_of(task.scheduler)


def test_an_image_model_of_v_prediction_is_inflated_as_one(tmp_path, script, shards, v_model):
    # As Stable Diffusion 2.1 of 768 pixels comes: PNDM with v-prediction.
    model = image_model(tmp_path / "image", v_model, PNDMScheduler(**V_SCHEDULE, steps_offset=1, skip_prk_steps=True))
    task = made_task(script, tmp_path, shards, image_model=str(model), unet={"add_temp_conv": True})[0]
    assert task.objective.prediction == "v_prediction"
    task.export(tmp_path / "model")
    assert {**V_SCHEDULE, "clip_sample": False}.items() <= schedule(tmp_path / "model").items()


def test_a_lora_stores_its_models_prediction_type_and_refuses_another(tmp_path, script, shards, v_model):
    task, training = made_task(script, tmp_path, shards, video_model=str(v_model), lora={"rank": 2})
    train(task, training)
    with safe_open(tmp_path / "run" / "model" / "lora.safetensors", "pt") as file:
        assert file.metadata()["prediction_type"] == "v_prediction"
    with pytest.raises(ValueError, match=r"v_prediction -> epsilon.*a LoRA is used with the model as it is"):
        made_task(
            script, tmp_path, shards, video_model=str(v_model), lora={"rank": 2}, objective={"prediction": "epsilon"}
        )


def test_a_configuration_that_overrides_the_schedule_is_followed_logged_and_exported(
    tmp_path, script, shards, v_model, caplog
):
    task = made_task(script, tmp_path, shards, video_model=str(v_model), objective={"prediction": "epsilon"})[0]
    assert "changes the noise schedule" in caplog.text and "v_prediction -> epsilon" in caplog.text
    task.export(tmp_path / "model")
    assert schedule(tmp_path / "model")["prediction_type"] == "epsilon" and task.objective.prediction == "epsilon"
    other = tmp_path / "other"
    PNDMScheduler(**{**V_SCHEDULE, "beta_end": 0.015}).save_pretrained(other)
    caplog.clear()
    task = made_task(script, tmp_path, shards, video_model=str(v_model), scheduler=str(other))[0]
    assert "beta_end" in caplog.text and task.scheduler.config.beta_end == 0.015
    with pytest.raises(ValueError, match="holds no scheduler_config.json"):
        start_scheduler(v_model / "unet" / "scheduler", v_model)
    caplog.clear()
    made_task(script, tmp_path, shards, video_model=str(v_model), objective={"prediction": "v_prediction"})
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "noise schedule" in r.message]


def test_where_a_schedule_is_looked_for(tmp_path, v_model, caplog):
    assert start_scheduler(None, v_model / "unet").config.prediction_type == "v_prediction"  # of the folder around it
    assert start_scheduler(None, None, "v_prediction").config.prediction_type == "v_prediction"  # from scratch
    assert settings_of(start_scheduler(None, None)) == settings_of(make_scheduler())

    weights = {f"unet.{name}": value for name, value in tiny_unet().state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "ModelT2V.pth")
    assert start_scheduler(None, tmp_path / "ModelT2V.pth").config.prediction_type == "epsilon"
    assert caplog.text == ""
    save_file(weights, tmp_path / "told.safetensors", {"modelspec.prediction_type": "v"})
    assert start_scheduler(None, tmp_path / "told.safetensors").config.prediction_type == "v_prediction"
    assert caplog.text == ""
    save_file(weights, tmp_path / "silent.safetensors")
    assert start_scheduler(None, tmp_path / "silent.safetensors").config.prediction_type == "epsilon"
    assert "silent.safetensors does not say with which noise schedule it was trained" in caplog.text


def test_schedules_that_cannot_be_trained_with_are_refused(tmp_path):
    for name, config, message in (
        ("sample", {"prediction_type": "sample"}, "prediction_type 'sample'; expected one of epsilon, v_prediction"),
        ("zero", {"rescale_betas_zero_snr": True}, "ends in pure noise .* set objective.prediction to v_prediction"),
    ):
        EulerDiscreteScheduler(**config).save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            start_scheduler(tmp_path / name, None)
    assert float(start_scheduler(tmp_path / "zero", None, "v_prediction").alphas_cumprod[-1]) < 1e-6
    with pytest.raises(ValueError, match="the objective is epsilon, the scheduler v_prediction"):
        shards = shard_folder(tmp_path / "set", 2)
        made = unet_task(tmp_path, shards)
        type(made)(
            made.unet, made.text_encoder, made.tokenizer, made.source.source,
            dataclasses.replace(made.objective, prediction="epsilon"), scheduler=make_scheduler("v_prediction"),
        )  # fmt: skip


def test_the_bundled_folder_samples_as_its_run_was_trained(tmp_path, monkeypatch, shards):
    monkeypatch.syspath_prepend(ROOT / "training")
    bundle = importlib.import_module("bundle")
    task = unet_task(tmp_path, shards, prediction="v_prediction")
    train(task, settings(tmp_path / "video", samples=2))
    tiny_vae().save_pretrained(tmp_path / "decoder" / "model")
    bundle.main(bundle.Arguments(tmp_path / "video", tmp_path / "decoder", tmp_path / "out"))
    assert schedule(tmp_path / "out")["prediction_type"] == "v_prediction"


def test_captions_are_measured_by_what_the_model_predicts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    measure_captions = importlib.import_module("measure_captions")
    scheduler = make_scheduler("v_prediction")
    latents, text = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 16, 32)
    unet = tiny_unet()
    noise, times = MicroBatch(5, 0, 2, 2).normal(4, 3, 4, 4, purpose="noise"), torch.tensor([700, 700])
    with torch.no_grad():
        found = measure_captions.errors(unet, scheduler, latents, text, 700, False, 5)
        predicted = unet(scheduler.add_noise(latents, noise, times), times, text).sample
    assert found == pytest.approx(float((predicted - scheduler.get_velocity(latents, noise, times)).square().mean()))
