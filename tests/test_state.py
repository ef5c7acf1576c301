"""Seeds, fingerprints, and the file a video goes on from."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from components import tiny_unet

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.files import read_tensors, write_tensors
from vidrd_core.models.fingerprints import fingerprint, same_model
from vidrd_core.sampling.seeds import clip_noise, clip_seed
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.sampling.state import VideoState


@pytest.fixture(scope="module")
def state(pipe: VidRDPipeline) -> VideoState:
    reuse = ReuseSettings(2, 1.5, 0.5, "forward", 1)
    return pipe("a red dot é 红", num_clips=2, num_frames=4, num_inference_steps=4, reuse=reuse, seed=5).state


def test_a_saved_state_loads_with_every_value_to_the_bit(state: VideoState, tmp_path: Path) -> None:
    state.save(tmp_path / "deep" / "state.safetensors")
    loaded = VideoState.load(tmp_path / "deep" / "state.safetensors")
    for name in ("num_joined", "sampling", "seeds", "clip_index", "prompt", "model"):
        assert getattr(loaded, name) == getattr(state, name)
    assert loaded.trajectory.settings == state.trajectory.settings
    assert loaded.trajectory.metadata() == state.trajectory.metadata()
    pairs = [(loaded.tail, state.tail), (loaded.text, state.text), (loaded.trajectory.noise, state.trajectory.noise)]
    assert len(loaded.trajectory.states) == len(state.trajectory.states) == 2
    for ours, theirs in (*pairs, *zip(loaded.trajectory.states, state.trajectory.states)):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["state.safetensors"]


def test_a_state_of_an_earlier_version_is_read_by_its_old_names(pipe: VidRDPipeline, tmp_path: Path) -> None:
    reuse = ReuseSettings(2, guidance_beta=1.0, order="forward", stages="uniform", cleaner_overlap=0.5)
    call = {"num_frames": 4, "num_inference_steps": 4, "guidance_scale": 3.0, "guidance_interval": (0.25, 0.75)}
    made = pipe("a dot", num_clips=1, reuse=reuse, **call).state
    path = tmp_path / "state.safetensors"
    made.save(path)
    tensors, metadata = read_tensors(path)
    values = json.loads(metadata["state"])
    del values["scaling_factor"], values["sampling"]["guidance_interval"]
    values["trajectory"]["context"]["guidance_interval"] = "0.25 0.75"
    for settings in (values["sampling"]["reuse"], values["trajectory"]["settings"]):
        settings["guidance_lead"] = settings.pop("cleaner_overlap")
    write_tensors(path, tensors, {"format": "vidrd-state-1", "state": json.dumps(values)})
    loaded = VideoState.load(path)
    assert loaded.sampling == made.sampling
    assert loaded.trajectory.metadata() == made.trajectory.metadata()
    expected = pipe.extend(made, "a box", output_type="latent").frames
    assert torch.equal(pipe.extend(loaded, "a box", output_type="latent").frames, expected)


def test_more_than_ten_guided_steps_keep_their_order(pipe: VidRDPipeline, tmp_path: Path) -> None:
    reuse = ReuseSettings(1, guidance_beta=1.0)
    state = pipe("x", num_clips=1, num_frames=2, num_inference_steps=12, reuse=reuse).state
    state.save(tmp_path / "s.safetensors")
    loaded = VideoState.load(tmp_path / "s.safetensors").trajectory.states
    assert len(loaded) == 12
    assert all(torch.equal(a, b) for a, b in zip(loaded, state.trajectory.states))


def test_files_that_are_no_states_are_refused_by_name(state: VideoState, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(FileNotFoundError, match=r"state\.safetensors does not exist"):
        VideoState.load(path)
    path.write_bytes(b"<html>not found</html>" * 50)
    with pytest.raises(ValueError, match=r"state\.safetensors cannot be read"):
        VideoState.load(path)
    state.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state\.safetensors cannot be read"):
        VideoState.load(path)
    tiny_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="no VidRD state"):
        VideoState.load(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_fingerprint_survives_saving_and_half_precision_but_not_other_weights(tmp_path: Path) -> None:
    unet = tiny_unet()
    name = fingerprint(unet)
    unet.save_pretrained(tmp_path)
    assert fingerprint(type(unet).from_pretrained(tmp_path)) == name
    for dtype in (torch.float16, torch.bfloat16):
        assert same_model(fingerprint(tiny_unet().to(dtype)), name)
    assert not same_model(fingerprint(tiny_unet(seed=1)), name)
    assert not same_model(fingerprint(tiny_unet(add_temp_embed=False)), name)


def test_a_fingerprint_notices_that_only_the_temporal_layers_were_trained() -> None:
    unet = tiny_unet()
    name = fingerprint(unet)
    with torch.no_grad():
        for key, parameter in unet.named_parameters():
            if "temp_" in key:
                parameter.add_(0.1)
    assert not same_model(fingerprint(unet), name)


def test_a_fingerprint_notices_a_little_further_training() -> None:
    unet = tiny_unet()
    name = fingerprint(unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.05)
    assert not same_model(fingerprint(unet), name)


def test_a_state_is_not_taken_by_a_neighbouring_checkpoint_of_its_model(state: VideoState) -> None:
    unet = tiny_unet()
    state = replace(state, model=fingerprint(unet))
    state.check_model(fingerprint(unet))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.001)
    with pytest.raises(ValueError, match="made by another U-Net"):
        state.check_model(fingerprint(unet))


def test_a_state_file_can_be_replaced_while_what_was_loaded_from_it_is_in_use(
    state: VideoState, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    state.save(path)
    loaded = VideoState.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(loaded.tail, state.tail) and torch.equal(loaded.trajectory.noise, state.trajectory.noise)


@pytest.mark.skipif(os.name == "nt", reason="files on Windows have no such rights")
def test_a_state_may_be_read_by_whom_other_files_may(state: VideoState, tmp_path: Path) -> None:
    state.save(tmp_path / "state.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "state.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_guidance_scale_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance_scale is nan; expected a number"):
        SamplingSettings(guidance_scale=float("nan"))


def test_the_first_clips_seed_is_the_videos_and_all_seeds_differ() -> None:
    assert clip_seed(42, 0) == 42
    seeds = [clip_seed(video, index) for video in range(5) for index in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0 <= clip_seed(-3, 0) < 2**63


def test_a_seed_draws_the_same_noise_in_any_batch() -> None:
    shape = (3, 4, 2, 5, 5)
    together = clip_noise([1, 2, 3], shape)
    for b, seed in enumerate((1, 2, 3)):
        assert torch.equal(clip_noise([seed], (1, *shape[1:])), together[b : b + 1])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(("changes", "message"), [({"num_frames": 33}, "33"), ({"num_frames": 0}, "num_frames is 0"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"), ({"num_frames": 3}, "overlap_frames is 4")])  # fmt: skip
def test_sampling_settings_out_of_range_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**changes)  # type: ignore[arg-type]
