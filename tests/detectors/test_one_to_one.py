"""One point an object: against the greedy rule as a plain loop, the optimum by trying all, and cases worked by hand.

What both assignments have in common (order, padding, batches, crowds, precision) is in `test_simota.py`.
"""

import math
from itertools import permutations

import pytest
import torch
from torchvision.ops import box_iou

from sightline.datasets.structures import Instances
from sightline.detectors.dense_assignment import ROUNDS, one_to_one
from sightline.detectors.yolo_head import Predictions, decode_boxes
from sightline.detectors.yolo_head import points as points_of


def grid(side, *strides):
    return points_of([torch.empty(1, side // stride, side // stride) for stride in strides], strides)


def scene(images, objects, *, side=128, spread=1.0, strides=(8, 16, 32), noise=1.0):
    """Random objects, their centres in the middle `spread` of the frame, and random predictions."""
    points = grid(side, *strides)
    centre = side * (0.5 + spread * (torch.rand(images, objects, 2) - 0.5))
    size = 4 + side / 2 * torch.rand(images, objects, 2)
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    shape = (images, len(points))
    predictions = Predictions(
        noise * torch.randn(*shape, 3), noise * torch.randn(*shape), noise * torch.randn(*shape, 4)
    )
    return predictions, points, Instances(boxes, torch.randint(3, (images, objects)))


def qualities(predictions, points, targets, image):
    """N rows of A: P^0.2 IoU^0.8 in the box where there is any, else less the further from its centre."""
    rows = []
    for box, label in zip(targets.boxes[image], targets.labels[image], strict=True):
        overlap = box_iou(box[None], decode_boxes(predictions.deltas[image], points))[0]
        probability = predictions.logits[image, :, label].sigmoid() * predictions.objectness[image].sigmoid()
        x, y = (points[:, :2] + points[:, 2:] / 2).unbind(-1)
        within = (box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3])
        distance = ((x - (box[0] + box[2]) / 2) ** 2 + (y - (box[1] + box[3]) / 2) ** 2).sqrt()
        rows.append(torch.where(within & (overlap > 0), probability**0.2 * overlap**0.8, -distance))
    return torch.stack(rows)


def greedy(quality):
    """The best pair of all, then the best of the other objects and points, and so on: {object: point}."""
    found = {}
    for pair in quality.flatten().argsort(descending=True).tolist():
        n, a = divmod(pair, quality.shape[1])
        if n not in found and a not in found.values():
            found[n] = a
    return found


def pairs(assignment, image):
    """{object: point}; fails where an object has two points."""
    found = assignment.positive[image].nonzero().flatten().tolist()
    objects = assignment.idxs[image, found].tolist()
    assert len(set(objects)) == len(objects)
    return dict(zip(objects, found, strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("objects", "spread"), [(1, 1.0), (6, 1.0), (30, 1.0), (16, 0.02), (30, 0.1)],
    ids=["one", "few", "many", "heap", "large heap"],
)  # fmt: skip
def test_equal_to_the_greedy_rule(objects, spread, seed):
    torch.manual_seed(seed)
    predictions, points, targets = scene(2, objects, spread=spread)
    found = one_to_one(predictions, points, targets)
    for i in range(2):
        assert pairs(found, i) == greedy(qualities(predictions, points, targets, i))
        assert len(pairs(found, i)) == objects


@pytest.mark.parametrize("seed", range(10))
def test_between_half_the_optimum_and_the_optimum(seed):
    """Three objects that fight for 16 points, with every way to match them tried."""
    torch.manual_seed(seed)
    predictions, points, targets = scene(1, 3, side=32, spread=0.1, strides=(8,))
    targets.boxes = torch.tensor([[0.0, 0, 32, 32]]) + torch.randn(1, 3, 4)  # all points within: no quality is negative
    quality = qualities(predictions, points, targets, 0)
    optimum = max(sum(quality[n, a] for n, a in enumerate(some)) for some in permutations(range(16), 3))
    total = sum(quality[n, a] for n, a in pairs(one_to_one(predictions, points, targets), 0).items())
    assert optimum / 2 <= total <= optimum + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_where_objects_lie_apart(seed):
    torch.manual_seed(seed)
    predictions, points, targets = scene(1, 3, side=32, strides=(8,))
    targets.boxes = torch.tensor([[[0.0, 0, 15, 15], [17, 0, 32, 15], [0, 17, 15, 32]]])
    quality = qualities(predictions, points, targets, 0)
    best = max(permutations(range(16), 3), key=lambda some: sum(quality[n, a] for n, a in enumerate(some)))
    assert pairs(one_to_one(predictions, points, targets), 0) == dict(enumerate(best))


# Objects of one place, size and category have the same wishes to the last digit.
@pytest.mark.parametrize("objects", [2, 5, ROUNDS])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_same_object_many_times_has_as_many_points(objects, noise):
    predictions, points, targets = scene(2, objects, noise=noise)
    targets.boxes[:], targets.labels[:] = torch.tensor([40.0, 40, 90, 80]), 1
    found = one_to_one(predictions, points, targets)
    for i in range(2):
        assert sorted(pairs(found, i)) == list(range(objects))


def test_more_of_the_same_than_rounds_leaves_some_without_a_point_but_no_point_twice():
    predictions, points, targets = scene(1, 60)
    targets.boxes[:], targets.labels[:] = torch.tensor([40.0, 40, 90, 80]), 1
    assert ROUNDS <= len(pairs(one_to_one(predictions, points, targets), 0)) <= 60


def test_more_objects_than_points():
    predictions, points, targets = scene(1, 7, side=16, strides=(8,))
    assert len(pairs(one_to_one(predictions, points, targets), 0)) == len(points) == 4


class TestByHand:
    # 4 x 4 cells of 8 pixels, with centres at 4, 12, 20, 28; cells 0, 1, 4 and 5 lie in the object (0, 0, 16, 16).
    points = grid(32, 8)
    square = torch.tensor([[[0.0, 0, 16, 16]]])

    def predictions(self):
        """IoU 1 at cell 0, 3/4 at cell 4 and 0 elsewhere, but for cell 2, outside the box: 1. All logits are 0."""
        deltas = torch.zeros(1, 16, 4)
        deltas[..., 2:] = -9
        deltas[0, 0] = torch.tensor([1, 1, math.log(2), math.log(2)])
        deltas[0, 2] = torch.tensor([-1, 1, math.log(2), math.log(2)])
        deltas[0, 4] = torch.tensor([1, -0.25, math.log(2), math.log(1.5)])
        return Predictions(torch.zeros(1, 16, 2), torch.zeros(1, 16), deltas)

    # Quality at cell 0: (1/4)^0.2 = 0.758. At cell 4 (3/4)^0.8 = 0.794 times P^0.2:
    @pytest.mark.parametrize(
        ("category", "objectness", "winner"),
        [
            (0.0, 0.0, 0),  # 0.794 x 0.758 = 0.602
            (math.log(3), 0.0, 0),  # P 3/8: 0.794 x 0.822 = 0.653
            (math.log(3), 20.0, 0),  # P 3/4: 0.794 x 0.944 = 0.750
            (20.0, math.log(9), 4),  # P 9/10: 0.794 x 0.979 = 0.778
        ],
    )
    def test_quality_weighs_category_against_box(self, category, objectness, winner):
        predictions = self.predictions()
        predictions.logits[0, 4, 1], predictions.objectness[0, 4] = category, objectness
        found = one_to_one(predictions, self.points, Instances(self.square, torch.tensor([[1]])))
        assert pairs(found, 0) == {0: winner}
        torch.testing.assert_close(found.ious[0, winner], torch.tensor({0: 1.0, 4: 0.75}[winner]))

    def test_of_two_that_want_a_point_one_takes_its_second_best(self):
        # (0, 0, 16, 13) has IoU 13/16 at cell 0 and 12/13 at cell 4: each has its own. (0, 0, 16, 15) has 15/16 at cell 0
        # and 12/15 at cell 4: both would rather have cell 0.
        for bottom, expected in ((13, {0: 0, 1: 4}), (15, {0: 0, 1: 4})):
            boxes = torch.cat([self.square, torch.tensor([[[0.0, 0, 16, bottom]]])], dim=1)
            for order in ([0, 1], [1, 0]):
                targets = Instances(boxes[:, order], torch.tensor([[0, 0]]))
                found = pairs(one_to_one(self.predictions(), self.points, targets), 0)
                assert {order[n]: a for n, a in found.items()} == expected

    def test_a_box_between_the_cells_centres_takes_the_nearest(self):
        # (17, 13, 19, 15) has its centre (18, 14) next to that of cell 6, (20, 12).
        found = one_to_one(
            self.predictions(), self.points, Instances(torch.tensor([[[17.0, 13, 19, 15]]]), torch.tensor([[0]]))
        )
        assert pairs(found, 0) == {0: 6}
