"""What becomes of a signal on its way through a network: statistics layer by layer, so that a bad start is seen at a glance.

    initialise(network, "small_random")
    print(activation_report(network, images).text())

A good start keeps the spread of the values about the same from the pixels to the last layer (Glorot and Bengio 2010,
https://proceedings.mlr.press/v9/glorot10a.html, figures 2 to 4; He et al. 2015, https://arxiv.org/abs/1502.01852).
Looked at are convolutions, fully connected layers and activation functions that are modules, in the order they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from .layers import Maxout
from .lenet import ScaledTanh, TableConv2d

VANISHING, EXPLODING = 0.01, 100.0  # spread, as a multiple of the input's, below and above which nothing can be learned
DEAD = 0.9  # share of zeros; half is what a ReLU does to a centred signal
SATURATED = 0.5  # share of values at the ends of a bounded function, where its slope is almost nothing
END = 0.03  # how near an end that is, as a share of the range: at |tanh| > 0.94 the slope is below 0.12
BINS = 40

RANGES = {
    nn.Tanh: (-1, 1),
    nn.Sigmoid: (0, 1),
    nn.Hardsigmoid: (0, 1),
    nn.Softsign: (-1, 1),
    ScaledTanh: (-1.7159, 1.7159),
}
LAYERS = (
    _ConvNd, TableConv2d, nn.Linear, Maxout, *RANGES, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU,
    nn.GELU, nn.SiLU,
    nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold,
    activation.RReLU, nn.GLU,
)  # fmt: skip


@dataclass
class LayerActivations:
    """One layer's output over a batch; a layer that runs twice has two of these.

    Attributes:
        name, kind: as in `named_modules`, and the layer's class.
        mean, std, minimum, maximum: over all values.
        zeros: share of values that are exactly zero.
        saturated: share of values at the ends of a bounded function (`RANGES`), None for other layers.
        histogram: counts in `BINS` equal bins from minimum to maximum.
        gradient_std: of the gradient of a random sum of the outputs, None where none was asked for.
        verdict: "fine", or what is wrong: "exploding" (or not finite), "dead", "identical" (all units of a layer compute the
            same), "saturated", "vanishing". The thresholds are this file's constants.
    """

    name: str
    kind: str
    mean: float
    std: float
    minimum: float
    maximum: float
    zeros: float
    saturated: float | None
    histogram: list[int]
    gradient_std: float | None = None
    verdict: str = "fine"


@dataclass
class ActivationReport:
    """The layers in the order they ran, and the spread of the pictures they were given."""

    layers: list[LayerActivations]
    input_std: float

    @property
    def bad(self) -> list[LayerActivations]:
        """Layers whose verdict is not "fine"."""
        return [layer for layer in self.layers if layer.verdict != "fine"]

    def text(self) -> str:
        """For people: a line a layer. The bar is the spread on a logarithmic scale, its middle the input's."""
        heads = (
            "layer",
            "kind",
            "mean",
            "std",
            "1e-4 .. 1 .. 1e4",
            "min",
            "max",
            "zeros",
            "ends",
            "gradient",
            "verdict",
        )
        lines = [heads, *(self._cells(layer) for layer in self.layers)]
        kept = [i for i in range(len(heads)) if any(line[i] for line in lines[1:])]
        widths = {i: max(len(line[i]) for line in lines) for i in kept}
        rows = ["  ".join(_align(line[i], widths[i], left=i in (0, 1, 4, 10)) for i in kept).rstrip() for line in lines]
        rows.insert(1, "-" * max(map(len, rows)))
        return "\n".join([*rows, f"{self._summary()} The input's std is {self.input_std:.3g}."])

    def _cells(self, layer: LayerActivations) -> tuple[str, ...]:
        numbers = [f"{value:.2g}" for value in (layer.mean, layer.std, layer.minimum, layer.maximum)]
        ends = "" if layer.saturated is None else f"{layer.saturated:.0%}"
        gradient = "" if layer.gradient_std is None else f"{layer.gradient_std:.2g}"
        verdict = layer.verdict if layer.verdict == "fine" else layer.verdict.upper()
        bar = _bar(layer.std / self.input_std)
        return layer.name, layer.kind, *numbers[:2], bar, *numbers[2:], f"{layer.zeros:.0%}", ends, gradient, verdict

    def _summary(self) -> str:
        if not self.bad:
            return f"All {len(self.layers)} layers are fine."
        first = self.bad[0]
        name = f"{first.name or 'the network'!r}"
        return f"{len(self.bad)} of {len(self.layers)} layers are not fine, the first is {name} ({first.verdict})."


