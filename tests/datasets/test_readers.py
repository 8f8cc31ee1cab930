"""From a path alone: which format, which splits, and what is said when nothing fits."""

import json

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.checks import check
from sightline.datasets.coco import write_coco
from sightline.datasets.deeppcb import DeepPcbFolder
from sightline.datasets.readers import find, raise_if_fatal, read, read_splits
from sightline.datasets.splits import held_out, roles, without_unions
from sightline.datasets.table import DataError

REAL = [
    ("coco", {"train": (258, 2148), "val": (128, 987)}),
    ("bccd", {"train": (205, 2804), "val": (87, 1137), "test": (72, 945)}),
    ("bccd/BCCD", {"train": (205, 2804), "val": (87, 1137), "test": (72, 945)}),
    ("bccd/BCCD/Annotations", {"train": (205, 2804), "val": (87, 1137), "test": (72, 945)}),
    ("deeppcb", {"train": (1000, 6873), "val": (500, 3140), "test": (500, 3140)}),
    ("mnist", {"train": (60000, 60000), "val": (10000, 10000), "test": (10000, 10000)}),
    ("flickr8k", {"train": (6000, 0), "val": (1000, 0), "test": (1000, 0)}),  # pictures alone
]


def counts(tables):
    return {split: (len(table), len(table.image)) for split, table in tables.items()}


@pytest.mark.parametrize(("name", "expected"), REAL, ids=[row[0] for row in REAL])
def test_real_sets(real_data, name, expected):
    tables = read_splits(real_data(name))
    assert counts(tables) == expected
    assert len({tuple(table.categories) for table in tables.values()}) == 1


def test_named_splits(real_data):
    tables = read_splits(real_data("bccd"), train="trainval", val="test")
    assert counts(tables) == {"train": (292, 3941), "val": (72, 945), "test": (72, 945)}
    assert not any(table.problems.warned for table in tables.values())  # it was asked for
    with pytest.raises(DataError, match=r"no split 'tset'; there are .*; did you mean 'test'\?"):
        read_splits(real_data("bccd"), val="tset")


def test_deeppcb(real_data):
    tables = read_splits(real_data("deeppcb"))
    train, val = tables["train"], tables["val"]
    assert val is tables["test"]
    assert any("validated on" in kind for kind in val.problems.warned)
    assert train.categories == ["open", "short", "mousebite", "spur", "copper", "pin-hole"]
    assert np.unique(train.sizes, axis=0).tolist() == [[640, 640]]
    row = next(row for row, path in enumerate(train.paths + val.paths) if path.endswith("20085291_test.png"))
    table, row = (train, row) if row < len(train) else (val, row - len(train))
    first = table.offsets[row]
    assert (table.boxes[first].tolist(), table.labels[first]) == ([263, 63, 299, 90], 0)
    assert len(DeepPcbFolder(real_data("deeppcb")).read()) == 1500


def test_deeppcb_bad_lines(tmp_path):
    (tmp_path / "group1").mkdir()
    Image.new("1", (64, 64)).save(tmp_path / "group1" / "a_test.png")
    (tmp_path / "group1" / "a.txt").write_text("1 2 9 9 1\n1 2 9\n1,2,9,9,7\n1 2 9 x 1\n3,4,8,8,6\n")
    (tmp_path / "trainval.txt").write_text("group1/a.jpg group1/a.txt\ngroup1/b.jpg group1/b.txt\njunk\n")
    (tmp_path / "test.txt").write_text("group1/a.jpg group1/c.txt\n")
    source = DeepPcbFolder(tmp_path)
    table = source.read("trainval")
    assert (table.boxes.tolist(), table.labels.tolist()) == ([[1, 2, 9, 9], [3, 4, 8, 8]], [0, 5])
    summary = table.problems.summary()
    for place in (
        "a.txt:2",
        "a.txt:3: type 7, expected 1 to 6",
        "a.txt:4",
        "trainval.txt:2: no ",
        "trainval.txt:3: 'junk'",
    ):
        assert place in summary
    assert "annotation file cannot be read" in source.read("test").problems.fatal
    with pytest.raises(DataError, match="no split 'val'"):
        source.read("val")


def test_read_takes_own_names_and_roles(real_data):
    assert len(read(real_data("deeppcb"), "trainval")) == 1000
    assert len(read(real_data("deeppcb"), "val")) == 500
    assert len(read(real_data("coco") / "instances_val2017.json")) == 128
    held = read(real_data("raccoon"), "val")
    assert held.paths == read_splits(real_data("raccoon"))["val"].paths
    with pytest.raises(DataError, match="has the splits train, val: choose one"):
        read(real_data("coco"))
    with pytest.raises(DataError, match=r"no split 'vall'.*did you mean 'val'"):
        read(real_data("coco"), "vall")


