"""`sightline benchmark speed`: what is timed, its tables, and the commands."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from sightline.backbone import WeightsError
from sightline.datasets.table import DataError
from sightline.detectors import faster_rcnn, save
from sightline.tools import benchmark_speed, peak_memory
from sightline.tools.benchmark_loading import time_loading
from sightline.tools.benchmark_measure import Measured, Split, described, leaving_out, measure
from sightline.tools.benchmark_models import build_alike, dictionaries
from sightline.tools.benchmark_speed import faster, stage_table, text_table
from sightline.tools.benchmark_work import Setting, batch_for, built, prepare, prepare_alone, random_objects
from sightline.tools.main import main
from sightline.tools.peak_memory import STATUS, Killed, resident

MOBILE = "torchvision:fasterrcnn_mobilenet_v3_large_fpn"
LRASPP = "torchvision:lraspp_mobilenet_v3_large"
TINY = Setting("cpu", batch=2, size=(64, 64), objects=3, precision="float32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    small = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 32}
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    save(faster_rcnn("resnet10_narrow_fpn", 6, **small), path)
    return str(path)


@pytest.fixture
def no_memory(monkeypatch):
    """Processes of their own take long to start."""
    monkeypatch.setattr("sightline.tools.benchmark_measure._peak", lambda *_: 12.3)


def test_the_floor_is_the_backbone_on_what_the_model_gives_it(checkpoint):
    one = prepare(checkpoint, "inference", TINY)
    batch = batch_for(one.model, TINY)
    with torch.inference_mode():
        expected = one.model.backbone(one.model.normalize(*batch.inputs))
    (maps,) = one.floor()
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    assert all(a.is_contiguous(memory_format=torch.channels_last) for a in maps)
    assert one.whole().boxes.shape[0] == 2


def test_a_step_teaches_all_weights_and_changes_none(checkpoint):
    one = prepare(checkpoint, "training", TINY)
    before = {name: value.clone() for name, value in one.model.named_parameters()}
    one.floor()
    learnt = {name for name, value in one.model.named_parameters() if value.grad is not None}
    assert learnt == {name for name in before if name.startswith("backbone.")}
    one.whole()
    assert all(value.grad is not None for value in one.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in one.model.named_parameters())
    assert one.model.training


@pytest.mark.parametrize("objects", [0, 3])
def test_torchvision_learns_from_the_same_objects(objects):
    setting = Setting("cpu", batch=2, size=(40, 60), objects=objects)
    ours = random_objects(setting, 5, masks=True)
    theirs = dictionaries(ours, (64, 64))
    assert ours.boxes.shape == (2, 8, 4)
    for i, target in enumerate(theirs):
        assert torch.equal(target["boxes"], ours[i].boxes)
        assert torch.equal(target["labels"], ours[i].labels + 1)
        assert target["masks"].shape == (objects, 64, 64)
        for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            rows, columns = mask.nonzero().unbind(1)
            assert (columns.min(), rows.min()) == pytest.approx(box[:2], abs=1)
            assert (columns.max() + 1, rows.max() + 1) == pytest.approx(box[2:], abs=1)
    assert ours.boxes.min() >= 0
    assert (ours.boxes <= torch.tensor([60, 40, 60, 40])).all()


@pytest.mark.parametrize("objects", [0, 2])
def test_torchvision_s_step(objects):
    setting = Setting("cpu", batch=1, size=(64, 64), objects=objects)
    one = prepare(MOBILE, "training", setting)
    one.whole()
    assert one.model.network.roi_heads.box_predictor.cls_score.weight.grad is not None
    one.floor()
    assert one.model.network.roi_heads.box_predictor.cls_score.weight.grad is None


def test_models_of_random_weights_have_the_same_to_do():
    for spec in ("faster_rcnn_mobilenet_v3", MOBILE):
        model = build_alike(spec, "cpu", 7)
        network = getattr(model, "network", model)
        assert network.roi_heads.box_predictor.cls_score.out_features == 8
        assert len(model.categories) == 7
        assert {type(m) for m in network.backbone.modules() if "BatchNorm" in type(m).__name__} == {nn.BatchNorm2d}
    assert build_alike("fcn_resnet50", "cpu").aux_classifier is None
    assert len(build_alike(LRASPP, "cpu", 4).categories) == 4


def test_the_same_weights_each_time():
    one, other = (built("yolox_nano", TINY).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_compiled_are_ours_and_the_floors(checkpoint, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    setting = Setting("cpu", size=(64, 64), compiled=True)
    ours = prepare(checkpoint, "inference", setting)
    assert compiled == [ours.model.backbone, type(ours.model).detect.__get__(ours.model)]
    compiled.clear()
    theirs = prepare(MOBILE, "inference", setting)
    assert compiled == [theirs.model.network.backbone]
    compiled.clear()
    prepare(checkpoint, "training", setting)
    assert len(compiled) == 2
    ours.whole(), ours.floor(), theirs.floor()
    compiled.clear()
    prepare_alone(checkpoint, "inference", setting)
    assert compiled == []


def test_memory_of_a_step_in_a_process_of_its_own(checkpoint):
    if not STATUS.exists():
        pytest.skip("only Linux tells")
    weights = sum(p.numel() for p in built(checkpoint, TINY).parameters()) * 4 / 2**20
    assert 3 * weights < resident(prepare_alone, checkpoint, "training", TINY) < 400  # gradients and momentum too


def test_what_comes_before_a_model(monkeypatch):
    times = time_loading(TINY, 1)
    assert times.keys() == {"ours", "torchvision's"}
    assert all(side["data"] > 0 for side in times.values())
    assert all(side.keys() == {"data", "transfer"} for side in times.values())


def row(model, ms, floor, *, task="detection", batch=1, memory=None):
    setting = Setting("cpu", batch=batch)
    return Measured(model, batch, ms, task, model.startswith("torchvision:"), "inference", setting, floor, memory)


def test_tables():
    rows = [
        row("torchvision:fcn", [1.0], [], task="segmentation"),
        row("ours", [20.0, 10.0, 90.0], [5.0, 8.0, 7.0], memory=120.4),
        row("torchvision:a", [50.0], [40.0]),
        row("torchvision:b", [25.0], [20.0]),
        row("ours", [400.0], [], batch=8),
    ]
    assert [faster(each, rows) for each in rows] == [1.0, 2.5, 1.0, 2.0, None]
    lines = text_table(rows).splitlines()
    assert len(set(map(len, lines))) == 1
    assert lines[0].split() == ["model", "batch", "ms", "images/s", "floor", "ms", "x", "floor", "x", "faster", "MiB"]
    assert lines[2].split() == ["ours", "1", "20.0", "50.0", "7.0", "2.86", "2.50", "120"]
    assert lines[5].split() == ["ours", "8", "400.0", "20.0", "-", "-", "-", "-"]
    splits = [Split("a", 1, {"data": 3.0, "transfer": 1.0, "NMS": 2.0, "backbone": 4.0}), Split("b", 8, {"head": 5.0})]
    assert [line.split() for line in stage_table(splits).splitlines()] == [
        ["model", "batch", "data", "transfer", "backbone", "head", "NMS"],
        ["a", "1", "3.0", "1.0", "4.0", "-", "2.0"],
        ["b", "8", "-", "-", "-", "5.0", "-"],
    ]


def test_whole_command(checkpoint, tmp_path, capsys, no_memory):
    path, size = tmp_path / "deep" / "table.json", ["--size", "64", "64", "--batch", "1", "--repeats", "1"]
    options = [*size, "--training", "--objects", "2", "--device", "cpu", "--json", str(path)]
    assert main(["benchmark", "speed", checkpoint, MOBILE, *options]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\(cpu\), \d+ threads, PyTorch 2\.", out)
    assert (
        out.index("inference, 64x64\n") < out.index("training, 64x64, 2 objects a picture\n") < out.index("stages of")
    )
    rows = json.loads(path.read_text())["rows"]
    assert [(r["model"], r.get("work")) for r in rows] == [
        (model, work) for work in ("inference", "training", None) for model in (checkpoint, MOBILE)
    ]
    for one in rows[:4]:
        assert one["to_floor"] == pytest.approx(one["ms"] / one["floor_ms"])
        assert one["images_per_second"] == pytest.approx(1000 / one["ms"])
        assert (one["memory"], one["setting"]["objects"]) == (12.3, 2)
    assert [r["faster"] for r in rows[:4]] == pytest.approx(
        [rows[1]["ms"] / rows[0]["ms"], 1, rows[3]["ms"] / rows[2]["ms"], 1]
    )
    stages = ["data", "transfer", "input", "backbone", "neck", "proposals", "pooling", "head", "NMS"]
    assert all(set(one["stages"]) == set(stages) for one in rows[4:])


def test_segmenters(segmenter, capsys, no_memory):
    options = ["--size", "40", "56", "--batch", "1", "--repeats", "1", "--training", "--device", "cpu"]
    assert main(["benchmark", "speed", segmenter, LRASPP, *options]) == 0
    out = capsys.readouterr().out
    assert out.count(f"{LRASPP} ") == 3
    assert "\ntraining, 40x56\n" in out  # no objects
    assert "NMS" not in out


def test_what_does_not_fit_is_left_out(checkpoint, capsys, monkeypatch, no_memory):
    def prepared(spec, work, setting):
        if spec == "large":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prepare(spec, work, setting)

    monkeypatch.setattr("sightline.tools.benchmark_measure.prepare", prepared)
    rows = measure(["large", checkpoint], "inference", TINY, 1)
    assert [each.model for each in rows] == [checkpoint]
    assert "inference of large, batch 2, 64x64: out of memory; left out" in capsys.readouterr().out
    assert measure(["large"], "inference", TINY, 1) == []


def test_objects_are_spoken_of_where_they_are_learnt_from():
    assert described("inference", TINY) == "batch 2, 64x64"
    assert described("training", TINY) == "batch 2, 64x64, 3 objects a picture"
    assert described("training", Setting("cpu", objects=None, classes=9)) == "batch 1, 800x1216, 9 classes"


def test_other_errors_are_not_hidden(monkeypatch, no_memory):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr("sightline.tools.benchmark_measure.prepare", broken)
    with pytest.raises(RuntimeError, match="something else"):
        measure(["any"], "inference", TINY, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["faster_rcn"], "no model 'faster_rcn'; did you mean 'faster_rcnn'"),
        (["torchvision:ssd300_vgg16"], "no 'ssd300_vgg16' among torchvision's"),
        (["show_and_tell"], "show_and_tell writes sentences"),
        (["classifier"], "classifier is a model of classification: only detectors and segmenters"),
        ([MOBILE, "--compile"], "--compile is for our models, and there are only torchvision's"),
        (["faster_rcnn", "--grid", "1", "2"], "--grid gives the values of one sweep"),
        (["faster_rcnn", "--grid", "1", "--sweep", "batch", "size"], "--grid gives the values of one sweep"),
        (["faster_rcnn", "--grid", "0", "8", "--sweep", "batch"], "--grid 0: a sweep over the batch starts from 1"),
        (["faster_rcnn", "--sweep", "batch", "--training"], "leave out --training"),
        (["faster_rcnn", "--sweep", "size", "--batch", "1", "8"], "--batch 1 8: a sweep is at one of them"),
        (["faster_rcnn", "--sweep", "batch", "--batch", "8"], "--batch 8: a sweep over the batch has its own"),
        (["faster_rcnn", "--output", "folder"], "--output folder is for the files of a sweep"),
        ([LRASPP, "--sweep", "objects"], "learns a label for each pixel, whatever the number of objects"),
        (["faster_rcnn@a.pth", "--sweep", "classes"], "faster_rcnn@a.pth knows its classes from its weights"),
    ],
)
def test_mistakes(options, message, capsys):
    assert main(["benchmark", "speed", *options, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_mistyped_options(capsys):
    for options, message in (
        (["--grid", "-1", "--sweep", "batch"], "--grid"),
        (["--sweep", "bach"], "invalid choice: 'bach'"),
        (["--precision", "half"], "invalid choice: 'half'"),
    ):
        with pytest.raises(SystemExit):
            main(["benchmark", "speed", *options])
        assert message in capsys.readouterr().err


def test_classes_are_those_of_the_weights(checkpoint):
    with pytest.raises(DataError, match="knows its classes from its weights"):
        build_alike(checkpoint, "cpu", 5)
    with pytest.raises(DataError, match="autoencoder cannot be asked for a number of classes"):
        build_alike("autoencoder", "cpu", 5)
    with pytest.raises(WeightsError):
        build_alike("nothing.ckpt", "cpu")


def test_help_has_the_commands_of_the_whole_table(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "speed", "--help"])
    out = capsys.readouterr().out
    assert "torchvision:maskrcnn_resnet50_fpn" in out
    assert "--size 520 520" in out
    assert max(map(len, out.splitlines())) <= 132


@pytest.mark.parametrize("name", ["measure", "measure_stages"])
def test_what_was_measured_before_ctrl_c_is_kept(name, checkpoint, tmp_path, monkeypatch, capsys, no_memory):
    """Written, shown, and the command ends as all do."""
    real, path = getattr(benchmark_speed, name), tmp_path / "table.json"

    def second_stops(specs, *arguments):
        if path.exists() and any(setting.batch == 2 for setting in arguments if isinstance(setting, Setting)):
            raise KeyboardInterrupt
        return real(specs, *arguments)

    monkeypatch.setattr(benchmark_speed, name, second_stops)
    options = ["--size", "64", "64", "--batch", "1", "2", "--repeats", "1", "--device", "cpu", "--json", str(path)]
    assert main(["benchmark", "speed", checkpoint, *options]) == 130
    rows = json.loads(path.read_text())["rows"]
    assert [(row.get("work"), row["batch"]) for row in rows] == {
        "measure": [("inference", 1)],
        "measure_stages": [("inference", 1), ("inference", 2), (None, 1)],
    }[name]
    out = capsys.readouterr().out
    assert out.count(checkpoint) == len(rows)
    assert out.endswith(f"stopped after {len(rows)} rows; written: {path}\n")
    assert os.listdir(tmp_path) == ["table.json"]


def test_stopped_at_once(monkeypatch, tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_speed, "measure", stop)
    options = ["--device", "cpu", "--json", str(tmp_path / "table.json")]
    assert main(["benchmark", "speed", "yolox_nano", *options]) == 130
    assert capsys.readouterr().out.endswith("stopped after 0 rows\n")
    assert not list(tmp_path.iterdir())


def test_all_models_are_known_before_the_first_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_speed, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    for second, message in (
        ("faster_rcn", "no model 'faster_rcn'"),
        ("yolox_nano@absent.pth", "absent.pth"),
        (str(tmp_path / "broken.ckpt"), "broken.ckpt"),
        (f"{MOBILE}@absent.pth", "absent.pth"),
        ("classifier", "is a model of classification"),
    ):
        assert main(["benchmark", "speed", "yolox_nano", second, "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err


def test_files_that_cannot_be_written_are_known_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_speed, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(benchmark_speed, "sweep", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("kept")
    for options in (
        ["--json", str(tmp_path)],
        ["--json", str(tmp_path / "file" / "table.json")],
        ["--sweep", "batch", "--output", str(tmp_path / "file")],
    ):
        assert main(["benchmark", "speed", "yolox_nano", "--device", "cpu", *options]) == 2
        assert options[-1] in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("memory", ["no_memory", "nothing"])
def test_pictures_too_small_to_learn_from(memory, checkpoint, monkeypatch, capsys):
    """Of 32x32 pixels a single cell is left; in a process of its own, and where memory cannot be had."""
    if memory == "no_memory":
        monkeypatch.setattr(peak_memory, "STATUS", Path("nowhere"))
    tiny = Setting("cpu", batch=1, size=(32, 32))
    assert measure([MOBILE], "training", tiny, 1) == []
    out = capsys.readouterr().out
    assert f"training of {MOBILE}, batch 1, 32x32, 8 objects a picture: a batch norm cannot learn" in out
    assert "32x32 pixels leaves of a channel: take --batch 2 or a larger --size; left out" in out


def test_processes_that_are_killed(capfd):
    if not STATUS.exists():
        pytest.skip("only Linux tells")
    with pytest.raises(Killed, match=r"^killed by signal 9 \(Killed\), most likely for want of memory$"):
        resident(signal.raise_signal, signal.SIGKILL)
    with leaving_out("one"):
        raise Killed(signal.SIGTERM)
    assert capfd.readouterr().out == "one: killed by signal 15 (Terminated); left out\n"
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        resident(int, "nothing that can be measured")
    assert "nothing that can be measured" in capfd.readouterr().err


def test_ctrl_c_while_memory_is_measured_is_quiet(tmp_path):
    """A terminal sends it to every process of the command."""
    if not STATUS.exists():
        pytest.skip("only Linux tells")
    flag = tmp_path / "flag"
    (tmp_path / "job.py").write_text(
        f"import pathlib, time\ndef wait():\n    pathlib.Path({str(flag)!r}).touch()\n    time.sleep(600)\n"
    )
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import job; from sightline.tools.peak_memory import resident\n"
        "try: resident(job.wait)\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **options) as process:
        while not flag.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60) == ("stopped\n", "")


def test_compiling_on_a_cpu_says_nothing_of_cuda():
    """Torch warns where CUDA's compiler is installed; what else it says there is let through."""
    assert main(["benchmark", "speed", "faster_rcn"]) == 2
    log = logging.getLogger("torch.utils.cpp_extension")
    for text in ("No CUDA runtime is found, using CUDA_HOME='/usr/local/cuda'", "another warning"):
        record = log.makeRecord(log.name, logging.WARNING, "", 0, text, (), None)
        assert bool(log.filter(record)) == (text == "another warning")


def test_no_model_downloads(monkeypatch):
    """Defaults have random weights."""
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("asked for weights"))
    assert built(MOBILE, TINY)
    assert not Path("runs/speed").exists()
