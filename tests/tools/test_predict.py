"""The command that finds objects in pictures and video, and what it writes."""

import csv
import json
import os
import shutil
import signal
import weakref

import cv2
import numpy as np
import pytest
import torch

from sightline.datasets.images import read_image, write_image
from sightline.datasets.shapes import CATEGORIES, draw
from sightline.datasets.sources import Frame, frames
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.detectors import Detector, classifier, faster_rcnn, save
from sightline.evaluation import Truth, read_results
from sightline.tools.main import run
from sightline.tools.predict import main, predict
from sightline.tools.prediction_files import AnnotatedPictures, CocoResults, CsvTable


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small detector of random weights, which finds something everywhere."""
    torch.manual_seed(0)
    small = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 32}
    model = faster_rcnn("resnet10_narrow_fpn", 6, **small)
    model.categories, model.resize = list(CATEGORIES), (64, 96)
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    save(model, path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Two pictures of one name in different folders, and a clip of 20 frames at 10 a second, of odd width."""
    for i, name in enumerate(("a/x.png", "b/x.png", "b/y.jpg")):
        write_image(tmp_path / "in" / name, draw(0, i, 80).image)
    writer = cv2.VideoWriter(str(tmp_path / "in" / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for i in range(20):
        writer.write(np.full((64, 96, 3), 10 * i, np.uint8))
    writer.release()
    return tmp_path / "in"


class Finder(Detector):
    """Finds a box of the picture's left half with score 0.8, and does `then` at each picture."""

    def __init__(self, then=lambda: None):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=2)
        self.layer, self.resize, self.then = torch.nn.Linear(1, 1), (64, 96), then

    def forward(self, images, sizes):
        self.then()
        return images

    def decode(self, images, sizes):
        box = torch.tensor([[[0.0, 0.0, sizes[0, 1] / 2, sizes[0, 0]]]])
        return Instances(box, torch.tensor([[1]]), torch.tensor([[0.8]]))


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pictures_json_and_csv(checkpoint, folder, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    files = [tmp_path / "out", tmp_path / "deep" / "found.json", tmp_path / "found.csv"]
    sources = [str(folder / "a"), str(folder / "b" / "*")]
    options = ["--out", str(files[0]), "--json", str(files[1]), "--csv", str(files[2]), "--score", "0"]
    assert main([checkpoint, *sources, *options]) == 0
    assert sorted(path.name for path in files[0].iterdir()) == ["b_x.png", "x.png", "y.jpg"]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not np.array_equal(read_image(files[0] / "x.png"), read_image(folder / "a" / "x.png"))

    records, rows = json.loads(files[1].read_text()), read_csv(files[2])
    assert len(records) == len(rows) > 3
    assert {r["image_id"]: r["file_name"] for r in records} == {
        1: str(folder / "a/x.png"), 2: str(folder / "b/x.png"), 3: str(folder / "b/y.jpg")
    }  # fmt: skip
    for record, row in zip(records, rows, strict=True):
        assert record["category"] == CATEGORIES[record["category_id"] - 1] == row["category"]
        assert record["file_name"] == row["file"]
        x, y, width, height = record["bbox"]
        corners = [float(row[name]) for name in ("x0", "y0", "x1", "y1")]
        np.testing.assert_allclose([x, y, x + width, y + height], corners, atol=2e-3)
        assert 0 <= corners[0] <= corners[2] <= 80
        assert float(row["score"]) == record["score"]
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"3 pictures, {len(rows)} objects (")
    assert line.endswith(f"written: {', '.join(map(str, files))}")


def test_a_classifiers_answer_is_the_whole_picture(folder, tmp_path, capsys):
    """At least the best one, however unsure; as an ensemble too."""
    paths = [str(tmp_path / f"{i}.ckpt") for i in range(2)]
    for path in paths:
        model = classifier("lenet", 6)
        model.categories, model.resize = list(CATEGORIES), (32, 32, True)
        save(model, path)
    for more in ([], ["--ensemble", paths[1]], ["--average", paths[1]]):
        files = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv")]
        assert main([paths[0], str(folder / "b"), *more, *files, "--score", "1"]) == 0
        records, rows = json.loads((tmp_path / "x.json").read_text()), read_csv(tmp_path / "x.csv")
        assert [record["bbox"] for record in records] == [[0, 0, 80, 80]] * 2
        assert [row["category"] for row in rows] == [record["category"] for record in records]
        assert all(0 < float(row["score"]) < 1 for row in rows)
        assert not np.array_equal(read_image(tmp_path / "out" / "x.png"), read_image(folder / "b" / "x.png"))
    main([paths[0], str(folder / "b"), "--no-pictures", "--csv", str(tmp_path / "x.csv"), "--score", "0"])
    assert len(read_csv(tmp_path / "x.csv")) == 10


def test_the_scorer_reads_the_json(checkpoint, folder, tmp_path):
    options = ["--no-pictures", "--score", "0", "--json", str(tmp_path / "found.json")]
    assert main([checkpoint, str(folder / "b"), *options]) == 0
    nothing = np.zeros(0)
    truth = Truth([1, 2], nothing, np.zeros((0, 4)), nothing, nothing, nothing, nothing)
    found = read_results(tmp_path / "found.json", truth, np.arange(1, 7))
    assert len(found) == len(json.loads((tmp_path / "found.json").read_text())) > 0
    assert not (tmp_path / "predictions").exists()


def test_video_keeps_its_speed(checkpoint, folder, tmp_path):
    out = tmp_path / "out"
    options = ["--every", "4", "--out", str(out), "--csv", str(tmp_path / "found.csv"), "--score", "0"]
    assert main([checkpoint, str(folder / "clip.mp4"), *options]) == 0
    written = list(frames(out / "clip.mp4"))
    assert len(written) == 5
    assert written[0].fps == pytest.approx(2.5)
    assert written[0].image.shape == (64, 96, 3)
    assert sorted({int(row["frame"]) for row in read_csv(tmp_path / "found.csv")}) == [0, 4, 8, 12, 16]


def test_boxes_are_drawn_where_they_are(folder, tmp_path):
    with AnnotatedPictures(tmp_path, ["a", "b"], []) as writer:
        predict(Finder(), frames([folder / "b" / "x.png", folder / "clip.mp4"]), [writer])
    image, source = read_image(tmp_path / "x.png").astype(int), read_image(folder / "b" / "x.png")
    changed = np.abs(image - source).sum(-1) > 0
    assert changed[:, :42].any()
    assert not changed[:, 42:].any()
    last = list(frames(tmp_path / "clip.mp4"))[-1].image.astype(int)
    assert np.ptp(last[40, :50], axis=0).max() > 60  # a coloured line on a grey ground
    assert np.ptp(last[40, 60:], axis=0).max() < 20


@pytest.mark.parametrize("size", [(33, 47), (64, 96)], ids=str)
def test_videos_of_any_size(tmp_path, size):
    found = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    with AnnotatedPictures(tmp_path, [], [], every=2) as writer:
        for i in range(6):
            shape = size if i != 3 else (50, 50)  # a stream that changes its size
            writer.write(i, Frame("rtsp://camera/stream?x", i, np.zeros((*shape, 3), np.uint8), 0.0), found)
        writer.write(7, Frame("0", 0, np.zeros((*size, 3), np.uint8), 30.0), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["camera0.mp4", "stream_x.mp4"]
    assert len(list(frames(tmp_path / "stream_x.mp4"))) == 6
    assert next(iter(frames(tmp_path / "camera0.mp4"))).fps == 15


def test_kinds_that_lose_colours_become_png(tmp_path):
    found = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    with AnnotatedPictures(tmp_path, [], []) as writer:
        for name in ("one.gif", "other/one.pgm", "third/one.PNG", "fourth/one.png", "fourth/../one.png"):
            writer.write(1, Frame(name, 0, np.zeros((8, 8, 3), np.uint8), None), found)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 5
    assert {"one.png", "other_one.png", "third_one.PNG", "fourth_one.png"} < set(names)


def test_a_source_is_never_written_over(checkpoint, folder, capsys):
    before = (folder / "b" / "x.png").read_bytes()
    for out in (folder / "b", folder / "a" / ".." / "b"):
        assert run("predict", [checkpoint, str(folder / "a"), str(folder / "b"), "--out", str(out)]) == 2
        assert "is a source and would be written over" in capsys.readouterr().err
    assert (folder / "b" / "x.png").read_bytes() == before


def test_broken_pictures_are_skipped_and_named(checkpoint, folder, tmp_path, capsys):
    (folder / "a" / "broken.png").write_bytes(b"no picture")
    assert main([checkpoint, str(folder / "a"), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    assert "1 picture, " in output.out
    assert "broken.png" in output.err


def test_compiled_first(checkpoint, folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("sightline.tools.predict.compile_detect", lambda model: seen.append(model.training))
    main([checkpoint, str(folder / "a"), "--compile", "--no-pictures", "--json", str(tmp_path / "found.json")])
    assert seen == [False]


def test_classes(checkpoint, folder, tmp_path):
    options = ["--no-pictures", "--score", "0", "--json", str(tmp_path / "found.json")]
    main([checkpoint, str(folder / "a"), *options])
    found = {record["category"] for record in json.loads((tmp_path / "found.json").read_text())}
    assert len(found) > 1
    wanted = sorted(found)[1:]
    main([checkpoint, str(folder / "a"), *options, "--classes", *wanted])
    assert {record["category"] for record in json.loads((tmp_path / "found.json").read_text())} == set(wanted)


# name: options, and whether they change what this model finds in pictures of 80 pixels
LOOKS = {
    "flip": (["--flip"], True),
    "scales": (["--multiscale", "1", "1.5", "--flip", "--upturn"], True),
    "tiles": (["--tiles", "48", "--overlap", "0.5"], True),
    "both": (["--tiles", "48", "--flip"], True),
    "one scale": (["--multiscale", "1"], False),
    "one tile": (["--tiles", "80"], False),
}


@pytest.mark.parametrize(("options", "changes"), LOOKS.values(), ids=LOOKS.keys())
def test_several_looks(checkpoint, folder, tmp_path, options, changes):
    found = {}
    for name, more in {"plain": [], "several": options}.items():
        file = str(tmp_path / f"{name}.json")
        assert main([checkpoint, str(folder / "a"), "--no-pictures", "--score", "0", "--json", file, *more]) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
        assert len(found[name]) > 0
        for x, y, width, height in (record["bbox"] for record in found[name]):
            assert 0 <= x <= x + width <= 80.01
            assert 0 <= y <= y + height <= 80.01
    assert (found["several"] != found["plain"]) == changes


def test_a_classifier_is_shown_no_tiles(folder, tmp_path, capsys):
    model = classifier("lenet", 6)
    model.resize = (32, 32, True)
    save(model, tmp_path / "classifier.ckpt")
    for options, message in (
        (["--tiles", "64"], "leave --tiles out"),
        (["--multiscale", "1", "2"], "flips and no scales"),
    ):
        assert run("predict", [str(tmp_path / "classifier.ckpt"), str(folder / "a"), *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_pictures_after_scales(checkpoint, capsys):
    with pytest.raises(SystemExit):
        main([checkpoint, "--multiscale", "1", "street.jpg"])
    assert "'street.jpg' is no number; what is no scale must come before this option" in capsys.readouterr().err


def test_nothing_found(checkpoint, folder, tmp_path, capsys):
    options = ["--no-pictures", "--score", "1", "--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv")]
    assert main([checkpoint, str(folder / "a"), *options]) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == []
    assert (tmp_path / "x.csv").read_text().splitlines() == ["file,frame,category,score,x0,y0,x1,y1"]
    assert capsys.readouterr().out.startswith("1 picture, 0 objects in ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{folder}/a", "--classes", "circel"], "no class 'circel'; did you mean 'circle'? (it knows circle, square"),
        (["{folder}/c"], "c: no such file or folder"),
        (["{folder}/a", "--every", "0"], "every must be at least 1"),
        (["{folder}/a", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["{folder}/a", "--overlap", "0.5"], "say how large they are, too: --tiles 640"),
        (["{folder}/a", "--tiles", "8"], "tiles must be at least 32 pixels a side, got 8"),
        (["{folder}/a", "--tiles", "64", "--overlap", "1"], "from 0 to 0.9"),
        (["{folder}/a", "--multiscale", "0"], "best.ckpt cannot look several times: scales must be one or more"),
    ],
    ids=["class", "source", "every", "device", "overlap alone", "tiles", "overlap", "scales"],
)
def test_mistakes_are_one_line(checkpoint, folder, capsys, options, message):
    assert run("predict", [checkpoint, *(option.format(folder=folder) for option in options)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--score", "1.5"], ["--no-pictures"], ["--scores", "0.5"], ["--mot", "x.txt"]], ids=str
)
def test_options_that_cannot_be(options):
    with pytest.raises(SystemExit) as stopped:
        main(["best.ckpt", "x.jpg", *options])
    assert stopped.value.code == 2


def test_no_checkpoint(folder, capsys):
    assert run("predict", ["nothing.ckpt", str(folder / "a")]) == 2
    assert "no checkpoint at nothing.ckpt" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_files(folder, tmp_path):
    count = iter(range(100))

    def interrupt():
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with (
        CocoResults(tmp_path / "found.json", ["a", "b"]) as results,
        CsvTable(tmp_path / "found.csv", ["a", "b"]) as table,
        AnnotatedPictures(tmp_path, ["a", "b"], []) as drawn,
    ):
        tally = predict(Finder(interrupt), frames(folder / "clip.mp4"), [results, table, drawn])
    assert tally.stopped
    assert tally.line(["a", "b"]).startswith("stopped after 3 pictures, 3 objects (b 3) in ")
    assert [record["frame"] for record in json.loads((tmp_path / "found.json").read_text())] == [0, 1, 2]
    assert len(read_csv(tmp_path / "found.csv")) == 3
    assert len(list(frames(tmp_path / "clip.mp4"))) == 3
    assert signal.getsignal(signal.SIGINT) is handler


def test_files_are_whole_after_an_error(folder, tmp_path):
    count = iter(range(100))

    def fail():
        if next(count) == 2:
            raise DataError("broken")

    with pytest.raises(DataError), CocoResults(tmp_path / "found.json", ["a", "b"]) as results:
        predict(Finder(fail), frames(folder / "clip.mp4"), [results])
    assert len(json.loads((tmp_path / "found.json").read_text())) == 2


class Watch:
    """Counts the frames that are alive at each turn."""

    def __init__(self):
        self.images, self.most = [], 0

    def write(self, number, frame, found):
        self.images.append(weakref.ref(frame.image))
        self.most = max(self.most, sum(image() is not None for image in self.images))


def test_no_frame_is_kept(folder, tmp_path):
    for i in range(5):
        shutil.copy(folder / "clip.mp4", folder / f"clip{i}.mp4")
    watch = Watch()
    with AnnotatedPictures(tmp_path, ["a", "b"], []) as drawn, CocoResults(tmp_path / "x.json", ["a", "b"]) as results:
        tally = predict(Finder(), frames(folder), [drawn, results, watch])
    assert tally.pictures == len(watch.images) == 120
    assert watch.most <= 2


def test_landmarks_stand_in_the_json(tmp_path):
    """As COCO's keypoints; detections without any have no such key."""
    frame = Frame("a.png", 0, np.zeros((20, 30, 3), np.uint8), None)
    found = Instances(torch.tensor([[1.0, 2, 9, 8]] * 2), torch.tensor([0, 1]), torch.tensor([0.9, 0.5]))
    points = torch.tensor([[[1.0, 2.0], [9.0, 7.9996]]] * 2)
    with CocoResults(tmp_path / "found.json", ["a", "b"]) as results:
        results.write(1, frame, found)
        found.landmarks = points
        results.write(2, frame, found)
    records = json.loads((tmp_path / "found.json").read_text())
    assert ["keypoints" in record for record in records] == [False, False, True, True]
    assert records[3]["keypoints"] == [1.0, 2.0, 2, 9.0, 8.0, 2]


class Walkers(Detector):
    """Finds two boxes of 20 x 30 that move 2 pixels to the right each time; the second is faint from the fourth on."""

    def __init__(self):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=2)
        self.layer, self.resize, self.step = torch.nn.Linear(1, 1), (64, 96), 0
        self.categories = ["car", "person"]

    def forward(self, images, sizes):
        return images

    def decode(self, images, sizes):
        x, self.step = 5.0 + 2 * self.step, self.step + 1
        boxes = torch.tensor([[[x, 2.0, x + 20, 32.0], [x, 34.0, x + 20, 64.0]]])
        return Instances(boxes, torch.tensor([[0, 1]]), torch.tensor([[0.9, 0.2 if self.step > 3 else 0.8]]))


@pytest.fixture
def walkers(monkeypatch):
    monkeypatch.setattr("sightline.tools.predict.load_model", lambda *_: Walkers())


@pytest.mark.usefixtures("walkers")
def test_tracks_are_written(folder, tmp_path, capsys):
    """In every file, and a faint detection of a known object among them; each video is counted on from the one before."""
    shutil.copy(folder / "clip.mp4", folder / "other.mp4")
    files = ["--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv"), "--no-pictures"]
    assert main(["x.ckpt", str(folder / "clip.mp4"), "--track", *files, "--mot", str(tmp_path / "x.txt")]) == 0
    records, rows = json.loads((tmp_path / "x.json").read_text()), read_csv(tmp_path / "x.csv")
    lines = [line.split(",") for line in (tmp_path / "x.txt").read_text().splitlines()]
    assert len(records) == len(rows) == len(lines) == 40
    for record, row, line in zip(records, rows, lines, strict=True):
        assert record["track_id"] == int(row["track"]) == int(line[1]) == record["category_id"]
        assert int(line[0]) == record["frame"] + 1
        np.testing.assert_allclose([float(value) for value in line[2:6]], record["bbox"], atol=6e-3)
        assert float(line[6]) == record["score"]
        assert line[7:] == ["-1"] * 3
    assert {record["score"] for record in records} == {0.9, 0.8, 0.2}
    assert "40 objects (car 20, person 20) of 2 tracks in " in capsys.readouterr().out

    assert main(["x.ckpt", str(folder / "clip.mp4"), str(folder / "other.mp4"), "--track", *files]) == 0
    rows = read_csv(tmp_path / "x.csv")
    assert {(row["file"], row["category"], row["track"]) for row in rows} == {
        (str(folder / "clip.mp4"), "car", "1"), (str(folder / "clip.mp4"), "person", "2"),
        (str(folder / "other.mp4"), "car", "3"),
    }  # fmt: skip


@pytest.mark.usefixtures("walkers")
def test_a_folder_of_frames_is_tracked(folder, tmp_path):
    """As one video, whose frames MOTChallenge counts from 1."""
    for i in range(4):
        write_image(tmp_path / "walk" / f"{i:06}.jpg", draw(0, i, 80).image)
    assert main(["x.ckpt", str(tmp_path / "walk"), "--track", "--no-pictures", "--mot", str(tmp_path / "x.txt")]) == 0
    lines = [line.split(",")[:2] for line in (tmp_path / "x.txt").read_text().splitlines()]
    assert lines == [[str(frame), track] for frame in range(1, 5) for track in "12"]


@pytest.mark.usefixtures("walkers")
def test_files_without_tracks_are_as_ever(folder, tmp_path):
    files = ["--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv"), "--no-pictures"]
    assert main(["x.ckpt", str(folder / "clip.mp4"), *files]) == 0
    assert "track_id" not in json.loads((tmp_path / "x.json").read_text())[0]
    rows = read_csv(tmp_path / "x.csv")
    assert tuple(rows[0]) == CsvTable.HEADER
    assert {float(row["score"]) for row in rows} == {0.9, 0.8}


@pytest.mark.usefixtures("walkers")
def test_classes_are_chosen_before_tracking(folder, tmp_path):
    options = ["--track", "--classes", "person", "--no-pictures", "--csv", str(tmp_path / "x.csv")]
    assert main(["x.ckpt", str(folder / "clip.mp4"), *options]) == 0
    assert {(row["category"], row["track"]) for row in read_csv(tmp_path / "x.csv")} == {("person", "1")}


@pytest.mark.usefixtures("walkers")
def test_mot_text_is_of_one_video(folder, tmp_path, capsys):
    options = ["--track", "--no-pictures", "--mot", str(tmp_path / "x.txt")]
    assert run("predict", ["x.ckpt", str(folder / "clip.mp4"), str(folder / "b"), *options]) == 2
    error = capsys.readouterr().err
    assert "such a file is of one video; name one source, or take --csv" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.txt").exists()