def test_one_split_is_divided_by_hash(real_data):
    tables = read_splits(real_data("raccoon"))
    assert counts(tables).keys() == {"train", "val"}
    assert len(tables["train"]) + len(tables["val"]) == 200
    assert 25 <= len(tables["val"]) <= 55
    assert not set(tables["train"].paths) & set(tables["val"].paths)
    assert len(tables["train"].image) + len(tables["val"].image) == 217
    again, other = read_splits(real_data("raccoon")), read_splits(real_data("raccoon"), seed=1)
    assert again["val"].paths == tables["val"].paths != other["val"].paths
    assert any("held out" in kind for kind in tables["train"].problems.warned)
    assert tables["val"].paths[0] in tables["train"].problems.summary()


def test_hash_split_is_stable_when_pictures_are_added():
    names = [f"{number}.jpg" for number in range(1000)]
    few, many = held_out(names[:500], 0.2, 0), held_out(names, 0.2, 0)
    np.testing.assert_array_equal(few, many[:500])
    assert 150 < many.sum() < 250
    for fraction in (1e-9, 1 - 1e-9):  # never one side empty
        assert sorted(held_out(["a", "b"], fraction, 0).tolist()) == [False, True]
    with pytest.raises(DataError, match="val_fraction"):
        held_out(names, 1, 0)


ROLES = [
    # the splits there are, what was named, and what each role gets
    (["train", "val"], {}, {"train": "train", "val": "val"}),
    (["train", "val", "trainval", "test"], {}, {"train": "train", "val": "val", "test": "test"}),
    (["trainval", "test"], {}, {"train": "trainval", "val": "test", "test": "test"}),
    (["train", "test"], {}, {"train": "train", "val": "test", "test": "test"}),
    (["train", "val", "trainval", "test"], {"train": "trainval"}, {"train": "trainval", "val": "test", "test": "test"}),
    (["val", "trainval"], {}, {"train": "trainval"}),  # val is part of trainval: held out by hash instead
    (["train"], {}, {"train": "train"}),
    (["test"], {}, {"train": "test"}),
    (["a", "b"], {"train": "a", "val": "b"}, {"train": "a", "val": "b"}),
]


@pytest.mark.parametrize(("splits", "named", "expected"), ROLES)
def test_roles(splits, named, expected):
    assert roles(splits, "here", **named) == expected


def test_no_split_for_training():
    with pytest.raises(DataError, match="which of val, test is for training"):
        roles(["val", "test"], "here")


def test_unions_are_left_out():
    assert without_unions(["train", "val", "trainval", "test"]) == ["train", "val", "test"]
    assert without_unions(["trainval", "test"]) == ["trainval", "test"]


def test_nothing_recognised_says_what_was_looked_for_and_found(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.csv").write_text("")
    (tmp_path / "more").mkdir()
    with pytest.raises(DataError) as raised:
        find(tmp_path)
    message = str(raised.value)
    for expected in ("COCO", "Pascal VOC", "YOLO", "DeepPCB", "0.csv, 1.csv", "(11 entries)"):
        assert expected in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="but here is nothing"):
        find(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no such file or folder; did you mean 'empty'\?"):
        find(tmp_path / "emty")
    with pytest.raises(DataError, match="the built-in shapes are drawn when they are needed"):
        find("shapes")
    with pytest.raises(DataError, match=r"\.json or YOLO's \.yaml, not \.csv"):
        find(tmp_path / "0.csv")


def test_two_data_sets_in_one_folder(real_data, tmp_path):
    for name in ("coco", "raccoon"):
        (tmp_path / name).symlink_to(real_data(name))
    with pytest.raises(DataError, match=r"more than one data set is here: Coco \(.*coco\), Voc"):
        find(tmp_path)


def test_splits_must_share_categories(real_data, tmp_path):
    table = read(real_data("coco"), "val")
    write_coco(table, tmp_path / "instances_val.json")
    table.categories = [*table.categories[:-1], "tooth brush"]
    write_coco(table, tmp_path / "instances_train.json")
    with pytest.raises(DataError, match="categories of train and val differ: tooth brush, toothbrush"):
        read_splits(tmp_path)
    assert "categories of two splits differ" in check(tmp_path, progress=False).fatal


def test_fatal_tables_raise_with_everything(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    annotations = [
        {"image_id": 1, "category_id": c, "bbox": b} for c, b in ((1, [1, 1, 5, 5]), (9, [1, 1, 5, 5]), (1, "x"))
    ]
    document = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    (tmp_path / "x.json").write_text(json.dumps(document | {"categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(DataError) as raised:
        read(tmp_path)
    assert "annotations[1]" in str(raised.value)
    assert "annotations[2]" in str(raised.value)
    raise_if_fatal()


def test_a_single_picture_cannot_be_split(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    annotation = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    document = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation]}
    (tmp_path / "x.json").write_text(json.dumps(document | {"categories": [{"id": 1, "name": "cat"}]}))
    assert len(read(tmp_path)) == 1
    with pytest.raises(DataError, match="only picture"):
        read_splits(tmp_path)
