"""The command that writes a data set in another form."""

import numpy as np
import pytest

from sightline.datasets.readers import read_splits
from sightline.datasets.table import DataError
from sightline.tools.convert import convert, main


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
        ((real_data("coco"), "kitti", tmp_path / "new"), "known are coco, voc, yolo"),
    ]:
        with pytest.raises(DataError, match=message):
            convert(*arguments)
    with pytest.raises(DataError, match="no split 'x'; there are train, val"):
        convert(real_data("coco"), "voc", tmp_path / "new", split="x")
    assert main([str(tmp_path / "nothing"), "--to", "voc", "--out", str(tmp_path / "new")]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
