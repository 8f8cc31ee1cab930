"""Label maps from a path alone: which layout, which splits, what is wrong; and maps drawn from objects."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.checks import check
from sightline.datasets.label_files import write_label_map
from sightline.datasets.label_maps import read_label_maps
from sightline.datasets.label_objects import NO_OUTLINE, semantic_table
from sightline.datasets.readers import read_splits
from sightline.datasets.shapes import draw, shapes_table
from sightline.datasets.table import DataError

SIZE = (6, 8)


def picture(path, number=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def mask(path, labels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path)
    return path


def ramp(number, categories=3):
    """A map of SIZE in which every category occurs, another for each number."""
    return (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) + number) % categories


def camvid(root, **counts):
    for split, count in (counts or {"train": 3, "val": 2, "test": 1}).items():
        for k in range(count):
            picture(root / split / f"{split}{k}.jpg", 10 * len(counts) + len(split) * 100 + k)
            mask(root / f"{split}annot" / f"{split}{k}.png", ramp(k, 12))
    return root


def voc(root):
    for k in range(5):
        picture(root / "JPEGImages" / f"p{k}.jpg", k)
        if k < 4:
            write_label_map(root / "SegmentationClass" / f"p{k}.png", np.where(ramp(k) == 2, -1, 10 * ramp(k)))
    lists = {"train": "p0\np1\n", "val": "p2\np3\n", "trainval": "p0\np1\np2\np3\n", "test": "p4\n"}
    for split, text in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def folders(root, count=3, masks="masks", form="{kind}/{name}"):
    for k in range(count):
        picture(root / form.format(kind="images", name=f"p{k}.jpg"), k)
        mask(root / form.format(kind=masks, name=f"p{k}.png"), ramp(k))
    return root


def sizes(tables):
    return {split: len(table) for split, table in tables.items()}


# -- Layouts --


def test_camvid(tmp_path):
    tables = read_label_maps(camvid(tmp_path))
    assert sizes(tables) == {"train": 3, "val": 2, "test": 1}
    table = tables["train"]
    assert (len(table.categories), table.categories[0], table.categories[10]) == (11, "sky", "bicyclist")
    assert table.colours[3] == (128, 64, 128)
    assert len(table.image) == len(table.boxes) == 0
    for row in range(3):
        expected = np.where(ramp(row, 12) == 11, -1, ramp(row, 12))
        assert np.array_equal(table.label_maps[row], expected)
        assert table.label_maps[row].dtype == np.int16
    assert table.describe() == f"3 images with label maps, 11 categories ({tmp_path / 'train'})"


def test_selection_takes_maps_along(tmp_path):
    table = read_label_maps(camvid(tmp_path))["train"].select([2, 0])
    assert [path[-5] for path in table.paths] == ["2", "0"]
    assert np.array_equal(table.label_maps[0] == -1, ramp(2, 12) == 11)
    with pytest.raises(ValueError, match="label_maps must be those of 2 pictures, got those of 1"):
        replace(table, label_maps=table.label_maps.select([0]))
    with pytest.raises(ValueError, match="colours must be those of 11 categories, got 1"):
        replace(table, colours=[(0, 0, 0)])


def test_camvid_without_a_validation_split(tmp_path):
    tables = read_label_maps(camvid(tmp_path / "a", train=3, test=2))
    assert tables["val"] is tables["test"]
    tables = read_label_maps(camvid(tmp_path / "b", train=5))
    assert sum(sizes(tables).values()) == 5
    for table in tables.values():
        for row, path in enumerate(table.paths):
            assert (table.label_maps[row] == -1).sum() == (ramp(int(path[-5]), 12) == 11).sum()


def test_a_file_of_categories_wins(tmp_path):
    names = ["void", *(f"c{k}" for k in range(11))]
    (camvid(tmp_path) / "classes.txt").write_text("\n".join(names))
    table = read_label_maps(tmp_path)["train"]
    assert table.categories == names[1:]
    assert table.colours is None
    assert np.array_equal(table.label_maps[1], ramp(1, 12) - 1)


def test_voc(tmp_path):
    tables = read_label_maps(voc(tmp_path))
    assert sizes(tables) == {"train": 2, "val": 2}  # of "test" nothing has a mask
    assert tables["train"].categories[:2] == ["background", "aeroplane"]
    assert (len(tables["train"].categories), tables["val"].colours[20]) == (21, (0, 64, 128))
    assert np.array_equal(tables["val"].label_maps[0], np.where(ramp(2) == 2, -1, 10 * ramp(2)))
    assert sizes(read_label_maps(tmp_path, train="trainval", val="val")) == {"train": 4, "val": 2}
    assert sizes(read_label_maps(tmp_path.parent / tmp_path.name)) == sizes(tables)
    with pytest.raises(DataError, match=r"no split 'tarin'.*did you mean 'train'"):
        read_label_maps(tmp_path, train="tarin")


def test_voc_one_folder_above_and_without_lists(tmp_path):
    root = voc(tmp_path / "VOC2012")
    assert sizes(read_label_maps(tmp_path)) == {"train": 2, "val": 2}
    for path in (root / "ImageSets" / "Segmentation").glob("*.txt"):
        path.unlink()
    assert sum(sizes(read_label_maps(tmp_path)).values()) == 4
    (root / "categories.txt").write_text("\n".join(f"c{k}" for k in range(11)))
    assert read_label_maps(tmp_path)["train"].categories[0] == "c0"


@pytest.mark.parametrize("masks", ["masks", "labels", "annotations"])
@pytest.mark.parametrize("form", ["{kind}/{name}", "{split}/{kind}/{name}", "{kind}/{split}/{name}"])
def test_folders(tmp_path, masks, form):
    splits = ["train", "valid"] if "split" in form else [""]
    for split in splits:
        folders(tmp_path, 3, masks, form.format(kind="{kind}", name="{name}", split=split))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    tables = read_label_maps(tmp_path)
    assert sizes(tables) == ({"train": 3, "val": 3} if "split" in form else sizes(tables))
    assert sum(sizes(tables).values()) == 3 * len(splits)
    for table in tables.values():
        assert table.categories == ["a", "b", "c"]
        for row, path in enumerate(table.paths):
            assert np.array_equal(table.label_maps[row], ramp(int(path[-5])))
    problems = check(tmp_path, progress=False)
    assert not problems.fatal
    assert not problems.repaired


def test_folders_below_are_walked_through(tmp_path):
    for city in ("aachen", "ulm"):
        folders(tmp_path, 2, form=f"{{kind}}/train/{city}/{{name}}")
        folders(tmp_path, 1, form=f"{{kind}}/val/{city}/{{name}}")
    assert sizes(read_label_maps(tmp_path)) == {"train": 4, "val": 2}


def test_colour_coded_folders(tmp_path):
    palette = np.array([(255, 0, 0), (0, 0, 255), (0, 0, 0)], np.uint8)
    for k in range(2):
        picture(tmp_path / "images" / f"p{k}.png", k)
        mask(tmp_path / "masks" / f"p{k}.png", palette[ramp(k)])
    tables = read_label_maps(tmp_path)
    assert tables["train"].categories == ["#000000", "#0000ff", "#ff0000"]
    assert next(iter(tables["train"].problems.warned)) == "no file names the categories (numbered from what is found)"
    (tmp_path / "categories.csv").write_text("name,r,g,b\nred,255,0,0\nblue,0,0,255\nVoid,0,0,0\n")
    tables = read_label_maps(tmp_path)
    assert tables["train"].colours == [(255, 0, 0), (0, 0, 255)]
    row = int(tables["val"].paths[0][-5])
    assert np.array_equal(tables["val"].label_maps[0], np.where(ramp(row) == 2, -1, ramp(row)))


def test_real_camvid(real_data):
    tables = read_label_maps(real_data("camvid"))
    assert sizes(tables) == {"train": 367, "val": 101, "test": 233}
    table = tables["test"]
    raw = np.array(Image.open(table.paths[7].replace("/test/", "/testannot/").replace(".jpg", ".png")))
    assert np.array_equal(table.label_maps[7], np.where(raw == 11, -1, raw.astype(np.int16)))
    assert not any(one.problems.counts for one in tables.values())


# -- Bad input --


def test_what_is_left_out_and_what_is_fatal(tmp_path):
    root = folders(tmp_path, 4)
    (root / "masks" / "p3.png").unlink()
    tables = read_label_maps(root)
    assert sum(sizes(tables).values()) == 3
    assert tables["train"].problems.repaired == {"picture without a mask (left out)": [str(root / "images" / "p3.jpg")]}
    mask(root / "masks" / "orphan.png", ramp(0))
    with pytest.raises(DataError, match=r"picture is missing: 1\n.*orphan, of mask .*orphan\.png"):
        read_label_maps(root)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


FATAL = [
    ("size", lambda p: mask(p, np.zeros((5, 8))), r"mask is not of its picture's size: 1\n.*p1.png: 8x5, but .*p1.jpg is 8x6"),
    ("turned", lambda p: mask(p, np.zeros((8, 6))), "perhaps once its EXIF rotation"),
    ("JPEG", lambda p: Image.fromarray(np.zeros(SIZE, np.uint8)).save(p, format="JPEG"), "may have lost digits"),
    ("16 bits", lambda p: Image.fromarray(np.zeros(SIZE, np.uint16)).save(p), "tells objects apart"),
    ("no picture", lambda p: p.write_bytes(b"mask"), "not a picture"),
    ("twice", lambda p: Image.open(p).save(p.with_suffix(".bmp")), "two masks of one name"),
]  # fmt: skip


@pytest.mark.parametrize(("_", "harm", "message"), FATAL, ids=[row[0] for row in FATAL])
def test_masks_that_stop_at_once(tmp_path, _, harm, message):
    (folders(tmp_path) / "classes.txt").write_text("a\nb\nc")
    harm(tmp_path / "masks" / "p1.png")
    with pytest.raises(DataError, match=message):
        read_label_maps(tmp_path)
    assert sum(check(tmp_path, progress=False).counts[kind] for kind in check(tmp_path, progress=False).fatal) == 1


ON_ACCESS = [
    ("value", lambda p: mask(p, np.where(ramp(1) == 2, 7, ramp(1))), "value 7 at row 0, column 1"),
    ("colour", lambda p: mask(p, np.zeros((*SIZE, 3))), "no file says what colours stand for"),
    ("truncated", truncate, "cut short"),
]


@pytest.mark.parametrize(("_", "harm", "message"), ON_ACCESS, ids=[row[0] for row in ON_ACCESS])
def test_masks_that_stop_when_they_are_decoded(tmp_path, _, harm, message):
    (folders(tmp_path) / "classes.txt").write_text("a\nb\nc")
    harm(tmp_path / "masks" / "p1.png")
    tables = read_label_maps(tmp_path)
    table = next(table for table in tables.values() if any(path.endswith("p1.jpg") for path in table.paths))
    row = [path[-6:] for path in table.paths].index("p1.jpg")
    with pytest.raises(DataError, match=rf"masks/p1.png.*{message}"):
        table.label_maps[row]
    problems = check(tmp_path, progress=False)
    assert list(problems.fatal) == ["mask cannot be used"]
    assert message in problems.summary()


def test_warnings(tmp_path):
    (folders(tmp_path) / "classes.txt").write_text("a\nb\nc\nnever")
    mask(tmp_path / "masks" / "p1.png", np.full(SIZE, 255))
    problems = check(tmp_path, progress=False)
    assert problems.warned == {
        "label map is all void": [str(tmp_path / "images" / "p1.jpg")],
        "category without a pixel": ["never"],
    }
    assert not problems.fatal


def test_data_sets_with_nothing_in_them(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    with pytest.raises(DataError, match="the data set is empty, no picture has a mask"):
        read_label_maps(tmp_path)
    assert "split cannot be read" in check(tmp_path, progress=False).fatal
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"(?s)no data set recognised.*Label maps are known as\n    CamVid"):
        read_label_maps(tmp_path / "nothing")
    with pytest.raises(DataError, match="no such file or folder"):
        read_label_maps(tmp_path / "nowhere")


def test_pictures_that_cannot_be_read(tmp_path):
    (folders(tmp_path) / "classes.txt").write_text("a\nb\nc")
    (tmp_path / "images" / "p2.jpg").write_bytes(b"picture")
    with pytest.raises(DataError, match=r"picture cannot be read: 1\n.*p2.jpg"):
        read_label_maps(tmp_path)
    assert list(check(tmp_path, progress=False).fatal) == ["picture cannot be read"]


def test_two_data_sets_in_one_folder(tmp_path):
    folders(tmp_path / "a"), voc(tmp_path / "b")
    with pytest.raises(DataError, match=r"more than one data set of masks is here: Folder \(.*a\), Voc \(.*b\)"):
        read_label_maps(tmp_path)
    folders(tmp_path / "a", masks="labels")
    with pytest.raises(DataError, match=r"labels and .*masks both hold masks"):
        read_label_maps(tmp_path / "a")


def test_check_reads_boxes_and_masks(tmp_path):
    """Of a VOC folder, which may have both."""
    root = voc(tmp_path)
    (root / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>4</ymax></bndbox>"
    for k in range(5):
        text = f"<annotation><filename>p{k}.jpg</filename><object><name>cat</name>{box}</object></annotation>"
        (root / "Annotations" / f"p{k}.xml").write_text(text.replace("<xmax>1", "<xmax>6") if k else text)
    mask(root / "SegmentationClass" / "p2.png", np.full(SIZE, 77))
    problems = check(root, progress=False)
    assert list(problems.fatal) == ["mask cannot be used"]
    assert "value 77" in problems.summary()
    assert "box without width or height (dropped)" in problems.repaired


# -- Objects' outlines --


def coco(folder, objects, size=SIZE):
    """One picture, two categories; objects as (category, segmentation, area, crowd)."""
    for k in range(2):
        picture(folder / "images" / f"p{k}.jpg", k, size)
    images = [{"id": k, "file_name": f"p{k}.jpg", "height": size[0], "width": size[1]} for k in range(2)]
    annotations = [
        {"id": 2 * k + image, "image_id": image, "category_id": category, "bbox": [0, 0, 4, 3], "area": area,
         "iscrowd": crowd, "segmentation": segmentation}
        for k, (category, segmentation, area, crowd) in enumerate(objects) for image in range(2)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def square(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_smaller_objects_lie_above_larger_and_crowds_below(tmp_path):
    runs = {"size": list(SIZE), "counts": [0, 12, 36]}  # the first two columns
    objects = [
        (1, square(3, 2, 5, 4), 4, 0),
        (2, square(2, 1, 6, 5), 16, 0),
        (1, runs, 12, 1),
        (2, square(1, 0, 3, 1), 2, 0),
    ]
    table = read_label_maps(coco(tmp_path, objects))["train"]
    assert table.categories == ["background", "cat", "dog"]
    expected = np.zeros(SIZE, np.int16)
    expected[:, :2] = -1
    expected[1:5, 2:6] = 2
    expected[2:4, 3:5] = 1
    expected[0, 1:3] = 2
    assert np.array_equal(table.label_maps[0], expected)
    assert np.array_equal(table.select([0]).label_maps[0], expected)


def test_objects_without_an_outline_are_void(tmp_path):
    table = read_label_maps(coco(tmp_path, [(1, [], 12, 0), (2, square(3, 0, 5, 2), 4, 0)]))["train"]
    expected = np.zeros(SIZE, np.int16)
    expected[:3, :4] = -1
    expected[:2, 3:5] = 2
    assert np.array_equal(table.label_maps[0], expected)
    assert table.problems.repaired[NO_OUTLINE] == [f"{table.paths[0]}, object 0 from 0"]
    with pytest.raises(DataError, match="neither label maps nor outlines"):
        read_label_maps(coco(tmp_path / "boxes", [(1, [], 12, 0)]))


def test_a_category_called_background_is_the_background(tmp_path):
    table = read_splits(coco(tmp_path, [(1, square(0, 0, 2, 2), 4, 0), (2, square(4, 4, 6, 6), 4, 0)]))["train"]
    maps = semantic_table(replace(table, categories=["cat", "background"]), "here")
    assert maps.categories == ["background", "cat"]
    assert np.argwhere(maps.label_maps[0]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_real_coco_equals_pycocotools(real_data):
    mask_api = pytest.importorskip("pycocotools.mask")
    path = real_data("coco")
    objects, maps = read_splits(path)["val"], read_label_maps(path)["val"]
    assert maps.categories == ["background", *objects.categories]
    for row in range(40):
        height, width = objects.sizes[row].tolist()
        expected = np.zeros((height, width), np.int16)
        rows = range(*objects.offsets[row : row + 2])
        for k in sorted(rows, key=lambda k: (not objects.crowd[k], -objects.area[k])):
            encoded = mask_api.frPyObjects(objects.segmentations[k], height, width)
            inside = mask_api.decode(mask_api.merge(encoded) if isinstance(encoded, list) else encoded) != 0
            expected[inside] = -1 if objects.crowd[k] else objects.labels[k] + 1
        assert np.array_equal(maps.label_maps[row], expected), objects.paths[row]


def test_shapes_are_what_is_visible():
    table = semantic_table(shapes_table("val", 6, 64, masks=True), "shapes")
    assert table.captions is table.landmarks is table.segmentations is None
    for row in range(6):
        scene = draw(1, row, 64)
        expected = np.zeros((64, 64), np.int16)
        for label, visible in zip(scene.labels, scene.masks, strict=True):
            expected[visible != 0] = label + 1
        assert np.array_equal(table.label_maps[row], expected)
