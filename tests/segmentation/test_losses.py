"""Losses of label maps, against libraries and slow loops; what has no label never counts."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from sightline.segmentation.losses import LOSSES, MapLoss, lovasz, median_frequency

KINDS = [*LOSSES, "cross_entropy+dice", "focal + lovasz"]
WEIGHTS = torch.tensor([1.0, 0.25, 3.0, 0.5])


def scene(classes=4, shape=(2, 5, 6), void=0.2):
    logits = 2 * torch.randn(shape[0], classes, *shape[1:])
    labels = torch.randint(0, classes, shape, dtype=torch.int16)
    return logits, torch.where(torch.rand(shape) < void, -1, labels).to(torch.int16)


def loss_of(kind, logits, labels, weights=None):
    loss = MapLoss(logits.shape[1], kind=kind)
    if weights is not None:
        loss.weights.copy_(weights)
    return loss(logits, labels)


def jaccard_loss(truth, mistaken):
    """1 - IoU of a category when a set of pixels is mistaken: (N,) bools of the truth, and a set of pixels."""
    predicted = {i for i, own in enumerate(truth) if own != (i in mistaken)}
    own = {i for i, own in enumerate(truth) if own}
    return 1 - len(own & predicted) / len(own | predicted) if own | predicted else 0.0


def lovasz_extension(errors, truth):
    """Definition 1 of the paper, the set function called for every prefix of the pixels by error."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    prefixes = [jaccard_loss(truth, set(order[:k])) for k in range(len(order) + 1)]
    return sum(errors[i] * (prefixes[k + 1] - prefixes[k]) for k, i in enumerate(order))


def by_categories(of_one, logits, labels, weights):
    """The weighted mean, over the categories shown, of a function of the labelled pixels' probabilities and truth."""
    probabilities = logits.softmax(1).permute(0, 2, 3, 1).flatten(0, 2)[labels.flatten() >= 0].tolist()
    truths = labels[labels >= 0].tolist()
    total = count = 0.0
    for c in set(truths):
        value = of_one([row[c] for row in probabilities], [truth == c for truth in truths])
        total, count = total + weights[c].item() * value, count + weights[c].item()
    return total / count


def slow_dice(probabilities, truth):
    common = sum(p for p, own in zip(probabilities, truth, strict=True) if own)
    return 1 - 2 * common / (sum(probabilities) + sum(truth))


def slow_lovasz(probabilities, truth):
    return lovasz_extension([abs(own - p) for p, own in zip(probabilities, truth, strict=True)], truth)


@pytest.mark.parametrize(("kind", "smoothing"), [("cross_entropy", 0.0), ("smooth_cross_entropy", 0.1)])
def test_cross_entropy_is_torch_s(kind, smoothing):
    """But the smoothed one, too, is divided by the truths' weights: https://docs.pytorch.org/docs/stable/nn.functional.html."""
    logits, labels = scene()
    expected = F.cross_entropy(logits, labels.long(), WEIGHTS, ignore_index=-1, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(kind, logits, labels, WEIGHTS), expected)


def test_focal_is_a_loop_s():
    logits, labels = scene()
    total = count = 0.0
    for b, y, x in itertools.product(range(2), range(5), range(6)):
        label = labels[b, y, x].item()
        if label >= 0:
            p = logits[b, :, y, x].softmax(0)[label].item()
            total -= WEIGHTS[label].item() * (1 - p) ** 2 * math.log(p)
            count += WEIGHTS[label].item()
    torch.testing.assert_close(loss_of("focal", logits, labels, WEIGHTS).item(), total / count, rtol=1e-5, atol=0)


