"""The data of training: buckets, order, images as video, unreadable samples, every kind of data set."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from training_components import SMALL, settings, shard_folder, unet_task

from vidrd_core import VidRDPipeline
from vidrd_core.data.shards import SampleInfo, ShardDataset
from vidrd_core.train.loop import train
from vidrd_core.train.micro_batches import MicroBatch
from vidrd_core.train.plan import BatchPlan, Shape, assign, interleaved
from vidrd_core.train.sources import DataSettings, Prefetcher, ShardSource

TWO_SIZES = ((48, 48), (36, 60))


def info(key, kind="video", width=64, height=64, frames=16, members=("mp4",)):
    return SampleInfo(key, kind, width, height, frames, 8.0, (key,), members={m: (0, 1) for m in members})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Four videos and four images of two aspect ratios."""
    return shard_folder(tmp_path_factory.mktemp("mixed") / "set", 4, 4, TWO_SIZES)


def test_samples_go_to_the_bucket_of_their_aspect_and_the_longest_clip_they_fill():
    samples = [info("a"), info("b", width=128), info("c", frames=5), info("d", frames=1), info("e", kind="image")]
    buckets = assign(samples, [(32, 32), (24, 40)], [4, 8], images_as_video=True)
    assert buckets == {Shape(8, 32, 32): [0, 4], Shape(8, 24, 40): [1], Shape(4, 32, 32): [2]}
    both = assign([info("g"), info("h", width=40, height=40)], [(32, 32), (64, 64)], [8], images_as_video=True)
    assert both == {Shape(8, 64, 64): [0], Shape(8, 32, 32): [1]}  # of one aspect, the largest that a sample fills
    stored = [info("f", width=256, height=192, members=("latents.npy",))]
    assert assign(stored, [(32, 32)], [8], False) == {Shape(8, 192, 256): [0]}


def test_every_sample_is_seen_equally_often_and_a_batch_is_of_one_bucket():
    buckets = {Shape(4, 32, 32): list(range(40)), Shape(4, 24, 40): [40, 41, 42]}
    batches = [BatchPlan(buckets, 8, seed=3).batch(number) for number in range(43)]  # 8 epochs of 43 samples
    assert set(Counter(i for _, chosen in batches for i in chosen).values()) == {8}
    assert all(len(chosen) == 8 and set(chosen) <= set(buckets[shape]) for shape, chosen in batches)
    # Of the large bucket every 5 batches in a row are an epoch, each in another order; the small one takes its turn.
    large = [chosen for shape, chosen in batches if shape.width == 32]
    epochs = [sum(large[n : n + 5], []) for n in range(0, 40, 5)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs) and len(set(map(tuple, epochs))) == 8
    places = [n for n, (shape, _) in enumerate(batches) if shape.width == 40]
    assert len(places) == 3 and places[0] > 5


def test_no_sample_waits_longer_than_two_epochs_and_a_remainder_is_carried_over():
    plan = BatchPlan({Shape(4, 32, 32): list(range(11))}, batch_size=4, seed=0)
    order = [i for number in range(11) for i in plan.batch(number)[1]]  # 4 epochs, none of which ends with a batch
    assert Counter(order) == dict.fromkeys(range(11), 4)
    gaps = [b - a for i in range(11) for a, b in pairwise([n for n, j in enumerate(order) if j == i])]
    assert max(gaps) < 22 + 4


def test_the_order_continues_after_a_resume_and_from_any_batch():
    buckets = {Shape(4, 32, 32): list(range(13)), Shape(4, 24, 40): [13, 14]}
    uninterrupted = BatchPlan(buckets, 4, seed=1)
    order = [uninterrupted.batch(number) for number in range(60)]
    for number in (59, 7, 30, 8):  # whatever was asked for before
        assert BatchPlan(buckets, 4, 1).batch(number) == order[number] == uninterrupted.batch(number)
    assert [BatchPlan(buckets, 4, 2).batch(number) for number in range(60)] != order


