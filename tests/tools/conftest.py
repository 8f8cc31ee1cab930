"""Small models of random weights that name pixels or find objects with masks, and pictures for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.datasets.images import write_image
from sightline.datasets.label_categories import write_categories
from sightline.datasets.label_files import write_label_map
from sightline.datasets.shapes import CATEGORIES, draw
from sightline.segmentation import fcn8s, mask_rcnn, save

NAMES = ["background", *CATEGORIES]
COLOURS = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (200, 0, 200), (0, 200, 200)]
SIDE = 64


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory) -> str:
    """The checkpoint of a segmenter that sees several categories in every picture."""
    torch.manual_seed(0)
    model = fcn8s("resnet10_narrow", len(NAMES), head_width=8)
    for parameter in model.parameters():
        if not parameter.any():  # scores start at zero
            torch.nn.init.normal_(parameter)
    model.categories, model.colours, model.resize = list(NAMES), list(COLOURS), (64, 96)
    path = tmp_path_factory.mktemp("segmenter") / "fcn.ckpt"
    save(model, path)
    return str(path)


@pytest.fixture(scope="session")
def mask_detector(tmp_path_factory) -> str:
    """The checkpoint of a Mask R-CNN that finds something everywhere."""
    torch.manual_seed(0)
    model = mask_rcnn(
        "resnet10_narrow_fpn",
        len(CATEGORIES),
        norm="batch",
        anchor_sizes=((8,), (16,), (32,), (64,)),
        proposals=20,
        head_width=32,
        mask_width=8,
        mask_layers=1,
    )
    model.categories, model.resize = list(CATEGORIES), (64, 96)
    path = tmp_path_factory.mktemp("mask_detector") / "mask.ckpt"
    save(model, path)
    return str(path)


@pytest.fixture
def label_data(tmp_path) -> Path:
    """A data set of label maps: two pictures to train on, three to test on, all with some void."""
    folder = tmp_path / "labelled"
    for split, numbers in (("train", (0, 1)), ("test", (2, 3, 4))):
        for number in numbers:
            picture = draw(0, number, SIDE)
            write_image(folder / "images" / split / f"{number}.png", picture.image)
            write_label_map(folder / "masks" / split / f"{number}.png", true_labels(number), COLOURS)
    write_categories(folder, NAMES, COLOURS)
    return folder


@pytest.fixture
def labels_of() -> Callable[[int], np.ndarray]:
    """A picture's true label map (H, W), by its number."""
    return true_labels


def true_labels(number: int) -> np.ndarray:
    """Of a drawn picture; the first four rows are void."""
    picture, labels = draw(0, number, SIDE), np.zeros((SIDE, SIDE), np.int16)
    for label, mask in zip(picture.labels.tolist(), picture.masks, strict=True):
        labels[mask > 0] = label + 1
    labels[:4] = -1
    return labels
