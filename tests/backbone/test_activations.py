"""The report on activations: numbers against a plain calculation, and verdicts on starts that are known to be bad."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from sightline.backbone.activations import BINS, activation_report
from sightline.backbone.initialise import initialise, small_random


def network(activation, depth=10, width=64):
    """The experiment of many lecture notes: equal layers, one after another."""
    layers = [nn.Flatten()]
    for i in range(depth):
        layers += [nn.Linear(3 * 8 * 8 if i == 0 else width, width), activation()]
    return nn.Sequential(*layers)


@pytest.fixture
def images():
    return torch.randn(16, 3, 8, 8)


def test_numbers(images):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 4))
    report = activation_report(model, images)
    assert [(layer.name, layer.kind) for layer in report.layers] == [("0", "Conv2d"), ("1", "ReLU"), ("4", "Linear")]
    convolved = model[0](images)
    expected = [convolved, convolved.relu(), model(images)]
    for layer, x in zip(report.layers, expected, strict=True):
        x = x.detach().double()
        numbers = (layer.mean, layer.std, layer.minimum, layer.maximum, layer.zeros)
        assert numbers == pytest.approx(
            (
                x.mean().item(),
                x.std(correction=0).item(),
                x.min().item(),
                x.max().item(),
                (x == 0).double().mean().item(),
            ),
            rel=1e-4,
            abs=1e-6,
        )
        assert sum(layer.histogram) == x.numel()
        assert len(layer.histogram) == BINS
        width = (layer.maximum - layer.minimum) / BINS
        first = int((x < layer.minimum + width).sum())
        assert layer.histogram[0] == pytest.approx(first, abs=2)  # but for rounding at the edge
    assert report.input_std == pytest.approx(images.std().item())
    assert all(layer.gradient_std is None and layer.saturated is None for layer in report.layers)


def test_gradients_through_layers_in_place(images):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(180, 4))
    report = activation_report(model, images, gradients=True)
    weights = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    at_active = (weights @ model[3].weight).view(16, 5, 6, 6)
    expected = (at_active * (model[0](images) > 0), at_active, weights)
    found = [layer.gradient_std for layer in report.layers]
    assert found == pytest.approx([x.std().item() for x in expected], rel=1e-4)


STARTS = {
    "he keeps the signal of a ReLU": (nn.ReLU, "he", set()),
    "xavier keeps tanh's": (nn.Tanh, "xavier", set()),
    "small weights let it vanish": (nn.Tanh, "small_random", {"vanishing"}),
    "large weights saturate": (nn.Tanh, partial(small_random, std=1.0), {"saturated"}),
    "large weights explode": (nn.ReLU, partial(small_random, std=1.0), {"exploding"}),
    "no weights, no signal": (nn.ReLU, "zero", {"dead"}),
    "equal weights, equal units": (nn.Tanh, "constant", {"identical"}),
}


@pytest.mark.parametrize("case", STARTS)
def test_verdicts(case, images):
    activation, initialiser, expected = STARTS[case]
    model = network(activation)
    initialise(model, initialiser)
    report = activation_report(model, images)
    verdicts = [layer.verdict for layer in report.layers if layer.kind != "Linear" or "saturated" not in expected]
    assert set(verdicts) - {"fine"} == expected
    assert (not report.bad) == (not expected)
    if expected:
        assert verdicts[-1] in expected
        assert expected.pop().upper() in report.text()
        assert "layers are not fine, the first is" in report.text()
    else:
        assert "All 20 layers are fine" in report.text()


def test_bias_that_kills_is_found(images):
    model = network(nn.ReLU, depth=3)
    initialise(model, "he")
    nn.init.constant_(model[3].bias, -100.0)
    report = activation_report(model, images)
    by_name = {layer.name: layer.verdict for layer in report.layers}
    assert by_name["2"] == "fine"
    assert by_name["4"] == "dead"


def test_not_finite_is_exploding(images):
    model = network(nn.ReLU, depth=3)
    with torch.no_grad():
        model[1].weight[0, 0] = math.inf
    report = activation_report(model, images)
    assert report.layers[0].verdict == "exploding"
    assert "EXPLODING" in report.text()


def test_the_network_stays_as_it_was(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    activation_report(model, images, gradients=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True] * 4
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad
    assert not model[0]._forward_hooks


def test_a_layer_that_runs_twice_has_two_lines(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, images):
            return self.relu(self.conv(self.relu(self.conv(images))))

    report = activation_report(Twice(), images, gradients=True)
    assert [layer.name for layer in report.layers] == ["conv", "relu", "conv", "relu"]
    assert all(layer.gradient_std > 0 for layer in report.layers)


def test_frozen_networks_have_gradients_too(images):
    model = network(nn.ReLU, depth=2).requires_grad_(False)
    assert all(layer.gradient_std > 0 for layer in activation_report(model, images, gradients=True).layers)


def test_lines_are_of_one_table(images):
    model = network(nn.Tanh, depth=2)
    lines = activation_report(model, images, gradients=True).text().splitlines()
    assert len(lines) == 2 + 4 + 1
    assert lines[0].split()[:2] == ["layer", "kind"]
    assert "ends" in lines[0]
    assert len({line.index("fine") for line in lines[2:6]}) == 1


def test_refusals(images):
    with pytest.raises(ValueError, match="all one value"):
        activation_report(network(nn.ReLU), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="Flatten has no convolution"):
        activation_report(nn.Flatten(), images)
