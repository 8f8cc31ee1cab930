"""`sightline convert` to label maps, and of masks of objects to COCO."""

import json

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.coco import write_coco
from sightline.datasets.images import write_image
from sightline.datasets.label_maps import read_label_maps
from sightline.datasets.label_objects import semantic_table
from sightline.datasets.mask_encoding import from_coco
from sightline.datasets.readers import read
from sightline.datasets.shapes import draw, read_shapes, shapes_table
from sightline.datasets.table import DataError
from sightline.tools.convert import convert, main


@pytest.fixture
def coco(tmp_path):
    """Five pictures with masks in COCO's form, three to train on."""
    table = shapes_table("val", 5, 48, masks=True)
    for i, path in enumerate(table.paths):
        write_image(tmp_path / "coco" / f"{i}.png", read_shapes(path))
    table.paths = [str(tmp_path / "coco" / f"{i}.png") for i in range(5)]
    for split, rows in (("train", range(3)), ("val", range(3, 5))):
        write_coco(table.select(np.array(rows)), tmp_path / "coco" / f"instances_{split}.json")
    return tmp_path / "coco"


def test_objects_to_label_maps(coco, tmp_path, capsys):
    assert main([str(coco), "--to", "masks", "--out", str(tmp_path / "out")]) == 0
    assert "train: 3 images with label maps, 7 categories" in capsys.readouterr().out
    tables = read_label_maps(tmp_path / "out")
    for split in ("train", "val"):
        expected = semantic_table(read(coco, split), "")
        assert tables[split].categories == expected.categories
        assert not tables[split].problems.counts
        assert len(tables[split]) == len(expected)
        for row in range(len(expected)):
            np.testing.assert_array_equal(tables[split].label_maps[row], expected.label_maps[row])


def test_label_maps_to_label_maps(label_data, tmp_path):
    convert(label_data, "masks", tmp_path / "out", link=True)
    before, after = read_label_maps(label_data), read_label_maps(tmp_path / "out")
    for split, table in before.items():
        assert (after[split].categories, after[split].colours) == (table.categories, table.colours)
        for row in range(len(table)):
            np.testing.assert_array_equal(after[split].label_maps[row], table.label_maps[row])
    assert all(path.is_symlink() for path in (tmp_path / "out" / "images" / "test").iterdir())


def test_some_categories(coco, tmp_path):
    name = read(coco, "train").categories[0]
    convert(coco, "masks", tmp_path / "out", categories=[name], split="train")
    assert read_label_maps(tmp_path / "out")["train"].categories == ["background", name]


def test_numbered_masks_to_coco(tmp_path):
    picture = draw(0, 1, 48)
    ids = np.zeros((48, 48), np.uint16)
    for number, mask in enumerate(picture.masks, 300):
        ids[mask > 0] = number
    write_image(tmp_path / "in" / "images" / "a.png", picture.image)
    (tmp_path / "in" / "masks").mkdir()
    Image.fromarray(ids).save(tmp_path / "in" / "masks" / "a.png")
    convert(tmp_path / "in", "coco", tmp_path / "out")
    records = json.loads((tmp_path / "out" / "instances_train.json").read_text())["annotations"]
    masks = from_coco([record["segmentation"] for record in records], np.tile([48, 48], (len(records), 1)))
    assert len(masks) == len(picture.masks)
    for k in range(len(masks)):
        np.testing.assert_array_equal(masks.pixels(k), ids == 300 + k)


def test_what_cannot_be(label_data, coco, tmp_path):
    content = json.loads((coco / "instances_train.json").read_text())
    for one in content["annotations"]:
        one.pop("segmentation")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "instances_train.json").write_text(json.dumps(content))
    for picture in coco.glob("*.png"):
        (tmp_path / "boxes" / picture.name).symlink_to(picture)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "instances_mine.json").write_text((coco / "instances_val.json").read_text())
    for picture in coco.glob("*.png"):
        (tmp_path / "odd" / picture.name).symlink_to(picture)
    for arguments, options, message in (
        ((label_data, "coco"), {}, "tell no objects apart; they can be written with --to masks alone"),
        ((label_data, "folders"), {}, "tell no objects apart"),
        ((label_data, "masks"), {"categories": ["circle"]}, "every pixel of a label map is of some category"),
        ((label_data, "masks"), {"categories": 2}, "every pixel of a label map is of some category"),
        ((tmp_path / "boxes", "masks"), {}, "neither label maps nor outlines"),
        ((tmp_path / "odd", "masks"), {}, "have the parts train, .*, not 'instances_mine'"),
    ):
        with pytest.raises(DataError, match=message):
            convert(*arguments, tmp_path / "out", **options)
