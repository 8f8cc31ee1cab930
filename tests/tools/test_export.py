"""`sightline export`: files answer as the model does, and whoever cannot have one is told why."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline import captioning, detectors, segmentation
from sightline.captioning.search import Greedy
from sightline.captioning.vocabulary import SPECIAL, Vocabulary
from sightline.datasets.images import write_image
from sightline.datasets.structures import Captions, Instances, LabelMaps
from sightline.tools import export
from sightline.tools.export_files import agreement, answers_of, open_onnx, open_torch, tensors
from sightline.tools.main import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def eager(model, *layers):
    """With larger random weights in these layers, so that scores differ and boxes move."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(tuple(f"{layer}.weight" for layer in layers)):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def faster_rcnn():
    anchor_sizes = ((8,), (16,), (32,), (48,))
    model = detectors.faster_rcnn(
        "resnet10_narrow_fpn", 3, norm="batch", anchor_sizes=anchor_sizes, proposals=16, head_width=16, detections=10
    )
    model.categories, model.resize = ["dog", "cat", "owl"], (64, 96)
    return eager(model, "cls_score", "roi_heads.box_predictor.bbox_pred")


def segmenter():
    model = segmentation.fcn8s("resnet10_narrow", 3, head_width=8)
    model.resize = (64, 64, True)
    return eager(model, "score", "skips.0", "skips.1")


def classifier():
    model = detectors.classifier("lenet", 3)
    model.categories, model.resize = ["dog", "cat", "owl"], (32, 32, True)
    return model.eval()


def captioner():
    words = [*SPECIAL, "dog", "cat", "owl"]
    model = captioning.show_attend_tell("resnet10_narrow", len(words), width=8, embedding=8, attention_width=8)
    model.vocabulary, model.resize, model.search = Vocabulary(words), (64, 64, True), Greedy(3)
    return eager(model)


def saved(model, path):
    detectors.save(model, path)
    return str(path)


def noise(shape, seed=1):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    """A checkpoint and what the command made of it, for two pictures."""
    folder = tmp_path_factory.mktemp("export")
    checkpoint = saved(faster_rcnn(), folder / "best.ckpt")
    assert main(["export", checkpoint, "--batch", "2"]) == 0
    return checkpoint, folder / "best.onnx"


def test_a_detector_answers_alike_on_pictures_it_was_not_checked_with(detector_file):
    checkpoint, path = detector_file
    model, run = detectors.load(checkpoint, device="cpu"), open_onnx(path)
    for seed in range(5):
        images, sizes = noise((2, 3, 64, 96), seed), torch.tensor([[64, 96], [40, 61]])
        expected, given = answers_of(model, images, sizes), run(images, sizes)
        for value, ours in zip(given, tensors(expected).values(), strict=True):
            assert value.dtype == ours.dtype
            assert value.shape == ours.shape
        alike, total = agreement(expected, given)
        assert alike == total > 2


def test_the_file_is_complete_in_itself(detector_file):
    session = onnxruntime.InferenceSession(detector_file[1])
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("images", "tensor(uint8)", [2, 3, 64, 96]),
        ("sizes", "tensor(int64)", [2, 2]),
    ]
    assert {node.domain for node in onnx.load(detector_file[1]).graph.node} == {""}
    assert [value.name for value in session.get_outputs()] == ["boxes", "labels", "scores"]
    about = json.loads(session.get_modelmeta().custom_metadata_map["sightline"])
    assert about == {
        "task": "detection",
        "frame": [64, 96],
        "resize": [64, 96],
        "categories": ["dog", "cat", "owl"],
    }
    assert sorted(path.name for path in detector_file[1].parent.iterdir()) == ["best.ckpt", "best.onnx"]


@pytest.mark.parametrize("build", [segmenter, classifier, captioner])
def test_models_of_other_kinds(build, tmp_path, capsys):
    model = build()
    checkpoint = saved(model, tmp_path / "best.ckpt")
    assert main(["export", checkpoint, "--output", str(tmp_path / "graph.onnx")]) == 0
    images, sizes = noise((1, 3, *model.resize[:2])), torch.tensor([model.resize[:2]])
    alike, total = agreement(answers_of(model, images, sizes), open_onnx(tmp_path / "graph.onnx")(images, sizes))
    assert alike == total > 0
    assert "1 picture in a frame of" in capsys.readouterr().out


def test_torchs_own_format(tmp_path):
    checkpoint = saved(faster_rcnn(), tmp_path / "best.ckpt")
    assert main(["export", checkpoint, "--to", "torch", "--size", "96", "64"]) == 0
    images, sizes = noise((1, 3, 96, 64)), torch.tensor([[90, 64]])
    expected = answers_of(detectors.load(checkpoint, device="cpu"), images, sizes)
    alike, total = agreement(expected, open_torch(tmp_path / "best.pt2")(images, sizes))
    assert alike == total > 2
    kept = {"sightline": ""}
    torch.export.load(tmp_path / "best.pt2", extra_files=kept)
    assert json.loads(kept["sightline"])["frame"] == [96, 64]


