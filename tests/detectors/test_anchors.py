"""Anchors against torchvision's AnchorGenerator (https://github.com/pytorch/vision, detection/anchor_utils.py)."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from sightline.detectors.anchors import Anchors, cell_anchors

PYRAMID = ((32,), (64,), (128,), (256,), (512,))
RATIOS = (0.5, 1.0, 2.0)

# name: frame, strides, sizes
CASES = {
    "all strides divide": ((256, 320), (4, 8, 16, 32, 64), PYRAMID),
    "coarsest side rounded up": ((800, 1216), (4, 8, 16, 32, 64), PYRAMID),
    "both coarse sides rounded up": ((800, 1120), (4, 8, 16, 32, 64), PYRAMID),
    "a map of one cell": ((32, 96), (4, 8, 16, 32, 64), PYRAMID),
    "several sizes a level": ((224, 160), (16, 32, 64), ((32, 64, 128, 256, 512),) * 3),
    "one map": ((600, 800), (16,), ((128, 256, 512),)),
}


def maps(frame, strides):
    return [torch.zeros(2, 1, *(-(-side // stride) for side in frame)) for stride in strides]


@pytest.mark.parametrize("name", CASES)
def test_equal_to_torchvision(name):
    frame, strides, sizes = CASES[name]
    features = maps(frame, strides)
    images = ImageList(torch.zeros(2, 3, *frame), [frame, frame])
    expected = AnchorGenerator(sizes, (RATIOS,) * len(sizes))(images, features)[0]
    found = Anchors(sizes, RATIOS)(features, frame)
    assert [len(level) for level in found] == [
        feature[0, 0].numel() * len(row) * 3 for feature, row in zip(features, sizes, strict=True)
    ]
    assert torch.equal(torch.cat(found), expected)


def test_shapes_of_a_cell():
    """The areas and ratios asked for, up to rounding to whole pixels; ratios vary slowest."""
    found = cell_anchors((64, 128), RATIOS)
    width, height = (found[:, 2:] - found[:, :2]).unbind(1)
    torch.testing.assert_close(height / width, torch.tensor(RATIOS).repeat_interleave(2), rtol=0.03, atol=0)
    torch.testing.assert_close((height * width).sqrt(), torch.tensor([64.0, 128.0] * 3), rtol=0.01, atol=0)
    assert torch.equal(found[:, :2], -found[:, 2:])


def test_leaves_no_trace_in_the_state_dict():
    """Anchors follow from the arguments, and torchvision's files have none."""
    assert not Anchors(PYRAMID, RATIOS).state_dict()


def test_wrong_number_of_maps():
    with pytest.raises(ValueError, match="5 rows of anchor sizes for 4 feature maps"):
        Anchors(PYRAMID, RATIOS)(maps((64, 64), (4, 8, 16, 32)), (64, 64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_has_the_same_anchors(dtype):
    frame, strides, sizes = CASES["coarsest side rounded up"]
    features = maps(frame, strides)
    expected, found = Anchors(sizes, RATIOS)(features, frame), Anchors(sizes, RATIOS).to(dtype)(features, frame)
    for ours, wanted in zip(found, expected, strict=True):
        assert torch.equal(ours, wanted)
