"""The decoder's training: its losses, the discriminator, and that it reduces flicker."""

import json
from pathlib import Path

import pytest
import torch
from components import tiny_vae
from training_components import SMALL, settings, shard_folder

from vidrd_core import VidRDAutoencoderKL
from vidrd_core.train.adversarial import AdversarySettings
from vidrd_core.train.autoencoder import (
    AutoencoderLoss,
    TemporalDecoderTask,
    decode_frame_by_frame,
    last_temporal_weight,
)
from vidrd_core.train.flicker import flicker, psnr
from vidrd_core.train.loop import Trainer, train
from vidrd_core.train.micro_batches import MicroBatch
from vidrd_core.train.perceptual import LPIPS_WIDTHS, VGG16, Lpips, MultiScaleFeatureLoss, make_perceptual
from vidrd_core.train.sources import MovingShapesSource, ShardSource

DEMO_VAE = Path(__file__).parent.parent / "vidrd_core" / "demo_model" / "vae"


def task(**changes):
    adversary = AdversarySettings(weight=0.5, start_samples=4, channels=8, layers=2)
    known = {"num_frames": 3, "perceptual_weight": 0.5, "adversary": adversary}
    return TemporalDecoderTask(tiny_vae(), AutoencoderLoss(motion=1.0), **{**known, **changes})


