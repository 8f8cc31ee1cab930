"""Times COCO mask AP: ours beside pycocotools and faster-coco-eval, in one run and on the same blobs.

    python benchmarks/mask_ap.py --images 5000 --objects 36000 --detections 100000

Each scorer starts from what its user holds after validation: ours from columns, the peers from the list of records with
COCO's strings that their `loadRes` takes. "score" leaves that loading out and times evaluate, accumulate and summarize
alone; "from strings" is ours from the peers' records.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sightline.datasets.mask_encoding import from_coco
from sightline.datasets.run_lengths import RunLengths
from sightline.evaluation import Detections, Truth, evaluate_masks

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
HEIGHT, WIDTH = 480, 640


def main() -> None:
    arguments = parse()
    truth, detections = synthetic(arguments)
    names = [f"category {c}" for c in range(arguments.categories)]
    dataset, records = coco_dataset(truth, names), coco_results(detections, truth)
    results = {"sightline": ours(truth, detections, names, arguments.repeat)}
    results["... from strings"] = from_strings(truth, detections, names, dataset, records)
    for module, class_name in (("faster_coco_eval", "COCOeval_faster"), ("pycocotools", "COCOeval")):
        if module not in arguments.skip:
            results[module] = peer(module, class_name, dataset, records, arguments.repeat)
    print_table(results, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000, help="true objects")
    parser.add_argument("--detections", type=int, default=100_000)
    parser.add_argument("--categories", type=int, default=80)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the fastest is shown")
    parser.add_argument("--skip", nargs="*", default=[], choices=["faster_coco_eval", "pycocotools"])
    return parser.parse_args()


def synthetic(arguments: argparse.Namespace) -> tuple[Truth, Detections]:
    """Like a trained network's output: half of the detections lie on objects, mostly of the right category."""
    rng = np.random.default_rng(0)
    objects, count, categories = arguments.objects, arguments.detections, arguments.categories
    image = np.sort(rng.integers(0, arguments.images, objects))
    labels = (categories * rng.random(objects) ** 3).astype(int)  # long-tailed
    shapes = random_shapes(rng, objects)
    source, near = rng.integers(0, objects, count), rng.random(count) < 0.5
    found_shapes = np.where(near[:, None], shapes[source], random_shapes(rng, count))
    found_shapes[:, :2] += near[:, None] * rng.normal(0, 0.06, (count, 2)) * found_shapes[:, 2:4]
    found_shapes[:, 2:4] *= np.where(near, np.exp(rng.normal(0, 0.12, count)), 1)[:, None]
    same = near & (rng.random(count) < 0.8)
    scores = (rng.beta(1, 6, count) + same * rng.beta(2, 2, count) * 0.7).clip(0, 1)
    other = (categories * rng.random(count) ** 3).astype(int)
    found_image = np.where(near, image[source], rng.integers(0, arguments.images, count))
    true_masks, found_masks = blobs(shapes), blobs(found_shapes)
    truth = Truth(
        np.arange(1, arguments.images + 1), image, true_masks.boxes, labels, true_masks.areas,
        rng.random(objects) < 0.01, np.zeros(objects, bool), masks=true_masks,
    )  # fmt: skip
    labels = np.where(same, labels[source], other)
    found = Detections(found_image, found_masks.boxes, labels, scores, masks=found_masks)
    return truth, found.select(np.argsort(found_image, kind="stable"))


def random_shapes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 10): centre, radii, and the size and phase of three waves along the rim."""
    radii = np.exp(rng.normal(3.5, 0.8, (count, 2))).clip(2, 200)
    centre = rng.uniform((0, 0), (WIDTH, HEIGHT), (count, 2))
    return np.hstack([centre, radii, rng.uniform(0, 0.15, (count, 3)), rng.uniform(0, 2 * np.pi, (count, 3))])


def blobs(shapes: np.ndarray) -> RunLengths:
    """The masks of rims of 64 corners."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = sum(shapes[:, k + 4, None] * np.sin((k + 2) * angle + shapes[:, k + 7, None]) for k in range(3))
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * (1 + waves)[..., None]
    corners = (shapes[:, None, :2] + rim * shapes[:, None, 2:4]).reshape(len(shapes), -1)
    return from_coco([[one] for one in corners], np.tile((HEIGHT, WIDTH), (len(shapes), 1)))


Times = tuple[float, float, list[float]]  # from what the user holds to numbers, without loading, the twelve numbers


def ours(truth: Truth, detections: Detections, names: list[str], repeat: int) -> Times:
    def fresh() -> dict[str, float]:  # nothing remembered of the run before
        copies = [replace(record, masks=replace(record.masks)) for record in (truth, detections)]
        return evaluate_masks(*copies, names).summary()

    seconds = min(timed(fresh)[0] for _ in range(repeat))
    return seconds, seconds, [fresh()[key] for key in KEYS]


def from_strings(truth: Truth, detections: Detections, names: list[str], dataset: dict, records: list[dict]) -> Times:
    def run() -> dict[str, float]:
        true, found = (
            replace(record, masks=from_coco([one["segmentation"] for one in rows], record.masks.sizes))
            for record, rows in ((truth, dataset["annotations"]), (detections, records))
        )
        return evaluate_masks(true, found, names).summary()

    seconds, summary = timed(run)
    return seconds, seconds, [summary[key] for key in KEYS]


def peer(module: str, class_name: str, dataset: dict, records: list[dict], repeat: int) -> Times:
    names = {"pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"), "faster_coco_eval": ("faster_coco_eval",) * 2}
    coco_class = importlib.import_module(names[module][0]).COCO
    scorer_class = getattr(importlib.import_module(names[module][1]), class_name)
    best = (np.inf, np.inf)
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(repeat):
            truth = coco_class()
            truth.dataset = copy.deepcopy(dataset)
            truth.createIndex()
            fresh = copy.deepcopy(records)  # loadRes writes into them
            loading, found = timed(lambda truth=truth, fresh=fresh: truth.loadRes(fresh))
            scorer = scorer_class(truth, found, "segm")
            scoring, _ = timed(lambda scorer=scorer: (scorer.evaluate(), scorer.accumulate(), scorer.summarize()))
            best = min(best[0], loading + scoring), min(best[1], scoring)
    return *best, [float(value) for value in scorer.stats[:12]]


def timed(function: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def coco_dataset(truth: Truth, names: list[str]) -> dict:
    image_ids, boxes = truth.image_ids[truth.image].tolist(), as_xywh(truth.boxes)
    annotations = [
        {
            "id": row + 1, "image_id": image_ids[row], "category_id": int(truth.labels[row]) + 1, "bbox": boxes[row],
            "area": float(truth.area[row]), "iscrowd": int(truth.crowd[row]), "segmentation": segmentation,
        }
        for row, segmentation in enumerate(truth.masks.to_coco())
    ]  # fmt: skip
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(names)]
    images = [{"id": int(i), "height": HEIGHT, "width": WIDTH} for i in truth.image_ids]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def coco_results(detections: Detections, truth: Truth) -> list[dict]:
    image_ids, category_ids = truth.image_ids[detections.image].tolist(), (detections.labels + 1).tolist()
    columns = zip(image_ids, category_ids, detections.masks.to_coco(), detections.scores.tolist(), strict=True)
    return [{"image_id": i, "category_id": c, "segmentation": mask, "score": score} for i, c, mask, score in columns]


def as_xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist()


def print_table(results: dict[str, Times], arguments: argparse.Namespace) -> None:
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
