"""YOLO's loss: numbers worked by hand, equation 3 written as loops over cells, and what may not change it."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from sightline.datasets.structures import Instances
from sightline.detectors.yolov1_cells import Cells, decode, encode, split
from sightline.detectors.yolov1_loss import assign, yolo_losses

NAMES = ["loss_xy", "loss_wh", "loss_confidence", "loss_no_object", "loss_cls"]


def cells_of(grid, predictors, classes, images=1, dtype=torch.float64):
    """All zero."""
    shape = (images, grid, grid)
    return Cells(
        torch.zeros(*shape, predictors, 4, dtype=dtype),
        torch.zeros(*shape, predictors, dtype=dtype),
        torch.zeros(*shape, classes, dtype=dtype),
    )


def objects(boxes, labels, crowd=None):
    """A batch of one image."""
    crowd = None if crowd is None else torch.tensor([crowd])
    return Instances(torch.tensor([boxes], dtype=torch.float32).view(1, -1, 4), torch.tensor([labels]), crowd=crowd)


def numbers(losses):
    return [round(losses[name].item(), 5) for name in NAMES]


def worked_example():
    """Two cells a side of 50 pixels, two predictors, two categories; one object in the cell of row 0, column 0.

    The object: centre (25, 30), so x = 0.5, y = 0.6 in its cell; 36 x 16 of 100 pixels, so roots 0.6 and 0.4.
    Predictor 0: the same, 10 pixels to the right; IoU (26 * 16) / (2 * 576 - 26 * 16) = 416 / 736 = 0.5652.
    Predictor 1: in place, 25 pixels wide; IoU 25 / 36 = 0.6944. It is responsible.
    """
    cells = cells_of(2, 2, 2)
    cells.places[0, 0, 0, 0] = torch.tensor([0.7, 0.6, 0.6, 0.4])
    cells.places[0, 0, 0, 1] = torch.tensor([0.5, 0.6, 0.5, 0.4])
    cells.confidence.fill_(0.1)
    cells.confidence[0, 0, 0] = torch.tensor([0.2, 0.5])
    cells.classes[0, 0, 0] = torch.tensor([0.3, 0.6])
    cells.classes[0, 1, 1] = torch.tensor([9.0, 9.0])  # counts nowhere: there is no object
    return cells, objects([[7, 22, 43, 38]], [1])


def test_worked_by_hand():
    cells, targets = worked_example()
    # xy: right. wh: 5 * (0.6 - 0.5)^2 = 0.05. confidence: (0.5 - 25 / 36)^2 = 0.03781.
    # no object: 0.5 * (0.2^2 + 6 * 0.1^2) = 0.05. classes: 0.3^2 + (1 - 0.6)^2 = 0.25.
    assert numbers(yolo_losses(cells, targets, 100)) == [0, 0.05, round((0.5 - 25 / 36) ** 2, 5), 0.05, 0.25]


def test_worked_by_hand_with_the_other_predictor():
    """Predictor 1 moved out of the way: now 0 is responsible, 0.2 cells too far right."""
    cells, targets = worked_example()
    cells.places[0, 0, 0, 1, 0] = 1.5
    # xy: 5 * 0.2^2 = 0.2. wh: right. confidence: (0.2 - 416 / 736)^2. no object: 0.5 * (0.5^2 + 6 * 0.1^2) = 0.155.
    assert numbers(yolo_losses(cells, targets, 100)) == [0.2, 0, round((0.2 - 416 / 736) ** 2, 5), 0.155, 0.25]


def test_a_picture_without_objects():
    cells, _ = worked_example()
    nothing = objects([[float("nan")] * 4], [-1])
    # no object: 0.5 * (0.2^2 + 0.5^2 + 6 * 0.1^2) = 0.175.
    assert numbers(yolo_losses(cells, nothing, 100)) == [0, 0, 0, 0.175, 0]


def test_the_nearest_is_responsible_where_none_overlaps():
    """An untrained network's boxes may miss: else the first predictor would always learn, and alone."""
    cells, targets = worked_example()
    cells.places[0, 0, 0] = torch.tensor([[6.0, 6.0, 0.1, 0.1], [2.0, 2.0, 0.1, 0.1]])
    cells.confidence[0, 0, 0] = torch.tensor([0.0, 1.0])
    losses = yolo_losses(cells, targets, 100)
    assert losses["loss_xy"].item() == pytest.approx(5 * (1.5**2 + 1.4**2), rel=1e-6)
    assert losses["loss_confidence"].item() == 1  # (1 - 0)^2: its IoU is 0


