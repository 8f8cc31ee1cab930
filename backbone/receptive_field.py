"""Which pixels a cell of a feature map depends on, followed through every operation of a network.

Along one axis a cell is an interval of pixels. Cells i and i + P see intervals that lie P strides apart, where the period
P is 1 until something is upsampled; so P intervals describe a map of any size, exactly, padding and all. Branches are
joined by the hull of their intervals (Araujo et al. 2019, https://distill.pub/2019/computing-receptive-fields, where
branches are aligned: their maximum).

Three simplifications. Attention, and an operation that is not known here and changes the shape, sees everything. Norms
see what their input sees, although group norm, say, takes statistics over the map. Fields may reach beyond the picture.
Squeeze-and-excitation, which multiplies by a mean over the map, does see everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor


class Axis(NamedTuple):
    """The cells along one axis: cell i sees pixels from stride * i + low[i % P] to stride * i + high[i % P], inclusive."""

    stride: Fraction = Fraction(1)
    low: tuple[Fraction, ...] = (Fraction(0),)
    high: tuple[Fraction, ...] = (Fraction(0),)

    @property
    def size(self) -> int:
        """Pixels that the cell of the widest view sees."""
        return math.ceil(max(high - low for low, high in zip(self.low, self.high, strict=True))) + 1

    def read(self, reads: Sequence[Sequence[int]], step: int = 1) -> Axis:
        """The axis of an output whose cell i depends on cells `reads[i]` of this one, and cell i + len(reads) on those
        `step` further.
        """
        count, period = len(reads), len(self.low)
        repeats = period // math.gcd(period, step)
        stride = self.stride * step / count
        lows, highs = [], []
        for i in range(count * repeats):
            seen = [self._interval(cell + i // count * step) for cell in reads[i % count]]
            lows.append(min(low for low, _ in seen) - stride * i)
            highs.append(max(high for _, high in seen) - stride * i)
        if len(set(lows)) == len(set(highs)) == 1:
            lows, highs = lows[:1], highs[:1]
        return Axis(stride, tuple(lows), tuple(highs))

    def joined(self, other: Axis) -> Axis:
        """What a cell sees that depends on the same cell of both. Of maps of different strides, the one that sees more."""
        if self.stride != other.stride:
            return max(self, other, key=lambda axis: axis.size)
        both = range(math.lcm(len(self.low), len(other.low)))
        low = tuple(min(self.low[i % len(self.low)], other.low[i % len(other.low)]) for i in both)
        high = tuple(max(self.high[i % len(self.high)], other.high[i % len(other.high)]) for i in both)
        return Axis(self.stride, low, high)

    def _interval(self, cell: int) -> tuple[Fraction, Fraction]:
        phase = cell % len(self.low)
        return self.stride * cell + self.low[phase], self.stride * cell + self.high[phase]


class Field(NamedTuple):
    """What the cells of a tensor see.

    Attributes:
        axes: vertical and horizontal; None: everything.
        dims: the tensor's vertical and horizontal dimension; None where they are merged with others.
    """

    axes: tuple[Axis, Axis] | None
    dims: tuple[int, int] | None


PIXELS = Field((Axis(), Axis()), (2, 3))
EVERYTHING = Field(None, None)


class Call(NamedTuple):
    """One of torch's operations as it was called.

    Attributes:
        name: the operation's, without "aten::".
        values: its arguments by name, defaults included.
        inputs: the tensors among them that depend on the picture, and what they see.
        output: the (first) tensor that came out.
    """

    name: str
    values: dict[str, Any]
    inputs: list[tuple[Tensor, Field]]
    output: Tensor


def propagate(call: Call) -> Field:
    """What the output sees."""
    if any(field.axes is None for _, field in call.inputs):
        return EVERYTHING
    if call.name in _RULES:
        return _RULES[call.name](call)
    tensor, field = _largest(call)
    if call.name in _VIEWS:
        return field._replace(dims=_follow(tensor.shape, field.dims, call.output.shape))
    if call.name in _SAME_DIMENSIONS or call.output.shape == tensor.shape:
        return field
    return EVERYTHING


def _largest(call: Call) -> tuple[Tensor, Field]:
    """The largest input, which others are broadcast to, and what all of them together see."""
    tensor, field = max(call.inputs, key=lambda pair: pair[0].numel())
    axes = field.axes
    for _, other in call.inputs:
        axes = tuple(one.joined(two) for one, two in zip(axes, other.axes, strict=True))
    return tensor, Field(axes, field.dims)


def _follow(shape: Sequence[int], dims: tuple[int, int] | None, new: Sequence[int]) -> tuple[int, int] | None:
    """Where a view has the two dimensions: two neighbours of the same lengths with as many elements before them."""
    if dims is None or dims[1] != dims[0] + 1:
        return None
    before = math.prod(shape[: dims[0]])
    for i in range(len(new) - 1):
        if tuple(new[i : i + 2]) == tuple(shape[dims[0] : dims[1] + 1]) and math.prod(new[:i]) == before:
            return i, i + 1
    return None


Reads = tuple[list[list[int]], int]  # the arguments of `Axis.read`


def _spatial(call: Call, reads: Callable[[int], Reads]) -> Field:
    """An operation on (..., H, W); `reads` of 0 (vertical) and 1 (horizontal) says what the cells depend on."""
    (_, field), *_ = call.inputs
    vertical, horizontal = (axis.read(*reads(i)) for i, axis in enumerate(field.axes))
    return Field((vertical, horizontal), (call.output.ndim - 2, call.output.ndim - 1))


def _window(size: int, stride: int, padding: int, dilation: int = 1) -> Reads:
    return [[dilation * k - padding for k in range(size)]], stride


def _transposed_window(size: int, stride: int, padding: int, dilation: int) -> Reads:
    """Cell i depends on those cells c from which a kernel's cell k reaches it: i = c * stride - padding + k * dilation."""
    reads = []
    for i in range(stride):
        reached = [i + padding - k * dilation for k in range(size)]
        reads.append([c // stride for c in reached if c % stride == 0] or [(i + padding) // stride])
    return reads, 1


def _convolution(call: Call) -> Field:
    values, size = call.values, call.values["weight"].shape[2:]
    if len(size) != 2 or call.values["weight"] is call.inputs[0][0]:
        return EVERYTHING
    make = _transposed_window if values["transposed"] else _window
    strides, paddings, dilations = (_pair(values[name]) for name in ("stride", "padding", "dilation"))
    return _spatial(call, lambda i: make(size[i], strides[i], paddings[i], dilations[i]))


def _pool(call: Call) -> Field:
    sizes = _pair(call.values["kernel_size"])
    strides = _pair(call.values["stride"] or sizes)
    paddings, dilations = _pair(call.values["padding"]), _pair(call.values.get("dilation", 1))
    return _spatial(call, lambda i: _window(sizes[i], strides[i], paddings[i], dilations[i]))


def _pool_channels(call: Call) -> Field:
    """Three-dimensional pooling; with a kernel of K x 1 x 1 it is that of local response normalisation."""
    sizes, strides = list(call.values["kernel_size"]), list(call.values["stride"] or call.values["kernel_size"])
    return call.inputs[0][1] if sizes[1:] == strides[1:] == [1, 1] else EVERYTHING


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _adaptive_pool(call: Call) -> Field:
    """Cell o of n averages the cells from o * m // n up to ceil((o + 1) * m / n) of m; a single cell sees everything."""
    shape, new = call.inputs[0][0].shape[-2:], call.output.shape[-2:]
    if 1 in new:
        return EVERYTHING

    def reads(i: int) -> Reads:
        many, few = _ratio(shape[i], new[i])
        return [list(range(o * many // few, -(-(o + 1) * many // few))) for o in range(few)], many

    return _spatial(call, reads)


def _resample(call: Call) -> Field:
    """Interpolation. Cell i of n lies at (i + 0.5) * m / n - 0.5 among m cells and depends on those beside that place."""
    shape, new = call.inputs[0][0].shape[-2:], call.output.shape[-2:]
    reach = {"bilinear": (0, 1), "bicubic": (-1, 2)}.get(call.name.removeprefix("_").split("_")[1][:-2])

    def reads(i: int) -> Reads:
        many, few = _ratio(shape[i], new[i])
        if reach is None:
            return [[o * many // few] for o in range(few)], many
        places = [math.floor(Fraction(2 * o + 1, 2) * many / few - Fraction(1, 2)) for o in range(few)]
        return [[place + reach[0], place + reach[1]] for place in places], many

    return _spatial(call, reads)


def _ratio(old: int, new: int) -> tuple[int, int]:
    """old / new in lowest terms; a pyramid's 13 to 25 cells is 1 to 2, with one cell cut off."""
    whole = round(new / old)
    if whole > 1 and abs(new - whole * old) < whole:
        return 1, whole
    divisor = math.gcd(old, new)
    return old // divisor, new // divisor


def _pad(call: Call) -> Field:
    pads = list(call.values.get("pad") or call.values["padding"])
    before = pads[2] if len(pads) > 2 else 0, pads[0]
    return _spatial(call, lambda i: ([[-before[i]]], 1))


def _shuffle(call: Call) -> Field:
    factor = call.values.get("upscale_factor")
    if factor:
        return _spatial(call, lambda i: ([[0]] * factor, 1))
    factor = call.values["downscale_factor"]
    return _spatial(call, lambda i: ([list(range(factor))], factor))


def _slice(call: Call) -> Field:
    (tensor, field), *_ = call.inputs
    dim = call.values["dim"] % tensor.ndim
    if field.dims is None or dim not in field.dims:
        return field
    axes, i = list(field.axes), field.dims.index(dim)
    start = min(max((call.values["start"] or 0), -tensor.shape[dim]), tensor.shape[dim])
    axes[i] = axes[i].read([[start % tensor.shape[dim] if start < 0 else start]], call.values["step"])
    return Field(tuple(axes), field.dims)


def _reduce(call: Call) -> Field:
    """A mean, say: over the map (or over merged dimensions other than the last) it sees everything."""
    (tensor, field), *_ = call.inputs
    dims = call.values.get("dim")
    if dims is None or dims == []:
        return EVERYTHING
    gone = {dim % tensor.ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    if gone & set(field.dims or range(tensor.ndim - 1)):
        return EVERYTHING
    if call.output.ndim == tensor.ndim or field.dims is None:
        return field
    return Field(field.axes, tuple(dim - sum(other < dim for other in gone) for dim in field.dims))


def _permute(call: Call) -> Field:
    (tensor, field), *_ = call.inputs
    order = list(range(tensor.ndim))
    if call.name == "permute":
        order = [dim % tensor.ndim for dim in call.values["dims"]]
    elif tensor.ndim > 1:
        one, two = (call.values.get("dim0", 0) % tensor.ndim, call.values.get("dim1", 1) % tensor.ndim)
        order[one], order[two] = order[two], order[one]
    return field._replace(dims=field.dims and tuple(order.index(dim) for dim in field.dims))


def _product(call: Call) -> Field:
    """Matrices. One with weights looks at each row alone, and the only row of a picture is all of it; else, attention."""
    (tensor, field), *others = call.inputs
    if others or tensor.shape[-2:-1] == (1,) or tensor is call.values.get("mat2"):
        return EVERYTHING
    return Field(field.axes, None)


_RULES: dict[str, Callable[[Call], Field]] = {
    "convolution": _convolution,
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d"), _pool),
    "avg_pool3d": _pool_channels,
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys((f"upsample_{kind}2d" for kind in ("nearest", "bilinear", "bicubic")), _resample),
    **dict.fromkeys(("_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"), _resample),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffle),
    "slice": _slice,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"), _reduce),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("addmm", "mm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(("grid_sampler_2d", "sort", "topk"), lambda call: EVERYTHING),
}
_VIEWS = {"view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand", "unflatten", "select", "unbind"}
_SAME_DIMENSIONS = {"cat", "split", "split_with_sizes", "clone", "copy_"}
