"""The R-CNN papers' head: fc6 and fc7 of an ImageNet classifier on pooled regions, and new last layers above them.

Fast R-CNN (https://arxiv.org/abs/1504.08083), section 2.2: RoI pooling, to as many cells as fc6 takes, stands in the place of
the network's last max pooling. Section 4.1: new layers start from Gaussians.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..backbone import BACKBONE_OF, CLASSIFIERS, WeightsError, load_weights
from .roi_head import BoxPredictor, TwoLayerHead

log = logging.getLogger(__name__)

DROPOUT = 0.5


class FullyConnected(NamedTuple):
    """A classifier's hidden layers.

    Attributes:
        fc6, fc7: their names, e.g. "classifier.0" and "classifier.3".
        cells: height and width of the map that fc6 takes, flattened from (C, cells, cells).
    """

    fc6: str
    fc7: str
    cells: int


def wide_head(
    backbone: str, channels: int, width: int, *, weights: str | None = None, ranks: Sequence[int] | None = None
) -> TwoLayerHead:
    """Fully connected layers over the last map of a backbone: its own classifier's, where it has them, with their dropout.

    What becomes of fc6 and fc7 is logged: as a warning where the network's classifier has them.

    Args:
        backbone: a name as for `build_backbone`. VGG pools 7 x 7 cells, AlexNet and ZFNet 6 x 6, others 7 x 7.
        channels: of the last map.
        width: of both layers; that of the classifiers is 4096.
        weights: of the backbone, from which fc6 and fc7 start too if the file has both, in the right shape.
        ranks: see `TwoLayerHead`.
    """
    layers = fully_connected(backbone)
    bins, dropout = (7, 0.0) if layers is None else (layers.cells, DROPOUT)
    head = TwoLayerHead(channels, bins, width, dropout=dropout, ranks=ranks)
    if weights is None:
        return head
    if layers is None:
        log.info("fc6 and fc7 start from random weights: the classifier of %s has no such layers", backbone)
    else:
        _load(head, backbone, weights, layers)
    return head


def fully_connected(backbone: str) -> FullyConnected | None:
    """The hidden layers of the classifier of that name, if it ends in two of them."""
    if backbone not in CLASSIFIERS:
        return None
    with torch.device("meta"):  # names and shapes alone: VGG's take half a gigabyte
        classifier = CLASSIFIERS[backbone](1)
    stages = classifier.stage_prefixes
    if not {"fc6", "fc7"} <= stages.keys():
        return None
    return FullyConnected(*stages["fc6"], *stages["fc7"], classifier.avgpool.output_size)


def _load(head: TwoLayerHead, backbone: str, weights: str, layers: FullyConnected) -> None:
    names = {"fc6": re.escape(layers.fc6), "fc7": re.escape(layers.fc7)}
    within = rf"({BACKBONE_OF})?(?=({'|'.join(names.values())})\.)"
    rename = [(rf"^{theirs}\.", f"{ours}.") for ours, theirs in names.items()]
    try:
        report = load_weights(head, weights, name=backbone, within=within, rename=rename)
    except WeightsError as error:  # the backbone has been read from the same file: it is there, and whole
        log.warning("fc6 and fc7 start from random weights: %s", error)
    else:  # as a warning too: to the backbone, which came first, these layers were not in the model
        log.warning("fc6 and fc7 start from %s and %s of %s", layers.fc6, layers.fc7, report.source)


def gaussian_predictor(width: int, num_classes: int) -> BoxPredictor:
    """Last layers as the papers start them: normal with deviation 0.01 for categories, 0.001 for boxes; biases zero."""
    predictor = BoxPredictor(width, num_classes)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    return predictor
