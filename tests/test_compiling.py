"""A compiled U-Net gives what the plain one gives; where it cannot work, it is refused with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from components import make_pipeline, relative_error

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.cli import main
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
