"""A model folder of Wan's kind in ComfyUI's own classes: loaded, encoded, sampled, chained, decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from check_flow_names import TRANSFORMER, VAE, keeps_two_frames, randomised


@pytest.fixture(scope="module")
def wan(base: Path, make_model: Any) -> Any:
    """diffusers' WanPipeline of a tiny random model, saved as a model folder."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import CLIPTextModel, CLIPTokenizer

    text = make_model(base / "models" / "vidrd" / "text_of_wan")
    statistics = {"latents_mean": torch.linspace(-1, 1, 16).tolist(), "latents_std": torch.linspace(1, 2, 16).tolist()}
    with torch.no_grad():
        vae = randomised(AutoencoderKLWan(base_dim=4, num_res_blocks=1, **VAE, **statistics))
        vae.decoder.conv_out.weight.mul_(0.2)
        transformer = randomised(WanTransformer3DModel(**{**TRANSFORMER, "text_dim": 128}))
    pipe = WanPipeline(
        CLIPTokenizer.from_pretrained(text / "tokenizer"), CLIPTextModel.from_pretrained(text / "text_encoder"),
        vae, FlowMatchEulerDiscreteScheduler(shift=3.0), transformer=transformer,
    )  # fmt: skip
    pipe.save_pretrained(base / "models" / "vidrd" / "wan")
    return pipe


@pytest.fixture
def loaded_wan(wan: Any, nodes: dict[str, Any]) -> Any:
    return nodes["VidRDLoadModel"](model_name="wan", weight_dtype="fp32")


def texts(clip: Any) -> list[Any]:
    with torch.inference_mode():
        return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("the red ball rolls", "")]


def test_its_vae_encodes_and_decodes_as_diffusers_does_through_the_stock_nodes(wan: Any, loaded_wan: Any) -> None:
    import nodes as stock

    vae = loaded_wan[2]
    images = torch.rand(9, 32, 32, 3)
    with torch.inference_mode():
        latent = stock.VAEEncode().encode(vae, images)[0]
        theirs = wan.vae.encode(images.permute(3, 0, 1, 2)[None] * 2 - 1).latent_dist.mode()
        decoded = stock.VAEDecode().decode(vae, latent)[0]
        expected = ((wan.vae.decode(theirs).sample[0] + 1) / 2).permute(1, 2, 3, 0)
    assert latent["samples"].shape == (1, 16, 3, 4, 4) and decoded.shape == (9, 32, 32, 3)
    torch.testing.assert_close(latent["samples"], theirs, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        same = 9 if keeps_two_frames() else 5
    torch.testing.assert_close(decoded[:same], expected[:same], rtol=1e-3, atol=1e-3)


def test_it_samples_at_its_shift_with_its_own_statistics(wan: Any, loaded_wan: Any) -> None:
    model = loaded_wan[0]
    inner = model.model
    assert type(inner).__name__ == "WAN21" and float(model.get_model_object("model_sampling").shift) == 3.0
    latents = torch.randn(1, 16, 3, 4, 4)
    mean, std = (torch.tensor(wan.vae.config[name]).view(1, 16, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(inner.process_latent_in(latents), (latents - mean) / std)
    text = torch.randn(1, 7, 128)
    with torch.inference_mode():
        ours = inner.apply_model(latents, torch.tensor([0.7]), c_crossattn=text, transformer_options={})
        velocity = wan.transformer(latents, torch.tensor([700.0]), text).sample
    torch.testing.assert_close(ours, latents - 0.7 * velocity, rtol=1e-3, atol=1e-3)


def test_a_chain_of_it_is_sampled_joined_and_decoded_once(loaded_wan: Any, nodes: dict[str, Any]) -> None:
    import nodes as stock

    model, clip, vae = loaded_wan
    positive, negative = texts(clip)
    given = {"model": model, "positive": positive, "negative": negative, "cfg": 3.0}
    empty = {"samples": torch.zeros(1, 16, 8, 4, 4)}
    (first,) = nodes["VidRDSampleFirstClip"](
        **given, latent=empty, seed=1, steps=3, sampler_name="uni_pc", scheduler="simple"
    )
    reuse = {"preset": "custom", "overlap_frames": 8, "order": "forward", "guidance_beta": 1.0, "stages": "uniform"}
    video, alone, report = nodes["VidRDReuseAndDiffuse"](**given, prior=first, seed=2, **reuse)
    assert "keeps 8 frames (2 latents), adds 20 frames (5 latents)" in report
    assert video["samples"].shape[2] == 13 and alone["samples"].shape[2] == 8
    torch.testing.assert_close(alone["samples"][:, :, 1:3], first["samples"][:, :, 6:], rtol=2e-3, atol=5e-3)
    with torch.inference_mode():
        frames, before = (stock.VAEDecode().decode(vae, one)[0] for one in (video, first))
    assert len(frames) == 29 + 20
    torch.testing.assert_close(frames[:29], before, rtol=1e-3, atol=1e-3)


def test_the_folder_says_how_its_clips_are_chained(base: Path, wan: Any, nodes: dict[str, Any], part: Any) -> None:
    family_of = part("nodes.any_model.families").family_of
    unsaid = family_of(nodes["VidRDLoadModel"](model_name="wan", weight_dtype="fp32")[0])
    assert (unsaid.clip_frames, unsaid.overlap_frames, unsaid.tells_by_default) == (81, 16, False)
    index = base / "models" / "vidrd" / "wan" / "model_index.json"
    before = index.read_text(encoding="utf-8")
    said = {"num_frames": 29, "overlap_frames": 8, "tell_levels": True, "fps": 16}
    index.write_text(json.dumps({**json.loads(before), "defaults": said}), encoding="utf-8")
    try:
        model, clip, _ = nodes["VidRDLoadModel"](model_name="wan", weight_dtype="fp32")
    finally:
        index.write_text(before, encoding="utf-8")
    family = family_of(model)
    assert (family.name, family.clip_frames, family.tells_by_default) == ("Wan", 29, True)
    settings = family.settings()
    assert (settings.overlap_frames, settings.cleaner_overlap) == (2, 1.0)
    positive, negative = texts(clip)
    given = {"model": model, "positive": positive, "negative": negative, "cfg": 3.0}
    empty = {"samples": torch.zeros(1, 16, 8, 4, 4)}
    sampling = {"steps": 2, "sampler_name": "euler", "scheduler": "simple"}
    (first,) = nodes["VidRDSampleFirstClip"](**given, latent=empty, seed=1, **sampling)
    *_, report = nodes["VidRDReuseAndDiffuse"](**given, prior=first, seed=2, preset="auto")
    assert "keeps 8 frames (2 latents), adds 20 frames (5 latents)" in report


def test_its_latents_are_not_those_of_wan(loaded_wan: Any, nodes: dict[str, Any], part: Any) -> None:
    model = loaded_wan[0]
    assert part("nodes.any_model.families").latent_format_of(model) == "FlowLatents"
    assert part("nodes.any_model.families").family_of(model).name == "Wan"
