"""SimOTA against hand-worked cases, and against a slow loop over images and objects written from the papers' definition
(https://arxiv.org/abs/2107.08430, section 2.1; https://arxiv.org/abs/2103.14259, section 3.2)."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou

from sightline.datasets.structures import Instances
from sightline.detectors.dense_assignment import CHOICES, one_to_one, simota
from sightline.detectors.yolo_head import Predictions, decode_boxes
from sightline.detectors.yolo_head import points as points_of


def grid(side, *strides):
    """The points of square maps over a square frame of `side` pixels."""
    return points_of([torch.empty(1, side // stride, side // stride) for stride in strides], strides)


def scene(images, objects, *, side=128, classes=5, near=0.3):
    """Random objects, and predictions of which about half are `near` one of them."""
    points = grid(side, 8, 16, 32)
    centre, size = side * torch.rand(images, objects, 2), 4 + side / 2 * torch.rand(images, objects, 2) ** 2
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    labels = torch.randint(classes, (images, objects))
    wanted = boxes[:, torch.randint(objects, (len(points),))]
    stride = points[:, 2:]
    aimed = torch.cat(
        [((wanted[..., :2] + wanted[..., 2:]) / 2 - points[:, :2]) / stride,
         ((wanted[..., 2:] - wanted[..., :2]) / stride).log()], dim=-1)  # fmt: skip
    noise = torch.randn(images, len(points), 4)
    deltas = torch.where(torch.rand(images, len(points), 1) < 0.5, aimed + near * noise, noise)
    logits, objectness = torch.randn(images, len(points), classes), torch.randn(images, len(points))
    return Predictions(logits, objectness, deltas), points, Instances(boxes, labels)


def slow(predictions, points, targets):
    """Per image and object; (positive, idxs, ious) of B images."""
    every = zip(*predictions, targets.boxes, targets.labels, strict=True)
    return tuple(torch.stack(values) for values in zip(*[slow_image(points, *one) for one in every], strict=True))


def slow_image(points, logits, objectness, deltas, boxes, labels):
    predicted = decode_boxes(deltas, points)
    probability = (logits.sigmoid() * objectness.sigmoid()[:, None]).sqrt()
    owners = [[] for _ in points]  # of each point: (cost, object, IoU)
    for n, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if label < 0:
            continue
        overlap = box_iou(box[None], predicted)[0]
        costs, ious = [], []
        for a, (x, y, stride) in enumerate(points.tolist()):
            x, y = x + stride / 2, y + stride / 2
            x0, y0, x1, y1 = box.tolist()
            in_box = x0 < x < x1 and y0 < y < y1
            central = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) < 2.5 * stride
            wanted = F.one_hot(label, logits.shape[1]).float()
            cost = F.binary_cross_entropy(probability[a], wanted, reduction="sum") - 3 * math.log(overlap[a] + 1e-8)
            costs.append(cost + (0 if in_box and central else 1e5) if in_box or central else torch.tensor(math.inf))
            ious.append(overlap[a].item() if in_box or central else 0.0)
        share = max(1, int(sum(sorted(ious)[-10:])))
        for a in torch.stack(costs).argsort()[:share].tolist():
            if costs[a] < math.inf:
                owners[a].append((costs[a].item(), n, ious[a]))
    best = [min(some) if some else None for some in owners]
    return (
        torch.tensor([one is not None for one in best]),
        torch.tensor([one[1] if one else 0 for one in best]),
        torch.tensor([one[2] if one else 0.0 for one in best]),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("objects", [1, 4, 15])
def test_equal_to_the_slow_loop(objects, seed):
    torch.manual_seed(seed)
    predictions, points, targets = scene(2, objects)
    targets.labels[1, objects // 2 + 1 :] = -1
    ours, (positive, idxs, ious) = simota(predictions, points, targets), slow(predictions, points, targets)
    assert torch.equal(ours.positive, positive)
    assert torch.equal(ours.idxs, idxs)
    torch.testing.assert_close(ours.ious, ious)
    assert ours.idxs.dtype == torch.int64
    assert ours.positive.sum() > objects  # some objects have several points


def aiming(points, boxes, *, classes=2):
    """Predictions of one image with all logits 0: at the points of the dict `boxes` those boxes, elsewhere specks."""
    deltas = torch.zeros(1, len(points), 4)
    deltas[..., 2:] = -9  # 0.001 pixels
    for a, (x0, y0, x1, y1) in boxes.items():
        x, y, stride = points[a].tolist()
        deltas[0, a] = torch.tensor(
            [((x0 + x1) / 2 - x) / stride, ((y0 + y1) / 2 - y) / stride,
             math.log((x1 - x0) / stride), math.log((y1 - y0) / stride)])  # fmt: skip
    return Predictions(torch.zeros(1, len(points), classes), torch.zeros(1, len(points)), deltas)


def truth(*boxes, labels=None, crowd=None):
    labels = [0] * len(boxes) if labels is None else labels
    return Instances(
        torch.tensor([boxes], dtype=torch.float32),
        torch.tensor([labels]),
        crowd=None if crowd is None else torch.tensor([crowd]),
    )


class TestByHand:
    # 4 x 4 cells of 8 pixels, with centres at 4, 12, 20, 28. Of the object (0, 0, 16, 16), centre (8, 8), cells 0, 1, 4, 5
    # lie in the box; cells in the first three rows and columns (12 pixels from its centre; the fourth: 20) are central.
    points = grid(32, 8)
    square = (0, 0, 16, 16)

    def test_as_many_points_as_ious_add_up_to_those_of_least_cost(self):
        # IoUs 1, 1/2, 3/4 and 1/4 in the box, 7/8 at cell 2, which is central but not in the box: their sum 3.375 gives 3
        # points. Categories cost all the same, so the least cost is the highest IoU, but cell 2 pays the high price.
        boxes = {0: self.square, 1: (0, 0, 16, 8), 4: (0, 0, 16, 12), 5: (0, 0, 8, 8), 2: (0, 0, 16, 14)}
        found = simota(aiming(self.points, boxes), self.points, truth(self.square))
        assert found.positive[0].nonzero().flatten().tolist() == [0, 1, 4]
        torch.testing.assert_close(found.ious[0, [0, 1, 4]], torch.tensor([1, 0.5, 0.75]))
        assert not found.ious[~found.positive].any()

    # One point alone sees the object, and it and another one share the IoU: sqrt(P(category) P(object)) decides.
    # Costs of the categories at cell 1, where p = sqrt(1/4) = 1/2 twice: 2 ln 2 = 1.386. At cell 0 with logits (a, b):
    @pytest.mark.parametrize(
        ("logits", "objectness", "winner"),
        [
            # p = sqrt(3/4 x 1/2) = 0.612 and 1/2: cost 0.490 + 0.693 = 1.183
            ((math.log(3), 0.0), 0.0, 0),
            # p = sqrt(1/4 x 1/2) = 0.354 and 1/2: cost 1.040 + 0.693 = 1.733
            ((-math.log(3), 0.0), 0.0, 1),
            # p = 1/2 and sqrt(3/4 x 1/2) = 0.612: cost 0.693 + 0.947 = 1.640: the other category counts against it
            ((0.0, math.log(3)), 0.0, 1),
            # p = sqrt(1/2 x 3/4) = 0.612 twice: cost 0.490 + 0.947 = 1.437: objectness speaks for all categories
            ((0.0, 0.0), math.log(3), 1),
        ],
    )
    def test_the_category_decides_between_equal_boxes(self, logits, objectness, winner):
        half = (0, 0, 16, 8)  # IoUs 1/2 and 1/2: one point
        predictions = aiming(self.points, {0: half, 1: half})
        predictions.logits[0, 0], predictions.objectness[0, 0] = torch.tensor(logits), objectness
        found = simota(predictions, self.points, truth(self.square))
        assert found.positive[0].nonzero().flatten().tolist() == [winner]

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_a_point_that_two_want_goes_to_the_cheaper(self, order):
        # Cell 4 has IoU 13/16 with one object and 1 with the other; nothing else has any. Each may have one point.
        objects = [self.square, (0, 0, 16, 13)]
        predictions = aiming(self.points, {4: objects[1]})
        found = simota(predictions, self.points, truth(*(objects[i] for i in order)))
        assert found.positive[0].nonzero().flatten().tolist() == [4]
        assert order[found.idxs[0, 4]] == 1

    def test_never_more_than_ten_points(self):
        points = grid(64, 8)
        square = (0, 0, 64, 64)  # 4 x 4 of its cells are central, all of them see it all
        found = simota(aiming(points, dict.fromkeys(range(64), square)), points, truth(square))
        assert found.positive.sum() == CHOICES == 10

    def test_a_box_between_the_cells_centres_learns_at_a_point_around_it(self):
        # No centre lies in (15, 15, 17, 17); 4 x 4 cells are central. Cell 10 sees it best.
        speck = (15.0, 15.0, 17.0, 17.0)
        found = simota(aiming(self.points, {10: (14, 14, 18, 18)}), self.points, truth(speck))
        assert found.positive[0].nonzero().flatten().tolist() == [10]

    def test_nobody_learns_far_from_its_object(self):
        # The object lies at the left; the point that sees it best, at the right, is neither in the box nor central.
        found = simota(aiming(self.points, {7: (0, 0, 8, 8), 0: (0, 0, 4, 8)}), self.points, truth((0, 0, 8, 8)))
        assert found.positive[0].nonzero().flatten().tolist() == [0]

    @pytest.mark.parametrize(
        "box", [(100, 100, 110, 110), (4, 4, 4, 20), (20, 20, 10, 10)], ids=["outside", "flat", "inverted"]
    )
    def test_boxes_that_no_point_can_learn(self, box):
        found = simota(aiming(self.points, {}), self.points, truth(box))
        assert not found.positive.any()


BOTH = pytest.mark.parametrize("assign", [simota, one_to_one])


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_order_of_objects_changes_nothing(assign, seed):
    torch.manual_seed(seed)
    predictions, points, targets = scene(2, 12)
    order = torch.randperm(12)
    ours = assign(predictions, points, targets.map(lambda value: value[:, order]))
    expected = assign(predictions, points, targets)
    assert torch.equal(ours.positive, expected.positive)
    assert torch.equal(order[ours.idxs[ours.positive]], expected.idxs[expected.positive])
    assert torch.equal(ours.ious, expected.ious)


@BOTH
@pytest.mark.parametrize("garbage", [0.0, 37.0, 1e30, torch.inf, torch.nan])
def test_padding_changes_nothing(assign, garbage):
    predictions, points, targets = scene(2, 5)
    boxes = torch.cat([targets.boxes, torch.full((2, 20, 4), garbage)], dim=1)
    boxes[:, 5:10] = decode_boxes(predictions.deltas, points)[:, :5]  # predicted without fault
    padded = Instances(boxes, F.pad(targets.labels, (0, 20), value=-1))
    for value, expected in zip(assign(predictions, points, padded), assign(predictions, points, targets), strict=True):
        assert torch.equal(value, expected)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_its_images(assign, seed):
    torch.manual_seed(seed)
    predictions, points, targets = scene(4, 9)
    targets.labels[1, 3:], targets.labels[2] = -1, -1
    together = assign(predictions, points, targets)
    for i in range(4):
        one = slice(i, i + 1)
        alone = assign(Predictions(*(p[one] for p in predictions)), points, targets.map(lambda v, one=one: v[one]))
        for value, expected in zip(together, alone, strict=True):
            assert torch.equal(value[one], expected)
    assert together.positive.any(dim=1).tolist() == [True, True, False, True]


@BOTH
def test_crowds_learn_nothing(assign):
    predictions, points, targets = scene(2, 6)
    targets.crowd = torch.tensor([[False, True, False, True, True, False], [True] * 6])
    without = Instances(targets.boxes, torch.where(targets.crowd, -1, targets.labels))
    for value, expected in zip(assign(predictions, points, targets), assign(predictions, points, without), strict=True):
        assert torch.equal(value, expected)


@BOTH
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_predictions(assign, extreme):
    predictions, points, targets = scene(2, 6)
    for field in range(3):
        values = list(predictions)
        values[field] = torch.full_like(values[field], extreme)
        found = assign(Predictions(*values), points, targets)
        assert found.positive.any(dim=1).all()
        assert found.ious.isfinite().all()


@BOTH
def test_half_precision_is_computed_in_single(assign):
    predictions, points, targets = scene(2, 6)
    half = Predictions(*(value.bfloat16() for value in predictions))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = assign(half, points, targets)
    for value, expected in zip(
        ours, assign(Predictions(*(value.float() for value in half)), points, targets), strict=True
    ):
        assert torch.equal(value, expected)
        assert value.dtype == expected.dtype


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@BOTH
def test_nothing_is_larger_than_pairs_of_objects_and_points(assign):
    predictions, points, targets = scene(2, 8, classes=7)
    with Largest() as largest:
        assign(predictions, points, targets)
    assert largest.numel == 2 * 8 * len(points)


@BOTH
def test_inputs_are_left_alone_and_no_gradient_is_kept(assign):
    predictions, points, targets = scene(1, 6)
    inputs = [*predictions, points, targets.boxes, targets.labels]
    before = [value.clone() for value in inputs]
    found = assign(Predictions(*(value.requires_grad_() for value in predictions)), points, targets)
    assert not found.ious.requires_grad
    assert all(torch.equal(value, old) for value, old in zip(inputs, before, strict=True))
