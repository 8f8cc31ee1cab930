"""Pascal VOC AP against published numbers and a slow obvious loop."""

import json

import numpy as np
import pytest

from sightline.evaluation import Detections, Truth, evaluate_voc


def read_folder(folder):
    """Columns of the oracle's text files: 'class x y w h', and with a score after the class."""
    image, boxes, scores = [], [], []
    for row, path in enumerate(sorted(folder.glob("*.txt"))):
        for line in path.read_text().split("\n"):
            if values := [float(value) for value in line.split()[1:]]:
                image.append(row)
                x, y, w, h = values[-4:]
                boxes.append([x, y, x + w, y + h])  # as the source does; it adds the one on top
                scores.append(values[0])
    return np.array(image), np.array(boxes), np.array(scores)


@pytest.fixture
def oracle(real_data):
    folder = real_data("map-oracles")
    expected = json.loads((folder / "EXPECTED.json").read_text())["voc-case1"]
    image, boxes, _ = read_folder(folder / expected["gt"])
    zeros = np.zeros(len(image), int)
    truth = Truth(np.arange(7), image, boxes, zeros, zeros, zeros, zeros)
    image, boxes, scores = read_folder(folder / expected["dt"])
    return truth, Detections(image, boxes, np.zeros(len(image), int), scores), expected


@pytest.mark.parametrize("iou", ["0.1", "0.3", "0.5", "0.75"])
@pytest.mark.parametrize("rule", ["every_point", "eleven_point"])
def test_published_numbers(oracle, rule, iou):
    """review_object_detection_metrics, tests/test_eval_pascal.py, to the digits printed there."""
    truth, detections, expected = oracle
    result = evaluate_voc(
        truth, detections, ["object"], iou=float(iou), eleven_point=rule == "eleven_point", plus_one=True
    )
    assert result.summary()["mAP"] == pytest.approx(expected[rule][iou], abs=2e-10)


def slow_voc(truth, detections, label, iou, eleven_point, plus_one):
    """The devkit's loop for one category."""
    pixel = float(plus_one)
    rows = [d for d in range(len(detections)) if detections.labels[d] == label]
    rows.sort(key=lambda d: (-detections.scores[d], truth.image_ids[detections.image[d]], d))
    void = truth.difficult | truth.crowd
    positives = int(((truth.labels == label) & ~void).sum())
    if not positives:
        return -1.0
    taken, hits = set(), []
    for d in rows:
        best, best_overlap = None, 0.0
        for k in range(len(truth.labels)):
            if truth.labels[k] != label or truth.image[k] != detections.image[d]:
                continue
            a, b = truth.boxes[k], detections.boxes[d]
            w = min(a[2], b[2]) - max(a[0], b[0]) + pixel
            h = min(a[3], b[3]) - max(a[1], b[1]) + pixel
            if w <= 0 or h <= 0:
                continue
            sizes = [(x[2] - x[0] + pixel) * (x[3] - x[1] + pixel) for x in (a, b)]
            overlap = w * h / (sizes[0] + sizes[1] - w * h)
            if overlap > best_overlap:
                best, best_overlap = k, overlap
        if best is None or best_overlap < iou:
            hits.append(False)
        elif not void[best]:
            hits.append(best not in taken)
            taken.add(best)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    recall = [sum(hits[: i + 1]) / positives for i in range(len(hits))]
    if eleven_point:
        steps = np.linspace(0, 1, 11)
        return sum(max([p for p, r in zip(precision, recall, strict=True) if r >= step] or [0]) for step in steps) / 11
    area, last = 0.0, 0.0
    for i, r in enumerate(recall):
        area += (r - last) * max(precision[i:])
        last = r
    return area


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("eleven_point", [False, True])
@pytest.mark.parametrize("iou", [0.3, 0.5])
def test_equals_a_slow_loop(random_case, iou, eleven_point, plus_one):
    for seed, options in enumerate([{}, {"ties": True}, {"grid": 8, "ties": True}, {"objects": 0}, {"images": 1}] * 2):
        case = random_case(seed, **{"objects": 25, "count": 60, **options}, crowds=0.1, difficult=0.2)
        # The case's float64 box areas are those of xywh; the loop's are those of corners.
        truth = Truth(*(getattr(case.truth, name) for name in list(Truth.__dataclass_fields__)[:-1]))
        found = Detections(case.detections.image, case.detections.boxes, case.detections.labels, case.detections.scores)
        categories = [str(c) for c in range(case.num_classes)]
        result = evaluate_voc(truth, found, categories, iou=iou, eleven_point=eleven_point, plus_one=plus_one)
        expected = [slow_voc(truth, found, c, iou, eleven_point, plus_one) for c in range(case.num_classes)]
        np.testing.assert_allclose(result.ap, expected, rtol=0, atol=1e-12)


def test_no_second_choice():
    """The second detection overlaps the first object most, which is taken; COCO would give it the other one."""
    truth = Truth([1], [0, 0], [[0, 0, 10, 10], [3, 0, 13, 10]], [0, 0], [100, 100], [0, 0], [0, 0])
    found = Detections([0, 0], [[0, 0, 10, 10], [1, 0, 11, 10]], [0, 0], [0.9, 0.8])
    result = evaluate_voc(truth, found, ["a"])
    assert result.precision[0].tolist() == [1.0, 0.5]
    assert result.recall[0].tolist() == [0.5, 0.5]
    assert result.ap.tolist() == [0.5]


def test_nothing(no_truth, no_detections):
    found = Detections([0], [[0, 0, 5, 5]], [1], [0.5])
    for detections in (no_detections, found):
        result = evaluate_voc(no_truth(2), detections, ["a", "b"])
        assert result.summary() == {"mAP": -1.0}
        assert result.per_class()[1] == {"category": "b", "truths": 0, "AP": -1.0}


def test_wrong_overlap_is_refused(no_truth, no_detections):
    with pytest.raises(ValueError, match=r"iou must be in \(0, 1\], got 0"):
        evaluate_voc(no_truth(1), no_detections, ["a"], iou=0)
