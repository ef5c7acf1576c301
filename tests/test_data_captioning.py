"""Captions for uncaptioned video: key frames, prompts, merging, real tiny models, whole runs and their recovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from engine_work import caption_or_die_on_ray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vidrd_core.data.captioning import run
from vidrd_core.data.captioning.captioner import Captioner, CaptionerSettings, describe
from vidrd_core.data.captioning.key_frames import choose, key_frames, read_candidates
from vidrd_core.data.captioning.merging import clean, merge
from vidrd_core.data.captioning.models import Blip2Answerer, InstructionAnswerer, ModelSettings
from vidrd_core.data.captioning.prompts import MergeRules, Prompt, Prompts, load_prompts
from vidrd_core.data.captioning.run import CaptionSettings, caption_videos
from vidrd_core.data.captioning.table import GrowingTable
from vidrd_core.data.engines import EngineSettings
from vidrd_core.data.sources import Item, SourceSettings, list_source
from vidrd_core.video import VideoError, write_video

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "training/configs/caption_prompts.yaml"
# What the tiny models can say and read.
WORDS = (
    "man woman dog cat runs jumps plays sings red blue green tree house street water sky guitar ball fast slowly "
    "bright dark big small old young happy Question : Answer ? . , What Where is the a of this in one sentence person "
    "animal doing or Describe frames video shows picture who what USER ASSISTANT light colours"
)
CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


# --- tiny real models of the classes that are used -------------------------------------------------------------------


def tokenizer(specials: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    names = ["<pad>", "<s>", "</s>", "<unk>", *specials, *WORDS.split()]
    inner = Tokenizer(WordLevel({name: number for number, name in enumerate(dict.fromkeys(names))}, "<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(specials),
    )


def loud(model: torch.nn.Module) -> None:
    """Random weights large enough that what a model says depends on what it sees."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)


def save_blip2(folder: Path) -> None:
    torch.manual_seed(3)
    words = tokenizer(("<image>",))
    size, sides = len(words), {"height": 32, "width": 32}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={"hidden_size": 16, "intermediate_size": 32, "image_size": 32, "patch_size": 8, **layers},
        qformer_config={"vocab_size": size, "hidden_size": 16, "intermediate_size": 32, **layers},
        text_config={"model_type": "opt", "vocab_size": size, "hidden_size": 16, "ffn_dim": 32, **layers}
        | {"word_embed_proj_dim": 16, "max_position_embeddings": 128, "init_std": 0.4}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    loud(model)
    model.save_pretrained(folder)
    Blip2Processor(BlipImageProcessor(size=sides), words, num_query_tokens=4).save_pretrained(folder)


def save_llava(folder: Path) -> None:
    torch.manual_seed(4)
    words = tokenizer(("<image>",))
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, **layers}
        | {"image_size": 32, "patch_size": 8, "projection_dim": 16},
        text_config={"model_type": "llama", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32}
        | {"num_key_value_heads": 2, "max_position_embeddings": 512, **layers}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    model = LlavaForConditionalGeneration(config)
    loud(model)
    model.save_pretrained(folder)
    sides = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessor(size=sides, crop_size=sides),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSettings]:
    folder = tmp_path_factory.mktemp("vision-language")
    save_blip2(folder / "blip2")
    save_llava(folder / "llava")
    return {
        "blip2": ModelSettings(folder / "blip2", batch_size=3, max_new_tokens=5),
        "instruct": ModelSettings(folder / "llava", batch_size=3, max_new_tokens=6),
    }


# --- videos ----------------------------------------------------------------------------------------------------------


