"""The embedding stage stores what the encoders give, goes on after an interruption, and its script runs on a model."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from components import tiny_text_encoder, tiny_tokenizer, tiny_vae
from data_material import moving_shapes

from vidrd_core.data.embeddings import EmbeddingSettings, embed
from vidrd_core.data.media import encode_image, encode_mp4
from vidrd_core.data.shards import Sample, ShardDataset, ShardWriter
from vidrd_core.train.text import encode_text

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Three videos and an image of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("media")
    writer = ShardWriter(folder, {}, 2)
    for item in range(4):
        kind, frames = ("image", 1) if item == 3 else ("video", 5)
        info = {"caption": f"clip {item}", "kind": kind, "width": 64, "height": 64, "frames": frames, "fps": 8.0}
        pictures = moving_shapes(item, frames)
        members = {"png": encode_image(pictures[0], "png", 9)} if item == 3 else {"mp4": encode_mp4(pictures, 8, 9)}
        writer.add(item, [Sample(f"{item:08d}-000", members, {**info, "source": str(item)})])
    writer.finish()
    return ShardDataset(folder)


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return functools.partial(encode_text, tokenizer, tiny_text_encoder().requires_grad_(False))


def test_latents_and_text_are_those_of_the_encoders(media, encode, tmp_path):
    vae = tiny_vae()
    embed(media, tmp_path / "set", vae, encode, {"folder": "tiny"}, EmbeddingSettings(samples_per_shard=2))
    data = ShardDataset(tmp_path / "set")
    assert [s.key for s in data.samples] == [s.key for s in media.samples]
    for index in (0, 3):
        with torch.no_grad():
            expected = vae.encode(media.read(index)["pixels"][None]).latent_dist.mode()[0] * vae.config.scaling_factor
        read = data.read(index, media.samples[index].frames, 64, 64)
        assert torch.allclose(read["latents"], expected, atol=2e-3) and read["latents"].std() > 0.01
        assert torch.allclose(read["text"], encode([f"clip {index}"])[0], atol=2e-3)
    assert torch.allclose(data.unconditional, encode([""])[0], atol=2e-3)
    assert data.read(0, 2, generator=torch.Generator().manual_seed(0))["latents"].shape[1] == 2
    assert (tmp_path / "set" / "sample_sheet.png").exists()


def test_an_interrupted_stage_goes_on_and_gives_the_same_bytes(media, encode, tmp_path):
    settings = EmbeddingSettings(samples_per_shard=2)
    embed(media, tmp_path / "whole", tiny_vae(), encode, {}, settings)

    calls = []

    def stopping(texts):
        calls.append(texts)
        if len(calls) == 5:  # the empty text, then four captions
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        embed(media, tmp_path / "parts", tiny_vae(), stopping, {}, settings)
    assert (tmp_path / "parts" / "shard-000000.tar").exists() and not (tmp_path / "parts" / "index.json").exists()
    embed(media, tmp_path / "parts", tiny_vae(), encode, {}, settings)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_a_wanted_size_is_kept_and_one_that_the_autoencoder_cannot_take_is_refused(media, tmp_path):
    embed(media, tmp_path / "set", tiny_vae(), None, {}, EmbeddingSettings(32, 48, text=False))
    read = ShardDataset(tmp_path / "set").read(0, None, 32, 48)
    assert read["latents"].shape[-2:] == (8, 12) and read["text"] is None
    assert ShardDataset(tmp_path / "set").unconditional is None
    with pytest.raises(ValueError, match="multiples of 4"):
        embed(media, tmp_path / "odd", tiny_vae(), None, {}, EmbeddingSettings(34, 48, text=False))


def test_a_sample_too_small_for_the_autoencoder_is_dropped(tmp_path):
    writer = ShardWriter(tmp_path / "media", {}, 2)
    for item, side in enumerate((2, 8)):
        info = {"caption": "dot", "kind": "image", "width": side, "height": side, "frames": 1, "fps": 0.0}
        picture = encode_image(moving_shapes(item, 1)[0, :side, :side], "png", 9)
        writer.add(item, [Sample(f"{item}", {"png": picture}, {**info, "source": str(item)})])
    writer.finish()
    settings = EmbeddingSettings(text=False)
    statistics = embed(ShardDataset(tmp_path / "media"), tmp_path / "set", tiny_vae(), None, {}, settings)
    assert statistics["dropped"] == {"too small": 1} and statistics["samples"] == {"image": 1}


def test_the_script_embeds_a_data_set_with_a_model_folder(media, model_folder, tmp_path):
    command = [sys.executable, str(ROOT / "training" / "prepare_embeddings.py"), "--data", str(media.folder)]
    command += ["--model", str(model_folder), "--output", str(tmp_path / "set")]
    subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert ShardDataset(tmp_path / "set").read(0)["text"].shape == (16, 32)
