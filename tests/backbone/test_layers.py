"""Layers of our own: against what they stand for, and their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.backbone.layers import (
    BilinearUpsample,
    DropConnectLinear,
    Maxout,
    bilinear_kernel,
    maxout_conv,
    maxout_linear,
)


def test_dropconnect_is_a_linear_layer_in_evaluation():
    layer = DropConnectLinear(6, 4, p=0.3).eval()
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert list(layer.state_dict()) == list(nn.Linear(6, 4).state_dict())


def test_dropconnect_drops_weights_and_scales_the_rest():
    layer = DropConnectLinear(200, 300, p=0.25, bias=False)
    nn.init.ones_(layer.weight)
    seen = layer(torch.eye(200)).T  # row by row the weights that were used
    assert seen.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (seen == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (seen == 0).sum(0).min() > 0, "weights are dropped, not units"


def test_dropconnect_keeps_the_mean():
    layer, x = DropConnectLinear(30, 8, p=0.5), torch.randn(3, 30)
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, layer.eval()(x), atol=0.06, rtol=0)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_dropconnect_refuses(p):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        DropConnectLinear(2, 2, p=p)


@pytest.mark.parametrize("shape", [(2, 12), (2, 12, 5, 3)])
def test_maxout_is_the_largest_of_neighbours(shape):
    x = torch.randn(shape)
    expected = torch.empty(2, 4, *shape[2:])
    for c in range(4):
        expected[:, c] = torch.maximum(torch.maximum(x[:, 3 * c], x[:, 3 * c + 1]), x[:, 3 * c + 2])
    torch.testing.assert_close(Maxout(3)(x), expected)


def test_maxout_layers():
    assert maxout_linear(5, 7, pieces=3)(torch.randn(2, 5)).shape == (2, 7)
    layer = maxout_conv(3, 6, 3, pieces=2, stride=2, padding=1)
    images = torch.randn(2, 3, 8, 8)
    pieces = layer[0](images)
    torch.testing.assert_close(layer(images), torch.maximum(pieces[:, ::2], pieces[:, 1::2]))


def test_maxout_refuses():
    with pytest.raises(ValueError, match="7 channels cannot be shared among maxout units of 2"):
        Maxout(2)(torch.randn(1, 7))
    with pytest.raises(ValueError, match="at least one piece"):
        Maxout(0)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8, 32])
def test_upsampling_starts_as_bilinear_interpolation(stride):
    layer = BilinearUpsample(3, stride)
    x = torch.randn(2, 3, 6, 5)
    expected = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    found = layer(x)
    assert found.shape == expected.shape
    edge = stride // 2
    inside = (..., slice(edge, 6 * stride - edge), slice(edge, 5 * stride - edge))
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
def test_weights_that_meet_add_up_to_one(stride):
    ones = torch.ones(1, 1, 5, 5)
    found = BilinearUpsample(1, stride)(ones)[..., stride:-stride, stride:-stride]
    torch.testing.assert_close(found, torch.ones_like(found))
    assert bilinear_kernel(stride).shape[0] == (2 * stride if stride % 2 == 0 else 2 * stride - 1)


def test_upsampling_mixes_no_channels():
    x = torch.zeros(1, 4, 3, 3)
    x[:, 2] = 1
    assert BilinearUpsample(4, 2)(x).sum((0, 2, 3)).nonzero().tolist() == [[2]]


def test_fixed_upsampling_has_nothing_to_learn():
    fixed, learned = BilinearUpsample(3, 2, learned=False), BilinearUpsample(3, 2)
    assert not list(fixed.parameters())
    assert len(list(learned.parameters())) == 1
    assert list(fixed.state_dict()) == list(learned.state_dict()) == ["weight"]
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fixed(x), learned(x))


def test_upsampling_refuses():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        BilinearUpsample(3, 0)


GRADIENTS = {
    "dropconnect": (lambda: DropConnectLinear(5, 3).eval(), (2, 5)),
    "maxout": (lambda: Maxout(2), (2, 6, 2)),
    "maxout convolution": (lambda: maxout_conv(2, 3, 3), (1, 2, 4, 4)),
    "upsampling": (lambda: BilinearUpsample(2, 2), (1, 2, 3, 3)),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients(case):
    build, shape = GRADIENTS[case]
    layer = build().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_dropconnect_gives_no_gradient_to_dropped_weights():
    torch.manual_seed(1)
    layer = DropConnectLinear(4, 3, bias=False)
    x = torch.ones(1, 4)
    torch.manual_seed(2)
    layer(x).sum().backward()
    torch.manual_seed(2)
    mask = F.dropout(torch.ones(3, 4), 0.5, training=True)
    torch.testing.assert_close(layer.weight.grad, mask)
