"""The command that compares models."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model

from sightline.backbone import WeightsError
from sightline.datasets.proposals import Boxes, Proposer
from sightline.datasets.shapes import CATEGORIES, shapes_table
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.detectors import Detector, fast_rcnn, faster_rcnn, save
from sightline.tools.benchmark import main, score_models, text_table
from sightline.tools.benchmark_detection import Row, _peak_memory, detect, time_models
from sightline.tools.benchmark_models import build, has_weights, peers
from sightline.tools.main import run
from sightline.tools.stages import STAGES
from sightline.tools.timing import alternate, now, pictures
from sightline.training import score

MOBILE = "fasterrcnn_mobilenet_v3_large_fpn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    small = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 32}
    model = faster_rcnn("resnet10_narrow_fpn", 6, **small)
    model.categories, model.resize = list(CATEGORIES), (64, 96)
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    save(model, path)
    return str(path)


class Clock:
    """Time passes only where a test says so."""

    def __init__(self):
        self.ms = 0.0


class Stage(nn.Module):
    def __init__(self, clock, ms):
        super().__init__()
        self.clock, self.ms, self.layer = clock, ms, nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images, *_):
        self.clock.ms += self.ms
        return images


class Slow(Detector):
    """Takes 20, 40 and 60 ms for its stages, and has one convolution in the last."""

    def __init__(self, clock):
        super().__init__(mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=2)
        self.backbone, self.rpn, self.clock = Stage(clock, 20), Stage(clock, 40), clock

    def detect(self, images, sizes):
        self.rpn(self.backbone(self.normalize(images, sizes)), sizes)
        self.clock.ms += 60
        self.backbone.layer(images.float())
        nothing = torch.zeros(len(images), 1)
        return Instances(torch.zeros(len(images), 1, 4), nothing.long() - 1, nothing)


def test_stages_operations_and_parameters(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("sightline.tools.timing.now", lambda _: clock.ms)
    monkeypatch.setattr("sightline.tools.benchmark_detection._peak_memory", lambda *_: None)
    (row,) = time_models({"slow": Slow(clock).eval()}, None, (32, 64), 2, 3)
    assert row.times == [120, 120, 120]
    assert row.stages == {"input": 0, "backbone": 20, "proposals": 40, "head": 60}
    assert row.rate == pytest.approx(2000 / 120)
    assert row.parameters == 2 * (4 * 3 * 9 + 4)
    assert row.gflops * 1e9 == 2 * 32 * 64 * 4 * 3 * 9  # of one picture, not of two


def test_real_time_passes():
    before = now(torch.device("cpu"))
    time.sleep(0.02)
    assert 20 <= now(torch.device("cpu")) - before < 2000  # milliseconds


def test_models_take_turns():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    results = alternate(jobs, 3, "test")
    assert "".join(calls) == "ababababab"
    assert results == {"a": [5, 7, 9], "b": [6, 8, 10]}


def test_pictures_have_the_size_asked_for():
    table = shapes_table("val", 2, 48)
    batch = pictures(table, 3, (40, 70))
    assert batch.images.shape == (3, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[40, 70]] * 3
    assert torch.equal(batch.images[0], batch.images[2])
    assert not torch.equal(batch.images[0], batch.images[1])


def test_whole_command(checkpoint, tmp_path, capsys, monkeypatch):
    """Ours and torchvision's in one table."""
    monkeypatch.setattr("sightline.tools.benchmark_detection._peak_memory", lambda *_: 12.3)
    path = tmp_path / "deep" / "table.json"
    models = [checkpoint, f"torchvision:{MOBILE}"]
    options = ["--size", "64", "96", "--batch", "1", "2", "--repeats", "1", "--device", "cpu", "--json", str(path)]
    assert main([*models, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"\(cpu\), \d+ threads, PyTorch 2\.", lines[0])
    assert lines[1].split()[:4] == ["model", "batch", "AP", "images/s"]
    assert [line.split()[:3] for line in lines[2:6]] == [[m, b, "-"] for b in "12" for m in models]
    assert lines[6].startswith("MiB: ")
    content = json.loads(path.read_text())
    assert content["size"] == [64, 96]
    ours, theirs = content["rows"][:2]
    assert theirs["parameters"] == sum(p.numel() for p in get_model(MOBILE, weights_backbone=None).parameters())
    assert ours["stages"].keys() == theirs["stages"].keys() == set(STAGES)


def test_what_was_measured_before_ctrl_c_is_in_the_file(checkpoint, tmp_path, capsys, monkeypatch):
    """Times after each batch size, scores after each model."""
    path, copy = tmp_path / "table.json", tmp_path / "copy.ckpt"
    copy.write_bytes(Path(checkpoint).read_bytes())

    def timed(models, *_):
        return [Row(spec, 1, [1.0], {}, 1, 1.0, None) for spec in models]

    def scored(models, _, rows):
        if str(copy) in models:
            raise KeyboardInterrupt
        rows[0].AP = 0.5

    monkeypatch.setattr("sightline.tools.benchmark.time_models", timed)
    monkeypatch.setattr("sightline.tools.benchmark.score_models", scored)
    assert run("benchmark", [checkpoint, str(copy), "--data", "shapes", "--device", "cpu", "--json", str(path)]) == 130
    assert [row["AP"] for row in json.loads(path.read_text())["rows"]] == [0.5, None]
    monkeypatch.setattr("sightline.tools.benchmark.score_models", lambda *_: pytest.fail("scored"))
    monkeypatch.setattr("sightline.tools.benchmark.time_models", lambda *a: timed(*a) if a[3] == 1 else scored(*a[:3]))
    assert run("benchmark", [checkpoint, str(copy), "--batch", "1", "2", "--device", "cpu", "--json", str(path)]) == 130
    assert [row["AP"] for row in json.loads(path.read_text())["rows"]] == [None, None]


def test_memory_of_a_process_that_runs_one_model(checkpoint):
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells")
    found = _peak_memory(checkpoint, build(checkpoint, "cpu"), pictures(None, 1, (64, 96)))
    assert 2 < found < 300  # the weights alone are 3.4 MiB; what Python and torch take by themselves is not counted


def test_accuracy_is_the_scorer_s(checkpoint, capsys):
    table = shapes_table("val", 6, 64)
    names = [checkpoint, "faster_rcnn"]
    rows = [Row(name, 2, [1.0], {}, 1, 1.0, None) for name in names]
    model = build(checkpoint, "cpu")
    score_models({checkpoint: model, "faster_rcnn": Slow(Clock())}, table, rows)
    assert score(model, table, progress=False).result.summary()["AP"] == rows[0].AP
    assert rows[1].AP is None
    assert "faster_rcnn: not scored, its weights are random; give it some: faster_rcnn@W" in capsys.readouterr().out
    model.categories[0] = "disc"
    rows[0].AP = None
    score_models({checkpoint: model}, table, rows[:1])
    assert rows[0].AP is None
    assert f"{checkpoint}: not scored: the model knows 6 categories" in capsys.readouterr().out


@torch.no_grad()
def test_torchvision_behind_our_verb_is_torchvision(tmp_path):
    """The same detections as from its own interface, and its weights are read by ours too."""
    torch.manual_seed(0)
    network = get_model(MOBILE, weights=None, weights_backbone=None, min_size=40, max_size=70).eval()
    layer = network.roi_heads.box_predictor.cls_score
    spreads = []
    layer.register_forward_hook(lambda _, __, logits: spreads.append(logits.std()))
    network([torch.rand(3, 40, 70)])
    layer.weight.mul_(2 / spreads[0])  # scores of random layers would all be too low
    torch.save(network.state_dict(), tmp_path / "weights.pth")

    batch = pictures(None, 2, (40, 70))  # in a frame of 64 x 96
    wrapped = build(f"torchvision:{MOBILE}@{tmp_path / 'weights.pth'}", "cpu")
    found, expected = detect(wrapped, batch), network(list(batch.images[..., :40, :70] / 255))
    for i in range(2):
        assert len(found[i]) == len(expected[i]["boxes"]) > 3
        assert torch.equal(found[i].labels + 1, expected[i]["labels"])
        np.testing.assert_allclose(found[i].scores, expected[i]["scores"], atol=1e-5)
        np.testing.assert_allclose(found[i].boxes, expected[i]["boxes"], atol=1e-3)

    ours = build(f"faster_rcnn_mobilenet_v3@{tmp_path / 'weights.pth'}", "cpu")
    assert torch.equal(ours.roi_heads.box_predictor.cls_score.weight, layer.weight)


def test_table_is_aligned():
    stages = {"input": 1.0, "backbone": 22.25, "head": 3.0}
    one = Row("a", 1, [30.0, 20.0, 70.0], stages, 1_500_000, 2.0, 345.6, AP=0.5)
    other = Row("long", 8, [800.0], {}, 7, 0.0, None)
    lines = text_table([one, other]).splitlines()
    assert len(set(map(len, lines))) == 1
    assert " ".join(lines[0].split()) == "model batch AP images/s ms input backbone head M params GFLOP MiB"
    assert " ".join(lines[1].split()) == "a 1 0.500 33.3 30.0 1.0 22.2 3.0 1.50 2.0 346"
    assert " ".join(lines[2].split()) == "long 8 - 10.0 800.0 - - - 0.00 0.0 -"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("faster_rcn", DataError, "no model 'faster_rcn'; did you mean 'faster_rcnn'"),
        ("torchvision:ssd300_vgg16", DataError, "no 'ssd300_vgg16' among torchvision's"),
        ("nothing.ckpt", WeightsError, "no checkpoint at nothing.ckpt"),
        ("faster_rcnn@nothing.pth", WeightsError, "nothing.pth"),
        (f"torchvision:{MOBILE}@nothing.pth", WeightsError, "nothing.pth"),
    ],
)
def test_models_that_are_not_there(spec, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build(spec, "cpu")


def test_what_has_weights():
    assert MOBILE in peers()
    assert not has_weights("faster_rcnn")
    assert not has_weights(f"torchvision:{MOBILE}")
    assert has_weights("faster_rcnn@coco")
    assert has_weights("runs/1/best.ckpt")


def test_mistakes_are_one_line(checkpoint, tmp_path, capsys):
    assert run("benchmark", [checkpoint, "--data", str(tmp_path / "nothing"), "--device", "cpu"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([checkpoint, "--batch", "0"])
    assert "must be a whole number from 1, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sped", "--training"], "no checkpoint, no model and no command 'sped'; did you mean 'speed'?"),
        (["linage", "--backbone", "vgg16"], "no command 'linage'; did you mean 'lineage'?"),
        (["faster_rcn"], "no checkpoint and no model 'faster_rcn'; did you mean 'faster_rcnn'?"),
        (["sped.ckpt"], "no checkpoint at sped.ckpt"),
    ],
)
def test_commands_and_models_that_are_mistyped(words, message, capsys):
    """The nearest of both is offered, before a command's options are taken for mistakes."""
    assert run("benchmark", words) == 2
    assert message in capsys.readouterr().err


