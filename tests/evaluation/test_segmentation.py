"""Scores of label maps: against slow loops, sklearn and torchmetrics, and cases worked by hand."""

import math

import numpy as np
import pytest
import torch

from sightline.datasets.structures import LabelMaps
from sightline.evaluation import SegmentationCollector, SegmentationResult
from sightline.evaluation.segmentation import Areas
from sightline.evaluation.segmentation_counts import boundary_counts, near_contour, pair_counts

NAMES = ["sky", "road", "car"]


def blobs(seed, shape=(3, 20, 31), num_classes=4, void=True):
    """Label maps of rectangles, so that there are contours as well as insides; (B, H, W) int16."""
    rng = np.random.default_rng(seed)
    maps = np.zeros(shape, np.int16)
    for picture in maps:
        for label in rng.integers(-1 if void else 0, num_classes, 12):
            y, x = rng.integers(0, shape[1] - 1), rng.integers(0, shape[2] - 1)
            picture[y : y + rng.integers(1, 14), x : x + rng.integers(1, 14)] = label
    return torch.from_numpy(maps)


def judged(found, truth, *, num_classes=4, boundary=False, **options):
    """The result of label maps (B, H, W), counted at once."""
    collector = SegmentationCollector(num_classes, boundary=boundary)
    collector.update(LabelMaps(found), LabelMaps(truth), range(len(found)))
    return collector.result([f"c{i}" for i in range(num_classes)], **options)


def slow_matrix(found, truth, num_classes):
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for t, f in zip(truth.flatten().tolist(), found.flatten().tolist(), strict=True):
        matrix[t, f] += 1  # -1 is the last row, and the last column
    return matrix


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.int32])
def test_confusion_is_that_of_a_loop(seed, dtype):
    truth, found = blobs(seed).to(dtype), blobs(seed + 100).to(dtype)
    before = truth.clone(), found.clone()
    np.testing.assert_array_equal(judged(found, truth).matrix, slow_matrix(found, truth, 4))
    assert torch.equal(truth, before[0])
    assert torch.equal(found, before[1])


def test_confusion_is_that_of_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    truth, found = blobs(1), blobs(2, void=False)
    result, known = judged(found, truth), truth >= 0
    expected = metrics.confusion_matrix(truth[known], found[known], labels=range(4))
    np.testing.assert_array_equal(result.matrix[:4, :4], expected)
    summary = result.summary()
    assert summary["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(truth[known], found[known]), abs=1e-12)
    for name, average in (("mean_IoU", "macro"), ("frequency_weighted_IoU", "weighted")):
        expected = metrics.jaccard_score(truth[known], found[known], average=average)
        assert summary[name] == pytest.approx(expected, abs=1e-12)
    recall = metrics.recall_score(truth[known], found[known], average="macro")
    assert summary["mean_accuracy"] == pytest.approx(recall, abs=1e-12)
    precision = metrics.precision_score(truth[known], found[known], average=None)
    assert [record["precision"] for record in result.per_class()] == pytest.approx(precision.tolist(), abs=1e-12)


def test_scores_are_those_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    truth, found = blobs(3), blobs(4, void=False)
    result = judged(found, truth)
    index = classification.MulticlassJaccardIndex(4, average=None, ignore_index=-1)
    iou = [record["IoU"] for record in result.per_class()]
    assert iou == pytest.approx(index(found.long(), truth.long()).tolist(), abs=1e-6)
    accuracy = classification.MulticlassAccuracy(4, average="micro", ignore_index=-1)
    assert result.summary()["pixel_accuracy"] == pytest.approx(accuracy(found.long(), truth.long()).item(), abs=1e-6)


TRUTH = torch.tensor([[[0, 0, 0, 0, 1, 1, -1, -1]]])
#                          hit  miss  hit      void: 0, 1
FOUND = torch.tensor([[[0, 0, 0, 1, 1, -1, 0, 1]]])


@pytest.mark.parametrize(
    ("void_is_wrong", "iou"),
    [(False, [3 / 4, 1 / 3]), (True, [3 / 5, 1 / 4])],
    ids=["void ignored", "void wrong"],
)
def test_worked_by_hand(void_is_wrong, iou):
    """A pixel given no category is a mistake for its true one alone; category 2 is nowhere, and in no mean."""
    result = judged(FOUND, TRUTH, num_classes=3, void_is_wrong=void_is_wrong)
    assert result.matrix.tolist() == [[3, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert result.summary() == pytest.approx(
        {
            "mean_IoU": sum(iou) / 2,
            "pixel_accuracy": 4 / 6,
            "mean_accuracy": (3 / 4 + 1 / 2) / 2,
            "frequency_weighted_IoU": (4 * iou[0] + 2 * iou[1]) / 6,
        }
    )
    records = result.per_class()
    assert [record["truths"] for record in records] == [4, 2, 0]
    assert [record["IoU"] for record in records] == pytest.approx([*iou, -1])
    assert [record["accuracy"] for record in records] == pytest.approx([3 / 4, 1 / 2, -1])
    precision = [3 / 4, 1 / 3, -1] if void_is_wrong else [1, 1 / 2, -1]
    assert [record["precision"] for record in records] == pytest.approx(precision)
    assert result.picture_iou[0] == pytest.approx(sum(iou) / 2)
    assert ("count as wrong" in result.table()) == void_is_wrong
    assert ("Void pixels are not counted" in result.table()) != void_is_wrong
    assert "1 pictures, 6 pixels with a truth, 2 void" in result.table()


def test_a_category_that_is_only_predicted_is_in_no_mean():
    truth, found = torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 2]]])
    result = judged(found, truth, num_classes=3)
    assert result.summary()["mean_IoU"] == 3 / 4
    assert [record["IoU"] for record in result.per_class()] == [3 / 4, -1, -1]
    assert result.per_class()[2]["precision"] == 0