def scene(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture of coloured discs, uint8 [H, W, 3]."""
    draw = np.random.default_rng(seed)
    image = np.full((height, width, 3), draw.integers(60, 200, 3), np.uint8)
    for _ in range(12):
        centre = (int(draw.integers(width)), int(draw.integers(height)))
        cv2.circle(image, centre, int(draw.integers(3, 12)), draw.integers(0, 256, 3).tolist(), -1)
    return image


def write_clip(path: Path, seed: int, frames: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [np.roll(scene(seed + (t >= frames // 2)), t, axis=1) for t in range(frames)]
    write_video(path, np.stack(images), 8)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good videos of two classes, and two that are none."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_clip(root / ("playing_guitar" if number % 2 else "singing") / f"{number}.mp4", 10 * number)
    whole = (root / "singing" / "0.mp4").read_bytes()
    (root / "singing" / "cut_off.mp4").write_bytes(whole[: len(whole) // 3])
    (root / "singing" / "empty.mp4").write_bytes(b"")
    return root


def settings(videos: Path, models: dict[str, ModelSettings], output: Path) -> CaptionSettings:
    captioner = CaptionerSettings(prompts=PROMPTS, device="cpu", **models)
    return CaptionSettings(SourceSettings("folder", videos), output, captioner, folder_labels=True, videos_per_group=2)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- key frames ------------------------------------------------------------------------------------------------------


def test_key_frames_show_every_scene_and_leave_out_blurred_and_black_ones() -> None:
    sharp = [scene(1), scene(2), scene(3)]
    blurred = [cv2.GaussianBlur(image, (0, 0), 3) for image in sharp]
    frames = []
    for good, soft in zip(sharp, blurred, strict=True):
        frames += [soft, soft, good, soft]
    frames += [np.zeros_like(sharp[0])] * 3
    assert choose(frames, 3) == [2, 6, 10]


def test_a_video_that_shows_one_thing_has_one_key_frame() -> None:
    noise = np.random.default_rng(0)
    still = [np.clip(scene(5) + noise.normal(0, 2, (48, 64, 3)), 0, 255).astype(np.uint8) for _ in range(10)]
    assert len(choose(still, 4)) == 1


def test_the_greedy_choice_is_close_to_the_best_of_all_sets() -> None:
    """Greedy choice maximises a submodular function: its determinant is near that of the best of all triples."""
    from itertools import combinations

    from vidrd_core.data.captioning import key_frames as module

    frames = [scene(seed // 2) if seed % 2 else cv2.GaussianBlur(scene(seed // 2), (0, 0), 1) for seed in range(12)]
    quality, features = module._describe(frames)
    distance = np.square(features[:, None] - features[None]).sum(-1)
    kernel = quality[:, None] * quality[None] * np.exp(-distance / (2 * module._LIKENESS_WIDTH**2))
    value = {s: np.linalg.det(kernel[np.ix_(s, s)]) for s in combinations(range(12), 3)}
    assert value[tuple(choose(frames, 3))] > 0.8 * max(value.values())


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_candidates_are_evenly_spaced_over_the_video(tmp_path: Path, suffix: str) -> None:
    frames = np.stack([np.full((32, 48, 3), 8 * t, np.uint8) for t in range(24)])
    write_video(tmp_path / f"v.{suffix}", frames, 8)
    found = read_candidates(tmp_path / f"v.{suffix}", 6, side=24)
    assert [image.shape for image in found.images] == [(16, 24, 3)] * 6
    assert np.allclose(found.seconds, [0.25, 0.75, 1.25, 1.75, 2.25, 2.75], atol=0.13)
    shown = [image.mean() / 8 for image in found.images]
    assert np.allclose(shown, [8 * s for s in found.seconds], atol=1.0)


def test_candidates_of_a_long_video_are_reached_by_seeking_and_of_a_stretch_lie_inside(tmp_path: Path) -> None:
    frames = np.stack([np.full((16, 16, 3), t, np.uint8) for t in range(250)])
    write_video(tmp_path / "long.mp4", frames, 2)
    found = read_candidates(tmp_path / "long.mp4", 5, side=16)
    assert np.allclose(found.seconds, [12.5, 37.5, 62.5, 87.5, 112.5], atol=0.5)
    assert np.allclose([image.mean() for image in found.images], [25, 75, 125, 175, 225], atol=3)
    stretch = read_candidates(tmp_path / "long.mp4", 4, 16, start=50, end=60)
    assert min(stretch.seconds) >= 50 and max(stretch.seconds) < 60 and len(stretch) == 4


def test_a_video_that_does_not_say_its_length_gives_candidates_all_the_same(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "live.mkv"), "w", format="matroska", options={"live": "1"}) as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        for t in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * t, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_candidates(tmp_path / "live.mkv", 6, side=32)
    assert 6 <= len(found) <= 12
    gaps = np.diff(found.seconds)
    assert gaps.min() > 0 and gaps.max() < 1.5 * gaps.min()


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with pytest.raises(VideoError, match=r"text\.mp4"):
        key_frames(tmp_path / "text.mp4", 3)


# --- prompts and merging ---------------------------------------------------------------------------------------------


def test_the_prompts_file_of_the_repository_is_valid_and_carries_the_label() -> None:
    prompts = load_prompts(PROMPTS)
    assert prompts.questions and prompts.instructions
    asked = [p.text("playing guitar") or "" for p in prompts.instructions]
    assert any("playing guitar" in text for text in asked)
    assert all("{" not in (p.text(None) or "") for p in prompts.in_order)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": ["scene"]}, "order must name every prompt once"),
        ({"questions": [{"name": "a", "ask": "{labl}?"}]}, "labl.*allowed is {label}"),
        ({"questions": [{"name": "a", "ask": "?", "frames": "none"}]}, "frames must be one of each, middle, all"),
        ({"questions": [{"name": "a", "ask": "?", "asks": "!"}]}, "unknown .'asks'.; known are"),
        ({"questions": [{"name": "a", "ask": "?", "write": "nothing"}]}, "write must hold {answer}"),
        ({"rules": {"refusals": [False]}}, "put no and yes in quotes"),
        ({"rule": {}}, "unknown .'rule'."),
    ],
)
def test_a_mistake_in_the_prompts_file_is_told_with_the_file(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = {**yaml.safe_load(PROMPTS.read_text(encoding="utf-8")), **change}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
        load_prompts(tmp_path / "mine.yaml")


def merging(**rules: Any) -> Prompts:
    return Prompts(
        questions=(Prompt("scene", "?"), Prompt("place", "?", write="The place is {answer}."), Prompt("doing", "?")),
        instructions=(Prompt("action", "{label}?", keep="all"),),
        order=("action", "scene", "place", "doing"),
        rules=MergeRules(**{"openings": ("the image shows",), "refusals": ("I cannot", "no"), **rules}),
    )


def test_the_most_frequent_answer_wins_and_of_equals_the_earliest() -> None:
    prompts = merging()
    assert merge({"scene": ["A red car", "a dog.", "red car"]}, prompts, None) == "A red car."
    assert merge({"scene": ["two cats", "a dog"]}, prompts, None) == "Two cats."


def test_answers_join_in_the_files_order_as_the_sentences_it_says() -> None:
    answers = {
        "place": ["A city park."],
        "scene": ["a brown dog"],
        "action": ["The image shows a dog running.", "A dog jumps!"],
    }
    expected = "A dog running, then a dog jumps! A brown dog. The place is a city park."
    assert merge(answers, merging(), None) == expected


def test_an_answer_that_says_nothing_new_is_left_out() -> None:
    answers = {"action": ["A man plays the guitar on a stage."], "scene": ["man playing guitar"], "doing": ["singing"]}
    assert merge(answers, merging(), None) == "A man plays the guitar on a stage. Singing."


@pytest.mark.parametrize("empty", ["", "  ", "I cannot see the image.", "No", "no.", '""', "The image shows"])
def test_refusals_and_empty_answers_are_no_answers(empty: str) -> None:
    assert merge({"scene": [empty]}, merging(), "dancing") is None


def test_a_word_that_begins_like_a_refusal_is_none() -> None:
    assert clean("Nobody is there", merging().rules) == "Nobody is there"


def test_a_sentence_that_breaks_off_is_cut_away() -> None:
    assert clean("Answer: A man runs. He is wearing a very", merging().rules) == "A man runs."
    assert clean("a man who runs with a", merging().rules) == "a man who runs with a"


def test_the_label_is_added_where_its_words_are_missing() -> None:
    prompts = merging()
    assert merge({"scene": ["a man on a stage"]}, prompts, "playing guitar") == (
        "A video of playing guitar. A man on a stage."
    )
    assert merge({"scene": ["a man plays guitars"]}, prompts, "playing guitar") == "A man plays guitars."


def test_a_caption_keeps_within_its_words() -> None:
    prompts = merging(max_words=8)
    answers = {"scene": ["one two three four five six seven eight nine ten"], "place": ["a park"]}
    assert merge(answers, prompts, None) == "One two three four five six seven eight."


# --- models ----------------------------------------------------------------------------------------------------------


def test_blip2_answers_depend_on_picture_and_question_and_not_on_the_batch(models: dict[str, ModelSettings]) -> None:
    answerer = Blip2Answerer(models["blip2"], "cpu")
    asked = [
        ([scene(seed)], question)
        for seed in range(4)
        for question in ("Question: What is this? Answer:", "Question: Where is the person or animal? Answer:")
    ]
    together = answerer.answer(asked)
    alone = [answerer.answer([one])[0] for one in asked]
    assert together == alone
    assert len(set(together)) > 2
    assert all(len(answer.split()) <= 5 and "Question" not in answer.split()[:1] for answer in together)


def test_blip2_generates_what_a_plain_call_of_the_model_generates(models: dict[str, ModelSettings]) -> None:
    folder = models["blip2"].folder
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    processor = Blip2Processor.from_pretrained(folder)
    inputs = processor(images=scene(1), text="Question: What is this? Answer:", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    answer = Blip2Answerer(models["blip2"], "cpu").answer([([scene(1)], "Question: What is this? Answer:")])
    assert answer == [expected] and expected


def test_the_instruction_model_sees_several_pictures_and_its_own_chat_template(
    models: dict[str, ModelSettings],
) -> None:
    answerer = InstructionAnswerer(models["instruct"], "cpu")
    asked = [([scene(s) for s in range(count)], "Describe the video in one sentence .") for count in (1, 2, 3)]
    together = answerer.answer(asked)
    assert together == [answerer.answer([one])[0] for one in asked]
    inputs = answerer._inputs(asked[1:2])
    text = answerer.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.count("<image>") == 2 * 16 and text.startswith("USER") and text.rstrip().endswith("ASSISTANT :")


def test_a_missing_model_folder_is_named_and_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model folder.*nothing is downloaded"):
        Blip2Answerer(ModelSettings(tmp_path / "blip2"), "cpu")


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_removed_wherever_the_kill_fell(tmp_path: Path) -> None:
    whole = GrowingTable(tmp_path / "whole.jsonl", "source")
    whole.append([{"source": "a", "caption": "eins"}, {"source": "b", "caption": "zwei \u00fc"}])
    data = whole.path.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(first, len(data)):
        path = tmp_path / f"{length}.jsonl"
        path.write_bytes(data[:length])
        table = GrowingTable(path, "source")
        assert table.keys == {"a"}
        table.append([{"source": "b", "caption": "zwei \u00fc"}])
        assert path.read_bytes() == data


def test_zeros_that_a_power_cut_left_at_the_end_are_removed_and_damage_inside_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"source": "a"}\n' + b"\0" * 30)
    assert GrowingTable(path, "source").keys == {"a"}
    assert path.read_bytes() == b'{"source": "a"}\n'
    path.write_bytes(b'{"source": "a"}\n{"sour\n{"source": "c"}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        GrowingTable(path, "source")


def test_a_row_cannot_come_twice(tmp_path: Path) -> None:
    table = GrowingTable(tmp_path / "t.jsonl", "source")
    table.append([{"source": "a"}])
    with pytest.raises(ValueError, match="a is in the table already"):
        table.append([{"source": "b"}, {"source": "a"}])
    assert rows_of(table.path) == [{"source": "a"}]


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioned(
    videos: Path, models: dict[str, ModelSettings], tmp_path_factory: pytest.TempPathFactory
) -> CaptionSettings:
    """A finished run with the process engine."""
    run = settings(videos, models, tmp_path_factory.mktemp("captions") / "captions.jsonl")
    counts = caption_videos(run)
    assert counts["captioned"] == 6 and counts["broken"] == 2
    return run


def test_every_video_gets_one_caption_and_broken_ones_are_counted_with_their_reason(
    captioned: CaptionSettings,
) -> None:
    rows = rows_of(captioned.output)
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows) and len(rows) == 6
    for row in rows:
        assert row["label"] in ("playing guitar", "singing")
        assert row["caption"][0].isupper() and row["caption"].endswith((".", "!", "?"))
        assert 1 <= len(row["key_frames"]) <= 3
        # Both models were asked: BLIP-2 about each frame, the other about all of them at once.
        assert len(row["answers"]["scene"]) == len(row["key_frames"]) and len(row["answers"]["action"]) == 1
    assert len({row["caption"] for row in rows}) > 3
    failed = {row["file"]: row for row in rows_of(captioned.failed)}
    assert set(failed) == {"singing/cut_off.mp4", "singing/empty.mp4"}
    assert all(row["reason"] == "broken" and row["detail"] for row in failed.values())


def test_running_again_does_nothing_and_other_prompts_are_refused(captioned: CaptionSettings, tmp_path: Path) -> None:
    before = captioned.output.read_bytes()
    assert not caption_videos(captioned)
    assert captioned.output.read_bytes() == before
    changed = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    changed["questions"][0]["ask"] = "Question: What do you see? Answer:"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    captioner = replace(captioned.captioner, prompts=tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="begun with other prompts"):
        caption_videos(replace(captioned, captioner=captioner))


def test_the_table_is_a_source_of_the_data_preparation(captioned: CaptionSettings) -> None:
    source = SourceSettings("table", captioned.source.root, captioned.output, path_column="file")
    listing = list_source(source)
    rows = rows_of(captioned.output)
    assert [(i.name, i.captions, i.label) for i in listing.items] == [
        (row["file"], (row["caption"],), row["label"]) for row in rows
    ]


def test_ray_gives_the_same_table(captioned: CaptionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default Ray's workers get what others leave of a busy machine
    ray_run = replace(captioned, output=tmp_path / "ray.jsonl", engine=EngineSettings("ray", workers=1))
    caption_videos(ray_run)
    assert ray_run.output.read_bytes() == captioned.output.read_bytes()
    assert rows_of(ray_run.failed) == rows_of(captioned.failed)


def test_a_video_that_kills_an_actor_on_ray_does_not_stop_the_others(
    captioned: CaptionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lost with the actor is captioned outside Ray, where this video does no harm."""

    monkeypatch.setattr(run, "caption_group", caption_or_die_on_ray)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)  # Ray's processes import engine_work
    engine = EngineSettings("ray", workers=1)
    caption_videos(replace(captioned, output=tmp_path / "ray.jsonl", engine=engine, videos_per_group=1))
    found = {row["source"]: row["caption"] for row in rows_of(tmp_path / "ray.jsonl")}
    expected = {row["source"]: row["caption"] for row in rows_of(captioned.output)}
    assert set(expected) <= set(found) and found["playing_guitar/1.mp4"] == expected["playing_guitar/1.mp4"]
    assert "from Ray" in found.values()


