"""Times COCO box AP: ours beside pycocotools and faster-coco-eval, in one run and on the same detections.

    python benchmarks/coco_ap.py --images 5000 --detections 250000

Each scorer starts from what its user holds after validation: ours from columns of numbers, the peers from the list of
records that their `loadRes` takes. "score" leaves that loading out and times evaluate, accumulate and summarize alone.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import time
from collections.abc import Callable

import numpy as np

from sightline.evaluation import Detections, Truth, evaluate_coco

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def main() -> None:
    arguments = parse()
    truth, detections = synthetic(arguments.images, arguments.objects, arguments.detections, arguments.categories)
    names = [f"category {c}" for c in range(arguments.categories)]
    results = {"sightline": ours(truth, detections, names, arguments.repeat)}
    dataset, records = coco_dataset(truth, names), coco_results(detections, truth)
    for module, class_name in (("faster_coco_eval", "COCOeval_faster"), ("pycocotools", "COCOeval")):
        if module not in arguments.skip:
            results[module] = peer(module, class_name, dataset, records, arguments.repeat)
    print_table(results, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000, help="true objects")
    parser.add_argument("--detections", type=int, default=250_000)
    parser.add_argument("--categories", type=int, default=80)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the fastest is shown")
    parser.add_argument("--skip", nargs="*", default=[], choices=["faster_coco_eval", "pycocotools"])
    return parser.parse_args()


def synthetic(images: int, objects: int, count: int, categories: int) -> tuple[Truth, Detections]:
    """Like a trained detector's output: half of the detections lie around objects, mostly of the right category."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(4.2, 0.9, (objects, 2))).clip(4, 600)
    corner = rng.uniform(0, 640 - size.clip(max=639))
    image = np.sort(rng.integers(0, images, objects))
    labels = (categories * rng.random(objects) ** 3).astype(int)  # long-tailed
    truth = Truth(
        np.arange(1, images + 1), image, np.hstack([corner, corner + size]), labels, size.prod(1),
        rng.random(objects) < 0.01, np.zeros(objects, bool),
    )  # fmt: skip

    source = rng.integers(0, objects, count)
    near = rng.random(count) < 0.5
    noise = rng.normal(0, 0.12, (count, 4)) * np.tile(size[source], 2)
    corner, extent = rng.uniform(0, 500, (count, 2)), np.exp(rng.normal(4.2, 0.9, (count, 2))).clip(4, 600)
    boxes = np.where(near[:, None], truth.boxes[source] + noise, np.hstack([corner, corner + extent]))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    same = near & (rng.random(count) < 0.8)
    scores = (rng.beta(1, 6, count) + same * rng.beta(2, 2, count) * 0.7).clip(0, 1)
    other = (categories * rng.random(count) ** 3).astype(int)
    found_image = np.where(near, image[source], rng.integers(0, images, count))
    by_image = np.argsort(found_image, kind="stable")
    columns = (found_image, boxes.round(2), np.where(same, labels[source], other), scores)
    return truth, Detections(*(column[by_image] for column in columns))


def ours(truth: Truth, detections: Detections, names: list[str], repeat: int) -> tuple[float, float, list[float]]:
    seconds = [timed(lambda: evaluate_coco(truth, detections, names).summary())[0] for _ in range(repeat)]
    summary = evaluate_coco(truth, detections, names).summary()
    return min(seconds), min(seconds), [summary[key] for key in KEYS]


def peer(
    module: str, class_name: str, dataset: dict, records: list[dict], repeat: int
) -> tuple[float, float, list[float]]:
    """(seconds from records to numbers, seconds without loading, the twelve numbers)."""
    names = {"pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"), "faster_coco_eval": ("faster_coco_eval",) * 2}
    coco_class = importlib.import_module(names[module][0]).COCO
    scorer_class = getattr(importlib.import_module(names[module][1]), class_name)
    best = (np.inf, np.inf)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_class()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        for _ in range(repeat):
            fresh = copy.deepcopy(records)  # loadRes writes into them
            loading, found = timed(lambda fresh=fresh: truth.loadRes(fresh))
            scorer = scorer_class(truth, found, "bbox")
            scoring, _ = timed(lambda scorer=scorer: (scorer.evaluate(), scorer.accumulate(), scorer.summarize()))
            best = min(best[0], loading + scoring), min(best[1], scoring)
    return *best, [float(value) for value in scorer.stats[:12]]


def timed(function: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def coco_dataset(truth: Truth, names: list[str]) -> dict:
    corners = np.hstack([truth.boxes[:, :2], truth.boxes[:, 2:] - truth.boxes[:, :2]]).tolist()
    image_ids = truth.image_ids[truth.image].tolist()
    annotations = [
        {
            "id": row + 1, "image_id": image_ids[row], "category_id": int(truth.labels[row]) + 1,
            "bbox": corners[row], "area": float(truth.area[row]), "iscrowd": int(truth.crowd[row]),
        }
        for row in range(len(corners))
    ]  # fmt: skip
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(names)]
    images = [{"id": int(i)} for i in truth.image_ids]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def coco_results(detections: Detections, truth: Truth) -> list[dict]:
    corners = np.hstack([detections.boxes[:, :2], detections.boxes[:, 2:] - detections.boxes[:, :2]]).tolist()
    image_ids, category_ids = truth.image_ids[detections.image].tolist(), (detections.labels + 1).tolist()
    columns = zip(image_ids, category_ids, corners, detections.scores.tolist(), strict=True)
    return [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in columns]


def print_table(results: dict[str, tuple[float, float, list[float]]], arguments: argparse.Namespace) -> None:
    _, our_score, our_numbers = results["sightline"]
    print(
        f"{arguments.images} images, {arguments.objects} objects, {arguments.detections} detections, "
        f"{arguments.categories} categories; fastest of {arguments.repeat}"
    )
    print(f"{'':<18}{'total s':>9}{'ratio':>8}{'score s':>9}{'ratio':>8}{'AP':>9}{'largest difference':>21}")
    for name, (total, score, numbers) in results.items():
        times = f"{total:9.2f}{total / our_score:8.1f}{score:9.2f}{score / our_score:8.1f}"
        print(f"{name:<18}{times}{numbers[0]:9.4f}{np.abs(np.subtract(numbers, our_numbers)).max():21.1e}")


if __name__ == "__main__":
    main()
