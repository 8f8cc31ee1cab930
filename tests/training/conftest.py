"""A detector and data small enough to train in a second."""

import pytest
import torch
from torch import nn

from sightline.datasets.data_module import DetectionData, Shapes
from sightline.detectors import faster_rcnn
from sightline.detectors.classification import Classifier


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


class TinyNetwork(nn.Module):
    """Two convolutions, an average and a last layer."""

    mean = std = (0.5, 0.5, 0.5)
    strides = channels = ()
    stage_prefixes = {"one": ("conv1", "norm1"), "two": ("conv2",)}  # noqa: RUF012
    head_name = "fc"

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 5, 4), nn.BatchNorm2d(16)
        self.conv2, self.fc = nn.Conv2d(16, 32, 3), nn.Linear(32, num_classes)

    def forward(self, images):
        x = self.norm1(self.conv1(images)).relu()
        return self.fc(self.conv2(x).relu().mean((2, 3)))


@pytest.fixture
def tiny_classifier():
    """A function that builds a classifier of some thousand weights."""

    def build(num_classes=6):
        torch.manual_seed(0)
        return Classifier(TinyNetwork(num_classes), num_classes)

    return build
