import hashlib
import io
import logging
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from sightline.backbone import (
    BACKBONE_OF,
    BACKBONES,
    OLD_TORCHVISION,
    WeightsError,
    build_backbone,
    load_weights,
    sources,
    stages,
)
from sightline.backbone.resnet import resnet18_classifier


def model(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1))


def saved(content, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapping", [None, "state_dict", "model", "ema"])
def test_loads_every_tensor_wherever_it_lies(tmp_path, wrapping):
    source, target = model(), model()
    content = source.state_dict() if wrapping is None else {wrapping: source.state_dict(), "epoch": 3}
    report = load_weights(target, saved(content, tmp_path / "m.pth"), key="ema" if wrapping == "ema" else None)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    assert (len(report.loaded), report.missing, report.unexpected, report.mismatched) == (9, [], [], [])


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source, target = model(), model()
    path = tmp_path / "m.safetensors"
    safetensors.save_file(source.state_dict(), path)
    load_weights(target, path)
    assert torch.equal(target[0].weight, source[0].weight)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        load_weights(target, path)


def test_half_precision_becomes_the_models_dtype(tmp_path):
    source, target = model().half(), model()
    load_weights(target, saved(source.state_dict(), tmp_path / "m.pth"))
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.float())


def test_partial_loads_are_named_and_reported(tmp_path, caplog):
    content = model(classes=7).state_dict() | {"head.weight": torch.ones(1)}
    del content["0.bias"]
    target = model()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    path = saved(content, tmp_path / "m.pth")
    with pytest.raises(WeightsError) as error:
        load_weights(target, path)
    for part in (str(path), "0.bias", "head.weight", "2.weight (file 7x4x1x1 float32, model 3x4x1x1 float32)"):
        assert part in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items()), (
        "a refused load changed it"
    )
    with caplog.at_level(logging.WARNING, "sightline.backbone.weights"):
        report = load_weights(target, path, allow_missing=("0.bias", "2."), allow_unexpected=("head.",))
    assert report.missing == ["0.bias"]
    assert report.unexpected == ["head.weight"]
    assert [key for key, _, _ in report.mismatched] == ["2.weight", "2.bias"]
    assert report.summary() in caplog.text
    assert torch.equal(target[2].weight, before["2.weight"])
    assert torch.equal(target[0].weight, content["0.weight"])


NOT_ALLOWED = {
    "missing": ({"allow_unexpected": ("head.",), "allow_missing": ("2.",)}, "0.bias"),
    "unexpected": ({"allow_missing": ("0.", "2.")}, "head.weight"),
    "mismatched": ({"allow_missing": ("0.",), "allow_unexpected": ("head.",)}, "2.weight"),
}


@pytest.mark.parametrize("case", NOT_ALLOWED)
def test_each_kind_has_to_be_allowed(tmp_path, case):
    content = model(classes=7).state_dict() | {"head.weight": torch.ones(1)}
    del content["0.bias"]
    allowed, key = NOT_ALLOWED[case]
    with pytest.raises(WeightsError, match=key):
        load_weights(model(), saved(content, tmp_path / "m.pth"), **allowed)


def test_a_file_of_nothing_that_fits_is_refused_whatever_is_allowed(tmp_path):
    with pytest.raises(WeightsError, match="0 tensors loaded"):
        load_weights(
            model(), saved({"x": torch.ones(1)}, tmp_path / "m.pth"), allow_missing=("",), allow_unexpected=("",)
        )


def test_batch_counters_are_neither_missed_nor_unexpected(tmp_path):
    content = {key: value for key, value in model().state_dict().items() if "num_batches" not in key}
    assert load_weights(model(), saved(content, tmp_path / "m.pth")).missing == []
    source = build_backbone("resnet10_narrow_fpn", norm="batch").state_dict()
    frozen = build_backbone("resnet10_narrow_fpn", norm="frozen")
    assert load_weights(frozen, saved(source, tmp_path / "b.pth")).unexpected == []


