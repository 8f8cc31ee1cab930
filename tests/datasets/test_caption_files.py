"""Captioned pictures from COCO's json, token files and CSV: layouts, splits, and everything that can be wrong."""

import json
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.caption_coco import read_coco_captions
from sightline.datasets.caption_files import is_captioned, read_captioned
from sightline.datasets.readers import find
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


# -- Karpathy's splits --


def described(name, split, *sentences, **more):
    rows = [{"raw": text, "tokens": text.lower().strip(" .").split()} for text in sentences]
    return {"filename": name, "split": split, "sentences": rows, "imgid": 0} | more


DESCRIBED = [
    described("a.jpg", "train", "A dog .", "A black  dog", filepath="val2014", cocoid=9),
    described("b.jpg", "val", "Two cats.", filepath="val2014", cocoid=7),
    described("c.jpg", "test", "A cow", filepath="train2014", cocoid=30),
    described("d.jpg", "restval", "A bird", filepath="val2014", cocoid=2),
]


def karpathy(path, images=DESCRIBED):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


@pytest.fixture
def coco2014(tmp_path):
    """Its two folders of pictures."""
    pictures(tmp_path / "coco" / "val2014", "a.jpg", "b.jpg", "d.jpg")
    pictures(tmp_path / "coco" / "train2014", "c.jpg")
    return tmp_path / "coco"


@pytest.mark.parametrize("name", ["dataset_coco.json", "dataset.json", "annotations/dataset_coco.json"])
def test_karpathys_splits(coco2014, name):
    karpathy(coco2014 / name)
    tables = read_captioned(coco2014)
    assert {split: names(table) for split, table in tables.items()} == {
        "train": ["a.jpg", "d.jpg"],
        "val": ["b.jpg"],
        "test": ["c.jpg"],
    }
    assert tables["train"].captions == [["A dog .", "A black dog"], ["A bird"]]
    assert {split: table.image_ids.tolist() for split, table in tables.items()} == {
        "train": [9, 2],
        "val": [7],
        "test": [30],
    }
    assert tables["train"].paths[0] == str(coco2014 / "val2014" / "a.jpg")
    assert not any(table.problems.counts for table in tables.values())


def test_karpathys_splits_of_any_name_and_place(coco2014):
    """As Flickr8k's are: without folders and ids; the file's path says what it is."""
    path = karpathy(
        coco2014 / "splits.json",
        [{k: v for k, v in row.items() if k not in ("filepath", "cocoid")} for row in DESCRIBED],
    )
    tables = read_captioned(path)
    assert names(tables["test"]) == ["c.jpg"]
    assert tables["train"].image_ids.tolist() == [1, 2]


def test_karpathys_splits_repaired(coco2014):
    rows = [
        described("a.jpg", "train", "A dog .", " . ", "A dog ."),
        {"filename": "b.jpg", "split": "val", "sentences": [{"tokens": ["two", "cats"]}]},
        described("c.jpg", "test"),
        described("d.jpg", "train", "One"),
        described("d.jpg", "train", "Two"),
    ]
    path = karpathy(coco2014 / "dataset.json", rows)
    tables = read_captioned(path)
    assert tables["train"].captions == [["A dog .", "A dog ."], ["One", "Two"]]
    assert tables["val"].captions == [["two cats"]]
    problems = tables["train"].problems
    assert problems.repaired == {
        "empty sentence (left out)": [f"{path}: images[0] (a.jpg): ' . '"],
        "picture without a sentence (left out)": [f"{path}: images[2] (c.jpg)"],
    }
    assert problems.warned == {
        "sentence twice for one picture (kept)": [f"{path}: images[0] (a.jpg): 'A dog .'"],
        "picture listed twice (all its sentences kept)": [f"{path}: images[4] (d.jpg)"],
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([DESCRIBED[0] | {"split": "holdout"}], "images[0] (val2014/a.jpg): 'holdout'"),
        ([{"filename": "a.jpg", "sentences": [{"raw": "A"}]}], "images[0] (a.jpg): None"),
        ([*DESCRIBED, DESCRIBED[0] | {"split": "val"}], "picture is in two splits: 1\n    {path}: images[4] (val2014/a.jpg)"),
        ([DESCRIBED[0], {"split": "val"}], "picture without a filename: 1\n    {path}: images[1]"),
        ([DESCRIBED[0] | {"sentences": [{"raw": 3}]}, DESCRIBED[3]], "sentence without text: 1\n    {path}: images[0]"),
        ([*DESCRIBED, DESCRIBED[1] | {"filename": "a.jpg", "cocoid": 2}], "image id used twice: 1\n    {path}: cocoid 2"),
        ([*DESCRIBED, described("x.jpg", "val", "An x")], "picture is missing: 1\n    {path}: images[4] (x.jpg): x.jpg"),
        ([described("a.jpg", "train")], "not one sentence in it"),
        ([3, {"sentences": []}], "{path}: not of the form of Karpathy's splits: no list of objects under 'images'"),
    ],
    ids=["split", "no split", "two splits", "no name", "no text", "id twice", "missing", "nothing said", "numbers"],
)  # fmt: skip
def test_karpathys_splits_refused(coco2014, rows, expected):
    path = karpathy(coco2014 / "dataset.json", rows)
    assert expected.format(path=path) in message(coco2014)


