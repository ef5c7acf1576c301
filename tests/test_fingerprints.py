"""One model in any precision is one; a neighbouring checkpoint of the same training is another."""

from __future__ import annotations

import torch
from components import tiny_unet

from vidrd_core.models.fingerprints import fingerprint, old_fingerprint, same_model, short_name

F32, F16, BF16, E4M3, E5M2 = types = (
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


def held_in(*kinds: torch.dtype, factor: float = 1.0) -> str:
    """The fingerprint of the tiny U-Net, its weights times ``factor``, cast to one type after the other."""
    unet = tiny_unet()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(factor)
    for kind in kinds:
        torch.nn.Module.to(unet, dtype=kind)
    return fingerprint(unet)


def written_before(unet: torch.nn.Module) -> str:
    """As earlier versions wrote it: three digits of the middle value of 64 tensors."""
    parameters = list(unet.parameters())
    spread = [parameters[round(n * (len(parameters) - 1) / 63)].detach().flatten() for n in range(64)]
    digest = fingerprint(unet).split(":")[0]
    return ":".join((digest, *(f"{float(values[values.numel() // 2]):.2e}" for values in spread)))


def test_a_model_is_one_in_every_precision_and_so_are_two_roundings_of_it() -> None:
    names = {kind: held_in(kind) for kind in types}
    assert {(a, b) for a in types for b in types if not same_model(names[a], names[b])} == set()
    assert len(set(names.values())) == len(types)


def test_a_file_of_one_precision_may_be_loaded_in_another() -> None:
    first = held_in(F32)
    for kinds in ((F16, BF16), (BF16, F16), (BF16, E4M3), (F16, E5M2), (BF16, F32), (E4M3, BF16), (E4M3, F32)):
        assert same_model(held_in(*kinds), first), kinds


def test_weights_of_which_some_are_held_in_8_bits_are_the_model_s() -> None:
    unet = tiny_unet()
    name = fingerprint(unet)
    unet.enable_layerwise_casting(storage_dtype=E4M3, compute_dtype=F32)
    assert {one.dtype for one in unet.parameters()} == {E4M3, F32}
    assert same_model(fingerprint(unet), name)
    assert not same_model(fingerprint(unet), held_in(F32, factor=1.001))


def test_a_checkpoint_that_was_trained_a_thousandth_further_is_another_model() -> None:
    for kind in types:
        further = held_in(kind, factor=1.001)
        assert not same_model(held_in(kind), further), kind
        assert not same_model(held_in(F32), further), kind
        assert not same_model(further, held_in(F32)), kind
    assert not same_model(held_in(F16), held_in(BF16, factor=1.001))
    assert not same_model(held_in(F32), held_in(F32, factor=1 + 1e-6))


def test_training_of_a_single_tensor_is_noticed() -> None:
    name = held_in(F32)
    for place in range(0, len(list(tiny_unet().parameters())), 60):
        unet = tiny_unet()
        with torch.no_grad():
            list(unet.parameters())[place].mul_(1.0001)
        assert not same_model(fingerprint(unet), name), place


def test_a_fingerprint_of_an_earlier_version_keeps_its_rule() -> None:
    unet = tiny_unet()
    before = written_before(unet)
    assert old_fingerprint(fingerprint(unet)) == before and old_fingerprint(before) == before
    for kind in (F32, F16, BF16):
        assert same_model(held_in(kind), before) and same_model(before, held_in(kind))
    assert same_model(before, before) and not same_model(before, written_before(tiny_unet(seed=1)))
    assert not same_model(fingerprint(tiny_unet(seed=1)), before)
    assert not same_model(held_in(F32, factor=1.05), before)


def test_what_is_no_fingerprint_is_no_models() -> None:
    name = held_in(F32)
    digest, version, tensors, kinds, values = name.split(":")
    broken = ("", digest, f"{digest}:1.00e+00", f"{digest}:v3:{tensors}:{kinds}:{values}", name[:-9], f"{name}:1",
              f"{digest}:{version}:0:{kinds}:{values}", f"{digest}:{version}:{tensors}:{tensors}xload:{values}",
              f"{digest}:{version}:{tensors}:{tensors}x:{values}")  # fmt: skip
    for text in broken:
        assert not same_model(text, name) and not same_model(name, text), text


def test_another_memory_format_changes_nothing() -> None:
    unet = tiny_unet()
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
            elif parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
    assert not all(parameter.is_contiguous() for parameter in unet.parameters())
    assert fingerprint(unet) == held_in(F32)


def test_the_short_name_tells_neighbouring_checkpoints_apart() -> None:
    names = {short_name(held_in(F32, factor=factor)) for factor in (1.0, 1.001)}
    assert len(names) == 2 and all(len(name) == 25 for name in names)