def test_old_torchvision_keys_are_renamed(tmp_path):
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    new = detector.state_dict()
    old = {
        key.replace("rpn.head.conv.0.0.", "rpn.head.conv.") if "rpn" in key else _without_index(key): value
        for key, value in new.items()
    }
    assert "backbone.fpn.inner_blocks.0.weight" in old
    assert "rpn.head.conv.weight" in old
    path = saved(old, tmp_path / "old.pth")
    for content in (path, saved(new, tmp_path / "new.pth")):
        assert set(load_weights(detector, content, rename=OLD_TORCHVISION).loaded) >= {
            "backbone.fpn.inner_blocks.0.0.weight",
            "rpn.head.conv.0.0.bias",
        }
    backbone = build_backbone("mobilenet_v3_large_fpn")
    renames = (*OLD_TORCHVISION, (r"^backbone\.", ""))
    report = load_weights(backbone, path, rename=renames, allow_unexpected=("rpn.", "roi_heads."))
    assert not report.missing
    assert torch.equal(backbone.fpn.layer_blocks[1][0].weight, new["backbone.fpn.layer_blocks.1.0.weight"])


def _without_index(key: str) -> str:
    return key.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "fpn" in key else key


WITHIN = {
    "a training checkpoint": ("detector.backbone.", {"detector.rpn.w": torch.ones(1), "ema": torch.ones(2)}),
    "a captioner's checkpoint": ("captioner.backbone.", {"captioner.decoder.w": torch.ones(1)}),
    "a model with a pyramid": ("backbone.body.", {"roi_heads.w": torch.ones(1)}),
    "the model alone": ("", {}),
}


@pytest.mark.parametrize("case", WITHIN)
def test_a_part_of_a_larger_model(tmp_path, case):
    prefix, others = WITHIN[case]
    source, target = model(), model()
    content = {f"{prefix}{key}": value for key, value in source.state_dict().items()} | others
    report = load_weights(target, saved({"state_dict": content}, tmp_path / "m.ckpt"), within=BACKBONE_OF)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())
    assert (report.left_out, report.unexpected) == (list(others), [])
    assert all(key in report.summary() for key in others)


def test_two_parts_of_one_name_are_refused(tmp_path):
    content = {
        f"{prefix}{key}": x for prefix in ("backbone.", "detector.backbone.") for key, x in model().state_dict().items()
    }
    with pytest.raises(
        WeightsError, match=r"two parts of the file have '0.weight', the second is 'detector.backbone.0.w"
    ):
        load_weights(model(), saved(content, tmp_path / "m.pth"), within=BACKBONE_OF)


def test_nothing_is_left_out_unasked(tmp_path):
    content = model().state_dict() | {"rpn.w": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"not in the model: rpn.w"):
        load_weights(model(), saved(content, tmp_path / "m.pth"), within=BACKBONE_OF)


def test_renames_that_collide_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"two keys become '0.weight' after renaming, the second is '2.weight'"):
        load_weights(model(), saved(model().state_dict(), tmp_path / "m.pth"), rename=[("^2", "0")])


class Code:
    def __reduce__(self):
        return os.path.join, ("a", "b")


def _truncated(path: Path) -> None:
    torch.save(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])


def _truncated_old_format(path: Path) -> None:
    torch.save(model().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])


BAD_FILES = {
    "truncated": (_truncated, "truncated, damaged"),
    "truncated, old format": (_truncated_old_format, "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "truncated, damaged"),
    "a web page": (lambda path: path.write_text("<html>not found</html>"), "damaged, or no file that torch.save wrote"),
    "a word": (lambda path: path.write_text("broken"), "damaged, or no file that torch.save wrote"),
    "random bytes": (lambda path: path.write_bytes(bytes(range(256)) * 9), "damaged"),
    "pickled code": (lambda path: torch.save({"a": Code()}, path), "holds pickled Python objects .*refused"),
    "code in a plain pickle": (lambda path: path.write_bytes(pickle.dumps(Code(), 2)), "holds pickled Python.*refused"),
    "a whole model": (
        lambda path: torch.save(model(), path),
        r"objects \(torch.nn.modules.container.Sequential\).*refused",
    ),
    "a list": (lambda path: torch.save([1, 2], path), "no dictionary of tensors; it holds a list"),
    "numbers": (lambda path: torch.save({"epoch": 3}, path), "it holds keys epoch. Name the right one with key="),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "nothing": (lambda path: None, "no weights at"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    write, message = BAD_FILES[case]
    path = tmp_path / "bad.pth"
    write(path)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(model(), path)
    assert str(path) in str(error.value)


def test_a_key_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match="no dictionary of tensors at key 'ema'; it holds keys state_dict, epoch"):
        load_weights(model(), saved({"state_dict": model().state_dict(), "epoch": 1}, tmp_path / "m.pth"), key="ema")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


class Response(io.BytesIO):
    def __init__(self, content: bytes, length: int | None = None):
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content) if length is None else length)}


