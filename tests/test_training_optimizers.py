"""Muon and AdamW: which parameters each trains, what a step does, and that checkpoints hold the state."""

import math

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from test_training import Interrupting, settings, tiny_vae, weights
from torch import nn

from vidrd_core.train.autoencoder import AutoencoderLoss, ImageAutoencoderTask
from vidrd_core.train.checkpoint import load_checkpoint, save_checkpoint
from vidrd_core.train.loop import train
from vidrd_core.train.optimizers import MuonAdamW, is_hidden_matrix, make_optimizer


def wide_vae():
    return tiny_vae(block_out_channels=(16, 16, 16, 16))


def parameter(*shape):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))))


def test_hidden_matrices_and_kernels_go_to_muon_and_all_else_to_adamw():
    assert is_hidden_matrix("unet.a.to_q.weight", parameter(32, 64))
    assert is_hidden_matrix("unet.a.conv1.weight", parameter(64, 32, 3, 3))
    assert is_hidden_matrix("unet.a.temp_convs.0.weight", parameter(16, 16, 3, 1, 1))
    assert not is_hidden_matrix("unet.conv_out.weight", parameter(4, 64, 3, 3))
    assert not is_hidden_matrix("unet.norm.weight", parameter(64))
    assert not is_hidden_matrix("text_encoder.embeddings.token_embedding.weight", parameter(1000, 64))


def test_a_muon_step_is_orthogonal_and_other_parameters_step_as_with_adamw(tmp_path):
    matrix, kernel, bias = parameter(32, 64), parameter(32, 16, 3, 3), parameter(7)
    other = nn.Parameter(bias.detach().clone())
    before = [p.detach().clone() for p in (matrix, kernel)]
    chosen = settings(tmp_path, optimizer="muon", weight_decay=0.0)
    optimizer = make_optimizer({"a.to_q.weight": matrix, "a.conv.weight": kernel, "a.norm.bias": bias}, chosen)
    plain = torch.optim.AdamW([other], lr=1e-2, weight_decay=0.0)
    assert isinstance(optimizer, MuonAdamW)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for each in (matrix, kernel, bias):
        each.grad = torch.randn_like(each)
    other.grad = bias.grad.clone()
    optimizer.step()
    plain.step()
    assert torch.equal(bias, other)
    for old, new in zip(before, (matrix, kernel), strict=True):
        step = (new.detach() - old).flatten(1)
        # All singular values are near rate * 0.2 * sqrt(longer side); Newton and Schulz leave them within 0.7 to 1.2.
        values = torch.linalg.svdvals(step) / (1e-2 * 0.2 * math.sqrt(max(step.shape)))
        assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    optimizer.zero_grad(set_to_none=True)
    still = matrix.detach().clone()
    bias.grad = torch.ones_like(bias)
    optimizer.step()  # a matrix without a gradient stays
    assert torch.equal(matrix, still)


def test_a_resumed_run_with_muon_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    muon = {"optimizer": "muon"}
    train(
        ImageAutoencoderTask(uninterrupted := wide_vae(), AutoencoderLoss()),
        settings(tmp_path / "uninterrupted", **muon),
    )
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(wide_vae(), AutoencoderLoss()), settings(tmp_path / "resumed", **muon))
    train(ImageAutoencoderTask(resumed := wide_vae(), AutoencoderLoss()), settings(tmp_path / "resumed", **muon))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(uninterrupted).items())
    with_adamw = wide_vae()
    train(ImageAutoencoderTask(with_adamw, AutoencoderLoss()), settings(tmp_path / "adamw"))
    assert not torch.equal(
        weights(with_adamw)["decoder.mid_block.resnets.0.conv1.weight"],
        weights(resumed)["decoder.mid_block.resnets.0.conv1.weight"],
    )


def test_tables_that_parameters_of_an_8_bit_optimiser_share_are_stored_and_restored(tmp_path):
    parameters = {f"a.{n}": parameter(4) for n in range(2)}
    optimizer = torch.optim.AdamW(parameters.values())
    table = torch.arange(256.0)
    for p in parameters.values():
        optimizer.state[p] = {"qmap1": table, "step": 3}
    ema = EMAModel(list(parameters.values()))
    save_checkpoint(tmp_path / "checkpoint", parameters, optimizer, ema, {"step": 3})
    fresh = torch.optim.AdamW(parameters.values())
    load_checkpoint(tmp_path / "checkpoint", parameters, fresh, ema)
    assert (
        all(torch.equal(s["qmap1"], table) and s["step"] == 3 for s in fresh.state.values()) and len(fresh.state) == 2
    )


def test_muon_survives_accelerates_wrapping_and_a_move_of_the_weights():
    layer = nn.Linear(32, 32)
    optimizer = MuonAdamW({f"a.{n}": p for n, p in layer.named_parameters()}, 1e-2, 0.0)
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    layer.weight.data = layer.weight.data.clone()  # as moving to a device does
    before = layer.weight.detach().clone()
    layer(torch.ones(2, 32)).square().sum().backward()
    wrapped.step()
    assert not torch.equal(before, layer.weight)
