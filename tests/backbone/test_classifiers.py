"""Classifiers by name: outputs against torchvision's networks, weights from every kind of file, last layers, stages."""

import inspect
import logging
import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES

from sightline.backbone import (
    BACKBONES,
    CLASSIFIERS,
    FPN,
    BackboneWithFPN,
    WeightsError,
    build_backbone,
    build_classifier,
    sources,
    stages,
)
from sightline.backbone.norms import FrozenBatchNorm2d

TORCHVISION = [name for name in CLASSIFIERS if hasattr(torchvision.models, name)]
# Without these torchvision draws weights slowly, and on the meta device not at all.
NO_START = {name: {"init_weights": False} for name in TORCHVISION if name.startswith(("vgg", "googlenet"))}
WIDE = {"0": (4096, 25088), "3": (4096, 4096), "6": (7, 4096)}


@pytest.fixture(scope="module")
def wide_layers() -> dict[str, torch.Tensor]:
    """The fully connected layers of every VGG, half a gigabyte: drawn once."""
    weights = {f"classifier.{i}.weight": torch.empty(shape).uniform_(-0.02, 0.02) for i, shape in WIDE.items()}
    return weights | {f"classifier.{i}.bias": torch.randn(shape[0]) / 10 for i, shape in WIDE.items()}


@pytest.mark.parametrize("name", TORCHVISION)
def test_equals_torchvision(name, wide_layers):
    """Every network that torchvision has too, https://github.com/pytorch/vision/tree/main/torchvision/models."""
    vgg = name.startswith("vgg")
    state = (
        build_backbone(name, norm="batch").state_dict() | wide_layers if vgg else build_classifier(name, 7).state_dict()
    )
    pretend_trained({key: tensor for key, tensor in state.items() if not (vgg and key in wide_layers)})
    with torch.device("meta"):
        ours = build_classifier(name, 7).eval()
        theirs = getattr(torchvision.models, name)(num_classes=7, **NO_START.get(name, {})).eval()
    for model in (ours, theirs):
        model.load_state_dict(state, assign=True)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        logits = ours(images)
        torch.testing.assert_close(logits, theirs(images), rtol=1e-5, atol=1e-5)
    assert logits.shape == (1, 7)
    assert logits.std() > 1e-3, "the signal died on its way; nothing was compared"


def pretend_trained(state: dict[str, torch.Tensor]) -> None:
    """Norms and biases away from their initial values, so that swapping two of them shows."""
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))


def test_torchvision_is_asked_for_all_that_it_has():
    ours_alone = {"st_cnn", "lenet", "alexnet_2012", "zfnet", "googlenet_2014", "mobilenet_v2_tf"}
    ours_alone |= {"yolo20", "yolo20_bn", "yolo9", "yolo9_bn"}
    assert set(CLASSIFIERS) - set(TORCHVISION) == ours_alone


# Counted in torchvision's files, or by hand from the papers' layers: LeNet-5's 60,000 and 850 of a linear output;
# AlexNet's "60 million"; VGG's table 2 (133, 133, 138 and 144 million).
PARAMETERS = {
    "lenet": 60_850,
    "alexnet": 61_100_840,
    "alexnet_2012": 60_965_224,
    "zfnet": 62_357_608,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "squeezenet1_1": 1_235_496,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    with torch.device("meta"):
        model = CLASSIFIERS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_states_what_a_classifier_states(name):
    with torch.device("meta"):
        model = build_classifier(name, 5)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 5)
        wider = model(torch.empty(2, 3, 97, 130))
    assert wider.shape == (2, 5), "any image size"
    head = model.get_submodule(model.head_name)
    assert head.weight.shape[0] == 5
    assert (model.strides, model.channels, len(model.mean), len(model.std)) == ((), (), 3, 3)
    groups = stages(model)
    assert groups[0][0] == "head"
    assert any(parameter is head.weight for parameter in groups[0][1])
    assert all(group for _, group in groups)


def test_every_builder_is_called_alike():
    for name, build in CLASSIFIERS.items():
        classes, norm = inspect.signature(build).parameters.values()
        assert (classes.name, norm.name, norm.kind) == ("num_classes", "norm", norm.KEYWORD_ONLY), name
        assert classes.default == (10 if name == "lenet" else 1000), name
    assert set(CLASSIFIERS) - set(BACKBONES) == {"st_cnn"}  # what a transformer has moved makes no map of the picture


@pytest.mark.parametrize("name", ["vgg11_bn", "googlenet", "resnet18"])
def test_norms_by_name(name):
    with torch.device("meta"):
        kinds = {
            kind: {type(m) for m in build_classifier(name, 2, norm=kind).modules()} for kind in ("frozen", "group")
        }
    assert FrozenBatchNorm2d in kinds["frozen"]
    assert nn.GroupNorm in kinds["group"]
    assert nn.BatchNorm2d not in kinds["frozen"] | kinds["group"]


