"""Faults of a run: kills, full disks, lack of memory, several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_components import settings, shard_folder, unet_task

from vidrd_core import VidRDPipeline
from vidrd_core.train.errors import LossWatch, memory_advice
from vidrd_core.train.loop import train

TESTS = Path(__file__).parent
posix = pytest.mark.skipif(os.name == "nt", reason="kill -9 and resource limits are POSIX")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return shard_folder(tmp_path_factory.mktemp("shards") / "set", 3, 2)


def start(run, shards, environment=None, **changes):
    """A training run in a process of its own."""
    pairs = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    command = [sys.executable, str(TESTS / "training_worker.py"), str(run), str(shards), *pairs]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", **(environment or {})}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def losses(run):
    lines = [json.loads(line) for line in (run / "statistics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["samples"], line["loss"]) for line in lines]


def kill_when(process, condition):
    """SIGKILL as soon as ``condition`` holds."""
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture
def one_thread():
    """As many threads as the processes that are killed have: on some processors sums depend on it in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@posix
def test_a_killed_run_resumes_bit_identically(tmp_path, shards, one_thread):
    run = tmp_path / "run"
    checkpoint = run / "checkpoint" / "state.json"
    kill_when(start(run, shards, samples=4000, save_samples=4), checkpoint.exists)
    step = json.loads(checkpoint.read_text())["step"]
    # As often as it takes to be caught in the middle of writing: the folder of the next checkpoint is there.
    kill_when(start(run, shards, samples=4000, save_samples=4), (run / "checkpoint.new" / "weights.safetensors").exists)
    assert json.loads(checkpoint.read_text())["step"] >= step  # the last one before it is whole
    samples = 2 * json.loads(checkpoint.read_text())["step"] + 4
    train(unet_task(tmp_path / "a", shards, image_share=0.25), settings(run, samples=samples, save_samples=100))
    uninterrupted = settings(tmp_path / "uninterrupted", samples=samples, save_samples=100)
    train(unet_task(tmp_path / "b", shards, image_share=0.25), uninterrupted)
    assert losses(run)[-2:] == losses(uninterrupted.run)[-2:]


@posix
def test_a_disk_that_is_full_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, shards):
    import resource

    run = tmp_path / "run"
    train(unet_task(tmp_path, shards), settings(run, samples=4, save_samples=4))
    before = {p.name: p.read_bytes() for p in (run / "checkpoint").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a write beyond that fails with a real OSError
    try:
        with pytest.raises(OSError, match="could not be written .* the one before is kept in .*: free some"):
            train(unet_task(tmp_path, shards), settings(run, samples=8, save_samples=8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in (run / "checkpoint").iterdir()} == before
    assert not (run / "checkpoint.new").exists()
    train(unet_task(tmp_path, shards), settings(run, samples=8, save_samples=8))
    assert json.loads((run / "checkpoint" / "state.json").read_text())["step"] == 4


def test_running_out_of_memory_says_which_settings_to_lower(tmp_path):
    wanted = r"train.micro_batch \(it is 4.*gradient_checkpointing.*bf16.*adamw8bit"
    with pytest.raises(MemoryError, match=wanted), memory_advice(settings(tmp_path), 4):
        torch.empty(2**55)


@pytest.mark.parametrize(
    "message", ["MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_out_of_memory_errors_of_other_devices_are_recognised_and_validation_names_its_own_settings(tmp_path, message):
    with pytest.raises(MemoryError, match=r"train.micro_batch"), memory_advice(settings(tmp_path), 4):
        raise RuntimeError(message)
    with pytest.raises(MemoryError, match="previews.frames"), memory_advice(settings(tmp_path), 4, previewing=True):
        raise RuntimeError(message)


def test_negative_losses_do_not_count_as_exploding(tmp_path):
    watch = LossWatch(settings(tmp_path))
    assert not any(watch.problem(loss, 1.0, False) for loss in [-1.0, 0.5] * 30)
    assert "times its running mean" in watch.problem(1000.0, 1.0, False)


def test_two_processes_train_as_one_and_fsdp_saves_and_resumes(tmp_path, shards):
    def both(port, **changes):
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        known = {**every, "micro_batch": 1, "ddp_then_fsdp": True, **changes}
        running = [start(tmp_path / "two", shards, rank, **known) for rank in ranks]
        for process in running:
            message, _ = process.communicate(timeout=600)
            assert process.returncode == 0, message

    every = {"batch_size": 4, "log_samples": 4, "save_samples": 8, "final_rate": 1.0}  # the length changes no rate
    both(free_port(), samples=16)
    one = settings(tmp_path / "one", samples=24, **every)
    train(unet_task(tmp_path, shards, batch_size=4, image_share=0.25), one)
    for kind in ("ddp", "fsdp"):
        run = tmp_path / "two" / kind
        assert [s for s, _ in losses(run)] == [4, 8, 12, 16]
        assert [x for _, x in losses(run)] == pytest.approx([x for _, x in losses(one.run)[:4]], rel=2e-4)
        VidRDPipeline.from_pretrained(run / "model")

    both(free_port(), samples=24)  # both resume
    for kind in ("ddp", "fsdp"):
        run = tmp_path / "two" / kind
        assert [x for _, x in losses(run)] == pytest.approx([x for _, x in losses(one.run)], rel=5e-4)
        ours, theirs = (load_file(r / "checkpoint" / "weights.safetensors") for r in (run, one.run))
        assert all(torch.allclose(ours[name], value, atol=1e-4) for name, value in theirs.items())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
