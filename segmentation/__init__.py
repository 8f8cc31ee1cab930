"""Feature maps to masks: fully convolutional networks and their kin, and instance masks. `load("best.ckpt")` gives a model."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from ..backbone.checkpoint import load_with, save
from ..backbone.model import Model
from ..detectors import Detector
from .augmented import augmented, windowed
from .fcn import FCN, fcn8s, fcn16s, fcn32s
from .fcn_resnet import FCNResNet, fcn_resnet50, fcn_resnet101
from .hypercolumn import Hypercolumn, hypercolumn
from .mask_rcnn import MaskRCNN, mask_rcnn, mask_rcnn_v2
from .mnc import MNC, mnc
from .model import Segmenter
from .multiscale import MultiscaleNetwork, farabet
from .pyramid import DeepLabV3Plus, deeplabv3_plus
from .refinement import RecurrentLabeling, recurrent_labeling
from .sds import SDS, sds
from .smoothing import smoothed

# A category for every pixel.
SEGMENTERS: dict[str, Callable[..., Segmenter]] = {
    "fcn32s": fcn32s,
    "fcn16s": fcn16s,
    "fcn8s": fcn8s,
    "fcn_resnet50": fcn_resnet50,
    "fcn_resnet101": fcn_resnet101,
    "deeplabv3_plus": deeplabv3_plus,
    "farabet": farabet,
    "recurrent_labeling": recurrent_labeling,
}
# Objects, each with its mask.
INSTANCE_SEGMENTERS: dict[str, Callable[..., Detector]] = {
    "mask_rcnn": mask_rcnn,
    "mask_rcnn_v2": mask_rcnn_v2,
    "sds": sds,
    "hypercolumn": hypercolumn,
    "mnc": mnc,
}


def load(path: str | os.PathLike, *, device: torch.device | str | None = None) -> Model:
    """A trained segmenter, of pixels or of instances, from a checkpoint, ready to `predict`.

    Only tensors and plain values are read from the file, never code.

    Args:
        path: a `.ckpt` that `sightline train` or `save` wrote.
        device: where to put it; by default the GPU where there is one.

    Raises:
        WeightsError: the file is missing, damaged, no checkpoint of a segmenter, or holds pickled code.
    """
    return load_with({**SEGMENTERS, **INSTANCE_SEGMENTERS}, path, device)
