"""Every kind of bad annotation, in each of three formats: what is repaired is counted, what is fatal is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.datasets import clean
from sightline.datasets.checks import check
from sightline.datasets.readers import find, raise_if_fatal, read_splits
from sightline.datasets.table import DataError

WIDTH, HEIGHT = 40, 30
CATEGORIES = ["cat", "dog"]
GOOD = ("cat", 5, 5, 15, 20)
Object = tuple  # (category, x0, y0, x1, y1)
NAN, INF = float("nan"), float("inf")


def picture(path: Path, size=(WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)


def write_coco_set(folder: Path, images: dict[str, list[Object]]) -> None:
    document = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": 7 + i, "name": name} for i, name in enumerate(CATEGORIES)]
    ids = {name: 7 + i for i, name in enumerate(CATEGORIES)}
    for i, (name, objects) in enumerate(images.items()):
        document["images"].append({"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
        for category, x0, y0, x1, y1 in objects:
            corners = [x0, y0, x1, y1]
            bbox = corners if any(isinstance(c, str) for c in corners) else [x0, y0, x1 - x0, y1 - y0]
            row = {"image_id": i, "category_id": ids.get(category, 99), "bbox": bbox}
            document["annotations"].append({"id": len(document["annotations"]), **row})
    (folder / "instances.json").write_text(json.dumps(document))


def write_voc_set(folder: Path, images: dict[str, list[Object]]) -> None:
    (folder / "Annotations").mkdir()
    (folder / "classes.txt").write_text("\n".join(CATEGORIES))
    for name, objects in images.items():
        nodes = "".join(
            f"\n<object><name>{category}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for category, x0, y0, x1, y1 in objects
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{nodes}\n</annotation>")


def write_yolo_set(folder: Path, images: dict[str, list[Object]]) -> None:
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("\n".join(CATEGORIES))
    for name, objects in images.items():
        lines = []
        for category, x0, y0, x1, y1 in objects:
            label = CATEGORIES.index(category) if category in CATEGORIES else 99
            values = [x0, y0, x1, y1]
            if not any(isinstance(v, str) for v in values):
                values = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
            lines.append(" ".join(map(str, [label, *values])))
        (folder / "labels" / f"{name}.txt").write_text("\n".join(lines))


FORMATS = {
    "coco": (write_coco_set, "images", "instances.json"),
    "voc": (write_voc_set, "JPEGImages", "a.xml:3"),
    "yolo": (write_yolo_set, "images", "a.txt:2"),
}


@pytest.fixture(params=FORMATS)
def make(request, tmp_path):
    """A function that writes pictures a, b, ... with these objects in one of the formats, and returns the folder.

    Its `where` is what a message about the second object of picture a names; `pictures` is where the pictures lie.
    """
    write, pictures, where = FORMATS[request.param]

    def make(images: dict[str, list[Object]]) -> Path:
        for name in images:
            picture(tmp_path / pictures / f"{name}.png")
        write(tmp_path, images)
        return tmp_path

    make.where, make.pictures, make.format = where, tmp_path / pictures, request.param
    return make


def read(folder: Path):
    source = find(folder)
    return source.read(source.splits[0] if source.splits else None)


REPAIRED = [
    # name, box, kind, what is left
    ("zero width", (9, 5, 9, 12), clean.NO_BOX, None),
    ("zero height", (9, 5, 12, 5), clean.NO_BOX, None),
    ("negative width", (12, 5, 9, 12), clean.NO_BOX, None),
    ("partly outside", (-4, 5, 9, 44), clean.CLIPPED, (0, 5, 9, 30)),
    ("wholly outside", (41, 5, 55, 12), clean.OUTSIDE, None),
    ("outside, touching", (40, 5, 55, 12), clean.OUTSIDE, None),
    ("nan", (NAN, 5, 9, 12), clean.NOT_FINITE, None),
    ("infinite", (5, 5, 9, INF), clean.NOT_FINITE, None),
]


@pytest.mark.parametrize(("name", "box", "kind", "left"), REPAIRED, ids=[row[0] for row in REPAIRED])
def test_bad_boxes_are_repaired_and_counted(make, name, box, kind, left):
    table = read(make({"a": [GOOD, ("dog", *box)], "b": [GOOD]}))
    assert table.problems.counts == {kind: 1}
    assert make.where in table.problems.repaired[kind][0]
    assert not table.problems.fatal
    expected = [GOOD[1:], GOOD[1:]] if left is None else [GOOD[1:], left, GOOD[1:]]
    np.testing.assert_allclose(table.boxes, expected, atol=1e-4)
    assert table.image.tolist() == ([0, 1] if left is None else [0, 0, 1])
    raise_if_fatal(table)


FATAL = [
    ("not a number", ("dog", "5", "x", "9", "12"), ("four numbers", "all numbers")),
    ("empty coordinate", ("dog", "5", "", "9", "12"), ("four numbers", "neither")),
    ("unknown category", ("horse", 5, 5, 9, 12), ("category is not among",)),
]


@pytest.mark.parametrize(("name", "bad", "words"), FATAL, ids=[row[0] for row in FATAL])
def test_what_cannot_be_repaired_is_fatal_and_named(make, name, bad, words):
    folder = make({"a": [GOOD, bad], "b": [GOOD]})
    table = read(folder)
    ((kind, examples),) = table.problems.fatal.items()
    assert any(word in kind for word in words)
    assert make.where in examples[0]
    with pytest.raises(DataError, match="cannot be used"):
        read_splits(folder)


def test_picture_without_objects_is_a_legal_negative(make):
    table = read(make({"a": [GOOD], "b": []}))
    assert (len(table), table.image.tolist(), table.problems.counts) == (2, [0], {})


def test_no_objects_at_all_is_fatal(make):
    table = read(make({"a": [], "b": []}))
    assert any("no objects left" in kind for kind in table.problems.fatal)


def test_all_boxes_dropped_asks_for_the_unit(make):
    table = read(make({"a": [("cat", 400, 300, 500, 400)]}))
    assert any("right unit" in kind for kind in table.problems.fatal)


def test_truncated_picture_is_found_by_check(make):
    folder = make({"a": [GOOD], "b": [GOOD]})
    file = make.pictures / "b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-200])
    problems = check(folder, progress=False)
    assert problems.counts[clean.UNREADABLE] == 1
    assert "b.png" in problems.fatal[clean.UNREADABLE][0]


def test_unreadable_picture_stops_before_training(make):
    folder = make({"a": [GOOD], "b": [GOOD]})
    (make.pictures / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png: not a picture"):
        read_splits(folder)
    assert check(folder, progress=False).counts[clean.UNREADABLE] == 1


def test_missing_picture(make):
    folder = make({"a": [GOOD], "b": [GOOD]})
    (make.pictures / "b.png").unlink()
    if make.format == "yolo":  # there a folder of pictures is the list, and what is left over is a label file
        assert check(folder, progress=False).warned["label file without a picture (ignored)"][0].endswith("b.txt")
    else:
        assert any("missing" in kind and "b" in where[0] for kind, where in read(folder).problems.fatal.items())


def test_picture_of_another_size_than_stated(make):
    folder = make({"a": [GOOD, ("dog", 5, 5, 39, 29)]})
    picture(make.pictures / "a.png", (WIDTH - 10, HEIGHT))
    table = read(folder)
    assert table.sizes.tolist() == [[HEIGHT, WIDTH - 10]]
    assert table.boxes[:, 2].max() <= WIDTH - 10
    assert make.format == "yolo" or table.problems.counts[clean.WRONG_SIZE] == 1  # YOLO states no size


def test_boxes_drawn_before_the_exif_rotation_are_fatal(make):
    folder = make({"a": [GOOD]})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(make.pictures / "a.png", exif=exif)
    table = read(folder)
    assert table.sizes.tolist() == [[WIDTH, HEIGHT]]
    assert make.format == "yolo" or any("EXIF" in kind for kind in table.problems.fatal)


def test_broken_file_names_its_line(make):
    folder = make({"a": [GOOD]})
    broken = {
        "coco": ("instances.json", '{"images": [],\n "annotations": [}', "line 2"),
        "voc": ("Annotations/a.xml", "<annotation>\n<object></annotation>", "a.xml:2"),
        "yolo": ("data.yaml", "names: [cat]\ntrain: [images", "data.yaml:2"),
    }
    name, text, expected = broken[make.format]
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        read_splits(folder / name if make.format == "coco" else folder)


def test_empty_data_set(make):
    folder = make({"a": [GOOD]})
    if make.format == "coco":
        (folder / "instances.json").write_text(
            json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]})
        )
    elif make.format == "voc":
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        (folder / "ImageSets" / "Main" / "train.txt").write_text("")
    else:
        (make.pictures / "a.png").unlink()
    with pytest.raises(DataError, match="is empty"):
        read(folder)


def test_picture_listed_twice(make):
    folder = make({"a": [GOOD], "b": [GOOD]})
    if make.format == "coco":
        document = json.loads((folder / "instances.json").read_text())
        document["images"][1]["id"] = 0
        (folder / "instances.json").write_text(json.dumps(document))
        assert "image id used twice" in read(folder).problems.fatal
        return
    if make.format == "voc":
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\na\n")
    else:
        (folder / "list.txt").write_text("images/a.png\nimages/b.png\nimages/a.png\n")
        (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: list.txt")
    table = read(folder)
    assert len(table) == 2
    assert table.problems.counts == {"picture listed twice (kept once)": 1}


def test_list_that_is_no_text(make):
    folder = make({"a": [GOOD], "b": [GOOD]})
    if make.format == "coco":
        name = "instances.json"
    else:
        name = "classes.txt"
    (folder / name).write_bytes(b"c\xff\xfe\x00at")
    with pytest.raises(DataError, match=name):
        read_splits(folder / name if make.format == "coco" else folder)


def test_many_problems_are_one_short_summary(make):
    table = read(make({"a": [GOOD, *[("dog", 50, 5, 60, 12)] * 9]}))
    summary = table.problems.summary()
    assert f"{clean.OUTSIDE}: 9" in summary
    assert "and 4 more" in summary
