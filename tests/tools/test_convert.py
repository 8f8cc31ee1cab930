"""The command that writes a data set in another form."""

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.datasets.coco import write_coco
from sightline.datasets.folders import FolderSource, ObjectCrops
from sightline.datasets.images import write_image
from sightline.datasets.readers import read, read_splits
from sightline.datasets.table import DataError
from sightline.tools.convert import convert, main
from sightline.tools.main import run


@pytest.mark.parametrize("to", ["coco", "voc", "yolo"])
def test_every_form_reads_back(real_data, tmp_path, to):
    convert(real_data("coco"), to, tmp_path / "out", link=True)
    before, after = read_splits(real_data("coco")), read_splits(tmp_path / "out")
    assert before.keys() == after.keys()
    for split, table in before.items():
        keep = ~table.crowd if to == "yolo" else np.ones(len(table.crowd), bool)
        np.testing.assert_allclose(after[split].boxes, table.boxes[keep], atol=1e-3)
        np.testing.assert_array_equal(after[split].labels, table.labels[keep])
        assert after[split].categories == table.categories
        assert [path.rpartition("/")[2] for path in after[split].paths] == [
            path.rpartition("/")[2] for path in table.paths
        ]
        assert not after[split].problems.counts


def test_around_the_circle(real_data, tmp_path):
    for step, (source, to) in enumerate(
        ((real_data("raccoon"), "yolo"), (tmp_path / "0", "coco"), (tmp_path / "1", "voc"))
    ):
        convert(source, to, tmp_path / str(step), link=step > 0)
    before, after = read_splits(real_data("raccoon")), read_splits(tmp_path / "2")
    for split, table in before.items():  # held out by name, so the same pictures
        np.testing.assert_allclose(after[split].boxes, table.boxes, atol=1e-3)
        assert after[split].sizes.tolist() == table.sizes.tolist()


def test_copies_and_one_split(real_data, tmp_path, capsys):
    assert main([str(real_data("bccd")), "--to", "yolo", "--out", str(tmp_path / "out"), "--split", "test"]) == 0
    assert capsys.readouterr().out.startswith("test: 72 images, 945 objects, 3 categories")
    pictures = sorted((tmp_path / "out" / "images" / "test").iterdir())
    assert len(pictures) == 72
    assert not any(path.is_symlink() for path in pictures)
    original = real_data("bccd") / "BCCD" / "JPEGImages" / pictures[0].name
    assert pictures[0].read_bytes() == original.read_bytes()


def test_pictures_of_one_name_get_different_ones(real_data, tmp_path):
    demo = real_data("demo")
    for split, name in (("train", "dog"), ("valid", "eagle")):
        (tmp_path / "in" / split / "images").mkdir(parents=True)
        (tmp_path / "in" / split / "labels").mkdir()
        (tmp_path / "in" / split / "images" / "x.jpg").symlink_to(demo / f"{name}.jpg")
        (tmp_path / "in" / split / "labels" / "x.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "in" / "classes.txt").write_text("thing\n")
    convert(tmp_path / "in", "voc", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "JPEGImages").iterdir()) == ["images_x.jpg", "x.jpg"]


