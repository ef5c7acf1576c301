"""Prepared data sets: what is written is what is read, at random, after an interruption, in any loader."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
import webdataset

from vidrd_core.data.media import encode_image, encode_mp4
from vidrd_core.data.shards import BrokenItem, Sample, ShardDataset, ShardWriter
from vidrd_core.shapes.scenes import draw_scene, render
from vidrd_core.video import to_uint8

INFO = {"caption": "a clip", "kind": "video", "width": 64, "height": 64, "frames": 6, "fps": 8.0, "source": "a.mp4"}


def world_clip(seed, frames=6):
    scene = draw_scene(torch.Generator().manual_seed(seed), "train")
    return to_uint8(render([scene], frames))


def video(number):
    info = {**INFO, "caption": f"clip {number}"}
    return Sample(f"{number:08d}-000", {"mp4": encode_mp4(world_clip(number), 8.0, 9.0)}, info)


def image(number):
    picture = world_clip(number, 1)[0]
    info = {**INFO, "kind": "image", "frames": 1, "fps": 0.0, "captions": ["one", "two"], "caption": "one"}
    return Sample(f"{number:08d}-000", {"png": encode_image(picture, "png", 9.0)}, info)


def write(folder, first=0, last=5):
    writer = ShardWriter(folder, {"seed": 1}, samples_per_shard=2)
    for item in range(max(first, writer.next_item), last):
        writer.add(item, [image(item) if item % 2 else video(item)], {"seen": item})
    return writer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write(folder).finish()
    return ShardDataset(folder)


def test_the_index_tells_of_every_sample_without_opening_media(dataset):
    assert len(dataset) == 5
    assert [s.kind for s in dataset.samples] == ["video", "image", "video", "image", "video"]
    assert dataset.samples[2].caption == "clip 2" and dataset.samples[2].frames == 6
    index = json.loads((dataset.folder / "index.json").read_text(encoding="utf-8"))
    assert [s["samples"] for s in index["shards"]] == [2, 2, 1] and index["samples"] == 5
    for shard in index["shards"]:
        assert hashlib.sha256((dataset.folder / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]


def test_a_video_comes_back_nearly_as_it_was_and_an_image_exactly(dataset):
    frames = dataset.read(4)["pixels"]
    assert frames.shape == (3, 6, 64, 64) and frames.dtype == torch.float32
    assert (to_uint8(frames).astype(float) - world_clip(4)).std() < 6
    assert np.array_equal(to_uint8(dataset.read(3)["pixels"]), world_clip(3, 1))


def test_the_generator_decides_the_frames_and_the_caption(dataset):
    whole = dataset.read(0)["pixels"]
    starts = set()
    for seed in range(12):
        part = dataset.read(0, 3, 64, 64, torch.Generator().manual_seed(seed))["pixels"]
        again = dataset.read(0, 3, 64, 64, torch.Generator().manual_seed(seed))["pixels"]
        assert torch.equal(part, again)
        starts |= {start for start in range(4) if torch.equal(part, whole[:, start : start + 3])}
    assert starts == {0, 1, 2, 3}
    captions = {dataset.read(1, 1, generator=torch.Generator().manual_seed(s))["caption"] for s in range(12)}
    assert captions == {"one", "two"}


def test_a_sample_is_cut_to_the_aspect_that_is_asked_for(dataset):
    assert dataset.read(0, 2, 32, 48)["pixels"].shape == (3, 2, 32, 48)
    with pytest.raises(ValueError, match="has 6 frames, 7 were asked for"):
        dataset.read(0, 7)


def test_another_webdataset_loader_reads_the_shards(dataset):
    shards = [(dataset.folder / s["name"]).as_uri() for s in dataset.shards]
    read = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [s["__key__"] for s in read] == [s.key for s in dataset.samples]
    assert json.loads(read[0]["json"])["caption"] == "clip 0" and len(read[0]["mp4"]) > 100


def test_an_interrupted_writer_goes_on_and_the_shards_are_the_same_bytes(dataset, tmp_path):
    write(tmp_path / "set", last=3).close()  # the third item's shard is lost
    writer = write(tmp_path / "set", last=0)
    assert writer.next_item == 2
    writer = write(tmp_path / "set")
    writer.finish()
    assert [note["seen"] for note in writer.notes()] == [0, 1, 2, 3, 4]
    names = sorted(p.name for p in dataset.folder.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "set").iterdir())
    for name in names:
        assert (tmp_path / "set" / name).read_bytes() == (dataset.folder / name).read_bytes()


def test_a_folder_of_other_settings_is_refused(dataset):
    with pytest.raises(ValueError, match="other settings.*seed"):
        ShardWriter(dataset.folder, {"seed": 2}, 2)


def test_an_unfinished_data_set_is_not_read(tmp_path):
    write(tmp_path, last=3).close()
    with pytest.raises(ValueError, match="no finished data set"):
        ShardDataset(tmp_path)


def test_a_damaged_sample_is_named_and_the_others_are_read(tmp_path):
    write(tmp_path).finish()
    data = ShardDataset(tmp_path)
    offset, size = data.samples[0].members["mp4"]
    with (tmp_path / "shard-000000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    with pytest.raises(BrokenItem, match="00000000-000"):
        data.read(0)
    assert data.read(1)["pixels"].shape == (3, 1, 64, 64)


def test_a_cut_off_shard_is_told_at_once(tmp_path):
    write(tmp_path).finish()
    path = tmp_path / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="shard-000001.tar has"):
        ShardDataset(tmp_path)


def test_latents_and_text_states_are_read_in_place_of_pixels(tmp_path):
    latents, text = np.random.default_rng(0).normal(size=(4, 6, 8, 8)).astype(np.float16), np.ones((16, 32), np.float16)
    members = {}
    for name, array in (("latents.npy", latents), ("text.npy", text)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        members[name] = buffer.getvalue()
    writer = ShardWriter(tmp_path, {}, 8)
    writer.add(0, [Sample("a", members, INFO)])
    writer.finish()
    read = ShardDataset(tmp_path).read(0, 6, 64, 64)
    assert torch.equal(read["latents"], torch.from_numpy(latents).float()) and read["text"].shape == (16, 32)
    with pytest.raises(ValueError, match="cannot become"):
        ShardDataset(tmp_path).read(0, 6, 32, 32)
