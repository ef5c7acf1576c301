"""The nodes as a user meets them: schemas, errors, LoRA, weight types, memory, states, many clips, previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from node_schemas import read_nodes

KEY = "vidrd_trajectory"


def test_schemas_are_complete(nodes: dict[str, Any]) -> None:
    for identity, call in nodes.items():
        schema = call.node.GET_SCHEMA()
        assert identity.startswith("VidRD") and schema.category == "VidRD" and schema.description
        for item in (*schema.inputs, *schema.outputs):
            assert item.tooltip and item.tooltip.endswith("."), (identity, item.id)
        assert call.node.INPUT_TYPES()
        assert schema.display_name
    assert set(nodes) == set(read_nodes())


def test_model_folders_and_files_are_listed(nodes: dict[str, Any], folder: Path, base: Path) -> None:
    inputs = {i.id: i for i in nodes["VidRDLoadModel"].node.define_schema().inputs}
    assert inputs["model_name"].options == [
        "bundled demo model",
        "bundled demo model, 4 steps",
        "bundled flow model",
        "tiny",
    ]


def test_temporal_unet_and_decoder_load_from_comfyuis_own_folders(
    nodes: dict[str, Any], folder: Path, base: Path, pipe: Any, model: Any
) -> None:
    import folder_paths
    from safetensors.torch import save_file

    state = {f"unet.{k}": v.contiguous() for k, v in pipe.unet.state_dict().items()}
    state |= {f"text_encoder.{k}": v.contiguous() for k, v in pipe.text_encoder.state_dict().items()}
    torch.save({"state_dict": state}, base / "models/diffusion_models/ModelT2V.pth")
    target = base / "models/vae/vae_finetuned"
    pipe.vae.save_pretrained(str(target))
    folder_paths.filename_list_cache.clear()
    schemas = {
        n: {i.id: i for i in nodes[n].node.define_schema().inputs} for n in ("VidRDLoadUNet", "VidRDLoadVideoDecoder")
    }
    assert "ModelT2V.pth" in schemas["VidRDLoadUNet"]["unet_name"].options
    assert "vae_finetuned/" in schemas["VidRDLoadVideoDecoder"]["vae_name"].options
    (vae,) = nodes["VidRDLoadVideoDecoder"](vae_name="vae_finetuned/")
    assert vae.first_stage_model.config.add_temp_conv
    save_file(
        {k: v.contiguous() for k, v in pipe.unet.state_dict().items()},
        base / "models/diffusion_models/unet.safetensors",
    )


def test_a_checkpoint_in_the_released_layout_gives_its_model_and_its_own_text_encoder(
    nodes: dict[str, Any], base: Path
) -> None:
    """A pickle of weights alone, whose architecture is told from the shapes; U-Net and text encoder compute alike."""
    import folder_paths
    from transformers import CLIPTextConfig, CLIPTextModel

    from vidrd_core import VidRDUNet

    torch.manual_seed(3)
    unet = VidRDUNet(
        block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=64, attention_head_dim=(1, 2)
    )
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=49408, hidden_act="gelu"))
    for module in (unet, text):
        for parameter in module.eval().parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    state = {f"unet.{k}": v for k, v in unet.state_dict().items()}
    state |= {f"text_encoder.text_model.{k.removeprefix('text_model.')}": v for k, v in text.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, base / "models/diffusion_models/Released.pth")
    folder_paths.filename_list_cache.clear()

    other = object()
    model, clip = nodes["VidRDLoadUNet"](unet_name="Released.pth", weight_dtype="fp32", clip=other)
    assert clip is not other
    x, t, context = torch.randn(2, 4, 5, 8, 8), torch.tensor([500, 20]), torch.randn(2, 77, 64)
    with torch.no_grad():
        expected = unet(x, t, context).sample
        torch.testing.assert_close(model.model.diffusion_model(x, t, context=context), expected, rtol=1e-4, atol=1e-5)
        tokens = clip.tokenize("a red circle")
        ids = torch.tensor([[int(token) for token, _ in next(iter(tokens.values()))[0]]])
        inside = clip.encode_from_tokens_scheduled(tokens)[0][0]
        torch.testing.assert_close(inside, text(ids).last_hidden_state, rtol=1e-3, atol=1e-3)

    torch.save(
        {"state_dict": {k: v for k, v in state.items() if k.startswith("unet.")}},
        base / "models/diffusion_models/Bare.pth",
    )
    assert nodes["VidRDLoadUNet"](unet_name="Bare.pth", clip=other)[1] is other
    assert nodes["VidRDLoadUNet"](unet_name="Bare.pth")[1] is None


def test_missing_files_name_the_folder_they_belong_in(nodes: dict[str, Any], base: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model_index.json at gone in .*vidrd"):
        nodes["VidRDLoadModel"](model_name="gone")
    with pytest.raises(FileNotFoundError, match="gone.pth is not in .*diffusion_models"):
        nodes["VidRDLoadUNet"](unet_name="gone.pth")
    with pytest.raises(FileNotFoundError, match="no state gone"):
        nodes["VidRDLoadState"](name="gone")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn", "fp8_e5m2", "default"])
def test_weight_dtypes_sample(
    dtype: str, nodes: dict[str, Any], folder: Path, first: Any, following: Any, model: Any
) -> None:
    light = nodes["VidRDLoadModel"](model_name="tiny", weight_dtype=dtype)[0]
    latent = first(model=light, steps=2)
    video, _ = following(latent, model=light)
    assert torch.isfinite(video["samples"]).all()
    if dtype != "default":
        stored = {p.dtype for p in light.model.diffusion_model.parameters()}
        assert len(stored) == 1 and stored != {torch.float32}
    following(first(steps=2), model=light)  # the same model in another precision may go on


def lora(model: Any, spelling: str) -> dict[str, torch.Tensor]:
    """The same LoRA of four layers in one of the spellings in use."""
    generator = torch.Generator().manual_seed(0)
    layers = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
              "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
              "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
              "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"]  # fmt: skip
    original = {layers[0]: "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
                layers[1]: "middle_block_1_transformer_blocks_0_attn2_to_out_0",
                layers[2]: "input_blocks_3_1_transformer_blocks_0_ff_net_0_proj",
                layers[3]: "output_blocks_2_1_transformer_blocks_0_attn2_to_k"}  # fmt: skip
    weights = dict(model.model.diffusion_model.named_parameters())
    out = {}
    for name in layers:
        rows, columns = weights[f"{name}.weight"].shape
        down, up = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
        flat = name.replace(".", "_")
        processor = name.replace(".to_", ".processor.to_").removesuffix(".0")
        old = f"unet.{processor}_lora" if ".to_" in name else f"unet.{name}.lora"  # only attention had processors
        keys = {
            "kohya": (f"lora_unet_{flat}.lora_down.weight", f"lora_unet_{flat}.lora_up.weight"),
            "kohya, original names": (
                f"lora_unet_{original[name]}.lora_down.weight",
                f"lora_unet_{original[name]}.lora_up.weight",
            ),
            "peft": (f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"),
            "diffusers": (f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight"),
            "diffusers, transitional": (f"unet.{name}.lora.down.weight", f"unet.{name}.lora.up.weight"),
            "diffusers, old": (f"{old}.down.weight", f"{old}.up.weight"),
            "generic": (f"diffusion_model.{name}.lora_A.weight", f"diffusion_model.{name}.lora_B.weight"),
        }[spelling]  # fmt: skip
        out |= dict(zip(keys, (down, up)))
    return out


def test_loras_of_every_spelling_do_the_same(model: Any, base: Path, first: Any) -> None:
    from safetensors.torch import save_file

    import nodes as stock

    plain = first(steps=2)["samples"]
    results = {}
    for spelling in (
        "kohya",
        "kohya, original names",
        "peft",
        "diffusers",
        "diffusers, transitional",
        "diffusers, old",
        "generic",
    ):
        name = f"{spelling.replace(', ', '_').replace(' ', '_')}.safetensors"
        save_file(lora(model, spelling), base / "models/loras" / name)
        with torch.inference_mode():
            patched = stock.LoraLoaderModelOnly().load_lora_model_only(model, name, 0.2)[0]
        assert len(patched.patches) == 4, spelling
        results[spelling] = first(model=patched, steps=2)["samples"]
    for spelling, result in results.items():
        torch.testing.assert_close(result, results["kohya"], msg=spelling)
        assert not torch.allclose(result, plain, atol=1e-3)
    torch.testing.assert_close(first(steps=2)["samples"], plain)


def test_a_lora_of_every_layer_is_taken_whole(model: Any, base: Path, first: Any) -> None:
    """As our trainer writes it: any linear layer or convolution may be among its layers, the temporal ones too."""
    from safetensors.torch import save_file

    import nodes as stock

    weights = {
        name.removesuffix(".weight"): weight
        for name, weight in model.model.diffusion_model.named_parameters()
        if name.endswith(".weight") and weight.ndim > 1
    }
    assert any("temp" in name for name in weights) and {w.ndim for w in weights.values()} >= {2, 4}
    changes = {}
    for name, weight in weights.items():
        rows, *rest = weight.shape
        changes[f"unet.{name}.lora_A.weight"] = torch.randn(2, *rest) * 0.1
        changes[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 2, *[1] * (weight.ndim - 2)) * 0.1
    save_file(changes, base / "models/loras" / "every_layer.safetensors")
    with torch.inference_mode():
        patched = stock.LoraLoaderModelOnly().load_lora_model_only(model, "every_layer.safetensors", 1.0)[0]
    assert len(patched.patches) == len(weights)
    assert torch.isfinite(first(model=patched, steps=2)["samples"]).all()


def test_a_lora_is_no_other_model(model: Any, base: Path, first: Any, following: Any) -> None:
    from safetensors.torch import save_file

    import nodes as stock

    save_file(lora(model, "kohya"), base / "models/loras/again.safetensors")
    with torch.inference_mode():
        patched = stock.LoraLoaderModelOnly().load_lora_model_only(model, "again.safetensors", 0.2)[0]
    assert torch.isfinite(following(first(steps=2), model=patched)[1]["samples"]).all()


def test_partly_loaded_weights_sample_alike(nodes: dict[str, Any], folder: Path, first: Any) -> None:
    """As --lowvram does: most weights stay away and are cast layer by layer."""
    import comfy.model_management as management

    low = nodes["VidRDLoadModel"](model_name="tiny", weight_dtype="fp32")[0]
    plain = first(model=low, steps=2)["samples"]
    management.unload_all_models()
    if hasattr(low, "partially_load") and not getattr(low, "is_dynamic", lambda: False)():
        low.patch_model(load_weights=False)
        low.load(low.load_device, lowvram_model_memory=1000)
        layers = [m for m in low.model.diffusion_model.modules() if getattr(m, "comfy_cast_weights", False)]
        assert len(layers) > 50
        context = torch.randn(1, 32, 128)
        with torch.inference_mode():
            out = low.model.diffusion_model(torch.randn(1, 4, 8, 8, 8), torch.tensor([5]), context=context)
        assert torch.isfinite(out).all()
        low.unpatch_model()
    torch.testing.assert_close(first(model=low, steps=2)["samples"], plain)


def test_models_are_unloaded_and_loaded_again(first: Any) -> None:
    import comfy.model_management as management

    before = first(steps=2)["samples"]
    management.unload_all_models()
    torch.testing.assert_close(first(steps=2)["samples"], before)


def test_a_saved_state_goes_on_to_the_bit(nodes: dict[str, Any], first: Any, following: Any, base: Path) -> None:
    video, _ = following(first())
    (same,) = nodes["VidRDSaveState"](latent=video, name="trips/one")
    assert same is video and (base / "output/vidrd/trips/one.safetensors").is_file()
    inputs = nodes["VidRDLoadState"].node.define_schema().inputs
    assert "trips/one.safetensors" in inputs[0].options
    (loaded,) = nodes["VidRDLoadState"](name="trips/one.safetensors")
    torch.testing.assert_close(loaded["samples"], video["samples"], rtol=0, atol=0)
    for a, b in zip(following(video, seed=9), following(loaded, seed=9), strict=True):
        torch.testing.assert_close(a["samples"], b["samples"], rtol=0, atol=0)


def test_a_state_is_saved_over_the_file_it_was_loaded_from(nodes: dict[str, Any], first: Any, following: Any) -> None:
    nodes["VidRDSaveState"](latent=first(steps=2), name="again")
    (loaded,) = nodes["VidRDLoadState"](name="again.safetensors")
    video, _ = following(loaded)
    nodes["VidRDSaveState"](latent=loaded, name="again")
    nodes["VidRDSaveState"](latent=video, name="again")
    (longer,) = nodes["VidRDLoadState"](name="again.safetensors")
    torch.testing.assert_close(longer["samples"], video["samples"], rtol=0, atol=0)
    torch.testing.assert_close(following(loaded)[0]["samples"], video["samples"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["input/foo", "clips/foo", "a/clips/clip_0000", "foo [input]"])
def test_every_saved_state_is_listed_and_loads(name: str, nodes: dict[str, Any], first: Any) -> None:
    before = set(state_names(nodes))
    nodes["VidRDSaveState"](latent=first(steps=1), name=name)
    (listed,) = set(state_names(nodes)) - before
    assert nodes["VidRDLoadState"].node.validate_inputs(name=listed) is True
    assert nodes["VidRDLoadState"](name=listed)[0]["samples"].shape == (1, 4, 8, 8, 8)


def state_names(nodes: dict[str, Any]) -> list[str]:
    return nodes["VidRDLoadState"].node.define_schema().inputs[0].options


def test_a_state_in_the_input_folder_is_marked_and_apart_from_one_of_its_name(
    nodes: dict[str, Any], first: Any, base: Path
) -> None:
    ours, given = first(steps=1), first(steps=1, seed=2)
    nodes["VidRDSaveState"](latent=given, name="twin")
    (base / "output/vidrd/twin.safetensors").rename(base / "input/twin.safetensors")
    assert nodes["VidRDLoadState"](name="input/twin.safetensors")  # as earlier versions listed it
    nodes["VidRDSaveState"](latent=ours, name="twin")
    nodes["VidRDSaveState"](latent=ours, name="input/twin")
    for name, latent in (("twin.safetensors", ours), ("input/twin.safetensors", ours),
                         ("twin.safetensors [input]", given)):  # fmt: skip
        assert name in state_names(nodes)
        torch.testing.assert_close(nodes["VidRDLoadState"](name=name)[0]["samples"], latent["samples"])


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../models/vidrd/tiny", "a/../../b", ".", "", "C:/x", "\\\\host\\share\\x", "//host/x", "..\\x"],
)
def test_names_in_a_workflow_cannot_leave_the_models_folders(
    name: str, nodes: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    exists, is_file = Path.exists, Path.is_file
    monkeypatch.setattr(Path, "exists", lambda self, **given: looked.append(self) or exists(self, **given))
    monkeypatch.setattr(Path, "is_file", lambda self, **given: looked.append(self) or is_file(self, **given))
    for node, widget in (("VidRDLoadModel", "model_name"), ("VidRDLoadUNet", "unet_name"),
                         ("VidRDLoadVideoDecoder", "vae_name")):  # fmt: skip
        assert "leads out of ComfyUI's folder" in nodes[node].node.validate_inputs(**{widget: name})
    said = nodes["VidRDLoadState"].node.validate_inputs(name=f"{name} [input]")
    assert "leads out of ComfyUI's folder" in said
    assert not looked


def test_names_cannot_leave_the_output_folder(nodes: dict[str, Any], first: Any) -> None:
    latent = first(steps=1)
    for name in ("../x", "", "a/../../b", "what?", "C:/x", "CON", "sub/nul.txt", "com1/x", "x" * 300, "\u7247" * 100):
        with pytest.raises(ValueError, match="cannot be used"):
            nodes["VidRDSaveState"](latent=latent, name=name)
    for name in ("console", "x" * 200, "\u7247\u6bb5"):
        nodes["VidRDSaveState"](latent=latent, name=name)


def test_wrong_input_is_told_in_one_sentence(
    nodes: dict[str, Any], first: Any, following: Any, base: Path, make_model: Any
) -> None:
    prior = first(steps=2)
    with pytest.raises(ValueError, match="an image's latents"):
        following({"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(ValueError, match="an image's latents"):
        first(latent={"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(ValueError, match="16 channels"):
        following({"samples": torch.randn(1, 16, 8, 8, 8)})
    with pytest.raises(ValueError, match="overlap_frames is 9 but the clip has 8 frames"):
        following(prior, overlap_frames=9)
    with pytest.raises(ValueError, match="trim_frames is 8"):
        following(prior, trim_frames=8)
    with pytest.raises(ValueError, match="noise mask"):
        following({**prior, "noise_mask": torch.ones(8, 8)})
    with pytest.raises(ValueError, match="made with sampler ddim, this node asks for heun"):
        following(prior, sampler_name="heun")
    with pytest.raises(ValueError, match="made with steps 2, this node asks for 9"):
        following(prior, steps=9)
    with pytest.raises(ValueError, match="prior is empty"):
        following({"samples": torch.zeros(1, 4, 8, 8, 8)})
    with pytest.raises(ValueError, match="no diffusion model of ComfyUI"):
        following(prior, model=object())
    with pytest.raises(ValueError, match="no trajectory that fits"):
        nodes["VidRDSaveState"](latent={"samples": prior["samples"]}, name="x")
    with pytest.raises(ValueError, match="denoise is 0.5 but LATENT is empty"):
        first(denoise=0.5)
    make_model(base / "models/vidrd/other", seed=5)
    other = nodes["VidRDLoadModel"](model_name="other", weight_dtype="fp32")[0]
    with pytest.raises(ValueError, match="another model"):
        following(prior, model=other)
    following(prior, model=other, prior_trajectory="noise", steps=2)


def test_preview_writes_a_video_that_plays(nodes: dict[str, Any], first: Any, loaded: Any, base: Path) -> None:
    import av

    call = nodes["VidRDPreviewClip"]
    with torch.inference_mode():
        for given in ({"samples": first(steps=1), "vae": loaded[2]}, {"images": torch.rand(8, 65, 64, 3)}):
            shown = call.node.execute(fps=4.0, **given).ui.as_dict()
            (entry,) = shown["images"]
            assert entry["type"] == "temp" and shown["animated"] == (True,)
            with av.open(str(base / "temp" / entry["filename"])) as video:
                assert sum(1 for _ in video.decode(video=0)) == 8
            assert call.node.execute(fps=4.0, images=torch.rand(8, 64, 64, 4)).ui.as_dict()["images"]
            assert call.node.execute(fps=4.0, images=torch.rand(8, 64, 64, 1)).ui.as_dict()["images"]
        with pytest.raises(ValueError, match="nothing to show"):
            call.node.execute(fps=4.0)


def test_interpolated_frames(nodes: dict[str, Any]) -> None:
    images = torch.rand(3, 64, 64, 3)
    (out,) = nodes["VidRDInterpolateFrames"](images=images, factor=4)
    assert out.shape == (9, 64, 64, 3)
    torch.testing.assert_close(out[::4], images)
    grey = images[..., :1]
    (out,) = nodes["VidRDInterpolateFrames"](images=grey, factor=2)
    torch.testing.assert_close(out[::2], grey.expand(-1, -1, -1, 3))