def test_a_file_name_with_a_hash_stays_whole(tmp_path: Path) -> None:
    whole, part = Item("a/b#1.mp4", tmp_path, "video"), Item("a/b#1.mp4#2-3", tmp_path, "video", start=2.0, end=3.0)
    assert describe(whole)["file"] == describe(part)["file"] == "a/b#1.mp4"


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_table(
    captioned: CaptionSettings, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    command = script(captioned, output)
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: output.exists() and output.stat().st_size > 0 or running.poll() is not None)
    running.kill()  # SIGKILL where there is one
    _, errors = running.communicate()
    assert output.exists(), errors
    written = len(rows_of(output))
    assert 0 < written < 6, "the kill came too late to show anything"
    # The worst moment: in the middle of a line.
    with output.open("r+b") as file:
        file.truncate(output.stat().st_size - 9)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "was torn and is removed" in again.stderr
    assert output.read_bytes() == captioned.output.read_bytes()


def test_a_dry_run_lists_the_videos_and_writes_nothing(captioned: CaptionSettings, tmp_path: Path) -> None:
    command = script(captioned, tmp_path / "captions.jsonl")
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 videos" in done.stderr and "playing guitar" in done.stderr
    assert not list(tmp_path.glob("captions*"))


def test_the_short_option_chooses_the_engine_and_its_own_options_may_follow(
    captioned: CaptionSettings, tmp_path: Path
) -> None:
    short = ["--engine", "ray", "--engine.address", "ray://nowhere:1", "--dry-run"]
    command = [*script(captioned, tmp_path / "captions.jsonl"), *short]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "engine='ray'" in done.stderr and "address='ray://nowhere:1'" in done.stderr
    bare = subprocess.run([*command[:2], "--help"], cwd=ROOT, capture_output=True, text=True)
    assert bare.returncode == 1 and "--config FILE is missing" in bare.stderr