SIDE, GRID, PREDICTORS, CLASSES = 96, 4, 3, 5


def random_case(seed=0, images=4, most=7):
    """Predictions near and far from objects, of which some share a cell; the last image has none."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = (images, GRID, GRID)
    places = rand(*shape, PREDICTORS, 4) * 1.4 - 0.2
    cells = Cells(places, rand(*shape, PREDICTORS) * 1.5 - 0.2, rand(*shape, CLASSES) * 1.5 - 0.2)
    corners, extents = rand(images, most, 2) * 70, rand(images, most, 2) * 60 + 4
    boxes = torch.cat([corners, (corners + extents).clamp(max=SIDE)], dim=-1).float()
    labels = (rand(images, most) * CLASSES).long()
    crowd = rand(images, most) < 0.2
    labels[0, -2:], labels[-1] = -1, -1
    boxes[labels < 0] = torch.nan
    return cells, Instances(boxes, labels, crowd=crowd)


def slow_losses(cells, targets):
    """Equation 3, cell by cell and predictor by predictor."""
    total = dict.fromkeys(NAMES, 0.0)
    for i in range(len(targets)):
        image = targets[i]
        crowds, image = image.boxes[image.crowd].tolist(), image[~image.crowd]
        for row in range(GRID):
            for column in range(GRID):
                chosen = owner(image, row, column)
                middle = ((column + 0.5) * SIDE / GRID, (row + 0.5) * SIDE / GRID)
                excused = any(x0 < middle[0] < x1 and y0 < middle[1] < y1 for x0, y0, x1, y1 in crowds)
                cell = cells.places[i, row, column].tolist()
                best, iou = None, 0.0
                if chosen is not None:
                    best, iou = responsible(cell, image.boxes[chosen], row, column)
                    label = image.labels[chosen].item()
                    for c, p in enumerate(cells.classes[i, row, column].tolist()):
                        total["loss_cls"] += (p - (c == label)) ** 2
                for j, (x, y, root_w, root_h) in enumerate(cell):
                    confidence = cells.confidence[i, row, column, j].item()
                    if j == best:
                        x0, y0, x1, y1 = image.boxes[chosen].double().tolist()
                        true_x, true_y = (x0 + x1) / 2 / SIDE * GRID - column, (y0 + y1) / 2 / SIDE * GRID - row
                        total["loss_xy"] += 5 * ((x - true_x) ** 2 + (y - true_y) ** 2)
                        roots = math.sqrt((x1 - x0) / SIDE), math.sqrt((y1 - y0) / SIDE)
                        total["loss_wh"] += 5 * ((root_w - roots[0]) ** 2 + (root_h - roots[1]) ** 2)
                        total["loss_confidence"] += (confidence - iou) ** 2
                    elif not excused:
                        total["loss_no_object"] += 0.5 * confidence**2
    return {name: value / len(targets) for name, value in total.items()}


def owner(image, row, column):
    """The largest of the objects whose centre lies in a cell."""
    best = None
    for n, (x0, y0, x1, y1) in enumerate(image.boxes.tolist()):
        at = int((y0 + y1) / 2 / SIDE * GRID), int((x0 + x1) / 2 / SIDE * GRID)
        size = (x1 - x0) * (y1 - y0)
        if at == (row, column) and (best is None or size > best[0]):
            best = size, n
    return None if best is None else best[1]


def responsible(cell, truth, row, column):
    """The predictor of best IoU, or the nearest; with its IoU."""
    boxes = []
    for x, y, root_w, root_h in cell:
        centre_x, centre_y = (column + x) * SIDE / GRID, (row + y) * SIDE / GRID
        half_w, half_h = root_w**2 * SIDE / 2, root_h**2 * SIDE / 2
        boxes.append([centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h])
    boxes = torch.tensor(boxes, dtype=torch.float64)
    overlaps = box_iou(boxes, truth[None].double())[:, 0].tolist()
    distances = (boxes - truth).square().sum(dim=1).tolist()
    best = max(range(len(cell)), key=lambda j: (overlaps[j], -distances[j]))
    return best, overlaps[best]


@pytest.mark.parametrize("seed", range(5))
def test_equals_equation_3_in_loops(seed):
    cells, targets = random_case(seed)
    expected, losses = slow_losses(cells, targets), yolo_losses(cells, targets, SIDE)
    assert list(losses) == NAMES
    for name in NAMES:
        assert losses[name].item() == pytest.approx(expected[name], rel=1e-5), name
        assert expected[name] > 0


def test_the_order_of_objects_and_padding_change_nothing():
    cells, targets = random_case()
    expected = yolo_losses(cells, targets, SIDE)
    generator = torch.Generator().manual_seed(1)
    longer = torch.cat([targets.boxes, torch.full((4, 6, 4), torch.inf)], dim=1)
    padded = Instances(longer, torch.nn.functional.pad(targets.labels, (0, 6), value=-1))
    padded.crowd = torch.nn.functional.pad(targets.crowd, (0, 6), value=True)
    for case in (targets, padded):
        for _ in range(5):
            order = torch.randperm(case.labels.shape[1], generator=generator)
            losses = yolo_losses(cells, case.map(lambda value, order=order: value[:, order]), SIDE)
            assert all(torch.equal(losses[name], expected[name]) for name in NAMES)


def test_a_batch_is_the_mean_of_its_images():
    cells, targets = random_case()
    alone = []
    for i in range(len(targets)):
        part = targets.map(lambda value, i=i: value[i : i + 1])
        alone.append(yolo_losses(Cells(*(value[i : i + 1] for value in cells)), part, SIDE))
    for name, loss in yolo_losses(cells, targets, SIDE).items():
        torch.testing.assert_close(loss, torch.stack([one[name] for one in alone]).mean())


# Two objects with their centres in the cell of row 0, column 0: which is learnt, whatever their order.
TIES = {
    "the larger": ([[0, 0, 20, 20], [5, 5, 20, 20]], [1, 0], 0),
    "of equal areas the least label": ([[0, 0, 20, 20], [0, 0, 20, 20]], [3, 2], 1),
    "then the least x0": ([[2, 0, 22, 20], [0, 0, 20, 20]], [1, 1], 1),
    "then the least y0": ([[0, 0, 20, 20], [0, 1, 20, 21]], [1, 1], 0),
    "then the least x1": ([[0, 0, 16, 4], [0, 0, 4, 16]], [1, 1], 1),
}


@pytest.mark.parametrize("case", TIES)
def test_two_objects_in_one_cell(case):
    boxes, labels, winner = TIES[case]
    for order in ([0, 1], [1, 0]):
        wanted = assign(objects([boxes[k] for k in order], [labels[k] for k in order]), GRID, SIDE)
        assert wanted.present.sum() == 1
        assert wanted.boxes[0, 0, 0].tolist() == boxes[winner]
        assert wanted.labels[0, 0, 0] == labels[winner]


def test_crowds_are_neither_learnt_nor_missed():
    """The crowd covers the middles of the two left columns' upper two cells, 24 pixels each, and one object's cell."""
    cells, _ = random_case()
    cells = Cells(*(value[:1].clone().requires_grad_() for value in cells))
    together = objects([[0, 0, 40, 40], [2, 2, 20, 20], [50, 50, 90, 90]], [1, 3, 2], [True, False, False])
    losses = yolo_losses(cells, together, SIDE)
    torch.stack(list(losses.values())).sum().backward()
    learnt = cells.places.grad.abs().sum(dim=(3, 4))[0] > 0
    assert learnt.nonzero().tolist() == [[0, 0], [2, 2]]
    assert cells.classes.grad.abs().sum(dim=-1)[0].nonzero().tolist() == [[0, 0], [2, 2]]
    moved = (cells.confidence.grad != 0).sum(dim=-1)[0]
    # Of the cells inside, only the object's responsible predictor learns; all others do, everywhere.
    assert moved.tolist() == [[1, 0, 3, 3], [0, 0, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3]]
    alone = yolo_losses(cells, objects([[2, 2, 20, 20], [50, 50, 90, 90]], [3, 2]), SIDE)
    for name in set(NAMES) - {"loss_no_object"}:
        assert torch.equal(losses[name], alone[name])
    assert losses["loss_no_object"] < alone["loss_no_object"]


def test_what_learns_and_what_does_not():
    """Places and classes learn in cells with objects alone, one predictor of each; confidences everywhere."""
    cells, targets = random_case()
    cells = Cells(*(value.clone().requires_grad_() for value in cells))
    losses = yolo_losses(cells, targets, SIDE)
    (moved,) = torch.autograd.grad(losses["loss_confidence"], cells.places, allow_unused=True, retain_graph=True)
    assert moved is None, "the IoU that a confidence is to reach is no function to be differentiated"
    torch.stack(list(losses.values())).sum().backward()
    present = assign(targets, GRID, SIDE).present
    assert present[:-1].flatten(1).any(dim=1).all()
    assert not present[-1].any()
    learning = (cells.places.grad != 0).any(dim=-1).sum(dim=-1)
    assert torch.equal(learning, present.long())
    assert torch.equal((cells.classes.grad != 0).any(dim=-1), present)


def test_gradients_at_boxes_of_no_size_are_numbers():
    """Zero and negative roots, and an object without an extent."""
    cells = Cells(*(value.requires_grad_() for value in cells_of(GRID, 2, CLASSES)))
    losses = yolo_losses(cells, objects([[10, 10, 10, 10], [30, 30, 60, 50]], [0, 1]), SIDE)
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.grad.isfinite().all() for value in cells)
    assert (cells.places.grad[0, 1, 1].abs().sum(dim=-1) > 0).sum() == 1


def test_what_is_asked_for_costs_nothing():
    """The truth itself as the prediction; a centre on the frame's far edge belongs to the last cell."""
    boxes = [[3, 5, 40, 30], [60, 20, 90, 35], [90, 90, 102, 102], [0, 60, 12, 96]]
    targets = objects(boxes, [0, 4, 2, 1])
    wanted = assign(targets, GRID, SIDE)
    assert wanted.present.sum() == 4
    cells = cells_of(GRID, PREDICTORS, CLASSES)
    cells.places[..., 1, :] = wanted.places
    cells.confidence[..., 1] = wanted.present.double()
    cells.classes.copy_(torch.nn.functional.one_hot(wanted.labels, CLASSES))
    assert numbers(yolo_losses(cells, targets, SIDE)) == [0, 0, 0, 0, 0]


