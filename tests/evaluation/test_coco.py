"""COCO box AP against published numbers, pycocotools and cases small enough to do by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sightline.evaluation import Detections, Truth, evaluate_coco, read_coco_truth, read_results
from sightline.evaluation.pairs import box_overlap

STANDARD = (1, 10, 100)


def names(count):
    return [f"category {c}" for c in range(count)]


def test_published_numbers(real_data):
    """cocodataset/cocoapi results/val2014_fake_eval_res.txt, in full precision."""
    folder = real_data("map-oracles")
    case = json.loads((folder / "EXPECTED.json").read_text())["coco-fake100"]
    truth, categories, category_ids = read_coco_truth(folder / case["gt"])
    detections = read_results(folder / case["dt_bbox"], truth, category_ids)
    summary = evaluate_coco(truth, detections, categories).summary()
    assert list(summary) == case["keys"]
    np.testing.assert_allclose(list(summary.values()), case["bbox"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_dets", [STANDARD, (1, 2, 5), (3, 7), (1, 10, 300)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ties": True},
        {"grid": 8, "ties": True},  # equal overlaps, and overlaps of exactly one half
        {"grid": 1, "crowds": 0.4},
        {"crowds": 0.0, "num_classes": 1, "images": 1, "objects": 40, "count": 400},  # more than 100 in an image
        {"objects": 0},
        {"objects": 3, "num_classes": 6, "images": 9},  # categories and images without truth
        {"count": 1},
    ],
    ids=str,
)
def test_equals_pycocotools(random_case, reference, options, max_dets):
    """https://github.com/cocodataset/cocoapi, the raw arrays, on random sets."""
    for seed in range(6):
        case = random_case(seed, **options)
        result = evaluate_coco(case.truth, case.detections, names(case.num_classes), max_dets=max_dets)
        precision, recall, stats = reference(case, max_dets)
        np.testing.assert_allclose(result.precision, precision, rtol=0, atol=1e-12)
        np.testing.assert_allclose(result.recall, recall, rtol=0, atol=1e-12)
        if len(stats):
            np.testing.assert_allclose(list(result.summary().values()), stats, rtol=0, atol=1e-12)


def test_headline_uses_the_largest_limit(random_case, reference):
    """Where pycocotools gives -1 for AP; and the standard limits give the standard keys."""
    case = random_case(1, images=1, objects=40, num_classes=1, count=500)
    result = evaluate_coco(case.truth, case.detections, ["a"], max_dets=(300, 1, 10))
    summary = result.summary()
    assert list(summary)[6:9] == ["AR1", "AR10", "AR300"]
    precision, recall, _ = reference(case, (1, 10, 300))
    assert summary["AP"] == pytest.approx(precision[..., 0, 2].mean(), abs=1e-12)
    assert summary["AR300"] == pytest.approx(recall[..., 0, 2].mean(), abs=1e-12)
    assert summary["AR300"] > summary["AR10"] > summary["AR1"]
    # The number in a table's line is the limit in force.
    assert "AR300" in result.table()
    assert result.table().count("max dets  300") == 10


def test_per_class_means_are_the_headline(random_case):
    case = random_case(3, num_classes=4, objects=60)
    result = evaluate_coco(case.truth, case.detections, names(4))
    rows = result.per_class()
    assert [row["category"] for row in rows] == names(4)
    for key in ("AP", "AP50"):
        assert np.mean([row[key] for row in rows]) == pytest.approx(result.summary()[key])
    assert np.mean([row["AR"] for row in rows]) == pytest.approx(result.summary()["AR100"])
    assert json.loads(json.dumps(result.to_dict()))["summary"] == result.summary()


