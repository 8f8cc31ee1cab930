"""`sightline predict` of segmenters, and what it writes."""

import csv
import json
import os
import signal
import weakref

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.images import read_image, write_image
from sightline.datasets.mask_encoding import from_coco
from sightline.datasets.shapes import draw
from sightline.datasets.sources import frames
from sightline.datasets.structures import LabelMaps
from sightline.datasets.transforms import from_hwc
from sightline.segmentation import augmented, load, windowed
from sightline.segmentation.inference import segment
from sightline.tools import predict_segmentation
from sightline.tools.main import run
from sightline.tools.picture_files import PictureFiles
from sightline.tools.predict import main
from sightline.tools.predict_segmentation import label
from sightline.tools.segmentation_prediction_files import LabelPictures, LabelResults, ShareTable, TintedPictures


@pytest.fixture
def folder(tmp_path):
    """Pictures of two kinds and sizes, and a clip of 8 frames at 10 a second."""
    write_image(tmp_path / "in" / "x.png", draw(0, 0, 80).image)
    write_image(tmp_path / "in" / "y.jpg", draw(0, 1, 80).image[:, :50])
    writer = cv2.VideoWriter(str(tmp_path / "in" / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for i in range(8):
        writer.write(np.ascontiguousarray(draw(0, i, 96).image[:64]))
    writer.release()
    return tmp_path / "in"


def expected(checkpoint, path, wrap=lambda model: model):
    """(H, W) int16, what the library takes the pixels of a picture for."""
    return segment(wrap(load(checkpoint, device="cpu")), from_hwc(read_image(path))).labels.numpy()


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pictures_label_maps_and_files(segmenter, folder, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    out, masks, found, table = (tmp_path / name for name in ("out", "labels", "deep/found.json", "found.csv"))
    options = ["--out", str(out), "--masks", str(masks), "--json", str(found), "--csv", str(table), "--device", "cpu"]
    sources = [folder / "x.png", folder / "y.jpg"]
    assert main([segmenter, *map(str, sources), *options]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sorted(path.name for path in out.iterdir()) == ["x.png", "y.jpg"]
    assert sorted(path.name for path in masks.iterdir()) == ["x.png", "y.png"]

    names, colours = load(segmenter, device="cpu").categories, load(segmenter, device="cpu").colours
    records, rows, count = json.loads(found.read_text()), read_csv(table), 0
    for number, source in enumerate(sources, 1):
        labels = expected(segmenter, source)
        with Image.open(masks / f"{source.stem}.png") as written:
            assert written.mode == "P"
            np.testing.assert_array_equal(np.array(written), labels)
            assert [tuple(c) for c in np.reshape(written.getpalette(), (-1, 3))[: len(names)].tolist()] == colours
        drawn = read_image(out / source.name)
        assert drawn.shape[1] == labels.shape[1]
        assert drawn.shape[0] > labels.shape[0] + 10  # the legend
        assert drawn[labels.shape[0] :].max() == 255

        mine = [record for record in records if record["image_id"] == number]
        present = np.unique(labels).tolist()
        assert len(present) > 1
        assert [record["category_id"] - 1 for record in mine] == present
        sizes = np.tile(labels.shape, (len(mine), 1))
        runs = from_coco([record["segmentation"] for record in mine], sizes)
        for k, record in enumerate(mine):
            assert record["category"] == names[present[k]]
            assert record["file_name"] == str(source)
            assert "frame" not in record
            np.testing.assert_array_equal(runs.pixels(k), labels == present[k])
        for row, name in zip(rows[count : count + len(present)], present, strict=True):
            assert row == {
                "file": str(source), "frame": "0", "category": names[name], "pixels": str((labels == name).sum()),
                "share": str(round((labels == name).mean(), 6)),
            }  # fmt: skip
        count += len(present)
    assert count == len(rows)
    line = capsys.readouterr().out.strip()
    commonest = max(names, key=lambda name: sum(int(row["pixels"]) for row in rows if row["category"] == name))
    assert line.startswith(f"2 pictures, {commonest} ")
    assert line.endswith(f"written: {out}, {masks}, {found}, {table}")


def test_polygons_give_the_label_map_back(segmenter, folder, tmp_path):
    options = ["--no-pictures", "--polygons", "--json", str(tmp_path / "x.json"), "--device", "cpu"]
    assert main([segmenter, str(folder / "x.png"), *options]) == 0
    labels, records = expected(segmenter, folder / "x.png"), json.loads((tmp_path / "x.json").read_text())
    assert all(isinstance(record["segmentation"], list) for record in records)
    runs = from_coco([record["segmentation"] for record in records], np.tile(labels.shape, (len(records), 1)))
    for k, record in enumerate(records):
        np.testing.assert_array_equal(runs.pixels(k), labels == record["category_id"] - 1)


def test_video_keeps_its_speed_and_one_size(segmenter, folder, tmp_path):
    out, masks = tmp_path / "out", tmp_path / "masks"
    options = ["--every", "2", "--out", str(out), "--masks", str(masks), "--csv", str(tmp_path / "x.csv")]
    assert main([segmenter, str(folder / "clip.mp4"), *options, "--device", "cpu"]) == 0
    written = list(frames(out / "clip.mp4"))
    assert len(written) == 4
    assert written[0].fps == pytest.approx(5, rel=1e-3)
    assert written[0].image.shape[1] == 96
    assert written[0].image.shape[0] > 64 + 7 * 14  # seven categories below each other, whichever are seen
    assert sorted(path.name for path in (masks / "clip").iterdir()) == [f"{i:06}.png" for i in (0, 2, 4, 6)]
    assert {row["frame"] for row in read_csv(tmp_path / "x.csv")} == {"0", "2", "4", "6"}


LOOKS = {
    "flip": (["--flip"], lambda model: augmented(model, flip=True)),
    "scales": (["--multiscale", "1", "1.5"], lambda model: augmented(model, scales=(1, 1.5))),
    "tiles": (["--tiles", "48"], lambda model: in_windows(model, 48, overlap=0.5)),
    "tiles, mirrored": (
        ["--tiles", "40", "--overlap", "0.25", "--flip"],
        lambda model: in_windows(augmented(model, flip=True), 40, overlap=0.25),
    ),
}


def in_windows(model, window, *, overlap):
    model = windowed(model, window, overlap=overlap)
    model.resize = (80, 80, True)  # the picture's own size
    return model


@pytest.mark.parametrize("name", LOOKS)
def test_several_looks(segmenter, folder, tmp_path, name):
    options, wrap = LOOKS[name]
    files = ["--no-pictures", "--masks", str(tmp_path / "masks"), "--device", "cpu"]
    assert main([segmenter, str(folder / "x.png"), *options, *files]) == 0
    with Image.open(tmp_path / "masks" / "x.png") as written:
        found = np.array(written)
    assert (found == expected(segmenter, folder / "x.png", wrap)).mean() > 0.999
    assert (found != expected(segmenter, folder / "x.png")).any()


def test_the_mean_of_two(segmenter, folder, tmp_path):
    files = ["--no-pictures", "--masks", str(tmp_path / "masks"), "--device", "cpu"]
    assert main([segmenter, str(folder / "x.png"), "--average", segmenter, *files]) == 0
    with Image.open(tmp_path / "masks" / "x.png") as written:
        np.testing.assert_array_equal(np.array(written), expected(segmenter, folder / "x.png"))


MEANINGLESS = {
    "track": ["--track"], "beam": ["--beam", "5"], "score": ["--score", "0.3"], "classes": ["--classes", "circle"],
    "upturn": ["--upturn"], "svd": ["--svd", "2", "2"], "ensemble": ["--ensemble", "a.ckpt"], "attention": ["--attention"],
    "regions": ["--regions", "a.ckpt"],
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_means_nothing_is_refused(segmenter, folder, capsys, name):
    assert run("predict", [segmenter, str(folder), *MEANINGLESS[name]]) == 2
    assert capsys.readouterr().err == f"sightline predict: {segmenter} names every pixel: leave out --{name}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiles", "64", "--multiscale", "1", "2"], "leave one of them out"),
        (["--tiles", "16"], "a window must be at least 32 pixels a side"),
        (["--overlap", "0.5"], "say how large they are, too: --tiles 640"),
        (["--multiscale", "0"], "scales must be one or more factors above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(segmenter, folder, capsys, options, message):
    assert run("predict", [segmenter, str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_label_maps_do_not_fall_on_the_pictures(segmenter, folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([segmenter, str(folder), "--out", str(tmp_path), "--masks", f"{tmp_path}/"])
    assert "one would write over the other" in capsys.readouterr().err
    before = (folder / "x.png").read_bytes()
    assert run("predict", [segmenter, str(folder / "x.png"), "--masks", str(folder), "--no-pictures"]) == 2
    assert "is a source and would be written over" in capsys.readouterr().err
    assert (folder / "x.png").read_bytes() == before


class Halves:
    """Stands in for a segmenter's work: the left half is category 1; does `then` at each picture."""

    categories = ("background", "thing")

    def __init__(self, then=lambda: None):
        self.then = then

    def __call__(self, model, image):
        self.then()
        labels = torch.zeros(image.shape[1:], dtype=torch.int16)
        labels[:, : image.shape[2] // 2] = 1
        return LabelMaps(labels)


def test_ctrl_c_leaves_whole_files(monkeypatch, folder, tmp_path):
    count = iter(range(100))
    halves = Halves(lambda: os.kill(os.getpid(), signal.SIGINT) if next(count) == 2 else None)
    monkeypatch.setattr(predict_segmentation, "segment", halves)
    colours = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
    with (
        TintedPictures(PictureFiles(tmp_path, []), halves.categories, colours) as tinted,
        LabelPictures(PictureFiles(tmp_path / "masks", [], suffix=".png"), [(0, 0, 0), (200, 0, 0)]) as maps,
        LabelResults(tmp_path / "x.json", halves.categories) as results,
        ShareTable(tmp_path / "x.csv", halves.categories) as table,
    ):
        tally = label(halves, frames(folder / "clip.mp4"), [tinted, maps, results, table])
    assert tally.stopped
    assert tally.line(halves.categories).startswith("stopped after 3 pictures, background 50.0%, thing 50.0%, in ")
    assert [record["frame"] for record in json.loads((tmp_path / "x.json").read_text())] == [0, 0, 1, 1, 2, 2]
    assert [row["share"] for row in read_csv(tmp_path / "x.csv")] == ["0.5"] * 6
    assert len(list(frames(tmp_path / "clip.mp4"))) == 3
    red = next(iter(frames(tmp_path / "clip.mp4"))).image[:64, :40].reshape(-1, 3).mean(0)
    assert red[0] > red[1] + 50


class Watch:
    """Counts the frames that are alive at each turn."""

    def __init__(self):
        self.images, self.most = [], 0

    def write(self, number, frame, labels):
        self.images.append(weakref.ref(frame.image))
        self.most = max(self.most, sum(image() is not None for image in self.images))


def test_no_frame_is_kept(monkeypatch, folder, tmp_path):
    halves, watch = Halves(), Watch()
    monkeypatch.setattr(predict_segmentation, "segment", halves)
    with LabelResults(tmp_path / "x.json", halves.categories) as results:
        tally = label(halves, frames([folder / "clip.mp4"] * 3), [results, watch])
    assert tally.pictures == 24
    assert watch.most <= 2


def test_many_categories_have_no_legend_under_a_video(folder, tmp_path):
    names = [f"category {i}" for i in range(50)]
    with TintedPictures(PictureFiles(tmp_path, []), names, np.full((50, 3), 90, np.uint8)) as tinted:
        for frame in frames(folder / "clip.mp4"):
            tinted.write(1, frame, np.zeros((64, 96), np.int16))
    assert next(iter(frames(tmp_path / "clip.mp4"))).image.shape == (64, 96, 3)
