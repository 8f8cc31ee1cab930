"""Truncated SVD of a head's fully connected layers: fewer multiply-adds a region (Fast R-CNN, https://arxiv.org/abs/1504.08083,
section 3.1).

A layer's weights W = U S V^T, (outputs, inputs), become two layers with nothing between them: S_t V_t^T without a bias, then
U_t with the old bias, where t, the rank, counts the largest singular values that are kept. That is t (inputs + outputs)
weights in place of inputs * outputs, and no other layer of that rank is nearer to W (Eckart and Young 1936).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .model import Detector

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=Detector)


class Cost(NamedTuple):
    """What the layers fc6 and fc7 of a head take.

    Attributes:
        parameters: weights and biases.
        multiply_adds: of one region; biases are not counted.
    """

    parameters: int
    multiply_adds: int


def truncate_head(model: Model, ranks: Sequence[int]) -> Model:
    """A copy of a detector with fc6 and fc7 truncated, which `save` and `load` keep so.

    Args:
        model: a Fast or Faster R-CNN with a `TwoLayerHead`.
        ranks: of fc6 and of fc7; the paper's for VGG-16 are 1024 and 256 (section 4.4).

    Raises:
        ValueError: no such model, one that is truncated already, or ranks that do not fit its layers.
    """
    _check(model)
    head = model.roi_heads.box_head
    pairs = list(zip((head.fc6, head.fc7), two_ranks(ranks), strict=True))
    for layer, rank in pairs:  # both, before the first takes its time
        _check_rank(layer.in_features, layer.out_features, rank)
    layers = [truncate(layer, rank) for layer, rank in pairs]
    smaller = copy.deepcopy(model)
    smaller.roi_heads.box_head.fc6, smaller.roi_heads.box_head.fc7 = layers
    if smaller.architecture is not None:
        smaller.architecture["arguments"]["truncated"] = [int(rank) for rank in ranks]
    log.info("fc6 and fc7: %s became %s", head_cost(model), head_cost(smaller))
    return smaller


def head_cost(model: Detector) -> Cost:
    """What fc6 and fc7 of a detector with a `TwoLayerHead` take, truncated or not."""
    head = model.roi_heads.box_head
    weights = [p for layer in (head.fc6, head.fc7) for p in layer.parameters()]
    return Cost(sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.ndim == 2))


def truncate(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Two layers whose product is the nearest of that rank to a layer's weights; at full rank, the layer itself.

    U_t^T W is S_t V_t^T, so that U_t alone is needed: the first eigenvectors of W W^T. In float64, where the squares of
    singular values lose nothing that float32 weights had, they take a sixth of the time of the whole SVD: for VGG-16's fc6
    and fc7, on a CPU, a minute or two.

    Raises:
        ValueError: `rank` is not in 1 to min(inputs, outputs).
    """
    pair = low_rank(layer.in_features, layer.out_features, rank, bias=layer.bias is not None)
    pair.to(layer.weight)
    with torch.no_grad():
        left = _left_vectors(layer.weight, rank)
        pair[0].weight.copy_(left.T @ layer.weight.to(left))
        pair[1].weight.copy_(left)
        if layer.bias is not None:
            pair[1].bias.copy_(layer.bias)
    return pair.train(layer.training)


def _left_vectors(weight: Tensor, rank: int) -> Tensor:
    """U_t, (outputs, t) in float64, of the largest singular value first."""
    weight = weight.cpu() if weight.device.type == "mps" else weight  # which has no float64
    weight = weight.double()
    return torch.linalg.eigh(weight @ weight.T).eigenvectors.flip(1)[:, :rank]


def low_rank(inputs: int, outputs: int, rank: int, *, bias: bool = True) -> nn.Sequential:
    """Two untrained layers, (..., inputs) to (..., outputs) by way of `rank` numbers.

    Raises:
        ValueError: `rank` is not in 1 to min(inputs, outputs).
    """
    _check_rank(inputs, outputs, rank)
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))


def _check_rank(inputs: int, outputs: int, rank: int) -> None:
    most = min(inputs, outputs)
    if not 1 <= rank <= most:
        raise ValueError(f"a layer of {inputs} inputs and {outputs} outputs has ranks from 1 to {most}, got {rank}")


def two_ranks(ranks: Sequence[int]) -> Sequence[int]:
    """The ranks themselves.

    Raises:
        ValueError: they are not one of fc6 and one of fc7.
    """
    if len(ranks) != 2:
        raise ValueError(f"truncation needs two ranks, of fc6 and of fc7, e.g. 1024 and 256, got {list(ranks)}")
    return ranks


def _check(model: Detector) -> None:
    head = getattr(getattr(model, "roi_heads", None), "box_head", None)
    kinds = {type(getattr(head, name, None)) for name in ("fc6", "fc7")}
    if nn.Sequential in kinds:
        raise ValueError("fc6 and fc7 are truncated already; truncate the checkpoint that they came from")
    if kinds != {nn.Linear}:
        raise ValueError(
            f"only detectors with the layers fc6 and fc7 can be truncated, this is a {type(model).__name__}"
        )
    architecture = model.architecture
    if architecture is not None and "truncated" not in architecture["arguments"]:
        raise ValueError(f"{architecture['name']} could not be saved and loaded with truncated layers")
