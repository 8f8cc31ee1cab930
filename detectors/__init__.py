"""Feature maps to boxes: the R-CNN family, YOLO, and their parts. `load("best.ckpt")` gives a trained detector."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..backbone.checkpoint import load_with, save
from ..backbone.csp_darknet import SIZES
from .augmented import augmented
from .autoencoder import Autoencoder, autoencoder
from .averaging import average_with
from .classification import Classifier, classifier
from .ensemble import Ensemble, ensemble
from .fast_rcnn import FastRCNN, fast_rcnn
from .faster_rcnn import (
    FasterRCNN,
    faster_rcnn,
    faster_rcnn_c4,
    faster_rcnn_c5,
    faster_rcnn_mobilenet_v3,
    faster_rcnn_v2,
)
from .localization import Localization, localization
from .model import Detector
from .overfeat import OverFeat, overfeat
from .rcnn import rcnn
from .yolov1 import YOLOv1, yolov1
from .yolox import YOLOX, yolox

DETECTORS: dict[str, Callable[..., Detector]] = {
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_v2": faster_rcnn_v2,
    "faster_rcnn_mobilenet_v3": faster_rcnn_mobilenet_v3,
    "faster_rcnn_c4": faster_rcnn_c4,
    "faster_rcnn_c5": faster_rcnn_c5,
    "fast_rcnn": fast_rcnn,
    "rcnn": rcnn,
    "localization": localization,
    "overfeat": overfeat,
    "classifier": classifier,
    "autoencoder": autoencoder,
    "yolov1": yolov1,
    "yolox": yolox,
    **{f"yolox_{size}": partial(yolox, size) for size in SIZES},
}


def load(path: str | os.PathLike, *, device: torch.device | str | None = None) -> Detector:
    """A trained detector from a checkpoint, ready to `predict`.

    Only tensors and plain values are read from the file, never code.

    Args:
        path: a `.ckpt` that `sightline train` or `save` wrote.
        device: where to put it; by default the GPU where there is one.

    Raises:
        WeightsError: the file is missing, damaged, no Sightline checkpoint, or holds pickled code.
    """
    return load_with(DETECTORS, path, device)


def average_weights(paths: Sequence[str | os.PathLike], *, device: torch.device | str | None = None) -> Detector:
    """One detector with the mean of several checkpoints' weights: of a run's last epochs, or of fine-tuned runs.

    Means are taken in float64; whole numbers (counters) are the last checkpoint's.

    Args:
        paths: checkpoints of one architecture, categories and size of pictures; as for `load`.
        device: where to put it; by default the GPU where there is one.

    Raises:
        WeightsError: a file cannot be loaded, or they do not go together.
    """
    return average_with(DETECTORS, paths, device)
