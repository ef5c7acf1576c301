"""Run with little GPU memory: models offloaded to host memory, weights stored in 8 bits, guidance in two batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..pipeline import VidRDPipeline

OFFLOADS = ("none", "model", "sequential")
STORAGES = ("same", "fp8")


@dataclass(frozen=True)
class MemoryOptions:
    """What to trade for memory on the device.

    Args:
        offload: "none"; "model": only the model that runs is on the device, the others are in host memory (little
            slower); "sequential": only the layer that runs (much slower, least memory). The result stays the same.
        storage: "same" as the precision; "fp8": the U-Net's weights lie in 8 bits (float8_e4m3fn, its norms excepted)
            and each layer's are cast when it runs, in half the memory of bf16. Changes the result a little.
        split_guidance: the two halves of classifier-free guidance one after the other instead of in one batch: about
            half the memory of a step. The result stays the same up to rounding.
    """

    offload: str = "none"
    storage: str = "same"
    split_guidance: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (("offload", self.offload, OFFLOADS), ("storage", self.storage, STORAGES)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def save_memory(pipe: VidRDPipeline, options: MemoryOptions, device: torch.device | str) -> VidRDPipeline:
    """Move a pipeline, whose models are on the CPU, to ``device`` as the options say; returns the same pipeline.

    Raises:
        ValueError: decoding in the background was asked for too, which needs the U-Net and the VAE on the device at
            once; or layers were to be moved one by one to a CPU.
    """
    if options.offload != "none" and pipe.background_decoding:
        raise ValueError(
            f"offload is {options.offload!r} and decoding runs in the background, for which U-Net and VAE must be on "
            "the device together: use one of the two"
        )
    if options.offload == "sequential" and torch.device(device).type == "cpu":
        raise ValueError(
            "offload is 'sequential' and the device 'cpu': a CPU has no memory of its own to save; use none"
        )
    pipe.keep_fingerprints()
    pipe.split_guidance = options.split_guidance
    if options.storage == "fp8":
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=pipe.unet.dtype)
    if options.offload == "none":
        pipe.to(device)
    elif options.offload == "model":
        offload_idle_models(pipe, device)
    else:
        pipe.enable_sequential_cpu_offload(device=device)
    return pipe


def offload_idle_models(pipe: VidRDPipeline, device: torch.device | str) -> None:
    """Keep one of a pipeline's models on ``device`` at a time: the one that runs; the one before it is offloaded.

    diffusers' own model offloading is made for one pass in a fixed order: it sends away a model's predecessor only, so
    that from the second clip on the VAE would stay beside the U-Net.
    """
    from accelerate.hooks import CpuOffload, add_hook_to_module
    from accelerate.utils.memory import clear_device_cache

    given = torch.device(device)
    target = torch.device(given.type, given.index or 0)
    on_device: torch.nn.Module | None = None

    class LoadOnUse(CpuOffload):
        @torch.compiler.disable
        def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            nonlocal on_device
            if on_device is not None and on_device is not module:
                on_device.to("cpu")
                clear_device_cache()
            on_device = module
            return super().pre_forward(module, *args, **kwargs)

    pipe.remove_all_hooks()
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            add_hook_to_module(model, LoadOnUse(target))
