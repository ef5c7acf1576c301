"""Training the causal video VAE and the flow transformer of Wan's kind, at tiny size."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from components import tiny_text_encoder, tiny_tokenizer
from diffusers import WanPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file
from training_components import settings

from vidrd_core.models.wan_clips import decode_whole, encode_whole
from vidrd_core.models.wan_latents import denormalised, normalised, take_wan_statistics
from vidrd_core.shapes.latents import LatentClips, encode_causal_clips
from vidrd_core.shapes.prompted import held_out_scenes
from vidrd_core.shapes.scenes import draw_scene, render
from vidrd_core.shapes.tracker import track
from vidrd_core.train import causal_vae
from vidrd_core.train.autoencoder import AutoencoderLoss
from vidrd_core.train.causal_vae import CausalVAEObjective, CausalVAETask, new_causal_vae
from vidrd_core.train.flow import FlowTask, TextStates, new_flow_transformer
from vidrd_core.train.flow_objective import FlowObjective, draw_levels
from vidrd_core.train.flow_preview import FlowPreviewSettings, flow_figures, sample_flow, shifted_levels
from vidrd_core.train.loop import train
from vidrd_core.train.micro_batches import MicroBatch
from vidrd_core.train.sources import LatentSource, MovingShapesSource

ROOT = Path(__file__).parent.parent
VAE = {"base_dim": 2, "z_dim": 4, "num_res_blocks": 1}
WAN = {"in_channels": 16, "out_channels": 16}  # as many channels as Wan's latents
WAN_22 = {  # of Wan 2.2's kind
    "base_dim": 4,
    "decoder_base_dim": 4,
    "dim_mult": [1, 2, 2],
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
}
TRANSFORMER = {
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
}


def tiny_vae(**changes):
    torch.manual_seed(0)
    return new_causal_vae({**VAE, **changes})


def tiny_transformer(**changes):
    torch.manual_seed(0)
    return new_flow_transformer({**TRANSFORMER, **changes})


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    path = tmp_path_factory.mktemp("latents") / "train.safetensors"
    encode_causal_clips(tiny_vae().eval(), path, 6, 13, seed=0, split="train", speed=0.4)
    return path


@pytest.fixture
def flow_task(latents, tmp_path):
    def make(kind=FlowTask, previews=None, **objective):
        objective = FlowObjective(**{"lengths": (3, 4), **objective})
        tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
        clips = LatentClips(latents, from_start=True)
        vae = tiny_vae().eval()
        return kind(tiny_transformer(), tiny_text_encoder(), tokenizer, clips, objective, clips, vae, previews)

    return make


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def few_statistics(monkeypatch):
    """Latent statistics from fewer clips, which every checkpoint measures."""
    monkeypatch.setattr(causal_vae, "STATISTICS_CLIPS", 4)


def interrupted(kind):
    class Interrupting(kind):
        steps_left = 2

        def loss(self, micro_batch):
            if self.steps_left == 0:
                raise KeyboardInterrupt
            self.steps_left -= 1
            return super().loss(micro_batch)

    return Interrupting


# -- the VAE -----------------------------------------------------------------------------------------------------------

VAE_OBJECTIVE = CausalVAEObjective(lengths=(1, 5), images_per_clip=2, perceptual_weight=0.1)


def test_a_resumed_run_of_the_causal_vae_is_bit_identical_to_an_uninterrupted_one(tmp_path, few_statistics):
    train(CausalVAETask(uninterrupted := tiny_vae(), VAE_OBJECTIVE), settings(tmp_path / "uninterrupted"))
    with pytest.raises(KeyboardInterrupt):
        train(interrupted(CausalVAETask)(tiny_vae(), VAE_OBJECTIVE), settings(tmp_path / "resumed"))
    train(CausalVAETask(resumed := tiny_vae(), VAE_OBJECTIVE), settings(tmp_path / "resumed"))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(uninterrupted).items())


def test_the_exported_causal_vae_normalises_its_latents(tmp_path):
    train(CausalVAETask(tiny_vae(), VAE_OBJECTIVE), settings(tmp_path, samples=4, save_samples=4))
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(3)
    clips = render([draw_scene(generator) for _ in range(48)], 5, speed=0.4)
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode()
    scaled = normalised(vae, latents)
    assert torch.allclose(scaled.mean((0, 2, 3, 4)), torch.zeros(4), atol=0.15)
    assert torch.allclose(scaled.std((0, 2, 3, 4)), torch.ones(4), atol=0.15)
    assert torch.allclose(denormalised(vae, scaled), latents, atol=1e-5)


@pytest.mark.parametrize("kind", ["Wan 2.1", "Wan 2.2"])
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_a_whole_clip_is_encoded_and_decoded_as_latent_by_latent(kind, frames):
    vae = tiny_vae(**(WAN_22 if kind == "Wan 2.2" else {})).eval()
    clips = torch.rand(2, 3, frames, 32, 48) * 2 - 1
    latents = torch.randn(2, 4, 1 + (frames - 1) // 4, 4, 6)
    with torch.no_grad():
        for parameter in vae.parameters():  # none is left at zero, so that a missing one would show
            parameter.normal_(std=0.3)
        vae.decoder.conv_out.weight.mul_(8)
        posterior = vae.encode(clips).latent_dist
        mean, logvar = encode_whole(vae, clips)
        assert mean.shape == latents.shape
        torch.testing.assert_close(mean, posterior.mode(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logvar.clamp(-30, 20), posterior.logvar, rtol=1e-4, atol=1e-4)
        output = decode_whole(vae, latents)
        assert output.shape == clips.shape and 0.01 < float((output.abs() > 1).float().mean()) < 0.99
        torch.testing.assert_close(output.clamp(-1, 1), vae.decode(latents).sample, rtol=1e-4, atol=1e-4)


def test_only_the_decoder_is_trained_where_asked(tmp_path, few_statistics):
    task = CausalVAETask(vae := tiny_vae(), VAE_OBJECTIVE, ("decoder*", "post_quant*"))
    before = weights(vae)
    train(task, settings(tmp_path, samples=4))
    changed = {name.split(".")[0] for name, value in weights(vae).items() if not torch.equal(value, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_steps_of_single_frames_hold_more_scenes():
    source = MovingShapesSource((1, 5), "train", 0.4, images_per_clip=3)
    shapes = {tuple(source.batch(MicroBatch(0, step, 2, 2)).pixels.shape) for step in range(8)}
    assert shapes == {(6, 3, 1, 64, 64), (2, 3, 5, 64, 64)}


def test_clips_of_a_causal_vae_have_1_plus_4k_frames(tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 8\); expected 1 \+ 4k frames"):
        CausalVAEObjective(lengths=(1, 8))
    with pytest.raises(ValueError, match="num_frames is 8; expected 1"):
        encode_causal_clips(tiny_vae(), tmp_path / "a.safetensors", 1, 8, 0, "train", 0.4)


def test_the_perceptual_loss_counts():
    micro_batch = MicroBatch(0, 0, 1, 1)
    losses = []
    for weight in (0.0, 0.5):
        objective = CausalVAEObjective(lengths=(5,), perceptual_weight=weight, pixels=AutoencoderLoss())
        losses.append(CausalVAETask(tiny_vae(), objective).loss(micro_batch))
    assert losses[1].figures["perceptual"] > 0
    assert (losses[1].loss - losses[0].loss).item() == pytest.approx(0.5 * losses[1].figures["perceptual"], rel=1e-3)


def test_a_vae_takes_wans_statistics_without_changing_what_it_does():
    torch.manual_seed(0)
    vae = new_causal_vae({"base_dim": 8, "z_dim": 16, "num_res_blocks": 1}).eval()
    vae.register_to_config(latents_mean=torch.randn(16).tolist(), latents_std=(torch.rand(16) + 0.5).tolist())
    clips = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(clips).latent_dist
        scaled = normalised(vae, before.mode())
        spread = before.std / torch.tensor(vae.config.latents_std)[:, None, None, None]
        decoded = vae.decode(before.mode()).sample
        take_wan_statistics(vae)
        after = vae.encode(clips).latent_dist
        assert not torch.allclose(after.mode(), before.mode(), atol=0.1)
        assert torch.allclose(normalised(vae, after.mode()), scaled, atol=1e-4)
        assert torch.allclose(after.std / torch.tensor(vae.config.latents_std)[:, None, None, None], spread, atol=1e-4)
        assert torch.allclose(vae.decode(denormalised(vae, scaled)).sample, decoded, atol=1e-4)
    assert vae.config.latents_mean == AutoencoderKLWan(**VAE).config.latents_mean
    with pytest.raises(ValueError, match="4 channels; expected 16"):
        take_wan_statistics(tiny_vae())


# -- latents -----------------------------------------------------------------------------------------------------------


def test_the_first_latents_of_a_clip_are_those_of_its_first_frames(latents):
    clips = LatentClips(latents, from_start=True)
    assert clips.latents.shape == (6, 4, 4, 8, 8) and clips.latents.dtype == torch.float16
    generator = torch.Generator().manual_seed(0)
    scenes = [draw_scene(generator, "train") for _ in range(6)]
    vae = tiny_vae().eval()
    with torch.no_grad():
        short = normalised(vae, vae.encode(render(scenes, 9, speed=0.4)).latent_dist.mode())
    assert clips.captions == [scene.caption for scene in scenes]
    stored = clips.latents[:, :, :3].float()
    assert float((stored - short).abs().max()) < 0.05 * float(short.abs().max())  # encoded in bfloat16
    firsts = LatentSource(clips, (2, 3)).batch(MicroBatch(0, 0, 4, 4)).latents
    known = clips.latents[:, :, : firsts.shape[2]].float()
    assert all(any(torch.equal(clip, one) for one in known) for clip in firsts)


def test_several_files_of_clips_are_one(latents, tmp_path):
    encode_causal_clips(tiny_vae().eval(), tmp_path / "more.safetensors", 3, 13, seed=9, split="train", speed=0.4)
    clips = LatentClips([latents, tmp_path / "more.safetensors"], from_start=True)
    assert len(clips.latents) == len(clips.captions) == 9
    encode_causal_clips(tiny_vae().eval(), tmp_path / "short.safetensors", 3, 9, seed=9, split="train", speed=0.4)
    with pytest.raises(ValueError, match="expected one shape of clips"):
        LatentClips([latents, tmp_path / "short.safetensors"])


# -- the transformer ---------------------------------------------------------------------------------------------------


def test_a_resumed_run_of_the_flow_transformer_is_bit_identical_to_an_uninterrupted_one(flow_task, tmp_path):
    mixed = {"image_share": 0.25, "cleaner_share": 0.5, "timestep_per_latent_share": 0.5, "focus_share": 0.5}
    train(uninterrupted := flow_task(**mixed), settings(tmp_path / "uninterrupted"))
    with pytest.raises(KeyboardInterrupt):
        train(flow_task(interrupted(FlowTask), **mixed), settings(tmp_path / "resumed"))
    train(resumed := flow_task(**mixed), settings(tmp_path / "resumed"))
    found = weights(resumed.transformer)
    assert all(torch.equal(value, found[name]) for name, value in weights(uninterrupted.transformer).items())


def test_the_flow_transformer_learns(flow_task, tmp_path):
    train(flow_task(), settings(tmp_path, samples=160, log_samples=40, learning_rate=5e-3, save_samples=200))
    lines = [json.loads(line) for line in (tmp_path / "statistics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.95 * lines[0]["loss"]


def test_the_exported_transformer_predicts_what_the_trained_one_does(flow_task, tmp_path):
    train(task := flow_task(), settings(tmp_path, samples=4, ema_decay=0.0))
    transformer = WanTransformer3DModel.from_pretrained(tmp_path / "model" / "transformer").eval()
    inputs = torch.randn(1, 4, 3, 8, 8), torch.tensor([500.0]), torch.randn(1, 16, 32)
    with torch.no_grad():
        assert torch.equal(transformer(*inputs).sample, task.transformer.eval()(*inputs).sample)
    assert {folder.name for folder in (tmp_path / "model").iterdir()} == {
        "transformer",
        "text_encoder",
        "tokenizer",
        "vae",
    }


def test_every_latent_of_a_plain_clip_has_the_clips_level():
    levels = draw_levels(FlowObjective(), MicroBatch(0, 0, 64, 64), 64, 8)
    assert torch.equal(levels.latents, levels.clips[:, None].expand(-1, 8))
    assert bool((levels.counted == 1).all()) and not bool(levels.told.any())
    assert levels.timesteps(16).shape == (64,)
    assert 0 <= float(levels.clips.min()) < float(levels.clips.max()) <= 1


def test_cleaner_latents_are_a_prefix_at_a_share_of_the_clips_level_and_do_not_count():
    objective = FlowObjective(cleaner_share=0.5, cleaner_counts=(2, 4), cleaner_starts=(0, 1), cleaner_level=(0.1, 0.3))
    levels = draw_levels(objective, MicroBatch(0, 0, 256, 256), 256, 6)
    share = levels.latents / levels.clips[:, None]
    cleaner = levels.counted == 0
    assert torch.equal(cleaner, share < 0.99)
    assert float(share[cleaner].min()) >= 0.099 and float(share[cleaner].max()) <= 0.301
    spans = {tuple(row.tolist()) for row in cleaner if bool(row.any())}
    wanted = {tuple(start <= t < start + count for t in range(6)) for start in (0, 1) for count in (2, 4)}
    assert spans == wanted
    assert 0.4 < float(cleaner.any(1).float().mean()) < 0.6
    assert not bool(levels.told.any()) and levels.timesteps(16).ndim == 1


def test_a_cleaner_span_leaves_a_latent_and_may_stand_anywhere():
    objective = FlowObjective(cleaner_share=1.0, cleaner_counts=(1, 9), cleaner_starts=())
    cleaner = draw_levels(objective, MicroBatch(0, 0, 256, 256), 256, 3).counted == 0
    assert bool(cleaner.any(1).all()) and not bool(cleaner.all(1).any())
    assert {int(row.float().argmax()) for row in cleaner} == {0, 1, 2}


def test_told_clips_have_a_timestep_for_every_latent_and_untold_ones_the_clips():
    objective = FlowObjective(cleaner_share=1.0, cleaner_level=(0.0, 0.5), timestep_per_latent_share=0.5)
    levels = draw_levels(objective, MicroBatch(0, 0, 128, 128), 128, 5)
    assert 0.3 < float(levels.told.float().mean()) < 0.7
    steps = levels.timesteps(16)
    assert steps.shape == (128, 5 * 16)
    each = steps.unflatten(1, (5, 16))
    assert torch.equal(each, each[:, :, :1].expand(-1, -1, 16))
    told, untold = levels.told, ~levels.told
    assert torch.allclose(each[told, :, 0], levels.latents[told] * 1000)
    assert torch.allclose(each[untold, :, 0], levels.clips[untold, None].expand(-1, 5) * 1000)
    assert not bool(torch.isclose(levels.latents[told], levels.clips[told, None]).all(1).any())


def test_the_network_is_shown_the_levels_that_it_is_told(flow_task):
    task = flow_task(cleaner_share=1.0, cleaner_level=(0.0, 0.0), timestep_per_latent_share=1.0, caption_dropout=0.0)
    seen = {}

    def keep(module, arguments):
        seen["noisy"], seen["timesteps"] = arguments[:2]

    task.transformer.register_forward_pre_hook(keep)
    micro_batch = MicroBatch(0, 0, 4, 4)
    task.loss(micro_batch)
    clean = task.source.source.batch(micro_batch).latents
    steps = seen["timesteps"].unflatten(1, (clean.shape[2], 16))[:, :, 0]
    for clip, step in enumerate(steps):
        for latent, timestep in enumerate(step.tolist()):
            equal = torch.equal(seen["noisy"][clip, :, latent], clean[clip, :, latent])
            assert equal == (timestep == 0)
    assert bool((steps == 0).any()) and bool((steps > 0).any())


def test_cleaner_latents_do_not_change_the_loss_of_the_others(flow_task):
    # A new transformer predicts a velocity of zero, so its loss is that of the target alone.
    plain, cleaner = (flow_task(cleaner_share=share, cleaner_counts=(1,)) for share in (0.0, 1.0))
    micro_batch = MicroBatch(0, 0, 2, 2)
    clean = plain.source.source.batch(micro_batch).latents
    noise = micro_batch.normal(*clean.shape[1:], purpose="noise")
    squares = (noise - clean).square().mean((1, 3, 4))
    assert plain.loss(micro_batch).loss.item() == pytest.approx(float(squares.mean()), rel=1e-5)
    assert cleaner.loss(micro_batch).loss.item() == pytest.approx(float(squares[:, 1:].mean()), rel=1e-5)


def test_settings_that_cannot_be_are_refused():
    for wrong, words in (
        ({"cleaner_level": (0.5, 0.2)}, "smaller one first"),
        ({"cleaner_share": 1.5}, "cleaner_share is 1.5; expected a share"),
        ({"lengths": ()}, "expected at least 1"),
        ({"shift": 0.0}, "expected above 0"),
        ({"cleaner_counts": (0,)}, "numbers of latents from 1"),
        ({"null_captions": ()}, "expected texts"),
    ):
        with pytest.raises(ValueError, match=words):
            FlowObjective(**wrong)


# -- previews ----------------------------------------------------------------------------------------------------------


def test_shifted_levels_are_those_of_comfyui():
    levels = shifted_levels(4, 3.0)
    assert levels.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_euler_steps_reach_the_data_that_the_velocity_points_to():
    target, noise = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 4, 3, 4, 4)

    class Straight(torch.nn.Module):
        def forward(self, latents, timestep, text, return_dict):
            level = (timestep / 1000)[:, None, None, None, None]
            return ((latents - torch.cat([target, target])) / level,)

    text = torch.zeros(2, 1, 1)
    found = sample_flow(Straight(), noise, text, text[:1], shifted_levels(5, 3.0), guidance_scale=2.0)
    assert torch.allclose(found, target, atol=1e-4)


def test_rendered_scenes_score_fully():
    scenes = held_out_scenes(24)
    tracks = [track(video, 0.4) for video in render(scenes, 29, speed=0.4)]
    figures = flow_figures(scenes, tracks)
    for name in ("shape in every frame", "colour", "shape", "motion", "direction within 45 degrees"):
        assert figures[name] == 1
    assert figures["progress along the direction"] == pytest.approx(1, abs=0.05)
    still = flow_figures(scenes, [track(video[:, :1].repeat(1, 29, 1, 1), 0.4) for video in render(scenes, 1)])
    assert still["direction within 45 degrees"] == 0 and still["progress along the direction"] == 0


def test_a_preview_writes_pictures_and_figures(flow_task, tmp_path):
    task = flow_task(previews=FlowPreviewSettings(videos=2, length=2, steps=2))
    task.preview(tmp_path / "previews" / "000000008")
    figures = json.loads((tmp_path / "previews" / "000000008" / "figures.json").read_text())
    assert figures["videos"] == 2 and (tmp_path / "previews" / "000000008" / "videos.png").is_file()


# -- the scripts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    return importlib.import_module


VAES = ["flow_vae", "flow_vae_decoder"]
FLOWS = ["flow", "flow_plain"]


@pytest.mark.parametrize("name", [*VAES, *FLOWS])
def test_every_configuration_is_valid(name, script):
    kind = script("train_causal_vae" if name in VAES else "train_flow").Configuration
    made, _ = script("common").parse(kind, ["--config", str(ROOT / "training" / "configs" / f"{name}.yaml")])
    assert made.train.run.name == name and made.train.batch_size > 1
    assert "='runs/" not in repr(made) and "['runs/" not in repr(made)  # every path is a Path
    if name in FLOWS:
        assert made.objective.null_captions == ("", "watermark")  # the bundled text encoder's
        assert (made.objective.cleaner_share > 0) == (name != "flow_plain")


def test_the_transformer_of_the_configuration_is_small_and_reads_the_bundled_text_encoder(script):
    config = script("common").parse(
        script("train_flow").Configuration, ["--config", str(ROOT / "training/configs/flow.yaml")]
    )[0]
    with torch.device("meta"):
        size = sum(p.numel() for p in WanTransformer3DModel(**config.model).parameters())
    assert 5e6 < size < 10e6
    text = json.loads((ROOT / "vidrd_core/demo_model/text_encoder/config.json").read_text())
    assert config.model["text_dim"] == text["hidden_size"]


def test_the_make_target_names_every_script_in_order():
    lines = (ROOT / "Makefile").read_text().partition("train-flow-demo:")[2].partition("\n\n")[0].splitlines()[1:]
    files = [word for line in lines for word in line.split() if word.startswith("training/")]
    assert all((ROOT / file).is_file() for file in files)
    configs = [Path(file).stem for file in files if file.endswith(".yaml")]
    assert configs == [VAES[0], "flow", VAES[1]]


def test_the_bundled_folder_is_half_as_large_and_samples_in_diffusers(script, tmp_path):
    model = tmp_path / "run" / "model"
    transformer = tiny_transformer(**WAN)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)  # a new one predicts nothing
    transformer.save_pretrained(model / "transformer")
    tiny_vae(z_dim=16).save_pretrained(model / "vae")
    (encoder := tiny_text_encoder()).save_pretrained(model / "text_encoder")
    (tokenizer := tiny_tokenizer(tmp_path / "tokenizer")).save_pretrained(model / "tokenizer")
    bundle = script("bundle_flow")
    bundle.main(bundle.Arguments(tmp_path / "run", tmp_path / "folder", shift=3.0))
    pipe = WanPipeline.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae.config.latents_mean == AutoencoderKLWan(**VAE).config.latents_mean
    text = TextStates(encoder, tokenizer)(["a red circle moves left", ""], "cpu")
    noise = torch.randn(1, 16, 2, 8, 8)
    found = pipe(
        prompt_embeds=text[:1],
        negative_prompt_embeds=text[1:],
        height=64,
        width=64,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=2.0,
        latents=noise,
        output_type="latent",
    ).frames
    levels = torch.tensor([*pipe.scheduler.sigmas])
    wanted = sample_flow(pipe.transformer, noise, text[:1], text[1:], levels, 2.0)
    assert torch.allclose(found, wanted, atol=1e-4)
    stored = tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert {str(weight.dtype) for weight in load_file(stored).values()} == {"torch.float16"}
    said = json.loads((tmp_path / "folder" / "model_index.json").read_text())["defaults"]
    assert (said["num_frames"], said["overlap_frames"], said["tell_levels"]) == (29, 12, True)


def test_a_run_is_measured(flow_task, script, tmp_path):
    train(flow_task(), settings(tmp_path / "run", samples=2))
    measure = script("measure_flow")
    previews = FlowPreviewSettings(videos=2, length=2, steps=2)
    measure.main(measure.Arguments(tmp_path / "run", previews, clips=2, levels=(0.5, 0.9)))
    figures = json.loads((tmp_path / "run" / "measured" / "figures.json").read_text())
    assert figures["videos"] == 2 and abs(figures["opposite direction at level 0.9"]) < 100
