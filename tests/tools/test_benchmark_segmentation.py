"""`sightline benchmark` of segmenters, beside torchvision's."""

import json

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from sightline.datasets.label_maps import read_label_maps
from sightline.datasets.table import DataError
from sightline.detectors import classifier, save
from sightline.segmentation import Segmenter, fcn_resnet50, load
from sightline.segmentation.model import Outputs
from sightline.tools.benchmark_models import build, kind_of, peers
from sightline.tools.benchmark_segmentation import (
    SegmentationRow,
    own_size,
    score_segmenters,
    segment,
    text_table,
    time_segmenters,
)
from sightline.tools.main import main
from sightline.tools.timing import pictures
from sightline.training.segmentation_scoring import score_segmenter

LRASPP = "torchvision:lraspp_mobilenet_v3_large"


class Clock:
    """Time passes only where a test says so."""

    def __init__(self):
        self.ms = 0.0


class Stage(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.layer = clock, nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, images):
        self.clock.ms += 40
        return self.layer(images)


class Slow(Segmenter):
    """Takes 40 ms in its backbone, twice, and 20 after it."""

    def __init__(self, clock):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=2)
        self.backbone, self.clock = Stage(clock), clock

    def forward(self, images, sizes):
        images = self.normalize(images, sizes)
        logits = self.backbone(images) + self.backbone(images)
        self.clock.ms += 20
        return Outputs(logits)


def test_stages_operations_and_parameters(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("sightline.tools.timing.now", lambda _: clock.ms)
    (row,) = time_segmenters({"slow": Slow(clock).eval()}, None, {"slow": (32, 64)}, 2, 3)
    assert row.times == [100] * 3
    assert row.stages == {"input": 0, "backbone": 80, "head": 20}
    assert row.rate == pytest.approx(20)
    assert row.gflops * 1e9 == 2 * 2 * 32 * 64 * 3 * 2  # of one picture
    assert (row.parameters, row.size) == (6, (32, 64))
    assert text_table([row]).splitlines()[1].split() == [
        "slow", "32x64", "2", "-", "-", "20.0", "100.0", "0.0", "80.0", "20.0", "0.00", "0.0"
    ]  # fmt: skip


def test_whole_command(segmenter, label_data, tmp_path, capsys):
    """Ours with scores, torchvision's with random weights beside it."""
    path = tmp_path / "deep" / "table.json"
    options = ["--data", str(label_data), "--split", "test", "--batch", "1", "2", "--repeats", "1", "--device", "cpu"]
    assert main(["benchmark", segmenter, LRASPP, *options, "--json", str(path), "--size", "64", "96"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{LRASPP}: not scored, its weights are random; give it some: {LRASPP}@WEIGHTS" in lines
    header = "model pixels batch mean IoU pixel acc. images/s ms input backbone head M params GFLOP"
    first = next(i for i, line in enumerate(lines) if line.split() == header.split())
    assert [line.split()[:3] for line in lines[first + 1 :]] == [
        [model, "64x96", batch] for batch in "12" for model in (segmenter, LRASPP)
    ]
    expected = score_segmenter(load(segmenter, device="cpu"), read_label_maps(label_data)["test"], progress=False)
    summary = expected.result.summary()
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        if row["model"] == segmenter:
            assert row["scores"] == pytest.approx({name: summary[name] for name in ("mean_IoU", "pixel_accuracy")})
            assert f"{summary['mean_IoU']:.3f}" in lines[first + 1]
        else:
            assert row["scores"] == {}
        assert row["gflops"] > 0
        assert set(row["stages"]) == {"input", "backbone", "head"}


def test_why_one_is_not_scored(segmenter, label_data, capsys):
    (label_data / "categories.csv").write_text((label_data / "categories.csv").read_text().replace("star", "comet"))
    table, models = read_label_maps(label_data)["test"], {segmenter: load(segmenter, device="cpu")}
    row = SegmentationRow(segmenter, 1, [1.0], {}, 1)
    score_segmenters(models, table, [row])
    assert row.scores == {}
    assert f"{segmenter}: not scored: the model knows 7 categories" in capsys.readouterr().out


def test_what_is_timed_is_what_predicts(segmenter):
    model = load(segmenter, device="cpu")
    batch = pictures(None, 2, (64, 96))
    labels = segment(model, batch).labels
    assert labels.shape == (2, 64, 96)
    assert torch.equal(labels, model.segment(batch.images, batch.sizes).labels)


def test_size(segmenter, label_data):
    model, table = load(segmenter, device="cpu"), read_label_maps(label_data)["test"]
    assert own_size("a", model, table, None) == (64, 64)
    assert own_size("a", model, None, [32, 48]) == (32, 48)
    with pytest.raises(DataError, match=r"a takes pictures of any shape.*--size 360 480"):
        own_size("a", model, None, None)
    model.resize = (48, 64, True)
    assert own_size("a", model, None, None) == own_size("a", model, table, None) == (48, 64)


def test_torchvision_s_model_is_ours(tmp_path):
    """The same weights, the same label maps; a file with a second head loads into a network without."""
    theirs = get_model("fcn_resnet50", weights=None, weights_backbone=None, aux_loss=True)
    torch.save(theirs.state_dict(), tmp_path / "fcn.pth")
    peer = build(f"torchvision:fcn_resnet50@{tmp_path / 'fcn.pth'}", "cpu")
    ours = fcn_resnet50(weights=str(tmp_path / "fcn.pth")).eval()
    batch = pictures(None, 2, (40, 64))
    found, expected = (model(*batch.inputs).logits for model in (peer, ours))
    torch.testing.assert_close(found[:, :, :40], expected[:, :, :40], rtol=1e-4, atol=1e-4)
    assert peer.categories[:2] == ["background", "aeroplane"]
    assert not peer.training


def test_kinds(segmenter, tmp_path):
    assert {"fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"} <= set(peers())
    words = {segmenter: "segmenter", LRASPP: "segmenter", "torchvision:maskrcnn_resnet50_fpn@coco": "detector"}
    assert {word: kind_of(word) for word in words} == words


def test_kinds_are_not_mixed(segmenter, mask_detector, tmp_path, capsys):
    save(classifier("lenet", 2), tmp_path / "classifier.ckpt")
    for models, message in (
        ([segmenter, mask_detector], f"{segmenter} gives label maps and {mask_detector} objects"),
        ([str(tmp_path / "classifier.ckpt"), LRASPP], f"classifier.ckpt gives objects and {LRASPP} label maps"),
        ([LRASPP, "show_and_tell"], f"{LRASPP} gives label maps and show_and_tell sentences"),
        ([segmenter], "takes pictures of any shape"),
        (["torchvision:fcn_resnet5"], "no 'fcn_resnet5' among torchvision's"),
        ([segmenter, "--data", str(tmp_path)], "Label maps are known as"),
    ):
        assert main(["benchmark", *models, "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err
