"""Pascal VOC: the real sets' counts, the layouts, the names, and back again."""

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.clean import NO_BOX
from sightline.datasets.coco import read_coco
from sightline.datasets.readers import read_splits
from sightline.datasets.table import DataError
from sightline.datasets.voc import CATEGORIES, VocFolder, VocSplits, read_voc, write_voc

OBJECT = """<object>
    <name>{}</name><difficult>{}</difficult>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
    <bndbox><xmax>20</xmax><xmin>1</xmin><ymin>2.5</ymin><ymax>30</ymax></bndbox>
</object>"""


def annotate(folder, stem, *objects, filename="", size=True):
    folder.mkdir(parents=True, exist_ok=True)
    size = "<size><width>40</width><height>30</height></size>" if size else ""
    nodes = "".join(OBJECT.format(*found) for found in objects)
    (folder / f"{stem}.xml").write_text(f"<annotation><filename>{filename}</filename>{size}{nodes}</annotation>")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def test_what_a_mac_leaves_beside_files_is_passed_over(tmp_path):
    annotate(tmp_path / "Annotations", "a", ("cat", 0))
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    for name in ("Annotations/._a.xml", "JPEGImages/._a.jpg", "ImageSets/Main/._train.txt"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    table = read_voc(tmp_path)
    assert (VocFolder(tmp_path).splits, len(table), table.problems.counts) == (["train"], 1, {})


@pytest.mark.parametrize(
    ("split", "pictures", "objects", "dropped"),
    [
        ("train", 205, 2805, 1),
        ("val", 87, 1138, 1),
        ("trainval", 292, 3943, 2),
        ("test", 72, 945, 0),
        (None, 364, 4888, 2),
    ],
)
def test_bccd(real_data, split, pictures, objects, dropped):
    table = read_voc(real_data("bccd") / "BCCD", split)
    assert (len(table), len(table.image)) == (pictures, objects - dropped)
    assert table.problems.counts == ({NO_BOX: dropped} if dropped else {})
    assert table.categories == ["Platelets", "RBC", "WBC"]
    assert np.unique(table.sizes, axis=0).tolist() == [[480, 640]]


def test_bccd_names_the_line_of_a_bad_box(real_data):
    (first, second) = sorted(read_voc(real_data("bccd") / "BCCD").problems.repaired[NO_BOX])
    assert "BloodImage_00338.xml:158: object 13: x0 504, y0 337, x1 504, y1 337" in first
    assert "BloodImage_00343.xml:50: object 4" in second


def test_raccoon(real_data):
    table = read_voc(real_data("raccoon"))
    assert (len(table), len(table.image), table.categories, table.problems.counts) == (200, 217, ["raccoon"], {})
    row = next(row for row, path in enumerate(table.paths) if path.endswith("raccoon-54.jpg"))
    assert table.boxes[table.image == row].tolist() == [[78, 5, 517, 333]]  # as they stand in the file
    assert table.sizes[row].tolist() == [339, 602]


def test_objects(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    annotate(tmp_path / "Annotations", "a", ("dog", 1), ("cat", 0))
    table = read_voc(tmp_path)
    assert table.boxes.tolist() == [[1, 2.5, 20, 30]] * 2  # tags in any order; parts of objects are no objects
    assert [table.categories[label] for label in table.labels] == ["dog", "cat"]
    assert table.difficult.tolist() == [True, False]
    assert table.area.tolist() == [19 * 27.5] * 2


LAYOUTS = [
    ("devkit", "Annotations", "JPEGImages/a.jpg", ""),
    ("labelling tool", "annotations", "images/a.png", ""),
    ("side by side", ".", "a.jpeg", ""),
    ("by file name", "Annotations", "JPEGImages/other.jpg", "C:\\somewhere\\other.jpg"),
]


@pytest.mark.parametrize(("name", "annotations", "image", "filename"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_layouts(tmp_path, name, annotations, image, filename):
    picture(tmp_path / image)
    annotate(tmp_path / annotations, "a", ("dog", 0), filename=filename, size=False)
    for path in (tmp_path, tmp_path / annotations):
        table = read_voc(path)
        assert [len(table), len(table.image), table.sizes.tolist()] == [1, 1, [[30, 40]]]
        assert table.paths[0].endswith(image)


def test_categories_are_those_of_all_splits(tmp_path):
    for stem, name in (("a", "wolf"), ("b", "bear")):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotate(tmp_path / "Annotations", stem, (name, 0))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    (lists / "wolf_train.txt").write_text("a 1\n")
    voc = VocFolder(tmp_path)
    assert voc.splits == ["train", "val"]
    assert [(voc.read(s).categories, voc.read(s).labels.tolist()) for s in voc.splits] == [
        (["bear", "wolf"], [1]),
        (["bear", "wolf"], [0]),
    ]
    with pytest.raises(DataError, match=r"no list ImageSets/Main/test\.txt; there are train, val"):
        voc.read("test")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (CATEGORIES[:12], list(CATEGORIES)),
        (("person", "dog"), ["dog", "person"]),
        ((*CATEGORIES, "fox"), [*CATEGORIES, "fox"]),
    ],
)
def test_the_official_twenty(tmp_path, names, expected):
    picture(tmp_path / "a.jpg")
    annotate(tmp_path, "a", *[(name, 0) for name in names])
    assert read_voc(tmp_path).categories == sorted(expected)
    assert sorted(CATEGORIES) == list(CATEGORIES)


def test_given_categories_find_a_misspelt_one(tmp_path):
    picture(tmp_path / "a.jpg")
    annotate(tmp_path, "a", ("dog", 0), ("dgo", 0), ("", 0))
    table = read_voc(tmp_path, categories=["cat", "dog"])
    ((_, (misspelt, nameless)),) = table.problems.fatal.items()
    assert misspelt.endswith("'dgo'; did you mean 'dog'?")
    assert nameless.endswith("object 3: ''")


def test_listed_but_absent(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    annotate(tmp_path / "Annotations", "a", ("dog", 0))
    annotate(tmp_path / "Annotations", "c", ("dog", 0))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")
    assert set(read_voc(tmp_path, "train").problems.fatal) == {"annotation file is missing", "picture is missing"}


@pytest.mark.parametrize("text", ["<html></html>", "", "<annotation>", "\x00"])
def test_other_xml(tmp_path, text):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_text(text)
    annotate(tmp_path, "b", ("dog", 0))
    picture(tmp_path / "b.jpg")
    assert "a.xml" in read_voc(tmp_path).problems.fatal["annotation file is broken"][0]


def test_split_folders_share_categories(tmp_path):
    for split, name in (("train", "wolf"), ("valid", "bear")):
        picture(tmp_path / split / "a.jpg")
        annotate(tmp_path / split, "a", (name, 0))
    assert VocSplits(tmp_path).splits == ["train", "val"]
    tables = read_splits(tmp_path)
    assert [(t.categories, t.labels.tolist()) for t in tables.values()] == [
        (["bear", "wolf"], [1]),
        (["bear", "wolf"], [0]),
    ]


def test_coco_to_voc_and_back(real_data, tmp_path):
    table = read_coco(real_data("coco") / "instances_val2017.json")
    write_voc(table, tmp_path, "val")
    (tmp_path / "JPEGImages").symlink_to(real_data("coco") / "images")
    again = read_voc(tmp_path, "val")
    np.testing.assert_array_equal(again.boxes, table.boxes)
    np.testing.assert_array_equal(again.sizes, table.sizes)
    np.testing.assert_array_equal(again.image, table.image)
    np.testing.assert_array_equal(again.labels, table.labels)
    np.testing.assert_array_equal(again.difficult, table.crowd)
    assert again.categories == table.categories


def test_two_pictures_of_one_stem_cannot_be_written(real_data, tmp_path):
    table = read_coco(real_data("coco") / "instances_val2017.json").select([0, 1])
    table.paths = ["x/a.jpg", "y/a.png"]
    with pytest.raises(DataError, match=r"x/a\.jpg and y/a\.png"):
        write_voc(table, tmp_path, "val")
