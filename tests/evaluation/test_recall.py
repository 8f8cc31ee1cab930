"""Recall of proposals: against a slow loop, by hand, and what must always hold."""

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.proposals import Boxes, Regions
from sightline.datasets.table import Table
from sightline.evaluation.coco import THRESHOLDS
from sightline.evaluation.recall import NEVER, cover, proposal_recall
from sightline.evaluation.recall_plot import plot_recall


def table_of(pictures, *, labels=None, categories=("a", "b", "c"), crowd=(), difficult=()):
    """Pictures of 100 x 100 pixels with these boxes each; `crowd` and `difficult` are rows of objects."""
    counts = [len(boxes) for boxes in pictures]
    total = sum(counts)
    boxes = np.concatenate([np.zeros((0, 4)), *(np.reshape(boxes, (-1, 4)) for boxes in pictures)]).astype(np.float32)
    return Table(
        categories=list(categories),
        paths=[f"{i}.jpg" for i in range(len(pictures))],
        image_ids=np.arange(1, len(pictures) + 1),
        sizes=np.full((len(pictures), 2), 100),
        image=np.repeat(np.arange(len(pictures)), counts),
        boxes=boxes,
        labels=np.zeros(total, np.int64) if labels is None else np.array(labels),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1).astype(np.float64),
        crowd=np.isin(np.arange(total), crowd),
        difficult=np.isin(np.arange(total), difficult),
        category_ids=np.arange(1, len(categories) + 1),
    )


def regions_of(pictures):
    boxes = [np.reshape(boxes, (-1, 4)).astype(np.float32) for boxes in pictures]
    return Regions.of([Boxes(each, np.arange(len(each), 0, -1, np.float32)) for each in boxes])


def random_boxes(rng, count):
    corners = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 40, (count, 2))], axis=1).astype(np.float32)


def random_case(seed, images=6):
    """A table with crowds and difficult objects, and proposals; some pictures lack the one or the other."""
    rng = np.random.default_rng(seed)
    truth = [random_boxes(rng, rng.integers(0, 5)) for _ in range(images)]
    total = sum(map(len, truth))
    flags = {"crowd": np.flatnonzero(rng.random(total) < 0.15), "difficult": np.flatnonzero(rng.random(total) < 0.15)}
    proposals = [random_boxes(rng, rng.integers(0, 120)) for _ in range(images)]
    for boxes, own in zip(proposals, truth, strict=True):  # and some that are near
        near = rng.random(len(boxes)) < 0.2 * (len(own) > 0)
        chosen = own[rng.integers(0, max(1, len(own)), near.sum())]
        boxes[near] = chosen + rng.uniform(-2, 2, chosen.shape)
    return regions_of(proposals), table_of(truth, labels=rng.integers(0, 3, total), **flags)


def slow_iou(one, other):
    (a, b, c, d), (e, f, g, h) = map(float, one), map(float, other)
    both = max(0.0, min(c, g) - max(a, e)) * max(0.0, min(d, h) - max(b, f))
    return both / ((c - a) * (d - b) + (g - e) * (h - f) - both)


def counted(table):
    return [k for k in range(len(table.image)) if not table.crowd[k] and not table.difficult[k]]


def slow_recall(regions, table, count, iou):
    found = [
        any(slow_iou(table.boxes[k], box) >= iou for box in regions[table.image[k]].boxes[:count])
        for k in counted(table)
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(6))
def test_against_a_slow_loop(seed):
    regions, table = random_case(seed)
    counts = [1, 2, 5, 30, 1000]
    coverage = cover(regions, table)
    expected = [[slow_recall(regions, table, count, iou) for count in counts] for iou in THRESHOLDS]
    assert coverage.recall(counts).tolist() == expected
    assert coverage.average_recall(counts) == pytest.approx(np.mean(expected, axis=0))
    assert proposal_recall(regions, table, counts, iou=0.7).tolist() == [
        slow_recall(regions, table, n, 0.7) for n in counts
    ]
    best = {
        k: max([slow_iou(table.boxes[k], box) for box in regions[table.image[k]].boxes], default=0.0)
        for k in counted(table)
    }
    assert coverage.overlaps.tolist() == list(best.values())
    of_category = [[best[k] for k in best if table.labels[k] == label] for label in range(3)]
    assert coverage.mabo() == pytest.approx(np.mean([np.mean(values) for values in of_category if values]))


TEN = (0, 0, 10, 10)
CASES = {  # truth, proposals, recall of the best 1, 2 and 3
    "half is enough": ([TEN], [(0, 0, 10, 5)], (1, 1, 1)),
    "a little less is not": ([TEN], [(0, 0, 10, 4.99)], (0, 0, 0)),
    "half, from outside": ([TEN], [(0, 0, 10, 20)], (1, 1, 1)),
    "the second finds it": ([TEN], [(50, 50, 60, 60), TEN, TEN], (0, 1, 1)),
    "one finds two": ([TEN, (0, 0, 10, 9)], [TEN], (1, 1, 1)),
    "two find two": ([TEN, (50, 50, 60, 60)], [TEN, (0, 0, 5, 5), (50, 50, 60, 60)], (0.5, 0.5, 1)),
    "equal ones count each": ([TEN], [(0, 0, 9, 4), (0, 0, 9, 4), TEN], (0, 0, 1)),
    "touching is no overlap": ([TEN], [(10, 0, 20, 10), (0, 10, 10, 20)], (0, 0, 0)),
    "none at all": ([TEN], [], (0, 0, 0)),
}


