"""Goals: frames anywhere in a clip that follow a path of their own; start, end and loop of videos and of jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from components import relative_error
from PIL import Image

from vidrd_core import ReuseSettings, VidRDPipeline
from vidrd_core.jobs.folder import JobError, JobFolder
from vidrd_core.jobs.job import JobResult, Plan, check_job, open_job, run_job
from vidrd_core.reuse.goal import Goal, Goals, GoalSettings, choices, close, closing
from vidrd_core.reuse.noise import initial_noise
from vidrd_core.reuse.presets import SCHEDULERS
from vidrd_core.sampling.denoising import denoise_clip
from vidrd_core.sampling.images import pixels_of
from vidrd_core.sampling.schedulers import make_scheduler, prepare_scheduler, sampler_states
from vidrd_core.sampling.settings import SamplingSettings
from vidrd_core.sampling.state import VideoState
from vidrd_core.sampling.windows import cut_stream
from vidrd_core.video import read_metadata, read_video

REUSE = ReuseSettings(2, 0.0, 1.0, "forward", 2, "uniform", 0.8)
SAMPLING = SamplingSettings(6, 16, 16, 4, 3.0, REUSE)
PROMPTS = ["a red dot", "a blue dot", "a box"]
LONG = replace(SAMPLING, num_frames=8, reuse=ReuseSettings(5, 0.0, 1.0, "forward", 5, "uniform", 0.8))


def image(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(frames: int, seed: int = 0) -> np.ndarray:
    return np.stack([np.asarray(image(100 * seed + n)) for n in range(frames)])


def call(pipe: VidRDPipeline, **changes: Any) -> Any:
    known = {"num_frames": 6, "num_inference_steps": 4, "guidance_scale": 3.0, "reuse": REUSE, "num_clips": 3}
    return pipe("a red dot", **{**known, "output_type": "latent", **changes})


class Fake:
    """A denoiser that needs no model, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, progress: float) -> torch.Tensor:
        self.shown.append(latents.clone())
        return latents.roll(1, 2) * 0.5


def denoised(pipe: VidRDPipeline, noise: torch.Tensor, settings: ReuseSettings, **more: Any) -> Any:
    denoiser = Fake()
    scheduler = prepare_scheduler(pipe.scheduler, replace(SAMPLING, reuse=settings), "cpu")
    latents, trajectory = denoise_clip(denoiser, scheduler, noise, settings, **more)
    return latents, trajectory, denoiser.shown


