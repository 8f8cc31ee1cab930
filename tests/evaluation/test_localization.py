"""Classification and localization error against a loop that does what the definition says, and their report."""

import json
import math
import re

import numpy as np
import pytest

from sightline.datasets.table import DataError
from sightline.evaluation import Detections, ReportInputs, Truth, evaluate_localization, write_report
from sightline.evaluation.localization_report import answer_matrix


def iou(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common) if common else 0.0


def slow_scores(truth, detections):
    """Object by object: (row, named and found with one and five answers, best detection, its overlap)."""
    scores = []
    for row in range(len(truth.labels)):
        if truth.crowd[row]:
            continue
        objects = sum(truth.image[k] == truth.image[row] and not truth.crowd[k] for k in range(len(truth.labels)))
        ranked = [d for d in range(len(detections)) if detections.image[d] == truth.image[row]]
        ranked.sort(key=lambda d: -detections.scores[d])  # a stable sort: of equal ones the first stays first
        named, found = {}, {}
        for limit in (1, 5):
            alike = [d for d in ranked[: limit * objects] if detections.labels[d] == truth.labels[row]]
            named[limit] = bool(alike)
            found[limit] = any(iou(truth.boxes[row], detections.boxes[d]) >= 0.5 for d in alike)
        best, most = -1, -1.0
        for d in ranked[:objects]:
            if iou(truth.boxes[row], detections.boxes[d]) > most:
                best, most = d, iou(truth.boxes[row], detections.boxes[d])
        scores.append((row, named, found, best, max(most, 0.0)))
    return scores


def shuffled(case, seed):
    """The same truth with its objects in no order, as a json may list them."""
    order, truth = np.random.default_rng(seed).permutation(len(case.truth.labels)), case.truth
    columns = (truth.image, truth.boxes, truth.labels, truth.area, truth.crowd, truth.difficult, truth.box_area)
    return Truth(truth.image_ids, *(column[order] for column in columns))


CASES = {
    "many images": {"images": 40, "objects": 60, "count": 300},
    "crowds": {"images": 10, "objects": 40, "crowds": 0.5},
    "ties": {"images": 5, "objects": 20, "grid": 20, "ties": True},
    "one class": {"num_classes": 1},
    "no objects": {"objects": 0},
    "few detections": {"images": 12, "objects": 30, "count": 4},
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CASES)
def test_equals_a_loop(random_case, name, seed):
    case = random_case(seed, **CASES[name])
    truth, detections = shuffled(case, seed), case.detections
    result = evaluate_localization(truth, detections, [str(c) for c in range(case.num_classes)])
    expected = slow_scores(truth, detections)
    assert result.rows.tolist() == [row for row, *_ in expected]
    for limit in (1, 5):
        assert result.named[limit].tolist() == [named[limit] for _, named, *_ in expected]
        assert result.found[limit].tolist() == [found[limit] for _, _, found, *_ in expected]
    assert result.best.tolist() == [best for *_, best, _ in expected]
    assert result.overlap.tolist() == pytest.approx([overlap for *_, overlap in expected])
    assert result.answer.tolist() == [detections.labels[best] if best >= 0 else -1 for *_, best, _ in expected]
    summary = result.summary()
    if expected:
        assert summary["localization_error"] == pytest.approx(np.mean([not found[1] for _, _, found, *_ in expected]))
        assert summary["top5_error"] == pytest.approx(np.mean([not named[5] for _, named, *_ in expected]))
        assert summary["top1_error"] <= summary["localization_error"]
        assert summary["localization5_error"] <= summary["localization_error"]


def test_the_order_of_detections_matters_only_for_ties(random_case):
    case = random_case(3, images=6, objects=20, count=80)
    order = np.random.default_rng(0).permutation(80)
    names = [str(c) for c in range(case.num_classes)]
    one, other = (evaluate_localization(case.truth, d, names) for d in (case.detections, case.detections.select(order)))
    assert one.summary() == other.summary()
    assert one.considered[order].tolist() == other.considered.tolist()
    assert one.right[order].tolist() == other.right.tolist()


def test_nothing_to_find(no_truth, no_detections):
    result = evaluate_localization(no_truth(2), no_detections, ["a"])
    assert set(result.summary().values()) == {-1.0}
    assert result.per_class() == [
        {"category": "a", "truths": 0, "top1_error": -1.0, "localization_error": -1.0, "IoU": -1.0}
    ]


def test_nothing_found(no_detections):
    truth = Truth([1], [0], [[0, 0, 4, 4]], [0], [16], [False], [False])
    result = evaluate_localization(truth, no_detections, ["a", "b"])
    assert result.summary()["localization5_error"] == 1
    assert result.summary()["IoU"] == 0
    assert result.answer.tolist() == [-1]
    assert answer_matrix(result).tolist() == [[0, 0, 1], [0, 0, 0]]


NAMES = ["<b>cat</b>", "dog"]


