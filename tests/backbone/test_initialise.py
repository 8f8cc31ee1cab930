"""Initialisers: the variance each promises, measured, and what they leave alone."""

from functools import partial

import pytest
import torch
from torch import nn

from sightline.backbone.initialise import INITIALISERS, constant, initialise, sparse
from sightline.backbone.layers import BilinearUpsample
from sightline.backbone.lenet import lenet_classifier
from sightline.backbone.spatial_transformer import Affine, ParameterLayer

# (n_in, n_out) of each layer: what a unit sees, and what an input reaches.
LAYERS = {
    "linear": (lambda: nn.Linear(300, 200), 300, 200),
    "convolution": (lambda: nn.Conv2d(24, 48, 5), 24 * 25, 48 * 25),
    "grouped": (lambda: nn.Conv2d(64, 192, 5, groups=4), 16 * 25, 48 * 25),
    "depthwise": (lambda: nn.Conv2d(512, 512, 3, groups=512), 9, 9),
    "grouped transposed": (lambda: nn.ConvTranspose2d(48, 96, 4, groups=3), 16 * 16, 32 * 16),
    "transposed": (lambda: nn.ConvTranspose2d(40, 30, 4, stride=2), 40 * 16, 30 * 16),
    "one-dimensional": (lambda: nn.Conv1d(100, 200, 3), 300, 600),
}
VARIANCES = {
    "small_random": lambda n_in, n_out: 1e-4,
    "xavier_in": lambda n_in, n_out: 1 / n_in,
    "xavier": lambda n_in, n_out: 2 / (n_in + n_out),
    "he": lambda n_in, n_out: 2 / n_in,
    "zero": lambda n_in, n_out: 0,
    "constant": lambda n_in, n_out: 0,
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", VARIANCES)
def test_variance(name, layer):
    build, n_in, n_out = LAYERS[layer]
    module = build()
    initialise(module, name)
    expected = VARIANCES[name](n_in, n_out)
    assert module.weight.var().item() == pytest.approx(expected, rel=0.06, abs=1e-12)
    mean = 0.01 if name == "constant" else 0
    assert module.weight.mean().item() == pytest.approx(
        mean, abs=5 * expected**0.5 / module.weight.numel() ** 0.5 + 1e-7
    )
    assert not module.bias.any()


@pytest.mark.parametrize("connections", [1, 10, 15])
@pytest.mark.parametrize("layer", ["linear", "convolution", "grouped"])
def test_sparse_connections_of_every_unit(layer, connections):
    module = LAYERS[layer][0]()
    initialise(module, partial(sparse, connections=connections))
    kept = module.weight.detach().flatten(1) != 0
    assert (kept.sum(1) == connections).all()
    values = module.weight[module.weight != 0]
    assert values.std().item() == pytest.approx(1, abs=4 / (2 * len(values)) ** 0.5)
    assert len(kept.unique(dim=0)) > 0.6 * len(kept), "units choose inputs of their own"


def test_sparse_connections_of_transposed_convolutions():
    module = nn.ConvTranspose2d(20, 30, 2)
    initialise(module, "sparse")
    assert ((module.weight != 0).transpose(0, 1).flatten(1).sum(1) == 15).all()


def test_sparse_of_few_inputs_takes_them_all():
    module = nn.Linear(4, 50)
    initialise(module, "sparse")
    assert (module.weight != 0).all()


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_orthogonal(shape):
    module = nn.Linear(*shape)
    initialise(module, "orthogonal")
    weight = module.weight if shape[0] > shape[1] else module.weight.T
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_orthogonal_convolutions(groups):
    """Each group's kernels, a row a unit, however torch stores them."""
    for module in (nn.Conv2d(8, 16, 3, groups=groups), nn.ConvTranspose2d(8, 16, 3, groups=groups)):
        initialise(module, "orthogonal")
        for part in module.weight.detach().chunk(groups):
            rows = (part.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else part).flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", INITIALISERS)
def test_same_seed_same_weights(name):
    networks = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4)) for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        torch.rand(7)  # the global generator plays no part
        initialise(network, name, seed=seed)
    first, same, other = (torch.cat([x.flatten() for x in network.parameters()]) for network in networks)
    assert torch.equal(first, same)
    assert torch.equal(first, other) == (name in ("zero", "constant"))


def test_what_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BilinearUpsample(4, 2), ParameterLayer(4, Affine()))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialise(network, "he", seed=3)
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["0.weight", "0.bias"]


def test_requires_grad_stays():
    module = nn.Linear(3, 3)
    initialise(module, "he")
    assert module.weight.requires_grad
    assert module.weight.is_leaf
    assert module.weight.grad_fn is None


def test_lenets_table_of_connections():
    network = lenet_classifier(10)
    (table,) = (module for module in network.modules() if type(module).__name__ == "TableConv2d")
    initialise(network, partial(constant, value=0.5))
    assert (table.weight == 0.5).all()
    weights = []
    for seed in range(40):
        initialise(network, "he", seed=seed)
        weights.append(table.weight.detach().clone())
    weights = torch.stack(weights)
    for unit in (0, 15):  # they see 3 and 6 maps
        rows = table.outputs == unit
        expected = 2 / (25 * int(rows.sum()))
        assert weights[:, rows].var().item() == pytest.approx(expected, rel=0.1)


def test_what_an_input_of_the_table_reaches():
    """Each of six maps is seen by ten of sixteen, cell by cell of 5 x 5."""
    network = lenet_classifier(10)
    (table,) = (module for module in network.modules() if type(module).__name__ == "TableConv2d")
    weights = []
    for seed in range(40):
        initialise(network, "xavier", seed=seed)
        weights.append(table.weight.detach().clone())
    weights = torch.stack(weights)
    for unit, maps in ((0, 3), (15, 6)):
        assert weights[:, table.outputs == unit].var().item() == pytest.approx(2 / (25 * maps + 250), rel=0.1)


def test_no_such_name():
    with pytest.raises(ValueError, match=r"no initialiser 'xavir'; did you mean 'xavier'\? There are: zero, constant"):
        initialise(nn.Linear(2, 2), "xavir")
