"""The options by which checkpoints become one model, for every tool that takes a checkpoint."""

from __future__ import annotations

import argparse
import sys

import torch

from sightline.backbone.layer_table import short
from sightline.datasets.table import DataError
from sightline.detectors import Detector, average_weights, ensemble
from sightline.detectors.truncated_svd import head_cost, truncate_head
from sightline.tools.model_names import trained


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--ensemble`, `--average` and `--svd`."""
    parser.add_argument(
        "--ensemble", nargs="+", metavar="OTHER", default=[], help="further checkpoints; all answer together"
    )
    parser.add_argument(
        "--average",
        nargs="+",
        metavar="OTHER",
        default=[],
        help="further checkpoints of one architecture; mean weights",
    )
    parser.add_argument(
        "--svd",
        nargs=2,
        type=int,
        metavar=("FC6", "FC7"),
        help="Fast and Faster R-CNN: truncate fc6 and fc7 to these ranks (VGG-16's paper: 1024 256)",
    )


def load_model(arguments: argparse.Namespace, device: torch.device) -> Detector:
    """The model of `arguments.checkpoint`, averaged with those of `--average`, together with those of `--ensemble`.

    A checkpoint may be a name with weights, see `model_names`. With `--svd` each is truncated, and what that saves is
    printed to stderr.

    Raises:
        WeightsError: a file cannot be loaded, or weights cannot be averaged.
        DataError: models that cannot answer together, or be truncated; the message names the files.
    """
    paths = [arguments.checkpoint, *arguments.average]
    model = average_weights(paths, device=device).eval() if arguments.average else trained(paths[0], device)
    if model.task == "reconstruction":
        raise DataError(
            f"{arguments.checkpoint} is an autoencoder, which finds nothing to show or to score (its measure is val/loss in "
            "metrics.csv); start a classifier from it: --model.detector.init_args.weights"
        )
    model = _truncated(model, arguments.svd, arguments.checkpoint)
    if not arguments.ensemble:
        return model
    others = [_truncated(trained(path, device), arguments.svd, path) for path in arguments.ensemble]
    try:
        return ensemble([model, *others]).eval()
    except ValueError as error:
        names = ", ".join([arguments.checkpoint, *arguments.ensemble])
        raise DataError(f"{names} cannot answer together: {error}") from error


def _truncated(model: Detector, ranks: list[int] | None, path: str) -> Detector:
    if ranks is None:
        return model
    try:
        smaller = truncate_head(model, ranks)
    except ValueError as error:
        raise DataError(f"{path} with --svd {' '.join(map(str, ranks))}: {error}") from error
    (parameters, products), (fewer, less) = (head_cost(one) for one in (model, smaller))
    print(
        f"{path}: fc6 and fc7 have {short(fewer)} parameters in place of {short(parameters)}, and a region takes {short(less)} "
        f"multiply-adds in place of {short(products)}",
        file=sys.stderr,
    )
    return smaller
