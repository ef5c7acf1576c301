"""MODEL, CLIP and VAE are ComfyUI's own types and agree with the models outside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def test_unet_agrees_with_the_one_outside(model: Any, pipe: Any) -> None:
    x, t, context = torch.randn(2, 4, 5, 8, 8), torch.tensor([500, 20]), torch.randn(2, 32, 128)
    with torch.no_grad():
        inside = model.model.diffusion_model(x, t, context=context)
        outside = pipe.unet(x, t, context).sample
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)


def test_clip_text_encode_equals_the_transformers_text_encoder(loaded: Any, pipe: Any) -> None:
    import nodes as stock

    for text in ("the red ball rolls", "a", "", "the blue square slides to the left and then it stops there for long"):
        with torch.inference_mode():
            (conditioning,) = stock.CLIPTextEncode().encode(loaded[1], text)
        outside = pipe.encode_text(text)
        cond, options = conditioning[0]
        cond = cond[:, : outside.shape[1]] if len(text) > 60 else cond
        assert cond.shape == outside.shape or len(text) > 60
        if len(text) <= 60:
            torch.testing.assert_close(cond, outside, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(options["pooled_output"]).all()


def test_stock_vae_nodes_encode_and_decode_video(loaded: Any, pipe: Any) -> None:
    import nodes as stock

    vae = loaded[2]
    images = torch.rand(8, 64, 64, 3)
    with torch.inference_mode():
        latent = stock.VAEEncode().encode(vae, images)[0]
        frames = stock.VAEDecode().decode(vae, latent)[0]
    assert latent["samples"].shape == (1, 4, 8, 8, 8) and frames.shape == (8, 64, 64, 3)
    pixels = images.permute(3, 0, 1, 2)[None] * 2 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mode()
        decoded = pipe.vae.decode(latents).sample
    torch.testing.assert_close(latent["samples"], latents, rtol=1e-3, atol=1e-4)
    expected = ((decoded[0] + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)
    torch.testing.assert_close(frames, expected, rtol=1e-3, atol=1e-4)


def test_tiled_vae_nodes_take_video_and_keep_the_temporal_layers(loaded: Any) -> None:
    import nodes as stock

    vae = loaded[2]
    with torch.inference_mode():
        latent = stock.VAEEncodeTiled().encode(
            vae, torch.rand(10, 128, 96, 3), 64, 16, temporal_size=64, temporal_overlap=8
        )[0]
        assert latent["samples"].shape == (1, 4, 10, 16, 12)
        frames = stock.VAEDecodeTiled().decode(vae, latent, 64, 16, 64, 8)[0]
        moving = stock.VAEDecode().decode(vae, {"samples": latent["samples"]})[0]
        still = torch.cat([vae.decode(latent["samples"][:, :, t : t + 1])[0] for t in range(10)])
    assert frames.shape == moving.shape == (10, 128, 96, 3) and torch.isfinite(frames).all()
    assert not torch.allclose(moving, still, atol=1e-3)


def test_long_videos_decode_in_windows_of_a_clip(loaded: Any) -> None:
    vae = loaded[2]
    sizes: list[int] = []
    hook = vae.first_stage_model.decoder.register_forward_pre_hook(lambda m, args: sizes.append(args[1]))
    try:
        with torch.inference_mode():
            frames = vae.decode(torch.randn(2, 4, 37, 8, 8))
    finally:
        hook.remove()
    assert frames.shape == (2, 37, 64, 64, 3)
    assert max(sizes) == 8 and vae.memory_used_decode((1, 4, 1000, 8, 8), torch.float32) == vae.memory_used_decode(
        (1, 4, 8, 8, 8), torch.float32
    )


def test_the_window_is_the_clip_length_of_the_model_folder(part: Any, make_model: Any, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "long")
    loading = part("nodes.loading")
    assert loading.load_decoder(folder / "vae").first_stage_model.window == 8
    index = folder / "model_index.json"
    values = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**values, "defaults": {"num_frames": 16}}), encoding="utf-8")
    for vae in (loading.load_folder(folder, "fp32")[2], loading.load_decoder(folder / "vae")):
        assert vae.first_stage_model.window == 16
        long, clip = ((1, 4, frames, 8, 8) for frames in (99, 16))
        assert vae.memory_used_decode(long, torch.float32) == vae.memory_used_decode(clip, torch.float32)


def test_patches_of_the_models_blocks_are_told_once(model: Any, first: Any, caplog: pytest.LogCaptureFixture) -> None:
    patched = model.clone()
    patched.set_model_output_block_patch(lambda h, hsp, options: (h, hsp))
    patched.set_model_attn1_replace(lambda *given: given[0], "middle", 0, 0)
    with caplog.at_level("WARNING"):
        torch.testing.assert_close(first(model=patched, steps=2)["samples"], first(steps=2)["samples"])
    told = [record.getMessage() for record in caplog.records if "has no place for" in record.getMessage()]
    assert len(told) == 1 and "attn1, output_block_patch" in told[0]


@pytest.mark.parametrize("name", ["FreeU", "FreeU_V2"])
def test_free_u_does_nothing_and_says_so(
    name: str, model: Any, first: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import comfy_extras.nodes_freelunch as stock

    monkeypatch.setattr(model.model.diffusion_model, "warned_patches", set())
    node = getattr(stock, name)
    values = (1.1, 1.2, 0.9, 0.2)
    patched = node().patch(model, *values)[0] if hasattr(node, "patch") else node.execute(model, *values).args[0]
    with caplog.at_level("WARNING"):
        torch.testing.assert_close(first(model=patched, steps=2)["samples"], first(steps=2)["samples"])
    assert "has no place for the patches output_block_patch, so they do nothing" in caplog.text


def test_on_a_cpu_attention_is_torch_s_unless_the_user_chose_another(
    part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.modules.attention as kernels
    import comfy.model_management as management
    from comfy.cli_args import args

    operations = part("nodes.native.operations")
    monkeypatch.setattr(kernels, "optimized_attention", kernels.attention_sub_quad)
    for flag in ("use_quad_cross_attention", "use_split_cross_attention"):
        monkeypatch.setattr(args, flag, False)
    assert operations.host_kernel() is kernels.attention_pytorch
    q, k, v = torch.randn(3, 2, 24, 32)
    fast = operations.host_attention(q, k, v, 4)
    monkeypatch.setattr(args, "use_quad_cross_attention", True)
    assert operations.host_kernel() is kernels.attention_sub_quad
    torch.testing.assert_close(operations.host_attention(q, k, v, 4), fast, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(args, "use_quad_cross_attention", False)
    monkeypatch.setattr(kernels, "optimized_attention", kernels.attention_split)
    assert operations.host_kernel() is kernels.attention_split
    monkeypatch.setattr(kernels, "optimized_attention", kernels.attention_sub_quad)
    monkeypatch.setattr(management, "cpu_mode", lambda: False)
    assert operations.host_kernel() is kernels.attention_sub_quad


def test_self_attention_guidance_is_refused_in_a_sentence(model: Any, first: Any) -> None:
    import comfy_extras.nodes_sag as stock

    node = stock.SelfAttentionGuidance
    patched = node().patch(model, 0.5, 2.0)[0] if hasattr(node, "patch") else node.execute(model, 0.5, 2.0).args[0]
    with pytest.raises(ValueError, match="Self-Attention Guidance reads an image U-Net's attention, .* remove it"):
        first(model=patched, steps=2)


def test_easy_cache_skips_steps_of_our_u_net(model: Any, first: Any, caplog: pytest.LogCaptureFixture) -> None:
    import comfy_extras.nodes_easycache as stock

    cached = stock.EasyCacheNode.execute(model, 1e6, 0.1, 0.95, False).args[0]
    with caplog.at_level("INFO"):
        made = first(model=cached, steps=10)["samples"]
    assert torch.isfinite(made).all() and not torch.equal(made, first(steps=10)["samples"])
    skipped = [record.getMessage() for record in caplog.records if "EasyCache - skipped" in record.getMessage()]
    assert len(skipped) == 1 and "skipped 0/" not in skipped[0]


@pytest.mark.parametrize(
    ("width", "pixels", "frames"), [(320, 256, 8), (320, 512, 16), (64, 64, 8)], ids=["released", "larger", "narrow"]
)
def test_comfyui_frees_what_a_call_takes_and_not_half_as_much_again(
    width: int, pixels: int, frames: int, part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management
    from peak_memory import counted_call

    native = part("nodes.native.model")
    channels = (width, 2 * width, 4 * width, 4 * width) if width == 320 else (width, 2 * width)
    shape = {"block_out_channels": channels, "cross_attention_dim": 3 * width, "attention_head_dim": width // 64}
    config = native.VidRDConfig(dict(shape))
    config.sampling_settings = native.sampling_settings({})
    config.latent_format = native.VideoLatents()
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, device="meta")
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)  # as on a GPU
    latents = [2, 4, frames, pixels // 8, pixels // 8]
    taken = counted_call(shape, torch.bfloat16, latents)
    assert taken < model.memory_required(latents) < 1.5 * taken


def test_previews_work_on_video_latents(model: Any) -> None:
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    before = args.preview_method
    try:
        for method in (LatentPreviewMethod.Latent2RGB, LatentPreviewMethod.TAESD, LatentPreviewMethod.Auto):
            args.preview_method = method
            latent_preview.prepare_callback(model, 4)(0, torch.randn(1, 4, 8, 8, 8), torch.randn(1, 4, 8, 8, 8), 4)
    finally:
        args.preview_method = before


def test_the_lora_for_few_steps_loads_as_a_model_at_the_timesteps_that_it_knows(nodes: Any, part: Any) -> None:
    import comfy.samplers

    files, pipeline = part("nodes.files"), part("vidrd_core.checkpoints")
    made = nodes["VidRDLoadModel"](model_name=files.BUNDLED_FEW, weight_dtype="fp32")[0]
    plain = nodes["VidRDLoadModel"](model_name=files.BUNDLED, weight_dtype="fp32")[0]
    sampling, known = made.get_model_object("model_sampling"), made.model.defaults
    sigmas = comfy.samplers.calculate_sigmas(sampling, known.scheduler, known.steps)
    assert [round(float(sampling.timestep(sigma))) for sigma in sigmas[:-1]] == [999, 749, 499, 249]
    x, t = torch.randn(1, 4, 8, 8, 8), torch.tensor([749])
    outside = pipeline.load_unet(files.model_folder(files.BUNDLED_FEW), dtype=torch.float32)
    context = torch.randn(1, 16, outside.config["cross_attention_dim"])
    with torch.no_grad():
        inside, without = (one.model.diffusion_model(x, t, context=context) for one in (made, plain))
        wanted = outside(x, t, context).sample
    torch.testing.assert_close(inside, wanted, rtol=1e-3, atol=1e-3)
    assert (inside - without).norm() > 0.01 * without.norm()
