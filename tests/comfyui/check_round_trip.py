"""A video begun on the command line is continued in ComfyUI, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

PROMPT = "the red ball rolls"


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def vidrd(*words: Any) -> None:
    from vidrd_core.cli import main

    assert main([*map(str, words), "--device", "cpu", "--dtype", "float32", "--quiet"]) == 0


# The released DDIM and DPM-Solver++ end at the alphas of timestep 0, ComfyUI at sigma 0: their last steps differ.
@pytest.mark.parametrize(("scheduler", "limit"), [("euler", 1e-4), ("ddim", 0.02), ("dpmpp-2m", 0.02)])
def test_clips_made_by_turns_are_those_of_the_command_line_alone(
    scheduler: str, limit: float, nodes: Any, following: Any, folder: Path, base: Path, part: Any
) -> None:
    from vidrd_core.jobs.folder import JobFolder
    from vidrd_core.sampling.seeds import clip_seed

    place = base / "output" / "vidrd" / scheduler
    given = ("--model", folder, "--scheduler", scheduler, "--preset", "smooth", "--frames", 8, "--steps", 6,
             "--width", 64, "--height", 64, "--guidance-scale", 3, "--negative-prompt", "watermark",
             "--seed", 5, "--prompt", PROMPT)  # fmt: skip
    vidrd("generate", *given, "--clips", 4, "--output", base / f"{scheduler}_alone.gif")
    alone = JobFolder(base / f"{scheduler}_alone.gif.state")
    vidrd("generate", *given, "--clips", 2, "--output", place / "begun.gif")

    name = f"{scheduler}/begun.gif.state/state_00001.safetensors"
    assert name in part("nodes.files").saved_states()
    (begun,) = nodes["VidRDLoadState"](name=name)
    factor = begun["vidrd_trajectory"].context["scaling_factor"]
    first, second = alone.load(0).latents, alone.load(1).latents
    joined = torch.cat((first, second[:, :, 5:]), dim=2)
    torch.testing.assert_close(begun["samples"] * factor, joined)
    video, third = following(begun, seed=clip_seed(5, 2), preset="smooth")
    assert video["samples"].shape[2] == joined.shape[2] + 3
    # The overlap, which is cut off, ends on the prior's frames here and is denoised to its end there.
    assert relative(third["samples"][:, :, 5:] * factor, alone.load(2).latents[:, :, 5:]) < limit
    torch.testing.assert_close(video["samples"][:, :, :11], begun["samples"], rtol=0, atol=0)
    if scheduler == "dpmpp-2m":  # whose multistep history no single-step scheduler has
        return

    nodes["VidRDSaveState"](latent=video, name=f"{scheduler}/continued")
    vidrd("extend", place / "continued.safetensors", "--model", folder, "--output", base / f"{scheduler}_back.gif")
    back = JobFolder(base / f"{scheduler}_back.gif.state")
    assert back.num_finished() == 1
    fourth = back.load(3)
    assert fourth.seeds == [clip_seed(5, 3)]
    assert relative(fourth.latents, alone.load(3).latents) < limit

    # and once more in ComfyUI
    vidrd("extend", back.path, "--output", base / f"{scheduler}_fifth.gif")
    (longer,) = nodes["VidRDLoadState"](name=f"{scheduler}/continued")
    torch.testing.assert_close(longer["samples"], video["samples"], rtol=0, atol=0)


def test_a_single_state_without_its_clips_is_continued_from_its_last_frames(
    nodes: Any, following: Any, pipe: Any, base: Path
) -> None:
    made = pipe(PROMPT, num_clips=3, num_frames=8, height=64, width=64, num_inference_steps=4, guidance_scale=3.0,
                output_type="latent")  # fmt: skip
    (base / "output" / "vidrd").mkdir(parents=True, exist_ok=True)
    made.state.save(base / "output" / "vidrd" / "alone.safetensors")
    (latent,) = nodes["VidRDLoadState"](name="alone.safetensors")
    factor = pipe.vae.config["scaling_factor"]
    torch.testing.assert_close(latent["samples"] * factor, made.state.tail)
    _, clip = following(latent, seed=9)
    assert torch.isfinite(clip["samples"]).all() and clip["samples"].shape[2] == 8
    with pytest.raises(ValueError, match="its trajectory was recorded for overlap 4"):
        following(latent, seed=9, overlap_frames=6)


def test_what_cannot_be_continued_elsewhere_says_why(
    nodes: Any, first: Any, following: Any, pipe: Any, folder: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vidrd_core.cli import main

    nodes["VidRDSaveState"](latent=first(sampler_name="heun", scheduler="normal"), name="heun")
    command = ["extend", str(base / "output/vidrd/heun.safetensors"), "--model", str(folder), "--output"]
    assert main([*command, str(base / "heun.gif"), "--quiet"]) == 1
    assert "sampled with heun, whose steps only ComfyUI takes" in capsys.readouterr().err
    assert main(["info", command[1]]) == 0
    described = capsys.readouterr().out
    assert "made in ComfyUI, after clip 0, 8 frames so far" in described and "sampler: heun" in described
    nodes["VidRDSaveState"](latent=first(sampler_name="euler", scheduler="normal"), name="euler")
    command[1] = str(base / "output/vidrd/euler.safetensors")
    assert main([*command, str(base / "x.gif"), "--scheduler", "ddim", "--quiet"]) == 1
    assert "noise levels of its own, which DDIMScheduler cannot follow" in capsys.readouterr().err


def test_a_state_that_an_earlier_version_of_the_nodes_saved_is_loaded(
    nodes: Any, first: Any, following: Any, base: Path
) -> None:
    import json

    from vidrd_core.files import read_tensors, write_tensors

    latent = following(first(seed=3), seed=4)[0]
    nodes["VidRDSaveState"](latent=latent, name="today")
    path = base / "output/vidrd/today.safetensors"
    tensors, metadata = read_tensors(path)
    values = json.loads(metadata["state"])
    del values["scaling_factor"]
    for name in ("cfg", "scaling_factor", "reuse"):
        values["trajectory"]["context"].pop(name)
    settings = values["trajectory"]["settings"]
    settings["guidance_lead"] = settings.pop("cleaner_overlap")
    old = {name: tensor for name, tensor in tensors.items() if name != "negative"}
    about = {"format": "vidrd-latent-1", "latent": json.dumps(values), "extra": "{}"}
    write_tensors(path.with_name("earlier.safetensors"), old, about)
    (loaded,) = nodes["VidRDLoadState"](name="earlier")
    for ours, theirs in zip(following(loaded, seed=5), following(latent, seed=5), strict=True):
        torch.testing.assert_close(ours["samples"], theirs["samples"], rtol=0, atol=0)
