"""YOLO's networks against figure 3 of https://arxiv.org/abs/1506.02640: every layer, parameters by hand, pretraining's file."""

import pytest
import torch
from torch import nn

from sightline.backbone import BACKBONES, build_backbone, build_classifier
from sightline.backbone.norms import FrozenBatchNorm2d

# Figure 3, its first 20 convolutions: (kernel, channels, stride), "pool" for a max pooling of 2 x 2 at stride 2.
FIGURE_3 = [
    (7, 64, 2), "pool",
    (3, 192, 1), "pool",
    (1, 128, 1), (3, 256, 1), (1, 256, 1), (3, 512, 1), "pool",
    (1, 256, 1), (3, 512, 1), (1, 256, 1), (3, 512, 1), (1, 256, 1), (3, 512, 1), (1, 256, 1), (3, 512, 1),
    (1, 512, 1), (3, 1024, 1), "pool",
    (1, 512, 1), (3, 1024, 1), (1, 512, 1), (3, 1024, 1),
]  # fmt: skip
FAST = [
    (3, 16, 1), "pool", (3, 32, 1), "pool", (3, 64, 1), "pool", (3, 128, 1), "pool", (3, 256, 1), "pool",
    (3, 512, 1), "pool", (3, 1024, 1), (3, 1024, 1), (3, 1024, 1),
]  # fmt: skip
NETWORKS = {"yolo20": (FIGURE_3, 20), "yolo20_bn": (FIGURE_3, 20), "yolo9": (FAST, 9), "yolo9_bn": (FAST, 9)}
NAMES = list(NETWORKS)


def layers_of(body):
    """The network as the figure writes it."""
    found = []
    for layer in body.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.padding == (layer.kernel_size[0] // 2,) * 2
            found.append((layer.kernel_size[0], layer.out_channels, layer.stride[0]))
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride) == (2, 2)
            found.append("pool")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_layers(name):
    with torch.device("meta"):
        body = BACKBONES[name]()
    listed, convolutions = NETWORKS[name]
    assert layers_of(body) == listed
    assert sum(layer != "pool" for layer in listed) == convolutions
    kinds = [type(layer) for layer in body.features]
    following = [nn.BatchNorm2d, nn.LeakyReLU] if name.endswith("_bn") else [nn.LeakyReLU]
    for i, kind in enumerate(kinds):
        if kind is nn.Conv2d:
            assert kinds[i + 1 : i + 1 + len(following)] == following
    assert {layer.negative_slope for layer in body.features if isinstance(layer, nn.LeakyReLU)} == {0.1}


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    """Weights and biases of each convolution; with norms, scale and shift instead of a bias."""
    with torch.device("meta"):
        body = BACKBONES[name]()
    expected, channels = 0, 3
    for layer in NETWORKS[name][0]:
        if layer != "pool":
            kernel, width, _ = layer
            expected += kernel**2 * channels * width + width * (2 if name.endswith("_bn") else 1)
            channels = width
    assert sum(parameter.numel() for parameter in body.parameters()) == expected


@pytest.mark.parametrize(("name", "stride", "cells"), [("yolo20", 32, 14), ("yolo9", 64, 7)])
def test_maps_at_448_pixels(name, stride, cells):
    with torch.device("meta"):
        body = BACKBONES[name]()
        (last,) = body(torch.empty(2, 3, 448, 448))
    assert last.shape == (2, 1024, cells, cells)
    assert (body.strides, body.channels) == ((stride,), (1024,))


def test_every_map_of_figure_3():
    """At 448 pixels, the sides and channels written under the figure's blocks."""
    names = ("conv1", "pool1", "pool2", "pool3", "pool4", "conv5")
    with torch.device("meta"):
        maps = BACKBONES["yolo20"](out_stages=names)(torch.empty(1, 3, 448, 448))
    expected = [(64, 224), (64, 112), (192, 56), (512, 28), (1024, 14), (1024, 14)]
    assert [(x.shape[1], x.shape[2]) for x in maps] == expected


def test_a_signal_and_a_gradient_go_through():
    body = build_backbone("yolo20").train()
    images = torch.randn(2, 3, 64, 64)
    (last,) = body(images)
    assert 0.003 < last.std() < 10
    last.square().mean().backward()
    assert [n for n, p in body.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(("norm", "kind"), [("frozen", FrozenBatchNorm2d), ("group", nn.GroupNorm)])
def test_norms_by_name(norm, kind):
    with torch.device("meta"):
        normed, plain = build_backbone("yolo20_bn", norm=norm), build_backbone("yolo20", norm=norm)
    assert sum(isinstance(module, kind) for module in normed.modules()) == 20
    assert not any(isinstance(module, kind) for module in plain.modules())


def test_pretraining_gives_its_20_layers_to_the_detector(tmp_path):
    """Section 2.2: an average over the last map and one fully connected layer, which detection leaves behind."""
    classifier = build_classifier("yolo20", 5)
    top = [classifier.avgpool, *classifier.classifier]
    assert [type(module) for module in top] == [nn.AdaptiveAvgPool2d, nn.Linear]
    assert (classifier.avgpool.output_size, top[1].in_features) == (1, 1024)
    torch.save(classifier.state_dict(), tmp_path / "yolo.pth")
    body = build_backbone("yolo20", weights=tmp_path / "yolo.pth")
    for name, value in body.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name])
