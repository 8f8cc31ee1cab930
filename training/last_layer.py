"""A classifier's last layer fitted as a linear model on fixed features, in place of training by gradient."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import nn

from ..datasets.table import DataError, Table
from ..detectors.classification import Classifier
from .features import Cut, table_features
from .linear import Fit, choose_c, fit_softmax, fit_svm

KINDS: dict[str, Fit] = {"svm": fit_svm, "softmax": fit_softmax}


def fit_last_layer(
    model: Classifier,
    table: Table,
    kind: str,
    *,
    c: float | None = None,
    cache: str | os.PathLike,
    batch_size: int = 32,
    num_workers: int = 0,
) -> dict[float, float]:
    """Writes a support vector machine or softmax regression into a classifier's last layer; all else stays as it is.

    With the machine the model's scores are no probabilities: their order in a picture is right, their size is not.

    Args:
        model: whose last layer is linear.
        table: the pictures to learn from; those without an object, which have no class, are left out.
        kind: "svm" or "softmax".
        c: see `fit_svm`; None chooses it by cross-validation on these pictures.
        cache: folder of the features.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.

    Returns:
        Each candidate's accuracy in cross-validation by c; nothing where c was given.

    Raises:
        DataError: the model is no classifier, its last layer is not linear, or no picture has a class.
    """
    fit, name = KINDS[kind], _head_name(model)
    labelled, labels = _labelled(table)
    features = table_features(
        Cut(model, name, inputs=True), labelled, cache, batch_size=batch_size, num_workers=num_workers
    )
    head = model.get_submodule(name)
    if head.weight.is_cuda:  # Apple's GPUs have no float64
        features, labels = features.to(head.weight.device), labels.to(head.weight.device)
    tried: dict[float, float] = {}
    if c is None:
        c, tried = choose_c(fit, features, labels, head.out_features)
    solution = fit(features, labels, head.out_features, c)
    with torch.no_grad():
        head.weight.copy_(solution.weight)
        head.bias.copy_(solution.bias)
    return tried


def _head_name(model: nn.Module) -> str:
    network = getattr(model, "backbone", None)
    if not isinstance(model, Classifier) or not hasattr(network, "head_name"):
        raise DataError(f"a linear model is fitted as the last layer of a classifier; {type(model).__name__} is none")
    head = network.get_submodule(network.head_name)
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise DataError(
            f"the last layer of {type(network).__name__}, {network.head_name!r}, is {type(head).__name__} and not linear "
            "with a bias: fit a linear model to another network, or train this one by gradient"
        )
    return f"backbone.{network.head_name}"


def _labelled(table: Table) -> tuple[Table, torch.Tensor]:
    """The pictures that have a class, and its label: that of their first object that is no crowd."""
    rows, first = np.unique(table.image[~table.crowd], return_index=True)
    if not len(rows):
        raise DataError("no picture to train on has a class")
    return table.select(rows), torch.from_numpy(table.labels[~table.crowd][first])
