"""What each layer of a network makes and costs: output shape, parameters, activations, multiply-adds, stride and receptive
field. `print(layer_table(network, (224, 224)).text())`.

Nothing is computed: the network runs once on torch's meta device, which knows shapes alone, and every operation on the
way, functional ones too, is counted. (A detector has to run for real: `traced`.)

- Parameters: a layer's are counted where they are first used. Those that no layer uses in this pass (heads for training
  alone) are stated apart.
- Activations: the elements of every tensor that is made of the picture, the picture included; what works in place or only
  looks at a tensor in another shape makes none. In training all of them are kept, as float32 at 4 bytes.
- Multiply-adds: of convolutions and products of matrices, one for each multiplication and the addition after it, as in
  the papers that call them FLOPs (ResNet, GoogLeNet). Biases, norms, activation functions and pooling are not counted.
- Stride: pixels from one cell to the next. Receptive field: see `receptive_field.py`; "all" sees the whole picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .layer_counter import Counter, Row
from .model import evaluating

MEGABYTE = 1e6
BYTES = 4  # of a float32


@dataclass
class LayerTable:
    """A network's layers in the order they run, and the totals.

    Attributes:
        rows: layers; those that cost nothing (in place, or the identity) are left out.
        input_shape: of the picture, without the batch.
        parameters: of the whole network.
        kinds: the class of every module by name.
    """

    rows: list[Row]
    input_shape: tuple[int, ...]
    parameters: int
    kinds: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def unused_parameters(self) -> int:
        """Those that no layer used in this pass."""
        return self.parameters - sum(row.parameters for row in self.rows)

    @property
    def activations(self) -> int:
        """Elements of all tensors made, the picture included."""
        return math.prod(self.input_shape) + sum(row.activations for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Of one picture's forward pass."""
        return sum(row.multiply_adds for row in self.rows)

    def __getitem__(self, name: str) -> Row:
        """The last row of that name."""
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(f"no layer {name!r}; there are: {', '.join(dict.fromkeys(row.name for row in self.rows))}")
        return found[-1]

    def grouped(self, depth: int) -> LayerTable:
        """The same with a row for each part, e.g. 1 for `layer1` or `inception3a`, 2 for `layer1.0`.

        Rows of one part that follow each other become one: its output, stride and field are its last layer's.

        Raises:
            ValueError: `depth` below 1.
        """
        if depth < 1:
            raise ValueError(f"the depth of a table must be at least 1 (the network's own parts), got {depth}")
        groups = itertools.groupby(self.rows, key=lambda row: ".".join(row.name.split(".")[:depth]))
        rows = [row for name, group in groups for row in self._merged(name, list(group))]
        return LayerTable(rows, self.input_shape, self.parameters, self.kinds)

    def _merged(self, name: str, rows: list[Row]) -> list[Row]:
        if not name:  # the network's own operations
            return rows
        last = rows[-1]
        totals = [sum(getattr(row, what) for row in rows) for what in ("parameters", "activations", "multiply_adds")]
        return [Row(name, self.kinds.get(name, last.kind), last.shape, *totals, last.stride, last.receptive_field)]

    def text(self) -> str:
        """For people: a line a layer, then the totals."""
        heads = ("layer", "kind", "output", "parameters", "activations", "MB", "multiply-adds", "stride", "field")
        first = Row("input", "", self.input_shape, 0, math.prod(self.input_shape), 0, (Fraction(1),) * 2, (1, 1))
        lines = [heads, *(_cells(row) for row in [first, *self.rows])]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        text = [_aligned(line, widths) for line in lines]
        text.insert(1, "-" * len(text[0]))
        return "\n".join([*text, "-" * len(text[0]), *self._totals()])

    def _totals(self) -> Iterator[str]:
        unused = f", of which {self.unused_parameters:,} are not used in this pass" if self.unused_parameters else ""
        yield f"parameters     {short(self.parameters):>6}  ({self.parameters:,}{unused})"
        megabytes = self.activations * BYTES / MEGABYTE
        yield f"activations    {short(self.activations):>6}  ({self.activations:,}; {megabytes:,.1f} MB as float32)"
        yield f"multiply-adds  {short(self.multiply_adds):>6}  ({self.multiply_adds:,})"


