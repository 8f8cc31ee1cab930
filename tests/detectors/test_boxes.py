"""Box geometry against torchvision (https://github.com/pytorch/vision, ops/boxes.py and models/detection/_utils.py)."""

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_area, box_iou, clip_boxes_to_image, generalized_box_iou

from sightline.detectors.boxes import area, clip, decode, encode, full_precision, giou, intersection, iou

WEIGHTS = {"rpn": (1.0, 1.0, 1.0, 1.0), "fast_rcnn": (10.0, 10.0, 5.0, 5.0)}


def boxes(*shape, side=100.0, least=0.0):
    """Boxes whose corners fall in a square of `side` pixels, at least `least` wide and high."""
    low = torch.rand(*shape, 2) * side
    return torch.cat([low, low + least + torch.rand(*shape, 2) * side], dim=-1)


@pytest.mark.parametrize(("ours", "peer"), [(iou, box_iou), (giou, generalized_box_iou)], ids=["iou", "giou"])
@pytest.mark.parametrize("counts", [(30, 20), (1, 1), (0, 5), (5, 0), (0, 0)])
def test_equal_to_torchvision(ours, peer, counts):
    a, b = boxes(counts[0]), boxes(counts[1])
    torch.testing.assert_close(ours(a, b), peer(a, b))


def test_areas_equal_to_torchvision():
    a = boxes(50)
    torch.testing.assert_close(area(a), box_area(a))


@pytest.mark.parametrize(("function", "least"), [(iou, 0.0), (giou, -1.0)])
def test_symmetric_bounded_and_one_on_itself(function, least):
    for _ in range(20):
        a, b = boxes(20, least=0.1), boxes(30, least=0.1)
        values = function(a, b)
        assert torch.equal(values, function(b, a).T)
        assert least <= values.min()
        assert values.max() <= 1
        torch.testing.assert_close(function(a, a).diagonal(), torch.ones(20))


@pytest.mark.parametrize("function", [intersection, iou, giou])
def test_a_batch_gives_what_its_images_give_alone(function):
    a, b = boxes(3, 7), boxes(3, 5)
    together = function(a, b)
    assert together.shape == (3, 7, 5)
    for i in range(3):
        assert torch.equal(together[i], function(a[i], b[i]))


def test_leading_dimensions_broadcast():
    shared, own = boxes(7), boxes(3, 5)
    assert torch.equal(iou(shared, own), iou(shared.expand(3, 7, 4), own))


# name: box, box, intersection over union
HAND = {
    "half": ([0, 0, 2, 2], [0, 0, 2, 1], 0.5),
    "quarter of each": ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
    "touching": ([0, 0, 1, 1], [1, 0, 2, 1], 0.0),
    "a point inside": ([0, 0, 4, 4], [2, 2, 2, 2], 0.0),
    "two points": ([2, 2, 2, 2], [2, 2, 2, 2], 0.0),
    "corners swapped": ([3, 3, 1, 1], [0, 0, 4, 4], 0.0),
}


@pytest.mark.parametrize("name", HAND)
def test_iou_by_hand(name):
    a, b, expected = HAND[name]
    a, b = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    assert iou(a, b).item() == pytest.approx(expected)


@pytest.mark.parametrize("function", [iou, giou])
def test_empty_boxes_have_finite_values_and_gradients(function):
    a = torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 3.0, 3.0]], requires_grad=True)
    values = function(a, a)
    values.sum().backward()
    assert values.isfinite().all()
    assert a.grad.isfinite().all()


def test_giou_of_far_boxes_nears_minus_one():
    a, b = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[999.0, 999.0, 1000.0, 1000.0]])
    assert giou(a, b).item() == pytest.approx(-1 + 2e-6, abs=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_coding_equals_torchvisions(weights):
    objects, anchors = boxes(40, least=1), boxes(40, least=1)
    peer = BoxCoder(weights)
    deltas = encode(objects, anchors, weights)
    torch.testing.assert_close(deltas, peer.encode_single(objects, anchors))
    deltas = 3 * torch.randn(40, 4) * torch.tensor(weights)
    torch.testing.assert_close(decode(deltas, anchors, weights), peer.decode_single(deltas, anchors))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_large_offsets_are_clamped_as_in_torchvision(weights):
    anchors = boxes(8, least=1)
    deltas = torch.full((8, 4), 50.0)
    found = decode(deltas, anchors, weights)
    torch.testing.assert_close(found, BoxCoder(weights).decode_single(deltas, anchors))
    grown = (found[:, 2] - found[:, 0]) / (anchors[:, 2] - anchors[:, 0])
    torch.testing.assert_close(grown, torch.full((8,), 1000 / 16), rtol=1e-4, atol=0)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_decode_inverts_encode(weights):
    for scale in (1.0, 10.0, 1000.0):
        for _ in range(10):
            objects, anchors = (boxes(3, 5, side=scale, least=0.05 * scale).double() for _ in range(2))
            torch.testing.assert_close(decode(encode(objects, anchors, weights), anchors, weights), objects)
            deltas = torch.randn(3, 5, 4).double()
            torch.testing.assert_close(encode(decode(deltas, anchors, weights), anchors, weights), deltas)


def test_encoding_by_hand():
    """Half an anchor to the right, a quarter down, twice as wide, as high."""
    found = encode(torch.tensor([0.0, 5.0, 20.0, 25.0]), torch.tensor([0.0, 0.0, 10.0, 20.0]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, math.log(2), 0.0]))


def test_clip_equals_torchvisions_image_by_image():
    sizes = torch.tensor([[60, 90], [120, 30]])
    objects = boxes(2, 50) * 2 - 60
    found = clip(objects, sizes)
    for own, box, size in zip(found, objects, sizes.tolist(), strict=True):
        assert torch.equal(own, clip_boxes_to_image(box, size))
    assert torch.equal(clip(found, sizes), found)
    assert torch.equal(clip(objects[:, :, None], sizes)[:, :, 0], found)  # any number of dimensions between


def test_full_precision():
    for dtype in (torch.float16, torch.bfloat16):
        assert full_precision(torch.ones(1, dtype=dtype)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        assert full_precision(torch.ones(1, dtype=dtype)).dtype == dtype
