"""Tiny random video MODELs of ComfyUI's own classes, with conditionings and VAEs: every family in a second or so.

A family's entry holds what its published configuration says, with few layers and channels; the class, the latents, the
noise and the conditioning are ComfyUI's. Families that this ComfyUI does not have yet are left out of ``FAMILIES``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.latent_formats
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
TEXT, TOKENS = 32, 8  # width and length of the text states


@dataclass(frozen=True)
class Family:
    """One family of video models.

    Args:
        config: its class in ``comfy.supported_models``.
        unet: what ComfyUI would have read from its weights.
        shape: of a clip on the LATENT wire: ``[B, C, T, h, w]``, or ``[T, C, h, w]`` where frames lie in the batch.
        frames: r, pixel frames per latent after the first.
        told: "frame" or "token" where the network takes a timestep for each, "" where it takes one.
        image: "concat" where an image (and known frames) come as further channels, "" where they do not.
        text: width of the text states.
        audio: shape of the audio latents that are sampled along.
    """

    config: str
    unet: Mapping[str, Any]
    shape: tuple[int, ...]
    frames: int
    told: str = ""
    image: str = ""
    text: int = TEXT
    audio: tuple[int, ...] = ()
    made: Callable[[Any, Tensor | None], Any] | None = field(default=None, compare=False)

    @property
    def time(self) -> int:
        """The dimension of the frames."""
        return 2 if len(self.shape) == 5 else 0

    @property
    def length(self) -> int:
        """N, latent frames of a clip."""
        return self.shape[self.time]

    @property
    def lead_in(self) -> int:
        return 1 if self.frames > 1 else 0

    def with_length(self, length: int) -> tuple[int, ...]:
        return (*self.shape[: self.time], length, *self.shape[self.time + 1 :])

    def pixel_frames(self, latents: int) -> int:
        """Pixel frames of so many latents that follow others."""
        return self.frames * latents


WAN = dict(image_model="wan2.1", dim=96, ffn_dim=192, num_heads=2, num_layers=2, text_dim=TEXT, text_len=TOKENS,
           freq_dim=64, patch_size=(1, 2, 2), qk_norm=True, cross_attn_norm=True)  # fmt: skip
HUNYUAN = dict(image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=24,
               axes_dim=[8, 12, 12], meanflow=False, context_in_dim=TEXT, hidden_size=64, mlp_ratio=4.0, num_heads=2,
               depth=1, depth_single_blocks=1, theta=256, qkv_bias=True, byt5=False, guidance_embed=True)  # fmt: skip
COSMOS = dict(max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2,
              patch_temporal=1, model_channels=128, num_blocks=1, num_heads=2, crossattn_emb_channels=TEXT,
              pos_emb_cls="rope3d", pos_emb_learnable=True, pos_emb_interpolation="crop", use_adaln_lora=True,
              adaln_lora_dim=16)  # fmt: skip
COSMOS_1 = dict(COSMOS, image_model="cosmos", block_config="FA-CA-MLP", block_x_format="THWBD", affline_emb_norm=True,
                extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable",
                rope_h_extrapolation_ratio=1.0, rope_w_extrapolation_ratio=1.0,
                rope_t_extrapolation_ratio=2.0)  # fmt: skip
PREDICT_2 = dict(COSMOS, image_model="cosmos_predict2", min_fps=1, max_fps=30, extra_per_block_abs_pos_emb=False,
                 rope_enable_fps_modulation=False)  # fmt: skip
# Mochi's timestep embedding has 4 times its hidden size times its ratio of MLP to hidden size, and must be so wide.
MOCHI = dict(image_model="mochi_preview", depth=1, patch_size=2, num_heads=2, hidden_size_x=48, hidden_size_y=32,
             mlp_ratio_x=256.0, mlp_ratio_y=4.0, learn_sigma=False, in_channels=12, qk_norm=True, qkv_bias=False,
             out_bias=True, attn_drop=0.0, patch_embed_bias=True, posenc_preserve_area=True, timestep_mlp_bias=True,
             attend_to_padding=False, timestep_scale=1000.0, use_t5=True, t5_feat_dim=TEXT, t5_token_length=TOKENS,
             rope_theta=10000.0)  # fmt: skip
LTXV = dict(image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2,
            caption_channels=TEXT, num_layers=2)  # fmt: skip
LTX_2 = dict(LTXV, image_model="ltxav", audio_cross_attention_dim=64, audio_attention_head_dim=32,
             audio_num_attention_heads=2, connector_attention_head_dim=32, connector_num_attention_heads=1)  # fmt: skip
UNET = dict(image_size=32, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 1],
            transformer_depth=[1, 1], transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1],
            context_dim=TEXT, use_spatial_transformer=True, legacy=False, num_heads=2)  # fmt: skip
SVD = dict(UNET, model_channels=64, transformer_depth=[1, 0], transformer_depth_output=[1, 1, 0, 0], in_channels=8,
           num_classes="sequential", adm_in_channels=768, use_linear_in_transformer=True, use_temporal_attention=True,
           use_temporal_resblock=True, merge_strategy="learned_with_images",
           video_kernel_size=[3, 1, 1], extra_ff_mix_layer=True)  # fmt: skip
SD15 = dict(UNET, in_channels=4, use_linear_in_transformer=False, adm_in_channels=None, use_temporal_attention=False)

WAN_SHAPE, BATCH_SHAPE = (1, 16, 5, 8, 8), (6, 4, 4, 4)
ALL = {
    "Wan 2.1 t2v": Family("WAN21_T2V", dict(WAN, model_type="t2v", in_dim=16, out_dim=16), WAN_SHAPE, 4),
    "Wan 2.1 i2v": Family(
        "WAN21_I2V", dict(WAN, model_type="i2v", in_dim=36, out_dim=16), WAN_SHAPE, 4, image="concat"
    ),
    "Wan 2.1 VACE": Family(
        "WAN21_Vace",
        dict(WAN, model_type="vace", in_dim=16, out_dim=16, vace_layers=1, vace_in_dim=96),
        WAN_SHAPE,
        4,
    ),
    "Wan 2.2 14B i2v": Family(
        "WAN21_T2V", dict(WAN, model_type="t2v", in_dim=36, out_dim=16), WAN_SHAPE, 4, image="concat"
    ),
    "Wan 2.2 5B": Family(
        "WAN22_T2V", dict(WAN, model_type="t2v", in_dim=48, out_dim=48), (1, 48, 5, 8, 8), 4, told="frame"
    ),
    "LTXV": Family("LTXV", LTXV, (1, 128, 5, 4, 4), 8, told="token"),
    "LTX-2": Family("LTXAV", LTX_2, (1, 128, 5, 4, 4), 8, told="token", text=2 * TEXT, audio=(1, 8, 33, 16)),
    "HunyuanVideo": Family("HunyuanVideo", HUNYUAN, WAN_SHAPE, 4),
    "HunyuanVideo I2V": Family("HunyuanVideoI2V", dict(HUNYUAN, in_channels=33), WAN_SHAPE, 4, image="concat"),
    "HunyuanVideo 1.5": Family(
        "HunyuanVideo15",
        dict(
            HUNYUAN,
            in_channels=65,
            out_channels=32,
            patch_size=[1, 1, 1],
            vision_in_dim=1152,
            vec_in_dim=None,
            use_cond_type_embedding=True,
            guidance_embed=False,
        ),
        (1, 32, 5, 4, 4),
        4,
        image="concat",
    ),  # fmt: skip
    "Mochi": Family("GenmoMochi", MOCHI, (1, 12, 5, 4, 4), 6),
    "Cosmos 1": Family("CosmosT2V", COSMOS_1, WAN_SHAPE, 8),
    "Cosmos Predict2": Family("CosmosT2IPredict2", PREDICT_2, WAN_SHAPE, 4, told="frame"),
    "SVD": Family("SVD_img2vid", SVD, BATCH_SHAPE, 1, image="concat"),
    "AnimateDiff": Family("SD15", SD15, BATCH_SHAPE, 1),
}
FAMILIES = {name: family for name, family in ALL.items() if hasattr(comfy.supported_models, family.config)}


def hunyuan_parameters() -> set[str]:
    from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

    return set(HunyuanVideoParams.__dataclass_fields__)


def unet_config(family: Family) -> dict[str, Any]:
    """Newer versions need to be told what their HunyuanVideo does not have."""
    given = dict(family.unet)
    if given.get("image_model") == "hunyuan_video":
        lacking: dict[str, Any] = {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
        known = {"image_model", *hunyuan_parameters()}
        given = {name: value for name, value in {**lacking, **given}.items() if name in known}
    return given


def fill(module: nn.Module, seed: int, std: float) -> None:
    """Random weights in place of the uninitialised memory that ComfyUI's operations leave; norms scale by 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scales = parameter.ndim == 1 and (name.endswith("weight") or "scale" in name)
            if scales or name.endswith("gamma"):
                parameter.fill_(1)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def tiny(name: str, seed: int = 0, smoothness: float = 1.0) -> Any:
    """The MODEL of a family, always the same for one seed.

    The weights are large enough that frames depend on each other, small enough that samples stay of the data's size;
    divided by ``smoothness``.
    """
    family = ALL[name]
    std = (0.1 if family.time else 0.06) / smoothness
    config = getattr(comfy.supported_models, family.config)(unet_config(family))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=CPU).eval()
    fill(model.diffusion_model, seed, std)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    return with_motion_module(patcher, seed) if name == "AnimateDiff" else patcher


