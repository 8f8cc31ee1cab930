"""Random truth and detections, and pycocotools' numbers for them."""

import contextlib
import io
from typing import NamedTuple

import numpy as np
import pytest

from sightline.evaluation import Detections, Truth


class Case(NamedTuple):
    """A random set, with boxes as xywh beside the columns, as COCO's files hold them."""

    truth: Truth
    detections: Detections
    true_xywh: np.ndarray
    found_xywh: np.ndarray
    num_classes: int


def corners(xywh):
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])


def make_case(
    seed, *, images=None, objects=None, count=None, num_classes=None, grid=None, ties=False, crowds=0.1, difficult=0.0
):
    """Objects and detections, most of them near an object; on a grid many overlaps are equal, or exactly one half."""
    rng = np.random.default_rng(seed)
    images = images or int(rng.integers(1, 8))
    num_classes = num_classes or int(rng.integers(1, 5))
    objects = int(rng.integers(0, 60)) if objects is None else objects
    count = int(rng.integers(1, 300)) if count is None else count

    def rounded(boxes):
        return np.maximum(np.round(boxes / grid) * grid, [0, 0, grid, grid]) if grid else boxes

    true = rounded(np.hstack([rng.uniform(0, 140, (objects, 2)), rng.uniform(2, 120, (objects, 2))]))
    found = np.hstack([rng.uniform(0, 140, (count, 2)), rng.uniform(2, 120, (count, 2))])
    image, labels = np.sort(rng.integers(0, images, objects)), rng.integers(0, num_classes, objects)
    found_image, found_labels = rng.integers(0, images, count), rng.integers(0, num_classes, count)
    if objects:
        source, near = rng.integers(0, objects, count), rng.random(count) < 0.8
        jitter = true[source] * rng.uniform(0.8, 1.25, (count, 4))
        found = np.where(near[:, None], jitter, found)
        found_image = np.where(near, image[source], found_image)
        found_labels = np.where(near & (rng.random(count) < 0.9), labels[source], found_labels)
    found = rounded(found)
    scores = rng.random(count)
    box_area = true[:, 2] * true[:, 3]
    truth = Truth(
        rng.permutation(images * 3)[:images] + 1,  # ids in no order
        image,
        corners(true),
        labels,
        np.where(rng.random(objects) < 0.5, box_area, rng.uniform(0, 15_000, objects)),
        rng.random(objects) < crowds,
        rng.random(objects) < difficult,
        box_area,
    )
    scores = np.round(scores, 1) if ties else scores
    detections = Detections(found_image, corners(found), found_labels, scores, found[:, 2] * found[:, 3])
    return Case(truth, detections, true, found, num_classes)


def pycocotools_scores(case, max_dets):
    """(precision, recall) as pycocotools gives them: (T, R, C, A, M), (T, C, A, M)."""
    coco_module, eval_module = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    truth, detections = case.truth, case.detections
    coco = coco_module.COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": int(i)} for i in truth.image_ids],
        "categories": [{"id": c + 1, "name": str(c)} for c in range(case.num_classes)],
        "annotations": [
            {
                "id": k + 1,
                "image_id": int(truth.image_ids[truth.image[k]]),
                "category_id": int(truth.labels[k]) + 1,
                "bbox": case.true_xywh[k].tolist(),
                "area": float(truth.area[k]),
                "iscrowd": int(truth.crowd[k]),
            }
            for k in range(len(truth.labels))
        ],
    }
    results = [
        {
            "image_id": int(truth.image_ids[detections.image[d]]),
            "category_id": int(detections.labels[d]) + 1,
            "bbox": case.found_xywh[d].tolist(),
            "score": float(detections.scores[d]),
        }
        for d in range(len(detections))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        scorer = eval_module.COCOeval(coco, coco.loadRes(results), "bbox")
        scorer.params.maxDets = list(max_dets)
        scorer.evaluate()
        scorer.accumulate()
        if tuple(max_dets) == (1, 10, 100):
            scorer.summarize()
    return scorer.eval["precision"], scorer.eval["recall"], scorer.stats  # no stats for other limits


@pytest.fixture
def random_case():
    return make_case


@pytest.fixture
def reference():
    return pycocotools_scores


@pytest.fixture
def no_truth():
    """A function from a count of images to a truth without objects."""

    def make(images):
        empty = np.zeros(0, int)
        return Truth(np.arange(images) + 1, empty, np.zeros((0, 4)), empty, np.zeros(0), empty, empty)

    return make


@pytest.fixture
def no_detections():
    return Detections(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
