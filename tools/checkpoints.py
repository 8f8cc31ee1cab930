"""The options by which checkpoints become one model, for every tool that takes a checkpoint."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

import torch

from sightline.backbone.layer_table import short
from sightline.backbone.model import Model
from sightline.backbone.precision import Precision
from sightline.datasets.table import DataError
from sightline.detectors import Detector, augmented, ensemble
from sightline.detectors.averaging import average_with
from sightline.detectors.tiling import TASKS, Tiling
from sightline.detectors.truncated_svd import head_cost, truncate_head
from sightline.segmentation import Segmenter, windowed
from sightline.segmentation import augmented as augmented_segmenter
from sightline.tools.model_names import MODELS, trained
from sightline.tools.number_options import positive, scale


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--ensemble`, `--average`, `--svd`, `--precision`, and how a picture is looked at: `--multiscale`, `--flip`, `--upturn`."""
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
        help="look at each picture at these scales of the model's size, e.g. 0.75 1 1.25, and fuse the answers",
    )
    parser.add_argument("--flip", action="store_true", help="look at each picture mirrored left to right, too")
    parser.add_argument("--upturn", action="store_true", help="look at each picture mirrored top to bottom, too")
    add_precision(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """`--precision`."""
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="numbers to compute in; auto is bfloat16 where an NVIDIA GPU or the CPU has instructions for it (auto)",
    )


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """`--tiles` and `--overlap`; of detectors `tiling_of` reads them, of segmenters `load_segmenter`."""
    parser.add_argument(
        "--tiles",
        type=positive,
        metavar="N",
        help="look at each picture in tiles of N pixels a side (for objects at the whole, too)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="of --tiles: what two of them share of their side (0.2; label maps 0.5)",
    )


def tiling_of(arguments: argparse.Namespace, model: Detector) -> Tiling | None:
    """How pictures are cut; None where they are not.

    Raises:
        ValueError: numbers that cannot be, an overlap of nothing, or a model that answers for whole pictures.
    """
    _require_tiles(arguments)
    if arguments.tiles is None:
        return None
    if model.task not in TASKS:
        raise DataError(
            f"--tiles is for models of many objects and for label maps; {arguments.checkpoint} is made for "
            f"{task_of(model)}: leave --tiles out"
        )
    return Tiling(arguments.tiles) if arguments.overlap is None else Tiling(arguments.tiles, arguments.overlap)


def _require_tiles(arguments: argparse.Namespace) -> None:
    if arguments.tiles is None and arguments.overlap is not None:
        raise DataError("--overlap says what tiles share; say how large they are, too: --tiles 640")


def task_of(model: Model) -> str:
    """What a model is made for, in words."""
    return model.task.replace("_", " ")


def load_segmenter(arguments: argparse.Namespace, device: torch.device) -> Segmenter:
    """The segmenter of `arguments.checkpoint`, averaged with those of `--average`, in evaluation mode.

    With `--multiscale` or `--flip` it looks at every picture several times; with `--tiles` at windows of the picture as it
    is, whatever size the model is made for.

    Raises:
        WeightsError: a file cannot be loaded, or weights cannot be averaged.
        ValueError: scales, tiles or an overlap that cannot be, or scales and tiles.
    """
    _require_tiles(arguments)
    scales = arguments.multiscale or [1.0]
    if arguments.tiles is not None and scales != [1.0]:
        raise DataError("--tiles show a picture at its own size, --multiscale at others: leave one of them out")
    model = load_mean(arguments, device)
    if scales != [1.0] or arguments.flip:
        model = augmented_segmenter(model, scales=scales, flip=arguments.flip)
    if arguments.tiles is not None:
        overlap = {} if arguments.overlap is None else {"overlap": arguments.overlap}
        model = windowed(model, arguments.tiles, **overlap)
        model.resize = ()
    model.precision = arguments.precision
    return model.eval()


def load_model(arguments: argparse.Namespace, device: torch.device) -> Detector:
    """The model of `arguments.checkpoint`, averaged with those of `--average`, together with those of `--ensemble`.

    A checkpoint may be a name with weights, see `model_names`. With `--svd` each is truncated, and what that saves is
    printed to stderr. With `--multiscale`, `--flip` or `--upturn` the model looks at every picture several times.

    Raises:
        WeightsError: a file cannot be loaded, or weights cannot be averaged.
        DataError: models that cannot answer together, be truncated, or look several times; the message names the files.
    """
    model = _augmented(_together(arguments, device), arguments)
    model.precision = arguments.precision
    return model


def load_mean(arguments: argparse.Namespace, device: torch.device) -> Model:
    """The model of `arguments.checkpoint`, averaged with those of `--average`, in evaluation mode.

    Raises:
        WeightsError: a file cannot be loaded, or weights cannot be averaged.
    """
    paths = [arguments.checkpoint, *arguments.average]
    return average_with(MODELS, paths, device).eval() if arguments.average else trained(paths[0], device)


def _together(arguments: argparse.Namespace, device: torch.device) -> Detector:
    model = load_mean(arguments, device)
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