def bytes_of(state_dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    return buffer.getvalue()


def test_downloads_once_and_checks_the_hash(cache, monkeypatch):
    source, asked = model(), []
    content = bytes_of(source.state_dict())
    name = f"m-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    url = f"https://example.org/{name}"
    monkeypatch.setattr(
        sources, "urlopen", lambda request, timeout: asked.append(request.full_url) or Response(content)
    )
    for _ in range(2):
        target = model()
        load_weights(target, url)
        assert torch.equal(target[0].weight, source[0].weight)
    assert asked == [url]
    assert [path.name for path in cache.iterdir()] == [name]
    (cache / name).write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=f"{name} is damaged: its name promises a SHA-256"):
        load_weights(model(), url)


def test_a_broken_connection_leaves_nothing_behind(cache, monkeypatch):
    monkeypatch.setattr(sources, "urlopen", lambda request, timeout: Response(b"half", 100))
    with pytest.raises(WeightsError, match="the connection broke after 4 of 100 bytes"):
        load_weights(model(), "https://example.org/m.pth")
    assert list(cache.iterdir()) == []


def test_without_a_network_the_error_says_which_file_goes_where(cache, monkeypatch):
    def unreachable(request, timeout):
        raise URLError("Name or service not known")

    monkeypatch.setattr(sources, "urlopen", unreachable)
    with pytest.raises(WeightsError) as error:
        build_backbone("resnet50_fpn_v2", weights="imagenet")
    assert "could not download https://download.pytorch.org/models/resnet50-0676ba61.pth" in str(error.value)
    assert f"put it at {cache / 'resnet50-0676ba61.pth'}" in str(error.value)


def test_unknown_named_sources():
    with pytest.raises(WeightsError, match=r"'imagnet' for resnet18 .known: 'imagenet'.; did you mean 'imagenet'"):
        build_backbone("resnet18_fpn", weights="imagnet")
    with pytest.raises(WeightsError, match=r"no weights named 'imagenet' for resnet10_narrow .known: none"):
        build_backbone("resnet10_narrow_fpn", weights="imagenet")


def test_named_sources_carry_a_hash():
    for files in sources.SOURCES.values():
        for url in files.values():
            assert sources.HASH.search(url), url


CLASSIFIERS = {
    "resnet18_fpn": torchvision.models.resnet18,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "mobilenet_v3_large_fpn": torchvision.models.mobilenet_v3_large,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifiers_file_loads_into_the_body(tmp_path, name):
    classifier = CLASSIFIERS[name](num_classes=5)
    backbone = build_backbone(name, weights=saved(classifier.state_dict(), tmp_path / "c.pth"), trainable_stages=1)
    stem = stages(backbone)[-1][1][0]
    assert torch.equal(stem, next(classifier.parameters()))
    assert not stem.requires_grad


def test_fine_tuning_another_number_of_classes(tmp_path):
    target = resnet18_classifier(7)
    path = saved(torchvision.models.resnet18(num_classes=5).state_dict(), tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"fc.weight .file 5x512 float32, model 7x512 float32."):
        load_weights(target, path)
    assert [key for key, _, _ in load_weights(target, path, allow_missing=("fc.",)).mismatched] == [
        "fc.weight",
        "fc.bias",
    ]


def test_every_body_with_named_weights_is_found():
    bodies = {
        name.split("_fpn")[0].removesuffix("_lite")
        for name in BACKBONES
        if not name.startswith(("csp_darknet", "yolo"))
    } - {
        "resnet10_narrow",
        "mobilenet_v2_tf",
        "lenet",
        "alexnet_2012",
        "zfnet",
        "googlenet_2014",
    }
    assert bodies <= sources.SOURCES.keys()
