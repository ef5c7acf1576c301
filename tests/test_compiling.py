"""A compiled U-Net gives what the plain one gives; where it cannot work, it is refused with the reason."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from components import make_pipeline, relative_error

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.cli import main
from vidrd_core.models.fast_paths import norm_by_sums
from vidrd_core.models.unet import VidRDUNetOutput
from vidrd_core.runtime import compiling
from vidrd_core.runtime.compiling import compile_unet
from vidrd_core.runtime.memory import MemoryOptions, save_memory


@pytest.fixture
def own(tmp_path: Path) -> VidRDPipeline:
    """A pipeline that the test may change."""
    return make_pipeline(tmp_path / "tokenizer")


def latents(pipe: VidRDPipeline) -> torch.Tensor:
    settings = {"num_frames": 4, "num_inference_steps": 3, "guidance_scale": 3.0, "reuse": ReuseSettings(2)}
    return pipe("a red dot", num_clips=2, output_type="latent", **settings).frames


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_unet_makes_the_same_video(pipe: VidRDPipeline, own: VidRDPipeline, backend: str) -> None:
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    assert compile_unet(own, backend=backend) is own
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):  # one graph serves all steps
        assert relative_error(latents(own), latents(pipe)) < 1e-5
    assert own.unet.state_dict().keys() == pipe.unet.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_unet_is_traced_as_one_graph(own: VidRDPipeline, dtype: torch.dtype) -> None:
    """Breaks would leave most of it uncompiled, beyond torch's limit of recompilations."""
    torch._dynamo.reset()
    unet = own.unet.to(dtype)
    x, text = (
        torch.randn(2, 4, 3, 16, 16, dtype=dtype),
        torch.randn(2, 300, unet.config.cross_attention_dim, dtype=dtype),
    )
    with torch.no_grad():
        found = torch._dynamo.explain(unet)(x, torch.full((2,), 500), text)
    assert found.graph_break_count == 0, found.break_reasons


@pytest.mark.parametrize("shape", [(2, 8, 6, 6), (2, 8, 3, 6, 6)])
def test_a_norm_by_sums_is_traced_as_one_graph_and_gives_the_same(shape: tuple[int, ...]) -> None:
    """A GPU's, for large clips: it writes in place, which dynamo does not trace for channels-last memory."""
    torch._dynamo.reset()
    layer = torch.nn.GroupNorm(4, 8, dtype=torch.bfloat16)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape, dtype=torch.bfloat16).contiguous(memory_format=layout)
    with torch.no_grad():
        compiled = torch.compile(norm_by_sums, backend="aot_eager", fullgraph=True)(layer, x.clone(), True)
        expected = norm_by_sums(layer, x)
    assert compiled.dtype == x.dtype and compiled.is_contiguous(memory_format=layout)
    assert relative_error(compiled, expected) < 1e-2


def test_an_output_of_a_compiled_unet_is_not_overwritten_by_the_next_call() -> None:
    place = torch.empty(3)  # a CUDA graph writes every output to the same one

    def graph(sample: torch.Tensor, timestep: torch.Tensor, text: None) -> VidRDUNetOutput:
        assert isinstance(timestep, torch.Tensor)
        return VidRDUNetOutput(sample=place.copy_(sample))

    step = compiling._CompiledUNet(graph)
    first, second = (step(torch.full((3,), value), 500, None).sample for value in (1.0, 2.0))
    assert first.tolist() == [1, 1, 1] and second.tolist() == [2, 2, 2]


def test_compiling_is_refused_where_it_cannot_work(own: VidRDPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="mode of compiling is 'fast'; expected one of default"):
        compile_unet(own, "fast")
    with pytest.raises(ValueError, match="graphs is for NVIDIA's and AMD's cards, but the U-Net is on cpu"):
        compile_unet(own, "graphs")
    monkeypatch.setattr(torch._dynamo, "is_dynamo_supported", lambda: False)
    with pytest.raises(ValueError, match="not supported by torch.compile"):
        compile_unet(own)


def test_compiling_without_a_compiler_says_what_to_install(own: VidRDPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler \(g\+\+ or clang\+\+\), and none was found"):
        compile_unet(own)


@pytest.mark.parametrize(
    ("memory", "reason"),
    [(MemoryOptions("model"), "use offload 'none'"), (MemoryOptions(storage="fp8"), "use storage 'same'")],
)
def test_offloaded_and_fp8_weights_are_not_compiled(own: VidRDPipeline, memory: MemoryOptions, reason: str) -> None:
    save_memory(own, memory, "cpu")
    with pytest.raises(ValueError, match=reason):
        compile_unet(own)


def test_the_command_line_compiles_and_refuses_what_cannot_be(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["generate", "--model", str(model_folder), "--prompt", "a dot", "--output", str(tmp_path / "out.mp4")]
    call += ["--device", "cpu", "--clips", "1", "--frames", "2", "--steps", "1", "--quiet", "--compile"]
    assert main([*call, "default", "--storage", "fp8"]) == 1
    assert "use storage 'same'" in capsys.readouterr().err
    modes = []
    monkeypatch.setattr(compiling, "compile_unet", lambda pipe, mode: modes.append(mode))
    assert all(main([*call, mode]) == 0 for mode in compiling.MODES)
    assert tuple(modes) == compiling.MODES


def test_a_recorded_unet_copies_inputs_in_and_outputs_out_and_records_each_shape_once(
    own: VidRDPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a graph that runs the U-Net again on the recorded inputs, as CUDA's runs its kernels."""
    recordings = []

    def record(self: compiling.RecordedUNet, inputs: list[torch.Tensor]) -> tuple:
        recorded = [tensor.clone() for tensor in inputs]
        out = self.unet._call_impl(*recorded, return_dict=False)[0]
        replay = lambda: out.copy_(self.unet._call_impl(*recorded, return_dict=False)[0])  # noqa: E731
        recordings.append(recorded)
        return SimpleNamespace(replay=replay), recorded, out

    monkeypatch.setattr(compiling.RecordedUNet, "_record", record)
    unet, plain = own.unet, copy.deepcopy(own.unet)
    unet._compiled_call_impl = compiling.RecordedUNet(unet)
    inputs = [torch.randn(batch, 4, 3, 4, 4) for batch in (2, 2, 1, 2)]
    text = torch.randn(2, 5, unet.config.cross_attention_dim)
    with torch.no_grad():
        found = [unet(x, time, text[: len(x)]).sample for x, time in zip(inputs, (999, 500.5, 20, 1), strict=True)]
        for x, time, one in zip(inputs, (999, 500.5, 20, 1), found, strict=True):
            assert torch.equal(one, plain(x, time, text[: len(x)]).sample)
        assert torch.equal(unet(inputs[0], 5, text, return_dict=False)[0], plain(inputs[0], 5, text).sample)
    assert len(recordings) == 2
    x = inputs[0].requires_grad_()
    unet(x, 5, text).sample.sum().backward()  # training is not recorded
    assert x.grad is not None and len(recordings) == 2