@dataclass(frozen=True)
class Timed(Proposer):
    """One box, after a minute."""

    clock: Clock
    limit: int = 1

    def __call__(self, image):
        self.clock.ms += 60_000
        return Boxes(np.array([[0, 0, *image.shape[1::-1]]], np.float32), np.ones(1, np.float32))


class Regional(Slow):
    """Needs proposals."""

    def detect(self, images, sizes, proposals):
        assert proposals.boxes[:, 0].tolist() == [[0, 0, 64, 32]] * len(images)
        return super().detect(images, sizes)


def test_the_time_of_proposals_is_not_counted(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("sightline.tools.timing.now", lambda _: clock.ms)
    monkeypatch.setattr("sightline.tools.benchmark_detection._peak_memory", lambda *_: None)
    models = {"plain": Slow(clock).eval(), "regional": Regional(clock).eval()}
    models["regional"].proposer = Timed(clock)
    for row in time_models(models, None, (32, 64), 2, 3):
        assert row.times == [120, 120, 120]


@pytest.mark.slow
def test_memory_of_a_model_with_proposals(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells")
    small = {"norm": "batch", "proposer": "sliding_window", "proposals": 10, "head_width": 16}
    save(fast_rcnn("resnet10_narrow", 6, **small), tmp_path / "best.ckpt")
    model = build(str(tmp_path / "best.ckpt"), "cpu")
    assert 2 < _peak_memory(str(tmp_path / "best.ckpt"), model, pictures(None, 1, (64, 96), model.proposer)) < 300