def test_errors(real_data, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for arguments, message in [
        ((real_data("coco"), "voc", tmp_path / "full"), "not empty"),
        ((real_data("coco"), "voc", tmp_path / "full" / "file"), "not empty"),
        ((tmp_path / "nothing", "voc", tmp_path / "new"), "no such file or folder"),
        ((real_data("coco"), "kitti", tmp_path / "new"), "known are coco, voc, yolo, folders, masks"),
    ]:
        with pytest.raises(DataError, match=message):
            convert(*arguments)
    with pytest.raises(DataError, match="no split 'x'; there are train, val"):
        convert(real_data("coco"), "voc", tmp_path / "new", split="x")
    assert run("convert", [str(tmp_path / "nothing"), "--to", "voc", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("sightline convert: ")
    assert not (tmp_path / "new").exists()


def counts(table):
    return dict(zip(table.categories, np.bincount(table.labels, minlength=len(table.categories)).tolist(), strict=True))


def test_crops_of_the_commonest_objects(real_data, tmp_path, capsys):
    options = ["--crops", "--min-side", "16", "--commonest", "5", "--margin", "0.1"]
    assert main([str(real_data("coco")), "--to", "folders", "--out", str(tmp_path / "out"), *options]) == 0
    assert "crowd is no single object (left out)" in capsys.readouterr().out
    source = FolderSource(tmp_path / "out")
    assert source.splits == ["train", "val"]
    before = {split: read(real_data("coco"), split) for split in ("train", "val")}
    alone = {split: table.select_objects(np.flatnonzero(~table.crowd)) for split, table in before.items()}
    commonest = sorted(counts(alone["train"]).items(), key=lambda item: -item[1])[:5]
    for split, table in alone.items():
        sides = (table.boxes[:, 2:] - table.boxes[:, :2]).min(axis=1)
        expected = counts(table.select_objects(np.flatnonzero(sides >= 16)))
        assert counts(source.read(split)) == {name: expected[name] for name, _ in sorted(commonest)}
        assert not source.read(split).problems.counts


def test_named_categories_keep_their_ids_and_all_pictures(real_data, tmp_path):
    written = convert(real_data("coco"), "coco", tmp_path / "out", link=True, categories=["dog", "person"])
    before, after = (read_splits(path) for path in (real_data("coco"), tmp_path / "out"))
    for split, table in after.items():
        assert table.categories == written[split].categories == ["person", "dog"]  # the data set's order
        assert table.category_ids.tolist() == [1, 18]
        assert len(table) == len(before[split])
        assert counts(table) == {name: counts(before[split])[name] for name in ("person", "dog")}


def whole_pictures(folder):
    """A COCO json whose objects are whole pictures, of classes in no order of names; the last picture has none."""
    rng = np.random.default_rng(0)
    for split, names in (("train", "abcdef"), ("val", "ghij")):
        for name in names:
            write_image(folder / "in" / f"{name}.png", rng.integers(0, 256, (9, 7 + ord(name) % 3, 3), np.uint8))
        boxes = [[0, 0, 7 + ord(name) % 3, 9] for name in names[:-1]]
        document = {
            "images": [{"id": row, "file_name": f"{name}.png"} for row, name in enumerate(names)],
            "annotations": [{"id": r, "image_id": r, "category_id": r % 3, "bbox": box} for r, box in enumerate(boxes)],
            "categories": [{"id": row, "name": name} for row, name in enumerate(("cat", "ant", "bee"))],
        }
        (folder / "in" / f"instances_{split}.json").write_text(json.dumps(document))
    return folder / "in"


@pytest.mark.parametrize("link", [False, True])
def test_whole_pictures_go_around_the_circle(tmp_path, link):
    before = read_splits(whole_pictures(tmp_path))
    written = convert(tmp_path / "in", "folders", tmp_path / "out", link=link)
    source = FolderSource(tmp_path / "out")
    write_coco(source.read("train"), tmp_path / "again" / "instances_train.json")
    convert(tmp_path / "again", "folders", tmp_path / "last")
    for split, last in (("train", FolderSource(tmp_path / "last").read("train")), ("val", source.read("val"))):
        classes = {Path(last.paths[i]).stem: last.categories[k] for i, k in zip(last.image, last.labels, strict=True)}
        table = before[split]
        expected = {
            Path(table.paths[i]).stem: table.categories[k] for i, k in zip(table.image, table.labels, strict=True)
        }
        assert classes == expected
        assert written[split].categories == last.categories == ["ant", "bee", "cat"]
        for path in source.read(split).paths:
            assert Path(path).is_symlink() == link
            assert Path(path).read_bytes() == (tmp_path / "in" / Path(path).name).read_bytes()


def test_errors_of_folders_and_categories(real_data, tmp_path, capsys):
    coco, out = real_data("coco"), tmp_path / "new"
    for to, options, message in [
        ("folders", {}, r"write the objects' crops instead \(--crops\)"),
        ("voc", {"crops": ObjectCrops()}, "--to folders, not voc"),
        ("folders", {"crops": ObjectCrops(), "link": True}, "leave --link out"),
        ("coco", {"categories": ["dog", "preson"]}, r"no category 'preson' in the data set; did you mean 'person'\?"),
        ("coco", {"categories": 0}, "cannot keep the 0 commonest categories: 80 have objects"),
        ("coco", {"categories": 81}, "cannot keep the 81 commonest"),
    ]:
        with pytest.raises(DataError, match=message):
            convert(coco, to, out, **options)
        assert not out.exists()
    for options, message in [(["--margin", "0.1"], "--margin is of crops"), (["--min-side", "9"], "--min-side is of")]:
        assert run("convert", [str(coco), "--to", "folders", "--out", str(out), *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(DataError, match=r"train: no object is left to write\s.*under 9999 pixels"):
        convert(real_data("raccoon"), "folders", out, crops=ObjectCrops(min_side=9999))


def test_commonest_are_counted_on_the_training_split(real_data, tmp_path):
    written = convert(real_data("coco"), "folders", tmp_path / "out", split="val", categories=3, crops=ObjectCrops())
    train = counts(read(real_data("coco"), "train"))
    assert set(written["val"].categories) <= set(sorted(train, key=train.get)[-4:])
    assert written.keys() == {"val"}
