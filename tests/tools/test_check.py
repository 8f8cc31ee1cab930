"""The command that looks a data set over."""

import json
import shutil

import pytest
from PIL import Image

from sightline.datasets.checks import check
from sightline.tools.check import main


@pytest.mark.parametrize("name", ["coco", "bccd", "raccoon", "flickr8k"])
def test_real_sets_can_be_trained_on(real_data, capsys, name):
    assert main([str(real_data(name)), "--no-progress"]) == 0
    output = capsys.readouterr().out
    assert "error" not in output
    if name == "bccd":
        assert "box without width or height (dropped): 2" in output  # and not once more for trainval
    if name == "raccoon":
        assert "same picture twice: 4" in output
    if name == "flickr8k":
        assert "picture that no split list names (left out): 92" in output
        assert "same picture twice in train: 1" in output
        assert "objects" not in output


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


def test_what_is_wrong_with_outlines(tmp_path, capsys):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    square = [1, 1, 9, 1, 9, 9, 1, 9]
    outlines = [
        [square], {"size": [10, 20], "counts": [150, 50]}, {"size": [10, 20], "counts": [150, 40]},
        {"size": [20, 10], "counts": [150, 50]}, [[*square, 3]], "square", [], None, [[1, 1, 9, 9]],
        {"size": [10, 20], "counts": [200]},
    ]  # fmt: skip
    objects = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": [k, 0, 5, 5], "segmentation": outline}
        for k, outline in enumerate(outlines)
    ]
    truth = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "dot"}],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(truth))
    assert main([str(tmp_path), "--no-progress"]) == 0  # boxes can be learnt
    output = capsys.readouterr().out
    assert "warning: outline cannot be used in train (no training of masks can start): 4" in output
    assert "a.png: dot (2, 0, 7, 5): its run lengths are not of 200 pixels" in output
    assert "warning: object without an outline in train (its box is its mask): 2" in output
    assert "warning: outline without a pixel in train: 2" in output
    for outline in objects:
        del outline["segmentation"]
    (tmp_path / "instances_train.json").write_text(json.dumps(truth))
    assert main([str(tmp_path), "--no-progress"]) == 0
    assert "outline" not in capsys.readouterr().out


# -- Pictures with sentences --


@pytest.fixture
def described(tmp_path):
    """Six pictures in two splits, and a CSV of what they show."""
    rows = ["image,caption,split"]
    for k in range(6):
        Image.new("RGB", (20, 16), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,A picture of number {k},{'train' if k < 4 else 'val'}")
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize("name", [".", "captions.csv"])
def test_nothing_is_wrong_with_sentences(described, capsys, name):
    assert main([str(described / name), "--no-progress"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_what_is_wrong_with_sentences(described, capsys):
    csv = described / "captions.csv"
    csv.write_text(csv.read_text() + "\n5.png,...,val\n7.png,Not there,val\n0.png,In both,val\n")
    (described / "1.png").write_bytes((described / "1.png").read_bytes()[:-40])
    shutil.copy(described / "2.png", described / "3.png")
    shutil.copy(described / "2.png", described / "4.png")
    assert main([str(described), "--no-progress"]) == 1
    output = capsys.readouterr().out
    for expected in (
        f"error: picture is in two splits: 1\n    {csv}:10: 0.png",
        f"error: picture is missing: 1\n    {csv}:9: 7.png",
        "error: picture cannot be read: 1",
        f"repaired: empty sentence (left out): 1\n    {csv}:8: '...'",
        "warning: same picture twice in train: 1",
        "warning: same picture in train and val: 1",
    ):
        assert expected in output, expected


def test_boxes_and_sentences_are_both_read(described, capsys):
    images = [{"id": k, "file_name": f"{k}.png"} for k in range(6)]
    boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 5, 5]} for k in range(6)]
    sentences = [{"id": k, "image_id": k % 5, "caption": "A picture"} for k in range(6)]
    (described / "captions.csv").unlink()
    whole = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "dot"}]}
    (described / "instances_train.json").write_text(json.dumps(whole))
    (described / "captions_train.json").write_text(json.dumps({"images": images, "annotations": sentences}))
    assert main([str(described), "--no-progress"]) == 0
    output = capsys.readouterr().out
    assert "picture without a sentence (left out): 1" in output
    assert "same picture" not in output
    whole["annotations"][0]["bbox"] = [1, 1, 0, 5]
    (described / "instances_train.json").write_text(json.dumps(whole))
    (described / "captions_train.json").write_text("[")
    assert main([str(described), "--no-progress"]) == 1
    output = capsys.readouterr().out
    assert "box without width or height (dropped): 1" in output
    assert "error: sentences cannot be read: 1" in output
    assert "broken json" in output


def test_labels_in_a_csv_are_no_sentences(tmp_path, capsys):
    for k, name in enumerate(("cat", "dog") * 2):
        folder = tmp_path / ("train", "val")[k // 2] / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(folder / "0.png")
    (tmp_path / "train.csv").write_text("id,label\n0,cat\n1,dog\n")
    assert main([str(tmp_path), "--no-progress"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_what_could_be_there_is_told(tmp_path, capsys):
    (tmp_path / "x.bin").touch()
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "Known are" in output
    assert "Karpathy's splits" in output
