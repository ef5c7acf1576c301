"""Noise, targets and weights of the U-Net's loss."""

import pytest
import torch
from components import tiny_text_encoder, tiny_tokenizer, tiny_unet

from vidrd_core.reuse.settings import ReuseSettings
from vidrd_core.train.micro_batches import MicroBatch, derived_generator
from vidrd_core.train.objective import (
    UNetObjective,
    add_cleaner_frames,
    by_noise_level,
    draw_noise,
    draw_times,
    make_scheduler,
    target_of,
    weights_of,
)
from vidrd_core.train.sources import ClipBatch
from vidrd_core.train.text import encode_text
from vidrd_core.train.unet import UNetTask

SHAPE = torch.Size((64, 4, 8, 8, 8))
MICRO_BATCH = MicroBatch(seed=0, step=3, batch_size=64, size=64)
CLEAN = torch.tensor([0.9999, 0.9, 0.5, 0.1, 0.005])  # alphas_cumprod


class Fixed:
    """A source of one batch."""

    def __init__(self, batch):
        self.made = batch

    def batch(self, micro_batch):
        return self.made


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"progressive_alpha": 2.0},
        {"continuation_share": 1.0},
        {"continuation_share": 1.0, "progressive_alpha": 2.0},
    ],
)
def test_noise_has_unit_variance_in_every_frame(settings):
    noise = draw_noise(UNetObjective(**settings), MICRO_BATCH, SHAPE)
    assert noise.std((0, 1, 3, 4)).sub(1).abs().max() < 0.03
    assert noise.mean().abs() < 0.03


def test_a_sample_gets_the_same_noise_and_time_in_any_micro_batch():
    objective = UNetObjective(progressive_alpha=1.0, continuation_share=0.5, offset_noise=0.1)
    whole = draw_noise(objective, MicroBatch(0, 2, 4, 4), torch.Size((4, 4, 6, 2, 2)))
    parts = [MicroBatch(0, 2, 4, 1, rank, 2, part) for part in range(2) for rank in range(2)]
    assert torch.equal(whole, torch.cat([draw_noise(objective, p, torch.Size((1, 4, 6, 2, 2))) for p in parts]))
    for evenly_or_not in (UNetObjective(), UNetObjective(focus_share=0.5)):
        times = draw_times(evenly_or_not, MicroBatch(0, 2, 4, 4), 8, 1000)
        assert torch.equal(times, torch.cat([draw_times(evenly_or_not, p, 2, 1000) for p in parts]))


def test_times_are_uniform_but_for_the_focused_share():
    micro_batch = MicroBatch(seed=1, step=0, batch_size=4096, size=4096)
    even = draw_times(UNetObjective(), micro_batch, 4096, 1000).float()
    assert even.median() == pytest.approx(500, abs=30) and even.std() == pytest.approx(1000 / 12**0.5, rel=0.05)

    focused = draw_times(UNetObjective(focus_share=1.0, focus_mean=0.4, focus_std=0.5), micro_batch, 4096, 1000).float()
    assert int(focused.min()) >= 0 and int(focused.max()) <= 999
    logits = torch.logit((focused + 0.5) / 1000)
    assert logits.mean() == pytest.approx(0.4, abs=0.05) and logits.std() == pytest.approx(0.5, rel=0.05)

    mixed = draw_times(UNetObjective(focus_share=0.75, focus_mean=0.4, focus_std=0.5), micro_batch, 4096, 1000).float()
    inside = ((mixed > 400) & (mixed < 800)).float().mean()
    near = ((focused > 400) & (focused < 800)).float().mean()
    assert inside == pytest.approx(float(0.75 * near + 0.25 * 0.4), abs=0.03)


def test_the_progressive_prior_correlates_neighbouring_frames_by_its_equation():
    noise = draw_noise(UNetObjective(progressive_alpha=2.0), MICRO_BATCH, SHAPE)
    correlation = (noise[:, :, 1:] * noise[:, :, :-1]).mean()
    assert correlation == pytest.approx(2 / 5**0.5, abs=0.03)


