"""Cost against work: sweeps, the powers they grow by, and their charts."""

import json

import cv2
import numpy as np
import pytest
import torch

from sightline.detectors import faster_rcnn, save
from sightline.tools.benchmark_measure import Measured
from sightline.tools.benchmark_plots import Curve, plot_sweep
from sightline.tools.benchmark_sweep import AXES, exponent, growth_table, growths, records, report, sweep, write
from sightline.tools.benchmark_work import Setting
from sightline.tools.main import main

TINY = Setting("cpu", size=(64, 64))


def point(value, ms, memory, *, model="ours", work="training"):
    peer = model.startswith("torchvision:")
    return value, Measured(model, 1, [ms], "detection", peer, work, TINY, [ms / 2], memory)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power(power):
    work = [1, 3, 10, 50]
    assert exponent(work, [7 * each**power for each in work]) == pytest.approx(power, abs=1e-9)


def test_exponents_that_cannot_be_had():
    assert exponent([5], [1.0]) is None
    assert exponent([5, 5], [1.0, 2.0]) is None
    assert exponent([], []) is None


def test_growth_is_that_of_the_upper_half():
    """Constant at first, as most costs are; then the square. 0 has no logarithm and is left out."""
    points = [point(v, max(100, v * v), 50 + 0 * v) for v in (0, 1, 2, 16, 32, 64)]
    time, memory = growths(AXES["objects"], points)
    assert (time.cost, time.first, time.last) == ("time", 16, 64)
    assert time.exponent == pytest.approx(2)
    assert memory.exponent == pytest.approx(0)
    text = growth_table("objects", [time, memory])
    assert text.splitlines()[-1] == "faster than linearly with the objects grows: time of training of ours (2.00)"
    assert growth_table("objects", [memory]).endswith("grows: nothing")


def test_sizes_count_as_pixels():
    points = [point(side, side**2 / 1000, None) for side in (320, 640, 1280)]
    (time,) = growths(AXES["size"], points)  # of memory nothing is known
    assert time.exponent == pytest.approx(1)
    assert "exponent of pixels" in growth_table("size", [time])


def test_settings_of_the_axes():
    setting = Setting("cpu", batch=3)
    assert AXES["batch"].at(setting, 5).batch == 5
    assert AXES["size"].at(setting, 64).size == (64, 64)
    assert AXES["objects"].at(setting, 0).objects == 0
    assert AXES["classes"].at(setting, 9).classes == 9
    for axis in AXES.values():
        assert list(axis.grid) == sorted(set(axis.grid))
        assert axis.grid[0] >= axis.least


def test_points_come_in_order_and_without_those_that_did_not_fit(monkeypatch):
    def measure(specs, work, setting, repeats):
        return [] if setting.objects == 8 else [point(0, 1.0, None, work=work)[1]]

    monkeypatch.setattr("sightline.tools.benchmark_sweep.measure", measure)
    points = list(sweep(["a"], AXES["objects"], [64, 8, 0, 64], TINY, 1))
    assert [[value for value, _ in some] for some in points] == [[0], [], [64]]