def test_focal_of_two_categories_is_torchvision_s():
    """A softmax over (0, x) is a sigmoid of x: https://docs.pytorch.org/vision/stable/generated/torchvision.ops.sigmoid_focal_loss."""
    x, labels = 3 * torch.randn(2, 5, 6), torch.randint(0, 2, (2, 5, 6))
    expected = sigmoid_focal_loss(x, labels.float(), alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(loss_of("focal", torch.stack([torch.zeros_like(x), x], 1), labels), expected)


@pytest.mark.parametrize(("kind", "of_one"), [("dice", slow_dice), ("lovasz", slow_lovasz)])
@pytest.mark.parametrize("classes", [2, 4, 9])
def test_losses_of_regions_are_a_loop_s(kind, of_one, classes):
    """Of nine categories some are shown nowhere."""
    logits, labels = scene(classes)
    labels[labels == 5] = -1
    weights = torch.linspace(0.5, 2, classes)
    expected = by_categories(of_one, logits, labels, weights)
    torch.testing.assert_close(loss_of(kind, logits, labels, weights).item(), expected, rtol=1e-5, atol=1e-6)


def test_lovasz_is_the_jaccard_loss_where_predictions_are_certain():
    """The extension equals the set function at its corners."""
    labels, answers = torch.randint(0, 3, (2, 4, 7)), torch.randint(0, 3, (2, 4, 7))
    logits = 200.0 * F.one_hot(answers, 3).permute(0, 3, 1, 2)
    overlaps = [((labels == c) & (answers == c)).sum() / ((labels == c) | (answers == c)).sum() for c in range(3)]
    torch.testing.assert_close(loss_of("lovasz", logits, labels), 1 - torch.stack(overlaps).mean())


def test_lovasz_keeps_its_slopes_among_many_pixels():
    """Each pixel's weight to full precision, where differences of float32 quotients near 1 have one or two digits."""
    logits, labels = scene(3, (2, 256, 256))
    slopes = []
    for kind in (torch.float32, torch.float64):
        leaf = logits.to(kind, copy=True).requires_grad_()
        lovasz(leaf, labels.long(), torch.ones(3, dtype=kind)).backward()
        slopes.append(leaf.grad.double())
    assert (slopes[0] - slopes[1]).abs().max() < 1e-4 * slopes[1].abs().max()


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients(kind):
    logits, labels = scene(shape=(2, 3, 3))
    logits, weights = logits.double().requires_grad_(), WEIGHTS.double()
    assert torch.autograd.gradcheck(lambda values: LOSSES[kind](values, labels.long(), weights), logits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_label_never_counts(kind):
    """Other logits there change nothing and learn nothing; nor does a wider frame change anything."""
    logits, labels = scene()
    logits.requires_grad_()
    loss = loss_of(kind, logits, labels, WEIGHTS)
    loss.backward()
    void = (labels < 0)[:, None].expand_as(logits)
    assert void.any()
    assert logits.grad[void].eq(0).all()
    assert logits.grad[~void].ne(0).any()
    changed = torch.where(void, 50 * torch.randn_like(logits), logits.detach())
    torch.testing.assert_close(loss_of(kind, changed, labels, WEIGHTS), loss.detach())
    wider, more = torch.randn(2, 4, 9, 8), torch.full((2, 9, 8), -1, dtype=torch.int16)
    wider[..., :5, :6], more[:, :5, :6] = logits.detach(), labels
    torch.testing.assert_close(loss_of(kind, wider, more, WEIGHTS), loss.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 1, 1, 1])], ids=["void", "of no weight"])
def test_a_batch_from_which_nothing_is_learnt(kind, weights):
    """No labelled pixel, or only such as do not count."""
    logits = (60 * torch.randn(2, 4, 3, 5)).requires_grad_()
    labels = torch.full((2, 3, 5), -1 if weights is None else 0, dtype=torch.int16)
    loss = loss_of(kind, logits, labels, weights)
    loss.backward()
    assert logits.grad.isfinite().all()
    if kind != "smooth_cross_entropy" or weights is None:
        assert loss.item() == 0
        assert logits.grad.eq(0).all()


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "dice", "lovasz"])
def test_right_and_certain_costs_nothing(kind):
    _, labels = scene()
    right = 30.0 * F.one_hot(labels.long().clamp(min=0), 4).permute(0, 3, 1, 2)
    assert loss_of(kind, right, labels) < 1e-4
    assert loss_of(kind, right.roll(1, 1), labels) > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_left_outside(kind):
    logits, labels = scene()
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(kind, logits, labels, WEIGHTS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(kind, logits.float(), labels, WEIGHTS))


@pytest.mark.parametrize("kind", LOSSES)
def test_no_shape_depends_on_values(kind):
    """On the meta device nothing has values: what asks for one fails."""
    logits = torch.zeros(2, 4, 5, 6, device="meta", requires_grad=True)
    result = LOSSES[kind](logits, torch.zeros(2, 5, 6, dtype=torch.int64, device="meta"), WEIGHTS.to("meta"))
    result.backward()
    assert result.shape == ()
    assert logits.grad.shape == logits.shape


def test_sums():
    logits, labels = scene()
    parts = sum(loss_of(kind, logits, labels, WEIGHTS) for kind in ("focal", "dice", "lovasz"))
    torch.testing.assert_close(loss_of("focal+dice+lovasz", logits, labels, WEIGHTS), parts)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("dise", "did you mean 'dice'"), ("dice+", "no loss ''"), ("iou", "cross_entropy, .* lovasz")],
)
def test_unknown_kinds(kind, message):
    with pytest.raises(ValueError, match=message):
        MapLoss(3, kind=kind)


def test_weights_are_no_part_of_a_checkpoint():
    assert MapLoss(3).state_dict() == {}


def test_median_frequency():
    """Frequencies 0.5, 0.1 and 0.2 of what is shown: the median is 0.2. The third is shown nowhere."""
    weights = median_frequency(torch.tensor([500, 20, 0, 120]), torch.tensor([1000, 200, 0, 600]))
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, [0.4, 2, 0, 1], rtol=1e-6)
    even = median_frequency(torch.tensor([500, 20]), torch.tensor([1000, 200]))
    np.testing.assert_allclose(even, [0.6, 3], rtol=1e-6)  # between two, their mean


@pytest.mark.parametrize(
    ("pixels", "seen"), [([0, 0], [5, 5]), ([3, 9], [5, 8]), ([1, 2], [5])], ids=["nothing", "too many", "shapes"]
)
def test_frequencies_that_cannot_be(pixels, seen):
    with pytest.raises(ValueError, match="median frequencies need"):
        median_frequency(torch.tensor(pixels), torch.tensor(seen))
