"""`sightline propose`: boxes that may hold objects, and how good they are."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.datasets.coco import write_coco
from sightline.datasets.images import write_image
from sightline.datasets.proposal_files import read_proposals
from sightline.datasets.propose import propose
from sightline.datasets.readers import read
from sightline.datasets.shapes import read_shapes, shapes_table
from sightline.detectors import classifier, faster_rcnn, save
from sightline.detectors.proposers import proposer_named
from sightline.detectors.sliding_window import SlidingWindow
from sightline.evaluation.recall import cover
from sightline.tools.main import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where this test's proposals are kept."""
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "proposals"


@pytest.fixture
def data(tmp_path):
    """Eight pictures to train on, three to validate on, and two of crowds alone."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for split, count in {"train": 8, "val": 3, "test": 2}.items():
        table = shapes_table(split, count, 64)
        paths = [str(tmp_path / "data" / "images" / f"{split}{i}.png") for i in range(count)]
        for path, built_in in zip(paths, table.paths, strict=True):
            write_image(path, read_shapes(built_in))
        crowd = np.full(len(table.image), split == "test")
        write_coco(replace(table, paths=paths, crowd=crowd), tmp_path / "data" / f"instances_{split}.json")
    return str(tmp_path / "data")


@pytest.fixture
def run(capsys):
    """A function that runs the command in one process, and gives the table's rows by name as {column: text}."""

    def run(*arguments, code=0):
        assert main(["propose", *map(str, arguments), "--workers", "0"]) == code
        header, *lines = capsys.readouterr().out.split("\nproposals ")[1].splitlines()
        columns = ["boxes", "seconds", *header.split()[2:]]
        lines = lines[: next(i for i, line in enumerate(lines) if line.startswith("R@n"))]
        rows = {}
        for line in lines:
            name, *cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
            rows[name] = dict(zip(columns, cells, strict=True))
        return rows

    return run


def test_the_built_in_shapes(run):
    rows = run("shapes", "--split", "val", "--method", "sliding_window", "--limit", "300")
    (row,) = rows.values()
    assert list(row) == ["boxes", "seconds", "R@100", "R@300", "AR@300", "MABO"]
    assert 0 < float(row["R@100"]) < float(row["R@300"]) < 1
    assert 200 < float(row["boxes"]) <= 300
    assert float(row["seconds"]) < 1


def test_selective_search_unless_something_else_is_asked_for(data, run):
    assert list(run(data)) == ["selective_search"]


def test_numbers_are_those_of_the_library(data, run, cache, tmp_path):
    rows = run(data, "--method", "sliding_window", "--limit", "500", "--json", tmp_path / "numbers.json")
    table = propose(read(data, "train"), proposer_named("sliding_window", 500), cache=cache)
    coverage = cover(table.regions, table)
    row = rows["sliding_window"]
    recall = [f"{number:.3f}" for number in coverage.recall([100, 300, 500])[0]]
    assert [row["R@100"], row["R@300"], row["R@500"]] == recall
    assert row["MABO"] == f"{coverage.mabo():.3f}"
    content = json.loads((tmp_path / "numbers.json").read_text())
    assert content["rows"][0]["recall"] == coverage.recall([100, 300, 500]).tolist()
    assert [record["category"] for record in content["rows"][0]["per_class"]] == table.categories


def test_what_is_cached_is_not_timed(data, run, cache):
    arguments = (data, "--method", "sliding_window", "--limit", "50")
    first = run(*arguments)["sliding_window"]
    again = run(*arguments)["sliding_window"]
    assert again.pop("seconds") == "cached"
    assert float(first.pop("seconds")) >= 0
    assert again == first
    files = sorted(cache.rglob("*.npy"))
    assert len(files) == 8
    for file in files[:3]:
        file.unlink()
    assert run(*arguments)["sliding_window"]["seconds"].endswith("(5 cached)")
    assert run(*arguments, "--cache", cache / "other")["sliding_window"]["seconds"] != "cached"


def test_the_cache_is_that_of_a_training(data, run):
    propose(read(data, "train"), proposer_named("sliding_window", 50))
    assert run(data, "--method", "sliding_window", "--limit", "50")["sliding_window"]["seconds"] == "cached"


def test_processes_are_timed_too(data, capsys):
    assert main(["propose", data, "--method", "sliding_window", "--workers", "2", "--limit", "50"]) == 0
    out = capsys.readouterr().out
    assert "sliding_window" in out
    assert "cached" not in out