def test_whole_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sightline.tools.benchmark_measure._peak", lambda *_: 12.3)
    small = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 32}
    save(faster_rcnn("resnet10_narrow_fpn", 6, **small), tmp_path / "best.ckpt")
    options = ["--size", "64", "64", "--repeats", "1", "--device", "cpu", "--output", str(tmp_path / "deep" / "speed")]
    options += ["--batch", "1", "--json", str(tmp_path / "all.json")]
    assert (
        main(
            [
                "benchmark",
                "speed",
                str(tmp_path / "best.ckpt"),
                *options,
                "--sweep",
                "objects",
                "--grid",
                "0",
                "8",
                "20",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "faster than linearly with the objects grows" in out
    content = json.loads((tmp_path / "deep" / "speed" / "objects.json").read_text())
    assert [(p["value"], p["work"], p["setting"]["objects"]) for p in content["points"]] == [
        (n, "training", n) for n in (0, 8, 20)
    ]
    assert json.loads((tmp_path / "all.json").read_text())["rows"] == content["points"]
    assert {one["cost"] for one in content["growth"]} == {"time", "memory"}
    assert colours(tmp_path / "deep" / "speed" / "objects.png") > 20


def test_batches_and_classes(tmp_path, monkeypatch, capsys):
    """Both works at every value; a number of classes makes another model."""
    asked = []

    def prepared(spec, work, setting):
        asked.append((work, setting.batch, setting.classes))
        raise torch.OutOfMemoryError

    monkeypatch.setattr("sightline.tools.benchmark_measure.prepare", prepared)
    options = ["--device", "cpu", "--output", str(tmp_path), "--grid", "1", "4"]
    for name, more, expected in (
        ("batch", [], [(1, None), (4, None)]),
        ("classes", ["--batch", "2"], [(2, 1), (2, 4)]),
    ):
        asked.clear()
        assert main(["benchmark", "speed", "yolox_nano", *options, *more, "--sweep", name]) == 0
        assert asked == [(work, *each) for each in expected for work in ("inference", "training")]
        assert json.loads((tmp_path / f"{name}.json").read_text()) == {"points": [], "growth": []}
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    assert "out of memory; left out" in capsys.readouterr().out


def test_chart(tmp_path):
    """Points without memory, a single point, a zero: all are drawn."""
    curves = [
        Curve("ours", "training", [0, 8, 64], [10.0, 11.0, 14.0], [None, None, None]),
        Curve("torchvision:fasterrcnn_resnet50_fpn", "training", [0, 8, 64], [20.0, 30.0, 90.0], [100.0, 110.0, 300.0]),
        Curve("one", "inference", [8], [5.0], [50.0]),
    ]
    plot_sweep(curves, tmp_path / "all.png", name="objects of a picture", work=lambda value: value)
    plot_sweep(curves[:0], tmp_path / "none.png", name="objects of a picture", work=lambda value: value)
    assert colours(tmp_path / "all.png") > colours(tmp_path / "none.png")


@pytest.mark.filterwarnings("error")
def test_a_chart_of_what_was_measured(tmp_path):
    """Where nobody tells how much memory is taken, there is no panel for it."""
    curves = [Curve("ours", "training", [1, 8], [10.0, 11.0], memory) for memory in ([None, None], [None, 5.0])]
    widths = []
    for curve in curves:
        plot_sweep([curve], tmp_path / "chart.png", name="pictures of a batch", work=lambda value: value)
        widths.append(cv2.imread(str(tmp_path / "chart.png")).shape[1])
    assert widths[0] < 0.7 * widths[1]


def test_reports_of_models_that_ran_out_early(tmp_path):
    points = [point(1, 5.0, 10.0), point(1, 9.0, 20.0, model="torchvision:a"), point(4, 9.0, 12.0)]
    write("batch", points, tmp_path)
    content = json.loads((tmp_path / "batch.json").read_text())
    assert content["points"] == json.loads(json.dumps(records("batch", points)))
    assert [(one["model"], one["value"]) for one in content["points"]] == [
        ("ours", 1),
        ("torchvision:a", 1),
        ("ours", 4),
    ]
    assert [one["exponent"] is None for one in content["growth"]] == [False, False, True, True]
    assert report("batch", points).count("torchvision:a") == 3


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError("a fault")])
def test_points_are_kept_whatever_ends_the_sweep(end, tmp_path, monkeypatch, capsys):
    def measure(specs, work, setting, repeats):
        if setting.batch == 4:
            raise end
        return [point(0, 1.0, None, work=work)[1]]

    monkeypatch.setattr("sightline.tools.benchmark_sweep.measure", measure)
    options = ["--sweep", "batch", "--output", str(tmp_path / "out"), "--json", str(tmp_path / "all.json")]
    command = ["benchmark", "speed", "yolox_nano", "--device", "cpu", *options]
    if end is KeyboardInterrupt:
        assert main(command) == 130
    else:
        with pytest.raises(RuntimeError, match="a fault"):
            main(command)
    points = json.loads((tmp_path / "out" / "batch.json").read_text())["points"]
    assert [(one["value"], one["work"]) for one in points] == [
        (value, work) for value in (1, 2) for work in ("inference", "training")
    ]
    assert json.loads((tmp_path / "all.json").read_text())["rows"] == points
    assert colours(tmp_path / "out" / "batch.png") > 20
    assert capsys.readouterr().out.count("inference") == 3  # two points and their growth


def colours(path):
    """How many a picture has: an empty one has a single one."""
    return len(np.unique(cv2.imread(str(path)).reshape(-1, 3), axis=0))