def test_nothing_but_void():
    result = judged(torch.zeros(2, 4, 5), torch.full((2, 4, 5), -1), boundary=True)
    assert set(result.summary().values()) == {-1.0}
    assert np.isnan(result.picture_iou).all()
    assert result.per_image() == []
    assert judged(torch.zeros(0, 4, 5), torch.zeros(0, 4, 5)).summary()["mean_IoU"] == -1


@pytest.mark.parametrize("void_is_wrong", [False, True])
def test_perfect(void_is_wrong):
    """What is right wherever there is a truth scores 1; of void, what is predicted there may cost IoU."""
    truth = blobs(5)
    void, twos = int((truth < 0).sum()), int((truth == 2).sum())
    result = judged(torch.where(truth < 0, 2, truth), truth, boundary=True, void_is_wrong=void_is_wrong)
    scores = result.summary()
    assert scores.pop("mean_IoU") == pytest.approx((3 + twos / (twos + void_is_wrong * void)) / 4)
    assert (scores.pop("frequency_weighted_IoU") < 1) == void_is_wrong
    assert scores == {"pixel_accuracy": 1, "mean_accuracy": 1, "boundary_IoU": 1}


def test_what_is_predicted_on_void_is_not_looked_at():
    truth, found = blobs(6), blobs(7)
    other = torch.where(truth < 0, blobs(8), found)
    assert not torch.equal(found, other)
    one, two = (judged(maps, truth, boundary=True) for maps in (found, other))
    assert one.summary() == two.summary()
    assert one.per_class() == two.per_class()


def test_counts_beyond_32_bits_are_exact():
    """As of a hundred thousand large pictures; float32 has 24 bits, int32 31."""
    big = 3 * 2**40 + 1
    matrix = np.array([[big, 1, 0], [1, big + 2, 0], [0, 0, 0]])
    pictures = Areas(*(np.array([[big, big + 2]]) for _ in range(3)))
    result = SegmentationResult(["a", "b"], matrix, pictures, np.array([1]))
    assert result.areas.true.tolist() == [big + 1, big + 3]
    assert [record["truths"] for record in result.per_class()] == [big + 1, big + 3]
    assert [record["IoU"] for record in result.per_class()] == [big / (big + 2), (big + 2) / (big + 4)]
    assert result.summary()["pixel_accuracy"] < 1


def test_a_label_that_is_no_category():
    """It cannot be seen while counting without a stall, but is not passed over."""
    truth = torch.zeros(2, 3, 3, dtype=torch.int16)
    truth[1, 0, :2] = 4
    for maps in ((truth, truth * 0), (truth * 0, truth)):
        with pytest.raises(ValueError, match=r"picture 1: 2 pixels .* beyond 0..3 \(4 categories\)"):
            judged(*maps)


def test_refuses():
    collector = SegmentationCollector(3)
    with pytest.raises(ValueError, match="2 names for 3 categories"):
        collector.result(NAMES[:2])


