"""Feature maps to boxes: Faster R-CNN and its parts. `load("best.ckpt")` gives a trained detector."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from .checkpoint import load_with, save
from .faster_rcnn import (
    FasterRCNN,
    faster_rcnn,
    faster_rcnn_c4,
    faster_rcnn_c5,
    faster_rcnn_mobilenet_v3,
    faster_rcnn_v2,
)
from .model import Detector

DETECTORS: dict[str, Callable[..., Detector]] = {
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_v2": faster_rcnn_v2,
    "faster_rcnn_mobilenet_v3": faster_rcnn_mobilenet_v3,
    "faster_rcnn_c4": faster_rcnn_c4,
    "faster_rcnn_c5": faster_rcnn_c5,
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