@pytest.mark.slow
@pytest.mark.parametrize("beam", ["1", "3"])
@pytest.mark.parametrize("name", captioning.CAPTIONERS)
def test_every_captioner_and_search(name, beam, tmp_path):
    words = [*SPECIAL, "dog", "cat", "owl"]
    model = eager(captioning.CAPTIONERS[name]("resnet10_narrow", len(words), width=8))
    model.vocabulary, model.resize, model.search = Vocabulary(words), (64, 64, True), Greedy(6)
    checkpoint = saved(model, tmp_path / "best.ckpt")
    assert main(["export", checkpoint, "--beam", beam]) == 0


def yolox():
    """With norms that have seen pictures: else almost nothing comes through so many of them."""
    model = detectors.DETECTORS["yolox_nano"](3).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(noise((4, 3, 64, 64)), torch.full((4, 2), 64))
    return eager(model, *(f"{kind}_preds.{level}" for kind in ("cls", "obj") for level in range(3)))


def masks(name):
    body = "resnet10_narrow_fpn" if name == "mask_rcnn" else "resnet10_narrow"
    anchors = {"anchor_sizes": ((8,), (16,), (32,), (48,))} if name == "mask_rcnn" else {}
    model = segmentation.INSTANCE_SEGMENTERS[name](body, 3, proposals=16, **anchors)
    return eager(model, "cls_score", "roi_heads.box_predictor.bbox_pred")


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        yolox,
        lambda: eager(detectors.DETECTORS["yolov1"]("resnet10_narrow", 3)),
        lambda: detectors.DETECTORS["localization"]("resnet10_narrow", 3),
        lambda: detectors.DETECTORS["overfeat"](3),
        lambda: masks("mask_rcnn"),
        lambda: masks("hypercolumn"),
        lambda: masks("mnc"),
        lambda: eager(segmentation.SEGMENTERS["deeplabv3_plus"]("resnet18", 3)),
        lambda: eager(segmentation.SEGMENTERS["farabet"](num_classes=3)),
        lambda: eager(segmentation.SEGMENTERS["recurrent_labeling"](3)),
    ],
    ids=[
        "yolox",
        "yolov1",
        "localization",
        "overfeat",
        "mask_rcnn",
        "hypercolumn",
        "mnc",
        "deeplabv3_plus",
        "farabet",
        "recurrent_labeling",
    ],
)
def test_every_kind_of_model(build, tmp_path):
    model = build().eval()
    if len(model.resize) == 2:
        model.resize = (288, 288) if hasattr(model, "scales") else (64, 64)  # OverFeat sees windows of 221
    assert main(["export", saved(model, tmp_path / "best.ckpt")]) == 0


# -- What is refused --


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    detector, named = saved(faster_rcnn(), tmp_path / "best.ckpt"), saved(classifier(), tmp_path / "classifier.ckpt")
    proposed = detectors.DETECTORS["fast_rcnn"]("resnet10_narrow", 3)
    told = saved(proposed.eval(), tmp_path / "fast.ckpt")
    autoencoder = saved(detectors.DETECTORS["autoencoder"]("lenet").eval(), tmp_path / "autoencoder.ckpt")
    (tmp_path / "yolox_nano.onnx").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for words, message in {
        (detector, "--output", "a.pt2"): "a.pt2 must end in .onnx, as --to onnx writes it",
        (detector, "--output", "no/a.onnx"): "no folder no",
        (detector, "--size", "50", "64"): "multiples of 32, --size 64 64 say",
        (named, "--size", "64", "64"): "takes pictures of 32 x 32 alone",
        (detector, "--beam", "3"): "--beam is for captioners",
        (autoencoder,): "is an autoencoder, which finds nothing",
        (told,): "looks where SelectiveSearch says",
        ("yolox_nano@yolox_nano.onnx",): "holds the weights that are read: write to another file",
        ("missing.ckpt",): "no checkpoint at missing.ckpt",
        (detector, "--picture", "missing.jpg"): "missing.jpg",
        ("",): "no checkpoint at",
        ("@yolox_nano.pth",): "no checkpoint at @yolox_nano.pth",
    }.items():
        assert main(["export", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "best.onnx").exists()


def never(*arguments):
    raise AssertionError("this takes minutes")


@pytest.mark.parametrize("name", ["onnxscript", "onnxruntime"])
def test_without_the_packages(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch.export, "export", never)
    assert main(["export", saved(classifier(), tmp_path / "best.ckpt")]) == 2
    assert f'{name} is missing: pip install "sightline[export]"' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_file_that_cannot_be_written_is_told_of_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "write", never)
    path = tmp_path / f"{'a' * 250}.onnx"  # its partial file's name is too long
    assert main(["export", saved(classifier(), tmp_path / "best.ckpt"), "--output", str(path)]) == 2
    assert ".partial.onnx: File name too long" in capsys.readouterr().err


