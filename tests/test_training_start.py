"""Starting models, trained parameters, and exports of a run: folders, LoRA files, previews."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from components import make_pipeline, tiny_unet
from data_material import folder_of_videos, image, preparation, video
from safetensors.torch import load_file
from training_components import settings, shard_folder, unet_task

from vidrd_core import VidRDPipeline, VidRDUNet
from vidrd_core.data.engines import EngineSettings
from vidrd_core.data.preparation import prepare
from vidrd_core.data.sources import SourceSettings
from vidrd_core.sampling.seeds import clip_noise, clip_seed
from vidrd_core.train.freezing import PAPER_POLICY, freeze
from vidrd_core.train.loop import train
from vidrd_core.train.lora import LoraSettings, add_lora, save_lora
from vidrd_core.train.previews import PreviewSettings, _noise
from vidrd_core.train.start import start_text, start_unet, start_vae, start_video_vae
from vidrd_core.video import read_video

ROOT = Path(__file__).parent.parent
NO_LORA = LoraSettings()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A VidRD model folder."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline(folder / "tokenizer_only").save_pretrained(folder / "model")
    return folder / "model"


def test_a_video_model_is_fine_tuned_and_an_image_model_is_inflated(tmp_path, model):
    unet = start_unet(None, model, {}, PAPER_POLICY, NO_LORA)
    stored = tiny_unet().state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in unet.state_dict().items())
    spatial = {name: value for name, value in stored.items() if "temp_" not in name}
    flat = VidRDUNet.from_image_unet(spatial, dict(tiny_unet().config), add_temp_conv=True)
    image_model = tmp_path / "image"
    VidRDUNet(**{**flat.config, "add_temp_conv": False}).save_pretrained(image_model / "unet")
    grown = start_unet(image_model, None, {"add_temp_conv": True}, PAPER_POLICY, NO_LORA)
    assert any("temp_convs" in name for name in grown.state_dict())
    with pytest.raises(ValueError, match="choose one"):
        start_unet(image_model, model, {}, PAPER_POLICY, NO_LORA)
    with pytest.raises(ValueError, match=r"unet sets \['sample_size'\], but .*model has its own settings"):
        start_unet(None, model, {"sample_size": 8}, PAPER_POLICY, NO_LORA)


def test_text_encoder_and_vae_of_the_starting_model_are_frozen(tmp_path, model):
    encoder, tokenizer = start_text([None, model])
    assert not any(p.requires_grad for p in encoder.parameters()) and tokenizer.model_max_length == 16
    assert start_vae([None, model]).config["latent_channels"] == 4 and start_vae([None, None]) is None
    assert "temp_convs" in str(list(start_video_vae(model).state_dict()))
    with pytest.raises(ValueError, match="there is no text encoder"):
        start_text([None])


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"match no parameter of VidRDUNet: \['temp_conv'\]"):
        freeze(tiny_unet(), ["*attn1*", "temp_conv"])


def test_a_lora_trains_alone_and_gives_the_same_video_wherever_it_is_loaded(tmp_path):
    task = unet_task(tmp_path, shard_folder(tmp_path / "set", 3))
    add_lora(task.unet, LoraSettings(rank=2, alpha=4.0))
    task.has_lora = True
    before = {n: p.detach().clone() for n, p in task.unet.named_parameters() if ".lora_" not in n}
    train(task, settings(tmp_path / "run", learning_rate=1e-2, ema_decay=0.0))
    assert all(torch.equal(p, before[n]) for n, p in task.unet.named_parameters() if ".lora_" not in n)

    path = tmp_path / "run" / "model" / "lora.safetensors"
    state, names = load_file(path), tiny_unet().state_dict()
    assert {name.rsplit(".", 2)[1] for name in state} == {"lora_A", "lora_B"}
    assert all(f"{n.removeprefix('unet.').rsplit('.', 2)[0]}.weight" in names for n in state)
    assert {k for k in ("temp_convs", "temp_attn", "attn1", "attn2") if any(k in n for n in state)} == {
        "temp_convs",
        "temp_attn",
        "attn1",
        "attn2",
    }
    x, t, text = torch.randn(1, 4, 3, 4, 4), torch.tensor([500]), torch.randn(1, 16, 32)
    with torch.no_grad():
        trained = task.unet.eval()(x, t, text).sample
        plain = tiny_unet()
        untrained = plain(x, t, text).sample
        # As ComfyUI adds it to the weights, at strength 1.
        merged = tiny_unet()
        for name in {n.rsplit(".", 2)[0] for n in state}:
            weight = merged.get_parameter(name.removeprefix("unet.") + ".weight")
            a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
            weight += (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
        by_hand = merged(x, t, text).sample
        # As diffusers loads it.
        plain.load_lora_adapter(str(path), prefix="unet")
        loaded = plain(x, t, text).sample
    assert not torch.allclose(trained, untrained, atol=1e-4)
    assert torch.allclose(by_hand, trained, atol=1e-5) and torch.allclose(loaded, trained, atol=1e-5)


def test_lora_settings_that_reach_no_layer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no linear layer or convolution"):
        add_lora(tiny_unet(), LoraSettings(rank=2, layers=("*nothing*",)))
    unet = tiny_unet()
    add_lora(unet, LoraSettings(rank=2))
    save_lora(unet, tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").stat().st_size > 1000


def test_previews_chain_clips_and_the_held_out_loss_is_logged(tmp_path):
    shards = shard_folder(tmp_path / "set", 3)
    task = unet_task(tmp_path, shards)
    task.held_out_source = unet_task(tmp_path, shards).source.source
    task.previews = PreviewSettings(("A red circle!",), clips=2, frames=4, steps=2, height=32, width=32)
    train(task, settings(tmp_path / "run", samples=4, validate_samples=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "statistics.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines if "held_out/loss" in line] == [2, 4]
    files = sorted((tmp_path / "run" / "previews").glob("*/*.mp4"))
    assert [f.parent.name for f in files] == ["000000002", "000000004"] and files[0].name == "00-A-red-circle.mp4"
    assert len(read_video(files[0]).frames) == 8


def test_gradient_checkpointing_and_micro_batches_change_no_loss(tmp_path):
    shards = shard_folder(tmp_path / "set", 3)
    found = []
    for changes in ({}, {"micro_batch": 1, "gradient_checkpointing": True}):
        run = tmp_path / str(len(found))
        train(unet_task(tmp_path, shards, batch_size=2), settings(run, samples=6, **changes))
        found.append([json.loads(line)["loss"] for line in (run / "statistics.jsonl").read_text().splitlines()])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_an_8_bit_optimiser_that_is_not_installed_is_an_error(tmp_path):
    import importlib.util

    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        train(unet_task(tmp_path, shard_folder(tmp_path / "set", 2)), settings(tmp_path / "run", optimizer="adamw8bit"))


def test_captioned_video_images_and_labelled_video_go_from_raw_files_to_a_trained_model(tmp_path, model):
    raw = tmp_path / "raw"
    folder_of_videos(raw / "video", 2)
    for number in range(2):
        path = image(raw / "images" / f"{number}.png", number)
        path.with_suffix(".txt").write_text(f"picture {number}", encoding="utf-8")
        video(raw / "labelled" / f"clip{number}.mp4", number)
    rows = "path,label\n" + "".join(f"clip{n}.mp4,playing violin\n" for n in range(2))
    (raw / "labelled" / "labels.csv").write_text(rows, encoding="utf-8")
    sources = {
        "video": SourceSettings("folder", raw / "video"),
        "images": SourceSettings("folder", raw / "images"),
        "labelled": SourceSettings("table", raw / "labelled", table=raw / "labelled" / "labels.csv"),
    }
    for name, source in sources.items():
        prepare(preparation(source.root, tmp_path / name, source=source, engine=EngineSettings(workers=1)))
    recommended = {"fps": 6, "guidance_scale": 3.0}  # the defaults of the starting model
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    (model / "model_index.json").write_text(json.dumps({**index, "defaults": recommended}), encoding="utf-8")
    configuration = tmp_path / "run.yaml"
    shards = ", ".join((tmp_path / name).as_posix() for name in sources)
    configuration.write_text(
        f"video_model: {model.as_posix()}\n"
        f"data: {{shards: [{shards}], sizes: [[32, 32]], frames: [4], workers: 1}}\n"
        f"train: {{run: {(tmp_path / 'run').as_posix()}, samples: 6, batch_size: 2}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "training/train_unet.py", "--config", str(configuration)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "M trained" in done.stderr and (tmp_path / "run" / "config.txt").exists()
    pipe = VidRDPipeline.from_pretrained(tmp_path / "run" / "model")
    assert dict(pipe.config["defaults"]) == {**recommended, "num_frames": 4}


def test_previews_start_from_the_noise_that_the_model_is_trained_with():
    shape = (1, 4, 4, 8, 8)
    plain, prior = (_noise(3, alpha, 0, shape) for alpha in (0.0, math.inf))
    assert torch.equal(plain, clip_noise([clip_seed(3, 0)], shape))
    assert torch.equal(prior, plain[:, :, :1].expand(shape))
    assert torch.equal(_noise(3, 2.0, 1, shape), clip_noise([clip_seed(3, 1)], shape))  # FNR and PNS do the rest