@pytest.mark.parametrize(("truth", "proposals", "expected"), CASES.values(), ids=CASES.keys())
def test_by_hand(truth, proposals, expected):
    found = proposal_recall(regions_of([proposals]), table_of([truth]), [1, 2, 3])
    assert found.tolist() == list(expected)


def test_every_threshold_is_met_exactly():
    """IoU of 50, 55 … 95 hundredths counts at that threshold."""
    proposals = [[(0, 0, 100, percent)] for percent in range(50, 100, 5)]
    coverage = cover(regions_of(proposals), table_of([[(0, 0, 100, 100)]] * 10))
    assert coverage.recall([1])[:, 0].tolist() == [(10 - t) / 10 for t in range(10)]


def test_a_picture_finds_nothing_of_another():
    table, regions = table_of([[TEN], [], [TEN]]), regions_of([[], [TEN], [TEN]])
    coverage = cover(regions, table)
    assert coverage.recall([1])[0].tolist() == [0.5]
    assert coverage.ranks[0].tolist() == [NEVER, 1]
    assert coverage.overlaps.tolist() == [0, 1]


def test_crowds_and_difficult_objects_are_left_out():
    far = (50, 50, 60, 60)
    table = table_of([[far, TEN, far]], crowd=[0], difficult=[2])
    coverage = cover(regions_of([[TEN]]), table)
    assert coverage.recall([1])[0].tolist() == [1]
    assert len(coverage.labels) == 1


def test_categories():
    far = (50, 50, 60, 60)
    table = table_of([[TEN, far, far, TEN]], labels=[0, 0, 2, 2])
    coverage = cover(regions_of([[far, (0, 0, 10, 8), (0, 0, 10, 3)]]), table)
    assert coverage.per_class(1)[0] == {
        "category": "a", "truths": 2, "recall": 0.5, "AR": 0.5, "ABO": pytest.approx(0.9)
    }  # fmt: skip
    assert coverage.per_class(2)[2]["AR"] == pytest.approx((1 + 0.7) / 2)  # IoU 0.8 is enough for 7 of 10 thresholds
    nothing = coverage.per_class(2)[1]
    assert nothing["truths"] == 0
    assert np.isnan([nothing["recall"], nothing["AR"], nothing["ABO"]]).all()
    assert coverage.mabo() == pytest.approx(0.9)


def test_nothing_to_find():
    coverage = cover(regions_of([[TEN], []]), table_of([[], []]))
    assert np.isnan(coverage.recall([1, 10])).all()
    assert np.isnan(coverage.mabo())
    empty = cover(regions_of([]), table_of([]))
    assert empty.recall([5]).shape == (10, 1)
    assert empty.longest == 0


@pytest.mark.parametrize("seed", range(4))
def test_what_always_holds(seed):
    regions, table = random_case(seed + 100)
    before = regions.boxes.copy(), table.boxes.copy()
    coverage = cover(regions, table)
    recall = coverage.recall([0, *range(1, 130)])
    assert (recall[:, 0] == 0).all()
    assert (np.diff(recall, axis=1) >= 0).all()  # rises with the number of proposals
    assert (np.diff(recall, axis=0) <= 0).all()  # falls with the IoU
    assert recall[:, -1].tolist() == [(coverage.overlaps >= iou).mean() for iou in THRESHOLDS]
    by_category = coverage.per_class(20)
    weights = [record["truths"] for record in by_category]
    known = [record["recall"] if record["truths"] else 0 for record in by_category]
    assert np.average(known, weights=weights) == pytest.approx(coverage.recall([20])[0, 0])
    np.testing.assert_array_equal(regions.boxes, before[0])
    np.testing.assert_array_equal(table.boxes, before[1])


def test_the_truth_as_proposals_finds_all():
    _, table = random_case(7)
    truth = [table.boxes[table.image == picture] for picture in range(len(table))]
    coverage = cover(regions_of(truth), table)
    assert (coverage.recall([5]) == 1).all()
    assert coverage.mabo() == 1
    assert (cover(regions_of(truth), table, ious=[1.0]).recall([5]) == 1).all()


@pytest.mark.parametrize("ious", [[], [0.0], [0.5, 1.1], [0.7, 0.5], [0.5, 0.5]], ids=str)
def test_thresholds_that_are_none(ious):
    with pytest.raises(ValueError, match="must ascend, above 0 and up to 1"):
        cover(regions_of([[TEN]]), table_of([[TEN]]), ious=ious)


def test_regions_of_other_pictures():
    with pytest.raises(ValueError, match="those of 1 pictures, got those of 2"):
        proposal_recall(regions_of([[TEN], []]), table_of([[TEN]]), [1])


def test_the_chart(tmp_path):
    regions, table = random_case(3)
    covered = {f"runs/a_name_so_long_that_it_is_cut/{i}/_best$.ckpt": cover(regions, table) for i in range(12)}
    covered["nothing"] = cover(regions_of([[]] * len(table)), table)
    plot_recall(covered, tmp_path / "curves.png", count=50)
    plot_recall({"no truth": cover(regions_of([[TEN]]), table_of([[]]))}, tmp_path / "empty.png")
    sizes = [Image.open(tmp_path / name).size for name in ("curves.png", "empty.png")]
    assert all(width > 1000 and height > 400 for width, height in sizes)
