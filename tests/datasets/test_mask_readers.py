"""Masks of objects in picture files: three layouts, recognised from the path alone, and what is said of bad ones."""

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.checks import check
from sightline.datasets.coco import read_coco, write_coco
from sightline.datasets.data_module import DetectionData
from sightline.datasets.instance_files import read_ids
from sightline.datasets.mask_encoding import from_coco
from sightline.datasets.readers import find, read, read_splits
from sightline.datasets.table import DataError


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def numbered(*objects, size=(40, 50), dtype=np.uint16):
    """A picture in which each (number, y0, x0, y1, x1) is drawn."""
    picture = np.zeros(size, dtype)
    for number, y0, x0, y1, x1 in objects:
        picture[y0:y1, x0:x1] = number
    return picture


SCENES = {
    "b": numbered((1, 2, 3, 12, 9), (2, 20, 30, 40, 50)),
    "a": numbered((7, 0, 0, 40, 5), (300, 5, 10, 6, 11), (9, 30, 30, 35, 40)),
    "c": numbered(),
    "d": numbered((1, 1, 1, 4, 4)),
    "e": numbered((2, 1, 1, 4, 4), (1, 9, 9, 14, 14)),
    "f": numbered((3, 1, 1, 4, 4), (3, 20, 20, 24, 26)),  # one object in two pieces
}


def write_maps(root, scenes=SCENES, *, masks="masks", pictures="images"):
    for name, picture in scenes.items():
        noise = np.random.default_rng(len(name)).integers(0, 255, (*picture.shape, 3)).astype(np.uint8)
        save(root / pictures / f"{name}.png", noise)
        save(root / masks / f"{name}.png", picture)
    return root


def write_files(root, scenes=SCENES):
    for name, picture in scenes.items():
        save(root / name / "images" / f"{name}.png", np.zeros((*picture.shape, 4), np.uint8))
        for number in np.unique(picture[picture > 0]):
            save(root / name / "masks" / f"{number:05}.png", np.where(picture == number, 255, 0).astype(np.uint8))
    return root


def drawn(table):
    """From picture's name to the masks of its objects."""
    masks = from_coco(table.segmentations or [], table.sizes[table.image])
    found = {path.rpartition("/")[2].removesuffix(".png"): [] for path in table.paths}
    for k, row in enumerate(table.image):
        found[table.paths[row].rpartition("/")[2].removesuffix(".png")].append(masks.pixels(k))
        np.testing.assert_array_equal(table.boxes[k], masks.boxes[k])
        assert table.area[k] == masks.areas[k]
    return found


def assert_holds(table, names):
    found = drawn(table)
    assert sorted(found) == sorted(names)
    for name in names:
        numbers = np.unique(SCENES[name][SCENES[name] > 0])
        assert len(found[name]) == len(numbers)
        for mask, number in zip(found[name], numbers, strict=True):
            np.testing.assert_array_equal(mask, SCENES[name] == number)


def test_a_file_of_numbers_for_each_picture(tmp_path):
    source = find(write_maps(tmp_path))
    assert source.splits == ["train", "test"]
    assert_holds(source.read("test"), ["a", "f"])
    table = source.read("train")
    assert_holds(table, ["b", "c", "d", "e"])
    assert (table.categories, set(table.labels)) == (["object"], {0})
    assert not table.problems.counts


def test_a_file_for_each_object(tmp_path):
    scenes = {name: picture for name, picture in SCENES.items() if picture.any()}
    source = find(write_files(tmp_path, scenes))
    assert_holds(source.read("train"), ["b", "d", "e", "f"])
    assert_holds(source.read("test"), ["a"])


def test_few_pictures_are_one_split(tmp_path):
    scenes = {name: SCENES[name] for name in "abcd"}
    assert_holds(read(write_maps(tmp_path / "maps", scenes)), list("abcd"))
    del scenes["c"]
    assert_holds(read(write_files(tmp_path / "files", scenes)), list("abd"))


def test_splits_in_folders_and_a_name(tmp_path):
    for split, names in (("train", "abc"), ("valid", "def")):
        write_maps(tmp_path / split, {name: SCENES[name] for name in names})
    (tmp_path / "classes.txt").write_text("nucleus\n")
    tables = read_splits(tmp_path)
    assert list(tables) == ["train", "val"]
    assert_holds(tables["train"], list("abc"))
    assert_holds(tables["val"], list("def"))
    assert tables["val"].categories == ["nucleus"]
    (tmp_path / "classes.txt").write_text("nucleus\ncell\n")
    with pytest.raises(DataError, match="name one, got 2"):
        read_splits(tmp_path)