def test_decoding_is_the_inverse_of_encoding():
    corners = torch.rand(2, 50, 2) * 80
    boxes = torch.cat([corners, corners + torch.rand(2, 50, 2) * 16 + 0.5], dim=-1)
    index, place = encode(boxes, GRID, SIDE)
    assert index.min() >= 0
    assert index.max() < GRID**2
    assert place[..., :2].min() >= 0
    assert place[..., :2].max() <= 1
    for sign in (1, -1):  # a negative root stands for the same width
        everywhere = torch.zeros(2, GRID, GRID, 50, 4)
        each = torch.arange(50)
        signed = torch.cat([place[..., :2], sign * place[..., 2:]], dim=-1)
        for i in range(2):
            everywhere[i, index[i] // GRID, index[i] % GRID, each] = signed[i]
        found = decode(everywhere, SIDE)
        for i in range(2):
            back = found[i, index[i] // GRID, index[i] % GRID, each]
            torch.testing.assert_close(back, boxes[i], rtol=1e-5, atol=1e-4)


def test_the_layout_is_boxes_then_classes():
    prediction = torch.arange(13.0).expand(1, 2, 2, 13)
    cells = split(prediction, 2)
    assert cells.places[0, 1, 0].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert cells.confidence[0, 0, 1].tolist() == [4, 9]
    assert cells.classes[0, 1, 1].tolist() == [10, 11, 12]
