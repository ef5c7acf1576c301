"""FNR, PNS and DSG on tensors whose frames are numbered, the settings, and what a trajectory keeps."""

from __future__ import annotations

import math

import pytest
import torch
from components import relative_error

from vidrd_core.checkpoints.assembly import RELEASED_SCHEDULER
from vidrd_core.reuse.noise import initial_noise, source_frames
from vidrd_core.reuse.settings import ReuseSettings
from vidrd_core.reuse.states import SamplerStates
from vidrd_core.reuse.trajectory import Trajectory, TrajectoryRecorder, num_steered_frames, steer
from vidrd_core.sampling.schedulers import make_scheduler, sampler_states

N, S = 8, 50
# Ten steps at so little noise that between two states lies their weighted mean.
LINE = SamplerStates([1e-4 * (10 - step) for step in range(10)], [1.0] * 10, [1.0] * 10)


def numbered(frames: int = N, offset: float = 0.0) -> torch.Tensor:
    """``[1, 1, N, 1, 1]`` whose frames hold their number."""
    return (torch.arange(frames, dtype=torch.float32) + offset).reshape(1, 1, frames, 1, 1)


def frames_of(x: torch.Tensor) -> list[float]:
    return x.flatten().tolist()


# -- FNR ---------------------------------------------------------------------------------------------------------------


def test_in_reverse_order_the_noise_starts_at_the_last_frame_and_runs_back() -> None:
    settings = ReuseSettings(overlap_frames=N)
    assert frames_of(initial_noise(numbered(), numbered(offset=100), settings)) == [7, 6, 5, 4, 3, 2, 1, 0]


def test_in_forward_order_the_overlap_is_the_last_frames_in_their_own_order() -> None:
    settings = ReuseSettings(overlap_frames=3, order="forward", noise_alpha=math.inf)
    assert frames_of(initial_noise(numbered(), numbered(offset=100), settings)) == [5, 6, 7, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("order", ["reverse", "forward"])
@pytest.mark.parametrize("overlap", range(N + 1))
def test_every_frame_of_the_last_clip_is_used_once(order: str, overlap: int) -> None:
    settings = ReuseSettings(overlap_frames=overlap, order=order)
    assert sorted(source_frames(settings, N).tolist()) == list(range(N))


# -- PNS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["reverse", "forward"])
@pytest.mark.parametrize("overlap", [0, 4, N])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 4.0, 1e6, math.inf])
def test_the_noise_keeps_unit_variance_for_any_alpha(alpha: float, overlap: int, order: str) -> None:
    generator = torch.Generator().manual_seed(0)
    past, fresh = (torch.randn(1, 4, N, 64, 64, generator=generator) for _ in range(2))
    noise = initial_noise(past, fresh, ReuseSettings(overlap, alpha, order=order))
    for frame in noise.unbind(2):
        assert frame.std().item() == pytest.approx(1, abs=0.02)
        assert frame.mean().item() == pytest.approx(0, abs=0.02)


def test_alpha_zero_takes_fresh_noise_only() -> None:
    noise = initial_noise(numbered(), numbered(offset=100), ReuseSettings(4, 0.0))
    assert frames_of(noise) == [7, 6, 5, 4, 104, 105, 106, 107]


def test_alpha_infinity_reuses_all_noise() -> None:
    noise = initial_noise(numbered(), numbered(offset=100), ReuseSettings(4, math.inf))
    assert frames_of(noise) == [7, 6, 5, 4, 3, 2, 1, 0]


def test_other_frames_mix_past_and_fresh_noise_by_the_papers_weights() -> None:
    noise = initial_noise(numbered(), numbered(offset=100), ReuseSettings(4, 4.0))
    for j in range(4, N):
        assert noise[0, 0, j].item() == pytest.approx(4 / math.sqrt(17) * (N - 1 - j) + (100 + j) / math.sqrt(17))


def test_without_overlap_every_frame_gets_its_share_of_fresh_noise() -> None:
    assert frames_of(initial_noise(numbered(), numbered(offset=100), ReuseSettings(0, 0.0))) == frames_of(
        numbered(offset=100)
    )


