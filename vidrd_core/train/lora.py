"""LoRA of the U-Net through PEFT, saved in the layout that ComfyUI's LoRA loader and diffusers read."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..models.unet import VidRDUNet
from .distributed import whole
from .freezing import PAPER_POLICY

ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters that are trained in place of the weights."""

    rank: int = 0  # 0: no LoRA
    alpha: float | None = None  # changes count alpha / rank; None: the rank
    dropout: float = 0.0
    layers: tuple[str, ...] = PAPER_POLICY  # patterns of layer names: linear layers and convolutions

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA rank is {self.rank}, dropout {self.dropout}; expected 0 or more, and 0 <= p < 1")


def add_lora(unet: VidRDUNet, settings: LoraSettings) -> None:
    """Freeze the U-Net and add trainable low-rank adapters to the layers that match.

    Raises:
        ValueError: no layer matches.
    """
    from peft import LoraConfig

    layers = [
        name
        for name, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.Conv3d))
        and any(fnmatch.fnmatchcase(f"{name}.weight", pattern) for pattern in settings.layers)
    ]
    if not layers:
        raise ValueError(f"no linear layer or convolution of the U-Net matches {list(settings.layers)}")
    unet.requires_grad_(False)
    alpha = settings.rank if settings.alpha is None else settings.alpha
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=layers,
        init_lora_weights=True,
    )
    unet.add_adapter(config, ADAPTER)


def save_lora(
    unet: VidRDUNet,
    path: Path,
    is_main: bool = True,
    prediction: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the LoRA as ``unet.<layer>.lora_A.weight`` and ``lora_B``, to be used at strength 1; a collective call.

    The tensors are stored in ``dtype``. The scale alpha / rank is multiplied into B, so that a loader needs no alpha.
    The metadata hold the rank and, where it is given, the prediction type of the model that the LoRA is for.
    """
    from peft.utils import get_peft_model_state_dict

    config = unet.peft_config[ADAPTER]
    scale = config.lora_alpha / config.r
    state = {}
    for name, value in get_peft_model_state_dict(unet, adapter_name=ADAPTER).items():
        tensor = whole(value.detach()).float().cpu()
        state[f"unet.{name}"] = (tensor * scale if ".lora_B." in name else tensor).to(dtype).contiguous()
    if is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {} if prediction is None else {"prediction_type": prediction}
        save_file(state, path, {"format": "pt", "rank": str(config.r), **known})