def test_googlenets_norms_keep_torchvisions_eps():
    norms = [m for m in build_classifier("googlenet", 2, norm="frozen").modules() if isinstance(m, FrozenBatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}


def saved(state: dict, path):
    torch.save(state, path)
    return path


def test_another_number_of_classes_leaves_the_last_layer_random_and_says_so(tmp_path, caplog):
    theirs = torchvision.models.resnet18(num_classes=5)
    path = saved(theirs.state_dict(), tmp_path / "c.pth")
    with caplog.at_level(logging.WARNING):
        model = build_classifier("resnet18", 7, weights=path)
        assert "random weights in fc" in caplog.text
        caplog.clear()
        same = build_classifier("resnet18", 5, weights=path)
    assert caplog.text == ""
    assert torch.equal(model.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert model.fc.weight.shape == (7, 512)
    assert torch.equal(same.fc.weight, theirs.fc.weight)


def test_another_number_of_classes_of_googlenet_concerns_the_auxiliary_classifiers(tmp_path, caplog):
    theirs = torchvision.models.googlenet(num_classes=5, init_weights=False)
    model = build_classifier("googlenet", 7, weights=saved(theirs.state_dict(), tmp_path / "g.pth"))
    for layer in ("fc", "aux1.fc2", "aux2.fc2"):
        assert re.search(rf"random weights in .*\b{layer}\b", caplog.text)
    assert torch.equal(model.aux1.fc1.weight, theirs.aux1.fc1.weight)


def test_a_layer_of_another_shape_below_the_last_is_refused(tmp_path):
    state = build_classifier("lenet", 10).state_dict()
    state["classifier.0.weight"] = torch.zeros(90, 120)
    state["classifier.0.bias"] = torch.zeros(90)
    with pytest.raises(
        WeightsError, match=r"classifier.0.weight .file 90x120 .* Only the last layer 'classifier.2' may"
    ):
        build_classifier("lenet", 10, weights=saved(state, tmp_path / "l.pth"))


CHECKPOINTS = {
    "a training checkpoint": "detector.backbone.{}",
    "of a pyramid": "detector.backbone.body.{}",
    "a model's state dict": "backbone.{}",
    "the body alone": "{}",
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("name", ["lenet", "resnet18", "squeezenet1_1"])
def test_a_body_trained_as_part_of_another_model(name, case, tmp_path, caplog):
    """As after an autoencoder, or in a detector."""
    source = build_backbone(name)
    state = {CHECKPOINTS[case].format(key): value for key, value in source.state_dict().items()}
    others = {
        "detector.decoder.0.weight": torch.zeros(3),
        "detector.backbone.fpn.inner_blocks.0.0.bias": torch.zeros(2),
    }
    partly = case in ("a training checkpoint", "of a pyramid")
    content = {"state_dict": state | others, "epoch": 3} if partly else state
    path = saved(content, tmp_path / "last.ckpt")
    with caplog.at_level(logging.INFO):
        backbone = build_backbone(name, weights=path)
        for key, value in source.state_dict().items():
            assert torch.equal(backbone.state_dict()[key], value)
    assert ("left out, of the file's other parts: detector.decoder.0.weight" in caplog.text) == partly
    classifier = build_classifier(name, 3, weights=path)
    assert torch.equal(next(classifier.parameters()), next(source.parameters()))
    assert "random weights in" in caplog.text


def test_a_classifiers_checkpoint_gives_its_body_to_a_detector(tmp_path):
    classifier = build_classifier("resnet18", 4)
    state = {f"detector.backbone.{key}": value for key, value in classifier.state_dict().items()}
    path = saved({"state_dict": state}, tmp_path / "best.ckpt")
    backbone = build_backbone("resnet18_fpn", weights=path)
    assert torch.equal(backbone.body.layer3[0].conv1.weight, classifier.layer3[0].conv1.weight)
    again = build_classifier("resnet18", 4, weights=path)
    assert torch.equal(again.fc.weight, classifier.fc.weight)


@pytest.mark.parametrize("name", ["resnet18_fpn", "mobilenet_v2_fpn", "csp_darknet_nano_pafpn"])
def test_a_pyramid_trained_as_part_of_another_model(name, tmp_path):
    source = build_backbone(name)
    state = {f"detector.backbone.{key}": value for key, value in source.state_dict().items()}
    path = saved({"state_dict": state | {"detector.heads.bias": torch.zeros(2)}}, tmp_path / "best.ckpt")
    for key, value in build_backbone(name, weights=path).state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_a_pyramid_under_torchvisions_older_names(tmp_path):
    source = build_backbone("resnet18_fpn")
    state = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    old = {re.sub(r"(_blocks\.\d)\.0", r"\1", key): value for key, value in state.items()}
    assert "backbone.fpn.inner_blocks.0.weight" in old
    backbone = build_backbone("resnet18_fpn", weights=saved(old, tmp_path / "old.pth"))
    assert torch.equal(backbone.fpn.inner_blocks[0][0].weight, source.fpn.inner_blocks[0][0].weight)


def test_a_pyramid_of_other_widths_keeps_its_random_weights(tmp_path, caplog):
    narrow = BackboneWithFPN(body := build_backbone("resnet18"), FPN(body.channels, 32))
    state = {f"detector.backbone.{key}": value for key, value in narrow.state_dict().items()}
    backbone = build_backbone("resnet18_fpn", weights=saved({"state_dict": state}, tmp_path / "best.ckpt"))
    assert torch.equal(backbone.body.conv1.weight, body.conv1.weight)
    assert "of another shape: fpn.inner_blocks.0.0.weight (file 32x64x1x1" in caplog.text
    assert "missing" not in caplog.text


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    state = {f"detector.backbone.{key}": value for key, value in build_backbone("lenet").state_dict().items()}
    with pytest.raises(WeightsError, match="weights do not fit Chain"):
        build_backbone("alexnet", weights=saved({"state_dict": state}, tmp_path / "best.ckpt"))


def test_timms_file_of_the_same_network_loads(tmp_path):
    timm, safetensors = pytest.importorskip("timm"), pytest.importorskip("safetensors.torch")
    theirs = timm.create_model("resnet18", num_classes=4).eval()
    safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = build_classifier("resnet18", 4, weights=tmp_path / "model.safetensors").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet10t", "fc"), ("convnext_atto", "head.fc"), ("mobilenetv3_small_050", "classifier")]
)
def test_timm(name, head, tmp_path, caplog):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, num_classes=6).eval()
    path = saved(theirs.state_dict(), tmp_path / "t.pth")
    ours = build_classifier(f"timm:{name}", 6, weights=path, trainable_stages=0).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    assert (ours.head_name, ours.get_submodule(head).out_features) == (head, 6)
    trained = {key for key, parameter in ours.named_parameters() if parameter.requires_grad}
    assert {f"{head}.weight", f"{head}.bias"} <= trained
    assert all(key.startswith(head.split(".")[0]) for key in trained)
    build_classifier(f"timm:{name}", 3, weights=path)
    assert f"random weights in {head}" in caplog.text


WRONG = {
    "a misspelt name": (lambda: build_classifier("vg16", 2), "did you mean 'vgg16'"),
    "a backbone": (lambda: build_classifier("resnet18_fpn", 2), "did you mean 'resnet18'"),
    "no classes": (lambda: build_classifier("lenet", 0), "num_classes must be at least 1, got 0"),
    "a norm": (lambda: build_classifier("lenet", 2, norm="bach"), "norm must be one of"),
    "stages": (lambda: build_classifier("lenet", 2, trainable_stages=7), r"0 to 6 \(c1, s2, c3, s4, c5, fc6\), got 7"),
    "a named source": (
        lambda: build_classifier("lenet", 2, weights="imagenet"),
        "no weights named 'imagenet' for lenet",
    ),
    "no file": (lambda: build_classifier("lenet", 2, weights="gone.pth"), "no weights at gone.pth"),
    "timm's name": (lambda: build_classifier("timm:resnet181", 2), "timm has no model 'resnet181'; close: resnet18"),
    "timm's norm": (lambda: build_classifier("timm:resnet10t", 2, norm="group"), "must be 'batch' .* got 'group'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case):
    if "timm" in case:
        pytest.importorskip("timm")
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_named_sources_are_torchvisions():
    for name in TORCHVISION:
        known = torchvision.models.get_model_weights(name)
        published = {entry.url for entry in known}
        assert set(sources.SOURCES[name].values()) <= published, name


def test_staged_training_begins_with_the_last_layer():
    model = build_classifier("lenet", 5, trainable_stages=0)
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["classifier.2.weight", "classifier.2.bias"]


REAL = {"squeezenet1_1": "squeezenet1_1_imagenet.pth", "mobilenet_v2_tf": "mobilenet_v2_imagenet_tfpad.pth"}
DOGS, BIRDS, BEACHES = range(151, 269), range(7, 25), range(977, 979)
# The dog is cut out of its picture: of the whole, with a bicycle and a car, SqueezeNet says "dogsled".
PICTURES = {"dog.jpg": ((60, 200, 381, 541), DOGS), "eagle.jpg": (None, BIRDS), "kite.jpg": (None, BEACHES)}


@pytest.mark.parametrize("name", REAL)
def test_imagenet_weights_know_the_demo_pictures(name, real_data):
    model = build_classifier(name, 1000, weights=real_data("weights") / REAL[name]).eval()
    for picture, (box, expected) in PICTURES.items():
        probabilities = classify(model, real_data("demo") / picture, box)
        found = int(probabilities.argmax())
        assert found in expected, f"{picture}: {_IMAGENET_CATEGORIES[found]}"
        assert probabilities[list(expected)].sum() > 0.5, picture


def classify(model: nn.Module, path, box: tuple[int, int, int, int] | None) -> torch.Tensor:
    picture = Image.open(path).convert("RGB").crop(box) if box else Image.open(path).convert("RGB")
    pixels = np.array(picture.resize((224, 224), Image.Resampling.BILINEAR))
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.mean, model.std))
    with torch.no_grad():
        return model(((image - mean) / std)[None]).softmax(-1)[0]