def test_with_full_overlap_no_fresh_noise_enters() -> None:
    nan = torch.full_like(numbered(), math.nan)
    assert frames_of(initial_noise(numbered(), nan, ReuseSettings(N, 0.0))) == [7, 6, 5, 4, 3, 2, 1, 0]


# -- DSG ---------------------------------------------------------------------------------------------------------------


def test_the_released_values_guide_twenty_fifteen_ten_and_five_steps() -> None:
    settings = ReuseSettings()
    assert settings.steered_steps(S) == [20, 15, 10, 5]
    assert [num_steered_frames(settings, s, S) for s in (0, 4, 5, 9, 10, 14, 15, 19, 20, 49)] == [
        4, 4, 3, 3, 2, 2, 1, 1, 0, 0,
    ]  # fmt: skip


def test_guided_steps_follow_the_strict_inequality_of_the_paper() -> None:
    for overlap in range(1, N + 1):
        for steps in (1, 7, 15, 20, 50):
            for percent in (0, 10, 25, 40, 70, 100):
                expected = [
                    sum(s * 100 * overlap < percent * steps * (overlap - j) for s in range(steps))
                    for j in range(overlap)
                ]
                assert ReuseSettings(overlap, 4.0, percent / 100).steered_steps(steps) == expected


def test_beta_zero_guides_nothing_and_beta_one_guides_the_first_frame_to_the_end() -> None:
    assert ReuseSettings(guidance_beta=0.0).steered_steps(S) == [0, 0, 0, 0]
    assert ReuseSettings(guidance_beta=1.0).steered_steps(S) == [50, 38, 25, 13]
    assert ReuseSettings(overlap_frames=0).steered_steps(S) == []


def test_guidance_overwrites_the_first_frames_in_place() -> None:
    latents = numbered()
    out = steer(latents, torch.full((1, 1, 2, 1, 1), -1.0))
    assert out is latents
    assert frames_of(latents) == [-1, -1, 2, 3, 4, 5, 6, 7]
    assert frames_of(steer(numbered(), None)) == frames_of(numbered())


# -- trajectory --------------------------------------------------------------------------------------------------------


def record(settings: ReuseSettings, steps: int = S) -> TrajectoryRecorder:
    """A clip whose state at step s holds 1000 * s + frame."""
    recorder = TrajectoryRecorder(numbered(), settings, steps)
    for step in range(steps):
        recorder.record(step, numbered(offset=1000.0 * step))
    return recorder


@pytest.mark.parametrize("overlap", [0, 1, 3, 4, N])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_in_reverse_order_guided_frame_j_follows_frame_n_minus_1_minus_j(overlap: int, beta: float) -> None:
    settings = ReuseSettings(overlap, 4.0, beta)
    trajectory = record(settings).finish()
    for step in range(S):
        count = sum(step < steps for steps in settings.steered_steps(S))
        past = trajectory.overlap_at(step)
        expected = [1000.0 * step + N - 1 - j for j in range(count)]
        assert (frames_of(past) if past is not None else []) == expected


@pytest.mark.parametrize("overlap", [0, 1, 3, 4, N])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_in_forward_order_guided_frame_j_follows_frame_n_minus_m_plus_j(overlap: int, beta: float) -> None:
    settings = ReuseSettings(overlap, 4.0, beta, order="forward")
    trajectory = record(settings).finish()
    for step in range(S):
        count = sum(step < steps for steps in settings.steered_steps(S))
        past = trajectory.overlap_at(step)
        expected = [1000.0 * step + N - overlap + j for j in range(count)]
        assert (frames_of(past) if past is not None else []) == expected


def test_a_trajectory_keeps_the_noise_of_all_frames_and_the_guided_states_only() -> None:
    trajectory = record(ReuseSettings()).finish()
    assert trajectory.noise.shape[2] == N
    assert [state.shape[2] for state in trajectory.states] == [4] * 5 + [3] * 5 + [2] * 5 + [1] * 5
    assert trajectory.nbytes() == 4 * (N + 50)


