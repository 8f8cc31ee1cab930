"""How a network's weights start: `initialise(network, "he", seed=0)`.

Each initialiser fills the weight (units, inputs, ...) of a layer, or of one group of a grouped one, in place; n_in counts
what one unit sees (input channels times kernel cells), n_out what one input reaches (units times kernel cells).
`sightline inspect --activations --init NAME` shows what becomes of a signal.

| name | variance of a weight | for |
|---|---|---|
| zero, constant | 0 | nothing: units that start alike stay alike |
| small_random | 0.01^2 | shallow networks; AlexNet and VGG's first |
| xavier_in | 1 / n_in | tanh (LeCun et al. 1998, Efficient BackProp, section 4.6) |
| xavier | 2 / (n_in + n_out) | tanh (Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html, eq. 12) |
| he | 2 / n_in | ReLU (He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10) |
| sparse | 1 on k inputs of each unit, else 0 | saturating units (Martens 2010, section 5) |
| orthogonal | about 1 / max(n_in, n_out) | deep linear networks (Saxe et al. 2014, https://arxiv.org/abs/1312.6120) |
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .layers import BilinearUpsample
from .lenet import TableConv2d
from .spatial_transformer import ParameterLayer


class Fans(NamedTuple):
    """How many weights lead to one unit, and away from one input."""

    n_in: float
    n_out: float


Initialiser = Callable[[Tensor, Fans, Generator], object]

_KEPT = (BilinearUpsample, ParameterLayer)  # their start is their meaning: interpolation, the identity


def initialise(network: nn.Module, initialiser: str | Initialiser, *, seed: int = 0) -> None:
    """Fills the weights of all convolutions and linear layers, and sets their biases to zero.

    Other layers, norms for one, stay as they are, and so do `BilinearUpsample` and a spatial transformer's last layer. The
    same seed gives the same weights whatever was drawn before.

    Args:
        network: changed in place.
        initialiser: a name of `INITIALISERS`, or a function of a weight, its `Fans` and a generator, such as
            `functools.partial(sparse, connections=10)`.
        seed: of the random numbers.

    Raises:
        ValueError: no such name.
    """
    fill = initialiser_named(initialiser) if isinstance(initialiser, str) else initialiser
    generators: dict[torch.device, Generator] = {}
    for module in network.modules():
        if not isinstance(module, (_ConvNd, nn.Linear, TableConv2d)) or isinstance(module, _KEPT):
            continue
        device = module.weight.device
        if device not in generators:
            generators[device] = Generator(device).manual_seed(seed)
        with torch.no_grad():
            _fill(module, fill, generators[device])
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _fill(module: nn.Module, fill: Initialiser, generator: Generator) -> None:
    weight = module.weight
    if isinstance(module, TableConv2d):
        for unit in module.outputs.unique():  # each sees another number of maps
            rows = module.outputs == unit
            part = weight[rows][None]
            fill(part, _fans(part, reached=len(weight) / module.shape[1]), generator)
            weight[rows] = part[0]
        return
    for group in weight.chunk(getattr(module, "groups", 1)):
        if isinstance(module, _ConvTransposeNd):  # torch stores these (inputs, units, ...)
            part = group.transpose(0, 1).contiguous()
            fill(part, _fans(part), generator)
            group.copy_(part.transpose(0, 1))
        else:
            fill(group, _fans(group), generator)


def _fans(weight: Tensor, *, reached: float | None = None) -> Fans:
    """Of a weight (units, inputs, ...), whose inputs reach all units, or as many as `reached` says, on average."""
    cells = math.prod(weight.shape[2:])
    return Fans(weight.shape[1] * cells, (len(weight) if reached is None else reached) * cells)


def initialiser_named(name: str) -> Initialiser:
    """The one of `INITIALISERS` of that name.

    Raises:
        ValueError: no such name.
    """
    if name not in INITIALISERS:
        close = difflib.get_close_matches(name, INITIALISERS, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no initialiser {name!r}; {meant}There are: {', '.join(INITIALISERS)}")
    return INITIALISERS[name]


def zero(weight: Tensor, fans: Fans, generator: Generator) -> None:
    """All zero: no signal and no gradient."""
    nn.init.zeros_(weight)


def constant(weight: Tensor, fans: Fans, generator: Generator, *, value: float = 0.01) -> None:
    """All of one value: every unit of a layer computes the same, for ever."""
    nn.init.constant_(weight, value)


def small_random(weight: Tensor, fans: Fans, generator: Generator, *, std: float = 0.01) -> None:
    """Normal, of one standard deviation whatever the layer's size."""
    nn.init.normal_(weight, std=std, generator=generator)


def xavier_in(weight: Tensor, fans: Fans, generator: Generator) -> None:
    """Normal, of variance 1 / n_in: keeps the variance of a signal through linear units."""
    nn.init.normal_(weight, std=fans.n_in**-0.5, generator=generator)


def xavier(weight: Tensor, fans: Fans, generator: Generator) -> None:
    """Normal, of variance 2 / (n_in + n_out): a compromise between the signal's variance and the gradient's."""
    nn.init.normal_(weight, std=(2 / (fans.n_in + fans.n_out)) ** 0.5, generator=generator)


def he(weight: Tensor, fans: Fans, generator: Generator) -> None:
    """Normal, of variance 2 / n_in: makes up for the half of the signal that a ReLU cuts off."""
    nn.init.normal_(weight, std=(2 / fans.n_in) ** 0.5, generator=generator)


def sparse(weight: Tensor, fans: Fans, generator: Generator, *, connections: int = 15, std: float = 1.0) -> None:
    """Each unit has exactly `connections` inputs (all, where it has fewer), with normal weights; the others are zero.

    `torch.nn.init.sparse_` fixes the number of units that each input reaches instead, and takes no convolutions.
    """
    nn.init.normal_(weight, std=std, generator=generator)
    keys = torch.rand(weight.flatten(1).shape, generator=generator, device=weight.device)
    kept = keys.topk(min(connections, keys.shape[1]), dim=1).indices
    weight.mul_(torch.zeros_like(keys).scatter_(1, kept, 1).view(weight.shape))


def orthogonal(weight: Tensor, fans: Fans, generator: Generator) -> None:
    """Rows (or columns, whichever are fewer) of length 1 that are orthogonal to each other."""
    nn.init.orthogonal_(weight, generator=generator)


INITIALISERS: dict[str, Initialiser] = {
    "zero": zero,
    "constant": constant,
    "small_random": small_random,
    "xavier_in": xavier_in,
    "xavier": xavier,
    "he": he,
    "sparse": sparse,
    "orthogonal": orthogonal,
}
