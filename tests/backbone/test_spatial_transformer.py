"""Spatial transformers (https://arxiv.org/abs/1506.02025) against torch's own grids, slow loops and what they must be."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.backbone.mnist_networks import BUDGET, CROP, cnn, fcn, st_cnn, st_fcn
from sightline.backbone.spatial_transformer import (
    Affine,
    Attention,
    ParallelSpatialTransformers,
    ParameterLayer,
    Projective,
    SpatialTransformer,
    ThinPlateSpline,
    conv_localisation,
    fc_localisation,
    sample,
)

TRANSFORMS = {
    "affine": Affine,
    "attention": Attention,
    "projective": Projective,
    "tps": ThinPlateSpline,
    "tps of 3x3": lambda: ThinPlateSpline(3),
}
SIZE = (5, 7)


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return TRANSFORMS[request.param]()


def disturbed(transform, batch=3, by=0.1, dtype=torch.float64):
    """Parameters near the identity."""
    identity = transform.identity().to(dtype)
    return identity + by * torch.randn(batch, transform.num_parameters, dtype=dtype)


def centres(length):
    """Normalised pixel centres along one axis, of which -1 and 1 are the outer edges."""
    return [(2 * i + 1) / length - 1 for i in range(length)]


def slow_grid(place, size):
    """A grid from a function of one output pixel's (x, y)."""
    return torch.tensor([[place(x, y) for x in centres(size[1])] for y in centres(size[0])], dtype=torch.float64)


# -- Transforms --


def test_identity_reads_every_pixel_from_its_own_place(transform):
    grid = transform.grid(transform.identity()[None].double(), SIZE)
    torch.testing.assert_close(grid[0], slow_grid(lambda x, y: (x, y), SIZE), rtol=0, atol=1e-6)


def test_affine_is_torchs():
    theta = torch.randn(4, 6, dtype=torch.float64)
    expected = F.affine_grid(theta.view(4, 2, 3), [4, 1, *SIZE], align_corners=False)
    torch.testing.assert_close(Affine().grid(theta, SIZE), expected)


def test_affine_against_a_loop():
    a, b, c, d, e, f = theta = [0.9, -0.3, 0.1, 0.2, 1.1, -0.4]
    grid = Affine().grid(torch.tensor([theta], dtype=torch.float64), SIZE)
    torch.testing.assert_close(
        grid[0], slow_grid(lambda x, y: (a * x + b * y + c, d * x + e * y + f), SIZE), rtol=0, atol=1e-12
    )


def test_attention_is_an_affine_transform():
    s, tx, ty = (column[:, None] for column in torch.randn(3, 4, dtype=torch.float64))
    zero = torch.zeros_like(s)
    attention = Attention().grid(torch.cat([s, tx, ty], 1), SIZE)
    torch.testing.assert_close(attention, Affine().grid(torch.cat([s, zero, tx, zero, s, ty], 1), SIZE))


def test_projective_against_a_loop():
    a, b, c, d, e, f, g, h = theta = [0.9, -0.3, 0.1, 0.2, 1.1, -0.4, 0.25, -0.15]

    def place(x, y):
        depth = g * x + h * y + 1
        return (a * x + b * y + c) / depth, (d * x + e * y + f) / depth

    grid = Projective().grid(torch.tensor([theta], dtype=torch.float64), SIZE)
    torch.testing.assert_close(grid[0], slow_grid(place, SIZE), rtol=0, atol=1e-12)


def test_what_lies_behind_the_viewer_is_read_as_zero():
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 3.0, 0]])  # depth 1 + 3 x: negative left of x = -1/3
    grid = Projective().grid(theta, (9, 9))
    read = sample(torch.ones(1, 1, 9, 9), grid)
    assert grid.isfinite().all()
    behind = torch.tensor(centres(9)) < -1 / 3
    assert (read[..., behind] == 0).all()
    assert (read[0, 0, 4, ~behind] > 0).all()