# -- one clip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cleaner", [0.0, 0.8])
def test_a_goal_of_the_first_frames_along_a_recorded_path_is_the_overlap_to_the_bit(
    pipe: VidRDPipeline, cleaner: float
) -> None:
    reuse = replace(REUSE, cleaner_overlap=cleaner)
    noise, other = torch.randn(2, 1, 4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    _, past, _ = denoised(pipe, noise, reuse)
    steered, kept, shown = denoised(pipe, other, reuse, past=past)
    states = [state[:, :, -2:] for state in past.states]
    states += [states[-1]] * (4 - len(states))
    goal = Goal((0, 1), None, states=states, settings=GoalSettings(2, beta=1.0, cleaner=cleaner))
    along, recorded, seen = denoised(pipe, other, reuse, goals=[goal])
    assert torch.equal(along, steered)
    assert all(torch.equal(a, b) for a, b in zip(seen, shown, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(recorded.states, kept.states, strict=True))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_sampler_makes_of_the_overlap_does_not_reach_the_new_frames(pipe: VidRDPipeline, name: str) -> None:
    """Their history is their own also in multistep samplers: a step takes frame by frame."""
    noise, other = torch.randn(2, 1, 4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    made = []
    for garbage in (0.0, 100.0):

        def denoiser(latents: torch.Tensor, timestep: Any, progress: float, garbage: float = garbage) -> torch.Tensor:
            predicted = Fake()(latents, timestep, progress)
            predicted[:, :, :2] += garbage
            return predicted

        schedulers = [prepare_scheduler(make_scheduler(name, pipe.scheduler.config), SAMPLING, "cpu") for _ in "ab"]
        _, past = denoise_clip(Fake(), schedulers[0], noise, REUSE)
        made.append(denoise_clip(denoiser, schedulers[1], other, REUSE, past=past)[0])
    assert torch.equal(made[0][:, :, 2:], made[1][:, :, 2:])
    assert not torch.equal(made[0][:, :, :2], made[1][:, :, :2])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_goal_walks_the_straight_line_and_ends_on_its_frames(pipe: VidRDPipeline, name: str) -> None:
    noise, data = torch.randn(2, 1, 4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    data = data[:, :, :2]
    scheduler = prepare_scheduler(make_scheduler(name, pipe.scheduler.config), SAMPLING, "cpu")
    denoiser, steps = Fake(), len(scheduler.timesteps)
    sampler = sampler_states(scheduler)
    goal = Goal((2, 5), data, settings=GoalSettings(cleaner=0.0))
    latents, _ = denoise_clip(denoiser, scheduler, noise, REUSE, goals=[goal])
    assert torch.equal(latents[:, :, [2, 5]], data)
    for step, shown in enumerate(denoiser.shown):
        expected = (sampler.noise[step] * noise[:, :, [2, 5]] + sampler.data[step] * data) / sampler.scales[step]
        assert relative_error(shown[:, :, [2, 5]], expected) < 1e-4
    assert len(denoiser.shown) == steps and sampler.noise[0] > sampler.noise[-1]


def test_a_goal_is_shown_cleaner_than_its_neighbours_and_released_where_beta_ends(pipe: VidRDPipeline) -> None:
    noise, data = torch.randn(2, 1, 4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    data = data[:, :, :1]
    errors = []
    for cleaner in (0.0, 0.8):
        goal = Goal((5,), data, settings=GoalSettings(cleaner=cleaner))
        _, _, shown = denoised(pipe, noise, REUSE, goals=[goal])
        errors.append(relative_error(shown[0][:, :, 5:], data))
    assert errors[1] < errors[0] / 2
    half = Goal((5,), data, settings=GoalSettings(beta=0.5))
    latents, _, shown = denoised(pipe, noise, REUSE, goals=[half])
    assert relative_error(shown[1][:, :, 5:], data) < 0.9 and not torch.equal(latents[:, :, 5:], data)


def test_goals_that_do_not_fit_are_refused(pipe: VidRDPipeline) -> None:
    noise, data = torch.randn(1, 4, 6, 4, 4), torch.zeros(1, 4, 2, 4, 4)
    with pytest.raises(ValueError, match="of a clip of 6"):
        denoised(pipe, noise, REUSE, goals=[Goal((5, 6), data)])
    _, past, _ = denoised(pipe, noise, REUSE)
    with pytest.raises(ValueError, match="whose first 2 repeat the clip before"):
        denoised(pipe, noise, REUSE, past=past, goals=[Goal((1, 5), data)])
    with pytest.raises(ValueError, match="a goal of 2 frames is not for the frames"):
        Goal((5,), data)
    with pytest.raises(ValueError, match="neither"):
        Goal((5,), None)
    with pytest.raises(ValueError, match="frames of a goal is 0"):
        GoalSettings(0)
    with pytest.raises(ValueError, match=r"cleaner of a goal is 2\.0"):
        GoalSettings(cleaner=2.0)


# -- videos ------------------------------------------------------------------------------------------------------------


def test_a_video_begins_and_ends_with_the_given_frames(pipe: VidRDPipeline) -> None:
    plain, out = call(pipe), call(pipe, start_image=image(1), end_image=clip(4, 2))
    start, end = (pipe.encode_frames(pixels_of(frames, 16, 16)) for frames in (image(1), clip(4, 2)))
    assert out.frames.shape == plain.frames.shape
    assert torch.equal(out.frames[:, :, :1], start)
    assert torch.equal(out.frames[:, :, -2:], end[:, :, :2])  # the given clip goes on after the video
    assert not torch.equal(out.clips[0][:, :, 1:], plain.clips[0][:, :, 1:])
    begun = call(pipe, start_image=clip(5, 3))
    assert torch.equal(begun.frames[:, :, :3], pipe.encode_frames(pixels_of(clip(5, 3)[2:], 16, 16)))


def test_only_the_last_clip_of_a_video_knows_its_end(pipe: VidRDPipeline) -> None:
    plain, out = call(pipe), call(pipe, end_image=image(1))
    assert all(torch.equal(a, b) for a, b in zip(plain.clips[:2], out.clips[:2]))
    assert not torch.equal(plain.clips[2], out.clips[2])


def positions(*at: float) -> torch.Tensor:
    """Frames ``[1, 1, T, 1, 1]`` of something that moves along a line."""
    return torch.tensor(at).view(1, 1, -1, 1, 1)


@pytest.mark.parametrize(("distance", "repeated"), [(2.1, 4), (3.0, 3), (3.9, 2), (4.2, 2), (5.0, 1)])
def test_a_loop_arrives_where_its_steps_are_those_of_its_beginning(distance: float, repeated: int) -> None:
    """The last frame of the overlap is ``distance`` steps before the beginning, which the new frames divide evenly."""
    beginning, made = positions(0, 1, 2, 3, 4, 5, 6, 7), []

    def make(count: int) -> torch.Tensor:
        made.append(count)
        new = torch.linspace(-distance, 0, 8 - 3 - count + 2)[1:-1].tolist()
        return positions(-distance - 2, -distance - 1, -distance, *new, *range(count))

    found = close(make, lambda clip: clip, beginning, 3, choices(8, 3))
    assert made == [1, 2, 3, 4] and found[0] == repeated and found[1].shape[2] == 8
    assert torch.equal(found[1][:, :, -repeated:], beginning[:, :, :repeated])


def test_a_loop_of_what_stands_still_or_of_one_image_has_no_even_motion_to_choose() -> None:
    still = torch.zeros(2, 4, 8, 2, 2)
    assert close(lambda count: still, lambda clip: clip, still, 5, choices(8, 5))[0] == 1
    assert close(lambda count: count, lambda _: still, still[:, :, :1], 5, choices(8, 5)) == (1, 1)
    assert [list(choices(8, overlap)) for overlap in (0, 3, 5, 6, 8)] == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2], [1], [1]]


@pytest.mark.parametrize(("distances", "repeated"), [((1, 2, 2), 1), ((2, 1, 1), 2)])
def test_videos_side_by_side_share_the_count_that_is_best_in_the_mean(
    distances: tuple[float, ...], repeated: int
) -> None:
    beginning = positions(0, 1, 2).expand(len(distances), -1, -1, -1, -1)

    def make(count: int) -> torch.Tensor:  # two steps to the beginning, or one
        ends = [(-distance, -distance / 2, 0) if count == 1 else (-distance, 0, 1) for distance in distances]
        return torch.cat([positions(*end) for end in ends])

    assert close(make, lambda clip: clip, beginning, 1, range(1, 3))[0] == repeated


def test_a_loop_arrives_at_its_beginning_and_is_cut_there(pipe: VidRDPipeline) -> None:
    plain, out = call(pipe), call(pipe, loop=True)
    repeated = plain.frames.shape[2] - out.frames.shape[2]
    assert 1 <= repeated <= 3
    assert torch.equal(out.clips[2][:, :, -repeated:], out.clips[0][:, :, :repeated])
    assert torch.equal(out.frames[:, :, 10:], out.clips[2][:, :, 2 : 6 - repeated])
    assert call(pipe, loop=True, output_type="np").frames.shape[1] == 14 - repeated
    with pytest.raises(ValueError, match="is a loop.*no clip can follow"):
        pipe.extend(out)


@pytest.mark.parametrize("num_clips", [2, 3])
def test_the_last_clip_of_a_loop_is_the_most_even_of_those_that_were_tried(pipe: VidRDPipeline, num_clips: int) -> None:
    ends: list[tuple[int, torch.Tensor]] = []

    def keep(_: Any, step: int, __: Any, values: dict[str, Any]) -> None:
        if step == 3:
            ends.append((values["clip_index"], values["latents"].clone()))

    out = call(pipe, loop=True, num_clips=num_clips, callback_on_step_end=keep)
    assert [index for index, _ in ends] == [*range(num_clips - 1), *[num_clips - 1] * 3]
    beginning, repeated = out.clips[0], 6 + 4 * (num_clips - 1) - out.frames.shape[2]
    tried = [clip for _, clip in ends[-3:]]
    for count, clip in enumerate(tried, 1):
        clip[:, :, 6 - count :] = beginning[:, :, :count]
    assert close(lambda count: tried[count - 1], lambda clip: clip, beginning, 2, choices(6, 2))[0] == repeated
    assert torch.equal(out.clips[-1], tried[repeated - 1])


@pytest.mark.parametrize(
    ("num_frames", "overlap", "trim", "expected"),
    [(8, 5, 5, (3, 3)), (8, 3, 3, (3, 3)), (8, 2, 2, (2, 2)), (8, 5, 0, (3, 0)), (8, 5, 2, (3, 2)), (8, 0, 0, (0, 0)),
     (16, 10, 10, (10, 10)), (16, 13, 13, (11, 11)), (6, 4, 4, (3, 3)), (6, 2, 2, (2, 2))],
)  # fmt: skip
def test_the_overlap_of_a_loop_s_last_clip_leaves_new_frames_for_every_choice_but_tells_the_motion(
    num_frames: int, overlap: int, trim: int, expected: tuple[int, int]
) -> None:
    reuse = ReuseSettings(overlap, 0.0, 1.0, "forward", trim, "uniform", 0.8)
    own = closing(reuse, num_frames)
    assert (own.overlap_frames, own.trim_frames) == expected
    assert replace(own, overlap_frames=overlap, trim_frames=trim) == reuse
    if num_frames >= 8:
        assert list(choices(num_frames, own.overlap_frames)) == [1, 2, 3, 4]


def test_a_video_s_length_is_that_of_its_clips_without_what_repeats() -> None:
    forward = ReuseSettings(3, 0.0, 1.0, "forward", 3)
    assert Goals().num_added(4, 8, forward) == 8 + 3 * 5 and Goals().num_added(4, 8, forward, False) == 4 * 5
    assert Goals().num_added(4, 8, ReuseSettings()) == 32 and Goals().num_added(1, 8, forward) == 8
    assert Goals(loop=True).num_added(4, 8, forward) == 8 + 3 * 5 - 1
    assert Goals(loop=True, repeated=4).num_added(4, 8, LONG.reuse) == 8 + 3 + 3 + 5 - 4
    ends = Goals(torch.zeros(1, 4, 3, 2, 2), torch.zeros(1, 4, 2, 2, 2), joins=True)
    assert ends.num_added(2, 8, forward) == 8 + 5 - 3 - 2


def test_the_last_clip_of_a_loop_has_a_shorter_overlap_and_trim(pipe: VidRDPipeline) -> None:
    given = {"num_frames": 8, "reuse": LONG.reuse, "num_clips": 3}
    plain, out = call(pipe, **given), call(pipe, **given, loop=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.clips[:2], out.clips[:2]))
    first, middle, last = out.clips
    repeated = 8 + 3 + 5 - out.frames.shape[2]
    assert repeated in choices(8, 3) and torch.equal(last[:, :, -repeated:], first[:, :, :repeated])
    joined = torch.cat([first, middle[:, :, 5:], last[:, :, 3 : 8 - repeated]], dim=2)
    assert torch.equal(out.frames, joined) and out.state.is_closed
    assert torch.equal(out.state.tail, joined[:, :, joined.shape[2] - out.state.tail.shape[2] :])
    before = list(pipe.stream("a red dot", LONG, 2))[-1].state
    assert before is not None
    noise = out.state.trajectory.noise
    assert torch.equal(noise[:, :, :3], before.trajectory.noise[:, :, -3:])
    assert torch.equal(noise, initial_noise(before.trajectory.noise, noise, closing(LONG.reuse, 8)))
    frames = call(pipe, **given, loop=True, output_type="np").frames
    assert frames.shape[1] == 16 - repeated


def test_the_frames_of_a_cut_video_are_decoded_with_what_follows_them(pipe: VidRDPipeline) -> None:
    out = call(pipe, loop=True, output_type="np")
    whole = torch.cat([out.clips[0], out.clips[1][:, :, 2:], out.clips[2][:, :, 2:]], dim=2)
    decoder = pipe.make_decoder(SAMPLING)
    frames = torch.cat([*decoder.push(whole), *decoder.flush()], dim=2)
    expected = ((frames[:, :, : out.frames.shape[1]] + 1) / 2).permute(0, 2, 3, 4, 1).numpy()
    assert np.array_equal(out.frames, expected) and out.frames.shape[1] < 14


def test_a_continued_video_can_arrive_too(pipe: VidRDPipeline) -> None:
    begun = call(pipe, num_clips=1)
    more = pipe.extend(begun, num_clips=2, output_type="latent", end_image=image(1))
    whole = call(pipe, end_image=image(1))
    assert all(torch.equal(a, b) for a, b in zip(more.clips, whole.clips[1:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"loop": True, "num_clips": 1}, "loop of one clip"), ({"loop": True, "end_image": image()}, "no end image"),
     ({"end_image": image(), "num_frames": 3}, "a clip has 3 frames, of which 3 would be given"),
     ({"end_image": "picture.png"}, "neither PIL images"), ({"start_image": np.zeros((4, 4))}, r"array \[4, 4\]"),
     ({"start_image": torch.zeros(2, 4, 4)}, r"a tensor \[2, 4, 4\]")],
)  # fmt: skip
def test_goals_that_a_video_cannot_have_are_refused(pipe: VidRDPipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pipe, **changes)


def test_given_frames_are_cropped_to_the_video_whatever_holds_them() -> None:
    wide = np.zeros((8, 32, 3), np.uint8)
    wide[:, 8:24] = 255
    for given in (Image.fromarray(wide), [Image.fromarray(wide)], wide, wide[None] / 255.0):
        frames = pixels_of(given, 16, 16)
        assert frames.shape == (1, 3, 1, 16, 16) and float(frames[..., 4:12].mean()) > 0.9
    tensor = torch.from_numpy(wide).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(pixels_of(tensor, 8, 32)[0, :, 0], tensor)


@pytest.mark.parametrize("sizes", [[6, 4, 4], [1] * 14, [14]])
@pytest.mark.parametrize("cut", [(0, 0), (3, 0), (0, 2), (3, 2), (7, 6)])
def test_a_stream_is_cut_at_both_ends(sizes: list[int], cut: tuple[int, int]) -> None:
    whole = torch.arange(14.0).view(1, 1, 14, 1, 1)
    assert torch.equal(torch.cat(list(cut_stream(whole.split(sizes, 2), cut)), 2), whole[:, :, cut[0] : 14 - cut[1]])


# -- jobs --------------------------------------------------------------------------------------------------------------


def stop_after(steps: int) -> Any:
    asked = iter(range(10**9))
    return lambda: next(asked) >= steps


def plan(pipe: VidRDPipeline, prompts: list[str] = PROMPTS, **given: Any) -> Plan:
    return Plan(prompts, SAMPLING, 3, goals=pipe.make_goals(SAMPLING, **given))


def make(pipe: VidRDPipeline, folder: Path, made: Plan, redo: bool = False, **options: Any) -> JobResult:
    job = open_job(folder / "state", pipe, made, redo)
    return run_job(pipe, job, made, folder / "out", 4.0, **options)


GIVEN: dict[str, dict[str, Any]] = {
    "start and end": {"start_image": image(1), "end_image": clip(3, 2)},
    "loop": {"loop": True},
    "bridge": {"start_image": clip(3, 1), "end_image": clip(3, 2), "joins": True},
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("steps", [5, 9])
def test_a_stopped_job_with_goals_makes_the_same_video_to_the_bit(
    pipe: VidRDPipeline, tmp_path: Path, name: str, steps: int
) -> None:
    made = plan(pipe, **GIVEN[name])
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    assert make(pipe, tmp_path / "whole", made).is_complete
    assert not make(pipe, tmp_path / "stopped", made, should_stop=stop_after(steps)).is_complete
    result = make(pipe, tmp_path / "stopped", plan(pipe, **GIVEN[name]))
    made = made.as_made(JobFolder(tmp_path / "stopped" / "state"))
    assert result.is_complete and result.frames == made.num_frames
    ours, theirs = (read_video(tmp_path / folder / "out").frames for folder in ("stopped", "whole"))
    assert np.array_equal(ours, theirs) and len(ours) == made.num_frames
    for number in range(3):
        one, other = (JobFolder(tmp_path / folder / "state").load(number) for folder in ("stopped", "whole"))
        assert torch.equal(one.latents, other.latents) and one.goal == other.goal


@pytest.mark.parametrize("repeated", [1, 3])
def test_a_loop_says_how_long_it_is_however_many_frames_it_repeats(
    pipe: VidRDPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: int
) -> None:
    monkeypatch.setattr("vidrd_core.reuse.goal.choices", lambda *_: range(repeated, repeated + 1))
    sheets = []
    for run in ("made", "read", "written again"):
        if run == "written again":
            (tmp_path / "out.mp4").unlink()
        folder = open_job(tmp_path / "state", pipe, plan(pipe, loop=True))
        said = {"clips": 3, "run": run}
        options: dict[str, Any] = {
            "metadata": lambda made, run=run: {"clips": len(made.prompts), "run": run},
            "with_sheet": True,
        }
        result = run_job(pipe, folder, plan(pipe, loop=True), tmp_path / "out.mp4", 4.0, **options)
        assert result.is_complete and result.frames == len(read_video(tmp_path / "out.mp4").frames) == 14 - repeated
        assert read_metadata(tmp_path / "out.mp4") == {**said, "frames": 14 - repeated}
        assert result.sheet is not None
        sheets.append(np.asarray(result.sheet))
    assert np.array_equal(sheets[0], sheets[1]) and np.array_equal(sheets[0], sheets[2])


@pytest.mark.parametrize("repeated", [1, 4])
@pytest.mark.parametrize("steps", [7, 12])
def test_a_loop_whose_last_clip_has_a_trim_of_its_own_is_continued_after_a_stop_and_read_again(
    pipe: VidRDPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeated: int, steps: int
) -> None:
    monkeypatch.setattr("vidrd_core.reuse.goal.choices", lambda *_: range(repeated, repeated + 1))
    made = Plan(PROMPTS, LONG, 3, goals=pipe.make_goals(LONG, loop=True))
    assert made.num_frames == 8 + 3 + 5 - 1
    options: dict[str, Any] = {"with_sheet": True, "metadata": lambda one: {"clips": len(one.prompts)}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    once = make(pipe, whole, made, **options)
    assert not make(pipe, stopped, made, should_stop=stop_after(steps), **options).is_complete
    later, again = make(pipe, stopped, made, **options), make(pipe, stopped, made, **options)
    for result in (once, later, again):
        assert result.is_complete and result.frames == 16 - repeated and result.sheet is not None
        assert np.array_equal(np.asarray(result.sheet), np.asarray(once.sheet))
    assert np.array_equal(read_video(stopped / "out").frames, read_video(whole / "out").frames)
    job = JobFolder(stopped / "state")
    assert [job.load(number).trim for number in range(3)] == [None, None, 3]
    assert made.as_made(job).num_frames == 16 - repeated


def test_a_loop_of_an_earlier_version_whose_last_clip_had_the_usual_overlap_is_made_again(
    pipe: VidRDPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Plan(PROMPTS, LONG, 3, goals=pipe.make_goals(LONG, loop=True))
    with monkeypatch.context() as earlier:
        earlier.setattr("vidrd_core.reuse.goal.closing", lambda reuse, _: reuse)
        make(pipe, tmp_path, made)
    job = JobFolder(tmp_path / "state")
    before = job.load(1).latents
    with pytest.raises(JobError, match="clip 2 was made with a loop, not a loop by an overlap of 3"):
        make(pipe, tmp_path, made)
    assert make(pipe, tmp_path, made, redo=True).is_complete
    assert torch.equal(job.load(1).latents, before) and job.load(2).trim == 3


def test_another_goal_makes_exactly_the_clips_again_that_it_is_for(pipe: VidRDPipeline, tmp_path: Path) -> None:
    assert make(pipe, tmp_path, plan(pipe)).frames == 14
    folder = JobFolder(tmp_path / "state")
    first = [folder.load(number).latents for number in range(3)]
    with pytest.raises(JobError, match="clip 2 was made with no goal, not a loop"):
        make(pipe, tmp_path, plan(pipe, loop=True))
    assert 11 <= make(pipe, tmp_path, plan(pipe, loop=True), redo=True).frames <= 13
    looped = [folder.load(number).latents for number in range(3)]
    assert torch.equal(first[1], looped[1]) and not torch.equal(first[2], looped[2])
    for seed in (1, 2):
        with pytest.raises(JobError, match="clip 2 was made with .*, not the end"):
            make(pipe, tmp_path, plan(pipe, end_image=image(seed)))
        assert make(pipe, tmp_path, plan(pipe, end_image=image(seed)), redo=True).frames == 14
    with pytest.raises(JobError, match="clip 0 was made with no goal, not the start"):
        make(pipe, tmp_path, plan(pipe, start_image=image(1)))
    longer = plan(pipe, [*PROMPTS, "a cat"], end_image=image(2))
    with pytest.raises(JobError, match="clip 2 was made with the end .*, not no goal"):
        make(pipe, tmp_path, longer)


def test_a_bridge_is_written_between_the_videos_that_it_joins(pipe: VidRDPipeline, tmp_path: Path) -> None:
    before, after = clip(5, 1), clip(4, 2)
    made = plan(pipe, PROMPTS[:2], start_image=before, end_image=after, joins=True)
    around = [frame[None] for frame in before], [frame[None] for frame in after]
    result = make(pipe, tmp_path, made, around=around, metadata=lambda _: {}, with_sheet=True)
    frames = read_video(tmp_path / "out").frames
    assert (result.frames, result.frames_around, len(frames)) == (6 + 4 - 3 - 2, 9, 14)
    assert np.array_equal(frames[:5], before) and np.array_equal(frames[-4:], after)
    job = JobFolder(tmp_path / "state")
    given = pipe.encode_frames(pixels_of(before[2:], 16, 16)), pipe.encode_frames(pixels_of(after[:2], 16, 16))
    assert torch.equal(job.load(0).latents[:, :, :3], given[0])
    assert torch.equal(job.load(1).latents[:, :, -2:], given[1])


def test_what_a_goal_does_not_allow_is_refused_before_anything_is_changed(pipe: VidRDPipeline, tmp_path: Path) -> None:
    begun = next(iter(pipe.stream("a red dot", SAMPLING, 1))).state
    for made, message in (
        (plan(pipe, PROMPTS[:1], loop=True), "loop of one clip"),
        (replace(plan(pipe, loop=True), start=begun), "does not know"),
        (replace(plan(pipe, start_image=image()), start=begun), "leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            check_job(pipe, made, tmp_path / "state", tmp_path / "out.gif", 4.0)
    assert not list(tmp_path.iterdir())


def test_a_closed_state_says_so_when_it_is_read_again(pipe: VidRDPipeline, tmp_path: Path) -> None:
    states = [made.state for made in pipe.stream("a red dot", SAMPLING, 2, goals=Goals(loop=True))]
    for number, state in enumerate(states):
        assert state is not None
        state.save(tmp_path / f"{number}.safetensors")
    assert not VideoState.load(tmp_path / "0.safetensors").is_closed
    with pytest.raises(ValueError, match="no clip can follow"):
        VideoState.load(tmp_path / "1.safetensors").check_open()