def test_a_continuation_reverses_its_predecessors_noise():
    reuse = ReuseSettings(overlap_frames=8, noise_alpha=4.0)
    first = draw_noise(UNetObjective(progressive_alpha=2.0), MICRO_BATCH, SHAPE)
    objective = UNetObjective(progressive_alpha=2.0, continuation_share=1.0, continuation=reuse)
    assert torch.equal(draw_noise(objective, MICRO_BATCH, SHAPE), first.flip(2))
    half = draw_noise(
        UNetObjective(progressive_alpha=2.0, continuation_share=0.5, continuation=reuse), MICRO_BATCH, SHAPE
    )
    follows = sum(torch.equal(half[n], first[n].flip(1)) for n in range(64))
    assert 15 < follows < 49 and sum(torch.equal(half[n], first[n]) for n in range(64)) == 64 - follows


def test_offset_noise_is_constant_over_a_clip():
    plain = draw_noise(UNetObjective(), MICRO_BATCH, SHAPE)
    moved = draw_noise(UNetObjective(offset_noise=0.5), MICRO_BATCH, SHAPE) - plain
    assert moved.std((2, 3, 4)).max() < 1e-5 and moved[:, :, 0, 0, 0].std() == pytest.approx(0.5, rel=0.2)


def test_weights_are_those_of_the_papers():
    snr = CLEAN / (1 - CLEAN)
    assert torch.allclose(weights_of(UNetObjective(), CLEAN), torch.ones(5))
    assert torch.allclose(weights_of(UNetObjective(max_weight=10), CLEAN), (1 + 1 / snr).clamp(max=10))
    assert torch.allclose(weights_of(UNetObjective(min_snr=5), CLEAN), snr.clamp(max=5) / snr)
    v = UNetObjective(min_snr=5, prediction="v_prediction")
    assert torch.allclose(weights_of(v, CLEAN), snr.clamp(max=5) / (snr + 1))
    with pytest.raises(ValueError, match="max_weight"):
        UNetObjective(max_weight=5, min_snr=5)


def test_a_perfect_v_prediction_gives_back_the_clip():
    scheduler = make_scheduler("v_prediction")
    clip, noise, times = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2), torch.tensor([100, 900])
    v = target_of(UNetObjective(prediction="v_prediction"), scheduler, clip, noise, times)
    noisy = scheduler.add_noise(clip, noise, times)
    for n, time in enumerate(times):
        step = scheduler
        step.set_timesteps(1000)
        found = step.step(v[n : n + 1], int(time), noisy[n : n + 1]).pred_original_sample
        assert torch.allclose(found, clip[n : n + 1], atol=1e-4)


