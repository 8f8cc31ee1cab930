"""COCO: against pycocotools, and back again."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.coco import CocoFolder, read_coco, split_of, write_coco
from sightline.datasets.table import DataError


def quiet_coco(path):
    coco = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        return coco.COCO(str(path))


def small(tmp_path, **changes):
    """A json of two pictures and two objects beside them, with some keys of the document replaced."""
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    document = {
        "images": [{"id": 20, "file_name": "a.jpg", "height": 30, "width": 40}, {"id": 10, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 55.5, "iscrowd": 1},
            {"id": 2, "image_id": 20, "category_id": 1, "bbox": [0.5, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4]]},
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(document | changes))
    return path


def test_columns(tmp_path):
    table = read_coco(small(tmp_path))
    assert (table.categories, table.category_ids.tolist()) == (["cat", "dog"], [1, 3])
    assert table.image_ids.tolist() == [20, 10]
    assert table.sizes.tolist() == [[30, 40], [30, 40]]  # the second from the picture's header
    assert table.image.tolist() == [0, 1]
    assert table.boxes.tolist() == [[0.5, 0, 4.5, 4], [1, 2, 11, 22]]
    assert (table.labels.tolist(), table.crowd.tolist()) == ([0, 1], [False, True])
    assert table.area.tolist() == [16, 55.5]
    assert table.segmentations == [[[0, 0, 4, 0, 4, 4]], None]
    assert table.problems.summary() == ""


@pytest.mark.parametrize(("split", "pictures", "objects"), [("train", 258, 2148), ("val", 128, 987)])
def test_real_set_agrees_with_pycocotools(real_data, split, pictures, objects):
    path = real_data("coco") / f"instances_{split}2017.json"
    table, coco = read_coco(path), quiet_coco(path)
    assert (len(table), len(table.image), table.problems.counts) == (pictures, objects, {})
    assert table.categories == [c["name"] for c in coco.loadCats(sorted(coco.getCatIds()))]
    offsets = table.offsets
    for row, image_id in enumerate(table.image_ids.tolist()):
        annotations = coco.loadAnns(coco.getAnnIds([image_id]))
        mine = slice(offsets[row], offsets[row + 1])
        boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4) @ [
            [1, 0, 1, 0],
            [0, 1, 0, 1],
            [0, 0, 1, 0],
            [0, 0, 0, 1],
        ]
        np.testing.assert_allclose(table.boxes[mine], boxes, atol=0.01)
        assert table.category_ids[table.labels[mine]].tolist() == [a["category_id"] for a in annotations]
        assert table.area[mine].tolist() == [a["area"] for a in annotations]
        assert table.segmentations[mine] == [a["segmentation"] for a in annotations]


def test_round_trip_is_equal(real_data, tmp_path):
    table = read_coco(real_data("coco") / "instances_val2017.json")
    write_coco(table, tmp_path / "deep" / "again.json")
    again = read_coco(tmp_path / "deep" / "again.json")
    for name in ("image_ids", "sizes", "image", "boxes", "labels", "area", "crowd", "difficult", "category_ids"):
        np.testing.assert_array_equal(getattr(table, name), getattr(again, name), err_msg=name)
    assert again.segmentations == table.segmentations
    assert (again.categories, again.paths) == (table.categories, table.paths)
    coco = quiet_coco(tmp_path / "deep" / "again.json")
    assert len(coco.getAnnIds()) == 987


def test_difficult_survives(tmp_path):
    table = read_coco(small(tmp_path))
    table.difficult[1] = True
    write_coco(table, tmp_path / "again.json")
    assert read_coco(tmp_path / "again.json").difficult.tolist() == [False, True]
    assert json.loads((tmp_path / "again.json").read_text())["images"][0]["file_name"] == "a.jpg"


@pytest.mark.parametrize(
    ("folder", "file_name"),
    [("", "a.jpg"), ("images", "a.jpg"), ("train2017", "a.jpg"), ("images/train", "a.jpg"), ("images", "images/a.jpg")],
)
def test_image_folder_is_found_around_the_json(tmp_path, folder, file_name):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(tmp_path / folder / "a.jpg")
    (tmp_path / "annotations").mkdir()
    for path in (tmp_path / "instances_train2017.json", tmp_path / "annotations" / "instances_train2017.json"):
        small(tmp_path / "annotations").rename(path)
        document = json.loads(path.read_text())
        document["images"] = [{"id": i, "file_name": file_name.replace("a", x)} for i, x in ((20, "a"), (10, "b"))][:1]
        path.write_text(json.dumps(document))
        for stray in ("a.jpg", "b.jpg"):
            (tmp_path / "annotations" / stray).unlink()
        table = read_coco(path)
        assert table.paths[0].endswith("a.jpg")
        assert table.problems.counts == {"annotation of an image the file does not list (dropped)": 1}


def test_no_pictures_says_where_it_looked(tmp_path):
    path = small(tmp_path)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"such as 'a\.jpg'.*in none of"):
        read_coco(path)


def image(**changes):
    return {"id": 20, "file_name": "a.jpg", "height": 30, "width": 40} | changes


def annotation(**changes):
    return {"id": 1, "image_id": 20, "category_id": 3, "bbox": [1, 2, 10, 20]} | changes


FATAL = [
    ("image id twice", {"images": [image(), image(file_name="b.jpg")]}, "image id used twice"),
    ("image id of no number", {"images": [image(), image(id="x", file_name="b.jpg")]}, "image id is not"),
    ("image id too large", {"images": [image(), image(id=2**70, file_name="b.jpg")]}, "image id is not"),
    ("no file name", {"images": [image(), {"id": 3}]}, "image file_name is not"),
    ("category twice", {"categories": [{"id": 3, "name": "x"}, {"id": 3, "name": "y"}]}, "category id used twice"),
    ("three numbers", {"annotations": [annotation(), annotation(id=2, bbox=[1, 2, 3])]}, "bbox is not four numbers"),
    (
        "too large",
        {"annotations": [annotation(), annotation(id=2, bbox=[10**400, 2, 3, 4])]},
        "bbox is not four numbers",
    ),
    (
        "no bbox",
        {"annotations": [annotation(), {"id": 2, "image_id": 20, "category_id": 3}]},
        "bbox is not four numbers",
    ),
    ("no category", {"annotations": [annotation(), annotation(id=2, category_id=None)]}, "category is not among"),
    ("missing picture", {"images": [image(), image(id=4, file_name="c.jpg")]}, "picture is missing"),
]


def test_an_area_too_large_for_a_float_is_unknown(tmp_path):
    assert read_coco(small(tmp_path, annotations=[annotation(area=10**400)])).area.tolist() == [200]


@pytest.mark.parametrize(("name", "changes", "kind"), FATAL, ids=[row[0] for row in FATAL])
def test_fatal(tmp_path, name, changes, kind):
    table = read_coco(small(tmp_path, **changes))
    assert any(kind in found for found in table.problems.fatal), table.problems.summary()


def test_repaired_ids_and_names(tmp_path):
    table = read_coco(small(tmp_path, annotations=[annotation(), annotation(), annotation(id=2, image_id=999)]))
    assert not table.problems.fatal
    assert table.problems.counts == {
        "annotation id used twice (renumbered)": 1,
        "annotation of an image the file does not list (dropped)": 1,
    }
    assert len(table.image) == 2
    table = read_coco(small(tmp_path, categories=[{"id": 1, "name": "cat"}, {"id": 3, "name": "cat"}]))
    assert table.categories == ["cat", "cat (3)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds a list"),
        ('{"images": [], "annotations": 3}', "under 'annotations'"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "a dog"}]}', "instances_"),
        ('{"images": [], "annotations": [5], "categories": []}', "under 'annotations'"),
        ("\xff\xfe", "broken json"),
        ("", "broken json"),
    ],
)
def test_other_files(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path / "x.json")


def test_a_stated_size_is_checked_against_a_sample_only(tmp_path, monkeypatch):
    from sightline.datasets import clean

    small(tmp_path)
    read = []
    monkeypatch.setattr(clean, "read_header", lambda path, real=clean.read_header: read.append(path) or real(path))
    monkeypatch.setattr(clean, "HEADERS", 1)
    images = [image(), image(id=10, file_name="b.jpg")]
    assert read_coco(small(tmp_path, images=images)).problems.counts == {}
    assert [path[-5:] for path in read] == ["a.jpg"]
    images[0]["width"] = 41  # one of the sample disagrees: all are read
    assert read_coco(small(tmp_path, images=images)).problems.counts == {clean.WRONG_SIZE: 1}
    assert sorted(path[-5:] for path in read[1:]) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("instances_train2017.json", "train"), ("instances_val2017.json", "val"), ("my-test.json", "test"),
        ("valid/_annotations.coco.json", "val"), ("trainval.json", "trainval"), ("retrained.json", "retrained"),
    ],
)  # fmt: skip
def test_split_names(tmp_path, path, split):
    assert split_of(tmp_path / "x" / path) == split


def test_two_jsons_of_one_split(tmp_path):
    for name in ("a_train.json", "b_train.json"):
        small(tmp_path).rename(tmp_path / name)
    with pytest.raises(DataError, match=r"a_train\.json and b_train\.json"):
        CocoFolder(tmp_path)


@pytest.mark.parametrize("width", [2**70, -5, 0, "40", 40.0, None])
def test_a_size_that_is_none_is_read_from_the_picture(tmp_path, width):
    images = [image(width=width), image(id=10, file_name="b.jpg")]
    table = read_coco(small(tmp_path, images=images))
    assert (table.sizes.tolist(), table.problems.counts) == ([[30, 40], [30, 40]], {})
