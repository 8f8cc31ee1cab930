"""What holds for every backbone by name."""

import inspect

import pytest
import torch
from torch import nn

from sightline.backbone import BACKBONES, build_backbone, check_backbone
from sightline.backbone.resnet import resnet18_classifier
from sightline.backbone.wrap import measure

# Cells that the oldest networks, which pad little or round down, have fewer than pixels / stride, at most.
FEWER_CELLS = {"lenet": 8, "alexnet": 2, "alexnet_2012": 3, "zfnet": 2, "vgg": 1, "googlenet": 1, "squeezenet1_1": 1}


@pytest.mark.parametrize("name", BACKBONES)
def test_states_what_it_gives(name):
    """Strides and channels against shapes measured, at a size that no stride divides too."""
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        maps = backbone(torch.empty(2, 3, 130, 200))
    check_backbone(backbone, user="test")
    assert measure(backbone) == (backbone.strides, backbone.channels)
    fewer = max((cells for network, cells in FEWER_CELLS.items() if name.startswith(network)), default=0)
    for x, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert x.shape[:2] == (2, channels)
        for cells, size in zip(x.shape[2:], (130, 200), strict=True):
            assert -(-size // stride) - fewer <= cells <= -(-size // stride)
    assert len(backbone.mean) == len(backbone.std) == 3


@pytest.mark.parametrize("name", ["resnet10_narrow_fpn", "mobilenet_v2_tf_fpn", "resnet18"])
def test_gradient_reaches_every_parameter(name):
    backbone = build_backbone(name).train()
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ["resnet10_narrow_fpn", "mobilenet_v2"])
def test_a_batch_gives_what_its_images_give_alone(name):
    backbone = build_backbone(name).eval()
    images = torch.randn(2, 3, 64, 96)
    before = images.clone()
    with torch.no_grad():
        together, alone = backbone(images), backbone(images[1:])
    assert torch.equal(images, before)
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)


def test_channels_last_goes_through():
    backbone = build_backbone("resnet10_narrow_fpn", norm="frozen").to(memory_format=torch.channels_last)
    maps = backbone(torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


@pytest.mark.parametrize("name", ["resnet10_narrow_fpn", "mobilenet_v2_tf", "mobilenet_v3_large_fpn", "lenet"])
def test_exports(name):
    backbone = build_backbone(name).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        program = torch.export.export(backbone, (images,))
        for exported, eager in zip(program.module()(images), backbone(images), strict=True):
            torch.testing.assert_close(exported, eager)


@pytest.mark.parametrize(
    "name",
    [
        "resnet10_narrow_fpn",
        "lenet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobilenet_v2_tf", "mobilenet_v3_large_fpn", "vgg16", "googlenet")
        ),
    ],
)
def test_compiles_into_one_graph(name):
    backbone = build_backbone(name, norm="frozen")
    images = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    with torch.no_grad():
        for ours, eager in zip(compiled(images), backbone(images), strict=True):
            torch.testing.assert_close(ours, eager)


def test_every_builder_is_called_alike():
    for name, build in BACKBONES.items():
        parameters = inspect.signature(build).parameters
        assert "norm" in parameters, name
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters.values()), name


def test_maps_and_strides_that_can_be_chosen():
    assert build_backbone("vgg11", out_stages=("pool3", "pool5")).strides == (8, 32)
    assert build_backbone("resnet18", out_stages=(4, 5), output_stride=8).strides == (8, 8)
    with pytest.raises(ValueError, match=r"vgg11 has no output_stride to choose, got output_stride=16.*resnet50"):
        build_backbone("vgg11", output_stride=16)
    with pytest.raises(ValueError, match="timm:resnet18 has no out_stages to choose"):
        build_backbone("timm:resnet18", out_stages=(4,))


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet50_pfn", "did you mean 'resnet50_fpn'"), ("zzz", "There are: resnet10_narrow, resnet10_narrow_fpn")],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name)


def stating(**attributes) -> nn.Module:
    module = nn.Identity()
    defaults = {"strides": (8, 16), "channels": (4, 4), "mean": (0.5,) * 3, "std": (0.5,) * 3, "stage_prefixes": {}}
    for key, value in (defaults | attributes).items():
        setattr(module, key, value)
    return module


NOT_BACKBONES = {
    "a string": ("resnet50", "Head needs a backbone, got str; build one with build_backbone"),
    "a plain module": (nn.Conv2d(3, 8, 3), "Conv2d has no strides, channels, mean, std, stage_prefixes; turn any"),
    "a classifier": (resnet18_classifier(2), "gives none .a classifier"),
    "lengths that differ": (stating(strides=(8,)), r"states strides \(8,\) and channels \(4, 4\)"),
    "coarsest first": (stating(strides=(16, 8)), "finest first"),
    "another number of maps": (stating(strides=(8,), channels=(4,)), r"takes 2 feature map\(s\), but Identity gives 1"),
}


@pytest.mark.parametrize("case", NOT_BACKBONES)
def test_check_says_what_is_wrong(case):
    value, message = NOT_BACKBONES[case]
    with pytest.raises(ValueError, match=message):
        check_backbone(value, user="Head", maps=2)
    check_backbone(stating(), user="Head", maps=2)