def lines_of(run):
    return [json.loads(line) for line in (run / "statistics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_adversarial_loss_starts_late_and_trains_only_discriminator_and_temporal_layers(tmp_path):
    made = task()
    before = {name: p.detach().clone() for m in made.modules.values() for name, p in m.named_parameters()}
    train(made, settings(tmp_path))
    after = {name: p.detach() for m in made.modules.values() for name, p in m.named_parameters()}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("temp_convs" in n for n in changed) and any(n.startswith("blocks.") for n in changed)
    assert all("temp_convs" in name or name.startswith("blocks.") for name in changed)
    lines = lines_of(tmp_path)
    assert ["discriminator" in line for line in lines] == [False, False, True, True]
    exported = VidRDAutoencoderKL.from_pretrained(tmp_path / "model")
    assert set(exported.state_dict()) == set(made.vae.state_dict())


def test_a_resumed_adversarial_run_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    train(task(), settings(tmp_path / "uninterrupted", final_rate=1.0))
    train(task(), settings(tmp_path / "resumed", samples=6, final_rate=1.0))
    train(task(), settings(tmp_path / "resumed", final_rate=1.0))
    whole, resumed = ([line["loss"] for line in lines_of(tmp_path / run)] for run in ("uninterrupted", "resumed"))
    assert whole == resumed


def test_the_adversarial_gradient_has_the_norm_of_the_reconstructions_and_each_loss_trains_its_own_network():
    made = task(adversary=AdversarySettings(weight=1.0, channels=8, layers=2))
    clips = MovingShapesSource(3).batch(MicroBatch(0, 0, 2, 2)).pixels
    output = made.calls["vae"](made.vae.encode(clips).latent_dist.mode())
    reconstruction = (output - clips).abs().mean()
    last = last_temporal_weight(made.vae)
    added, figures = made.adversary.losses(made.calls["discriminator"], reconstruction, output, clips, last)
    (plain,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (adversarial,) = torch.autograd.grad(added, last, retain_graph=True)
    assert adversarial.norm() == pytest.approx(plain.norm().item(), rel=0.05)
    added.backward()
    judged = {name: p.grad.clone() for name, p in made.adversary.discriminator.named_parameters()}
    made.adversary.discriminator.zero_grad()
    real, fake = made.adversary.discriminator(torch.cat((clips, output.detach()))).chunk(2)
    (0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())).backward()
    for name, parameter in made.adversary.discriminator.named_parameters():
        assert torch.allclose(parameter.grad, judged[name], atol=1e-6)
    assert figures["adversarial_weight"] > 0


def test_the_built_in_feature_loss_weighs_blur_more_than_brightness():
    frames = MovingShapesSource(1).batch(MicroBatch(0, 0, 8, 8)).pixels[:, :, 0]
    loss = MultiScaleFeatureLoss()
    blurred = torch.nn.functional.avg_pool2d(frames, 5, 1, 2, count_include_pad=False)
    brighter = frames + (blurred - frames).abs().mean()
    assert loss(frames, frames) == 0
    assert loss(blurred, frames) > 10 * loss(brighter, frames)


def test_lpips_reads_its_two_files_and_follows_its_equation(tmp_path, caplog):
    torch.manual_seed(0)
    backbone, width, index = {}, 3, 0
    for entry in VGG16:
        if isinstance(entry, int):
            backbone[f"features.{index}.weight"] = 0.1 * torch.randn(entry, width, 3, 3)
            backbone[f"features.{index}.bias"] = torch.zeros(entry)
            width = entry
        index += 2 if isinstance(entry, int) else 1
    heads = {f"lin{n}.model.1.weight": torch.rand(1, w, 1, 1) for n, w in enumerate(LPIPS_WIDTHS)}
    torch.save({**backbone, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    torch.save(heads, tmp_path / "vgg.pth")
    lpips = make_perceptual(tmp_path / "vgg16.pth", tmp_path / "vgg.pth")
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    assert isinstance(lpips, Lpips) and lpips(a, a) == 0
    with torch.no_grad():
        maps = zip(lpips._maps(a), lpips._maps(b), heads.values())
        by_hand = sum((((x - y) ** 2) * w).sum(1).mean((1, 2)) for x, y, w in maps)
        assert torch.allclose(lpips(a, b), by_hand.mean(), rtol=1e-5)
        assert [m.shape[1:] for m in lpips._maps(a)] == [(w, 16 >> n, 16 >> n) for n, w in enumerate(LPIPS_WIDTHS)]
    with pytest.raises(ValueError, match="no weights of LPIPS"):
        make_perceptual(tmp_path / "vgg.pth", tmp_path / "vgg.pth")
    with caplog.at_level("INFO"):
        make_perceptual(None, None)
    assert "built-in feature loss" in caplog.text


def test_a_decoder_trains_on_prepared_pixels_and_refuses_latents(tmp_path):
    source = ShardSource([shard_folder(tmp_path / "set", 3)], SMALL, 2, 0)
    train(task(source=source, held_out=source), settings(tmp_path / "run", samples=4, validate_samples=4))
    assert {"held_out/loss", "held_out/flicker", "held_out/image_decoder_psnr"} <= set(lines_of(tmp_path / "run")[-1])


def test_flicker_and_psnr_follow_their_definitions():
    still = torch.zeros(1, 3, 4, 8, 8)
    blinking = still + torch.tensor([0.0, 0.2, 0.0, 0.2])[None, None, :, None, None]
    assert flicker(blinking, still) == pytest.approx(0.2)
    assert psnr(still + 0.02, still) == pytest.approx(40.0, abs=1e-3)


def test_training_reduces_flicker_at_no_cost_in_psnr(tmp_path):
    """New temporal layers on the bundled image decoder, with noisy latents: against that image decoder."""
    vae = fresh_temporal(DEMO_VAE)
    latents, clips = held_out_clips(vae, noise=0.3)
    with torch.no_grad():
        plain = decode_frame_by_frame(vae, latents)
        assert torch.allclose(vae.decode(latents).sample, plain, atol=1e-5)  # new layers change nothing
    made = TemporalDecoderTask(vae, AutoencoderLoss(motion=1.0), num_frames=4, latent_noise=0.5)
    how = {"learning_rate": 3e-3, "warmup_samples": 8, "save_samples": 48, "ema_decay": 0.8, "precision": "bf16"}
    train(made, settings(tmp_path, samples=48, **how))
    trained = VidRDAutoencoderKL.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        output = trained.decode(latents).sample
    assert flicker(output, clips) < 0.9 * flicker(plain, clips)
    assert psnr(output, clips) >= psnr(plain, clips)


def test_the_bundled_decoder_flickers_less_than_its_image_decoder_and_is_as_close():
    vae = VidRDAutoencoderKL.from_pretrained(DEMO_VAE, torch_dtype=torch.float32).eval()
    latents, clips = held_out_clips(vae, noise=0.1)
    with torch.no_grad():
        plain, output = decode_frame_by_frame(vae, latents), vae.decode(latents).sample
    assert flicker(output, clips) < 0.9 * flicker(plain, clips)
    assert psnr(output, clips) >= psnr(plain, clips)


def fresh_temporal(folder):
    """The bundled VAE with temporal layers as they are before training."""
    bundled = VidRDAutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    spatial = {name: value for name, value in bundled.state_dict().items() if "temp_" not in name}
    return VidRDAutoencoderKL.from_image_vae(spatial, dict(bundled.config), add_temp_conv=True).eval()


def held_out_clips(vae, noise):
    """Latents of unseen scenes with noise on them, in units of the diffusion model's latents, and the true clips."""
    micro_batch = MicroBatch(7, 0, 6, 6)
    clips = MovingShapesSource(4, "test").batch(micro_batch).pixels
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode()
    return latents + micro_batch.normal(*latents.shape[1:], purpose="noise") * noise / vae.config.scaling_factor, clips


def test_the_adversarial_loss_starts_in_all_processes_and_micro_batches_at_once():
    made = task(adversary=AdversarySettings(weight=0.5, start_samples=5, channels=8, layers=2))
    for step, joined in ((1, False), (2, True)):  # samples 4 to 7, and 8 to 11
        parts = [made.loss(MicroBatch(0, step, 4, 1, process, 2, part)) for part in range(2) for process in range(2)]
        assert ["discriminator" in outcome.figures for outcome in parts] == [joined] * 4


def test_the_logged_loss_leaves_out_the_value_of_the_adversarial_loss():
    made = task(adversary=AdversarySettings(weight=1.0, channels=8, layers=2))
    with torch.no_grad():
        made.adversary.discriminator.blocks[-1].bias.fill_(1e4)  # takes all for real: far below zero for the decoder
    outcome = made.loss(MicroBatch(0, 0, 2, 2))
    assert outcome.figures["adversarial"] < -1e3 and outcome.loss.item() > outcome.figures["discriminator"]


def test_the_gradients_of_both_networks_are_unscaled_once_in_fp16(tmp_path, monkeypatch):
    trainer = Trainer(task(), settings(tmp_path, clip_norm=1e9))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    monkeypatch.setattr(trainer.accelerator.state, "_mixed_precision", "fp16")
    monkeypatch.setattr(trainer.accelerator, "native_amp", True)
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    loss = sum(p.square().sum() for p in trainer.parameters.values()) / 2  # whose gradient is the parameter
    scaler.scale(loss).backward()
    trainer._clip()
    assert all(torch.allclose(p.grad, p) for p in trainer.parameters.values())