def test_a_trajectory_owns_its_tensors_on_the_cpu() -> None:
    latents = numbered().requires_grad_()
    recorder = TrajectoryRecorder(latents, ReuseSettings(), S)
    recorder.record(0, latents)
    with torch.no_grad():
        latents.zero_()
    trajectory = recorder.finish()
    for tensor in (trajectory.noise, *trajectory.states):
        assert tensor.device.type == "cpu" and not tensor.requires_grad and tensor.any()


def test_a_trajectory_says_what_it_lacks_for_other_settings() -> None:
    trajectory = record(ReuseSettings(overlap_frames=2)).finish()
    assert trajectory.overlap_at(0, ReuseSettings(overlap_frames=1)) is not None
    with pytest.raises(ValueError, match=r"frames \[7, 6, 5, 4\].*last 2 were kept.*overlap 2"):
        trajectory.overlap_at(0, ReuseSettings(overlap_frames=4))
    with pytest.raises(ValueError, match="guidance beta 0.4"):
        trajectory.overlap_at(30, ReuseSettings(overlap_frames=2, guidance_beta=1.0))


# -- settings ----------------------------------------------------------------------------------------------------------


def test_trimming_the_overlap_of_a_forward_chain_drops_the_frames_that_repeat() -> None:
    settings = ReuseSettings(overlap_frames=3, order="forward", trim_frames=3)
    repeated = source_frames(settings, N)[: settings.trim_frames].tolist()
    assert repeated == [5, 6, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"overlap_frames": -1}, "overlap_frames is -1"), ({"noise_alpha": -0.5}, "noise_alpha is -0.5"),
     ({"noise_alpha": math.nan}, "noise_alpha is nan"), ({"guidance_beta": 1.5}, "guidance_beta is 1.5"),
     ({"guidance_beta": math.nan}, "guidance_beta is nan"), ({"order": "sideways"}, "sideways.*reverse, forward"),
     ({"trim_frames": -2}, "trim_frames is -2")],
)  # fmt: skip
def test_settings_out_of_range_are_refused_with_their_numbers(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReuseSettings(**changes)  # type: ignore[arg-type]


def test_settings_that_do_not_fit_the_clip_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="overlap_frames is 9 but the clip has 8"):
        ReuseSettings(overlap_frames=9).check(N)
    with pytest.raises(ValueError, match="trim_frames is 8 but the clip has 8"):
        ReuseSettings(trim_frames=8).check(N)
    with pytest.raises(ValueError, match=r"\[1, 1, 8, 1, 1\].*\[1, 1, 7, 1, 1\]"):
        initial_noise(numbered(), numbered(7), ReuseSettings())


def test_uniform_stages_steer_every_overlap_frame_equally_long():
    assert ReuseSettings(4, guidance_beta=0.4, stages="uniform").steered_steps(50) == [20] * 4
    assert ReuseSettings(4, guidance_beta=0.4).steered_steps(50) == [20, 15, 10, 5]
    settings = ReuseSettings(2, order="forward", guidance_beta=1.0, stages="uniform")
    clip = torch.arange(5.0)[None, None, :, None, None]
    recorder = TrajectoryRecorder(clip, settings, 2)
    for step in range(2):
        recorder.record(step, clip + 10 * step)
    guided = [recorder.finish().overlap_at(step) for step in range(2)]
    assert [past.flatten().tolist() for past in guided] == [[3.0, 4.0], [13.0, 14.0]]
    with pytest.raises(ValueError, match="stages is 'odd'; expected one of linear, uniform"):
        ReuseSettings(stages="odd")