def test_numbers_of_eight_bits(tmp_path):
    """Taken for objects where they are counted through in each picture, or the folder says so."""
    counted = {
        name: numbered(*[(k + 1, k, 0, k + 1, 9) for k in range(n)], dtype=np.uint8)
        for name, n in zip("abc", (3, 0, 5), strict=True)
    }
    assert [len(masks) for masks in drawn(read(write_maps(tmp_path / "one", counted))).values()] == [3, 0, 5]
    gaps = {name: picture * 2 for name, picture in counted.items()}
    with pytest.raises(DataError, match="no data set recognised"):
        read(write_maps(tmp_path / "two", gaps))
    same = dict.fromkeys("abc", counted["a"])
    with pytest.raises(DataError, match="no data set recognised"):
        read(write_maps(tmp_path / "three", same))
    assert [len(masks) for masks in drawn(read(write_maps(tmp_path / "four", gaps, masks="instances"))).values()] == [
        3,
        0,
        5,
    ]


def write_voc(root, *, classes=True):
    objects = numbered((1, 2, 3, 12, 9), (2, 20, 30, 40, 50), (255, 12, 3, 13, 9), (4, 0, 40, 5, 50), dtype=np.uint8)
    kinds = numbered((15, 2, 3, 12, 9), (2, 2, 3, 4, 9), (20, 20, 30, 40, 50), (255, 0, 40, 5, 50), dtype=np.uint8)
    for name in ("2007_1", "2007_2"):
        save(root / "JPEGImages" / f"{name}.jpg", np.zeros((40, 50, 3), np.uint8))
        save(root / "SegmentationObject" / f"{name}.png", objects)
        if classes:
            save(root / "SegmentationClass" / f"{name}.png", kinds)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n\n")
    return objects


def test_pascal_voc(tmp_path):
    objects = write_voc(tmp_path)
    tables = read_splits(tmp_path)
    assert [table.paths[0][-10:] for table in tables.values()] == ["2007_1.jpg", "2007_2.jpg"]
    table = tables["val"]
    assert [table.categories[label] for label in table.labels] == ["person", "tvmonitor"]
    masks = from_coco(table.segmentations, table.sizes[table.image])
    for row, number in enumerate((1, 2)):
        np.testing.assert_array_equal(masks.pixels(row), objects == number)
    assert table.problems.counts == {"object without a category (dropped)": 1}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["colours", "16 bits"])
def test_pascal_voc_with_categories_that_are_no_numbers_of_8_bits(tmp_path, dtype):
    write_voc(tmp_path)
    shape = (*np.asarray(Image.open(tmp_path / "SegmentationClass" / "2007_2.png")).shape, *[3] * (dtype == np.uint8))
    save(
        tmp_path / "SegmentationClass" / "2007_2.png",
        np.full(shape, 300 if dtype == np.uint16 else (192, 128, 0), dtype),
    )
    with pytest.raises(DataError, match=r"2007_2\.png: colours, or numbers beyond 255: save"):
        read_splits(tmp_path)


