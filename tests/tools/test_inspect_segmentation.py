"""`sightline inspect` and `check` of models that name pixels or find masks, and of data with such truth."""

import json
import shutil

import numpy as np
from PIL import Image

from sightline.datasets.coco import write_coco
from sightline.datasets.images import read_image, write_image
from sightline.datasets.label_files import write_label_map
from sightline.datasets.shapes import read_shapes, shapes_table
from sightline.tools.inspect_data import tables_of
from sightline.tools.inspect_pictures import TILE, example_sheet
from sightline.tools.main import main


def test_layers_of_a_segmenter(segmenter, capsys):
    assert main(["inspect", segmenter, "--size", "64", "--depth", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "fcn8s(backbone='resnet10_narrow', num_classes=7" in out
    assert "7 categories: background, circle, square" in out
    assert "backbone" in out
    assert "multiply-adds" in out


def test_layers_of_names(capsys):
    assert main(["inspect", "deeplabv3_plus", "--size", "64", "96", "--depth", "1"]) == 0
    assert "multiply-adds" in capsys.readouterr().out
    assert main(["inspect", "fcn8", "--depth", "1"]) == 2
    assert "did you mean 'fcn8s'?" in capsys.readouterr().err


def test_layers_of_masks(mask_detector, capsys):
    assert main(["inspect", mask_detector, "--size", "64", "--depth", "2", "--device", "cpu"]) == 0
    assert "roi_heads.mask_head" in capsys.readouterr().out


def test_heat_is_of_objects(segmenter, tmp_path, capsys):
    write_image(tmp_path / "x.png", np.zeros((64, 64, 3), np.uint8))
    picture = ["--picture", str(tmp_path / "x.png"), "--png", str(tmp_path / "y.png")]
    assert main(["inspect", segmenter, *picture, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert f"names every pixel; see what it takes each for: sightline predict {segmenter} {tmp_path}/x.png" in error


def test_activations(segmenter, capsys):
    assert main(["inspect", segmenter, "--activations", "--data", "noise", "--size", "64", "--device", "cpu"]) == 0
    assert "its own weights, 4 pictures" in capsys.readouterr().out


def test_heat_of_masks(mask_detector, tmp_path, capsys):
    write_image(tmp_path / "x.png", read_shapes(shapes_table("val", 1, 64).paths[0]))
    picture = ["--picture", str(tmp_path / "x.png"), "--png", str(tmp_path / "y.png")]
    assert main(["inspect", mask_detector, *picture, "--device", "cpu"]) == 0
    assert "written: " in capsys.readouterr().out


# -- Data --


def test_pixels_by_category(label_data, labels_of, tmp_path, capsys):
    assert main(["inspect", str(label_data), "--png", str(tmp_path / "examples.png")]) == 0
    out = capsys.readouterr().out
    assert "train: 2 images with label maps, 7 categories" in out
    assert "test: 3 images with label maps" in out
    assert "pixels            8,192, of which 6.2% are void" in out
    maps = [labels_of(number) for number in (0, 1)]
    counts = [sum((labels == c).sum() for labels in maps) for c in range(7)]
    present = [sum((labels >= 0).sum() for labels in maps if (labels == c).any()) for c in range(7)]
    frequencies = [count / seen for count, seen in zip(counts, present, strict=True) if count]
    rows = {line.split()[0]: line.split()[1:] for line in out.partition("test:")[0].splitlines() if line.strip()}
    for c, name in enumerate(tables_of(str(label_data))["train"].categories):
        weight = np.median(frequencies) / (counts[c] / present[c]) if counts[c] else 0
        assert rows[name] == [
            f"{counts[c]:,}", f"{counts[c] / sum(counts):.2%}", f"{counts[c] / max(present[c], 1):.2%}", f"{weight:.2f}"
        ]  # fmt: skip
    assert Image.open(tmp_path / "examples.png").width > TILE
    assert main(["inspect", str(label_data), "--split", "tests"]) == 2
    assert "no split 'tests'; there are train, test; did you mean 'test'?" in capsys.readouterr().err


def test_examples_are_tinted_above_a_legend(label_data):
    tables = tables_of(str(label_data), "test")
    sheet = example_sheet(tables["test"])
    assert sheet.shape[0] > TILE + 2 * 8 + 20
    image = read_image(tables["test"].paths[0])
    tile = np.asarray(Image.fromarray(image).resize((TILE, TILE)))
    row, column = np.argwhere(tables["test"].label_maps[0] == 0)[len(image)]  # somewhere on the ground, which is black
    y, x = row * TILE // 64 + 2, column * TILE // 64 + 2
    assert sheet[8 + y, 8 + x].sum() < tile[y, x].sum()


def test_all_void_is_no_fault(label_data, capsys):
    for path in (label_data / "masks" / "test").iterdir():
        write_label_map(path, np.full((64, 64), -1))
    assert main(["inspect", str(label_data), "--split", "test"]) == 0
    assert "of which 100.0% are void" in capsys.readouterr().out


def objects_at(folder):
    """Two pictures with masks in COCO's form."""
    table = shapes_table("val", 2, 64, masks=True)
    for i, path in enumerate(table.paths):
        write_image(folder / f"{i}.png", read_shapes(path))
    table.paths = [str(folder / f"{i}.png") for i in range(2)]
    write_coco(table, folder / "instances_val.json")
    return table


def test_masks_of_objects_are_painted(tmp_path):
    objects_at(tmp_path)
    table = tables_of(str(tmp_path))["val"]
    painted = example_sheet(table).astype(int)
    table.segmentations = None
    assert (np.abs(painted - example_sheet(table)).sum(-1) > 30).mean() > 0.005


def test_objects_and_label_maps_are_both_shown(label_data, tmp_path):
    """As in Pascal VOC."""
    voc = tmp_path / "voc"
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    shutil.copy(label_data / "images" / "test" / "2.png", voc / "JPEGImages" / "2.jpg")
    write_label_map(voc / "SegmentationClass" / "2.png", np.zeros((64, 64), np.int16))
    box = "<xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>20</ymax>"
    (voc / "Annotations" / "2.xml").write_text(
        "<annotation><filename>2.jpg</filename><size><width>64</width><height>64</height><depth>3</depth></size>"
        f"<object><name>dog</name><bndbox>{box}</bndbox></object></annotation>"
    )
    for task in ("Main", "Segmentation"):
        (voc / "ImageSets" / task / "train.txt").write_text("2\n")
    tables = tables_of(str(voc))
    assert list(tables) == ["train", "train, label maps"]
    assert len(tables["train"].image) == 1
    assert tables["train, label maps"].label_maps is not None


# -- What is wrong with data --


def test_check_of_label_maps(label_data, capsys):
    assert main(["check", str(label_data), "--no-progress"]) == 0
    write_label_map(label_data / "masks" / "train" / "0.png", np.full((64, 64), -1))
    write_label_map(label_data / "masks" / "train" / "1.png", np.full((64, 64), 99))
    assert main(["check", str(label_data), "--no-progress"]) == 1
    said = capsys.readouterr()
    assert "label map is all void in train" in said.out
    assert "mask cannot be used: 1\n    " + str(label_data / "masks" / "train" / "1.png") in said.out
    assert "cannot be trained on" in said.err


def test_check_of_masks_of_objects(tmp_path, capsys):
    objects_at(tmp_path)
    assert main(["check", str(tmp_path), "--no-progress"]) == 0
    content = json.loads((tmp_path / "instances_val.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    main(["check", str(tmp_path), "--no-progress"])
    assert "annotations[0]" in capsys.readouterr().out


def test_real_data(real_data):
    camvid = tables_of(str(real_data("camvid")), "val")["val"]
    assert len(camvid) == 101
    assert camvid.categories[0] == "sky"


def test_statistics(label_data, tmp_path, capsys):
    assert main(["inspect", str(label_data), "--statistics", str(tmp_path / "x.npz"), "--size", "8"]) == 0
    assert "train: statistics of 2 pictures at 8x8" in capsys.readouterr().out