def test_errors_are_logged_by_noise_level():
    levels = by_noise_level(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 50, 999]), 1000)
    assert set(levels) == {"noise_level/0", "noise_level/9"} and levels["noise_level/0"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("stored", [False, True])
def test_a_share_of_the_captions_is_emptied_in_stored_texts_too(tmp_path, stored):
    encoder, tokenizer = tiny_text_encoder().requires_grad_(False), tiny_tokenizer(tmp_path)
    captions = ["a red circle"] * 64
    text = torch.ones(64, 16, 32) if stored else None
    batch = ClipBatch(captions, captions, latents=torch.zeros(64, 4, 1, 4, 4), text=text)
    objective = UNetObjective(caption_dropout=0.5, null_captions=("", "watermark"))
    task = UNetTask(tiny_unet(), encoder, tokenizer, Fixed(batch), objective)
    states = task._text(batch, MICRO_BATCH)
    plain = task._text(ClipBatch(list(objective.null_captions), ["", ""]), MicroBatch(0, 0, 2, 2))
    kept = text[0] if stored else None
    kinds = {tuple(s.flatten()[:40].tolist()) for s in states}
    assert len(kinds) == 3  # the caption, and both texts that stand for none
    assert plain.shape == (2, 16, 32) and (kept is None or any(torch.equal(s, kept) for s in states))


def test_dropped_captions_become_the_null_captions_and_none_but_those(tmp_path):
    encoder, tokenizer = tiny_text_encoder().requires_grad_(False), tiny_tokenizer(tmp_path)
    captions = ["a red circle"] * 64
    batch = ClipBatch(captions, captions, latents=torch.zeros(64, 4, 1, 4, 4))
    drawn = torch.cat([torch.rand(1, generator=derived_generator(0, "caption", n)) for n in MICRO_BATCH.samples])
    kept = [value >= 0.5 for value in drawn.tolist()]
    assert 16 < sum(kept) < 48
    for nulls in [("",), ("watermark",), ("", "watermark")]:
        task = UNetTask(
            tiny_unet(), encoder, tokenizer, Fixed(batch), UNetObjective(caption_dropout=0.5, null_captions=nulls)
        )
        # Numbers from 0 to the dropout are divided among the null captions in their order.
        chosen = [nulls[int(2 * value * len(nulls))] if value < 0.5 else "a red circle" for value in drawn.tolist()]
        assert torch.equal(task._text(batch, MICRO_BATCH), encode_text(tokenizer, encoder, chosen))
    usual = UNetTask(tiny_unet(), encoder, tokenizer, Fixed(batch), UNetObjective(caption_dropout=0.5))
    expected = encode_text(tokenizer, encoder, ["a red circle" if keep else "" for keep in kept])
    assert torch.equal(usual._text(batch, MICRO_BATCH), expected)


def test_impossible_objectives_are_refused():
    for nulls in ((), (None,)):
        with pytest.raises(ValueError, match="expected texts"):
            UNetObjective(null_captions=nulls)
    with pytest.raises(ValueError, match="caption_dropout is 2"):
        UNetObjective(caption_dropout=2)
    with pytest.raises(ValueError, match="epsilon, v_prediction"):
        UNetObjective(prediction="x0")


def test_a_cleaner_frame_has_less_noise_and_does_not_count_in_the_loss():
    micro_batch, shape = MicroBatch(seed=1, step=0, batch_size=400, size=400), torch.Size((400, 2, 5, 2, 2))
    scheduler = make_scheduler()
    latents, noise = torch.randn(2, *shape)
    times = torch.full((400,), 900)
    noisy = scheduler.add_noise(latents, noise, times)
    same, all_count = add_cleaner_frames(UNetObjective(), micro_batch, scheduler, noisy, latents, noise, times)
    assert torch.equal(same, noisy) and bool((all_count == 1).all())

    objective = UNetObjective(cleaner_frame_share=0.25, cleaner_frame_level=0.1)
    shown, counted = add_cleaner_frames(objective, micro_batch, scheduler, noisy, latents, noise, times)
    changed = (shown != noisy).flatten(3).any(3).any(1)  # by clip and frame
    assert torch.equal(changed, counted == 0) and int(changed.sum(1).max()) == 1
    assert float(changed.any(1).float().mean()) == pytest.approx(0.25, abs=0.06)
    assert set(torch.nonzero(changed)[:, 1].tolist()) == set(range(5))
    clip, frame = torch.nonzero(changed)[0].tolist()
    cleaner = scheduler.add_noise(latents[clip, :, frame], noise[clip, :, frame], torch.tensor([90]))
    assert torch.equal(shown[clip, :, frame], cleaner)

    whole = add_cleaner_frames(
        objective, MicroBatch(1, 0, 4, 4), scheduler, noisy[:4], latents[:4], noise[:4], times[:4]
    )[0]
    parts = []
    for n, part in enumerate(MicroBatch(1, 0, 4, 1, rank, 2, half) for half in range(2) for rank in range(2)):
        one = slice(n, n + 1)
        parts.append(
            add_cleaner_frames(objective, part, scheduler, noisy[one], latents[one], noise[one], times[one])[0]
        )
    assert torch.equal(whole, torch.cat(parts))