@pytest.fixture
def scored():
    """Three pictures of one object: class and box right, class wrong, box wrong; with two landmarks each."""
    boxes = [[0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20]]
    points = np.array([[[0, 0], [20, 20]], [[10, 0], [np.nan, np.nan]], [[0, 10], [20, 10]]])
    truth = Truth([5, 6, 7], [0, 1, 2], boxes, [0, 1, 0], [400] * 3, [False] * 3, [False] * 3, landmarks=points)
    found = Detections(
        [0, 0, 1, 2],
        [[0, 0, 20, 18], [40, 40, 60, 60], [0, 0, 20, 20], [15, 15, 40, 40]],
        [0, 1, 0, 0],
        [0.9, 0.1, 0.8, 0.7],
        landmarks=np.array([[[0, 1], [20, 26]], [[0, 0], [0, 0]], [[10, 2], [0, 0]], [[0, 10], [20, 10]]]),
    )
    return truth, found, evaluate_localization(truth, found, NAMES)


def test_known_numbers(scored):
    *_, result = scored
    numbers = {"top1_error": 1 / 3, "top5_error": 1 / 3, "localization_error": 2 / 3, "localization5_error": 2 / 3}
    summary = result.summary()
    assert {name: summary[name] for name in numbers} == pytest.approx(numbers)
    assert summary["IoU"] == pytest.approx((0.9 + 1 + 25 / (400 + 625 - 25)) / 3)
    assert result.answer.tolist() == [0, 0, 0]
    assert result.considered.tolist() == [True, False, True, True]
    assert result.right.tolist() == [True, False, False, False]
    assert [record["localization_error"] for record in result.per_class()] == [0.5, 1]


def test_landmarks(scored):
    """Distances over the box's side of 20: 1, 6, 2 (one is unknown), 0 and 0; a tenth of it is 2."""
    *_, result = scored
    np.testing.assert_allclose(result.distance, [[0.05, 0.3], [0.1, np.nan], [0, 0]])
    assert result.summary()["landmark_error"] == pytest.approx((0.05 + 0.3 + 0.1) / 5)
    assert result.summary()["PCK"] == pytest.approx(4 / 5)
    assert "PCK" in result.table()


def test_landmarks_without_an_answer_are_far(scored):
    truth, found, _ = scored
    result = evaluate_localization(truth, found.select(found.image != 0), NAMES)
    assert result.distance[0].tolist() == [math.inf, math.inf]
    assert result.summary()["landmark_error"] == pytest.approx(0.1 / 3)
    assert result.summary()["PCK"] == pytest.approx(3 / 5)


def test_other_landmarks_are_refused(scored):
    truth, found, _ = scored
    other = Detections(found.image, found.boxes, found.labels, found.scores, landmarks=np.zeros((4, 3, 2)))
    with pytest.raises(DataError, match="gives 3 landmarks of an object, the data have 2"):
        evaluate_localization(truth, other, NAMES)


def test_part_of_the_truth_keeps_its_landmarks(scored):
    truth, found, result = scored
    part = truth.only([7, 5])
    np.testing.assert_array_equal(part.landmarks, truth.landmarks[[0, 2]])
    own = found.select(found.image != 1)
    own = Detections(np.array([1, 1, 0]), own.boxes, own.labels, own.scores, landmarks=own.landmarks)
    again = evaluate_localization(part, own, NAMES)
    assert again.found[1].tolist() == result.found[1][[0, 2]].tolist()


def test_report(tmp_path, scored):
    truth, found, result = scored
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,localization_error\n0,9,1.5,0.5\n1,19,1.0,0.4\n")
    inputs = ReportInputs(
        title="A & B",
        details={"data": "<here>"},
        load_image=lambda row: np.full((60, 60, 3), 200, np.uint8),
        image_names=["a<b>.jpg", "c.jpg", "d.jpg"],
        metrics=tmp_path / "metrics.csv",
    )
    page = write_report(tmp_path / "run", truth, found, result, inputs).read_text(encoding="utf-8")
    assert "<b>66.7</b><span>localization error</span>" in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "<b>cat" not in page
    assert "dog taken for &lt;b&gt;cat" in page
    assert page.index("d.jpg") < page.index("c.jpg")  # of two not found, the one whose answer is further off is worse
    assert page.count("<img ") == 5  # confusion, training and three pictures
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert {p.name for p in (tmp_path / "run" / "report").iterdir()} == {
        "confusion.png", "training.png", "image_5.jpg", "image_6.jpg", "image_7.jpg",
    }  # fmt: skip
    json.dumps(result.to_dict())


def test_report_of_nothing(tmp_path, no_truth, no_detections):
    result = evaluate_localization(no_truth(0), no_detections, ["a"])
    page = write_report(tmp_path, no_truth(0), no_detections, result).read_text(encoding="utf-8")
    assert "No mistake in any image." in page


def test_classifiers_are_judged_by_their_names_alone():
    truth = Truth(
        np.array([1, 2]), np.array([0, 1]), np.array([[0, 0, 9, 9], [0, 0, 9, 9]]), np.array([0, 1]),
        np.full(2, 81.0), np.zeros(2, bool), np.zeros(2, bool),
    )  # fmt: skip
    far = np.array([[50, 50, 60, 60]] * 2)
    result = evaluate_localization(
        truth, Detections(np.array([0, 1]), far, np.array([0, 0]), np.ones(2)), ["a", "b"], places=False
    )
    assert result.summary() == {"top1_error": 0.5, "top5_error": 0.5}
    assert result.per_class()[1] == {"category": "b", "truths": 1, "top1_error": 1.0}
    assert result.right.tolist() == [True, False]
