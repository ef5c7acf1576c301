"""The U-Net and the autoencoder: parity with the authors' code, inflation from image models, precisions, layers."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from components import UNET_CONFIG, VAE_CONFIG, Reference, awaken, relative_error, tiny_unet, tiny_vae
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from benchmarks.allocations import tensor_peak
from vidrd_core import VidRDAutoencoderKL, VidRDUNet
from vidrd_core.models import autoencoder, fast_paths, layers
from vidrd_core.models.layers import TransformerBlock

IMAGE_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "norm_num_groups": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
IMAGE_VAE = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 8,
}


def to_frames(clip: torch.Tensor) -> torch.Tensor:
    return clip.transpose(1, 2).flatten(0, 1)


def to_clips(frames: torch.Tensor, num_frames: int = 8) -> torch.Tensor:
    return frames.unflatten(0, (-1, num_frames)).transpose(1, 2)


def inputs(batch: int = 1, frames: int = 3, height: int = 4, width: int = 4) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(batch, 4, frames, height, width, generator=generator)
    text = torch.randn(batch, 5, 32, generator=generator)
    return sample, torch.linspace(900, 1, batch), text


# -- parity with the authors' code -----------------------------------------------------------------------------------


@torch.no_grad()
def test_one_unet_call_equals_the_released_code(reference: Reference) -> None:
    out = reference.unet(reference["in.sample"], reference["in.timestep"], reference["in.encoder_hidden_states"]).sample
    assert relative_error(out, reference["out.sample"]) < 1e-5


@torch.no_grad()
def test_a_unet_call_on_a_single_frame_equals_the_released_code(reference: Reference) -> None:
    first = reference["in.sample"][:, :, :1]
    out = reference.unet(first, reference["in.timestep"], reference["in.encoder_hidden_states"]).sample
    assert relative_error(out, reference["out.sample_single_frame"]) < 1e-5


@torch.no_grad()
def test_decoding_eight_frames_equals_the_released_decoder_told_the_frame_count(reference: Reference) -> None:
    out = reference.vae.decode(to_clips(reference["in.latents_frames"])).sample
    assert relative_error(to_frames(out), reference["out.decoded"]) < 1e-5


@torch.no_grad()
def test_decoding_single_frames_equals_the_released_decoder(reference: Reference) -> None:
    out = reference.vae.decode(to_clips(reference["in.latents_frames"], 1)).sample
    assert relative_error(to_frames(out), reference["out.decoded_single_frame"]) < 1e-5


@torch.no_grad()
def test_encoding_equals_the_released_code(reference: Reference) -> None:
    out = reference.vae.encode(to_clips(reference["in.frames"])).latent_dist.mode()
    assert relative_error(to_frames(out), reference["out.encoded_mode"]) < 1e-5


def test_the_default_configurations_have_the_released_sizes() -> None:
    unet, vae = VidRDUNet(device="meta"), VidRDAutoencoderKL(device="meta")
    assert round(sum(p.numel() for p in unet.parameters()) / 1e5) == 11824
    assert round(sum(p.numel() for n, p in unet.named_parameters() if "temp_" in n) / 1e5) == 3165
    assert round(sum(p.numel() for p in vae.parameters()) / 1e5) == 1001
    assert round(sum(p.numel() for n, p in vae.named_parameters() if "temp_" in n) / 1e5) == 164
    assert all(p.is_meta for p in (*unet.parameters(), *vae.parameters()))


# -- inflation ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**IMAGE_UNET).eval()


@pytest.fixture(scope="module")
def image_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**IMAGE_VAE).eval()


@torch.no_grad()
@pytest.mark.parametrize("source", ["folder", "state dict"])
def test_an_inflated_unet_without_frame_code_gives_the_image_unets_output(
    image_unet: UNet2DConditionModel, tmp_path: Path, source: str
) -> None:
    if source == "folder":
        image_unet.save_pretrained(tmp_path)
        unet = VidRDUNet.from_image_unet(tmp_path, add_temp_embed=False).eval()
    else:
        unet = VidRDUNet.from_image_unet(image_unet.state_dict(), dict(image_unet.config), add_temp_embed=False).eval()
    sample, time, text = inputs(batch=2, frames=1, height=8, width=8)
    expected = image_unet(sample[:, :, 0], time, text).sample
    assert relative_error(unet(sample, time, text).sample[:, :, 0], expected) < 1e-5


@torch.no_grad()
def test_new_layers_of_an_inflated_unet_start_as_the_identity(image_unet: UNet2DConditionModel) -> None:
    config = dict(image_unet.config)
    unet = VidRDUNet.from_image_unet(image_unet.state_dict(), config, add_temp_embed=False).eval()
    bare = VidRDUNet.from_image_unet(image_unet.state_dict(), config, add_temp_embed=False, add_temp_conv=False).eval()
    for module in bare.modules():
        if isinstance(module, TransformerBlock):
            module.temp_attn.over_frames = lambda x, num_frames: torch.zeros_like(x)  # type: ignore[method-assign]
    arguments = inputs(frames=4, height=8, width=8)
    expected = bare(*arguments).sample
    torch.testing.assert_close(unet(*arguments).sample, expected, rtol=0, atol=1e-6)
    awaken(unet)
    assert relative_error(unet(*arguments).sample, expected) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("source", ["folder", "state dict"])
def test_an_inflated_vae_gives_the_image_vaes_output_for_any_number_of_frames(
    image_vae: AutoencoderKL, tmp_path: Path, source: str
) -> None:
    if source == "folder":
        image_vae.save_pretrained(tmp_path)
        vae = VidRDAutoencoderKL.from_image_vae(tmp_path).eval()
    else:
        vae = VidRDAutoencoderKL.from_image_vae(image_vae.state_dict(), dict(image_vae.config)).eval()
    latents = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = image_vae.decode(latents).sample
    assert relative_error(to_frames(vae.decode(to_clips(latents, 3)).sample), expected) < 1e-5
    assert relative_error(vae.decode(latents[:1, :, None]).sample[:, :, 0], expected[:1]) < 1e-5
    encoded = vae.encode(to_clips(expected, 3)).latent_dist.mode()
    assert relative_error(to_frames(encoded), image_vae.encode(expected).latent_dist.mode()) < 1e-5


def test_inflation_refuses_weights_of_another_shape_and_names_them(image_unet: UNet2DConditionModel) -> None:
    weights = dict(image_unet.state_dict())
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :3]
    with pytest.raises(ValueError, match=r"conv_in\.weight.*32, 3, 3, 3.*expected.*32, 4, 3, 3"):
        VidRDUNet.from_image_unet(weights, dict(image_unet.config))


def test_inflation_refuses_missing_and_unknown_weights(image_vae: AutoencoderKL) -> None:
    weights = dict(image_vae.state_dict())
    weights["stranger"] = weights.pop("quant_conv.bias")
    with pytest.raises(ValueError, match=r"(?s)missing.*quant_conv\.bias.*unexpected.*stranger"):
        VidRDAutoencoderKL.from_image_vae(weights, dict(image_vae.config))


def test_inflation_refuses_settings_that_this_architecture_does_not_have(image_unet: UNet2DConditionModel) -> None:
    config = {**image_unet.config, "resnet_time_scale_shift": "scale_shift"}
    with pytest.raises(ValueError, match="scale_shift"):
        VidRDUNet.from_image_unet(image_unet.state_dict(), config)


def test_inflation_from_a_state_dict_asks_for_the_configuration(image_unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="config"):
        VidRDUNet.from_image_unet(image_unet.state_dict())


def test_inflation_from_a_folder_without_weights_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"config\.json"):
        VidRDUNet.from_image_unet(tmp_path)


# -- precision, memory, layers -----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype, tolerance: float) -> None:
    sample, time, text = inputs(height=16, width=16)
    unet, vae = tiny_unet(), tiny_vae()
    exact, pixels = unet(sample, time, text).sample, vae.decode(sample).sample
    unet, vae = unet.to(dtype), vae.to(dtype)
    out = unet(sample.to(dtype), time, text.to(dtype)).sample
    decoded = vae.decode(sample.to(dtype)).sample
    moments = vae.encode(decoded).latent_dist.mode()
    assert out.dtype == decoded.dtype == moments.dtype == dtype
    assert relative_error(out.float(), exact) < tolerance
    assert relative_error(decoded.float(), pixels) < tolerance


@pytest.mark.parametrize("make", [tiny_unet, tiny_vae])
def test_gradient_checkpointing_changes_no_gradient(make: Any) -> None:
    model = make().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        sample, time, text = inputs(batch=2)
        out = model(sample, time, text).sample if make is tiny_unet else model.decode(sample).sample
        out.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, n=name: f"{n}: {text}")


LEAVES = ("Linear", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm")


def recording_operations() -> tuple[Any, set[type]]:
    made = {name: type(f"Host{name}", (getattr(nn, name),), {}) for name in LEAVES}
    return types.SimpleNamespace(**made), set(made.values())


@torch.no_grad()
@pytest.mark.parametrize(("cls", "config"), [(VidRDUNet, UNET_CONFIG), (VidRDAutoencoderKL, VAE_CONFIG)])
def test_every_leaf_layer_comes_from_the_injected_operations(cls: Any, config: dict[str, Any]) -> None:
    operations, classes = recording_operations()
    model = cls(**config, operations=operations).eval()
    leaves = [module for module in model.modules() if list(module.parameters(recurse=False))]
    assert leaves
    assert {type(leaf) for leaf in leaves} <= classes
    plain = cls(**config).eval()
    plain.load_state_dict(model.state_dict())
    sample, time, text = inputs()
    arguments = (sample, time, text) if cls is VidRDUNet else (torch.rand(1, 3, 2, 16, 16),)
    torch.testing.assert_close(model(*arguments).sample, plain(*arguments).sample, rtol=1e-5, atol=1e-6)
    assert "operations" not in model.config


@torch.no_grad()
def test_an_injected_attention_function_replaces_torchs_own() -> None:
    calls = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        calls.append(heads)
        return v.mean(1, keepdim=True).expand(-1, q.shape[1], -1)

    operations = types.SimpleNamespace(**{n: getattr(nn, n) for n in LEAVES}, attention_function=attend)
    VidRDUNet(**UNET_CONFIG, operations=operations).eval()(*inputs())
    assert calls == [2] * (3 * 4)  # three attentions in each of 1 + 1 + 2 transformers


@pytest.mark.parametrize(("cls", "config"), [(VidRDUNet, UNET_CONFIG), (VidRDAutoencoderKL, VAE_CONFIG)])
def test_dtype_and_device_of_the_constructor_reach_every_parameter(cls: Any, config: dict[str, Any]) -> None:
    model = cls(**config, dtype=torch.bfloat16, device="meta")
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "meta")}


# -- shapes ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 9), (1, 1), (3, 2), (16, 17)])
def test_latents_of_any_size_keep_their_shape(size: tuple[int, int]) -> None:
    sample, time, text = inputs(1, 2, *size)
    assert tiny_unet()(sample, time, text).sample.shape == sample.shape
    assert tiny_vae().decode(sample).sample.shape == (1, 3, 2, size[0] * 4, size[1] * 4)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 7, 32])
def test_clips_of_one_to_thirty_two_frames_keep_their_length(frames: int) -> None:
    sample, time, text = inputs(frames=frames)
    assert tiny_unet()(sample, time, text).sample.shape == sample.shape
    assert tiny_vae().decode(sample).sample.shape[2] == frames


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 4])
def test_a_batch_equals_its_single_items(frames: int) -> None:
    unet, vae = tiny_unet(), tiny_vae()
    sample, time, text = inputs(3, frames, 5, 6)
    together, pixels = unet(sample, time, text).sample, vae.decode(sample).sample
    encoded = vae.encode(pixels).latent_dist.mode()
    for b in range(3):
        one = slice(b, b + 1)
        assert relative_error(unet(sample[one], time[one], text[one]).sample, together[one]) < 1e-5
        assert relative_error(vae.decode(sample[one]).sample, pixels[one]) < 1e-5
        assert relative_error(vae.encode(pixels[one]).latent_dist.mode(), encoded[one]) < 1e-5


@torch.no_grad()
def test_the_temporal_layers_let_frames_see_each_other() -> None:
    unet, vae = tiny_unet(), tiny_vae()
    sample, time, text = inputs(frames=6)
    changed = sample.clone()
    changed[:, :, 5] += 1
    assert (unet(sample, time, text).sample - unet(changed, time, text).sample)[:, :, 0].abs().max() > 1e-5
    assert (vae.decode(sample).sample - vae.decode(changed).sample)[:, :, 4].abs().max() > 1e-5


@pytest.mark.parametrize(
    ("shapes", "message"),
    [(((1, 4, 8, 8), (1, 5, 32)), r"\[1, 4, 8, 8\]"), (((2, 4, 1, 8, 8), (1, 5, 32)), "one text per clip"),
     (((1, 4, 1, 8, 8), (1, 5, 16)), r"\[1, 5, 16\]"), (((1, 3, 1, 8, 8), (1, 5, 32)), r"\[B, 4, T, H, W\]")],
)  # fmt: skip
def test_wrong_shapes_are_refused_with_their_numbers(shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_unet()(torch.zeros(shapes[0]), 1, torch.zeros(shapes[1]))


def test_frames_that_the_vae_cannot_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="18x16; both must be multiples of 4"):
        tiny_vae().encode(torch.zeros(1, 3, 1, 16, 18))


# -- saving and adapting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_unet, tiny_vae])
def test_a_saved_model_loads_with_the_same_configuration_and_weights(make: Any, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for key in loaded.config:
        if not key.startswith("_"):
            ours, theirs = model.config[key], loaded.config[key]
            assert list(ours) == list(theirs) if isinstance(ours, tuple) else ours == theirs
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert not list(tmp_path.glob("*.bin"))
    half = type(model).from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert half.dtype == torch.float16


@torch.no_grad()
def test_a_vae_with_the_old_attention_names_loads(tmp_path: Path) -> None:
    vae = tiny_vae()
    old = {}
    for name, weight in vae.state_dict().items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        old[name] = weight
    assert any("proj_attn" in name for name in old)
    other = tiny_vae(seed=9)
    other.load_state_dict(old)
    latents = inputs()[0]
    assert torch.equal(other.decode(latents).sample, vae.decode(latents).sample)


def test_a_lora_adapter_from_peft_changes_the_output_and_trains_alone() -> None:
    from peft import LoraConfig

    unet = tiny_unet()
    arguments = inputs()
    before = unet(*arguments).sample
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "temp_attn.to_out.0"], init_lora_weights="gaussian")
    unet.requires_grad_(False)
    unet.add_adapter(config)
    torch.testing.assert_close(unet(*arguments).sample, before)
    trained = [n for n, p in unet.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in n for n in trained)
    assert any("temp_attn" in n for n in trained)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(parameter)
    assert not torch.allclose(unet(*arguments).sample, before)
    unet.disable_adapters()
    torch.testing.assert_close(unet(*arguments).sample, before)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_decoding_sixteen_frames_of_512x512_in_bf16_takes_no_more_than_four_gib() -> None:
    vae = VidRDAutoencoderKL(dtype=torch.bfloat16, device="meta").eval()
    latents = torch.empty(1, 4, 16, 64, 64, dtype=torch.bfloat16, device="meta")
    assert tensor_peak(lambda: vae.decode(latents)) < 4.1 * 2**30


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2**12, 2**13 + 1])
def test_working_on_some_frames_at_a_time_changes_no_result(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_vae()
    frames = torch.rand(2, 3, 5, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae.encode(frames).latent_dist.mode()
    expected = vae.decode(latents).sample
    monkeypatch.setattr(fast_paths, "CHUNK_ELEMENTS", size)
    assert relative_error(vae.encode(frames).latent_dist.mode(), latents) < 1e-5
    assert relative_error(vae.decode(latents).sample, expected) < 1e-5


def test_inference_gives_what_training_mode_gives() -> None:
    """Without gradients tokens go through convolutions and sums are made in place; the result stays the same."""
    torch.manual_seed(0)
    unet, vae = tiny_unet(), tiny_vae()
    latents, text = torch.randn(2, 4, 4, 16, 24), torch.randn(2, 5, unet.config.cross_attention_dim)
    assert latents[:, 0].numel() > fast_paths.CONVOLUTION_TOKENS
    for work in (lambda: unet(latents, 7, text).sample, lambda: vae.decode(latents).sample):
        given = latents.clone()
        with torch.enable_grad():
            expected = work().detach()
        with torch.no_grad():
            assert relative_error(work(), expected) < 1e-5
        assert torch.equal(latents, given)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_linear_layer_over_many_tokens_gives_what_torchs_own_gives(bias: bool) -> None:
    layer, few, many = nn.Linear(24, 40, bias=bias), torch.randn(3, 5, 24), torch.randn(2, 7, 1024, 24).transpose(0, 1)
    assert torch.equal(fast_paths.linear(layer, few), layer(few))
    assert relative_error(fast_paths.linear(layer, many), layer(many)) < 1e-6
    called = []
    layer.register_forward_hook(lambda *_: called.append(True))
    fast_paths.linear(layer, many)
    assert called  # a layer that more than its weights belongs to is called itself


@torch.no_grad()
def test_a_sum_in_place_keeps_the_wider_type_of_the_two() -> None:
    narrow, wide = torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 2.0**-12)
    assert torch.equal(fast_paths.add(narrow, wide), torch.full((2,), 1 + 2.0**-12))
    own = torch.ones(2)
    assert fast_paths.add(own, wide) is own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 32, 3, 5, 4), (6, 32, 5, 4)])
@torch.no_grad()
def test_a_norm_by_sums_gives_what_torchs_own_gives(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer = nn.GroupNorm(8, 32, dtype=dtype)
    layer.weight.normal_()
    layer.bias.normal_()
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = (3 * torch.randn(shape) + 2).to(dtype, memory_format=layout)
    expected = layer.double()(x.double())
    layer.to(dtype)
    out = fast_paths.norm_by_sums(layer, x)
    assert relative_error(out, expected) < (1e-5 if dtype == torch.float32 else 3e-3)
    assert out.dtype == dtype and out.is_contiguous(memory_format=layout)
    assert fast_paths.norm_by_sums(layer, x, may_overwrite=True).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_large_clips_keep_their_channels_last_through_the_models(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every convolution would convert them; torch may misread the layout of frames one by one."""
    seen = []

    def norm(layer: nn.Module, x: torch.Tensor, may_overwrite: bool = False) -> torch.Tensor:
        out = plain(layer, x, may_overwrite)
        for tensor in (x, out):
            per_frame = tensor.transpose(1, 2).flatten(0, 1) if tensor.ndim == 5 else tensor
            if not fast_paths.is_tiny(tensor):
                seen.append((tuple(tensor.shape), per_frame.is_contiguous(memory_format=torch.channels_last)))
        return out

    plain = fast_paths.group_norm
    for module in (layers, autoencoder):
        monkeypatch.setattr(module, "group_norm", norm)
    vae = tiny_vae().to(dtype)
    vae.decode(torch.randn(1, 4, 3, 40, 40, dtype=dtype))
    vae.encode(torch.randn(1, 3, 3, 128, 128, dtype=dtype))
    assert len(seen) > 20 and [shape for shape, kept in seen if not kept] == []
