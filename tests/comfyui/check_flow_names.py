"""Wan models of diffusers compute the same in ComfyUI's classes, once their weights are renamed."""

import pytest
import torch

TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "text_dim": 16, "freq_dim": 32,
               "ffn_dim": 64}  # fmt: skip
VAE_22 = {"z_dim": 16, "dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "is_residual": True,
          "patch_size": 2, "in_channels": 12, "out_channels": 12, "decoder_base_dim": 8,
          "scale_factor_spatial": 8}  # fmt: skip
VAE = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def randomised(model):
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():  # none is left at one or zero, so a misplaced one would show
        parameter.copy_(torch.randn_like(parameter) * 0.1 + ("norm" in name and not name.endswith("bias")))
    return model.eval()


def keeps_two_frames():
    """Whether the decoder's temporal upsampling sees two earlier frames, as in Wan's release.

    Newer versions of ComfyUI decode some steps frame by frame and keep only one there, so that frames after the fifth
    differ slightly.
    """
    from comfy.ldm.wan.vae import Resample

    torch.manual_seed(0)
    layer = Resample(4, "upsample3d").eval()
    for parameter in layer.parameters():
        parameter.copy_(torch.randn_like(parameter))
    frames, cache = torch.randn(1, 4, 4, 2, 2), [None]
    single = [layer(frames[:, :, t : t + 1], cache, [0]) for t in range(4)]
    cache = [None]
    layer(frames[:, :, :1], cache, [0])
    together = layer(frames[:, :, 1:], cache, [0])
    return close(torch.cat(single[1:], dim=2), together)


def close(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


@pytest.fixture(scope="module")
def transformers():
    import comfy.ops
    from comfy.ldm.wan.model import WanModel
    from diffusers import WanTransformer3DModel

    from vidrd_core.checkpoints.wan_names import wan_transformer_arguments, wan_transformer_weights

    with torch.no_grad():
        theirs = randomised(WanTransformer3DModel(**TRANSFORMER))
    ours = WanModel(**wan_transformer_arguments(theirs.config), operations=comfy.ops.disable_weight_init)
    ours.load_state_dict(wan_transformer_weights(theirs.state_dict()), strict=True)
    return ours.eval(), theirs


@pytest.mark.parametrize("shape", [(2, 16, 5, 8, 8), (1, 16, 1, 4, 12)])
def test_the_transformer_predicts_the_same_velocity(transformers, shape):
    ours, theirs = transformers
    x, text = torch.randn(shape), torch.randn(shape[0], 7, 16)
    times = torch.tensor([700.0, 31.5])[: shape[0]]
    assert close(ours(x, times, text), theirs(x, times, text).sample)


def test_the_transformer_predicts_the_same_with_a_timestep_per_frame(transformers):
    ours, theirs = transformers
    x, text = torch.randn(2, 16, 5, 8, 8), torch.randn(2, 7, 16)
    times = torch.tensor([[10.0, 200.0, 900.0, 900.0, 900.0], [500.0] * 5])
    per_token = times.repeat_interleave(16, dim=1)
    told = theirs(x, per_token, text).sample
    assert close(ours(x, times, text), told)
    assert not close(theirs(x, times[:, -1], text).sample, told)


def test_comfyuis_wan_model_denoises_as_the_velocity_says(transformers):
    """The whole MODEL of ComfyUI, whose sampling is a flow: denoised = x - level * velocity, timestep = 1000 level."""
    import comfy.supported_models

    from vidrd_core.checkpoints.wan_names import wan_transformer_arguments, wan_transformer_weights

    _, theirs = transformers
    wan = {"image_model": "wan2.1", **wan_transformer_arguments(theirs.config)}
    config = comfy.supported_models.WAN21_T2V(wan)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu")).eval()
    model.diffusion_model.load_state_dict(wan_transformer_weights(theirs.state_dict()), strict=True)
    x, text, level = torch.randn(1, 16, 5, 8, 8), torch.randn(1, 7, 16), torch.tensor([0.8])
    denoised = model.apply_model(x, level, c_crossattn=text, transformer_options={})
    assert close(denoised, x - level * theirs(x, level * 1000, text).sample)
    assert list(model.latent_format.latents_mean.flatten()) == pytest.approx(wans_mean())


def wans_mean():
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=4).config.latents_mean


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", ["Wan 2.1", "Wan 2.2"])
def test_the_vae_encodes_and_decodes_the_same(kind, blocks):
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2
    from diffusers import AutoencoderKLWan

    from vidrd_core.checkpoints.wan_names import wan_vae_arguments, wan_vae_weights

    newer = kind == "Wan 2.2"
    config = {"base_dim": 4, **(VAE_22 if newer else VAE)}
    theirs = randomised(AutoencoderKLWan(**{**config, "num_res_blocks": blocks}))
    theirs.decoder.conv_out.weight.mul_(0.1)  # diffusers clamps what it decodes, ComfyUI's class does not
    wan_vae = comfy.ldm.wan.vae2_2.WanVAE if newer else comfy.ldm.wan.vae.WanVAE
    ours = wan_vae(**wan_vae_arguments(theirs.config)).eval()
    ours.load_state_dict(wan_vae_weights(theirs.state_dict()), strict=True)
    frames = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    latents = theirs.encode(frames).latent_dist.mode()
    assert latents.shape == (1, 16, 3, 4, 6)
    assert close(ours.encode(frames), latents)
    decoded = theirs.decode(latents).sample
    assert decoded.shape == frames.shape and float((decoded.abs() == 1).float().mean()) < 0.1
    same = decoded.shape[2] if newer or keeps_two_frames() else 5
    assert close(ours.decode(latents)[:, :, :same].clamp(-1, 1), decoded[:, :, :same])


def test_a_vae_of_another_kind_is_refused():
    from diffusers import AutoencoderKLWan

    from vidrd_core.checkpoints.wan_names import wan_vae_arguments

    wider = AutoencoderKLWan(base_dim=4, decoder_base_dim=8, **VAE)
    with pytest.raises(ValueError, match="widths 4 and 8 and the patch size is None; expected one width"):
        wan_vae_arguments(wider.config)
    with pytest.raises(ValueError, match="patch size is 4; expected 2"):
        wan_vae_arguments({**wider.config, "is_residual": True, "patch_size": 4})


def test_weights_of_another_model_are_refused():
    from vidrd_core.checkpoints.wan_names import wan_transformer_weights, wan_vae_weights

    for convert in (wan_transformer_weights, wan_vae_weights):
        with pytest.raises(ValueError, match="no weights of"):
            convert({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)})
