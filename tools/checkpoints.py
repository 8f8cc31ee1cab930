"""The options by which several checkpoints answer as one model, for every tool that takes a checkpoint."""

from __future__ import annotations

import argparse

import torch

from sightline.datasets.table import DataError
from sightline.detectors import Detector, average_weights, ensemble, load


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--ensemble` and `--average`."""
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


def load_model(arguments: argparse.Namespace, device: torch.device) -> Detector:
    """The model of `arguments.checkpoint`, averaged with those of `--average`, together with those of `--ensemble`.

    Raises:
        WeightsError: a file cannot be loaded, or weights cannot be averaged.
        DataError: models that cannot answer together; the message names the files.
    """
    paths = [arguments.checkpoint, *arguments.average]
    model = average_weights(paths, device=device).eval() if arguments.average else load(paths[0], device=device)
    if model.task == "reconstruction":
        raise DataError(
            f"{arguments.checkpoint} is an autoencoder, which finds nothing to show or to score (its measure is val/loss in "
            "metrics.csv); start a classifier from it: --model.detector.init_args.weights"
        )
    if not arguments.ensemble:
        return model
    try:
        return ensemble([model, *(load(path, device=device) for path in arguments.ensemble)]).eval()
    except ValueError as error:
        names = ", ".join([arguments.checkpoint, *arguments.ensemble])
        raise DataError(f"{names} cannot answer together: {error}") from error
