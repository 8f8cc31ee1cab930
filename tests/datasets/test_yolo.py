"""YOLO's text labels: the layouts, boxes and polygons, and back again."""

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.coco import read_coco
from sightline.datasets.readers import read_splits
from sightline.datasets.table import DataError
from sightline.datasets.yolo import YoloFolder, label_file, read_yolo, write_yolo


def picture(path, lines="1 0.5 0.5 0.25 0.5\n"):
    """A 40x30 picture, and its labels unless `lines` is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)
    if lines is not None:
        label_file(path).parent.mkdir(parents=True, exist_ok=True)
        label_file(path).write_text(lines)


def test_box_and_polygon(tmp_path):
    picture(tmp_path / "images" / "a.jpg", "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.5 0.1 0.5 0.9\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: images\nnc: 2\n")
    table = read_yolo(tmp_path, "train")
    np.testing.assert_allclose(table.boxes, [[15, 7.5, 25, 22.5], [4, 3, 20, 27]], rtol=1e-6)
    np.testing.assert_allclose(table.area, [150, 16 * 24 / 2])  # the box's, and the triangle's
    assert (table.labels.tolist(), table.categories) == ([1, 0], ["cat", "dog"])
    assert table.segmentations[0] is None
    np.testing.assert_allclose(table.segmentations[1], [[4, 3, 20, 3, 20, 27]])


def test_a_polygon_that_sticks_out_is_clipped(tmp_path):
    picture(tmp_path / "images" / "a.jpg", "0 -0.5 0 0.5 0 0.5 1 -0.5 1\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images\n")
    table = read_yolo(tmp_path, "train")
    assert table.boxes.tolist() == [[0, 0, 20, 30]]
    assert (table.area.tolist(), table.segmentations) == ([600], [[[0, 0, 20, 0, 20, 30, 0, 30]]])


def test_what_a_mac_and_jupyter_leave_beside_files_is_passed_over(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    for name in ("images/._a.jpg", "labels/._a.txt", "._data.yaml", "images/.ipynb_checkpoints/a-checkpoint.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    table = read_yolo(tmp_path, "train")
    assert ([path[-5:] for path in table.paths], table.problems.counts) == (["a.jpg"], {})
    assert YoloFolder(tmp_path).orphans == []


YAMLS = [
    ("list", "names: [cat, dog]\ntrain: images/train\nval: images/val"),
    ("mapping", "names: {1: dog, 0: cat}\ntrain: images/train\nval: images/val"),
    ("path", "path: ../set\nnames: [cat, dog]\ntrain: images/train\nval: images/val"),
    ("gone path", "path: /nowhere/else\nnames: [cat, dog]\ntrain: images/train\nval: images/val"),
    ("wrong way up", "names: [cat, dog]\ntrain: ../images/train\nval: ../images/val"),
    ("lists of folders", "names: [cat, dog]\ntrain: [images/train]\nval: [images/val]"),
    ("list file", "names: [cat, dog]\ntrain: train.txt\nval: images/val"),
    ("no yaml", None),
]


@pytest.mark.parametrize(("name", "text"), YAMLS, ids=[row[0] for row in YAMLS])
def test_layouts(tmp_path, name, text):
    folder = tmp_path / "set"
    picture(folder / "images" / "train" / "a.jpg")
    picture(folder / "images" / "train" / "b.png", None)
    picture(folder / "images" / "val" / "c.jpg")
    (folder / "train.txt").write_text("./images/train/a.jpg\n./images/train/b.png\n")
    if text is None:
        (folder / "classes.txt").write_text("cat\ndog\n")
    else:
        (folder / "data.yaml").write_text(text)
    for path in [folder] if text is None else [folder, folder / "data.yaml"]:
        tables = read_splits(path)
        assert {split: [len(t), t.image.tolist()] for split, t in tables.items()} == {
            "train": [2, [0]],
            "val": [1, [0]],
        }
        assert tables["train"].categories == ["cat", "dog"]
        assert not tables["train"].problems.counts


def test_roboflow_and_flat_layouts(tmp_path):
    picture(tmp_path / "a" / "train" / "images" / "a.jpg")
    picture(tmp_path / "a" / "valid" / "images" / "b.jpg")
    (tmp_path / "a" / "data.yaml").write_text("names: [cat, dog]\ntrain: ../train/images\nval: ../valid/images")
    assert [len(t) for t in read_splits(tmp_path / "a").values()] == [1, 1]
    picture(tmp_path / "b" / "x.jpg")
    picture(tmp_path / "b" / "y.jpg")
    (tmp_path / "b" / "obj.names").write_text("cat\ndog\n")
    table = read_yolo(tmp_path / "b")
    assert (len(table), table.image.tolist()) == (2, [0, 1])


def test_label_files(tmp_path):
    for path, expected in [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("images/images/a.b.jpg", "images/labels/a.b.txt"),
        ("pictures/a.jpg", "pictures/a.txt"),
        ("images.jpg", "images.txt"),
    ]:
        assert label_file(tmp_path / path) == tmp_path / expected


FATAL_YAML = [
    ("no names", "train: images", "names must be a list"),
    ("gap in names", "names: {0: cat, 2: dog}\ntrain: images", "names must be a list"),
    ("mixed names", "names: {0: cat, b: dog}\ntrain: images", "names must be a list"),
    ("wrong nc", "names: [cat]\nnc: 3\ntrain: images", "nc is 3, but there are 1 names"),
    ("no pictures", "names: [cat]", "names no pictures"),
    ("missing folder", "names: [cat]\ntrain: imags", "'imags' is not there; looked for"),
    ("code", "names: !!python/object/apply:os.system ['echo ran']\ntrain: images", r"data\.yaml:1: broken yaml"),
    ("broken", "names: [cat\ntrain: images", r"data\.yaml:\d: broken yaml"),
    ("a list", "- cat", "names must be a list"),
]


@pytest.mark.parametrize(("name", "text", "message"), FATAL_YAML, ids=[row[0] for row in FATAL_YAML])
def test_bad_yaml(tmp_path, capfd, name, text, message):
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path)
    assert "ran" not in capfd.readouterr().out


FATAL_LINES = [
    ("score", "0 0.5 0.5 0.1 0.1 0.9", "looks like a score"),
    ("odd polygon", "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "neither"),
    ("too few", "0 0.5 0.5", "neither"),
    ("half a class", "0.5 0.5 0.5 0.1 0.1", "class 0.5, expected 0 to 1"),
    ("class too high", "2 0.5 0.5 0.1 0.1", "class 2, expected 0 to 1"),
    ("class too low", "-1 0.5 0.5 0.1 0.1", "class -1, expected 0 to 1"),
    ("class nan", "nan 0.5 0.5 0.1 0.1", "class nan"),
    ("words", "cat 0.5 0.5 0.1 0.1", "not all numbers"),
]


@pytest.mark.parametrize(("name", "line", "message"), FATAL_LINES, ids=[row[0] for row in FATAL_LINES])
def test_bad_lines(tmp_path, name, line, message):
    picture(tmp_path / "images" / "a.jpg", f"0 0.5 0.5 0.1 0.1\n{line}\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    table = read_yolo(tmp_path, "train")
    assert message in table.problems.summary()
    assert "a.txt:2" in table.problems.summary()
    assert table.problems.fatal


def test_two_pictures_with_one_label_file(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert "two pictures share one label file" in read_yolo(tmp_path).problems.fatal


def test_listed_picture_is_missing(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "train.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: train.txt\n")
    assert "b.jpg" in read_yolo(tmp_path, "train").problems.fatal["picture is missing"][0]


def test_no_names(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"no class names; write them to classes\.txt"):
        YoloFolder(tmp_path)


def test_coco_to_yolo_and_back(real_data, tmp_path):
    tables = {s: read_coco(real_data("coco") / f"instances_{s}2017.json") for s in ("train", "val")}
    for split, table in tables.items():
        write_yolo(table, tmp_path, split)
        (tmp_path / "images" / split).mkdir(parents=True)
        for path in table.paths:
            (tmp_path / "images" / split / path.rpartition("/")[2]).symlink_to(path)
    for split, again in read_splits(tmp_path).items():
        table = tables[split]
        keep = ~table.crowd  # which YOLO cannot say
        np.testing.assert_allclose(again.boxes, table.boxes[keep], atol=1e-3)
        np.testing.assert_array_equal(again.labels, table.labels[keep])
        order = np.argsort([path.rpartition("/")[2] for path in table.paths])
        np.testing.assert_array_equal(order[again.image], table.image[keep])
        np.testing.assert_array_equal(again.sizes, table.sizes[order])
        assert again.categories == table.categories
