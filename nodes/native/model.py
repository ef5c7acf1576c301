"""MODEL: the temporal U-Net as a true ComfyUI model, for every stock sampler, scheduler and LoRA loader."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...vidrd_core.models.fingerprints import fingerprint, same_model
from ...vidrd_core.models.unet import VidRDUNet
from .lora import accept_diffusers_lora
from .operations import core_operations, host_attention

logger = logging.getLogger(__name__)

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
# ComfyUI's figure for what a call takes beyond the weights. At released width its tensors ask for 0.82, in fp32 and in
# bf16 (benchmarks/peak_memory.py --factor); the rest is for the work space of convolutions. ComfyUI gives 1 to Stable
# Diffusion 2.1 too.
MEMORY_USAGE_FACTOR = 1.0
MODEL_TYPES = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
}
# diffusers' names of beta schedules and ComfyUI's: its "linear" is linear in the square root.
ATTENTION_READERS = {"nodes_sag": "Self-Attention Guidance"}  # module of a stock node: its name
BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear"}


class NativeUNet(VidRDUNet):
    """The U-Net with the call signature of ComfyUI's models."""

    def __init__(self, *args: Any, dtype: torch.dtype | None = None, operations: Any = None, **kwargs: Any):
        layers = core_operations(operations, attention_function=staticmethod(host_attention))
        super().__init__(*args, dtype=dtype, operations=layers, **kwargs)
        self.storage_dtype = dtype
        self.warned_patches: set[str] = set()

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored weights; ComfyUI casts the inputs to it unless it casts the weights itself."""
        return self.storage_dtype or torch.float32

    def to(self, *args: Any, **kwargs: Any) -> NativeUNet:  # type: ignore[override]
        """Plain torch's; diffusers' own warns of types that ComfyUI chooses on purpose."""
        return torch.nn.Module.to(self, *args, **kwargs)

    def forward(  # type: ignore[override] # ComfyUI's signature
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        """``x``: ``[B, C, T, h, w]``; ``timesteps``: ``[B]``; ``context``: ``[B, M, D]``."""
        if control is not None:
            raise ValueError("a ControlNet is applied to the conditioning; VidRD's model has no ControlNets: remove it")
        options = transformer_options or {}
        refuse_attention_readers(options)
        self.warn_unsupported_patches(options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self.predict,
            self,
            comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options),
        )
        return executor.execute(x, timesteps, context, options)  # wrappers such as EasyCache's read the options

    def warn_unsupported_patches(self, transformer_options: Mapping[str, Any]) -> None:
        """Warn, once, of patches that other nodes put into the blocks of Stable Diffusion's U-Net."""
        patches = {*transformer_options.get("patches", {}), *transformer_options.get("patches_replace", {})}
        if not patches <= self.warned_patches:
            logger.warning(
                "VidRD's U-Net has no place for the patches %s, so they do nothing: remove the node that changes the "
                "model's blocks (FreeU, perturbed attention, IP-Adapter and the like).",
                ", ".join(sorted(patches)),
            )
            self.warned_patches |= patches

    def predict(self, x: Tensor, timesteps: Tensor, context: Tensor, *_: Any, **__: Any) -> Tensor:
        return super().forward(x, timesteps, context).sample


