"""The UCF-101 protocol from prompts to table, with tiny TorchScript networks in place of I3D and C3D."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from components import tiny_tokenizer, tiny_vae
from diffusers import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from vidrd_core import VidRDPipeline
from vidrd_core.metrics.detectors import C3D, I3D, Clip, frame_consistency, resized, text_similarity
from vidrd_core.metrics.measuring import Detectors, Measurements, measure_all
from vidrd_core.metrics.moments import InceptionMoments, Moments
from vidrd_core.metrics.ucf101 import (
    CLASSES,
    Generated,
    RealVideos,
    Ucf101Settings,
    evaluate_ucf101,
    plan_classes,
    read_prompts,
    read_trainlist,
)
from vidrd_core.video import write_video

PROMPTS = Path(__file__).parents[1] / "training" / "configs" / "ucf101_prompts.txt"
COUNTS = {"Archery": 6, "Biking": 3, "Swing": 1}


class TinyI3D(nn.Module):
    """Has the call of i3d_torchscript.pt."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert not rescale and not resize and return_features
        assert x.shape[1] == 3 and x.shape[3] == 224 and x.shape[4] == 224
        return torch.cat((x.mean((2, 3, 4)), x.std((2, 3, 4))), dim=1)


class TinyC3D(nn.Module):
    """Probabilities of three classes from pixels of 0 to 255."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3, 4)) / 16).softmax(1)


@dataclass(frozen=True)
class Process:
    """One of several processes that run one after the other."""

    process_index: int = 0
    num_processes: int = 1

    def wait_for_everyone(self) -> None:
        """Nobody else runs."""


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    paths = {"i3d": folder / "i3d_torchscript.pt", "c3d": folder / "c3d_ucf101.pt", "clip": folder / "clip"}
    torch.jit.script(TinyI3D()).save(str(paths["i3d"]))
    torch.jit.script(TinyC3D()).save(str(paths["c3d"]))
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 514, "max_position_embeddings": 16, "bos_token_id": 512, "eos_token_id": 513, **small}
    vision = {"image_size": 32, "patch_size": 8, **small}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(paths["clip"])
    tiny_tokenizer(folder / "words").save_pretrained(paths["clip"])
    settings = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (paths["clip"] / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def settings(networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Ucf101Settings:
    """Ten real videos of three classes, and eight to make."""
    folder = tmp_path_factory.mktemp("ucf")
    names = [f"{name}/v_{name}_g{n:02d}_c01" for name, count in COUNTS.items() for n in range(count)]
    rng = np.random.default_rng(0)
    for name in names:
        written = folder / f"{name}.mp4"
        write_video(written, rng.integers(0, 255, (12, 24, 32, 3), dtype=np.uint8), fps=25)
        written.rename(written.with_suffix(".avi"))
    listed = folder / "trainlist01.txt"
    listed.write_text("".join(f"{name}.avi 1\n" for name in names), encoding="utf-8")
    return Ucf101Settings(folder / "out", listed, count=8, frames=10, splits=2, batch=3, steps=1, overlap_frames=2)


def detectors(networks: dict[str, Path]) -> Detectors:
    return Detectors(I3D.load(networks["i3d"]), C3D.load(networks["c3d"]), Clip(networks["clip"]), splits=2)


def noise_videos(numbers: object) -> tuple[Tensor, list[str]]:
    clips = [torch.rand(3, 10, 8, 8, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in numbers]  # type: ignore[attr-defined]
    return torch.stack(clips), [f"video {n}" for n in numbers]  # type: ignore[attr-defined]


def test_there_is_one_prompt_per_class_of_ucf101() -> None:
    prompts = read_prompts(PROMPTS)
    assert len(prompts) == CLASSES and len(set(prompts.values())) == CLASSES
    assert all(len(prompt.split()) >= 7 and prompt.endswith(".") for prompt in prompts.values())
    assert {"ApplyEyeMakeup", "HandstandPushups", "YoYo"} <= set(prompts)


def test_classes_are_distributed_as_in_training_and_mixed() -> None:
    classes = plan_classes(COUNTS, 1000, seed=0)
    assert [classes.count(name) for name in COUNTS] == [600, 300, 100]
    assert set(classes[:50]) == set(COUNTS) and classes == plan_classes(COUNTS, 1000, seed=0)


def test_rounding_leaves_the_wanted_number_of_videos() -> None:
    classes = plan_classes({"a": 1, "b": 1, "c": 1}, 100, seed=1)
    assert len(classes) == 100 and sorted(classes.count(name) for name in "abc") == [33, 33, 34]


def test_frames_are_scaled_by_their_shorter_side_and_cut_to_a_square() -> None:
    frames = torch.zeros(1, 3, 2, 10, 30)
    frames[..., 10:20] = 1
    cut = resized(frames, 20, antialias=True)
    assert cut.shape == (1, 3, 2, 20, 20) and float(cut[..., 2:-2].min()) == 1


def test_i3d_sees_frames_as_the_shared_fvd_code_resizes_them() -> None:
    frames = torch.rand(1, 3, 10, 300, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen: list[Tensor] = []
    I3D(lambda pixels, **options: seen.append(pixels) or pixels.mean((2, 3, 4)))(frames)
    theirs = nn.functional.interpolate(frames[0].transpose(0, 1), (224, 224), mode="bilinear", align_corners=False)
    assert torch.allclose(seen[0][0].transpose(0, 1), theirs)


def test_logits_and_probabilities_give_the_same_score() -> None:
    logits = C3D(nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()))
    frames = torch.rand(2, 3, 10, 8, 8) * 2 - 1
    probabilities = logits(frames)
    assert torch.allclose(probabilities.sum(1), torch.ones(2))
    assert torch.allclose(C3D(lambda pixels: probabilities)(frames), probabilities)


def test_clip_measures_are_cosines_of_the_models_own_embeddings(networks: dict[str, Path]) -> None:
    clip = Clip(networks["clip"])
    frames, prompts = noise_videos(range(2))
    images, texts = clip.images(frames), clip.texts(prompts)
    tokens = clip.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = ((resized(frames, 32, antialias=True)[0, :, 0] + 1) / 2 - clip.mean) / clip.std
    with torch.no_grad():
        theirs = clip.model(pixel_values=pixels[None], **tokens)
    scale = float(clip.model.logit_scale.detach().exp())
    assert torch.allclose(images[0, 0] @ texts.T * scale, theirs.logits_per_image[0], atol=1e-4)
    assert torch.allclose(frame_consistency(images[:, :1].expand(-1, 4, -1)), torch.ones(2))
    assert torch.allclose(text_similarity(texts[:, None], texts), torch.ones(2))


def test_several_processes_and_a_resumed_run_measure_what_one_does(networks: dict[str, Path], tmp_path: Path) -> None:
    whole = measure_all(noise_videos, 11, 2, detectors(networks), tmp_path / "one", {}, Process())
    seen: list[int] = []

    def counted(numbers: object) -> tuple[Tensor, list[str]]:
        seen.extend(numbers)  # type: ignore[call-overload]
        if 7 in numbers and len(seen) < 12:  # type: ignore[operator]
            raise InterruptedError
        return noise_videos(numbers)

    with pytest.raises(InterruptedError):
        measure_all(counted, 11, 2, detectors(networks), tmp_path / "more", {}, Process(1, 2))
    with pytest.raises(ValueError, match="of 11 videos after all processes have ended"):
        measure_all(noise_videos, 11, 2, detectors(networks), tmp_path / "more", {}, Process(0, 2))
    again = measure_all(noise_videos, 11, 2, detectors(networks), tmp_path / "more", {}, Process())
    assert again.videos == whole.videos == 11
    assert again.features is not None and whole.features is not None
    assert torch.allclose(again.features.covariance, whole.features.covariance)
    assert again.predictions is not None and whole.predictions is not None
    assert again.predictions.score() == pytest.approx(whole.predictions.score())
    assert again.similarity.mean == pytest.approx(whole.similarity.mean)
    seen.clear()
    measure_all(counted, 11, 3, detectors(networks), tmp_path / "more", {}, Process())
    assert seen == []


def test_streamed_metrics_equal_those_of_all_videos_at_once(networks: dict[str, Path], tmp_path: Path) -> None:
    found = measure_all(noise_videos, 9, 2, detectors(networks), tmp_path, {}, Process())
    frames, _ = noise_videos(range(9))
    features = Moments(6)
    features.update(I3D.load(networks["i3d"])(frames))
    predictions = InceptionMoments(3, 2)
    predictions.update(C3D.load(networks["c3d"])(frames), [n * 2 // 9 for n in range(9)])
    assert found.features is not None and torch.allclose(found.features.mean, features.mean)
    assert found.predictions is not None and found.predictions.score() == pytest.approx(predictions.score())


def test_machines_without_a_shared_disk_raise_and_lose_nothing(networks: dict[str, Path], tmp_path: Path) -> None:
    for machine in (0, 1):
        with pytest.raises(ValueError, match="shared disk; copy the part"):
            measure_all(noise_videos, 8, 2, detectors(networks), tmp_path / str(machine), {}, Process(machine, 2))
    for part in (tmp_path / "1").iterdir():
        shutil.copy(part, tmp_path / "0")
    parts = len(list((tmp_path / "0").iterdir()))
    assert measure_all(noise_videos, 8, 2, detectors(networks), tmp_path / "0", {}, Process()).videos == 8
    assert len(list((tmp_path / "0").iterdir())) == parts


def real_videos(settings: Ucf101Settings, **changes: object) -> RealVideos:
    files = read_trainlist(settings.trainlist)
    texts = dict.fromkeys(COUNTS, "a prompt")
    return RealVideos(settings.trainlist.parent, files, texts, replace(settings, **changes), (16, 16))  # type: ignore[arg-type]


def test_real_statistics_serve_videos_of_any_seed_and_batch(settings: Ucf101Settings) -> None:
    first, other = real_videos(settings), real_videos(settings, seed=7, batch=5, count=99)
    assert first.identity == other.identity and torch.equal(first([0, 1])[0], other([0, 1])[0])


def test_real_videos_too_short_for_the_rate_are_read_at_the_rate_that_fits(settings: Ucf101Settings) -> None:
    whole = real_videos(settings, frames=12)([0])[0]
    spread = real_videos(settings, frames=10, real_fps=4.0)([0])[0]  # 12 frames at 25 per second are 2 at 4
    assert spread.shape[2] == 10
    assert torch.equal(spread[:, :, 0], whole[:, :, 0]) and torch.equal(spread[:, :, -1], whole[:, :, -1])
    with pytest.raises(ValueError, match=r"has 12 frames, 16 are wanted: take it out of .*I3D needs at least 10"):
        real_videos(settings, frames=16)([0])


def test_real_videos_are_measured_before_any_is_generated(
    pipe: VidRDPipeline, networks: dict[str, Path], settings: Ucf101Settings, tmp_path: Path
) -> None:
    chosen = replace(settings, output=tmp_path, videos=settings.trainlist.parent, i3d=networks["i3d"], frames=16)
    with pytest.raises(ValueError, match="has 12 frames"):
        evaluate_ucf101(pipe, PROMPTS, chosen, "tiny")
    assert not (tmp_path / "state").exists() and not (tmp_path / "samples").exists()


def test_videos_of_another_decoder_scheduler_or_list_are_not_taken_for_these(
    pipe: VidRDPipeline, networks: dict[str, Path], settings: Ucf101Settings, tmp_path: Path
) -> None:
    chosen = replace(settings, output=tmp_path / "out", count=2, c3d=networks["c3d"])
    evaluate_ucf101(pipe, PROMPTS, chosen, "tiny")
    retrained = tiny_vae()
    with torch.no_grad():
        for parameter in retrained.parameters():
            parameter += 0.1
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    for message, parts in (("vae was", {"vae": retrained}), ("timestep_spacing was", {"scheduler": scheduler})):
        with pytest.raises(ValueError, match=message):
            evaluate_ucf101(VidRDPipeline(**{**pipe.components, **parts}), PROMPTS, chosen, "tiny")
    shorter = tmp_path / "shorter.txt"
    shorter.write_text("".join(settings.trainlist.read_text(encoding="utf-8").splitlines(True)[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match="trainlist was"):
        evaluate_ucf101(pipe, PROMPTS, replace(chosen, trainlist=shorter), "tiny")


def test_a_state_of_another_evaluation_is_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    measure_all(noise_videos, 4, 2, detectors(networks), tmp_path, {"steps": 1}, Process())
    with pytest.raises(ValueError, match="steps was 1 and is 2"):
        measure_all(noise_videos, 4, 2, detectors(networks), tmp_path, {"steps": 2}, Process())


def test_one_call_generates_measures_and_writes_everything(
    pipe: VidRDPipeline, networks: dict[str, Path], settings: Ucf101Settings
) -> None:
    chosen = replace(settings, videos=settings.trainlist.parent, **networks)
    results = evaluate_ucf101(pipe, PROMPTS, chosen, "tiny")
    found = results["figures"]
    assert found["videos"] == 8 and results["real"]["videos"] == 10
    assert found["FVD"] > 0 and 1 <= found["IS"] <= 3 and -1 <= found["CLIP similarity"] <= 1
    table = (settings.output / "results.md").read_text(encoding="utf-8")
    assert (
        "| VidRD, fine-tuned decoder (paper) | 5.3M | 39.37 | 363.19 |" in table and "**tiny** (measured here)" in table
    )
    assert f"{found['FVD']:.2f}" in table and "real videos" in table
    assert json.loads((settings.output / "results.json").read_text(encoding="utf-8"))["figures"] == found
    assert (settings.output / "samples.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in settings.output.rglob("part-*")}
    assert evaluate_ucf101(pipe, PROMPTS, chosen, "tiny")["figures"] == found
    assert {path: path.stat().st_mtime_ns for path in settings.output.rglob("part-*")} == before


def test_a_video_depends_on_its_number_alone(pipe: VidRDPipeline, settings: Ucf101Settings, tmp_path: Path) -> None:
    source = Generated(pipe, ["a", "b", "c", "d"], replace(settings, output=tmp_path))
    alone, _ = source([2])
    several, prompts = source([1, 2, 3])
    assert prompts == ["b", "c", "d"] and torch.allclose(several[1], alone[0], atol=1e-4)


def test_missing_files_are_named_with_what_to_get(
    pipe: VidRDPipeline, networks: dict[str, Path], settings: Ucf101Settings, tmp_path: Path
) -> None:
    def refused(message: str, **changes: object) -> None:
        with pytest.raises((ValueError, OSError), match=message):
            evaluate_ucf101(pipe, PROMPTS, replace(settings, output=tmp_path, **changes), "tiny")  # type: ignore[arg-type]

    videos = settings.trainlist.parent
    refused("i3d_torchscript.pt; get it", i3d=tmp_path / "nowhere.pt", videos=videos)
    refused("c3d_ucf101.pt; get it", c3d=tmp_path / "nowhere.pt")
    refused("CLIPModel", clip=tmp_path / "nowhere")
    refused("no network was named")
    refused("no I3D was named", videos=videos)
    refused("--videos", i3d=networks["i3d"])
    refused("train/test splits", trainlist=tmp_path / "none.txt")
    refused("lacks 10 of 10", i3d=networks["i3d"], videos=tmp_path)
    refused("not a TorchScript file", c3d=settings.trainlist)


def test_wrong_lists_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("Archery v_Archery.avi\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected lines like"):
        read_trainlist(file)
    file.write_text("Archery a man\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: expected `ClassName: prompt`"):
        read_prompts(file)
    with pytest.raises(ValueError, match="at least 10"):
        I3D(TinyI3D())(torch.zeros(1, 3, 8, 16, 16))


def test_measurements_merge_from_nothing() -> None:
    whole = Measurements()
    whole.merge(Measurements.from_tensors(Measurements().tensors()))
    assert whole.videos == 0 and whole.features is None