def _cells(row: Row) -> tuple[str, ...]:
    megabytes = row.activations * BYTES / MEGABYTE
    return (
        row.name or "(network)", row.kind, "x".join(map(str, row.shape)), short(row.parameters), short(row.activations),
        f"{megabytes:.2f}" if row.activations else "", short(row.multiply_adds),
        _pair(row.stride), "all" if row.receptive_field is None else _pair(row.receptive_field),
    )  # fmt: skip


def _pair(values: tuple[Fraction, Fraction] | tuple[int, int] | None) -> str:
    """One number, or height x width where they differ."""
    return "x".join(f"{float(value):.4g}" for value in dict.fromkeys(values or ()))


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    left = [f"{cell:<{width}}" for cell, width in zip(cells[:3], widths[:3], strict=True)]
    right = [f"{cell:>{width}}" for cell, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join(left + right).rstrip()


def short(count: int) -> str:
    """Three digits and a unit: 138M, 9.41K; nothing for zero."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= 0.9995 * scale:
            digits = 2 - math.floor(math.log10(float(f"{count / scale:.3g}")))
            return f"{count / scale:.{max(digits, 0)}f}{unit}"
    return str(count or "")


def layer_table(network: nn.Module, size: tuple[int, int] = (224, 224), *, channels: int = 3) -> LayerTable:
    """The table of a network that takes pictures (1, channels, *size), in evaluation mode, without arithmetic.

    Args:
        network: it is left as it was; its weights are not read.
        size: (height, width) in pixels.
        channels: of the picture.

    Raises:
        ValueError: the network cannot take such pictures, or cannot run without data.
    """
    state = {name: x.detach().to("meta") for name, x in (*network.named_parameters(), *network.named_buffers())}
    parameters = [state[name] for name, _ in network.named_parameters()]
    dtype = next((x.dtype for x in parameters if x.is_floating_point()), torch.float32)
    image = torch.empty(1, channels, *size, device="meta", dtype=dtype)
    return _follow(network, lambda image: functional_call(network, state, (image,)), image, parameters)


def traced(network: nn.Module, run: Callable[[Tensor], object], image: Tensor) -> LayerTable:
    """The table of `run(image)`, which calls the network on real numbers: for code that asks for values on its way, as the
    suppression of boxes does.

    Args:
        network: in whose parts the work is done, in evaluation mode; it is left as it was.
        run: takes the picture, e.g. `lambda images: model.detect(images, sizes)`.
        image: (1, C, H, W).

    Raises:
        ValueError: the network cannot take such pictures.
    """
    return _follow(network, run, image, list(network.parameters()))


def _follow(network: nn.Module, run: Callable[[Tensor], object], image: Tensor, parameters: list[Tensor]) -> LayerTable:
    counter = Counter(image, {id(parameter): parameter.numel() for parameter in parameters})
    try:
        with torch.no_grad(), evaluating(network), _named(network, counter), counter:
            run(image)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        shape = "x".join(map(str, image.shape[1:]))
        raise ValueError(f"{type(network).__name__} cannot be followed on a {shape} picture: {reason}") from error
    kinds = {name: type(module).__name__ for name, module in network.named_modules()}
    rows = [row for row in counter.rows if row.parameters or row.activations or row.multiply_adds]
    total = sum(parameter.numel() for parameter in network.parameters())
    return LayerTable(rows, tuple(image.shape[1:]), total, kinds)


@contextmanager
def _named(network: nn.Module, counter: Counter) -> Iterator[None]:
    """Tells the counter which module is running."""
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, _, name=name: counter.start(name, m)))
        handles.append(module.register_forward_hook(lambda *_: counter.modules.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
