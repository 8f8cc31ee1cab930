"""A detector and data small enough to train in a second."""

import pytest

from sightline.datasets.data_module import DetectionData, Shapes
from sightline.detectors import faster_rcnn


@pytest.fixture
def tiny_detector():
    """A function that builds the network; group norm, so that nothing depends on how a batch is spread over processes."""

    def build(**changes):
        arguments = {
            "backbone": "resnet10_narrow_fpn", "num_classes": 6, "norm": "group", "head_width": 32,
            "anchor_sizes": ((16,), (32,), (64,), (96,)), "proposals": 20, "samples": 16, "detections": 10,
        }  # fmt: skip
        return faster_rcnn(**(arguments | changes))

    return build


@pytest.fixture
def tiny_data():
    """A function that makes the data module: 24 pictures of 64 pixels to train on, 8 to validate."""

    def build(**changes):
        arguments = {"batch_size": 4, "min_size": 64, "max_size": 64, "num_workers": 0, "shapes": Shapes(24, 8, 64)}
        return DetectionData(**(arguments | changes))

    return build
