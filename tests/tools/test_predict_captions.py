"""The command that describes pictures and video, and what it writes."""

import csv
import json
import os
import signal
import weakref
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch

from sightline.captioning import save, show_and_tell, show_attend_tell
from sightline.captioning.inference import Said
from sightline.captioning.search import Beam, Greedy
from sightline.captioning.vocabulary import SPECIAL, Vocabulary
from sightline.datasets.images import read_image, write_image
from sightline.datasets.shapes import CATEGORIES, draw
from sightline.datasets.sources import frames
from sightline.datasets.structures import Captions
from sightline.detectors import classifier, faster_rcnn
from sightline.detectors import save as save_detector
from sightline.evaluation import read_caption_results
from sightline.tools import predict_captions
from sightline.tools.caption_prediction_files import CaptionedPictures, CaptionResults, CaptionTable, Told
from sightline.tools.main import run
from sightline.tools.picture_files import PictureFiles
from sightline.tools.predict import main
from sightline.tools.predict_captions import tell

WORDS = ["ein", "кот", "sitzt", "on", "the", "grass"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of random weights: captioners that attend and that do not, a detector that finds something everywhere,
    and a classifier."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    narrow = {"width": 16, "embedding": 16}
    for name, builder in {"attends": show_attend_tell, "plain": show_and_tell}.items():
        model = builder("resnet10_narrow", len(SPECIAL) + len(WORDS), **narrow)
        model.vocabulary, model.resize = Vocabulary([*SPECIAL, *WORDS]), (64, 96, True)
        save(model, folder / f"{name}.ckpt")
    small = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 32}
    detector = faster_rcnn("resnet10_narrow_fpn", 6, **small)
    detector.categories, detector.resize = list(CATEGORIES), (64, 96)
    save_detector(detector, folder / "detector.ckpt")
    names = classifier("lenet", 6)
    names.categories, names.resize = list(CATEGORIES), (32, 32, True)
    save_detector(names, folder / "classifier.ckpt")
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    """Two pictures, and a clip of 12 frames at 10 a second."""
    for i, name in enumerate(("x.png", "y.jpg")):
        write_image(tmp_path / "in" / name, draw(0, i, 80).image)
    writer = cv2.VideoWriter(str(tmp_path / "in" / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for i in range(12):
        writer.write(np.full((64, 96, 3), 20 * i, np.uint8))
    writer.release()
    return tmp_path / "in"


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_sentences_stand_under_pictures_and_in_the_files(models, folder, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    out, found, table = tmp_path / "out", tmp_path / "deep" / "said.json", tmp_path / "said.csv"
    options = ["--out", str(out), "--json", str(found), "--csv", str(table), "--count", "3", "--beam", "4"]
    assert main([models["attends"], str(folder / "x.png"), str(folder / "y.jpg"), *options]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sorted(path.name for path in out.iterdir()) == ["x.png", "y.jpg"]
    drawn, source = read_image(out / "x.png"), read_image(folder / "x.png")
    assert np.array_equal(drawn[:80, : source.shape[1]], source)
    assert (drawn[:80, source.shape[1] :] == 255).all()  # so small a picture is narrower than words
    assert drawn.shape[0] > 100
    assert drawn[80:].max() == 255
    assert drawn[80:].min() < 100

    records, rows = json.loads(found.read_text()), read_csv(table)
    assert [record["image_id"] for record in records] == [1, 2]
    assert [record["file_name"] for record in records] == [str(folder / "x.png"), str(folder / "y.jpg")]
    assert len(rows) == 6
    for record, mine in zip(records, (rows[:3], rows[3:]), strict=True):
        said = [record, *record["others"]]
        assert "frame" not in record
        assert [row["sentence"] for row in mine] == [each["caption"] for each in said]
        assert [float(row["log_probability"]) for row in mine] == [each["score"] for each in said]
        assert [row["rank"] for row in mine] == ["1", "2", "3"]
        assert {row["file"] for row in mine} == {record["file_name"]}
        assert all(set(each["caption"].split()) <= set(WORDS) for each in said)
        assert len({each["caption"] for each in said}) == 3
        assert all(each["score"] < 0 for each in said)
    line = capsys.readouterr().out.strip()
    assert line.startswith("2 pictures, 6 sentences in ")
    assert line.endswith(f"written: {out}, {found}, {table}")


def test_the_scorer_reads_the_json(models, folder, tmp_path):
    options = ["--no-pictures", "--json", str(tmp_path / "said.json"), "--count", "2"]
    assert main([models["plain"], str(folder / "*.png"), str(folder / "*.jpg"), *options]) == 0
    captions = read_caption_results(tmp_path / "said.json", {1, 2})
    assert captions == {r["image_id"]: r["caption"] for r in json.loads((tmp_path / "said.json").read_text())}
    assert not (tmp_path / "predictions").exists()


def test_a_single_picture_s_sentences_are_printed(models, folder, tmp_path, capsys):
    files = ["--out", str(tmp_path / "out"), "--csv", str(tmp_path / "said.csv")]
    assert main([models["attends"], str(folder / "x.png"), *files, "--count", "2"]) == 0
    *sentences, _ = capsys.readouterr().out.splitlines()
    assert sentences == [row["sentence"] for row in read_csv(tmp_path / "said.csv")]


def test_video_keeps_its_speed_and_one_size(models, folder, tmp_path):
    out = tmp_path / "out"
    options = ["--every", "3", "--out", str(out), "--json", str(tmp_path / "said.json")]
    assert main([models["plain"], str(folder / "clip.mp4"), *options]) == 0
    written = list(frames(out / "clip.mp4"))
    assert len(written) == 4
    assert written[0].fps == pytest.approx(10 / 3, rel=1e-3)
    assert len({frame.image.shape for frame in written}) == 1
    assert written[0].image.shape[0] > 80
    assert written[0].image.shape[1] >= 96
    for frame, value in zip(written, range(0, 240, 60), strict=True):
        assert abs(int(frame.image[32, 48, 0]) - value) < 8
        assert frame.image[66:].max() > 230
    assert [record["frame"] for record in json.loads((tmp_path / "said.json").read_text())] == [0, 3, 6, 9]


def test_attention_has_a_panel_a_word(models, folder, tmp_path):
    out = tmp_path / "out"
    sources = [str(folder / "x.png"), str(folder / "clip.mp4")]
    options = ["--attention", "--every", "6", "--out", str(out), "--csv", str(tmp_path / "said.csv")]
    assert main([models["attends"], *sources, *options]) == 0
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert files == ["attention/clip/000000.jpg", "attention/clip/000006.jpg", "attention/x.png", "clip.mp4", "x.png"]
    words = len(read_csv(tmp_path / "said.csv")[0]["sentence"].split())
    sheet = read_image(out / "attention" / "x.png")
    assert sheet.shape[0] * sheet.shape[1] > (words + 1) * 256**2


def test_no_attention_to_draw_is_one_line(models, folder, tmp_path, capsys):
    assert run("predict", [models["plain"], str(folder / "x.png"), "--attention", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "plain.ckpt writes its sentences without attention" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("way", [[], ["--region-way", "crop"], ["--region-way", "roi"]], ids=str)
def test_regions_are_described(models, folder, tmp_path, way):
    files = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.csv")]
    options = ["--regions", models["detector"], "--score", "0.1", *way]
    assert main([models["attends"], str(folder / "x.png"), *options, *files]) == 0
    (record,) = json.loads((tmp_path / "x.json").read_text())
    first, *rows = read_csv(tmp_path / "x.csv")
    assert first["sentence"] == record["caption"]
    assert first["category"] == first["x0"] == ""
    assert len(record["regions"]) == len(rows) > 2
    for region, row in zip(record["regions"], rows, strict=True):
        assert region["category"] == row["category"]
        assert region["category"] in CATEGORIES
        assert 0.1 <= region["detection_score"] <= 1
        assert (region["caption"], str(region["score"])) == (row["sentence"], row["log_probability"])
        x, y, width, height = region["bbox"]
        corners = [float(row[name]) for name in ("x0", "y0", "x1", "y1")]
        np.testing.assert_allclose([x, y, x + width, y + height], corners, atol=2e-3)
        assert 0 <= corners[0] <= corners[2] <= 80
    drawn, source = read_image(tmp_path / "out" / "x.png"), read_image(folder / "x.png")
    assert not np.array_equal(drawn[:80], source)
    assert len(drawn) > 80 + 13 * (1 + len(rows))


def test_no_regions_found(models, folder, tmp_path):
    options = ["--regions", models["detector"], "--score", "1", "--json", str(tmp_path / "x.json"), "--no-pictures"]
    assert main([models["attends"], str(folder / "x.png"), *options]) == 0
    (record,) = json.loads((tmp_path / "x.json").read_text())
    assert record["regions"] == []


def test_chance_gives_other_sentences(models, folder, tmp_path):
    said = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        options = ["--sample", "--temperature", "1.5", "--nucleus", "0.9", "--count", "4"]
        assert (
            main([models["attends"], str(folder / "x.png"), "--no-pictures", *options, "--csv", f"{tmp_path}/x.csv"])
            == 0
        )
        said.append([row["sentence"] for row in read_csv(tmp_path / "x.csv")])
        assert len(said[-1]) == 4
    assert said[0] != said[1] == said[2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Greedy(7)),
        (["--beam", "3"], Beam(3, most=7)),
        (["--count", "8"], Beam(8, most=7, count=8)),
        (["--beam", "9", "--count", "2"], Beam(9, most=7, count=2)),
    ],
    ids=str,
)
def test_how_sentences_are_found(models, monkeypatch, folder, tmp_path, options, expected):
    used = []
    monkeypatch.setattr(
        predict_captions, "tell", lambda model, *_: used.append(model.search) or predict_captions.Tally()
    )
    load = predict_captions.load_mean

    def greedy(*arguments):
        model = load(*arguments)
        model.search = Greedy(7)
        return model

    monkeypatch.setattr(predict_captions, "load_mean", greedy)
    main([models["plain"], str(folder), "--no-pictures", "--csv", str(tmp_path / "x.csv"), *options])
    assert used == [expected]


DETECTORS_OWN = {
    "track": ["--track"], "tiles": ["--tiles", "64"], "classes": ["--classes", "circle"], "flip": ["--flip"],
    "upturn": ["--upturn"], "multiscale": ["--multiscale", "1"], "svd": ["--svd", "2", "2"],
    "ensemble": ["--ensemble", "a.ckpt"],
}  # fmt: skip


@pytest.mark.parametrize("name", DETECTORS_OWN)
def test_what_is_for_detectors_is_refused(models, folder, capsys, name):
    assert run("predict", [models["attends"], str(folder), *DETECTORS_OWN[name]]) == 2
    assert f"is a captioner and takes no --{name}: leave it out\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "0.5"], "for which --score goes with --regions"),
        (["--region-way", "roi"], "for which --region-way goes with --regions"),
        (["--temperature", "2"], "for which --temperature goes with --sample"),
        (["--sample", "--beam", "5"], "--sample and --beam contradict each other"),
        (["--attention", "--no-pictures", "--csv", "x.csv"], "--attention and --no-pictures contradict each other"),
        (["--sample", "--temperature", "0"], "temperature must be more than 0"),
        (["--sample", "--nucleus", "2"], "nucleus must be in (0, 1]"),
        (["--beam", "2", "--count", "3"], "count must be at most the width of 2"),
        (["--regions", "{attends}"], "finds no objects, it is made for captioning; name a detector"),
        (["--regions", "{classifier}"], "finds no objects, it is made for classification"),
        (["--regions", "nothing.ckpt"], "no checkpoint at nothing.ckpt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(models, folder, capsys, options, message):
    options = [option.format(**models) for option in options]
    assert run("predict", [models["attends"], str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [["--attention"], ["--beam", "5"], ["--count", "1"], ["--sample"], ["--regions", "x.ckpt"], ["--nucleus", "1"]],
    ids=lambda options: options[0],
)
def test_detectors_write_no_sentences(models, folder, capsys, options):
    assert run("predict", [models["detector"], str(folder), *options]) == 2
    assert f"detector.ckpt writes no sentences: leave out {options[0]}\n" in capsys.readouterr().err


def test_a_source_is_never_written_over(models, folder, capsys):
    before = (folder / "x.png").read_bytes()
    assert run("predict", [models["plain"], str(folder), "--out", str(folder)]) == 2
    assert "is a source and would be written over" in capsys.readouterr().err
    assert (folder / "x.png").read_bytes() == before
    nested = folder / "attention" / "clip" / "000000.jpg"
    write_image(nested, draw(0, 3, 80).image)
    sources = [str(folder / "clip.mp4"), str(nested)]
    with pytest.raises(ValueError, match="is a source"), PictureCloser(folder / "attention", sources) as files:
        files.add_alone(next(iter(frames(sources[0]))), draw(0, 4, 80).image)


class PictureCloser(PictureFiles):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Fake(NamedTuple):
    """Stands in for a captioner: counts, and does `then` at each picture."""

    then: object

    def __call__(self, model, image):
        self.then()
        captions = Captions(torch.tensor([[4, 2]]), torch.tensor([-1.0]))
        return Said(captions, ["кот"], [["кот"]], (1, 1), (1.0, 1.0))


def test_ctrl_c_leaves_whole_files(monkeypatch, folder, tmp_path):
    count = iter(range(100))
    monkeypatch.setattr(
        predict_captions, "caption", Fake(lambda: os.kill(os.getpid(), signal.SIGINT) if next(count) == 2 else None)
    )
    handler = signal.getsignal(signal.SIGINT)
    with (
        CaptionResults(tmp_path / "said.json") as results,
        CaptionTable(tmp_path / "said.csv") as table,
        CaptionedPictures(PictureFiles(tmp_path, []), 2) as drawn,
    ):
        tally = tell(None, frames(folder / "clip.mp4"), [results, table, drawn])
    assert tally.stopped
    assert tally.line().startswith("stopped after 3 pictures, 3 sentences in ")
    assert [record["frame"] for record in json.loads((tmp_path / "said.json").read_text())] == [0, 1, 2]
    assert [row["sentence"] for row in read_csv(tmp_path / "said.csv")] == ["кот"] * 3
    assert len(list(frames(tmp_path / "clip.mp4"))) == 3
    assert signal.getsignal(signal.SIGINT) is handler


class Watch:
    """Counts the frames that are alive at each turn."""

    def __init__(self):
        self.images, self.most = [], 0

    def write(self, number, frame, told):
        assert isinstance(told, Told)
        self.images.append(weakref.ref(frame.image))
        self.most = max(self.most, sum(image() is not None for image in self.images))


def test_no_frame_is_kept(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(predict_captions, "caption", Fake(lambda: None))
    watch = Watch()
    with CaptionedPictures(PictureFiles(tmp_path, []), 2) as drawn, CaptionResults(tmp_path / "x.json") as results:
        tally = tell(None, frames([folder / "clip.mp4"] * 5), [drawn, results, watch])
    assert tally.pictures == len(watch.images) == 60
    assert watch.most <= 2


def test_demo_clip(models, real_data, tmp_path):
    options = ["--every", "100", "--out", str(tmp_path), "--csv", str(tmp_path / "x.csv")]
    assert main([models["attends"], str(real_data("demo") / "car-detection.mp4"), *options]) == 0
    written = list(frames(tmp_path / "car-detection.mp4"))
    assert len(written) == len(read_csv(tmp_path / "x.csv")) == 4
    assert len({frame.image.shape for frame in written}) == 1
