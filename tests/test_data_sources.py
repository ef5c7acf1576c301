"""Every layout's own lists are read, pairing is never guessed, and rows without a file are counted."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vidrd_core.data.sources import SourceSettings, list_source


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"media")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def captions(listing):
    return {item.name: item.captions for item in listing.items}


def labels(listing):
    return {item.name: item.label for item in listing.items}


def reasons(listing):
    return {d.source: d.reason for d in listing.dropped}


def test_a_folder_pairs_videos_and_images_with_their_texts(tmp_path):
    touch(tmp_path, "a.mp4", "sub/b.PNG", "c.webm", "notes.pdf")
    write(tmp_path / "a.txt", "\ufeffa  caption\n")
    write(tmp_path / "sub/b.PNG.txt", "another")
    listing = list_source(SourceSettings("folder", tmp_path))
    assert captions(listing) == {"a.mp4": ("a caption",), "c.webm": (), "sub/b.PNG": ("another",)}
    assert [item.kind for item in listing.items] == ["video", "video", "image"]
    only = list_source(SourceSettings("folder", tmp_path, kind="image"))
    assert [item.name for item in only.items] == ["sub/b.PNG"]


def test_a_caption_that_could_be_of_two_files_is_an_error_that_names_the_extensions(tmp_path):
    touch(tmp_path, "a.mp4", "a.jpg")
    write(tmp_path / "a.txt", "whose?")
    with pytest.raises(ValueError, match=r"a\.jpg and of a\.mp4.*\.mp4 .*\.webm.*\.png"):
        list_source(SourceSettings("folder", tmp_path))
    (tmp_path / "a.jpg").unlink()
    write(tmp_path / "a.mp4.txt", "and this?")
    with pytest.raises(ValueError, match="two captions"):
        list_source(SourceSettings("folder", tmp_path))


ROWS = [
    {"path": "x/a.mp4", "caption": "first", "start": "", "end": ""},
    {"path": "x/b", "caption": "second", "start": "1.5", "end": "4"},
    {"path": "y/a.mp4", "caption": "of a file that is not there", "start": "", "end": ""},
    {"path": "x/a.mp4", "caption": "first again", "start": "", "end": ""},
    {"path": "x/b", "caption": " ", "start": "0", "end": "1"},
]


def save_csv(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ROWS[0])
        table.writeheader()
        table.writerows(ROWS)


TABLES = {
    ".csv": save_csv,
    ".json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    ".jsonl": lambda path: path.write_text("".join(json.dumps(r) + "\n" for r in ROWS), encoding="utf-8"),
    ".parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path),
}


@pytest.mark.parametrize("suffix", TABLES)
def test_every_kind_of_table_gives_the_same_items(tmp_path, suffix):
    touch(tmp_path / "media", "x/a.mp4", "x/b.avi")
    TABLES[suffix](tmp_path / f"table{suffix}")
    listing = list_source(SourceSettings("table", tmp_path / "media", tmp_path / f"table{suffix}"))
    assert captions(listing) == {"x/a.mp4": ("first", "first again"), "x/b.avi#1.5-4": ("second",)}
    assert (listing.items[1].start, listing.items[1].end) == (1.5, 4.0)
    assert reasons(listing) == {"y/a.mp4": "missing file", "x/b": "no caption"}


def test_a_row_that_is_not_utf8_or_not_whole_costs_only_itself(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    text = "path,caption\na.mp4,good\nb.mp4,caf\xe9\nc.mp4\n".encode("latin-1")
    (tmp_path / "captions.csv").write_bytes(text)
    listing = list_source(SourceSettings("table", tmp_path))
    assert captions(listing) == {"a.mp4": ("good",)}
    assert reasons(listing) == {"b.mp4": "caption is not UTF-8", "captions.csv:4": "bad row"}


def test_a_table_without_the_columns_says_which_it_has_and_which_are_wanted(tmp_path):
    write(tmp_path / "captions.csv", "file,text\na.mp4,good\n")
    with pytest.raises(ValueError, match=r"\['file', 'text'\].*'path'.*path_column"):
        list_source(SourceSettings("table", tmp_path))
    touch(tmp_path, "a.mp4")
    listing = list_source(SourceSettings("table", tmp_path, path_column="file", caption_column="text"))
    assert captions(listing) == {"a.mp4": ("good",)}


def test_webvid_is_read_by_page_folder_or_flat(tmp_path):
    rows = (
        "videoid,contentUrl,duration,page_dir,name\n1,http://x,PT5S,00_01,one\n2,http://x,PT5S,00_02,two\n3,u,P,p,three"
    )
    write(tmp_path / "results_2M_train.csv", rows)
    touch(tmp_path / "videos", "00_01/1.mp4", "2.mp4")
    listing = list_source(SourceSettings("webvid", tmp_path / "videos"))
    assert captions(listing) == {"00_01/1.mp4": ("one",), "2.mp4": ("two",)}
    assert reasons(listing) == {"p/3.mp4": "missing file"}


def test_tgif_takes_the_lines_of_its_split_and_keeps_quotation_marks(tmp_path):
    address = "https://38.media.tumblr.com/abc/tumblr_{}.gif"
    lines = [
        f'{address.format("a")}\ta "man" waves',
        f"{address.format('b')}\ta dog",
        f"{address.format('a')}\the waves",
    ]
    write(tmp_path / "tgif-v1.0.tsv", "\n".join(lines) + "\n")
    write(tmp_path / "splits" / "train.txt", address.format("a") + "\n")
    touch(tmp_path / "gifs", "tumblr_a.gif", "tumblr_b.gif")
    listing = list_source(SourceSettings("tgif", tmp_path / "gifs"))
    assert captions(listing) == {"tumblr_a.gif": ('a "man" waves', "he waves")}
    assert len(list_source(SourceSettings("tgif", tmp_path / "gifs", split="all")).items) == 2


def test_vatex_takes_a_language_and_cuts_untrimmed_videos(tmp_path):
    rows = [
        {"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["one", "two"], "chCap": ["\u4e00"]},
        {"videoID": "abc_000001_000011", "enCap": ["three"], "chCap": ["\u4e8c"]},
    ]
    write(tmp_path / "vatex_training_v1.0.json", json.dumps(rows))
    touch(tmp_path, "Ptf_2VRj-V0_000122_000132.mp4", "abc.mp4")
    listing = list_source(SourceSettings("vatex", tmp_path))
    assert captions(listing) == {"Ptf_2VRj-V0_000122_000132.mp4": ("one", "two"), "abc.mp4#1-11": ("three",)}
    assert listing.items[1].end == 11.0
    assert list_source(SourceSettings("vatex", tmp_path, language="zh")).items[0].captions == ("\u4e00",)


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def save_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_laion_is_read_from_tars_with_the_image_found_in_place(tmp_path):
    members = {
        "000000000.jpg": picture(),
        "000000000.json": b'{"caption": "not this"}',
        "000000000.txt": b"a red square",
        "000000001.jpg": picture(),
        "000000001.json": b'{"caption": "another"}',
        "000000002.jpg": picture(),
        "000000002.txt": b"caf\xe9",
    }
    save_tar(tmp_path / "00000.tar", members)
    rows = [{"key": "000000009", "caption": "x", "status": "failed_to_download", "error_message": "404"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "00000.parquet")
    listing = list_source(SourceSettings("laion", tmp_path))
    assert captions(listing) == {
        "00000.tar/000000000.jpg": ("a red square",),
        "00000.tar/000000001.jpg": ("another",),
    }
    assert listing.items[0].read() == picture()
    with listing.items[0].file() as path:
        assert path.read_bytes() == picture()
    assert not path.exists()
    wanted = {"00000.tar/000000002.jpg": "caption is not UTF-8", "00000/000000009": "not downloaded"}
    assert reasons(listing) == wanted


def test_a_tar_that_breaks_off_gives_what_is_whole_and_is_counted(tmp_path):
    save_tar(tmp_path / "0.tar", {"a.jpg": picture(), "a.txt": b"first", "b.jpg": picture(), "b.txt": b"second"})
    with tarfile.open(tmp_path / "0.tar") as tar:
        inside = tar.getmember("b.jpg").offset_data + 10
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:inside])
    listing = list_source(SourceSettings("laion", tmp_path))
    assert captions(listing) == {"0.tar/a.jpg": ("first",)} and reasons(listing) == {"0.tar": "broken"}


def test_laion_is_read_from_folders_beside_their_parquet(tmp_path):
    rows = [{"key": f"00000000{n}", "caption": f"image {n}", "status": "success"} for n in range(2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "00000.parquet")
    touch(tmp_path, "00000/000000000.jpg", "00001/5.webp")
    write(tmp_path / "00001/5.txt", "beside it")
    listing = list_source(SourceSettings("laion", tmp_path))
    assert captions(listing) == {"00000/000000000.jpg": ("image 0",), "00001/5.webp": ("beside it",)}
    assert reasons(listing) == {"00000/000000001": "missing file"}


def test_a_damaged_parquet_is_told_and_of_many_costs_only_itself(tmp_path):
    table = pyarrow.Table.from_pylist([{"key": str(n), "caption": f"image {n}"} for n in range(300)])
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    data = bytearray((tmp_path / "0.parquet").read_bytes())
    data[:200] = b"\xff" * 200
    (tmp_path / "0.parquet").write_bytes(data)
    pyarrow.parquet.write_table(table.slice(0, 1), tmp_path / "1.parquet")
    touch(tmp_path, "1/0.jpg")
    listing = list_source(SourceSettings("laion", tmp_path))
    assert captions(listing) == {"1/0.jpg": ("image 0",)} and reasons(listing) == {"0.parquet": "broken"}
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        list_source(SourceSettings("table", tmp_path, tmp_path / "0.parquet", path_column="key"))


def test_whole_paths_of_a_table_are_found_below_a_relative_root(tmp_path, monkeypatch):
    touch(tmp_path / "media", "a.mp4")
    write(tmp_path / "captions.csv", f"path,caption\n{(tmp_path / 'media' / 'a.mp4').as_posix()},good\n")
    monkeypatch.chdir(tmp_path)
    listing = list_source(SourceSettings("table", Path("media"), Path("captions.csv")))
    assert captions(listing) == {"a.mp4": ("good",)}


def test_ucf101_takes_the_official_split_and_fold(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup\n2 YoYo\n")
    write(lists / "trainlist02.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nYoYo/v_YoYo_g08_c01.avi 2\n")
    write(lists / "testlist01.txt", "YoYo/v_YoYo_g01_c01.avi\n")
    touch(tmp_path / "UCF-101", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "YoYo/v_YoYo_g01_c01.avi")
    train = list_source(SourceSettings("ucf101", tmp_path / "UCF-101", fold=2))
    assert labels(train) == {"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi": "apply eye makeup"}
    assert reasons(train) == {"YoYo/v_YoYo_g08_c01.avi": "missing file"}
    test = list_source(SourceSettings("ucf101", tmp_path / "UCF-101", split="test"))
    assert labels(test) == {"YoYo/v_YoYo_g01_c01.avi": "yo yo"}


def test_kinetics_is_read_trimmed_in_class_folders_or_untrimmed_by_its_times(tmp_path):
    rows = "abseiling,-a_b,20,30,train\nzumba,cd,5,15,train\nzumba,ef,1,11,train\n"
    rows += "zumba,gh,nan,inf,train\nzumba,ij,,,train\n"
    write(tmp_path / "train.csv", f"label,youtube_id,time_start,time_end,split\n{rows}")
    touch(tmp_path / "v", "abseiling/-a_b_000020_000030.mp4", "cd.mkv")
    listing = list_source(SourceSettings("kinetics", tmp_path / "v"))
    assert labels(listing) == {"abseiling/-a_b_000020_000030.mp4": "abseiling", "cd.mkv#5-15": "zumba"}
    assert reasons(listing) == {"zumba/ef_000001_000011": "missing file", "gh": "bad row", "ij": "bad row"}


def test_moments_in_time_is_read_with_its_categories(tmp_path):
    write(tmp_path / "moments_categories.txt", "clapping,0\nadult+female+singing,1\n")
    rows = "clapping/a.mp4,clapping,3,0\nadult+female+singing/b.mp4,adult+female+singing,3,0\nodd/c.mp4,odd,3,0\n"
    write(tmp_path / "trainingSet.csv", rows)
    touch(tmp_path, "training/clapping/a.mp4", "training/adult+female+singing/b.mp4", "training/odd/c.mp4")
    listing = list_source(SourceSettings("moments", tmp_path))
    assert set(labels(listing).values()) == {"clapping", "adult female singing"}
    assert reasons(listing) == {"odd/c.mp4": "unknown label"}


def test_videolt_names_every_class_of_a_video(tmp_path):
    write(tmp_path / "labels/count-labels-train.lst", "3DPainting 0 137.0\nATM 3 60.0\nbabyCrawling 67 241.0\n")
    write(tmp_path / "labels/train.lst", "-a_b 0,67\ncd 3\nef 99\n")
    touch(tmp_path, "-a_b.mp4", "cd.webm", "ef.mp4")
    listing = list_source(SourceSettings("videolt", tmp_path))
    assert labels(listing) == {"-a_b.mp4": "3D painting and baby crawling", "cd.webm": "ATM"}
    assert reasons(listing) == {"ef": "unknown label"}


def test_an_unknown_layout_or_a_missing_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="unknown layout 'webvit'; the known ones are folder"):
        list_source(SourceSettings("webvit", tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_source(SourceSettings("folder", tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"results_2M_train\.csv.*source\.table"):
        list_source(SourceSettings("webvid", tmp_path))
