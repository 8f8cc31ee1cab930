import builtins
import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
from torchvision.models.detection.backbone_utils import mobilenet_backbone

from sightline.backbone import build_backbone, check_backbone, norm_layer, stages, wrap, wrap_timm
from sightline.backbone.wrap import mobilenet_v3_large_fpn


def test_mobilenet_v3_equals_a_torchvision_detectors():
    theirs = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=2).backbone.eval()
    ours = build_backbone("mobilenet_v3_large_fpn").eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        for our_map, their_map in zip(ours(images), theirs(images).values(), strict=True):
            torch.testing.assert_close(our_map, their_map, rtol=1e-5, atol=1e-5)
    assert ours.strides == (32, 32, 64)


def test_frozen_mobilenet_v3_equals_torchvisions():
    theirs = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True).eval()
    ours = mobilenet_v3_large_fpn(norm=norm_layer("frozen")).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)[0], theirs(images)["0"], rtol=1e-5, atol=1e-5)


WRAPPED = {
    "children of a sequential": (lambda: torchvision.models.squeezenet1_1().features, ["4", "7", "12"], (4, 8, 16)),
    "layers within layers": (torchvision.models.resnet18, ["layer1.1", "layer3.0.conv1"], (4, 16)),
    "regnet": (torchvision.models.regnet_y_400mf, ["trunk_output.block1", "trunk_output.block4"], (4, 32)),
    "frozen norms": (lambda: torchvision.models.resnet18(norm_layer=norm_layer("frozen")), ["layer2"], (8,)),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_gives_the_outputs_of_the_layers_named(case):
    build, layers, strides = WRAPPED[case]
    module = build().eval()
    expected = []
    handles = [
        module.get_submodule(layer).register_forward_hook(lambda m, i, output: expected.append(output.clone()))
        for layer in layers
    ]
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        module(images)
        for handle in handles:
            handle.remove()
        backbone = wrap(module, layers)
        maps = backbone(images)
    assert backbone.strides == strides
    assert backbone.channels == tuple(x.shape[1] for x in expected)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    check_backbone(backbone, user="test")
    assert [name for name, _ in stages(backbone)] == layers[::-1]


@pytest.mark.parametrize("case", ["children of a sequential", "layers within layers"])
def test_wrapped_copies_and_switches_modes(case):
    build, layers, _ = WRAPPED[case]
    backbone = wrap(build().eval(), layers)
    assert not any(module.training for module in backbone.modules() if not module._modules)
    twin = copy.deepcopy(backbone).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(twin(images)[-1], backbone.eval()(images)[-1])
    assert twin.strides == backbone.strides
    backbone.train()
    assert all(module.training for module in backbone.modules())


def test_layers_above_the_last_are_left_out():
    assert not any(
        "layer3" in key or "fc" in key for key in wrap(torchvision.models.resnet18(), ["layer2"]).state_dict()
    )
    assert list(wrap(torchvision.models.squeezenet1_1().features, ["1"])._modules) == ["0", "1"]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.conv(images) if images.sum() > 0 else images


WRONG = {
    "no such layer": (torchvision.models.resnet18, ["layer5"], "ResNet has no layer 'layer5'; its children are: conv1"),
    "no layer": (torchvision.models.resnet18, [], "has no layer"),
    "no feature map": (torchvision.models.resnet18, ["fc"], "no feature map"),
    "coarsest first": (torchvision.models.resnet18, ["layer2", "layer1"], "finest first"),
    "code that branches": (Branches, ["conv"], "branches on its data"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case):
    build, layers, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        wrap(build(), layers)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0", "convnext_atto"])
def test_timm(name):
    pytest.importorskip("timm")
    backbone = build_backbone(f"timm:{name}", norm="frozen").eval()
    check_backbone(backbone, user="test")
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert backbone.strides == (4, 8, 16, 32)
    assert [tuple(x.shape) for x in maps] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert not any(type(module) is nn.BatchNorm2d for module in backbone.modules())


def test_timm_errors(monkeypatch):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="timm has no model 'resnet181'; close: resnet18"):
        wrap_timm("resnet181")
    with pytest.raises(ValueError, match=r"could not build 'resnet10t' with maps \[9\]"):
        wrap_timm("resnet10t", out_indices=[9])
    with pytest.raises(ValueError, match=r"norm must be 'batch' .* or 'frozen', got 'group'"):
        build_backbone("timm:resnet10t", norm="group")
    original = builtins.__import__

    def without_timm(name, *args):
        if name.split(".")[0] == "timm":
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ImportError, match=r'pip install "sightline\[timm\]"'):
        build_backbone("timm:resnet10t")