def test_pascal_voc_without_categories_and_with_boxes(tmp_path):
    write_voc(tmp_path, classes=False)
    table = read(tmp_path, "train")
    assert (table.categories, len(table.image)) == (["object"], 3)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "2007_1.xml").write_text(
        "<annotation><filename>2007_1.jpg</filename><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
        "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    assert read(tmp_path).categories == ["cat"]
    assert read(tmp_path / "SegmentationObject", "train").categories == ["object"]


BAD = {
    "no picture": (lambda root: (root / "images" / "a.png").unlink(), "picture is missing", True),
    "no mask": (lambda root: (root / "masks" / "a.png").unlink(), "picture without a mask (left out)", False),
    "two masks": (lambda root: save(root / "masks" / "a.tif", SCENES["a"]), "two masks of one name", True),
    "other size": (lambda root: save(root / "masks" / "a.png", SCENES["a"].T.copy()), "mask cannot be used", True),
    "cut short": (
        lambda root: (root / "masks" / "a.png").write_bytes((root / "masks" / "a.png").read_bytes()[:60]),
        "mask cannot be used", True,
    ),
    "no mask at all": (lambda root: (root / "masks" / "a.png").write_bytes(b"GIF89a?"), "mask cannot be used", True),
    "unreadable picture": (lambda root: (root / "images" / "a.png").write_bytes(b"no"), "picture cannot be read", True),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    spoil, kind, fatal = BAD[name]
    spoil(write_maps(tmp_path))
    table = find(tmp_path).read("test")
    kinds = table.problems.fatal if fatal else table.problems.repaired
    assert "a" in kinds[kind][0]
    assert table.problems.counts[kind] == 1
    assert bool(table.problems.fatal) == fatal
    if fatal:
        with pytest.raises(DataError, match="cannot be used as it is"):
            read(tmp_path, "test")


def test_bad_files_for_each_object(tmp_path):
    write_files(tmp_path)
    save(tmp_path / "b" / "masks" / "empty.png", np.zeros((40, 50), np.uint8))
    save(tmp_path / "d" / "masks" / "large.png", np.zeros((41, 50), np.uint8))
    save(tmp_path / "e" / "images" / "again.png", np.zeros((40, 50), np.uint8))
    table = find(tmp_path).read("train")
    assert table.problems.repaired.keys() == {"mask without a pixel (dropped)", "picture without a mask (left out)"}
    assert "empty.png" in table.problems.repaired["mask without a pixel (dropped)"][0]
    assert table.problems.fatal.keys() == {"mask cannot be used", "folder of one picture holds none or several"}
    assert (
        "41x50 pixels (height x width), the picture, upright, has 40x50"
        in table.problems.fatal["mask cannot be used"][0]
    )


@pytest.mark.parametrize(
    ("picture", "numbers"),
    [
        (Image.fromarray(np.array([[0, 1], [255, 7]], np.uint8)), [[0, 1], [255, 7]]),
        (Image.fromarray(np.array([[0, 1], [65535, 7]], np.uint16)), [[0, 1], [65535, 7]]),
        (Image.fromarray(np.array([[0, 1], [70000, 7]], np.int32)), [[0, 1], [70000, 7]]),
        (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), [[0, 1]]),
        (Image.fromarray(np.array([[[0, 0, 0], [5, 5, 5]]], np.uint8)), [[0, 5]]),
        (Image.fromarray(np.array([[[0, 0, 0], [5, 1, 2]]], np.uint8)), [[0, 5 + 256 + 2 * 65536]]),
        (Image.fromarray(np.array([[[0, 0, 0, 255], [5, 5, 5, 255]]], np.uint8)), [[0, 5]]),
        (Image.fromarray(np.array([[0, 3]], np.uint8)).convert("LA"), [[0, 3]]),
    ],
    ids=["8 bits", "16 bits", "32 bits", "1 bit", "gray colours", "colours", "alpha", "gray with alpha"],
)
def test_kinds_of_numbers(tmp_path, picture, numbers):
    path = tmp_path / ("mask.tif" if picture.mode == "I" else "mask.png")
    picture.save(path)
    assert read_ids(path).astype(int).tolist() == numbers


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("a.jpg", np.zeros((5, 5), np.uint8), "may have lost digits"),
        ("a.tif", np.zeros((5, 5), np.float32), "holds no whole numbers"),
        ("a.tif", np.full((5, 5), -1, np.int32), "must not be negative, got -1"),
    ],
)
def test_kinds_that_are_refused(tmp_path, name, array, message):
    with pytest.raises(DataError, match=message):
        read_ids(save(tmp_path / name, array))


def test_a_palette_numbers_objects(tmp_path):
    picture = Image.fromarray(np.array([[0, 2]], np.uint8))
    picture.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    picture.save(tmp_path / "a.png")
    assert read_ids(tmp_path / "a.png").tolist() == [[0, 2]]


def test_written_as_coco_and_read_again(tmp_path):
    table = find(write_maps(tmp_path)).read("train")
    write_coco(table, tmp_path / "instances.json")
    again = read_coco(tmp_path / "instances.json")
    assert again.segmentations == table.segmentations
    assert again.paths == table.paths
    for name in ("boxes", "area", "image", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_check_names_broken_masks_of_objects_beside_those_of_categories(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "SegmentationObject" / "2007_1.png").write_bytes(b"GIF89a?")
    problems = check(tmp_path, progress=False)
    assert "SegmentationObject" in problems.fatal["mask cannot be used"][0]


def test_check_finds_nothing_wrong_but_small_objects(tmp_path):
    problems = check(write_maps(tmp_path), progress=False)
    assert not problems.fatal
    assert "box under 2 pixels in test" in problems.warned


def test_masks_for_training(tmp_path):
    """The compact mask of each object is what lies in its box."""
    scenes = {name: picture for name, picture in SCENES.items() if picture.any()}
    data = DetectionData(
        str(write_maps(tmp_path, scenes)), batch_size=1, min_size=40, max_size=50, masks=10, augment=None
    )
    data.setup("fit")
    found = {info.path.rpartition("/")[2]: batch.targets[0] for batch in data.val_dataloader() for info in batch.infos}
    target = found["a.png"]
    assert target.masks.shape == (3, 10, 10)
    assert (target.masks == 1).all()  # these objects are rectangles: they fill their boxes


def test_nuclei(real_data):
    tables = read_splits(real_data("dsb2018"))
    assert {split: (len(table), len(table.image)) for split, table in tables.items()} == {
        "train": (531, 23113), "val": (133, 5873), "test": (133, 5873),
    }  # fmt: skip
    names = sorted(path for table in (tables["train"], tables["test"]) for path in table.paths)
    assert sorted(tables["test"].paths) == names[::5]
    table = tables["test"]
    for row in (0, 60, 132):
        picture = np.asarray(Image.open(table.paths[row].replace("images", "masks").replace(".jpg", ".png")))
        own = slice(*table.offsets[row : row + 2])
        masks = from_coco(table.segmentations[own], table.sizes[table.image[own]])
        for k, number in enumerate(np.unique(picture[picture > 0])):
            np.testing.assert_array_equal(masks.pixels(k), picture == number)