class MotionModule(nn.Module):
    """Attention along the frames of a U-Net's features ``[B * T, C, h, w]``, the frames in the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.frames = 1

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(0, (-1, self.frames)).permute(0, 3, 4, 1, 2)  # B h w T C
        mixed = nn.functional.scaled_dot_product_attention(*self.qkv(rows).chunk(3, dim=-1))
        return x + mixed.permute(0, 3, 4, 1, 2).flatten(0, 1)


def with_motion_module(patcher: Any, seed: int) -> Any:
    """An image MODEL as AnimateDiff-Evolved hands it on, with a motion module that is in the U-Net while it samples."""
    motion = MotionModule(32)
    fill(motion, seed + 1, 0.15)

    def inject(used: Any) -> None:
        used.model.diffusion_model.input_blocks[1].append(motion)

    def eject(used: Any) -> None:
        block = used.model.diffusion_model.input_blocks[1]
        if block[-1] is motion:
            del block[-1]

    def count_frames(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        motion.frames = noise.shape[0]
        return executor(noise, *args, **kwargs)

    extension = comfy.patcher_extension
    made = patcher.clone()
    module = comfy.model_patcher.ModelPatcher(motion, load_device=CPU, offload_device=CPU)
    made.set_additional_models("ADE", [module])
    made.set_injections("ADE", [extension.PatcherInjection(inject=inject, eject=eject)])
    made.add_wrapper_with_key(extension.WrappersMP.OUTER_SAMPLE, "ADE", count_frames)
    return made


def conditioning(name: str, seed: int = 1, **more: Any) -> list[list[Any]]:
    """CONDITIONING with random text states, and what else the family cannot do without."""
    family, generator = ALL[name], torch.Generator().manual_seed(seed)
    tokens = 1 if name == "SVD" else TOKENS
    states = torch.randn((1, tokens, family.text), generator=generator)
    extra: dict[str, Any] = {"pooled_output": torch.randn((1, 24), generator=generator)}
    if name in ("Mochi", "LTXV", "LTX-2"):
        extra["attention_mask"] = torch.ones((1, tokens), dtype=torch.long)
    return [[states, {**extra, **more}]]


def image_conditioning(name: str, seed: int = 5) -> dict[str, Tensor]:
    """What an image-to-video node adds: latents of the image and of grey frames, and the mask of what is not given."""
    family, generator = ALL[name], torch.Generator().manual_seed(seed)
    image, grey = (torch.randn(family.with_length(1), generator=generator) for _ in range(2))
    if family.time == 0:
        return {"concat_latent_image": image}
    if name == "HunyuanVideo I2V":  # its node encodes the image alone
        latents = image
    else:
        latents = torch.cat([image] + [grey] * (family.length - 1), dim=2)
    mask = torch.ones((1, 1, *family.shape[2:]))
    mask[:, :, :1] = 0
    return {"concat_latent_image": latents, "concat_mask": mask}


def empty_latent(name: str, length: int = 0, batch: int = 1) -> dict[str, Any]:
    """LATENT of the family's own empty-latent node."""
    family = ALL[name]
    shape = family.with_length(length or family.length)
    samples = torch.zeros((batch, *shape[1:]) if family.time else shape)
    if name == "Wan 2.2 5B":  # Wan22ImageToVideoLatent, whose zeros are those of the network
        samples = comfy.latent_formats.Wan22().process_out(samples)
    if family.audio:
        from comfy.nested_tensor import NestedTensor

        return {"samples": NestedTensor((samples, torch.zeros(family.audio)))}
    return {"samples": samples}


