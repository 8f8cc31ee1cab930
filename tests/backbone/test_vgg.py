"""VGG, AlexNet and ZFNet as bodies: torchvision's layers, the papers' maps, what every chain of layers promises."""

import math

import pytest
import torch
import torchvision
from torch import nn

from sightline.backbone import build_backbone, build_classifier, stages
from sightline.backbone.alexnet import alexnet, alexnet_2012
from sightline.backbone.chain import Chain, Stage
from sightline.backbone.vgg import vgg11, vgg16, vgg16_bn, vgg19_bn
from sightline.backbone.zfnet import zfnet

# Index of relu5_x in torchvision's `features`, the last layer of each body.
RELU5 = {
    "vgg11": 19,
    "vgg13": 23,
    "vgg16": 29,
    "vgg19": 35,
    "vgg11_bn": 27,
    "vgg16_bn": 42,
    "vgg19_bn": 51,
    "alexnet": 11,
}


@pytest.mark.parametrize("name", RELU5)
def test_bodies_end_in_relu5(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().features[: RELU5[name] + 1].eval()
    ours = build_backbone(name).eval()
    theirs.load_state_dict({key.removeprefix("features."): x for key, x in ours.state_dict().items()}, assign=True)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        (c5,) = ours(images)
        torch.testing.assert_close(c5, theirs(images))
    assert c5.min() == 0
    assert 0.01 < c5.std() < 10, "the signal neither dies nor explodes on its way through random weights"
    assert (ours.strides, ours.channels) == ((16,), (256 if name == "alexnet" else 512,))


def test_a_classifiers_file_loads_into_the_body(tmp_path):
    classifier = build_classifier("alexnet", 3)
    torch.save(classifier.state_dict(), tmp_path / "a.pth")
    body = build_backbone("alexnet", weights=tmp_path / "a.pth", trainable_stages=2)
    assert torch.equal(body.features[10].weight, classifier.features[10].weight)
    assert [name for name, group in stages(body) if group[0].requires_grad] == ["conv5", "conv4"]


MAPS = {
    # Each network's pixels and the cells a side that its paper gives or its figure shows.
    "vgg16": (vgg16, 224, {"conv1": 224, "pool1": 112, "pool2": 56, "pool3": 28, "conv5": 14, "pool5": 7}),
    "alexnet": (alexnet, 224, {"conv1": 55, "conv2": 27, "conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6}),
    "alexnet at 227": (alexnet, 227, {"conv1": 56, "conv2": 27, "conv5": 13, "pool5": 6}),
    "alexnet_2012": (alexnet_2012, 227, {"conv1": 55, "conv2": 27, "conv3": 13, "conv5": 13, "pool5": 6}),
    "zfnet": (
        zfnet,
        224,
        {"conv1": 110, "pool1": 55, "conv2": 26, "pool2": 13, "conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6},
    ),
}


@pytest.mark.parametrize("case", MAPS)
def test_maps_have_the_papers_cells(case):
    build, size, cells = MAPS[case]
    with torch.device("meta"):
        model = build(out_stages=tuple(cells))
        maps = model(torch.empty(1, 3, size, size))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, n, n) for c, n in zip(model.channels, cells.values(), strict=True)
    ]
    assert model.strides == tuple(2 ** round(math.log2(size / n)) for n in cells.values())


def test_out_stages_build_no_more_than_they_give():
    model = vgg16(out_stages=("pool3", "conv4"))
    assert (model.strides, model.channels, len(model.features)) == ((8, 8), (256, 512), 23)
    assert list(model.stage_prefixes) == ["conv1", "conv2", "conv3", "conv4"]
    three, four = model(torch.randn(1, 3, 64, 64))
    assert (three.shape, four.shape) == ((1, 256, 8, 8), (1, 512, 8, 8))


@pytest.mark.parametrize("out_stages", [(), ("conv6",), ("pool5", "conv5"), (5,), ("conv5", "conv5")])
def test_out_stages_are_checked(out_stages):
    with pytest.raises(ValueError, match=r"out_stages must be some of conv1, pool1, conv2, .* in this order, got"):
        vgg11(out_stages=out_stages)


def test_one_stage_may_be_named_without_a_tuple():
    assert vgg11(out_stages="pool3").strides == (8,)


def test_batch_norms_follow_convolutions():
    kinds = [type(layer) for layer in vgg16_bn(norm=nn.BatchNorm2d).features]
    assert kinds[:3] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.Conv2d) == 13
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in vgg16(norm=nn.BatchNorm2d).features)
    prefixes = vgg19_bn().stage_prefixes["conv1"]
    assert prefixes == ("features.0", "features.1", "features.3", "features.4")


@pytest.mark.parametrize(("build", "smallest"), [(vgg11, 16), (alexnet, 31), (alexnet_2012, 35), (zfnet, 31)])
def test_the_smallest_picture_is_known_exactly(build, smallest):
    with torch.device("meta"):
        model = build()
        assert model.min_size == smallest
        assert min(model(torch.empty(1, 3, model.min_size, 300))[0].shape) == 1
        with pytest.raises((RuntimeError, ValueError)):
            model.features(torch.empty(1, 3, model.min_size - 1, 300))
    with pytest.raises(
        ValueError, match=rf"at least {model.min_size}x{model.min_size} pixels, got 300x{model.min_size - 1}"
    ):
        model(torch.empty(1, 3, 300, model.min_size - 1, device="meta"))


def test_the_two_towers_do_not_meet_in_the_second_layer():
    body = alexnet_2012(out_stages=("conv2",)).eval()
    images = torch.randn(1, 3, 67, 67)
    (before,) = body(images)
    with torch.no_grad():
        body.features[4].weight[128:] = 0  # the second tower's filters: the first tower does not feel it
    (after,) = body(images)
    torch.testing.assert_close(before[:, :128], after[:, :128])
    assert body.features[4].weight.shape == (256, 48, 5, 5)
    assert (after[:, 128:] == 1).all(), "the paper's bias of one is all that is left"


def test_response_norm_is_the_papers():
    """b_i = a_i / (k + alpha sum_j a_j^2)^beta over n = 5 neighbours, by a loop (section 3.3)."""
    (norm,) = [
        layer for layer in alexnet_2012(out_stages=("pool1",)).features if isinstance(layer, nn.LocalResponseNorm)
    ]
    a = torch.randn(1, 9, 2, 2) * 50
    expected = torch.stack(
        [a[:, i] / (2 + 1e-4 * (a[:, max(0, i - 2) : i + 3] ** 2).sum(1)) ** 0.75 for i in range(9)], 1
    )
    torch.testing.assert_close(norm(a), expected)


def test_the_papers_start():
    model = build_classifier("alexnet_2012", 5)
    biases = [
        float(layer.bias.detach().mean()) for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    assert biases == [0, 1, 0, 1, 1, 1, 1, 0]
    assert model.classifier[4].weight.std().item() == pytest.approx(0.01, rel=0.01)


def test_any_chain_of_layers_may_be_one():
    body = Chain([Stage("a", [nn.Conv2d(3, 4, 3), nn.ReLU()], 4, 1), Stage("b", [nn.MaxPool2d(2)], 4, 2)], ("a", "b"))
    assert (body.strides, body.min_size, body.stage_prefixes) == ((1, 2), 4, {"a": ("features.0",)})