def refuse_attention_readers(transformer_options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for nodes that read the U-Net's attention and cannot work without it.

    They would end in an error of their own later, since the blocks call no patches.
    """
    replaced = transformer_options.get("patches_replace", {})
    for patch in (one for patches in replaced.values() for one in patches.values()):
        module = str(getattr(patch, "__module__", "")).replace("\\", "/").removesuffix(".py")
        for name, node in ATTENTION_READERS.items():
            if module.endswith(name):
                raise ValueError(f"{node} reads an image U-Net's attention, which VidRD's does not give: remove it")


class VideoLatents(comfy.latent_formats.SD15):
    """Stable Diffusion's latents with a time axis. No image TAESD is named: it cannot decode them."""

    latent_dimensions = 3

    def __init__(self, scale_factor: float = 0.18215):
        super().__init__(scale_factor)
        self.taesd_decoder_name = None


class VidRDConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a model family."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    latent_format = VideoLatents
    supported_inference_dtypes = DTYPES

    def __init__(self, unet_config: dict[str, Any]):
        super().__init__(unet_config)
        # A U-Net's tensors grow with its width.
        self.memory_usage_factor = MEMORY_USAGE_FACTOR * unet_config.get("block_out_channels", (320,))[0] / 320

    def inpaint_model(self) -> bool:
        return False

    def get_model(self, state_dict: Mapping[str, Tensor], prefix: str = "", device: Any = None) -> VidRDModel:
        return VidRDModel(self, MODEL_TYPES[self.sampling_settings["prediction_type"]], device)


class VidRDModel(comfy.model_base.BaseModel):
    """The model behind a VidRD MODEL wire."""

    fingerprint = ""
    reuse: Any = None  # ReuseSettings, where its folder says how it wants clips chained
    defaults: Any = None  # ModelDefaults, what suits it

    def __init__(self, config: VidRDConfig, model_type: comfy.model_base.ModelType, device: Any = None):
        super().__init__(config, model_type, device=device, unet_model=NativeUNet)


def sampling_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """ComfyUI's sampling settings for a diffusers scheduler configuration.

    Raises:
        ValueError: ComfyUI has no such noise schedule or prediction type.
    """
    schedule = scheduler.get("beta_schedule", "scaled_linear")
    prediction = scheduler.get("prediction_type", "epsilon")
    if schedule not in BETA_SCHEDULES or prediction not in MODEL_TYPES or scheduler.get("trained_betas") is not None:
        raise ValueError(
            f"the model's scheduler has beta_schedule {schedule!r} and prediction_type {prediction!r}; supported are "
            f"{', '.join(BETA_SCHEDULES)} and {', '.join(MODEL_TYPES)}"
        )
    return {
        "beta_schedule": BETA_SCHEDULES[schedule],
        "linear_start": scheduler.get("beta_start", 0.00085),
        "linear_end": scheduler.get("beta_end", 0.012),
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "zsnr": bool(scheduler.get("rescale_betas_zero_snr", False)),
        "prediction_type": prediction,
    }


def build_model(
    state: dict[str, Tensor],
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    scale_factor: float,
    weight_dtype: str = "default",
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL from the U-Net's tensors in the released names.

    Args:
        config: of :class:`VidRDUNet`.
        scheduler: a diffusers scheduler configuration; the noise schedule and the prediction type are taken from it.
        scale_factor: of the VAE; latents on wires are divided by it.
        weight_dtype: a key of ``WEIGHT_DTYPES``; "default" lets ComfyUI choose by the device and the stored type.
    """
    accept_diffusers_lora(VidRDModel)
    known = inspect.signature(VidRDUNet.__init__).parameters
    model_config = VidRDConfig({k: v for k, v in config.items() if k in known})
    model_config.sampling_settings = sampling_settings(scheduler)
    model_config.latent_format = VideoLatents(scale_factor)

    choose_dtype(model_config, state, weight_dtype)
    model = model_config.get_model(state)
    model.eval()
    model.fingerprint = stored_fingerprint(model.diffusion_model, state)
    # By the name that ComfyUI gives the width of its own U-Nets, which FreeU asks for.
    width = model_config.unet_config.get("block_out_channels", (320,))[0]
    model_config.unet_config = {**model_config.unet_config, "model_channels": width}
    return loaded(model, state)


def choose_dtype(config: Any, state: Mapping[str, Tensor], weight_dtype: str) -> None:
    """Set the types that a model's weights are held and computed in: a key of ``WEIGHT_DTYPES``."""
    management = comfy.model_management
    chosen = WEIGHT_DTYPES[weight_dtype]
    if chosen is None:
        chosen = management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state),
            supported_dtypes=list(DTYPES),
            weight_dtype=comfy.utils.weight_dtype(state),
        )
    config.set_inference_dtype(chosen, management.unet_manual_cast(chosen, management.get_torch_device(), DTYPES))


def loaded(model: Any, state: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a model with its weights."""
    management = comfy.model_management
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    # Newer versions may hold weights in a patcher that streams them; they want it made before the weights are loaded.
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is None:
        model.to(offload_device)
        model.load_model_weights(state)
    else:
        if not management.is_device_cpu(offload_device):
            model.to(offload_device)
        model.load_model_weights(state, "", assign=is_dynamic())
    return patcher


def stored_fingerprint(unet: NativeUNet, state: Mapping[str, Tensor]) -> str:
    """:func:`fingerprint` of the weights as they are stored; fp8 would round them."""
    weights = [state[name] for name, _ in unet.named_parameters()]
    read: Any = SimpleNamespace(config=unet.config, parameters=lambda: weights)  # the part of a module that is read
    return fingerprint(read)


def vidrd_model(model: Any) -> VidRDModel:
    """The VidRD model on a MODEL wire.

    Raises:
        ValueError: the wire carries another model.
    """
    inner = getattr(model, "model", None)
    if not isinstance(inner, VidRDModel):
        raise ValueError(
            f"MODEL is {type(inner).__name__}, not a VidRD model: connect Load VidRD Model or Load VidRD Temporal U-Net"
        )
    return inner


__all__ = ["WEIGHT_DTYPES", "VidRDModel", "build_model", "same_model", "vidrd_model"]
