"""The options by which checkpoints become one model, for every tool that takes a checkpoint."""

from __future__ import annotations

import argparse
import sys

import torch

from sightline.backbone.layer_table import short
from sightline.datasets.table import DataError
from sightline.detectors import Detector, augmented, average_weights, ensemble
from sightline.detectors.tiling import Tiling
from sightline.detectors.truncated_svd import head_cost, truncate_head
from sightline.tools.model_names import trained
from sightline.tools.number_options import positive, scale


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--ensemble`, `--average`, `--svd`, and how often a picture is looked at: `--multiscale`, `--flip` and `--upturn`."""
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
    parser.add_argument(
        "--multiscale",
        nargs="+",
        type=scale,
        metavar="FACTOR",
        help="look at each picture at these scales of the model's size, e.g. 0.75 1 1.25, and fuse what is found",
    )
    parser.add_argument("--flip", action="store_true", help="look at each picture mirrored left to right, too")
    parser.add_argument("--upturn", action="store_true", help="look at each picture mirrored top to bottom, too")


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """`--tiles` and `--overlap`, for tools that look for objects in pictures; `tiling_of` reads them."""
    parser.add_argument(
        "--tiles", type=positive, metavar="N", help="look at each picture in tiles of N pixels a side, and at the whole"
    )
    parser.add_argument(
        "--overlap", type=float, metavar="SHARE", help="of --tiles: what two of them share of their side (0.2)"
    )


def tiling_of(arguments: argparse.Namespace, model: Detector) -> Tiling | None:
    """How pictures are cut; None where they are not.

    Raises:
        ValueError: numbers that cannot be, an overlap of nothing, or a model that answers for whole pictures.
    """
    if arguments.tiles is None:
        if arguments.overlap is not None:
            raise DataError("--overlap says what tiles share; say how large they are, too: --tiles 640")
        return None
    if model.task != "detection":
        raise DataError(f"--tiles is for detectors; {arguments.checkpoint} is made for {model.task}: leave --tiles out")
    return Tiling(arguments.tiles) if arguments.overlap is None else Tiling(arguments.tiles, arguments.overlap)


def load_model(arguments: argparse.Namespace, device: torch.device) -> Detector:
    """The model of `arguments.checkpoint`, averaged with those of `--average`, together with those of `--ensemble`.

    A checkpoint may be a name with weights, see `model_names`. With `--svd` each is truncated, and what that saves is
    printed to stderr. With `--multiscale`, `--flip` or `--upturn` the model looks at every picture several times.

    Raises:
        WeightsError: a file cannot be loaded, or weights cannot be averaged.
        DataError: models that cannot answer together, be truncated, or look several times; the message names the files.
    """
    return _augmented(_together(arguments, device), arguments)


def _together(arguments: argparse.Namespace, device: torch.device) -> Detector:
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


def _augmented(model: Detector, arguments: argparse.Namespace) -> Detector:
    scales = arguments.multiscale or [1.0]
    if scales == [1.0] and not (arguments.flip or arguments.upturn):
        return model
    try:
        return augmented(model, scales=scales, flip=arguments.flip, upturn=arguments.upturn)
    except ValueError as error:
        raise DataError(f"{arguments.checkpoint} cannot look several times: {error}") from error
