"""Distillation to few steps: the teacher's states, the student's target, and a LoRA in training."""

import importlib
import json
import shutil

import pytest
import torch
from components import relative_error, tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae
from safetensors.torch import load_file, save_file
from training_components import settings

from vidrd_core import VidRDPipeline
from vidrd_core.checkpoints import CheckpointError, load_pipeline_parts, load_unet
from vidrd_core.cli import main
from vidrd_core.cli.models import few_steps_of, read_defaults
from vidrd_core.jobs.batch import JobFolder
from vidrd_core.shapes.latents import LatentClips, encode_moving_shapes
from vidrd_core.train.few_steps import TeacherClips, TeacherSettings, step_target, teacher_states, write_teacher_clips
from vidrd_core.train.loop import train
from vidrd_core.train.micro_batches import MicroBatch
from vidrd_core.train.objective import make_scheduler

CLIP = (2, 4, 4, 2, 2)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or CLIP, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("step", range(4))
def test_one_ddim_step_by_the_target_leads_to_the_teacher_s_state(prediction, step):
    scheduler = TeacherSettings().scheduler(make_scheduler(prediction).config)
    kept = torch.cat((scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod.reshape(1)))
    data, noise = kept.sqrt(), (1 - kept).sqrt()
    before, after = normal(1), normal(2)
    now, then = ((data[n].expand(2), noise[n].expand(2)) for n in (step, step + 1))
    target = step_target(before, after, now, then, prediction)
    reached = scheduler.step(target, scheduler.timesteps[step], before).prev_sample
    torch.testing.assert_close(reached, after, rtol=1e-3, atol=1e-3)


def test_the_teacher_guides_and_its_states_are_those_at_the_student_s_steps():
    unet, config = tiny_unet().eval(), make_scheduler().config
    text, negative, noise = normal(1, 2, 3, 32), normal(2, 2, 3, 32), normal(3)
    chosen = TeacherSettings(steps=2, teacher_steps=2, guidance_scale=3.0)
    states = teacher_states(unet, text, negative, noise, None, config, chosen)
    scheduler = chosen.scheduler(config, teacher=True)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    expected, latents = [noise], noise
    with torch.no_grad():
        for step, timestep in enumerate(scheduler.timesteps):
            with_text, without = (unet(latents, timestep, one).sample for one in (text, negative))
            latents = scheduler.step(without + 3.0 * (with_text - without), timestep, latents).prev_sample
            if step % 2:
                expected.append(latents)
    torch.testing.assert_close(states, torch.stack(expected, 1), rtol=1e-4, atol=1e-4)


