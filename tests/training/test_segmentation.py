"""What a segmenter learns of its data before training: names, colours, and how much each category counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline.segmentation import recurrent_labeling
from sightline.training.segmentation import SegmentationTraining


class Data(SimpleNamespace):
    """What training asks of its data."""

    def pixel_counts(self):
        return np.array([80, 10, 0]), np.array([100, 100, 0])


DATA = Data(categories=["ground", "thing", "never"], colours=[(0, 0, 0), (9, 8, 7), (1, 2, 3)], resize=(48, 64), seed=3)


def training(num_classes, **options):
    module = SegmentationTraining(recurrent_labeling(num_classes, steps=1, widths=(2, 2)), **options)
    module._trainer = SimpleNamespace(datamodule=DATA)
    return module


def test_data_say_what_the_categories_are():
    module = training(3)
    module.setup("fit")
    about = module.segmenter.description()
    assert (about["categories"], about["colours"]) == (DATA.categories, [[0, 0, 0], [9, 8, 7], [1, 2, 3]])
    assert about["resize"] == [48, 64]
    assert torch.equal(module.segmenter.loss.weights, torch.ones(3))


def test_rare_categories_weigh_more():
    module = training(3, class_weights="median_frequency")
    module.setup("fit")
    torch.testing.assert_close(module.segmenter.loss.weights, torch.tensor([0.45 / 0.8, 0.45 / 0.1, 0.0]))


def test_another_number_of_categories():
    with pytest.raises(ValueError, match=r"3 categories, .* built for 5: build it with num_classes=3"):
        training(5).setup("fit")