def hand_case():
    """Two objects and a crowd in image 7, none in image 3."""
    truth = Truth(
        [7, 3], [0, 0, 0], [[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 90, 90]], [0, 0, 0], [100, 100, 1600],
        [False, False, True], [False] * 3,
    )  # fmt: skip
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [55, 55, 60, 60], [60, 60, 65, 65], [20, 0, 30, 6], [0, 0, 5, 5]]
    detections = Detections([0, 0, 0, 0, 0, 1], boxes, [0] * 6, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    return truth, detections


def test_what_each_detection_found():
    result = evaluate_coco(*hand_case(), ["a"])
    assert result.matched.tolist() == [0, -1, 2, 2, 1, -1]  # the second is too late, the crowd is found twice
    assert result.ignored.tolist() == [False, False, True, True, False, False]
    assert result.true_positive.tolist() == [True, False, False, False, True, False]
    assert result.positives[0].tolist() == [2, 2, 0, 0]
    # At IoU 0.5 the ranking is right, wrong, right, wrong, crowd left out: precision 1 up to recall 1/2, then 2/3.
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert result.summary()["AP50"] == pytest.approx(expected, abs=1e-12)
    assert result.summary()["AR100"] == pytest.approx((3 * 1 + 7 * 0.5) / 10)  # the second object overlaps by 0.6
    assert result.summary()["APm"] == -1.0


def test_detections_beyond_the_limit_are_not_considered():
    truth, detections = hand_case()
    result = evaluate_coco(truth, detections, ["a"], max_dets=(2,))
    assert result.considered.tolist() == [True, True, False, False, False, True]
    assert result.matched.tolist() == [0, -1, -1, -1, -1, -1]


def test_order_of_detections_does_not_matter(random_case):
    case = random_case(5, objects=50, count=300)
    result = evaluate_coco(case.truth, case.detections, names(case.num_classes))
    order = np.random.default_rng(0).permutation(len(case.detections))
    shuffled = evaluate_coco(case.truth, case.detections.select(order), names(case.num_classes))
    np.testing.assert_array_equal(shuffled.precision, result.precision)
    np.testing.assert_array_equal(shuffled.matched, result.matched[order])


def test_inputs_are_not_changed(random_case):
    case = random_case(2, objects=20, count=50)
    before = [column.copy() for column in (case.detections.boxes, case.detections.scores, case.truth.boxes)]
    evaluate_coco(case.truth, case.detections, names(case.num_classes))
    for old, new in zip(before, (case.detections.boxes, case.detections.scores, case.truth.boxes), strict=True):
        np.testing.assert_array_equal(old, new)


def test_perfect_detections_score_one(random_case):
    case = random_case(4, objects=30, crowds=0.0)
    truth = replace(case.truth, area=case.truth.box_area)
    found = Detections(truth.image, truth.boxes, truth.labels, np.linspace(0.1, 0.9, 30), truth.box_area)
    summary = evaluate_coco(truth, found, names(case.num_classes)).summary()
    assert summary["AP"] == pytest.approx(1)
    assert summary["AR100"] == 1


@pytest.mark.parametrize("images", [0, 3])
def test_nothing_at_all(no_truth, no_detections, images):
    summary = evaluate_coco(no_truth(images), no_detections, ["a", "b"]).summary()
    assert set(summary.values()) == {-1.0}


def test_detections_without_truth(no_truth):
    found = Detections([0, 1], [[0, 0, 5, 5], [1, 1, 4, 4]], [0, 1], [0.5, 0.6])
    result = evaluate_coco(no_truth(2), found, ["a", "b"])
    assert set(result.summary().values()) == {-1.0}
    assert result.matched.tolist() == [-1, -1]


def test_truth_without_detections(no_detections):
    truth, _ = hand_case()
    summary = evaluate_coco(truth, no_detections, ["a"]).summary()
    assert summary["AP"] == summary["AR100"] == summary["APs"] == 0.0
    assert summary["APl"] == -1.0


def test_another_overlap_can_be_given():
    """As masks will: here the overlap of boxes with every second detection blind."""
    truth, detections = hand_case()
    boxes = box_overlap(truth, detections)
    result = evaluate_coco(truth, detections, ["a"], overlap=lambda d, k: np.where(d % 2, 0.0, boxes(d, k)))
    assert result.matched.tolist() == [0, -1, 2, -1, 1, -1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 0, 0, 0, 0, 3]}, "label 3 is outside 0..0"),
        ({"image": [0, 0, 0, 0, 0, 2]}, "row 0..1"),
    ],
    ids=["label", "image"],
)
def test_wrong_rows_are_refused(change, message):
    truth, detections = hand_case()
    with pytest.raises(ValueError, match=message):
        evaluate_coco(truth, replace(detections, **change), ["a"])


def test_wrong_limits_are_refused():
    with pytest.raises(ValueError, match="max_dets must be positive"):
        evaluate_coco(*hand_case(), ["a"], max_dets=(0, 10))


def test_crowded_scene_in_chunks(random_case, monkeypatch):
    """Pairs are made in chunks; a chunk's size must not show."""
    case = random_case(7, images=2, objects=60, count=300, num_classes=1)
    whole = evaluate_coco(case.truth, case.detections, ["a"])
    monkeypatch.setattr("sightline.evaluation.pairs.CHUNK", 7)
    np.testing.assert_array_equal(evaluate_coco(case.truth, case.detections, ["a"]).precision, whole.precision)
