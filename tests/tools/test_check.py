"""The command that looks a data set over."""

import shutil

import pytest

from sightline.datasets.checks import check
from sightline.tools.check import main


@pytest.mark.parametrize("name", ["coco", "bccd", "raccoon"])
def test_real_sets_can_be_trained_on(real_data, capsys, name):
    assert main([str(real_data(name)), "--no-progress"]) == 0
    output = capsys.readouterr().out
    assert "error" not in output
    if name == "bccd":
        assert "box without width or height (dropped): 2" in output  # and not once more for trainval
    if name == "raccoon":
        assert "same picture twice: 4" in output


def test_broken_set(real_data, tmp_path, capsys):
    shutil.copytree(real_data("raccoon"), tmp_path / "set")
    pictures = tmp_path / "set" / "images"
    cut = pictures / "raccoon-10.jpg"
    cut.write_bytes(cut.read_bytes()[:-1000])
    (pictures / "raccoon-20.jpg").write_bytes(b"")
    (pictures / "raccoon-30.jpg").unlink()
    assert main([str(tmp_path / "set"), "--no-progress"]) == 1
    output = capsys.readouterr()
    assert "error: picture cannot be read: 2" in output.out
    assert "raccoon-10.jpg: the file is cut short" in output.out
    assert "raccoon-20.jpg: not a picture" in output.out
    assert "error: picture is missing: 1" in output.out
    assert "cannot be trained on" in output.err


def test_nothing_there(tmp_path, capsys):
    assert main([str(tmp_path / "x")]) == 1
    assert "no such file or folder" in capsys.readouterr().out


def voc_object(name, x0, y0, x1, y1):
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (x0, y0, x1, y1), strict=True)
    box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def test_warnings(real_data, tmp_path):
    demo = real_data("demo")
    objects = {
        "train/a": [("dog", 1, 1, 50, 60), ("dog", 1, 1, 50, 60), ("dog", 5, 5, 6, 60)],
        "train/b": [("cat", 1, 1, 50, 60)],
        "train/copy": [("cat", 1, 1, 50, 60)],
        "valid/c": [("dog", 1, 1, 50, 60)],
        "valid/none": [],
    }
    pictures = {"train/a": "dog", "train/b": "eagle", "train/copy": "eagle", "valid/c": "dog", "valid/none": "person"}
    for name, found in objects.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(demo / f"{pictures[name]}.jpg", tmp_path / f"{name}.jpg")
        nodes = "".join(voc_object(*each) for each in found)
        (tmp_path / f"{name}.xml").write_text(f"<annotation>{nodes}</annotation>")
    problems = check(tmp_path, progress=False)
    assert problems.counts == {
        "same picture twice in train": 1,
        "same picture in train and val": 1,
        "same object twice in train": 1,
        "box under 2 pixels in train": 1,
        "category without objects in val": 1,
        "picture without objects in val (a legal negative)": 1,
    }
    assert problems.warned["category without objects in val"] == ["cat"]
    assert not problems.fatal
