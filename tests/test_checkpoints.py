"""Checkpoints: safe reading, recognition of every layout, conversion to a model folder."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from components import VAE_CONFIG, tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidrd_core import VidRDPipeline, VidRDUNet
from vidrd_core.checkpoints import (
    CheckpointError,
    convert,
    inspect,
    load_pipeline_parts,
    load_text_encoder,
    load_unet,
    load_vae,
    save_model,
    text_encoder_state_dict,
    unet_state_dict,
    vae_state_dict,
)
from vidrd_core.cli.models import read_defaults

# Sizes that the rules of Stable Diffusion 2.x can tell from shapes: 64 channels per head, 32 groups.
TOLD: dict[str, Any] = {"block_out_channels": (64, 128), "attention_head_dim": (1, 2), "norm_num_groups": 32}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

State = dict[str, Tensor]


def old_attention_names(state: Mapping[str, Tensor]) -> State:
    renamed = {}
    for name, tensor in state.items():
        if ".attentions.0." in name:
            for new, old in OLD_NAMES.items():
                name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    return renamed


def old_clip_names(state: Mapping[str, Tensor]) -> State:
    """A CLIP text model's dict as transformers wrote it in 2023."""
    old = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items()}
    return {"text_model.embeddings.position_ids": torch.arange(16)[None], **old}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + k: v for k, v in state.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def write_component(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], pickled: bool = False
) -> Path:
    folder.mkdir(parents=True)
    plain = {k: v for k, v in config.items() if not k.startswith("_")}
    (folder / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    if pickled:
        torch.save(dict(state), folder / "diffusion_pytorch_model.bin")
    else:
        save_file(dict(state), folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def told_unet() -> VidRDUNet:
    return tiny_unet(**TOLD)


@pytest.fixture
def unet_file(tmp_path: Path, told_unet: VidRDUNet) -> Path:
    path = tmp_path / "unet.safetensors"
    save_file(told_unet.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion folder as it was in 2023: pickles, old names, image models, another scheduler."""
    folder = tmp_path_factory.mktemp("base") / "stable-diffusion-2-1-base"
    unet, vae, text = tiny_unet(seed=9, add_temp_conv=False), tiny_vae(seed=9, add_temp_conv=False), tiny_text_encoder()
    image_unet = {k: v for k, v in unet.state_dict().items() if "temp_" not in k}
    image_config = {k: v for k, v in unet.config.items() if not k.startswith("add_temp")}
    write_component(folder / "unet", {**image_config, "sample_size": 64}, image_unet, pickled=True)
    old_vae = old_attention_names(vae.state_dict())
    write_component(folder / "vae", {**vae.config, "act_fn": "silu"}, old_vae, pickled=True)
    (folder / "text_encoder").mkdir()
    text.config.save_pretrained(folder / "text_encoder")
    torch.save(old_clip_names(text.state_dict()), folder / "text_encoder" / "pytorch_model.bin")
    tiny_tokenizer(folder / "tokenizer")
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.013, beta_schedule="scaled_linear", steps_offset=1)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    return folder


@pytest.fixture
def lightning_file(tmp_path: Path) -> Path:
    """A tiny ModelT2V.pth: a U-Net whose sizes no shape tells, and a text encoder of its own."""
    text = {k: v + 1 for k, v in tiny_text_encoder().state_dict().items()}
    state = {**prefixed("unet.", tiny_unet().state_dict()), **prefixed("text_encoder.", old_clip_names(text))}
    path = tmp_path / "ModelT2V.pth"
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": []}, path)
    return path


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    vae = tiny_vae(seed=4)
    config = {k: v for k, v in vae.config.items() if k != "add_temp_conv"}
    return write_component(tmp_path / "vae_finetuned", config, old_attention_names(vae.state_dict()), pickled=True)


# -- what is no checkpoint ---------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling this touches a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


class ShellBomb(Bomb):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f'echo x > "{self.mark}"',)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("bomb", [Bomb, ShellBomb])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_in_a_pickle_is_never_executed(tmp_path: Path, bomb: type[Bomb], form: str, suffix: str) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / f"model{suffix}"
    content = {"state_dict": {"unet.conv_in.weight": torch.zeros(1)}, "hyper_parameters": bomb(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["hyper_parameters"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    for read in (inspect, load_unet, load_vae, load_text_encoder, lambda p: convert(p, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=r"Nothing of it was executed.*safetensors"):
            read(path)
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_a_folder_with_a_malicious_pickle_is_refused_and_nothing_executed(tmp_path: Path, vae_folder: Path) -> None:
    torch.save({"x": Bomb(tmp_path / "executed")}, vae_folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Nothing of it was executed"):
        load_vae(vae_folder)
    assert not (tmp_path / "executed").exists()


def test_what_training_frameworks_store_beside_the_weights_is_left_out(
    tmp_path: Path, told_unet: VidRDUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("omegaconf.dictconfig")
    settings = type("DictConfig", (), {"__module__": module.__name__, "__setstate__": lambda self, state: 1 / 0})
    parsed = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning.utilities.parsing"})
    module.DictConfig = settings
    parsing = types.ModuleType("pytorch_lightning.utilities.parsing")
    parsing.AttributeDict = parsed
    value = settings()
    value.content = {"resolution": 256, "kind": dict}
    path = tmp_path / "model.ckpt"
    content = {
        "state_dict": prefixed("unet.", told_unet.state_dict()),
        "hyper_parameters": parsed(add_temp_embed=False, ckpt_path=Path("x")),
        "callbacks": {"a": value, "b": argparse.Namespace(c=1)},
    }
    with monkeypatch.context() as patch:
        for name in ("omegaconf", "pytorch_lightning", "pytorch_lightning.utilities"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(sys.modules, parsing.__name__, parsing)
        torch.save(content, path)
    unet = load_unet(path)
    assert same(unet.state_dict(), told_unet.state_dict())
    assert unet.config.add_temp_embed is False


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("vae_finetuned/config.json", "{}")
    return buffer.getvalue()


WEIGHTS = {"a": torch.zeros(4000)}
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4729000000\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"empty \(0 bytes\).*download"),
        (PAGE, "web page.*download again"),
        (POINTER, "Git LFS pointer.*git lfs pull"),
        (truncated(torch_bytes(WEIGHTS)), "cut short.*download it again"),
        (truncated(torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False)), "cut short.*download it again"),
        (b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1', "cut short.*download it again"),
        (other_zip(), "zip archive.*unpack"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"hello, these are no weights", "neither safetensors nor a torch file.*download"),
        (b"\x80\x02\xff\xff\xff\xff", "cut short|Nothing of it was executed"),
        (torch_bytes([1, 2]), "holds a list"),
        (torch_bytes({"a": torch.eye(3).to_sparse()}), "sparse"),
        (torch_bytes({"epoch": 3}), "holds no weights, only epoch"),
        (torch_bytes({"state_dict": {"layer.lora_A.weight": torch.zeros(2)}}), "looks like a LoRA"),
        (torch_bytes({"fc.weight": torch.zeros(2)}), "no U-Net, VAE or CLIP text encoder.*fc.weight"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_with_the_remedy(tmp_path: Path, data: bytes, message: str) -> None:
    for name in ("ModelT2V.pth", "model.safetensors"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"(?s){name}.*({message})"):
            inspect(path)


def test_a_truncated_safetensors_file_is_named_with_the_remedy(unet_file: Path) -> None:
    unet_file.write_bytes(truncated(unet_file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"unet.safetensors.*cut short.*download it again"):
        load_unet(unet_file)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
        inspect(tmp_path / "nowhere.pth")


def test_a_folder_with_weights_but_no_config_is_refused(vae_folder: Path) -> None:
    (vae_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vae_finetuned holds weights but no config\.json"):
        load_vae(vae_folder)


def test_a_folder_that_is_no_model_lists_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is no model folder \(it holds 'notes\.txt'\)"):
        inspect(tmp_path)


def test_a_folder_that_lacks_a_shard_names_it(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "unet", tiny_unet())
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards .*00002-of-00002"):
        load_unet(folder)


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "unet", tiny_unet())
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_unet(folder)


@pytest.mark.parametrize("value", ["{", "[1]"])
def test_a_damaged_configuration_in_the_metadata_is_named(tmp_path: Path, told_unet: VidRDUNet, value: str) -> None:
    path = tmp_path / "unet.safetensors"
    save_file(told_unet.state_dict(), path, metadata={"vidrd_config": value})
    with pytest.raises(CheckpointError, match=r"unet\.safetensors: its metadata vidrd_config is no JSON"):
        load_unet(path)


def test_weights_of_odd_shapes_are_named(tmp_path: Path, told_unet: VidRDUNet) -> None:
    path = tmp_path / "unet.safetensors"
    save_file({k: v.flatten() for k, v in told_unet.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match=r"unet\.safetensors: .*odd shapes"):
        load_unet(path)
    names = ("input_blocks.0.0.weight", "time_embed.0.weight", "input_blocks.3.0.op.weight", "input_blocks.1.1.x")
    save_file({k: torch.zeros(1) for k in names}, path)
    for read in (load_unet, lambda p: load_unet(p, inflate=True)):
        with pytest.raises(CheckpointError, match=r"unet\.safetensors"):
            read(path)
    assert "cannot be used" in str(inspect(path))


# -- another architecture ----------------------------------------------------------------------------------------------


def test_a_vae_given_as_unet_is_refused(vae_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no U-Net \(it holds: VAE\)"):
        load_unet(vae_folder)


def test_an_image_unet_is_refused_unless_inflation_is_asked_for(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without temporal layers.*from_image_unet"):
        load_unet(base_folder)
    unet = load_unet(base_folder, inflate=True)
    assert not any(p.is_meta for p in unet.parameters())
    assert all(not layer.convs[-1].weight.any() for layer in unet.down_blocks[0].temp_convs)
    assert torch.isfinite(unet(torch.ones(1, 4, 3, 4, 4), 5, torch.ones(1, 2, 32)).sample).all()
    with pytest.raises(CheckpointError, match="without temporal layers"):
        convert(base_folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("add_embedding.linear_1.weight", "Stable Diffusion XL"),
        ("transformer_in.norm.weight", "ModelScope"),
        ("down_blocks.0.resnets.0.spatial_res_block.conv1.weight", "Stable Video Diffusion"),
        ("down_blocks.0.motion_modules.0.norm.weight", "AnimateDiff"),
    ],
)
def test_a_unet_of_another_family_is_named(tmp_path: Path, told_unet: VidRDUNet, extra: str, message: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({**told_unet.state_dict(), extra: torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=f"other.safetensors holds .*{message}"):
        load_unet(path)
    assert message in str(inspect(path)) and not inspect(path).parts["unet"].is_whole


def test_the_stable_video_diffusion_decoder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    save_file({**tiny_vae().state_dict(), "decoder.time_conv_out.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="Stable Video Diffusion's decoder .*AutoencoderKLTemporalDecoder"):
        load_vae(path)


def test_wrong_shapes_missing_and_unexpected_weights_are_listed(tmp_path: Path) -> None:
    unet = tiny_unet()
    config, state = dict(unet.config), unet.state_dict()
    state["conv_in.weight"] = torch.zeros(16, 9, 3, 3)
    del state["conv_out.bias"], state["mid_block.temp_convs.0.convs.3.weight"]
    state["odd.weight"] = torch.zeros(1)
    folder = write_component(tmp_path / "unet", config, state)
    message = (
        r"(?s)unet: .*wrong shapes: conv_in.weight \[16, 9, 3, 3\], expected \[16, 4, 3, 3\]; "
        r"missing: conv_out.bias, mid_block.temp_convs.0.convs.3.weight; unexpected: odd.weight"
    )
    for load in (load_unet, unet_state_dict):
        with pytest.raises(CheckpointError, match=message):
            load(folder)
    report = inspect(folder)
    text = str(report)
    assert "1 with wrong shapes" in text and "2 missing" in text and "1 unexpected: odd.weight" in text


def test_missing_temporal_weights_are_an_error_for_a_video_model(tmp_path: Path) -> None:
    vae = tiny_vae()
    state = {k: v for k, v in vae.state_dict().items() if not k.startswith("decoder.up_blocks.1.temp_convs")}
    with pytest.raises(CheckpointError, match=r"missing: decoder\.up_blocks\.1\.temp_convs"):
        load_vae(write_component(tmp_path / "vae", dict(vae.config), state))


def test_a_configuration_of_another_architecture_is_refused(tmp_path: Path) -> None:
    unet = tiny_unet()
    folder = write_component(tmp_path / "unet", {**unet.config, "transformer_layers_per_block": 2}, unet.state_dict())
    with pytest.raises(CheckpointError, match=r"unet: .*transformer_layers_per_block"):
        load_unet(folder)


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "unet.", "model.unet.", "module.unet._orig_mod.", "model.diffusion_model."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_unet_is_found_under_any_prefix_and_its_sizes_told_from_shapes(
    tmp_path: Path, told_unet: VidRDUNet, prefix: str, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    state = prefixed(prefix, told_unet.state_dict())
    torch.save({"state_dict": state}, path) if suffix == ".pth" else save_file(state, path)
    unet = load_unet(path)
    assert same(unet.state_dict(), told_unet.state_dict()) and not unet.training
    for key in ("block_out_channels", "attention_head_dim", "layers_per_block", "add_temp_embed", "add_temp_conv"):
        assert _plain(unet.config[key]) == _plain(told_unet.config[key])
    sample, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 3, 32)
    torch.testing.assert_close(unet(sample, 3, text).sample, told_unet(sample, 3, text).sample)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def test_the_released_sizes_are_told_from_shapes() -> None:
    from vidrd_core.checkpoints.configs import infer_config

    with torch.device("meta"):
        unet = VidRDUNet()
        sd1 = VidRDUNet(cross_attention_dim=768, use_linear_projection=False, attention_head_dim=8)
    config = infer_config("unet", {k: tuple(v.shape) for k, v in unet.state_dict().items()})
    assert config["attention_head_dim"] == [5, 10, 20, 20] and config["use_linear_projection"]
    assert {k: _plain(unet.config[k]) for k in config if k not in ("down_block_types", "up_block_types")} == {
        k: v for k, v in config.items() if k not in ("down_block_types", "up_block_types")
    }
    older = infer_config("unet", {k: tuple(v.shape) for k, v in sd1.state_dict().items()})
    assert older["attention_head_dim"] == 8 and older["cross_attention_dim"] == 768


def test_sizes_that_shapes_do_not_tell_are_asked_for(tmp_path: Path) -> None:
    unet = tiny_unet()
    path = tmp_path / "unet.safetensors"
    save_file(unet.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"unet\.safetensors: the U-Net is 16 channels wide.*pass its config"):
        load_unet(path)
    assert same(load_unet(path, config=unet.config).state_dict(), unet.state_dict())


def test_files_written_here_carry_their_configuration(tmp_path: Path) -> None:
    unet, vae = tiny_unet(add_temp_embed=False), tiny_vae()
    save_model(unet, tmp_path / "unet.safetensors")
    save_model(vae, tmp_path / "vae.safetensors")
    assert same(load_unet(tmp_path / "unet.safetensors").state_dict(), unet.state_dict())
    assert load_unet(tmp_path / "unet.safetensors").config.add_temp_embed is False
    assert same(load_vae(tmp_path / "vae.safetensors").state_dict(), vae.state_dict())
    state, config = unet_state_dict(tmp_path / "unet.safetensors")
    assert same(state, unet.state_dict())
    VidRDUNet(**{k: v for k, v in config.items() if not k.startswith("_")}).load_state_dict(state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["unet.safetensors", "vae.safetensors"]


def test_a_vae_with_old_attention_names_is_loaded(vae_folder: Path) -> None:
    vae = load_vae(vae_folder)
    assert same(vae.state_dict(), tiny_vae(seed=4).state_dict())
    assert vae.config.add_temp_conv and vae_state_dict(vae_folder)[0].keys() == vae.state_dict().keys()


def test_an_image_vae_is_loaded_without_temporal_layers_unless_inflated(base_folder: Path) -> None:
    vae = load_vae(base_folder)
    assert vae.config.add_temp_conv is False
    inflated = load_vae(base_folder, inflate=True, config={**VAE_CONFIG})
    assert any("temp_convs" in k for k in inflated.state_dict())
    latents = torch.randn(1, 4, 3, 4, 4)
    torch.testing.assert_close(inflated.decode(latents).sample, vae.decode(latents).sample)


def test_a_text_encoder_is_loaded_from_old_names(lightning_file: Path, base_folder: Path) -> None:
    text = tiny_text_encoder()
    loaded = load_text_encoder(base_folder)
    ids = torch.tensor([[512, 5, 6, 513]])
    assert torch.equal(loaded(ids).last_hidden_state, text(ids).last_hidden_state)
    own = load_text_encoder(lightning_file, config=text.config.to_dict())
    assert torch.equal(own.state_dict()["final_layer_norm.bias"], text.state_dict()["final_layer_norm.bias"] + 1)
    state, _ = text_encoder_state_dict(lightning_file, text.config.to_dict())
    assert same(state, own.state_dict())


def sharded(folder: Path, model: VidRDUNet) -> Path:
    model.save_pretrained(folder)
    single = folder / "diffusion_pytorch_model.safetensors"
    single.unlink()
    state = model.state_dict()
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({k: state[k] for k in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_a_folder_of_shards_is_loaded(tmp_path: Path) -> None:
    unet = tiny_unet()
    assert same(load_unet(sharded(tmp_path / "unet", unet)).state_dict(), unet.state_dict())


def test_a_folder_with_only_an_fp16_variant_is_loaded(tmp_path: Path) -> None:
    tiny_unet().half().save_pretrained(tmp_path / "unet", variant="fp16")
    assert load_unet(tmp_path / "unet").dtype == torch.float16


def test_a_moving_average_and_a_metrics_clip_beside_the_weights_are_not_taken(
    tmp_path: Path, told_unet: VidRDUNet
) -> None:
    path = tmp_path / "model.ckpt"
    text = old_clip_names(tiny_text_encoder().state_dict())
    text["vision_model.embeddings.class_embedding"] = torch.zeros(2)
    average = {k: v * 0 for k, v in told_unet.state_dict().items()}
    state = {
        **prefixed("unet.", told_unet.state_dict()),
        **prefixed("ema_unet.", average),
        **prefixed("clip.", text),
    }
    torch.save({"state_dict": state}, path)
    assert same(load_unet(path).state_dict(), told_unet.state_dict())
    report = inspect(path)
    assert list(report.parts) == ["unet"] and len(report.other) == len(average) + len(text)


def test_mixed_types_are_widened_and_a_given_type_is_kept(tmp_path: Path, told_unet: VidRDUNet) -> None:
    path = tmp_path / "mixed.safetensors"
    save_file({k: v.half() if "temp_" not in k else v for k, v in told_unet.state_dict().items()}, path)
    assert {p.dtype for p in load_unet(path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_unet(path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    assert inspect(path).parts["unet"].dtypes.keys() == {"float16", "float32"}


def test_eight_bit_weights_ask_for_a_type(tmp_path: Path, told_unet: VidRDUNet) -> None:
    path = tmp_path / "fp8.safetensors"
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in told_unet.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match="stored as torch.float8_e4m3fn: pass dtype"):
        load_unet(path)
    assert load_unet(path, dtype=torch.float16).dtype == torch.float16


def test_weights_of_the_files_own_type_are_mapped_and_not_copied(unet_file: Path) -> None:
    state = load_unet(unet_file).state_dict()
    starts = sorted(v.data_ptr() for v in state.values())
    # In one mapping the tensors lie as in the file, without the spaces that an allocator leaves.
    assert starts[-1] - starts[0] < unet_file.stat().st_size


def test_leaf_layers_come_from_the_given_operations(unet_file: Path) -> None:
    class Linear(torch.nn.Linear):
        pass

    operations = types.SimpleNamespace(**{**vars(torch.nn), "Linear": Linear})
    unet = load_unet(unet_file, operations=operations)
    assert isinstance(unet.time_embedding.linear_1, Linear)


# -- names of single-file Stable Diffusion -----------------------------------------------------------------------------


def ldm_unet(state: Mapping[str, Tensor]) -> State:
    """A two-level U-Net with two residual blocks per level in the names of CompVis."""
    leaves = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    tops = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    }
    for level in (0, 1):
        for row in (0, 1):
            tops[f"down_blocks.{level}.resnets.{row}"] = f"input_blocks.{1 + 3 * level + row}.0"
            tops[f"down_blocks.{level}.attentions.{row}"] = f"input_blocks.{1 + 3 * level + row}.1"
        for row in (0, 1, 2):
            tops[f"up_blocks.{level}.resnets.{row}"] = f"output_blocks.{3 * level + row}.0"
            tops[f"up_blocks.{level}.attentions.{row}"] = f"output_blocks.{3 * level + row}.1"
    for row in (0, 1):
        tops[f"mid_block.resnets.{row}"] = f"middle_block.{2 * row}"
    tops["mid_block.attentions.0"] = "middle_block.1"
    return _renamed(state, tops, leaves, within=".resnets.")


def ldm_vae(state: Mapping[str, Tensor], levels: int) -> State:
    tops = {f"{side}.conv_norm_out": f"{side}.norm_out" for side in ("encoder", "decoder")}
    for side in ("encoder", "decoder"):
        for row in (0, 1):
            tops[f"{side}.mid_block.resnets.{row}"] = f"{side}.mid.block_{row + 1}"
        attention = f"{side}.mid_block.attentions.0"
        layers = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        tops.update({f"{attention}.{new}": f"{side}.mid.attn_1.{old}" for new, old in layers.items()})
    for level in range(levels):
        up = levels - 1 - level
        tops[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        tops[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{up}.upsample.conv"
        for row in range(3):
            tops[f"encoder.down_blocks.{level}.resnets.{row}"] = f"encoder.down.{level}.block.{row}"
            tops[f"decoder.up_blocks.{level}.resnets.{row}"] = f"decoder.up.{up}.block.{row}"
    renamed = _renamed(state, tops, {"conv_shortcut": "nin_shortcut"}, within=".resnets.")
    return {k: v[:, :, None, None] if ".attn_1." in k and v.ndim == 2 else v for k, v in renamed.items()}


def _renamed(state: Mapping[str, Tensor], tops: Mapping[str, str], leaves: Mapping[str, str], within: str) -> State:
    renamed = {}
    for name, tensor in state.items():
        top = next((t for t in tops if name.startswith(t + ".")), None)
        rest = name.removeprefix(top) if top else name
        for leaf, old in leaves.items() if within in name else ():
            rest = rest.replace(f".{leaf}.", f".{old}.")
        renamed[(tops[top] if top else "") + rest] = tensor
    return renamed


def open_clip(state: Mapping[str, Tensor]) -> State:
    old: State = {"text_projection": torch.zeros(32, 8), "logit_scale": torch.zeros(()), "attn_mask": torch.zeros(2)}
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
        "encoder.layers": "transformer.resblocks",
        "final_layer_norm": "ln_final",
        "embeddings.token_embedding": "token_embedding",
    }
    state = {k.removeprefix("text_model."): v for k, v in state.items()}
    for name, tensor in state.items():
        if ".q_proj." in name:
            both = [state[name.replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")]
            layer, kind = name.split(".")[2], name.rpartition(".")[2]
            old[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(both)
        elif "embeddings.position_embedding" in name:
            old["positional_embedding"] = tensor
        elif "_proj." not in name or "out_proj" in name:
            for new, older in names.items():
                name = name.replace(new, older)
            old[name] = tensor
    return old


@pytest.fixture(scope="module")
def sd_models() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=2,
        use_linear_projection=True,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    settings = {k: v for k, v in VAE_CONFIG.items() if k != "layers_per_block"}
    return unet, AutoencoderKL(latent_channels=4, layers_per_block=2, **settings)


@pytest.fixture(scope="module")
def sd_file(tmp_path_factory: pytest.TempPathFactory, sd_models: tuple[UNet2DConditionModel, AutoencoderKL]) -> Path:
    """A tiny v2-1_512-ema-pruned.safetensors."""
    unet, vae = sd_models
    path = tmp_path_factory.mktemp("single") / "v2-1_512-ema-pruned.safetensors"
    state = {
        **prefixed("model.diffusion_model.", ldm_unet(unet.state_dict())),
        **prefixed("first_stage_model.", ldm_vae(vae.state_dict(), levels=3)),
        **prefixed("cond_stage_model.model.", open_clip(tiny_text_encoder().state_dict())),
        "betas": torch.zeros(3),
        "model_ema.decay": torch.zeros(()),
    }
    save_file(state, path)
    return path


def test_the_parts_of_a_stable_diffusion_single_file_are_found_and_renamed(
    sd_file: Path, sd_models: tuple[UNet2DConditionModel, AutoencoderKL]
) -> None:
    unet, vae = sd_models
    loaded = load_unet(sd_file, config=unet.config, inflate=True).state_dict()
    assert same({k: v for k, v in loaded.items() if "temp_" not in k}, unet.state_dict())
    assert same(load_vae(sd_file, config=vae.config).state_dict(), vae.state_dict())
    text = tiny_text_encoder()
    assert same(load_text_encoder(sd_file, config=text.config.to_dict()).state_dict(), text.state_dict())
    report = inspect(sd_file)
    assert report.kind == "ldm" and list(report.parts) == ["unet", "vae", "text_encoder"]
    assert sorted(report.other) == ["betas", "model_ema.decay"]


def test_a_vae_file_in_single_file_names_is_loaded(
    tmp_path: Path, sd_models: tuple[UNet2DConditionModel, AutoencoderKL]
) -> None:
    vae = sd_models[1]
    torch.save({"state_dict": {**ldm_vae(vae.state_dict(), 3), "loss.logvar": torch.zeros(1)}}, tmp_path / "vae.ckpt")
    assert same(load_vae(tmp_path / "vae.ckpt", config=vae.config).state_dict(), vae.state_dict())


def test_single_file_weights_that_the_conversion_does_not_know_are_an_error(
    tmp_path: Path, sd_models: tuple[UNet2DConditionModel, AutoencoderKL]
) -> None:
    path = tmp_path / "odd.safetensors"
    state = {**ldm_unet(sd_models[0].state_dict()), "odd_layer.weight": torch.zeros(3)}
    save_file(prefixed("model.diffusion_model.", state), path)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: the U-Net has 1 weights.*odd_layer\.weight"):
        load_unet(path)
    assert "odd_layer" in str(inspect(path))


# -- pipelines and conversion ------------------------------------------------------------------------------------------


def test_the_released_files_and_a_base_folder_make_a_pipeline(
    lightning_file: Path, vae_folder: Path, base_folder: Path
) -> None:
    parts = load_pipeline_parts(lightning_file, base_folder, vae=vae_folder)
    assert same(parts["unet"].state_dict(), tiny_unet().state_dict())
    assert same(parts["vae"].state_dict(), tiny_vae(seed=4).state_dict())
    bias = tiny_text_encoder().state_dict()["final_layer_norm.bias"]
    assert torch.equal(parts["text_encoder"].state_dict()["final_layer_norm.bias"], bias + 1)  # its own, not the base's
    assert type(parts["scheduler"]).__name__ == "DDIMScheduler" and parts["scheduler"].config.beta_end == 0.013
    pipe = VidRDPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a", num_clips=2, num_frames=4, height=16, width=16, num_inference_steps=2, output_type="pt")
    assert torch.isfinite(out.frames).all()


@pytest.fixture
def release_folder(tmp_path: Path, lightning_file: Path, vae_folder: Path, base_folder: Path) -> Path:
    folder = tmp_path / "assets"
    folder.mkdir()
    lightning_file.rename(folder / lightning_file.name)
    vae_folder.rename(folder / vae_folder.name)
    shutil.copytree(base_folder, folder / base_folder.name)
    return folder


def test_conversion_writes_a_model_folder_that_the_pipeline_loads(release_folder: Path, tmp_path: Path) -> None:
    out = convert(release_folder, tmp_path / "converted")
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert {n.split("/")[0] for n in names} == {
        "model_index.json",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    }
    assert {Path(n).suffix for n in names} == {".json", ".txt", ".safetensors"}
    before = load_pipeline_parts(release_folder)
    pipe = VidRDPipeline.from_pretrained(out)
    for name in ("unet", "vae", "text_encoder"):
        assert same(getattr(pipe, name).state_dict(), before[name].state_dict())
    assert pipe.vae.config.add_temp_conv and pipe.unet.config.attention_head_dim == 2
    assert pipe.tokenizer("a b").input_ids == before["tokenizer"]("a b").input_ids
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert inspect(out).kind == "model_folder" and all(p.is_whole for p in inspect(out).parts.values())
    with safe_open(out / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["vidrd_config"])["_class_name"] == "VidRDUNet"
    assert not list(tmp_path.glob("*.partial"))


def test_a_converted_model_folder_keeps_its_sampling_defaults(model_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(model_folder, tmp_path / "source")
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    defaults = {"num_inference_steps": 25, "fps": 8}
    (source / "model_index.json").write_text(json.dumps({**index, "defaults": defaults}), encoding="utf-8")
    assert read_defaults(convert(source, tmp_path / "out")) == defaults
    assert read_defaults(convert(source / "unet", tmp_path / "bare", base=source)) == {}


def test_conversion_of_a_converted_folder_changes_the_type_only(model_folder: Path, tmp_path: Path) -> None:
    out = convert(model_folder, tmp_path / "half", dtype=torch.float16)
    pipe = VidRDPipeline.from_pretrained(out)
    before = VidRDPipeline.from_pretrained(model_folder)
    for name in ("unet", "vae", "text_encoder"):
        halves = {k: v.half() for k, v in getattr(before, name).state_dict().items()}
        stored = inspect(out).parts[name]
        assert stored.dtypes.keys() == {"float16"} and stored.is_whole
        loaded = {"unet": load_unet, "vae": load_vae, "text_encoder": load_text_encoder}[name](out)
        assert same(loaded.state_dict(), halves)
    assert type(pipe.scheduler) is type(before.scheduler)


def test_several_sources_are_searched_in_order(
    lightning_file: Path, vae_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    out = convert([base_folder, lightning_file, vae_folder], tmp_path / "out")
    assert load_vae(out).config.add_temp_conv is False  # the base came first
    assert same(load_unet(out).state_dict(), tiny_unet().state_dict())


def test_a_single_file_base_needs_a_tokenizer(
    lightning_file: Path, sd_file: Path, vae_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    unet_folder = write_component(tmp_path / "unet", tiny_unet().config, tiny_unet().state_dict())
    text_folder = base_folder / "text_encoder"
    with pytest.raises(CheckpointError, match="no tokenizer in .*give the tokenizer/ folder"):
        convert([unet_folder, text_folder], tmp_path / "out", vae=vae_folder)
    assert not (tmp_path / "out").exists()
    out = convert([unet_folder, text_folder], tmp_path / "out", vae=vae_folder, tokenizer=base_folder / "tokenizer")
    assert VidRDPipeline.from_pretrained(out).scheduler.config.beta_end == 0.012


def test_what_no_source_has_is_named(lightning_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no VAE in .*ModelT2V\.pth: give a Stable Diffusion 2\.1"):
        convert(lightning_file, tmp_path / "out")


def test_a_text_encoder_of_another_width_is_refused(lightning_file: Path, base_folder: Path, tmp_path: Path) -> None:
    unet = tiny_unet(cross_attention_dim=24)
    folder = write_component(tmp_path / "unet", unet.config, unet.state_dict())
    with pytest.raises(CheckpointError, match="is 32 wide, the U-Net .* reads 24"):
        convert(folder, tmp_path / "out", base=base_folder)


def test_conversion_does_not_touch_a_folder_that_holds_something(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert(model_folder, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert inspect(convert(model_folder, tmp_path / "empty")).absent == []


def test_a_conversion_that_fails_midway_leaves_nothing(
    lightning_file: Path, vae_folder: Path, base_folder: Path, tmp_path: Path
) -> None:
    scheduler = base_folder.parent / "broken"
    shutil.copytree(base_folder, scheduler)
    state = torch.load(vae_folder / "diffusion_pytorch_model.bin", weights_only=True)
    del state["quant_conv.bias"]
    torch.save(state, vae_folder / "diffusion_pytorch_model.bin")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="missing: quant_conv.bias"):
        convert(lightning_file, tmp_path / "out", base=scheduler, vae=vae_folder)
    assert sorted(tmp_path.iterdir()) == before


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_says_what_a_checkpoint_is(release_folder: Path, base_folder: Path, tmp_path: Path) -> None:
    report = inspect(release_folder)
    text = str(report)
    assert report.kind == "release_folder" and report.absent == []
    for line in ("folder of the released files", "U-Net: VidRD temporal U-Net", "VAE with a temporal decoder"):
        assert line in text
    assert report.parts["unet"].parameters == sum(p.numel() for p in tiny_unet().parameters())
    base = str(inspect(base_folder))
    assert "diffusers model folder" in base and "image U-Net" in base and "image VAE" in base


def test_a_v_prediction_base_is_noticed(
    lightning_file: Path, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "sd"
    shutil.copytree(base_folder, base)
    PNDMScheduler(prediction_type="v_prediction").save_pretrained(base / "scheduler")
    parts = load_pipeline_parts(lightning_file, base)
    assert parts["scheduler"].config.prediction_type == "epsilon"
    assert "v_prediction" in caplog.text
