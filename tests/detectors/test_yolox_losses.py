"""Each loss term against numbers worked out by hand; properties of both heads' losses; both teach objects to free numbers."""

import math

import pytest
import torch
from torch.nn import functional as F

from sightline.datasets.structures import Instances
from sightline.detectors.dense_assignment import one_to_one, simota
from sightline.detectors.yolo_head import Predictions, decode_boxes
from sightline.detectors.yolo_head import points as points_of
from sightline.detectors.yolox_losses import dense_losses, single_losses

LN2 = math.log(2)


def grid(side, *strides):
    return points_of([torch.empty(1, side // stride, side // stride) for stride in strides], strides)


def scene(images, objects, *, side=128, classes=5):
    points = grid(side, 8, 16, 32)
    centre, size = side * torch.rand(images, objects, 2), 4 + side / 2 * torch.rand(images, objects, 2)
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    shape = (images, len(points))
    predictions = Predictions(torch.randn(*shape, classes), torch.randn(*shape), torch.randn(*shape, 4))
    return predictions, points, Instances(boxes, torch.randint(classes, (images, objects)))


def dense(predictions, points, targets):
    return dense_losses(predictions, points, targets, l1=True)


BOTH = pytest.mark.parametrize("losses_of", [dense, single_losses])


class TestByHand:
    # 4 x 4 cells of 8 pixels, with centres at 4, 12, 20, 28, and the object (0, 0, 16, 16) of the first of two categories.
    # Cells 0, 4, 1 and 5 in it predict IoUs 1, 3/4, 1/2, 1/4, which gives 2.5, so 2 points: cells 0 and 4.
    points = grid(32, 8)

    def predictions(self, images=1):
        """All logits are 0, but for ln 3 for the first category at cell 4."""
        deltas = torch.zeros(images, 16, 4)
        deltas[..., 2:] = -9  # 0.001 pixels
        for cell, (x, y, height) in {0: (1, 1, 16), 4: (1, -0.25, 12), 1: (0, 0.5, 8), 5: (-0.5, -0.75, 4)}.items():
            deltas[:, cell] = torch.tensor([x, y, LN2, math.log(height / 8)])
        logits = torch.zeros(images, 16, 2)
        logits[:, 4, 0] = math.log(3)
        return Predictions(logits, torch.zeros(images, 16), deltas)

    def targets(self, *labels, crowd=None):
        """Of one image: the object, then, where more labels are given, what covers cells 10, 11, 14 and 15 of 16."""
        boxes = torch.tensor([[[0.0, 0, 16, 16], [16, 16, 32, 32]][: len(labels)]])
        return Instances(boxes, torch.tensor([labels]), crowd=None if crowd is None else torch.tensor([crowd]))

    def test_two_points(self):
        losses = dense_losses(self.predictions(), self.points, self.targets(0), l1=True)
        expected = {
            # 5 (1 - 1) and 5 (1 - 9/16) = 2.1875, over 2 points
            "loss_box": 2.1875 / 2,
            # ln 2 at each of 16 points, over 2
            "loss_objectness": 16 * LN2 / 2,
            # Cell 0: ln 2 for each category. Cell 4: with p = 3/4 and its IoU as target, -3/4 ln 3/4 - 1/4 ln 1/4 = 0.5623;
            # ln 2 for the other category.
            "loss_cls": (2 * LN2 + 0.562335 + LN2) / 2,
            # Cell 4 wants dy = 0: 1/4 cell; a log height of ln 2 where it has ln 3/2: 0.2877.
            "loss_l1": (0.25 + 0.287682) / 2,
        }
        assert list(losses) == list(expected)
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value, abs=1e-5), name
            assert losses[name].shape == ()

    def test_l1_is_asked_for(self):
        losses = dense_losses(self.predictions(), self.points, self.targets(0), l1=False)
        assert list(losses) == ["loss_box", "loss_objectness", "loss_cls"]

    def test_one_point(self):
        # Cell 4 is surest of its category, cell 0 has the better box and P^0.2 IoU^0.8 = 0.758 against 0.653.
        losses = single_losses(self.predictions(), self.points, self.targets(0))
        expected = {"loss_single_box": 0.0, "loss_single_objectness": 16 * LN2, "loss_single_cls": 2 * LN2}
        assert list(losses) == list(expected)
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value, abs=1e-5), name

    def test_objectness_rises_at_positive_points_and_falls_elsewhere(self):
        predictions = self.predictions()
        predictions.objectness[0, [0, 4]], predictions.objectness[0, 7] = math.log(3), -math.log(3)
        losses = dense_losses(predictions, self.points, self.targets(0), l1=False)
        assert losses["loss_objectness"].item() == pytest.approx((13 * LN2 + 3 * math.log(4 / 3)) / 2, abs=1e-5)

    def test_points_of_the_whole_batch_are_divided_by(self):
        # The other image has no object: twice the points learn nothing, as many positive ones share them.
        targets = Instances(self.targets(0).boxes.repeat(2, 1, 1), torch.tensor([[0], [-1]]))
        losses = dense_losses(self.predictions(2), self.points, targets, l1=True)
        assert losses["loss_box"].item() == pytest.approx(2.1875 / 2, abs=1e-5)
        assert losses["loss_objectness"].item() == pytest.approx(32 * LN2 / 2, abs=1e-5)

    @pytest.mark.parametrize(("losses_of", "positive"), [(dense, 2), (single_losses, 1)])
    @pytest.mark.parametrize(
        ("label", "crowd", "counted"), [(0, True, 12), (-1, True, 16), (-1, False, 16)], ids=["crowd", "padding", "none"]
    )  # fmt: skip
    def test_points_in_crowds_have_no_objectness_to_learn(self, losses_of, positive, label, crowd, counted):
        losses = losses_of(self.predictions(), self.points, self.targets(0, label, crowd=[False, crowd]))
        objectness = next(loss for name, loss in losses.items() if "objectness" in name)
        assert objectness.item() == pytest.approx(counted * LN2 / positive, abs=1e-5)

    def test_points_that_learn_an_object_within_a_crowd_count(self):
        targets = self.targets(0, 0, crowd=[False, True])
        targets.boxes[0, 1] = torch.tensor([0.0, 0, 32, 32])  # covers every point
        losses = dense_losses(self.predictions(), self.points, targets, l1=False)
        assert losses["loss_objectness"].item() == pytest.approx(2 * LN2 / 2, abs=1e-5)


@BOTH
def test_order_and_padding_of_objects_change_nothing(losses_of):
    predictions, points, targets = scene(2, 6)
    targets.crowd = torch.tensor([[False, False, True, False, False, False]] * 2)
    order = torch.randperm(6)
    shuffled = targets.map(lambda value: value[:, order])
    padded = Instances(
        torch.cat([targets.boxes, torch.full((2, 9, 4), torch.nan)], dim=1),
        F.pad(targets.labels, (0, 9), value=-1),
        crowd=F.pad(targets.crowd, (0, 9), value=True),
    )
    expected = losses_of(predictions, points, targets)
    for same in (shuffled, padded):
        for name, loss in losses_of(predictions, points, same).items():
            torch.testing.assert_close(loss, expected[name], msg=name)


@BOTH
def test_images_alone_weighted_by_their_positive_points_make_the_batch(losses_of):
    predictions, points, targets = scene(3, 5)
    assign = simota if losses_of is dense else one_to_one
    weights = assign(predictions, points, targets).positive.sum(dim=1)
    together = losses_of(predictions, points, targets)
    alone = [
        losses_of(Predictions(*(p[one] for p in predictions)), points, targets.map(lambda v, one=one: v[one]))
        for one in (slice(i, i + 1) for i in range(3))
    ]
    for name, loss in together.items():
        mean = sum(w * one[name] for w, one in zip(weights, alone, strict=True)) / weights.sum()
        torch.testing.assert_close(loss, mean, msg=name)


@BOTH
@pytest.mark.parametrize("garbage", [0.0, torch.nan])
def test_without_objects_objectness_alone_is_learnt(losses_of, garbage):
    predictions, points, _ = scene(2, 1)
    nothing = Instances(torch.full((2, 3, 4), garbage), torch.full((2, 3), -1))
    leaves = Predictions(*(value.requires_grad_() for value in predictions))
    losses = losses_of(leaves, points, nothing)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert ("objectness" in name) == (loss.item() > 0)
    assert (leaves.objectness.grad > 0).all()
    assert not leaves.logits.grad.any()
    assert not leaves.deltas.grad.any()


def extremes():
    """name: what becomes of the predictions' fields, or of the boxes."""
    for field in Predictions._fields:
        for value in (1e4, -1e4):
            yield f"{field} {value:g}", field, value
    yield "perfect boxes", "perfect", None
    for name, box in {"flat": [9, 9, 9, 40], "point": [9, 9, 9, 9], "inverted": [40, 40, 9, 9]}.items():
        yield f"{name} object", "box", box
    yield "tiny object", "box", [9, 9, 9.001, 9.001]


@BOTH
@pytest.mark.parametrize(("field", "value"), [row[1:] for row in extremes()], ids=[row[0] for row in extremes()])
def test_gradients_are_finite(losses_of, field, value):
    predictions, points, targets = scene(2, 4)
    if field in Predictions._fields:
        predictions = predictions._replace(**{field: torch.full_like(getattr(predictions, field), value)})
    elif field == "perfect":
        targets.boxes = decode_boxes(predictions.deltas, points)[:, [0, 40, 256, 330]]
    else:
        targets.boxes[:, 0] = torch.tensor(value, dtype=torch.float32)
    leaves = Predictions(*(leaf.requires_grad_() for leaf in predictions))
    losses = losses_of(leaves, points, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert leaves.objectness.grad.any()


@BOTH
def test_under_autocast(losses_of):
    """The predictions arrive in half precision; losses are computed, and summed, in single."""
    predictions, points, targets = scene(2, 4)
    leaves = [value.requires_grad_() for value in predictions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(Predictions(*(leaf.bfloat16() for leaf in leaves)), points, targets)
    expected = losses_of(Predictions(*(leaf.bfloat16().float() for leaf in leaves)), points, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0, atol=0, msg=name)
    sum(losses.values()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@BOTH
def test_gradients_reach_what_they_should(losses_of):
    predictions, points, targets = scene(2, 4)
    leaves = Predictions(*(value.requires_grad_() for value in predictions))
    sum(losses_of(leaves, points, targets).values()).backward()
    positive = (simota if losses_of is dense else one_to_one)(predictions, points, targets).positive
    assert torch.equal(leaves.deltas.grad.any(dim=-1), positive)
    assert torch.equal(leaves.logits.grad.any(dim=-1), positive)
    assert leaves.objectness.grad.all()


@BOTH
def test_compiles_as_one_graph(losses_of):
    """Whatever waits for a value, or makes a shape of one, breaks the graph."""
    predictions, points, targets = scene(2, 4)
    targets.crowd = torch.tensor([[False, True, False, False]] * 2)
    expected = losses_of(predictions, points, targets)
    torch._dynamo.reset()
    compiled = torch.compile(losses_of, fullgraph=True, backend="eager")(predictions, points, targets)
    for name, loss in expected.items():
        torch.testing.assert_close(compiled[name], loss, msg=name)


@BOTH
def test_a_full_batch(losses_of):
    """8400 points (640 x 640 pixels), 128 objects, 80 categories, 8 images: 34 MB for each tensor of pairs."""
    points = grid(640, 8, 16, 32)
    centre, size = 640 * torch.rand(8, 128, 2), 10 + 150 * torch.rand(8, 128, 2) ** 3
    targets = Instances(torch.cat([centre - size / 2, centre + size / 2], dim=-1), torch.randint(80, (8, 128)))
    shape = (8, len(points))
    predictions = Predictions(torch.randn(*shape, 80), torch.randn(*shape), torch.randn(*shape, 4))
    leaves = Predictions(*(value.requires_grad_() for value in predictions))
    losses = losses_of(leaves, points, targets)
    sum(losses.values()).backward()
    assert len(points) == 8400
    assert all(loss.isfinite() for loss in losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@BOTH
def test_waits_for_no_gpu(losses_of):
    predictions, points, targets = scene(2, 6)
    targets.crowd = torch.tensor([[False, True, False, False, False, False]] * 2)
    expected = losses_of(predictions, points, targets)
    leaves = Predictions(*(value.cuda().requires_grad_() for value in predictions))
    points, targets = points.cuda(), targets.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = losses_of(leaves, points, targets)
        sum(losses.values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name].cpu(), loss, rtol=1e-4, atol=1e-5, msg=name)


class TestLearning:
    """Numbers that are free to be anything learn three objects: a large one, a small one, and one within the large one."""

    boxes = torch.tensor([[4.0, 8, 60, 52], [40, 2, 50, 14], [20, 20, 36, 40]])
    labels = torch.tensor([0, 1, 2])

    def learn(self, losses_of):
        points = grid(64, 8, 16)
        shape = (1, len(points))
        start = Predictions(torch.full((*shape, 3), -2.0), torch.full(shape, -2.0), 0.1 * torch.randn(*shape, 4))
        leaves = Predictions(*(value.requires_grad_() for value in start))
        optimizer = torch.optim.Adam(leaves, lr=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=200)
        for _ in range(200):
            losses = losses_of(leaves, points, Instances(self.boxes[None], self.labels[None]))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
        scores, labels = (leaves.logits.sigmoid() * leaves.objectness.sigmoid()[..., None])[0].max(dim=-1)
        sure = scores.detach() > 0.5
        return losses, decode_boxes(leaves.deltas, points)[0, sure].detach(), labels[sure]

    def test_many_points_an_object(self):
        losses, boxes, labels = self.learn(dense)
        assert losses["loss_box"] < 0.05
        assert losses["loss_objectness"] < 0.3  # from about 5
        assert labels.unique().tolist() == [0, 1, 2]
        assert len(labels) > 3
        assert (boxes - self.boxes[labels]).abs().max() < 0.2  # pixels

    def test_one_point_an_object(self):
        losses, boxes, labels = self.learn(single_losses)
        assert losses["loss_single_box"] < 0.05
        assert losses["loss_single_objectness"] < 0.3
        assert sorted(labels.tolist()) == [0, 1, 2]  # nothing twice, with no suppression
        assert (boxes - self.boxes[labels]).abs().max() < 0.2  # pixels