def test_a_bucket_smaller_than_a_batch_is_logged_and_waits_until_it_has_filled_one(caplog):
    caplog.set_level("INFO")
    plan = BatchPlan({Shape(8, 256, 256): list(range(512)), Shape(8, 192, 320): [512, 513, 514]}, 256, seed=0)
    assert "3 samples of 8 frames of 192x320 do not fill a batch of 256" in caplog.text
    assert "every 85.3 epochs" in caplog.text and caplog.text.count("do not fill") == 1
    shapes = [plan.batch(number)[0].height for number in range(2 * 86 + 1)]
    assert shapes.count(192) == 1 and shapes.index(192) >= 2 * 85


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_image_and_video_steps_alternate_in_the_given_shares(share):
    numbers = {True: [], False: []}
    for step in range(200):
        kind, number = interleaved(step, share)
        numbers[kind].append(number)
    assert len(numbers[True]) == round(200 * share)
    assert all(found == list(range(len(found))) for found in numbers.values())


def test_a_batch_is_the_same_however_many_processes_and_micro_batches_share_it(mixed):
    source = ShardSource([mixed], SMALL, 4, seed=1, image_share=0.5, images_per_clip=2)
    for step in (0, 1):
        whole = source.batch(MicroBatch(1, step, 4, 4))
        parts = [source.batch(MicroBatch(1, step, 4, 1, rank, 2, part)) for part in range(2) for rank in range(2)]
        assert torch.equal(whole.pixels, torch.cat([p.pixels for p in parts]))
        assert whole.items == [name for p in parts for name in p.items]
        assert whole.pixels.shape[:3] == ((4, 3, 4) if step == 0 else (8, 3, 1))


def test_images_become_pan_and_zoom_clips_or_single_frames(mixed):
    source = ShardSource([mixed], SMALL, 2, seed=0)
    batches = [source.batch(MicroBatch(0, step, 2, 2)) for step in range(4)]
    assert {tuple(b.pixels.shape[2:]) for b in batches} == {(4, 32, 32), (4, 24, 40)}
    images = [p for b in batches for p, name in zip(b.pixels, b.items) if name.startswith("image")]
    assert images and all(not torch.equal(p[:, 0], p[:, 3]) for p in images)
    frames_only = ShardSource([mixed], replace(SMALL, images="frame"), 2, seed=0, image_share=0.5)
    kinds = [{name.split("-")[0] for name in frames_only.batch(MicroBatch(0, step, 2, 2)).items} for step in range(4)]
    assert kinds == [{"video"}, {"image"}, {"video"}, {"image"}]


def test_prefetched_batches_equal_those_read_directly(mixed):
    micro_batch = MicroBatch(4, 0, 2, 1)
    ahead, plain = Prefetcher(ShardSource([mixed], SMALL, 2, 0)), ShardSource([mixed], SMALL, 2, 0)
    for _ in range(4):
        assert torch.equal(ahead.batch(micro_batch).pixels, plain.batch(micro_batch).pixels)
        micro_batch = micro_batch.following()


def test_a_sample_that_cannot_be_read_is_logged_and_replaced_by_another_of_its_bucket(tmp_path, caplog):
    folder = shard_folder(tmp_path / "set", 4)
    dataset = ShardDataset(folder)
    sample = dataset.samples[1]
    offset, size = sample.members["mp4"]
    shard = folder / dataset.shards[sample.shard]["name"]
    with shard.open("rb+") as file:
        file.seek(offset)
        file.write(bytes(size))
    source = ShardSource([folder], SMALL, 2, seed=0)
    items = [name for step in range(2) for name in source.batch(MicroBatch(0, step, 2, 2)).items]
    assert len(items) == 4 and sample.key not in items
    assert sample.key in caplog.text


def test_data_that_cannot_be_used_is_refused_with_the_reason(mixed):
    with pytest.raises(ValueError, match="multiples of 8"):
        DataSettings(sizes=((30, 32),))
    with pytest.raises(ValueError, match="'video', 'frame' or 'none'"):
        DataSettings(images="all")
    with pytest.raises(ValueError, match="no sample of the data set can be used"):
        ShardSource([mixed], replace(SMALL, frames=(32,), images="none"), 2, 0)


def test_mixed_images_and_video_train_a_model_that_the_pipeline_loads(tmp_path, mixed):
    task = unet_task(tmp_path, mixed, image_share=0.25, images_per_clip=2)
    train(task, settings(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "statistics.jsonl").read_text().splitlines()]
    assert "image_loss" in lines[-1] and "video_loss" in lines[0]
    assert any(name.startswith("noise_level/") for name in lines[0])
    pipe = VidRDPipeline.from_pretrained(tmp_path / "run" / "model")
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a red circle", num_clips=2, num_frames=4, height=32, width=32, num_inference_steps=2, output_type="pt")
    assert out.frames.shape == (1, 3, 8, 32, 32)
