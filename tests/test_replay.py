"""Replay with samplers written out here: the overlap walks the recorded path, whatever the sampler makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vidrd_core.reuse.levels import level_at, progress_at
from vidrd_core.reuse.replay import LevelPace, PastClip, Recording, Replay, StepPace, overlap_noise
from vidrd_core.reuse.settings import ReuseSettings

FLOW = [1.0, 0.9, 0.75, 0.5, 0.25, 0.0]
FORWARD = ReuseSettings(2, 0.0, 1.0, "forward", 2, "uniform")


class Flow:
    """``(1 - sigma) * data + sigma * noise``."""

    def mix(self, sigma: float, noise: Tensor, data: Tensor) -> Tensor:
        return (1 - sigma) * data + sigma * noise

    def scale(self, sigma: float) -> float:
        return 1.0

    def level(self, sigma: float) -> float:
        return sigma

    def sigma_at(self, level: float) -> float:
        return level


class Added(Flow):
    """``data + sigma * noise``, which the network sees divided by ``sqrt(1 + sigma^2)``."""

    def mix(self, sigma: float, noise: Tensor, data: Tensor) -> Tensor:
        return data + sigma * noise

    def scale(self, sigma: float) -> float:
        return math.sqrt(1 + sigma**2)

    def level(self, sigma: float) -> float:
        return sigma / (1 + sigma)

    def sigma_at(self, level: float) -> float:
        return level / (1 - level)


def network(x: Tensor, sigma: float, shift: float) -> Tensor:
    """Clean data in which each frame depends on its neighbours."""
    return torch.tanh(x + 0.3 * x.roll(1, dims=2) + shift) * (1 + sigma)


class Clip:
    """A clip of 4 frames that a sampler makes, recorded, and steered by a replay."""

    def __init__(self, noise: Tensor, shift: float, replay: Replay | None = None, levels: list[float] = FLOW):
        self.recording, self.replay, self.shift, self.levels = Recording(), replay, shift, levels
        self.seen: list[Tensor] = []
        if replay is not None:
            replay.begin(noise)
        self.noise = noise

    def call(self, x: Tensor, sigma: float) -> Tensor:
        below = max((level for level in self.levels if level < sigma), default=0.0)
        steered = None if self.replay is None else self.replay.at(len(self.recording), sigma, below)
        seen = x.clone()
        if steered is not None:
            seen[:, :, : steered.shown.shape[2]] = steered.shown
        self.seen.append(seen)
        clean = network(seen, sigma, self.shift)
        if steered is not None:
            clean[:, :, : steered.prediction.shape[2]] = steered.prediction
        self.recording.add(sigma, x.clone(), clean.clone())
        return clean


def euler(clip: Clip) -> Tensor:
    x = clip.noise * clip.levels[0]
    for sigma, below in zip(clip.levels, clip.levels[1:], strict=False):
        clean = clip.call(x, sigma)
        x = clean + (x - clean) * (below / sigma)
    return x


def two_step(clip: Clip) -> Tensor:
    """Adams-Bashforth: each step also uses the slope of the one before."""
    x, before = clip.noise * clip.levels[0], None
    for sigma, below in zip(clip.levels, clip.levels[1:], strict=False):
        slope = (x - clip.call(x, sigma)) / sigma
        x = x + (below - sigma) * (slope if before is None or not below else 1.5 * slope - 0.5 * before)
        before = slope
        if not below:
            x = clip.recording.predictions[-1]
    return x


def renoising(clip: Clip) -> Tensor:
    """Throws its x away in every step, as lcm does."""
    x, fresh = clip.noise * clip.levels[0], torch.Generator().manual_seed(9)
    for sigma, below in zip(clip.levels, clip.levels[1:], strict=False):
        clean = clip.call(x, sigma)
        x = (1 - below) * clean + below * torch.randn(x.shape, generator=fresh)
    return x


def midpoint(clip: Clip) -> Tensor:
    """Two calls a step."""
    x = clip.noise * clip.levels[0]
    for sigma, below in zip(clip.levels, clip.levels[1:], strict=False):
        clean = clip.call(x, sigma)
        middle = (sigma + below) / 2
        half = clean + (x - clean) * (middle / sigma)
        clean = clip.call(half, middle)
        x = clean + (half - clean) * (below / middle)
    return x


def noises() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((1, 2, 4, 3, 3), generator=generator) for _ in range(2))  # type: ignore[return-value]


def past_of(clip: Clip, end: Tensor, process: Flow | None = None) -> PastClip:
    return PastClip(clip.recording, end, clip.noise, process or Flow())


def follow(sampler, settings=FORWARD, levels=FLOW, process=None, pace=None):
    """The clip before and its end, the clip that follows and its end."""
    noise, fresh = noises()
    first = Clip(noise, 0.2, levels=levels)
    end = sampler(first)
    replay = Replay(past_of(first, end, process), settings, pace or LevelPace(process or Flow()))
    second = Clip(overlap_noise(noise, fresh, settings, replay.back), -0.4, replay, levels)
    return first, end, second, sampler(second)


@pytest.mark.parametrize("sampler", [euler, two_step, renoising, midpoint])
def test_the_overlap_repeats_the_end_of_the_clip_before_with_any_sampler(sampler):
    _, end, _, after = follow(sampler)
    torch.testing.assert_close(after[:, :, :2], end[:, :, 2:], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(after[:, :, 2:], end[:, :, :2], atol=0.1)


def test_in_reversed_order_the_overlap_runs_back_from_the_last_frame():
    settings = ReuseSettings(3, 0.0, 1.0, "reverse", 0, "uniform")
    _, end, _, after = follow(euler, settings)
    torch.testing.assert_close(after[:, :, :3], end[:, :, 1:].flip(2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("beta", [0.4, 0.7])
@pytest.mark.parametrize("stages", ["linear", "uniform"])
def test_with_euler_it_is_overwriting_x_also_where_steering_ends_early(beta, stages):
    settings = ReuseSettings(2, 0.0, beta, "reverse", 0, stages)
    levels = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]
    first, _, second, after = follow(euler, settings, levels, Added(), StepPace(levels))
    steered = settings.steered_steps(5)
    x = second.noise * levels[0]
    for step, (sigma, below) in enumerate(zip(levels, levels[1:], strict=False)):
        count = sum(step < steps for steps in steered)
        x[:, :, :count] = first.recording.states[step].flip(2)[:, :, :count]
        clean = network(x, sigma, -0.4)
        x = clean + (x - clean) * (below / sigma)
    torch.testing.assert_close(after, x, rtol=1e-6, atol=1e-6)


def test_a_cleaner_overlap_is_shown_at_its_level_and_the_samplers_own_stays_at_its_own():
    settings = ReuseSettings(2, 0.0, 1.0, "forward", 2, "uniform", 0.8)
    levels = [14.0, 5.0, 2.0, 0.7, 0.2, 0.0]
    first, end, second, after = follow(euler, settings, levels, Added())
    torch.testing.assert_close(after[:, :, :2], end[:, :, 2:], rtol=1e-6, atol=1e-6)
    level = level_at(0.8 + 0.2 * progress_at(14 / 15))
    sigma = level / (1 - level)
    above, below = first.recording.states[3], first.recording.states[4]  # 0.7 and 0.2 around it
    state = torch.lerp(above, below, (0.7 - sigma) / 0.5)
    expected = state[:, :, 2:] * (math.sqrt(1 + 14**2) / math.sqrt(1 + sigma**2))
    torch.testing.assert_close(second.seen[0][:, :, :2], expected, rtol=1e-5, atol=1e-5)
    for own, recorded in zip(second.recording.states, first.recording.states, strict=True):
        torch.testing.assert_close(own[:, :, :2], recorded[:, :, 2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_shares_mean_the_same_noise_levels_at_every_shift(shift):
    levels = [shift * t / (1 + (shift - 1) * t) for t in torch.linspace(1, 0, 201).tolist()]
    pace = LevelPace(Flow())
    settings = ReuseSettings(1, 0.0, 0.4, "forward", 1, "uniform", 0.8)
    last = min(level for level in levels if level and pace.num_steered(settings, level))
    assert last == pytest.approx(level_at(0.4), abs=0.02)  # 0.69, where 40% of Stable Diffusion's steps are done
    assert pace.shown(settings, 0.97) == pytest.approx(level_at(0.8), abs=1e-6)


def test_levels_are_those_of_stable_diffusions_schedule_and_back():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    sigma = float(((1 - kept[599]) / kept[599]) ** 0.5)  # timestep 600 of 1000: 0.4 of the steps are done
    assert level_at(0.4) == pytest.approx(sigma / (1 + sigma), abs=1e-6)
    for progress in (0.0, 0.123, 0.5, 0.9, 1.0):
        assert progress_at(level_at(progress)) == pytest.approx(progress, abs=1e-6)
    assert progress_at(0.99) == 0 and level_at(1.0) == 0


def test_other_noise_levels_than_the_priors_are_followed_by_interpolation():
    noise, fresh = noises()
    first = Clip(noise, 0.2)
    end = euler(first)
    levels = [1.0, 0.82, 0.6, 0.3, 0.0]
    replay = Replay(past_of(first, end), FORWARD, LevelPace(Flow()))
    second = Clip(overlap_noise(noise, fresh, FORWARD, replay.back), -0.4, replay, levels)
    after = euler(second)
    torch.testing.assert_close(after[:, :, :2], end[:, :, 2:], rtol=1e-6, atol=1e-6)
    state = torch.lerp(first.recording.states[1], first.recording.states[2], (0.9 - 0.82) / 0.15)
    torch.testing.assert_close(second.seen[1][:, :, :2], state[:, :, 2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", [euler, renoising])
def test_a_clip_that_was_not_recorded_is_followed_along_the_straight_line_from_the_new_clips_noise(sampler):
    noise, end = noises()
    replay = Replay(PastClip(Recording(), end, None, Flow()), FORWARD, LevelPace(Flow()))
    clip = Clip(noise, -0.4, replay)
    after = sampler(clip)
    torch.testing.assert_close(after[:, :, :2], end[:, :, 2:], rtol=1e-6, atol=1e-6)
    for sigma, seen in zip(FLOW, clip.seen, strict=False):
        expected = (1 - sigma) * end[:, :, 2:] + sigma * noise[:, :, :2]
        torch.testing.assert_close(seen[:, :, :2], expected, rtol=1e-6, atol=1e-6)


def test_states_alone_are_followed_by_the_predictions_that_euler_would_need():
    noise, fresh = noises()
    first = Clip(noise, 0.2)
    end = euler(first)
    states = PastClip(Recording(first.recording.sigmas, first.recording.states), end, noise, Flow())
    replay = Replay(states, FORWARD, LevelPace(Flow()))
    second = Clip(overlap_noise(noise, fresh, FORWARD, replay.back), -0.4, replay)
    after = euler(second)
    torch.testing.assert_close(after[:, :, :2], end[:, :, 2:], rtol=1e-5, atol=1e-5)
    for own, recorded in zip(second.recording.states, first.recording.states, strict=True):
        torch.testing.assert_close(own[:, :, :2], recorded[:, :, 2:], rtol=1e-5, atol=1e-5)


def test_an_overlap_that_needs_more_than_was_kept_is_refused():
    noise, _ = noises()
    first = Clip(noise, 0.2)
    end = euler(first)
    kept = Recording(first.recording.sigmas, [state[:, :, 3:] for state in first.recording.states])
    with pytest.raises(ValueError, match="only the last 1 of the prior clip were kept"):
        Replay(PastClip(kept, end[:, :, 3:], noise, Flow()), FORWARD, LevelPace(Flow()))
