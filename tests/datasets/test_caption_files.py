"""Captioned pictures from COCO's json, token files and CSV: layouts, splits, and everything that can be wrong."""

import json
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.caption_coco import read_coco_captions
from sightline.datasets.caption_files import read_captioned
from sightline.datasets.table import DataError


def pictures(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(folder / name)


def names(table):
    return [path.rpartition("/")[2] for path in table.paths]


def message(path):
    with pytest.raises(DataError) as error:
        read_captioned(path)
    return str(error.value)


# -- COCO --

IMAGES = [{"id": 9, "file_name": "b.jpg", "height": 30, "width": 40}, {"id": 4, "file_name": "a.jpg"}]
SENTENCES = [(4, "A dog ."), (9, "Two cats.\n"), (4, " A  black dog")]


def coco(path, images=IMAGES, sentences=SENTENCES):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": k, "image_id": image, "caption": text} for k, (image, text) in enumerate(sentences)]
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path


def test_coco_captions(tmp_path):
    pictures(tmp_path / "images", "a.jpg", "b.jpg")
    table = read_coco_captions(coco(tmp_path / "annotations" / "captions_val2017.json"))
    assert (names(table), table.image_ids.tolist()) == (["b.jpg", "a.jpg"], [9, 4])
    assert table.captions == [["Two cats."], ["A dog .", "A black dog"]]
    assert table.sizes.tolist() == [[30, 40]] * 2
    assert (table.categories, len(table.boxes), table.problems.summary()) == ([], 0, "")
    assert table.select(np.array([1])).captions == [["A dog .", "A black dog"]]


def test_coco_folder_has_its_jsons_splits(tmp_path):
    pictures(tmp_path / "train2017", "a.jpg", "b.jpg")
    pictures(tmp_path / "val2017", "c.jpg")
    coco(tmp_path / "annotations" / "captions_train2017.json")
    coco(tmp_path / "annotations" / "captions_val2017.json", [{"id": 1, "file_name": "c.jpg"}], [(1, "A cow")])
    tables = read_captioned(tmp_path)
    assert {split: names(table) for split, table in tables.items()} == {"train": ["b.jpg", "a.jpg"], "val": ["c.jpg"]}


def test_coco_repairs(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    sentences = [(4, "A dog"), (4, " . "), (9, ""), (5, "Nobody's"), (4, "A dog"), (4, "caf\ufffd")]
    table = read_coco_captions(coco(tmp_path / "captions_x.json", sentences=sentences))
    assert table.captions == [["A dog", "A dog", "caf\ufffd"]]
    assert names(table) == ["a.jpg"]
    assert {kind: table.problems.counts[kind] for kind in table.problems.repaired} == {
        "empty sentence (left out)": 2,
        "caption of an image the file does not list (left out)": 1,
        "picture without a sentence (left out)": 1,
    }
    assert "annotations[1] (id 1): ' . '" in table.problems.summary()
    assert set(table.problems.warned) == {
        "sentence twice for one picture (kept)",
        "sentence with letters lost by a wrong decoding (kept)",
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1", "broken json"),
        ([], "no list of objects under 'images'"),
        ({"images": [], "annotations": [{"bbox": [1, 2, 3, 4]}]}, "hold no captions; give the captions_"),
        ({"images": IMAGES, "annotations": [{"caption": 3, "image_id": 4}]}, "caption is not a text"),
        ({"images": [*IMAGES, IMAGES[0]], "annotations": [{"caption": "a", "image_id": 4}]}, "image id used twice"),
        ({"images": IMAGES, "annotations": [{"caption": "!", "image_id": 4}]}, "not one picture with a sentence"),
    ],
    ids=["cut short", "a list", "boxes", "a number", "id twice", "nothing left"],
)
def test_coco_refuses(tmp_path, content, expected):
    pictures(tmp_path, "a.jpg", "b.jpg")
    path = tmp_path / "captions_x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert expected in message(path)
    assert str(path) in message(path)


# -- Token files --


@pytest.fixture
def flickr(tmp_path):
    """Four pictures in two splits and a token file, in Flickr8k's layout."""
    root, text = tmp_path / "flickr8k", tmp_path / "flickr8k" / "Flickr8k_text"
    pictures(root / "train", "a.jpg", "b.jpg")
    pictures(root / "dev", "c.jpg")
    text.mkdir()
    (text / "Flickr8k.token.txt").write_text(
        "a.jpg#0\tA dog .\na.jpg#1\tThe dog .\nb.jpg#0\tA cat\u2028sits .\nc.jpg#0\tEin Käfer .\n", encoding="utf-8"
    )
    (text / "Flickr_8k.trainImages.txt").write_text("b.jpg\na.jpg\n")
    (text / "Flickr_8k.devImages.txt").write_text("c.jpg\n")
    (text / "readme.txt").write_text("Please cite.")
    tokens = text / "Flickr8k.token.txt"
    return SimpleNamespace(root=root, text=text, tokens=tokens, train=text / "Flickr_8k.trainImages.txt")


def append(path, line):
    path.write_bytes(path.read_bytes() + line.encode())


@pytest.mark.parametrize("start", ["root", "text", "tokens"])
def test_token_file(flickr, start):
    tables = read_captioned(getattr(flickr, start))
    assert {split: names(table) for split, table in tables.items()} == {"train": ["b.jpg", "a.jpg"], "val": ["c.jpg"]}
    assert tables["train"].captions == [["A cat sits ."], ["A dog .", "The dog ."]]
    assert tables["val"].captions == [["Ein Käfer ."]]
    assert tables["train"].problems.summary() == tables["val"].problems.summary() == ""


def test_token_file_without_lists_is_split_by_hash(tmp_path):
    stems = [f"p{k}.jpg" for k in range(20)]
    pictures(tmp_path / "images", *stems)
    (tmp_path / "results.token").write_text("".join(f"{name}#0\tPicture {name}\n" for name in stems))
    first, second = read_captioned(tmp_path), read_captioned(tmp_path)
    assert sorted(names(first["train"]) + names(first["val"])) == sorted(stems)
    assert names(first["val"]) == names(second["val"])
    assert 0 < len(first["val"]) < 10
    assert first["val"].captions == [[f"Picture {name}"] for name in names(first["val"])]


def test_test_stands_for_val(flickr):
    (flickr.text / "Flickr_8k.devImages.txt").rename(flickr.text / "Flickr_8k.testImages.txt")
    tables = read_captioned(flickr.root)
    assert tables["val"] is tables["test"]
    assert '"test" is validated on' in tables["val"].problems.summary()


def test_token_file_repairs(flickr):
    append(flickr.tokens, "a.jpg#1\tThird.\nc.jpg#1\t .\nd.jpg#0\tUnlisted.\n\n")
    append(flickr.train, "a.jpg\nnever_described.jpg\n")
    tables = read_captioned(flickr.root)
    told = tables["train"].problems.summary() + tables["val"].problems.summary()
    assert names(tables["train"]) == ["b.jpg", "a.jpg"]
    assert tables["train"].captions[1] == ["A dog .", "The dog .", "Third."]
    for expected in (
        f"empty sentence (left out): 1\n    {flickr.tokens}:6",
        f"picture that no split list names (left out): 1\n    {flickr.tokens}:7: d.jpg",
        f"picture without a sentence (left out): 1\n    {flickr.train}:4: never_described.jpg",
        f"sentence number used twice (both kept): 1\n    {flickr.tokens}:5: a.jpg#1",
    ):
        assert told.count(expected) == 1, expected


@pytest.mark.parametrize(
    ("which", "line", "expected"),
    [
        ("tokens", "a.jpg#2 no tab\n", "line is not PICTURE#NUMBER, a tab and a sentence: 1\n    {file}:5: 'a.jpg#2 no tab'"),
        ("tokens", "a.jpg\tno number\n", "{file}:5: 'a.jpg\\tno number'"),
        ("train", "c.jpg\n", "picture is in two splits: 1\n    {file}:3: c.jpg, in val too"),
    ],
    ids=["no tab", "no number", "two splits"],
)  # fmt: skip
def test_token_file_refuses(flickr, which, line, expected):
    file = getattr(flickr, which)
    append(file, line)
    assert expected.format(file=file) in message(flickr.root)


def test_missing_and_broken_pictures_are_fatal(flickr):
    (flickr.root / "train" / "a.jpg").unlink()
    (flickr.root / "train" / "b.jpg").write_bytes(b"no picture")
    told = message(flickr.root)
    assert f"picture is missing: 1\n    {flickr.train}:2: a.jpg" in told
    assert "picture cannot be read: 1" in told


def test_text_that_is_not_utf8_names_its_line(flickr):
    flickr.tokens.write_bytes(flickr.tokens.read_bytes() + "a.jpg#2\tcafé\n".encode("latin-1"))
    assert f"{flickr.tokens}:5: not UTF-8 (b'a.jpg#2\\tcaf\\xe9')" in message(flickr.root)


def test_byte_order_mark_and_windows_line_ends(flickr):
    text = flickr.tokens.read_bytes().replace(b"\n", b"\r\n")
    flickr.tokens.write_bytes(b"\xef\xbb\xbf" + text)
    assert read_captioned(flickr.root)["train"].captions[1] == ["A dog .", "The dog ."]


def test_two_lists_of_one_split(flickr):
    (flickr.text / "val.txt").write_text("c.jpg\n")
    assert "are both the 'val' split" in message(flickr.root)


# -- CSV --

CSVS = {
    "named columns": 'image,caption\na.jpg,"A dog, black"\nb.jpg,A cat\n',
    "other order": 'n,Sentence,Picture\n1,"A dog, black",a.jpg\n2,A cat,b.jpg\n',
    "no names": 'a.jpg,"A dog, black"\n\nb.jpg,A cat\n',
    "semicolons": "a.jpg;A dog, black\nb.jpg;A cat\n",
    "tabs": "file\ttext\na.jpg\tA dog, black\nb.jpg\tA cat\n",
    "Flickr30k's": "image_name| comment_number| comment\na.jpg| 0| A dog, black\nb.jpg| 0| A cat\n",
    "a line within quotes": 'image,caption\na.jpg,"A dog,\nblack"\nb.jpg,A cat\n',
}


@pytest.mark.parametrize("text", CSVS.values(), ids=CSVS)
def test_csv(tmp_path, text):
    pictures(tmp_path / "images", "a.jpg", "b.jpg")
    (tmp_path / "captions.csv").write_text(text)
    tables = read_captioned(tmp_path)
    found = {names(table)[row]: table.captions[row] for table in tables.values() for row in range(len(table))}
    assert found == {"a.jpg": ["A dog, black"], "b.jpg": ["A cat"]}


def test_csv_with_a_column_of_splits(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    path = tmp_path / "captions.csv"
    path.write_text("image,caption,split\na.jpg,A,train\nb.jpg,B,dev\nc.jpg,C,test\na.jpg,AA,train\n")
    tables = read_captioned(path)
    assert {split: table.captions for split, table in tables.items()} == {
        "train": [["A", "AA"]],
        "val": [["B"]],
        "test": [["C"]],
    }
    path.write_text("image,caption,split\na.jpg,A,train\na.jpg,B,val\nb.jpg,B,holdout\n")
    assert f"picture is in two splits: 1\n    {path}:3: a.jpg" in message(path)
    assert f"{path}:4: 'holdout'" in message(path)


def test_a_csv_for_each_split(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "train.csv").write_text("a.jpg,A dog\n")
    (tmp_path / "val.csv").write_text("b.jpg,A cat\n")
    assert {split: names(table) for split, table in read_captioned(tmp_path).items()} == {
        "train": ["a.jpg"],
        "val": ["b.jpg"],
    }
    (tmp_path / "val.csv").write_text("b.jpg,A cat\na.jpg,A dog\n")
    assert "a.jpg: is in two splits, 'train' and 'val'" in message(tmp_path)
    (tmp_path / "notes.csv").write_text("x,y\n")
    assert "which of notes.csv, train.csv, val.csv holds captions?" in message(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("just words\n", "no commas"),
        ("image,caption\na.jpg\n", ":2: ['a.jpg']"),
        ("image,caption\na.jpg,A dog\n,A cat\n", ":3: ['', 'A cat']"),
        ("image,caption\nnowhere.jpg,A dog\n", ":2: nowhere.jpg"),
        ("image,caption\na.jpg,.\n", "not one sentence in it"),
        ("", "no commas"),
    ],
    ids=["no columns", "one column", "no picture", "missing picture", "only an empty sentence", "empty"],
)
def test_csv_refuses(tmp_path, text, expected):
    pictures(tmp_path, "a.jpg")
    (tmp_path / "captions.csv").write_text(text)
    assert expected in message(tmp_path)
    assert str(tmp_path / "captions.csv") in message(tmp_path)


def test_names_in_composed_and_decomposed_letters(tmp_path):
    pictures(tmp_path / "images", unicodedata.normalize("NFD", "Käfer.jpg"), "b.jpg")
    (tmp_path / "captions.csv").write_text("Käfer.jpg,Ein Käfer\nb.jpg,b\n", encoding="utf-8")
    assert sum(map(len, read_captioned(tmp_path).values())) == 2


def test_one_name_in_two_folders(tmp_path):
    pictures(tmp_path / "x", "a.jpg", "b.jpg")
    pictures(tmp_path / "y", "a.jpg")
    path = tmp_path / "captions.csv"
    path.write_text("a.jpg,A dog\nb.jpg,A cat\n")
    told = "".join(table.problems.summary() for table in read_captioned(path).values())
    assert "one name for several files (the first is taken): 1" in told
    path.write_text("old/y/a.jpg,A dog\nb.jpg,A cat\n")  # of neither folder
    assert "picture is missing" in message(path)
    path.write_text("y/a.jpg,A dog\nx/b.jpg,A cat\n")
    paths = [path for table in read_captioned(tmp_path).values() for path in table.paths]
    assert sorted(paths) == [str(tmp_path / "x" / "b.jpg"), str(tmp_path / "y" / "a.jpg")]


# -- Anything --


def test_nothing_there(tmp_path):
    assert "no such file or folder" in message(tmp_path / "nowhere")
    pictures(tmp_path, "a.jpg")
    assert "no captions recognised" in message(tmp_path)


def test_real_flickr8k(real_data):
    tables = read_captioned(real_data("flickr8k"))
    assert {split: len(table) for split, table in tables.items()} == {"train": 6000, "val": 1000, "test": 1000}
    assert all(len(group) == 5 for table in tables.values() for group in table.captions)
    assert tables["train"].captions[0][0] == "A black dog is running after a white dog in the snow ."
    problems = next(iter(tables.values())).problems.counts | tables["val"].problems.counts
    assert problems["picture that no split list names (left out)"] == 92


def test_real_coco(real_data):
    tables = read_captioned(real_data("coco"))
    assert (len(tables["val"]), sum(map(len, tables["val"].captions))) == (128, 640)
    assert tables["val"].captions[0][0] == "A woman stands in the dining area at the table."