def test_interrupted_it_goes_on(data, run, monkeypatch, capsys):
    slide, asked = SlidingWindow.__call__, []

    def interrupted(self, image):
        asked.append(image)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return slide(self, image)

    arguments = (data, "--method", "sliding_window", "--limit", "50")
    with monkeypatch.context() as patch:
        patch.setattr(SlidingWindow, "__call__", interrupted)
        assert main(["propose", *arguments, "--workers", "0"]) == 130
    assert "what was computed is kept" in capsys.readouterr().err
    assert run(*arguments)["sliding_window"]["seconds"].endswith("(3 cached)")


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained Faster R-CNN."""
    torch.manual_seed(0)
    sizes = ((16,), (32,), (64,), (96,))
    model = faster_rcnn("resnet10_narrow_fpn", 6, norm="batch", anchor_sizes=sizes, proposals=20, head_width=16)
    model.resize = (64, 64)
    save(model, tmp_path / "model.ckpt")
    return str(tmp_path / "model.ckpt")


def test_several_ways_in_one_table(data, run, checkpoint, tmp_path):
    file, chart = tmp_path / "new" / "boxes.npz", tmp_path / "new" / "recall.png"
    run(data, "--model", checkpoint, "--output", file, "--limit", "10")
    rows = run(
        data, "--method", "sliding_window", "--proposals", file, "--model", checkpoint, "--method", "selective_search",
        "--limit", "12", "--recall", chart,
    )  # fmt: skip
    assert list(rows) == ["sliding_window", str(file), checkpoint, "selective_search"]
    assert rows[str(file)]["seconds"] == "read"
    assert float(rows[checkpoint]["seconds"]) > 0
    assert float(rows[str(file)]["boxes"]) <= 10
    assert float(rows[checkpoint]["boxes"]) <= 12
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_written_boxes_are_the_best(data, run, tmp_path):
    run(data, "--split", "val", "--method", "sliding_window", "--limit", "40", "--output", tmp_path / "all.npz")
    run(data, "--split", "val", "--proposals", tmp_path / "all.npz", "--limit", "15", "--output", tmp_path / "few.npz")
    table = read(data, "val")
    everything, few = (read_proposals(tmp_path / name, table).regions for name in ("all.npz", "few.npz"))
    assert np.diff(few.offsets).tolist() == [15, 15, 15]
    for picture in range(3):
        np.testing.assert_array_equal(few[picture].boxes, everything[picture].boxes[:15])
    same = few.best(15)
    np.testing.assert_array_equal(same.boxes, few.boxes)
    np.testing.assert_array_equal(same.offsets, few.offsets)


def test_pictures_without_truth(data, run, tmp_path):
    rows = run(data, "--split", "test", "--method", "sliding_window", "--limit", "50", "--json", tmp_path / "n.json",
               "--recall", tmp_path / "empty.png")  # fmt: skip
    assert rows["sliding_window"]["R@50"] == rows["sliding_window"]["MABO"] == "-"
    assert json.loads((tmp_path / "n.json").read_text())["rows"][0]["MABO"] is None


MISTAKES = {
    "method": (["DATA", "--method", "selective_serch"], "did you mean 'selective_search'?"),
    "data": (["nowhere"], "nowhere: no such file or folder"),
    "split": (["DATA", "--split", "vall"], "did you mean 'val'?"),
    "shapes' split": (["shapes", "--split", "tran"], "did you mean 'train'?"),
    "file": (["DATA", "--proposals", "DATA/instances_vall.json"], "did you mean 'instances_val.json'?"),
    "folder of a file": (["DATA", "--proposals", "nowhere/boxes.npz"], "nowhere/boxes.npz: no such file"),
    "not proposals": (["DATA", "--proposals", "DATA/instances_val.json"], "instances_val.json"),
    "checkpoint": (["DATA", "--model", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    "no network that proposes": (["DATA", "--model", "CLASSIFIER"], "only a Faster R-CNN"),
    "two into one file": (
        ["DATA", "--method", "sliding_window", "--method", "selective_search", "--output", "x.npz"],
        "--output x.npz holds one set of proposals, not those of sliding_window, selective_search; name one",
    ),
    "chart of another kind": (["DATA", "--recall", "x.npz"], "--recall x.npz: draws a picture file"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(arguments, message, data, tmp_path, capsys):
    model = classifier("lenet", 6)
    model.resize = (32, 32, True)
    save(model, tmp_path / "classifier.ckpt")
    places = {"DATA": data, "CLASSIFIER": str(tmp_path / "classifier.ckpt")}
    for place, path in places.items():
        arguments = [argument.replace(place, path) for argument in arguments]
    assert main(["propose", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_last_mistake_costs_no_work(data, cache):
    assert main(["propose", data, "--method", "sliding_window", "--proposals", "nowhere.npz"]) == 2
    assert not cache.exists()


@pytest.mark.parametrize("option", [("--limit", "0"), ("--workers", "-1"), ("--batch", "two")], ids=lambda o: o[0])
def test_numbers_that_are_none(option, capsys):
    with pytest.raises(SystemExit):
        main(["propose", "shapes", *option])
    assert "must be a whole number from" in capsys.readouterr().err