def test_given_frames_are_shown_to_the_student_as_its_sampler_shows_them():
    chosen = TeacherSettings(steps=4, teacher_steps=1, overlap_frames=2, cleaner_overlap=0.8)
    config, noise, true = make_scheduler().config, normal(3), normal(4)
    text = normal(1, 2, 3, 32)
    states = teacher_states(tiny_unet().eval(), text, text, noise, true, config, chosen)
    scheduler = chosen.scheduler(config)
    for step, timestep in enumerate((200, 150, 100, 50)):  # a fifth of the other frames'
        alpha = scheduler.alphas_cumprod[timestep]
        shown = alpha.sqrt() * true[:, :, :2] + (1 - alpha).sqrt() * noise[:, :, :2]
        assert relative_error(states[:, step, :, :2], shown) < 0.01
    plain = teacher_states(tiny_unet().eval(), text, text, noise, None, config, chosen)
    assert torch.equal(states[:, 0, :, 2:], plain[:, 0, :, 2:])
    assert not torch.allclose(states[:, 1, :, 2:], plain[:, 1, :, 2:])


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    pipe = VidRDPipeline(
        unet=tiny_unet(), vae=tiny_vae(), text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(tmp_path / "tokenizer"), scheduler=make_scheduler(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    encode_moving_shapes(tiny_vae(), tmp_path / "latents.safetensors", 4, 4, 0, "train")
    return folder


def written(model, path, **changes):
    chosen = TeacherSettings(**{"num_frames": 3, "steps": 2, "teacher_steps": 1, "overlap_frames": 1, **changes})
    pipe = VidRDPipeline.from_pretrained(model)
    write_teacher_clips(pipe, LatentClips(model.parent / "latents.safetensors"), path, 5, chosen, 3, 0)
    return path


def test_clips_are_written_and_drawn_by_the_sample_s_number(model, tmp_path):
    clips = TeacherClips([written(model, tmp_path / "a.safetensors"), written(model, tmp_path / "b.safetensors")])
    assert clips.states.shape[:2] == (10, 3) and len(clips.captions) == 10
    assert clips.states.shape[3] == 3  # of the 4 frames that are stored
    assert sorted(clips.known.tolist()) == [0] * 4 + [1] * 6  # of 3 and 2 clips, 60% continue
    one = clips.batch(MicroBatch(7, 3, 4, 4))
    parts = [clips.batch(MicroBatch(7, 3, 4, 2, 0, 1, part)) for part in range(2)]
    assert torch.equal(one.latents, torch.cat([part.latents for part in parts]))
    assert one.captions == [caption for part in parts for caption in part.captions]
    for place, caption in enumerate(one.captions):
        found = [
            n
            for n, states in enumerate(clips.states)
            if torch.equal(states[one.steps[place]].float(), one.latents[place])
        ]
        assert caption in [clips.captions[n] for n in found]
        assert any(torch.equal(clips.states[n, one.steps[place] + 1].float(), one.following[place]) for n in found)
        assert one.counted[place].tolist() == [float(k >= clips.known[found[0]]) for k in range(3)]
    with pytest.raises(ValueError, match=r"of \[2, 3\] steps"):
        TeacherClips([tmp_path / "a.safetensors", written(model, tmp_path / "c.safetensors", steps=3)])


def test_a_lora_comes_nearer_to_its_teacher(model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("training")
    script = importlib.import_module("train_few_steps")
    run = settings(
        tmp_path / "run", samples=160, batch_size=8, learning_rate=1e-2, warmup_samples=8, log_samples=80, ema_decay=0.0
    )
    configuration = script.Configuration(
        run, (written(model, tmp_path / "clips.safetensors"),), model, script.LoraSettings(rank=4, layers=("*_block*",))
    )
    task = script.make_task(configuration)
    assert all(".lora_" in name for name, p in task.unet.named_parameters() if p.requires_grad)
    batch = MicroBatch(1, 0, 32, 32)
    with torch.no_grad():
        before = task.loss(batch).loss.item()
    train(task, run)
    log = [json.loads(line) for line in (tmp_path / "run" / "statistics.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.9 * before
    made = tmp_path / "run" / "model"
    assert {value.dtype for value in load_file(made / "lora.safetensors").values()} == {torch.float16}
    shutil.copytree(made, model / "few_steps")

    # Within its teacher's folder it loads as the trained model, with what suits it.
    pipe = VidRDPipeline(**load_pipeline_parts(model / "few_steps", dtype=torch.float32))
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert read_defaults(model / "few_steps") == {"num_frames": 3, "num_inference_steps": 2, "guidance_scale": 1.0}
    latents, text = normal(1), normal(2, 2, 3, 32)
    with torch.no_grad():
        wanted = task.unet.eval()(latents, 500, text).sample
        task.unet.disable_adapters()
        plain = task.unet(latents, 500, text).sample
        found = pipe.unet(latents, 500, text).sample
    assert (found - wanted).norm() < 0.01 * (wanted - plain).norm()


def test_a_lora_of_another_model_is_refused(model):
    folder = model / "few_steps"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    for weights, message in (
        ({"unet.conv_in.lora_A.weight": torch.zeros(1, 5, 3, 3)}, "its layer conv_in does not fit"),
        ({"something": torch.zeros(1)}, "holds no layers of a LoRA"),
    ):
        save_file(weights, folder / "lora.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_unet(folder)
    assert few_steps_of(str(model)) == str(folder) and few_steps_of(str(folder)) is None


def test_the_preset_fast_takes_a_model_s_own_lora(model, tmp_path):
    folder = model / "few_steps"
    folder.mkdir()
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    width = load_unet(model).get_submodule(layer).weight.shape[0]
    weights = {f"unet.{layer}.lora_A.weight": normal(1, 1, width), f"unet.{layer}.lora_B.weight": normal(2, width, 1)}
    save_file(weights, folder / "lora.safetensors")
    TeacherSettings(steps=2).scheduler(make_scheduler().config).save_pretrained(folder / "scheduler")
    defaults = {"num_frames": 4, "num_inference_steps": 2, "guidance_scale": 1.0, "overlap_frames": 1}
    (folder / "model_index.json").write_text(json.dumps({"defaults": defaults}))
    merged, plain = (load_unet(path).get_submodule(layer).weight for path in (folder, model))
    change = weights[f"unet.{layer}.lora_B.weight"] @ weights[f"unet.{layer}.lora_A.weight"]
    torch.testing.assert_close(merged, plain + change)
    call = ["generate", "--model", str(model), "--prompt", "a red dot", "--clips", "2", "--device", "cpu", "--quiet"]
    assert main([*call, "--preset", "fast", "--output", str(tmp_path / "a.gif")]) == 0
    made = JobFolder(tmp_path / "a.gif.state").read()
    assert made["loading"]["model"] == str(folder)
    assert made["made"]["sampling"]["num_inference_steps"] == 2 and made["made"]["sampling"]["guidance_scale"] == 1.0
    assert made["made"]["scheduler"]["timestep_spacing"] == "trailing"
    extend = ["extend", str(tmp_path / "a.gif.state"), "--device", "cpu", "--quiet"]
    assert main([*extend, "--output", str(tmp_path / "b.gif")]) == 0
    assert main([*call, "--preset", "smooth", "--output", str(tmp_path / "c.gif"), "--steps", "2"]) == 0
    assert JobFolder(tmp_path / "c.gif.state").read()["loading"]["model"] == str(model)
