"""Run the U-Net compiled, or as a recorded CUDA graph: the first step takes longer, every later one less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..models.unet import VidRDUNet, VidRDUNetOutput
    from ..pipeline import VidRDPipeline

GRAPHS = "graphs"  # no compiling
# What torch.compile calls them, "reduce-overhead" and "max-autotune" with CUDA graphs on a GPU; and our own.
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", GRAPHS)


def compile_unet(pipe: VidRDPipeline, mode: str = "default", backend: str = "inductor") -> VidRDPipeline:
    """Let a pipeline's U-Net run compiled from its next call on; returns the same pipeline.

    The result stays the same up to rounding. Every size and batch that comes for the first time is compiled anew: half
    a minute to some minutes. Call it last, after the models have been placed and adapters loaded.

    Args:
        mode: one of :data:`MODES`; "reduce-overhead" adds CUDA graphs, "max-autotune" also tries kernels out. With
            "graphs" nothing is compiled: the kernels of a call are recorded as a CUDA graph, which takes a second, and
            replayed, so that the device does not wait for the host. The memory of a step then stays taken.
        backend: of torch.compile; another than "inductor" takes no mode.

    Raises:
        ValueError: the mode is not known, the weights are moved or cast while the U-Net runs, or this machine lacks
            what compiling takes.
    """
    if mode not in MODES:
        raise ValueError(f"the mode of compiling is {mode!r}; expected one of {', '.join(MODES)}")
    unet = pipe.unet
    _check_weights(unet)
    if mode == GRAPHS:
        if unet.device.type != "cuda":
            raise ValueError(f"the mode graphs is for NVIDIA's and AMD's cards, but the U-Net is on {unet.device}")
        for weight in unet.parameters():
            if weight.ndim == 4:  # of a 2-D convolution, which would convert it in every call
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        unet._compiled_call_impl = RecordedUNet(unet)
        return pipe
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


class RecordedUNet:
    """The U-Net's call, recorded as a CUDA graph for every shape that comes.

    The graphs share one pool of memory, since each output is copied before another graph runs.
    """

    def __init__(self, unet: VidRDUNet):
        self.unet = unet
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self.pool: Any = None

    def __call__(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> VidRDUNetOutput | tuple:
        if torch.is_grad_enabled():
            return self.unet._call_impl(sample, timestep, encoder_hidden_states, return_dict)
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1)
        inputs = [sample, timestep.expand(len(sample)), encoder_hidden_states]
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self.graphs:
            self.graphs[key] = self._record(inputs)
        graph, recorded, out = self.graphs[key]
        for own, given in zip(recorded, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        from ..models.unet import VidRDUNetOutput

        return VidRDUNetOutput(sample=out.clone()) if return_dict else (out.clone(),)

    def _record(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        recorded = [tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their kernels
            for _ in range(2):
                self.unet._call_impl(*recorded)
        torch.cuda.current_stream().wait_stream(stream)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Another thread may decode meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            (out,) = self.unet._call_impl(*recorded, return_dict=False)
        return graph, recorded, out


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