def slow_spline(control, values, x, y):
    """Bookstein 1989: a plane and a sum of r^2 log r^2, through the values at the control points."""
    number = len(control)

    def bend(p, q):
        squared = (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2
        return squared * math.log(squared) if squared else 0.0

    system = torch.zeros(number + 3, number + 3, dtype=torch.float64)
    for i, p in enumerate(control):
        for j, q in enumerate(control):
            system[i, j] = bend(p, q)
        system[i, number:] = system[number:, i] = torch.tensor([p[0], p[1], 1.0])
    right = torch.cat([values, torch.zeros(3, 2, dtype=torch.float64)])
    weights = torch.linalg.solve(system, right)
    row = torch.tensor([*(bend((x, y), q) for q in control), x, y, 1.0], dtype=torch.float64)
    return (row @ weights).tolist()


@pytest.mark.parametrize("side", [2, 3, 4])
def test_spline_against_a_loop(side):
    axis = [2 * i / (side - 1) - 1 for i in range(side)]
    control = [(x, y) for y in axis for x in axis]
    transform = ThinPlateSpline(side)
    theta = disturbed(transform, batch=1, by=0.2)
    expected = slow_grid(lambda x, y: slow_spline(control, theta.view(-1, 2), x, y), SIZE)
    torch.testing.assert_close(transform.grid(theta, SIZE)[0], expected, rtol=0, atol=1e-5)


def test_spline_interpolates_its_control_points():
    transform = ThinPlateSpline(3)
    theta = disturbed(transform, by=0.3)
    size = 501  # so many pixels that some centre lies within 2e-3 of every control point
    grid = transform.grid(theta, (size, size))
    at = torch.tensor([0, size // 2, size - 1])
    torch.testing.assert_close(grid[:, at][:, :, at].flatten(1), theta, rtol=0, atol=1e-2)
    torch.testing.assert_close(grid[:, size // 2, size // 2], theta[:, 8:10], rtol=0, atol=1e-6)  # exactly the middle


def test_spline_of_affinely_moved_points_is_the_affine_transform():
    spline, affine = ThinPlateSpline(), torch.tensor([[0.8, 0.3, -0.1, -0.2, 1.1, 0.2]], dtype=torch.float64)
    matrix = affine.view(2, 3)
    moved = spline.control.double() @ matrix[:, :2].T + matrix[:, 2]
    torch.testing.assert_close(spline.grid(moved.view(1, -1), SIZE), Affine().grid(affine, SIZE), rtol=0, atol=1e-5)


def test_a_spline_needs_two_points_a_side():
    with pytest.raises(ValueError, match="at least 2 control points a side, got 1"):
        ThinPlateSpline(1)


def test_gradients_of_grids(transform):
    theta = disturbed(transform, batch=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: transform.grid(t, (3, 4)), theta, eps=1e-6, atol=1e-5)


# -- The module --


def transformer(transform, size=SIZE, channels=2, inputs=(6, 8)):
    return SpatialTransformer(fc_localisation(channels * inputs[0] * inputs[1], transform, (8,)), transform, size)


def test_untrained_it_is_the_identity(transform):
    features = torch.randn(3, 2, *SIZE)
    module = transformer(transform, inputs=SIZE)
    torch.testing.assert_close(module(features), features, rtol=0, atol=1e-5)
    convolutional = SpatialTransformer(conv_localisation(2, SIZE, transform), transform, SIZE)
    torch.testing.assert_close(convolutional(features), features, rtol=0, atol=1e-5)


def test_gradients_of_the_module(transform):
    """To the features, through sampling and localisation, and to every parameter."""
    module = transformer(transform, size=(3, 3), channels=1, inputs=(4, 4)).double()
    # away from where bilinear interpolation has a kink: the identity reads exactly on pixel centres
    nn.init.normal_(module.localisation[-1].weight, std=0.05)
    features = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*module.named_parameters(), strict=True)

    def function(inputs, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (inputs,))

    module.eval()
    assert torch.autograd.gradcheck(function, (features, *values), eps=1e-7, atol=1e-4)


def test_attention_crop_is_a_slice():
    features = torch.randn(2, 3, 8, 8)
    left, top, side = 1, 3, 4
    scale, tx, ty = side / 8, (2 * left + side) / 8 - 1, (2 * top + side) / 8 - 1
    module = transformer(Attention(), (side, side), 3, (8, 8))
    with torch.no_grad():
        module.localisation[-1].bias.copy_(torch.tensor([scale, tx, ty]))
    expected = features[:, :, top : top + side, left : left + side]
    torch.testing.assert_close(module(features), expected, rtol=0, atol=1e-5)


def test_a_quarter_turn_is_rot90():
    features = torch.randn(2, 3, 6, 6)
    module = transformer(Affine(), (6, 6), 3, (6, 6))
    with torch.no_grad():
        module.localisation[-1].bias.copy_(torch.tensor([0.0, -1, 0, 1, 0, 0]))
    torch.testing.assert_close(module(features), features.rot90(1, (2, 3)), rtol=0, atol=1e-5)


def test_each_picture_of_a_batch_is_its_own(transform):
    module = transformer(transform).eval()
    nn.init.normal_(module.localisation[-1].weight, std=0.1)
    features = torch.randn(3, 2, 6, 8)
    alone = torch.cat([module(one[None]) for one in features])
    torch.testing.assert_close(module(features), alone, rtol=0, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_parallel_transformers_concatenate_channels():
    modules = [transformer(Affine()), transformer(Attention())]
    features = torch.randn(2, 2, 6, 8)
    nn.init.normal_(modules[1].localisation[-1].bias)
    parallel = ParallelSpatialTransformers(modules)
    expected = torch.cat([modules[0](features), modules[1](features)], dim=1)
    assert expected.shape == (2, 4, *SIZE)
    torch.testing.assert_close(parallel(features), expected)


@pytest.mark.parametrize("sizes", [[], [(4, 4), (4, 5)]])
def test_parallel_transformers_need_one_size(sizes):
    with pytest.raises(ValueError, match="one output size"):
        ParallelSpatialTransformers([transformer(Affine(), size) for size in sizes])


def test_between_two_layers_of_a_network():
    """Every parameter gets a gradient; at the start, the network is what it was without the transformer."""
    transform = Affine()
    before, after = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3)
    between = SpatialTransformer(conv_localisation(4, (8, 8), transform), transform, (8, 8))
    network, images = nn.Sequential(before, between, after), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network(images), after(before(images)), rtol=0, atol=1e-4)
    nn.init.normal_(between.localisation[-1].weight)
    network(images).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_localisation_network_of_another_size_is_named():
    module = SpatialTransformer(fc_localisation(96, Attention()), Affine(), SIZE)
    with pytest.raises(ValueError, match=r"gives \(2, 3\), but Affine takes \(B, 6\)"):
        module(torch.randn(2, 2, 6, 8))


def test_under_autocast_places_are_not_rounded():
    """In bfloat16 a grid of 256 pixels would be off by a pixel and more."""
    transform = Affine()
    module = SpatialTransformer(nn.Sequential(nn.Flatten(), ParameterLayer(256, transform)), transform, (256, 256))
    features = torch.randn(1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.grid(features).dtype == torch.float32
        torch.testing.assert_close(module.grid(features), slow_grid(lambda x, y: (x, y), (256, 256))[None].float())
        assert module(features.bfloat16()).dtype == torch.bfloat16


def test_it_learns_to_find_a_square():
    """A dim square anywhere in a larger picture; what is wanted is the square alone."""
    transform = Attention()
    module = SpatialTransformer(fc_localisation(144, transform, (32,)), transform, (4, 4))
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    losses = []
    for _ in range(150):
        corner = torch.randint(0, 9, (64, 2))
        inside = (torch.arange(12) - corner[..., None]).clamp(-1, 4) % 4 == (torch.arange(12) - corner[..., None])
        pictures = (inside[:, 0, :, None] & inside[:, 1, None]).float()[:, None]
        loss = (module(pictures) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6
    assert sum(losses[-10:]) / 10 < 0.2


# -- The networks of the paper's MNIST experiments --


@pytest.mark.parametrize("size", [28, 42, 60])
@pytest.mark.parametrize("build", [fcn, cnn, st_fcn, st_cnn])
def test_all_networks_are_of_one_size(build, size):
    network = build(size)
    assert network(torch.rand(2, 1, size, size)).shape == (2, 10)
    assert 0.97 * BUDGET < sum(p.numel() for p in network.parameters()) < 1.001 * BUDGET


@pytest.mark.parametrize("build", [st_fcn, st_cnn])
def test_networks_take_any_transform(build, transform):
    network = build(42, transform=transform)
    assert network.transformer(torch.rand(2, 1, 42, 42)).shape == (2, 1, CROP, CROP)
    network(torch.rand(2, 1, 42, 42)).sum().backward()
    assert network.transformer.localisation[-1].bias.grad.isfinite().all()