@functools.lru_cache(maxsize=1)
def plain_vae() -> Any:
    """A VAE of Stable Diffusion's class, 8 pixels per latent."""
    ddconfig = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
                "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    from comfy.ldm.models.autoencoder import AutoencoderKL

    weights = AutoencoderKL(ddconfig=ddconfig, embed_dim=4)
    fill(weights, 0, 0.1)
    config = {"params": {"ddconfig": ddconfig, "embed_dim": 4}}
    return comfy.sd.VAE(sd=weights.state_dict(), config=config, dtype=torch.float32)


def video_vae(model: nn.Module, channels: int, frames: int, pixels: int, seed: int = 0, std: float = 0.1) -> Any:
    """A VAE object of ComfyUI around a video VAE of one of its classes.

    Args:
        frames: pixel frames per latent after the first; ``pixels`` per latent along height and width.
    """
    import copy

    fill(model, seed, std)
    vae = copy.copy(plain_vae())
    vae.first_stage_model = model.eval()
    vae.patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    vae.latent_dim, vae.latent_channels = 3, channels
    vae.upscale_ratio = (lambda latents: max(0, latents * frames - frames + 1), pixels, pixels)
    vae.downscale_ratio = (lambda images: max(0, (images + frames - 1) // frames), pixels, pixels)
    vae.upscale_index_formula = vae.downscale_index_formula = (frames, pixels, pixels)
    return vae


WAN_VAE = dict(dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[],
               temperal_downsample=[False, True, True])  # fmt: skip
HUNYUAN_VAE = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
               "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0, "conv3d": True,
               "time_compress": 4}  # fmt: skip
LTX_VAE = {"_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
           "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4, "latent_log_var": "uniform",
           "causal_decoder": False, "timestep_conditioning": False,
           "blocks": [["res_x", 1], *[["compress_all", 1]] * 3, ["res_x", 1]]}  # fmt: skip


COSMOS_VAE = dict(z_channels=16, latent_channels=16, z_factor=1, resolution=1024, in_channels=3, out_channels=3,
                  channels=32, channels_mult=[1, 1, 1], num_res_blocks=1, attn_resolutions=[], dropout=0.0,
                  patch_size=4, num_groups=1, temporal_compression=8, spacial_compression=8)  # fmt: skip
MOCHI_DECODER = dict(out_channels=3, base_channels=32, channel_multipliers=[1, 1, 1, 1], temporal_expansions=[1, 2, 3],
                     spatial_expansions=[2, 2, 2], num_res_blocks=[1] * 5, latent_dim=12, has_attention=[False] * 5,
                     padding_mode="replicate", output_norm=False, nonlinearity="silu", output_nonlinearity="silu",
                     causal=True)  # fmt: skip
HUNYUAN_15_VAE = dict(block_out_channels=[16, 16, 16, 32, 32], in_channels=3, out_channels=3, num_res_blocks=1, z_channels=32,
                      ffactor_spatial=16, ffactor_temporal=4, downsample_match_channel=True,
                      upsample_match_channel=True)  # fmt: skip


def wan_vae() -> Any:
    from comfy.ldm.wan.vae import WanVAE

    return video_vae(WanVAE(**WAN_VAE), 16, 4, 8)


def wan_22_vae() -> Any:
    from comfy.ldm.wan.vae2_2 import WanVAE

    return video_vae(WanVAE(**{**WAN_VAE, "z_dim": 48, "dec_dim": 8}), 48, 4, 16)


def hunyuan_vae() -> Any:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return video_vae(AutoencoderKL(ddconfig=HUNYUAN_VAE, embed_dim=16), 16, 4, 8, std=0.05)


def hunyuan_15_vae() -> Any:
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    parts = {
        f"{part.lower()}_config": {"target": f"comfy.ldm.hunyuan_video.vae_refiner.{part}", "params": HUNYUAN_15_VAE}
        for part in ("Encoder", "Decoder")
    }
    regularizer = {"target": "comfy.ldm.models.autoencoder.EmptyRegularizer"}
    return video_vae(AutoencodingEngine(regularizer_config=regularizer, **parts), 32, 4, 16)


def ltx_vae() -> Any:
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    vae = VideoVAE(config=LTX_VAE)
    for statistic, value in (("std-of-means", 1.0), ("mean-of-means", 0.0)):
        vae.per_channel_statistics.get_buffer(statistic).fill_(value)
    return video_vae(vae, 128, 8, 32, std=0.04)


def cosmos_vae() -> Any:
    from comfy.ldm.cosmos.vae import CausalContinuousVideoTokenizer

    return video_vae(CausalContinuousVideoTokenizer(**COSMOS_VAE), 16, 8, 8)


def mochi_vae() -> Any:
    """The decoder alone: the class has no smaller configuration."""
    from comfy.ldm.genmo.vae.model import Decoder, VideoVAE

    vae = VideoVAE.__new__(VideoVAE)
    nn.Module.__init__(vae)
    vae.decoder = Decoder(**MOCHI_DECODER)
    return video_vae(vae, 12, 6, 8)


VAES: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("Wan 2.1 t2v", "Wan 2.1 i2v", "Wan 2.1 VACE", "Wan 2.2 14B i2v", "Cosmos Predict2"), wan_vae),
    "Wan 2.2 5B": wan_22_vae,
    "HunyuanVideo": hunyuan_vae,
    "HunyuanVideo I2V": hunyuan_vae,
    "HunyuanVideo 1.5": hunyuan_15_vae,
    "LTXV": ltx_vae,
    "Cosmos 1": cosmos_vae,
    "Mochi": mochi_vae,
    "SVD": plain_vae,
    "AnimateDiff": plain_vae,
}


def tiny_vae(name: str) -> Any:
    """A VAE of the class that a family uses; none is known for LTX-2, whose decoder may differ from LTXV's."""
    return VAES[name]()
