"""Compile the U-Net with torch.compile: the first step takes longer, every later one less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..models.unet import VidRDUNetOutput
    from ..pipeline import VidRDPipeline

# What torch.compile calls them. "reduce-overhead" and "max-autotune" use CUDA graphs on a GPU.
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def compile_unet(pipe: VidRDPipeline, mode: str = "default", backend: str = "inductor") -> VidRDPipeline:
    """Let a pipeline's U-Net run compiled from its next call on; returns the same pipeline.

    The result stays the same up to rounding. Every size and batch that comes for the first time is compiled anew: half
    a minute to some minutes. Call it last, after the models have been placed and adapters loaded.

    Args:
        mode: one of :data:`MODES`; "reduce-overhead" adds CUDA graphs, "max-autotune" also tries kernels out.
        backend: of torch.compile; another than "inductor" takes no mode.

    Raises:
        ValueError: the mode is not known, the weights are moved or cast while the U-Net runs, or this machine lacks
            what compiling takes.
    """
    if mode not in MODES:
        raise ValueError(f"the mode of compiling is {mode!r}; expected one of {', '.join(MODES)}")
    unet = pipe.unet
    _check_weights(unet)
    if not torch._dynamo.is_dynamo_supported():
        raise ValueError("this Python or system is not supported by torch.compile: leave compiling off")
    if backend == "inductor":
        _check_compiler(unet.device)
        unet.compile(backend=backend, mode=mode, dynamic=False)
    else:
        unet.compile(backend=backend, dynamic=False)
    unet._compiled_call_impl = _CompiledUNet(unet._compiled_call_impl)
    return pipe


class _CompiledUNet:
    """The compiled U-Net's call: no new graph for every number that a timestep may be, and an output of its own.

    A CUDA graph writes each output to the same place, where the next call would overwrite it.
    """

    def __init__(self, compiled: Any):
        self.compiled = compiled

    def __call__(self, sample: Tensor, timestep: Tensor | float, *args: Any, **kwargs: Any) -> VidRDUNetOutput | tuple:
        torch.compiler.cudagraph_mark_step_begin()
        timestep = torch.as_tensor(timestep, device=sample.device)
        out = self.compiled(sample, timestep, *args, **kwargs)
        if isinstance(out, tuple):
            return tuple(tensor.clone() for tensor in out)
        return type(out)(sample=out.sample.clone())


def _check_weights(unet: nn.Module) -> None:
    if any(hasattr(module, "_hf_hook") for module in unet.modules()):
        raise ValueError("the U-Net is offloaded, which a compiled one cannot be: use offload 'none', or no compiling")
    if any(hasattr(module, "_diffusers_hook") for module in unet.modules()):
        raise ValueError(
            "the U-Net's weights are cast layer by layer, which a compiled one's cannot be: use storage 'same', or no "
            "compiling"
        )


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError("compiling for this GPU needs Triton, which is not installed: pip install triton")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "compiling for the CPU needs a C++ compiler (g++ or clang++), and none was found; install one, or name it "
            "in the environment variable CXX"
        ) from error
