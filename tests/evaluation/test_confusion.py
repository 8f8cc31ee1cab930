"""The confusion matrix: a case by hand, and against a slow loop."""

import numpy as np

from sightline.evaluation import Detections, Truth, confusion_matrix
from sightline.evaluation.pairs import box_overlap


def test_by_hand():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 90, 30]]
    truth = Truth([5, 6], [0, 0, 1, 1], boxes, [0, 1, 1, 0], [100] * 4, [0, 0, 0, 1], [0] * 4)
    found = Detections(
        [0, 0, 0, 0, 1, 1, 1],
        [[0, 0, 10, 9], [0, 0, 10, 8], [20, 0, 30, 10], [20, 0, 30, 9], [40, 0, 50, 10], [65, 5, 75, 15], [0, 0, 9, 9]],
        [0, 1, 0, 1, 1, 0, 1],
        [0.3, 0.9, 0.9, 0.9, 0.2, 0.9, 0.9],
    )
    # Object 0 goes to the closest, whatever its score; object 1 is taken for category 0, and the right one is left
    # over; the last object's detection is below 0.25; one lies on the crowd; one on nothing.
    assert confusion_matrix(truth, found, 2).tolist() == [[1, 0, 0], [1, 0, 1], [0, 3, 0]]
    assert confusion_matrix(truth, found, 2, score=0.1).tolist() == [[1, 0, 0], [1, 1, 0], [0, 3, 0]]
    assert confusion_matrix(truth, found, 2, iou=0.95).tolist() == [[0, 0, 1], [1, 0, 1], [1, 3, 0]]


def slow_confusion(truth, found, num_classes, score, iou):
    overlap = box_overlap(truth, found)
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    countable = ~(truth.crowd | truth.difficult)
    pairs = []
    for d in np.flatnonzero(found.scores >= score):
        for k in np.flatnonzero(truth.image == found.image[d]):
            value = overlap(np.array([d]), np.array([k]))[0]
            if value >= iou:
                pairs.append((-value, -found.scores[d], int(d), int(k)))
    taken_d, taken_k, on_void = set(), set(), set()
    for _, _, d, k in sorted(pairs):
        if not countable[k]:
            on_void.add(d)
        elif d not in taken_d and k not in taken_k:
            taken_d.add(d)
            taken_k.add(k)
            matrix[truth.labels[k], found.labels[d]] += 1
    for k in np.flatnonzero(countable):
        matrix[truth.labels[k], num_classes] += k not in taken_k
    for d in np.flatnonzero(found.scores >= score):
        matrix[num_classes, found.labels[d]] += d not in taken_d and d not in on_void
    return matrix


def test_equals_a_slow_loop(random_case):
    for seed in range(12):
        case = random_case(seed, objects=30, count=80, difficult=0.1)
        matrix = confusion_matrix(case.truth, case.detections, case.num_classes, score=0.3, iou=0.4)
        expected = slow_confusion(case.truth, case.detections, case.num_classes, 0.3, 0.4)
        np.testing.assert_array_equal(matrix, expected)
        countable = ~(case.truth.crowd | case.truth.difficult)
        rows = np.bincount(case.truth.labels[countable], minlength=case.num_classes)
        np.testing.assert_array_equal(matrix[:-1].sum(1), rows)


def test_nothing(no_truth, no_detections):
    assert not confusion_matrix(no_truth(2), no_detections, 3).any()
    found = Detections([1], [[0, 0, 1, 1]], [2], [1.0])
    assert confusion_matrix(no_truth(2), found, 3)[3].tolist() == [0, 0, 1, 0]