def slow_edge(labels, distance):
    """Pixels whose square of pixels around them holds another label or leaves the picture."""
    height, width = labels.shape
    edge = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            inside = distance <= y < height - distance and distance <= x < width - distance
            around = labels[max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1]
            edge[y, x] = not inside or (around != labels[y, x]).any()
    return edge


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8, 13])
def test_near_contour_is_a_loop(distance):
    labels = blobs(distance)
    for picture, edge in zip(labels, near_contour(labels, distance), strict=True):
        np.testing.assert_array_equal(edge.numpy(), slow_edge(picture.numpy(), distance))


def eroded_boundary(mask, distance):
    """A category's pixels near its contour as Cheng et al.'s code has them: eroded by a 3 x 3 square, again and again.

    https://github.com/bowenc0221/boundary-iou-api, `mask_to_boundary`.
    """
    cv2 = pytest.importorskip("cv2")
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return mask & (eroded == 0)


@pytest.mark.parametrize("shape", [(2, 60, 80), (2, 200, 150), (1, 7, 9), (1, 1, 1)], ids=str)
def test_boundary_iou_is_that_of_erosion(shape):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 4, (shape[0], 1 + shape[1] // 19, 1 + shape[2] // 19), np.int16)
    truth = blocks.repeat(19, 1).repeat(19, 2)[:, : shape[1], : shape[2]]
    found = np.roll(truth, (3, -2), (1, 2))
    distance = max(1, round(0.02 * math.hypot(*shape[1:])))
    expected = np.zeros((shape[0], 3, 4), np.int64)
    for i in range(shape[0]):
        for c in range(4):
            true, guess = (eroded_boundary(maps[i] == c, distance) for maps in (truth, found))
            expected[i, :, c] = (true & guess).sum(), true.sum(), guess.sum()
    truth, found = torch.from_numpy(truth.copy()), torch.from_numpy(found)
    np.testing.assert_array_equal(boundary_counts(truth, found, 4).numpy(), expected)
    right, true, guess = expected.sum(0).astype(float)
    known = true > 0
    iou = right[known] / (true + guess - right)[known]
    assert judged(found, truth, boundary=True).summary()["boundary_IoU"] == pytest.approx(iou.mean(), abs=1e-12)


def test_boundary_iou_by_hand():
    """A square of 20 pixels moved by one on a ground of 50: d is 1, so the rings are 76 pixels each."""
    truth = torch.zeros(1, 50, 50, dtype=torch.int16)
    truth[:, 10:30, 10:30] = 1
    result = judged(truth.roll(1, 2), truth, num_classes=2, boundary=True)
    assert round(0.02 * math.hypot(50, 50)) == 1
    assert [part[1] for part in result.boundary] == [2 * 19, 76, 76]
    assert result.per_class()[1]["boundary_IoU"] == 38 / (76 + 76 - 38)
    assert result.per_class()[1]["IoU"] == 380 / 420
    assert "boundary_IoU" not in judged(truth, truth, num_classes=2).per_class()[1]


def test_pictures_are_ranked():
    """The least mean IoU first; one without a truth has no score and is the last."""
    truth = torch.zeros(4, 2, 5, dtype=torch.int16)
    truth[1] = -1
    found = torch.zeros_like(truth)
    found[0, 0, 0], found[2] = 1, 1
    result = judged(found, truth)
    assert result.worst().tolist() == [2, 0, 3, 1]
    assert result.per_image() == [
        {"image_id": 2, "mean_IoU": 0, "pixel_accuracy": 0},
        {"image_id": 0, "mean_IoU": 0.9, "pixel_accuracy": 0.9},
        {"image_id": 3, "mean_IoU": 1, "pixel_accuracy": 1},
    ]
    assert result.to_dict()["void"] == "ignored"


def test_the_device_is_not_waited_for():
    """No value is read while counting: the operations run on tensors that have none."""
    maps = torch.empty(2, 30, 40, dtype=torch.int16, device="meta")
    assert pair_counts(maps, maps, 11).shape == (2, 12 * 12 + 1)
    assert boundary_counts(maps, maps, 11).shape == (2, 3, 11)
    collector = SegmentationCollector(11, boundary=True)
    collector.update(LabelMaps(maps), LabelMaps(maps), [1, 2])
    collector.update(LabelMaps(maps), LabelMaps(maps), [2, 3])
