"""Counts what every layer of a running network makes and costs: behind `layer_table.py`, which says what is counted."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .receptive_field import PIXELS, Call, Field, propagate


@dataclass
class Row:
    """One layer, as it is called; a layer that is called twice has two rows.

    Attributes:
        name: as in `named_modules`.
        kind: the layer's class, or the operation's name where a layer with parts does something beside them ("cat").
        shape: of the output, without the batch.
        parameters, activations, multiply_adds: counts for one picture.
        stride: vertical and horizontal, in pixels; None where there are no cells any more.
        receptive_field: height and width in pixels; None for the whole picture.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    parameters: int = 0
    activations: int = 0
    multiply_adds: int = 0
    stride: tuple[Fraction, Fraction] | None = None
    receptive_field: tuple[int, int] | None = None


class Counter(TorchDispatchMode):
    """Sees every operation while it is active, and writes the rows.

    Args:
        image: the picture; what is made of it is followed.
        parameters: the number of elements of each by its id; they outlive the counter.
    """

    def __init__(self, image: Tensor, parameters: dict[int, int]) -> None:
        super().__init__()
        self.image, self.rows = image, []
        self.modules: list[tuple[str, nn.Module]] = []  # those that are running, the outermost first
        self._parameters = parameters
        # What tensors see, and the ids of the parameters that they were made of; forgotten when the tensor is.
        self._fields: MutableMapping[Tensor, Field] = WeakTensorKeyDictionary({image: PIXELS})
        self._sources: MutableMapping[Tensor, set[int]] = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if outputs:
            self._note(func, args, kwargs or {}, inputs, outputs)
        return result

    def sees(self, x: Tensor) -> Field:
        """What the cells of a tensor see that was made of the picture."""
        return self._fields[x]

    def start(self, name: str, module: nn.Module) -> None:
        """A module is about to run."""
        self.modules.append((name, module))
        if _is_leaf(module):
            self.rows.append(Row(name, type(module).__name__))

    def _note(self, func: Any, args: tuple, kwargs: dict, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        sources = {id(x) for x in inputs if id(x) in self._parameters}
        sources = sources.union(*(self._sources.get(x, ()) for x in inputs))
        tracked = [(x, self._fields[x]) for x in inputs if x in self._fields]
        if not tracked:  # a constant, or made of parameters alone
            for x in outputs if sources else ():
                self._sources[x] = sources
            return
        call = Call(func._schema.name.split("::")[-1], _bound(func, args, kwargs), tracked, outputs[0])
        for x in outputs:
            self._fields[x] = propagate(call._replace(output=x))
            if x._is_view() and x._base not in self._fields:  # a part of an empty tensor was written to
                self._fields[x._base] = self._fields[x]
        # What works in place, or only looks at a tensor in another shape, makes none.
        makes = not func._schema.returns[0].alias_info and call.name != "_unsafe_view"
        row = self._row(call.name if makes else "")
        row.activations += makes * call.output.numel()
        self._count(row, call, sources)

    def _count(self, row: Row, call: Call, sources: set[int]) -> None:
        row.shape = tuple(call.output.shape[1:])
        axes = self._fields[call.output].axes
        row.stride = row.receptive_field = None
        if axes:
            row.stride, row.receptive_field = (axes[0].stride, axes[1].stride), (axes[0].size, axes[1].size)
        row.parameters += sum(self._parameters.pop(key, 0) for key in sources)
        if call.name in _MULTIPLY_ADDS:
            row.multiply_adds += _MULTIPLY_ADDS[call.name](call.values, call.output)

    def _row(self, operation: str) -> Row:
        """The running layer's. What a module with parts does by itself between them has a row of its own."""
        name, module = self.modules[-1] if self.modules else ("", None)
        if module is not None and _is_leaf(module):
            return self.rows[-1]
        if not self.rows or self.rows[-1].name != name:
            self.rows.append(Row(name, operation))
        elif operation and self.rows[-1].kind != operation:
            self.rows[-1].kind = f"{self.rows[-1].kind.split(',')[0]}, …" if self.rows[-1].kind else operation
        return self.rows[-1]


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _bound(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """All arguments by name, defaults included."""
    arguments = func._schema.arguments
    values = {argument.name: argument.default_value for argument in arguments}
    return values | dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs


def _convolution(values: dict[str, Any], output: Tensor) -> int:
    """Each output cell (of a transposed convolution: each input cell) meets every weight of its channel."""
    cells = values["input"] if values["transposed"] else output
    return cells.numel() * values["weight"][0].numel()


def _attention(values: dict[str, Any], output: Tensor) -> int:
    """Each query (..., N, D) meets each key, and each weight each value."""
    query, key, value = values["query"], values["key"], values["value"]
    return query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _matrices(name: str) -> Callable[[dict[str, Any], Tensor], int]:
    return lambda values, output: output.numel() * values[name].shape[-1]


_MULTIPLY_ADDS: dict[str, Callable[[dict[str, Any], Tensor], int]] = {
    "convolution": _convolution,
    "addmm": _matrices("mat1"),
    "mm": _matrices("self"),
    "bmm": _matrices("self"),
    "baddbmm": _matrices("batch1"),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
}
