"""Classifiers as convolutions: equal at the trained size, and over larger images what the classifier says of windows."""

import copy

import pytest
import torch
from torch import nn

from sightline.backbone import build_classifier, freeze_stages, stages, to_convolutional
from sightline.backbone.chain import ChainClassifier, Stage

# Name, trained size here, pixels from one score to the next. Global averages take any size; the others their own.
NETWORKS = {
    "lenet": (32, 4),
    "alexnet": (224, 32),
    "alexnet_2012": (227, 32),
    "zfnet": (224, 32),
    "vgg11": (224, 32),
    "googlenet": (96, 32),
    "resnet18": (64, 32),
    "mobilenet_v2_tf": (96, 32),
    "squeezenet1_1": (95, 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_at_the_trained_size(name):
    size, stride = NETWORKS[name]
    classifier = livened(build_classifier(name, 5)).eval()
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = classifier(images)
        model = to_convolutional(classifier, size)
        scores = model(images)
        wide = model(torch.randn(1, 3, size, size + 2 * stride)) if name != "vgg11" else scores
    assert expected.std() > 1e-3
    torch.testing.assert_close(scores[..., 0, 0], expected, rtol=1e-5, atol=1e-5)
    assert scores.shape == (1, 5, 1, 1)
    assert wide.shape[-2:] == ((1, 3) if name != "vgg11" else (1, 1))
    assert (model.size, model.stride) == (size, stride)
    assert not any(isinstance(layer, (nn.Linear, nn.AdaptiveAvgPool2d)) for layer in model.modules())
    assert not model.training


def livened(classifier: nn.Module) -> nn.Module:
    """Biases away from zero, lest a lost one should not show."""
    for name, parameter in classifier.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return classifier


def test_head_layers_bear_the_papers_names():
    with torch.device("meta"):
        classifier = build_classifier("vgg16", 5)
    model = to_convolutional(classifier)
    names = [name for name, _ in model.head.named_children()]
    assert names == ["conv6", "relu6", "dropout6", "conv7", "relu7", "dropout7", "score"]
    assert model.head.conv6.weight.shape == (4096, 512, 7, 7)
    assert model.head.conv7.weight.shape == (4096, 4096, 1, 1)
    assert model.get_submodule(model.head_name).weight.shape == (5, 4096, 1, 1)
    assert next(iter(model.state_dict())) == "body.features.0.weight"


def test_every_window_of_an_unpadded_network_exactly():
    """The slow way: the classifier on each 32x32 window of a larger image, one by one."""
    classifier = livened(build_classifier("lenet", 10)).eval()
    images = torch.randn(2, 1, 47, 64)
    with torch.no_grad():
        model = to_convolutional(classifier, 32)
        scores = model(images)
        assert scores.shape == (2, 10, 4, 9)
        windows = model.windows(4, 9)
        for i in range(4):
            for j in range(9):
                x1, y1, x2, y2 = windows[i, j].int().tolist()
                expected = classifier(images[..., y1:y2, x1:x2])
                torch.testing.assert_close(scores[..., i, j], expected, rtol=1e-5, atol=1e-5)


def test_any_unpadded_chain_exactly():
    stack = [
        Stage("conv1", [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()], 4, 2),
        Stage("pool1", [nn.MaxPool2d(3, 2)], 4, 4),
    ]
    head = nn.Sequential(nn.Dropout(), nn.Linear(4 * 3 * 3, 8), nn.ReLU(), nn.Linear(8, 2))
    classifier = ChainClassifier(stack, head, cells=3).eval()
    model = to_convolutional(classifier, 15)
    images = torch.randn(1, 3, 31, 39)
    scores = model(images)
    assert scores.shape[-2:] == (5, 7)
    slow = [[classifier(images[..., y : y + 15, x : x + 15]) for x in range(0, 25, 4)] for y in range(0, 17, 4)]
    torch.testing.assert_close(scores, torch.stack([torch.stack(row, -1) for row in slow], -2), rtol=1e-5, atol=1e-5)


def test_a_padded_network_shifts_with_its_image_away_from_the_border():
    """Moved by one stride, the map moves by one cell wherever a score sees no padding: 355 pixels behind AlexNet's."""
    model = to_convolutional(build_classifier("alexnet", 3).eval())
    images = torch.randn(1, 3, 480, 480)
    with torch.no_grad():
        scores, moved = model(images), model(images[..., 32:])
    assert (scores.shape[-2:], moved.shape[-2:]) == ((9, 9), (9, 8))
    inside = slice(3, 6)  # 66 pixels more than the window on every side
    torch.testing.assert_close(scores[..., inside, 4:6], moved[..., inside, 3:5], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores[..., inside, 1], moved[..., inside, 0], rtol=1e-4, atol=1e-5)


def test_weights_are_shared_and_a_copy_is_not():
    classifier = build_classifier("lenet", 4)
    model, apart = to_convolutional(classifier, 32), to_convolutional(copy.deepcopy(classifier), 32)
    with torch.no_grad():
        classifier.classifier[0].weight.zero_()
        classifier.features[1].bias.fill_(3)
    assert model.head.conv6.weight.abs().sum() == 0
    assert model.body.features[1].bias.mean() == 3
    assert apart.head.conv6.weight.abs().sum() > 0


@pytest.mark.parametrize("name", ["lenet", "resnet18", "googlenet", "squeezenet1_1"])
def test_stages_freeze_as_before(name):
    classifier = build_classifier(name, 4)
    model = to_convolutional(copy.deepcopy(classifier), 64)
    counts = [(stage, sum(p.numel() for p in group)) for stage, group in stages(model)]
    expected = [(stage, sum(p.numel() for p in group)) for stage, group in stages(classifier)]
    if name == "googlenet":  # whose auxiliary classifiers stay behind
        expected[0] = ("head", sum(p.numel() for p in classifier.fc.parameters()))
    assert counts == expected
    freeze_stages(model, 0)
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["head.score.weight", "head.score.bias"]
    assert to_convolutional(build_classifier(name, 4, trainable_stages=0), 64).head.score.weight.requires_grad


def test_frozen_layers_stay_frozen_and_all_trains():
    model = to_convolutional(build_classifier("lenet", 4, trainable_stages=0), 32)
    assert not model.head.conv6.weight.requires_grad
    model = to_convolutional(build_classifier("lenet", 4), 32)
    model(torch.randn(2, 1, 40, 40)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_images_smaller_than_the_window_are_refused():
    model = to_convolutional(build_classifier("lenet", 2), 32)
    with pytest.raises(ValueError, match="at least 32x32 pixels, the window of one score, got 40x31"):
        model(torch.zeros(1, 3, 40, 31))


WRONG = {
    "another size": (
        lambda: to_convolutional(build_classifier("zfnet", 2), 300),
        r"at 300 pixels .* 8x8 cells.* to 6x6",
    ),
    "a size too small": (
        lambda: to_convolutional(build_classifier("lenet", 2), 20),
        "cannot run on 20-pixel images",
    ),
    "a foreign network": (lambda: to_convolutional(nn.Linear(2, 2)), "Linear cannot be made fully convolutional"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case):
    call, message = WRONG[case]
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        call()
