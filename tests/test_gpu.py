"""On a CUDA device: the models and the bundled model's videos are those of the CPU, and memory does not grow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from components import relative_error, tiny_unet, tiny_vae

from vidrd_core import VidRDPipeline
from vidrd_core.checkpoints import load_pipeline_parts
from vidrd_core.cli.models import BUNDLED
from vidrd_core.models.fast_paths import SUMMED_ELEMENTS, group_norm
from vidrd_core.reuse.presets import PRESETS
from vidrd_core.runtime.compiling import compile_unet
from vidrd_core.sampling.settings import SamplingSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPT = "a red circle moves right over a dark blue background"


def sampling(steps: int = 4) -> SamplingSettings:
    return SamplingSettings(8, 64, 64, steps, 4.0, PRESETS["smooth"].reuse)


def bundled(device: str, dtype: torch.dtype = torch.float32) -> VidRDPipeline:
    pipe = VidRDPipeline(**load_pipeline_parts(BUNDLED["demo"], dtype=dtype, device=device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def exact_products():
    """Without TF32, so that float32 is float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("size", [(8, 8), (20, 24)])
def test_a_step_is_that_of_the_cpu(dtype: torch.dtype, limit: float, size: tuple[int, int]) -> None:
    unet = tiny_unet().eval()
    x, text = torch.randn(2, 4, 5, *size), torch.randn(2, 7, 32)
    expected = unet(x, 500, text).sample
    there = unet.to("cuda", dtype)
    found = there(x.to("cuda", dtype), 500, text.to("cuda", dtype)).sample
    assert found.dtype == dtype and relative_error(found.float().cpu(), expected) < limit


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_encoding_and_decoding_are_those_of_the_cpu(dtype: torch.dtype, limit: float) -> None:
    vae = tiny_vae().eval()
    frames = torch.rand(1, 3, 5, 64, 48) * 2 - 1
    latents = vae.encode(frames).latent_dist.mode()
    expected = vae.decode(latents).sample
    vae = vae.to("cuda", dtype)
    there = frames.to("cuda", dtype)
    assert relative_error(vae.encode(there).latent_dist.mode().float().cpu(), latents) < limit
    assert relative_error(vae.decode(latents.to("cuda", dtype)).sample.float().cpu(), expected) < limit


def test_a_chained_video_is_that_of_the_cpu_and_goes_on_there() -> None:
    here, there = bundled("cpu"), bundled("cuda")
    made = [list(pipe.stream(PROMPT, sampling(), 2)) for pipe in (here, there)]
    for expected, found in zip(*made, strict=True):
        assert relative_error(found.latents.float().cpu(), expected.latents.float()) < 1e-2
    states = [clips[-1].state for clips in made]
    nexts = [list(here.stream(PROMPT, sampling(), 1, state=state))[0].latents.float() for state in states]
    assert relative_error(nexts[1], nexts[0]) < 1e-2


def test_decoding_in_the_background_changes_nothing() -> None:
    pipe = bundled("cuda")
    plain = torch.cat(list(pipe.decode_clips(pipe.stream(PROMPT, sampling(), 3), sampling())), 2)
    pipe.background_decoding = True
    behind = torch.cat(list(pipe.decode_clips(pipe.stream(PROMPT, sampling(), 3), sampling())), 2)
    assert torch.equal(plain.cpu(), behind.cpu())


def test_a_longer_video_takes_no_more_memory() -> None:
    pipe, peaks = bundled("cuda", torch.bfloat16), []
    for clips in (2, 12):
        torch.cuda.reset_peak_memory_stats()
        for _ in pipe.decode_clips(pipe.stream(PROMPT, sampling(), clips), sampling()):
            pass
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.02 * peaks[0]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["graphs", pytest.param("reduce-overhead", marks=pytest.mark.slow)])
def test_with_cuda_graphs_the_unet_gives_the_same_and_every_call_its_own_output(mode: str) -> None:
    plain, pipe = bundled("cuda"), bundled("cuda")
    compile_unet(pipe, mode)
    text = torch.randn(2, 77, pipe.unet.config.cross_attention_dim, device="cuda")
    inputs = [torch.randn(batch, 4, 8, 8, 8, device="cuda") for batch in (2, 2, 1, 2, 1)]
    times = [999, 500.5, torch.tensor(20, device="cuda"), 1, 300]
    found = [pipe.unet(x, time, text[: len(x)]).sample for x, time in zip(inputs, times, strict=True)]
    for x, time, one in zip(inputs, times, found, strict=True):
        assert relative_error(one, plain.unet(x, time, text[: len(x)]).sample) < 1e-3


def test_with_cuda_graphs_a_video_is_the_same_also_decoded_in_the_background() -> None:
    plain, pipe = bundled("cuda"), bundled("cuda")
    compile_unet(pipe, "graphs")
    pipe.background_decoding = True
    found, expected = (
        torch.cat(list(one.decode_clips(one.stream(PROMPT, sampling(), 3), sampling())), 2) for one in (pipe, plain)
    )
    assert relative_error(found.cpu(), expected.cpu()) < 1e-2


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 128, 8, 96, 96), (16, 64, 96, 96)])
def test_a_large_norm_is_torchs(shape: tuple[int, ...]) -> None:
    layer = torch.nn.GroupNorm(32, shape[1], device="cuda", dtype=torch.bfloat16)
    layer.weight.normal_()
    layer.bias.normal_()
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = (torch.randn(shape, device="cuda") * 3 + 2).bfloat16().contiguous(memory_format=layout)
    assert x.numel() >= SUMMED_ELEMENTS
    expected = torch.nn.functional.group_norm(x.double(), 32, layer.weight.double(), layer.bias.double(), layer.eps)
    assert relative_error(group_norm(layer, x), expected) < 3e-3
    assert group_norm(layer, x).is_contiguous(memory_format=layout)
    assert group_norm(layer, x, may_overwrite=True).data_ptr() == x.data_ptr()


def test_fewer_steps_by_the_lora_run_there_too() -> None:
    pipe = bundled("cuda", torch.bfloat16)
    few = VidRDPipeline(**load_pipeline_parts(BUNDLED["demo-few-steps"], dtype=torch.bfloat16, device="cuda"))
    few.set_progress_bar_config(disable=True)
    settings = replace(sampling(), guidance_scale=1.0)
    frames = torch.cat(list(few.decode_clips(few.stream(PROMPT, settings, 2), settings)), 2)
    assert frames.isfinite().all() and frames.shape[2] == 11 and pipe.unet.dtype == few.unet.dtype
