"""The convolutions' weights of an ONNX file: for networks that are published in no other form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .sources import WeightsError

PREFIX = "onnx."


def read_onnx(path: Path) -> dict[str, Tensor]:
    """Weights and biases of all convolutions in their order of execution.

    Initialisers mostly bear numbers for names, so the tensors are named by place: "onnx.0.Conv_41.weight" is of the first
    convolution, whose node is Conv_41. The graph is not run, and nothing else in it is looked at.

    Raises:
        WeightsError: the onnx package is absent, the file is damaged or has no convolutions, or the weights of one are
            computed in the graph.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx.numpy_helper import to_array
    except ImportError as error:
        raise WeightsError(f'{path} needs the onnx package: pip install "sightline[export]"') from error
    try:
        graph = onnx.load(path).graph
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise WeightsError(f"{path} is damaged, or no ONNX file: {error}") from error
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = ((node.output[0], value) for node in graph.node if node.op_type == "Constant" for value in node.attribute)
    constants |= {name: value.t for name, value in values if value.name == "value"}
    state: dict[str, Tensor] = {}
    for i, node in enumerate(node for node in graph.node if node.op_type == "Conv"):
        for kind, name in zip(("weight", "bias"), node.input[1:], strict=False):
            value = to_array(_constant(constants, name, node, path))
            state[f"{PREFIX}{i}.{node.name}.{kind}"] = torch.from_numpy(value.copy())
    if not state:
        raise WeightsError(f"{path} has no convolutions: it is empty, or of another kind of network")
    return state


def _constant(constants: dict[str, Any], name: str, node: Any, path: Path) -> Any:
    if name not in constants:
        raise WeightsError(
            f"{path}: {name!r}, of convolution {node.name}, is computed in the graph (a quantised file?); "
            "give a file of constant float weights"
        )
    return constants[name]