def _bar(ratio: float, width: int = 16) -> str:
    """From nothing at 1e-4 to full at 1e4; full for what is not finite."""
    share = (math.log10(max(ratio, 1e-9)) + 4) / 8 if math.isfinite(ratio) else 1.0
    filled = round(width * min(max(share, 0.0), 1.0))
    return "█" * filled + "·" * (width - filled)


def _align(text: str, width: int, *, left: bool) -> str:
    return f"{text:<{width}}" if left else f"{text:>{width}}"


def activation_report(network: nn.Module, images: Tensor, *, gradients: bool = False) -> ActivationReport:
    """Runs a batch through a network and looks at what each layer makes of it.

    Args:
        network: in the mode it is in, which it keeps, as it does its running statistics and gradients.
        images: (B, C, H, W) normalised floats, on the network's device.
        gradients: go back through the network too, from a sum of the outputs with weights of spread 1.

    Raises:
        ValueError: the network has none of the layers looked at, or the pictures are all one colour.
    """
    input_std = images.float().std().item()
    if not input_std > 0:
        raise ValueError("activations need pictures that differ from pixel to pixel; these are all one value")
    layers: list[LayerActivations] = []
    images = images.detach().clone().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients), _watching(network, layers), _unchanged(network):
        outputs = network(images)
        if gradients:
            _go_back(outputs, images)
    if not layers:
        raise ValueError(f"{type(network).__name__} has no convolution, linear layer or activation function to look at")
    for layer in layers:
        layer.verdict = layer.verdict if layer.verdict != "fine" else verdict(layer, input_std)
    return ActivationReport(layers, input_std)


def verdict(layer: LayerActivations, input_std: float) -> str:
    """What the numbers say; see `LayerActivations`. (That units are identical they do not say.)"""
    if not math.isfinite(layer.std) or layer.std > EXPLODING * input_std:
        return "exploding"
    if layer.zeros > DEAD:
        return "dead"
    if (layer.saturated or 0) > SATURATED:
        return "saturated"
    return "vanishing" if layer.std < VANISHING * input_std else "fine"


def _go_back(outputs: object, images: Tensor) -> None:
    generator = torch.Generator(images.device).manual_seed(0)
    loss = images.new_zeros(())
    for x in tree_leaves(outputs):
        if isinstance(x, Tensor) and x.requires_grad:
            weights = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            loss = loss + (x * weights).sum()
    if loss.requires_grad:
        torch.autograd.grad(loss, images, allow_unused=True)  # the parameters' own gradients stay as they are


@contextmanager
def _watching(network: nn.Module, layers: list[LayerActivations]) -> Iterator[None]:
    """Fills `layers` while the network runs."""
    handles = [
        module.register_forward_hook(_watcher(name, layers))
        for name, module in network.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watcher(name: str, layers: list[LayerActivations]) -> Callable[[nn.Module, object, Tensor], None]:
    def watch(module: nn.Module, _: object, output: Tensor) -> None:
        layer = _measure(name, module, output.detach().float())
        layers.append(layer)
        if output.requires_grad:
            output.register_hook(lambda gradient: setattr(layer, "gradient_std", gradient.float().std().item()))

    return watch


def _measure(name: str, module: nn.Module, x: Tensor) -> LayerActivations:
    """`x` is the output (B, C, ...). At once: what comes next may work in place."""
    finite = x[x.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (math.nan, math.nan)
    broken = len(finite) < x.numel()
    histogram = torch.histc(finite, BINS, low, high) if len(finite) else torch.zeros(BINS)
    return LayerActivations(
        name,
        type(module).__name__,
        math.nan if broken else x.mean().item(),
        math.nan if broken else x.std(correction=0).item(),
        low,
        high,
        (x == 0).float().mean().item(),
        _saturated(module, x),
        histogram.int().tolist(),
        verdict="identical" if _identical(x) else "fine",
    )


def _saturated(module: nn.Module, x: Tensor) -> float | None:
    if type(module) not in RANGES:
        return None
    low, high = RANGES[type(module)]
    margin = END * (high - low)
    return ((x < low + margin) | (x > high - margin)).float().mean().item()


def _identical(x: Tensor) -> bool:
    """Whether all units (dimension 1) do the same, and something."""
    if x.ndim < 2 or x.shape[1] < 2:
        return False
    spread = x.std().item()
    return spread > 0 and (x - x[:, :1]).abs().max().item() <= 1e-4 * spread


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Puts back what a pass changes in training mode: the running statistics of batch norms."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