def test_a_model_can_be_chosen_on_the_command_line_and_a_missing_one_is_named(
    captioned: CaptionSettings, tmp_path: Path
) -> None:
    command = [*script(captioned, tmp_path / "captions.jsonl"), "--captioner.blip2.folder", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "no model folder" in done.stderr and "Traceback" not in done.stderr


def test_questions_without_a_model_that_answers_them_are_refused(models: dict[str, ModelSettings]) -> None:
    with pytest.raises(ValueError, match="has questions but blip2.folder is not set"):
        CaptionerSettings(PROMPTS, instruct=models["instruct"]).load_prompts()


def test_one_video_alone_and_in_a_group_get_the_same_caption(captioned: CaptionSettings) -> None:
    captioner = Captioner(captioned.captioner)
    rows = rows_of(captioned.output)
    item = Item(rows[4]["file"], captioned.source.root / rows[4]["file"], "video", label=rows[4]["label"])
    assert captioner.caption([item])[0]["caption"] == rows[4]["caption"]


def script(run: CaptionSettings, output: Path) -> list[str]:
    values = {
        "source": {"layout": "folder", "root": str(run.source.root)},
        "output": str(output),
        "folder_labels": True,
        "videos_per_group": 1,
        "captioner": {
            "prompts": str(PROMPTS),
            "device": "cpu",
            "blip2": {"folder": str(run.captioner.blip2.folder), "batch_size": 3, "max_new_tokens": 5},
            "instruct": {"folder": str(run.captioner.instruct.folder), "batch_size": 3, "max_new_tokens": 6},
        },
        "engine": {"workers": 1},
    }
    output.with_suffix(".yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    config = output.with_name("run.yaml")
    os.replace(output.with_suffix(".yaml"), config)
    return [sys.executable, "training/caption_videos.py", "--config", str(config), "--engine", "process"]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen within five minutes")