def test_a_cleaner_overlap_shows_the_states_of_later_steps():
    settings = ReuseSettings(2, order="forward", guidance_beta=1.0, stages="uniform", cleaner_overlap=0.5)
    assert [settings.shown_at(step, 10) for step in (0, 4, 8, 9)] == [5, 7, 9, 9.5]
    clip = torch.arange(5.0)[None, None, :, None, None]
    recorder = TrajectoryRecorder(clip, settings, 10)
    for step in range(11):
        recorder.record(step, clip + 10 * step)
    past = recorder.finish()
    assert past.overlap_at(4, sampler=LINE).flatten().tolist() == [73.0, 74.0]
    assert relative_error(past.overlap_at(9, sampler=LINE).flatten(), torch.tensor([98.0, 99.0])) < 1e-3
    assert past.held_at(4, settings).flatten().tolist() == [43.0, 44.0]
    assert past.held_at(10, settings).flatten().tolist() == [103.0, 104.0]
    with pytest.raises(ValueError, match="say how they are made"):
        past.overlap_at(4)
    with pytest.raises(ValueError, match=r"cleaner_overlap is 1\.1; expected 0 .* to 1"):
        ReuseSettings(cleaner_overlap=1.1)


def test_states_without_the_end_are_shown_to_the_last_of_them():
    """As earlier versions kept them."""
    settings = ReuseSettings(2, order="forward", guidance_beta=1.0, stages="uniform", cleaner_overlap=0.5)
    clip = torch.arange(5.0)[None, None, :, None, None]
    past = Trajectory(clip, [clip + 10 * step for step in range(10)], settings, 10)
    past.check(settings)
    assert past.overlap_at(9).flatten().tolist() == [93.0, 94.0]
    assert past.held_at(10, settings) is None


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp-2m"])
def test_between_two_states_lies_the_one_of_the_noise_level_in_between(name):
    """At S = 4 the last state before the end is a noisy one; 0.8 cleaner than step 3 is a fifth of its timestep."""
    scheduler = make_scheduler(name, RELEASED_SCHEDULER, {"timestep_spacing": "trailing"})
    scheduler.set_timesteps(4)
    sampler = sampler_states(scheduler)
    data, noise = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    states = dict(enumerate(sampler.noise[n] * noise + sampler.data[n] * data for n in range(4))) | {4: data}
    kept = scheduler.alphas_cumprod
    for step, timestep in ((0, 199.8), (3, 49.8)):
        shown = sampler.between(states, step + 0.8 * (4 - step), step) / sampler.scales[step]
        alpha = torch.lerp(kept[int(timestep)], kept[int(timestep) + 1], timestep % 1)
        assert relative_error(shown, alpha.sqrt() * data + (1 - alpha).sqrt() * noise) < 0.02
        of_noise, of_data = sampler.coefficients(step + 0.8 * (4 - step), step)
        assert relative_error(shown * sampler.scales[step], of_noise * noise + of_data * data) < 1e-5
    assert sampler.coefficients(2, 2) == (sampler.noise[2], sampler.data[2])


@pytest.mark.parametrize("order", ["reverse", "forward"])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("stages", ["linear", "uniform"])
def test_a_cleaner_overlap_keeps_just_the_states_that_will_be_shown(order, beta, stages):
    settings = ReuseSettings(3, guidance_beta=beta, order=order, stages=stages, cleaner_overlap=0.6)
    clip = torch.arange(5.0)[None, None, :, None, None]
    recorder = TrajectoryRecorder(clip, settings, 10)
    for step in range(11):
        recorder.record(step, clip + 10 * step)
    past = recorder.finish()
    guided = max(settings.steered_steps(10))
    assert len(past.states) == (math.ceil(settings.shown_at(guided - 1, 10)) + 1 if guided else 0)
    for step in range(10):
        shown, count = past.overlap_at(step, sampler=LINE), num_steered_frames(settings, step, 10)
        wanted = source_frames(settings, 5)[:count] + 10 * settings.shown_at(step, 10)
        assert (shown is None) == (count == 0)
        assert shown is None or relative_error(shown.flatten(), wanted.float()) < 1e-3
    with pytest.raises(ValueError, match="only the last 0 were kept"):
        TrajectoryRecorder(clip, ReuseSettings(3), 10).finish().overlap_at(0, settings if beta else ReuseSettings(3))
