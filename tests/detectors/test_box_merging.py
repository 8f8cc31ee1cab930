"""Greedy merging: against a slow obvious loop, and cases by hand."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from sightline.detectors.box_merging import match_score, merge

A, B, FAR = (0.0, 0.0, 10.0, 10.0), (2.0, 0.0, 12.0, 10.0), (50.0, 50.0, 60.0, 60.0)
# boxes, labels, scores, limit; then what is left, best first: (box, label, score)
CASES = {
    "one box": ([A], [3], [0.4], 0.6, [(A, 3, 0.4)]),
    "two that agree": ([A, B], [0, 0], [0.5, 0.5], 0.6, [((1, 0, 11, 10), 0, 1.0)]),
    "weighted by confidence": ([A, B], [0, 0], [0.9, 0.3], 0.6, [((0.5, 0, 10.5, 10), 0, 1.2)]),
    "too strict": ([A, B], [0, 0], [0.9, 0.3], 0.4, [(A, 0, 0.9), (B, 0, 0.3)]),
    "other classes": ([A, A], [0, 1], [0.9, 0.3], 0.6, [(A, 0, 0.9), (A, 1, 0.3)]),
    "far apart": ([A, FAR], [0, 0], [0.9, 0.3], 0.6, [(A, 0, 0.9), (FAR, 0, 0.3)]),
    "many weak beat one strong": ([FAR, A, A, A], [0, 0, 0, 0], [0.9, 0.4, 0.4, 0.4], 0.6, [(A, 0, 1.2), (FAR, 0, 0.9)]),
    "padding": ([A, B, A], [0, 0, -1], [0.5, 0.5, 0.0], 0.6, [((1, 0, 11, 10), 0, 1.0)]),
    "nothing": ([A, A], [-1, -1], [0.0, 0.0], 0.6, []),
    "empty boxes": ([(5.0, 5, 5, 5), (5.0, 5, 5, 5)], [0, 0], [0.5, 0.3], 0.6, [((5, 5, 5, 5), 0, 0.5), ((5, 5, 5, 5), 0, 0.3)]),
}  # fmt: skip


def survivors(boxes, labels, scores):
    """What is left of one image: [(box, label, score)], best first."""
    rows = [
        (tuple(b), k, s) for b, k, s in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True) if k >= 0
    ]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    boxes, labels, scores, limit, expected = CASES[name]
    given = torch.tensor([boxes]), torch.tensor([labels]), torch.tensor([scores])
    before = [value.clone() for value in given]
    merged = merge(*given, limit=limit)
    found = survivors(*(value[0] for value in merged))
    assert [row[1] for row in found] == [row[1] for row in expected]
    for (box, _, score), (wanted, _, wanted_score) in zip(found, expected, strict=True):
        assert box == pytest.approx(wanted, abs=1e-5)
        assert score == pytest.approx(wanted_score)
    assert (merged[2][merged[1] < 0] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))


def slow_merge(boxes, labels, scores, limit):
    """The paper's loop, on lists, its mean weighted."""
    left = [(b, k, s) for b, k, s in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True) if k >= 0]
    while True:
        pairs = [(slow_match(x[0], y[0]), x, y) for x, y in itertools.combinations(left, 2) if x[1] == y[1]]
        if not pairs or min(pairs)[0] > limit:
            return sorted(((tuple(b), k, s) for b, k, s in left), key=lambda row: (-row[2], row[0]))
        _, x, y = min(pairs)
        total = x[2] + y[2]
        mean = [(p * x[2] + q * y[2]) / total for p, q in zip(x[0], y[0], strict=True)]
        left = [row for row in left if row is not x and row is not y] + [(mean, x[1], total)]


def slow_match(a, b):
    apart = math.dist(((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2))
    hull = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    overlap = box_iou(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)).item()
    return apart / hull + 1 - overlap


def heap(images=3, number=24, classes=3):
    """Boxes around a few places, of a few classes, some of them padding."""
    centre = torch.randint(0, 3, (images, number, 1)).double() * 30 + 6 * torch.rand(images, number, 2).double()
    half = 8 + 6 * torch.rand(images, number, 2).double()
    labels = torch.randint(-1, classes, (images, number))
    scores = torch.where(labels >= 0, torch.rand(images, number).double() + 0.01, 0)
    return torch.cat([centre - half, centre + half], dim=-1), labels, scores


@pytest.mark.parametrize("limit", [0.2, 0.6, 1.0])
def test_equals_the_slow_loop(limit):
    given = heap()
    merged = merge(*given, limit=limit)
    for i in range(3):
        found = survivors(*(value[i] for value in merged))
        expected = slow_merge(*(value[i] for value in given), limit)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one[1] == other[1]
            assert (*one[0], one[2]) == pytest.approx((*other[0], other[2]))


def test_confidence_is_neither_lost_nor_made():
    boxes, labels, scores = heap()
    _, kept, gathered = merge(boxes, labels, scores, limit=0.7)
    assert (kept >= 0).sum() < (labels >= 0).sum()  # something was merged
    for label in range(3):
        before, after = (torch.where(k == label, s, 0).sum(dim=1) for k, s in ((labels, scores), (kept, gathered)))
        torch.testing.assert_close(before, after)


def test_every_confidence_that_was_gathered_has_a_gradient():
    boxes, labels, scores = heap()
    merged, _, gathered = merge(boxes.requires_grad_(), labels, scores.requires_grad_(), limit=0.7)
    assert not merged.requires_grad
    (gradient,) = torch.autograd.grad(gathered.sum(), [scores])
    assert torch.equal(gradient, (labels >= 0).double())
    (gradient,) = torch.autograd.grad(merge(boxes, labels, scores, limit=0.7)[2].amax(), [scores])
    assert (gradient * scores).sum().item() == pytest.approx(gathered.max().item())


def test_merging_again_changes_nothing():
    once = merge(*heap(), limit=0.7)
    for one, other in zip(once, merge(*once, limit=0.7), strict=True):
        assert torch.equal(one, other)


def test_the_order_of_boxes_does_not_matter():
    boxes, labels, scores = heap(images=1)
    order = torch.randperm(boxes.shape[1])
    one = survivors(*(value[0] for value in merge(boxes, labels, scores, limit=0.6)))
    other = survivors(*(value[0] for value in merge(boxes[:, order], labels[:, order], scores[:, order], limit=0.6)))
    assert len(one) == len(other)
    for (box, label, score), (same_box, same_label, same_score) in zip(one, other, strict=True):
        assert label == same_label
        assert (*box, score) == pytest.approx((*same_box, same_score))


def test_match_score():
    """0 for a box and itself, symmetric, the same at any size, more than 1 where boxes do not meet."""
    boxes: Tensor = heap(images=1)[0]
    scores = match_score(boxes, boxes)
    torch.testing.assert_close(scores.diagonal(dim1=1, dim2=2), torch.zeros(1, 24, dtype=torch.float64))
    torch.testing.assert_close(scores, scores.mT)
    torch.testing.assert_close(scores, match_score(boxes * 7, boxes * 7))
    apart = box_iou(boxes[0], boxes[0]) == 0
    assert apart.any()
    assert (scores[0][apart] > 1).all()
    assert (scores < 2).all()