def test_a_failure_without_words_is_one_line_too(tmp_path, capsys, monkeypatch):
    def failing(*arguments):
        raise AssertionError

    monkeypatch.setattr(torch.export, "export", failing)
    assert main(["export", saved(classifier(), tmp_path / "best.ckpt"), "--to", "torch"]) == 2
    assert "no single graph: AssertionError" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def blind():
    model = faster_rcnn()
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[:1], 1e4)  # of the background
    return model


def diverged():
    model = classifier()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    return model


@pytest.mark.parametrize("build", [blind, diverged])
def test_a_model_that_finds_nothing_cannot_be_checked(build, tmp_path, capsys):
    checkpoint = saved(build(), tmp_path / "best.ckpt")
    assert main(["export", checkpoint, "--to", "torch"]) == 2
    assert "finds nothing in the picture" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("wrong", ["answers", "stopped"])
def test_no_file_is_left_that_does_not_answer_alike(wrong, tmp_path, capsys, monkeypatch):
    def opened(path):
        if wrong == "stopped":
            raise KeyboardInterrupt
        return lambda images, sizes: [torch.zeros(1, 3, 4), torch.arange(3)[None], torch.zeros(1, 3)]

    monkeypatch.setitem(export.WAYS, "torch", export.WAYS["torch"]._replace(opened=opened))
    assert main(["export", saved(classifier(), tmp_path / "best.ckpt"), "--to", "torch"]) == (
        1 if wrong == "answers" else 130
    )
    assert ("only 0 of the model's 3 answers" in capsys.readouterr().err) == (wrong == "answers")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


# -- What a file is checked with, and where it goes --


def arguments(**given):
    return argparse.Namespace(**{"batch": 1, "picture": None, "to": "onnx", "output": None} | given)


def test_pictures_keep_their_shape_unless_the_model_stretches_them(tmp_path):
    write_image(tmp_path / "wide.png", np.full((20, 40, 3), 255, np.uint8))
    wide = arguments(picture=str(tmp_path / "wide.png"), batch=2)
    for stretched, size in ((False, [48, 96]), (True, [64, 96])):
        images, sizes = export._pictures(wide, (64, 96), stretched=stretched)
        assert sizes.tolist() == [size] * 2
        assert images.count_nonzero() == 2 * 3 * size[0] * size[1]


@pytest.mark.parametrize(
    ("checkpoint", "path"),
    [
        ("best.ckpt", "best.onnx"),
        ("a@b/best-v1.2.ckpt", "a@b/best-v1.2.onnx"),
        ("yolox_nano@weights/nano.pth", "yolox_nano.onnx"),
    ],
)
def test_a_file_lies_beside_its_checkpoint(checkpoint, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert export._path(arguments(checkpoint=checkpoint)) == Path(path)


# -- Comparing --


def compared(expected, found):
    return agreement(expected, [*tensors(found).values()])


OBJECTS = Instances(
    torch.tensor([[[0.0, 0, 8, 8], [20, 20, 30, 30], [0, 0, 0, 0]]]),
    torch.tensor([[1, 0, -1]]),
    torch.tensor([[0.9, 0.8, 0]]),
)


def test_objects_count_whatever_their_order():
    turned = OBJECTS.map(lambda value: value[:, [1, 0, 2]])
    assert compared(OBJECTS, turned) == (2, 2)


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        ({"boxes": OBJECTS.boxes + 0.04}, (2, 2)),
        ({"boxes": OBJECTS.boxes + 0.06}, (0, 2)),
        ({"scores": OBJECTS.scores + torch.tensor([0.002, 0, 0])}, (1, 2)),
        ({"labels": torch.tensor([[1, 1, -1]])}, (1, 2)),
        ({"labels": torch.tensor([[1, -1, -1]])}, (1, 2)),
        ({"labels": torch.tensor([[1, 0, 0]])}, (2, 3)),
    ],
)
def test_objects_that_differ_do_not_count(change, counted):
    assert compared(OBJECTS, replace(OBJECTS, **change)) == counted


def test_masks_count():
    whole = replace(OBJECTS, masks=torch.full((1, 3, 4, 4), 0.7))
    assert compared(whole, whole) == (2, 2)
    assert compared(whole, replace(whole, masks=whole.masks - 0.01)) == (0, 2)


def test_pixels_and_words():
    maps = LabelMaps(torch.tensor([[[0, 1], [2, -1]]]), torch.tensor([[[0.5, 0.5], [0.9, 0]]]))
    assert compared(maps, maps) == (3, 3)
    assert compared(maps, replace(maps, labels=maps.labels.clamp(max=1))) == (2, 3)
    said = Captions(torch.tensor([[[4, 5, 2, 0]]]), torch.zeros(1, 1), torch.full((1, 1, 4, 2), 0.5))
    assert compared(said, said) == (3, 3)
    assert compared(said, replace(said, tokens=torch.tensor([[[4, 6, 2, 0]]]))) == (2, 3)
    assert compared(said, replace(said, scores=said.scores - 0.01)) == (0, 3)
    elsewhere = said.attention.clone()
    elsewhere[0, 0, 1] = torch.tensor([0.4, 0.6])
    assert compared(said, replace(said, attention=elsewhere)) == (2, 3)