def test_karpathys_splits_cut_short(coco2014):
    path = karpathy(coco2014 / "dataset.json")
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path}: broken json" in message(coco2014)


def test_two_forms_in_one_folder(coco2014):
    path, other = karpathy(coco2014 / "dataset.json"), coco(coco2014 / "captions_val.json")
    told = message(coco2014)
    assert f"{other} and {path}; give the path of one" in told
    assert len(read_captioned(path)) == 3
    karpathy(coco2014 / "dataset_flickr8k.json")
    other.unlink()
    assert "dataset.json and dataset_flickr8k.json both hold splits" in message(coco2014)


def test_a_detection_json_of_that_name_is_none(coco2014):
    (coco2014 / "dataset.json").write_text(json.dumps({"images": [], "annotations": [{"bbox": [], "sentences": 1}]}))
    assert "no captions recognised" in message(coco2014)


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


def test_a_quotation_mark_that_is_not_closed(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "captions.csv").write_text('image,caption\na.jpg,A dog\nb.jpg,"A cat\nc.jpg,A horse\n')
    told = read_captioned(tmp_path)["train"].problems.summary()
    assert "is a quotation mark not closed?" in told
    assert f"{tmp_path / 'captions.csv'}:3: 'A cat\\nc.jpg,A horse" in told


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
    (tmp_path / "._val.csv").write_bytes(b"\x00\x05")  # a Mac leaves such
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


FOLDERS = {
    "captions.csv": ("a.jpg,x\n", True),
    "train.csv": ("image,text\na.jpg,A black dog runs\n", True),
    "labels.csv": ("image,label\na.jpg,dog\nb.jpg,fire engine\n", False),
    "boxes.csv": ("image,x0,y0,x1,y1\na.jpg,1,2,3,4\n", False),
    "notes.tsv": ("none", False),
    "results.token": ("", True),
    "captions_x.json": ("[", True),
    "dataset.json": ('{"sentences": 1}', True),
    "dataset_x.json": ('{"annotations": [{"bbox": 1}]}', False),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_captioned_or_not(tmp_path, name):
    text, expected = FOLDERS[name]
    assert not is_captioned(tmp_path)
    (tmp_path / name).write_text(text)
    assert is_captioned(tmp_path) == is_captioned(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"annotations": [{"caption": "A"}]}', True),
        ('{"annotations": [{"bbox": 1, "caption": "A"}]}', False),
        ("", False),
    ],
)
def test_a_json_of_any_name_is_looked_into(tmp_path, text, expected):
    (tmp_path / "x.json").write_text(text)
    assert is_captioned(tmp_path / "x.json") == expected
    assert not is_captioned(tmp_path)
    assert not is_captioned(tmp_path / "y.json")


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


def test_where_sentences_and_boxes_are_mixed_up(tmp_path):
    """Who gives the data of the one to a reader of the other is told so."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a dog runs on grass\n", encoding="utf-8")
    with pytest.raises(DataError, match="pictures with sentences, from which captioners learn"):
        find(tmp_path / "captions.csv")
    boxes = tmp_path / "boxes"
    (boxes / "images").mkdir(parents=True)
    (boxes / "labels").mkdir()
    (boxes / "classes.txt").write_text("dog\n", encoding="utf-8")
    with pytest.raises(DataError, match="from which detectors and classifiers learn"):
        read_captioned(boxes)
