"""COCO's mask AP: published numbers, pycocotools' raw arrays on random masks, and the overlap of masks by itself."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.datasets.mask_encoding import from_coco, from_windows
from sightline.datasets.run_lengths import RunLengths
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.evaluation import (
    DetectionCollector,
    Detections,
    ReportInputs,
    Truth,
    evaluate_coco,
    evaluate_instances,
    evaluate_masks,
    evaluate_regions,
    evaluate_voc,
    read_coco_truth,
    read_results,
    write_report,
    write_results,
)
from sightline.evaluation.mask_overlap import intersections, mask_overlap

SIZE = (70, 90)  # columns of more than one word
STANDARD = (1, 10, 100)


def blobs(rng, centres, radii):
    """Polygons of twelve corners, at times across the picture's border."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    rims = np.stack([np.cos(angles), np.sin(angles)], -1) * rng.uniform(0.7, 1.3, (len(centres), 12, 1))
    corners = (centres[:, None] + rims * radii[:, None]).reshape(len(centres), 24)
    return from_coco([[one] for one in corners.tolist()], np.tile(SIZE, (len(centres), 1)))


def make_case(seed, *, images=4, objects=30, count=150, num_classes=2, crowds=0.15, ties=False, empty=0.0):
    """Objects, and detections most of which lie near one."""
    rng = np.random.default_rng(seed)
    centres, radii = rng.uniform(0, SIZE[::-1], (objects, 2)), rng.uniform(3, 45, (objects, 2))
    image, labels = np.sort(rng.integers(0, images, objects)), rng.integers(0, num_classes, objects)
    masks = blobs(rng, centres, radii)
    truth = Truth(
        rng.permutation(images) + 5, image, masks.boxes, labels, masks.areas * rng.choice([1, 30], objects),
        rng.random(objects) < crowds, np.zeros(objects, bool), masks=masks, sizes=np.tile(SIZE, (images, 1)),
    )  # fmt: skip
    source = rng.integers(0, max(objects, 1), count)
    near = (rng.random(count) < 0.85) & (objects > 0)
    if objects:
        found_centres = np.where(near[:, None], centres[source], rng.uniform(0, SIZE[::-1], (count, 2)))
        found_radii = np.where(near[:, None], radii[source], rng.uniform(3, 45, (count, 2)))
        found_image = np.where(near, image[source], rng.integers(0, images, count))
        found_labels = np.where(near, labels[source], rng.integers(0, num_classes, count))
    else:
        found_centres, found_radii = rng.uniform(0, 90, (count, 2)), rng.uniform(3, 45, (count, 2))
        found_image, found_labels = rng.integers(0, images, count), rng.integers(0, num_classes, count)
    found_radii[rng.random(count) < empty] = 0
    scores = rng.random(count)
    masks = blobs(rng, found_centres + rng.normal(0, 1.5, (count, 2)), found_radii)
    found = Detections(found_image, masks.boxes, found_labels, scores.round(1) if ties else scores, masks=masks)
    return truth, found, [f"category {c}" for c in range(num_classes)]


def dataset(truth, names):
    """The truth as COCO's file has it."""
    columns = zip(truth.image_ids[truth.image].tolist(), truth.labels.tolist(), truth.masks.to_coco(), strict=True)
    return {
        "info": {},
        "images": [{"id": int(i), "height": SIZE[0], "width": SIZE[1]} for i in truth.image_ids],
        "categories": [{"id": c + 1, "name": name} for c, name in enumerate(names)],
        "annotations": [
            {
                "id": k + 1, "image_id": image, "category_id": label + 1, "segmentation": mask,
                "bbox": [*truth.boxes[k, :2], *(truth.boxes[k, 2:] - truth.boxes[k, :2])],
                "area": float(truth.area[k]), "iscrowd": int(truth.crowd[k]),
            }
            for k, (image, label, mask) in enumerate(columns)
        ],
    }  # fmt: skip


def pycocotools_scores(truth, found, names, max_dets=STANDARD):
    coco_module, eval_module = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    coco = coco_module.COCO()
    coco.dataset = dataset(truth, names)
    columns = zip(
        truth.image_ids[found.image].tolist(), (found.labels + 1).tolist(), found.masks.to_coco(), found.scores.tolist(),
        strict=True,
    )  # fmt: skip
    results = [{"image_id": i, "category_id": c, "segmentation": mask, "score": score} for i, c, mask, score in columns]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        scorer = eval_module.COCOeval(coco, coco.loadRes(results), "segm")
        scorer.params.maxDets = list(max_dets)
        scorer.evaluate()
        scorer.accumulate()
        if tuple(max_dets) == STANDARD:
            scorer.summarize()
    return scorer.eval["precision"], scorer.eval["recall"], scorer.stats


def test_published_numbers(real_data, tmp_path):
    """cocodataset/cocoapi results/val2014_fake_eval_res.txt in full precision, and faster_coco_eval's polygons."""
    folder = real_data("map-oracles")
    expected = json.loads((folder / "EXPECTED.json").read_text())
    toy = json.loads((folder / "segm-toy" / "dt_dataset.json").read_text())
    keys = ("image_id", "category_id", "score", "segmentation")
    toy_path = tmp_path / "toy.json"
    toy_path.write_text(json.dumps([{key: row[key] for key in keys} for row in toy]))
    for name, results in (("coco-fake100", folder / expected["coco-fake100"]["dt_segm"]), ("segm-toy", toy_path)):
        truth, categories, category_ids = read_coco_truth(folder / expected[name]["gt"], masks=True)
        found = read_results(results, truth, category_ids, masks=True)
        summary = evaluate_masks(truth, found, categories).summary()
        np.testing.assert_allclose(list(summary.values()), expected[name]["segm"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_dets", [STANDARD, (1, 2, 5), (1, 10, 300)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ties": True, "empty": 0.2},
        {"crowds": 0.5},
        {"images": 1, "objects": 40, "count": 300, "num_classes": 1},
        {"objects": 0},
        {"objects": 3, "num_classes": 5, "images": 9},
        {"count": 1},
    ],
    ids=str,
)
def test_equals_pycocotools(options, max_dets):
    """https://github.com/cocodataset/cocoapi, the raw arrays."""
    for seed in range(3):
        case = make_case(seed, **options)
        result = evaluate_masks(*case, max_dets=max_dets)
        precision, recall, stats = pycocotools_scores(*case, max_dets)
        np.testing.assert_allclose(result.precision, precision, rtol=0, atol=1e-12)
        np.testing.assert_allclose(result.recall, recall, rtol=0, atol=1e-12)
        if len(stats):
            np.testing.assert_allclose(list(result.summary().values()), stats, rtol=0, atol=1e-12)


def random_pairs(seed, count=300):
    """Masks of every density, in pictures whose columns end within a word, at its end and behind it; pairs of one size."""
    rng = np.random.default_rng(seed)
    shapes = rng.choice([1, 5, 63, 64, 65, 128, 130], count), rng.integers(1, 9, count)
    sizes = np.stack(shapes, axis=1)
    sides = [
        [
            (rng.random(size) < rng.choice([0, 0.2, 0.8, 1])) & (np.arange(size[0])[:, None] >= rng.integers(size[0]))
            for size in sizes
        ]
        for _ in range(2)
    ]
    return [from_windows(side, np.zeros((count, 2)), sizes) for side in sides], sides


def test_shared_pixels_are_counted():
    (one, other), (first, second) = random_pairs(0)
    rows = np.random.default_rng(0).permutation(300)
    expected = [int((first[row] & second[row]).sum()) for row in rows]
    assert intersections(one, other, rows, rows).tolist() == expected
    assert len(intersections(one, other, rows[:0], rows[:0])) == 0


def test_portions_do_not_show(monkeypatch):
    (one, other), _ = random_pairs(1)
    rows = np.arange(300)
    whole = intersections(one, other, rows, rows)
    monkeypatch.setattr("sightline.evaluation.mask_overlap._COLUMNS", 3)
    np.testing.assert_array_equal(intersections(one, other, rows, rows), whole)


def test_without_numpys_own_count_of_bits(monkeypatch):
    (one, other), _ = random_pairs(2)
    rows = np.arange(300)
    whole = intersections(one, other, rows, rows)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    np.testing.assert_array_equal(intersections(one, other, rows, rows), whole)


def test_overlap_is_cocos():
    mask = pytest.importorskip("pycocotools.mask")
    truth, found, _ = make_case(0, images=1, objects=25, count=60, empty=0.1)
    expected = mask.iou(found.masks.to_coco(), truth.masks.to_coco(), truth.crowd.tolist())
    rows, others = np.divmod(np.arange(60 * 25), 25)
    every = mask_overlap(truth, found)(rows, others).reshape(60, 25)
    np.testing.assert_array_equal(every, expected)
    some = mask_overlap(truth, found, at_least=0.5)(rows, others).reshape(60, 25)
    np.testing.assert_array_equal(some[expected >= 0.5], expected[expected >= 0.5])
    assert (some <= expected).all()
    assert (some == 0).sum() > (expected == 0).sum()  # some were not counted


def test_boxes_and_masks_stand_side_by_side():
    case = make_case(3)
    result = evaluate_instances(*case, max_dets=(1, 10, 300))
    boxes, masks = (score(*case, max_dets=(1, 10, 300)).summary() for score in (evaluate_coco, evaluate_masks))
    assert result.summary() == boxes | {f"mask_{name}": value for name, value in masks.items()}
    assert list(result.summary())[:3] + list(result.summary())[12:15] == [
        "AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75",
    ]  # fmt: skip
    assert result.summary()["AP"] != result.summary()["mask_AP"]
    assert f"{masks['AP']:.3f}" in result.table().partition("Masks")[2]
    assert f"{boxes['AP']:.3f}" in result.table().partition("Masks")[0]
    row = result.per_class()[1]
    assert row["category"] == "category 1"
    assert (row["AP50"], row["mask_AP50"]) == tuple(
        score(*case, max_dets=(1, 10, 300)).per_class()[1]["AP50"] for score in (evaluate_coco, evaluate_masks)
    )
    assert json.loads(json.dumps(result.to_dict()))["summary"] == result.summary()


def test_nothing_found_and_nothing_there():
    truth, found, names = make_case(0)
    nothing = DetectionCollector().detections(truth)
    assert nothing.masks is None
    assert evaluate_masks(truth, nothing, names).summary()["AP"] == 0
    with pytest.raises(ValueError, match="truth must have masks"):
        evaluate_masks(replace(truth, masks=None), found, names)
    with pytest.raises(ValueError, match="detections must have masks"):
        evaluate_masks(truth, replace(found, masks=None), names)


def test_pictures_of_two_sizes():
    truth, found, names = make_case(0)
    other = RunLengths(found.masks.edges, found.masks.offsets, found.masks.sizes + 1)
    with pytest.raises(ValueError, match=r"of a picture of \[71, 91\] pixels .*truth of \[70, 90\]"):
        evaluate_masks(truth, replace(found, masks=other), names)


def test_columns_are_chosen_with_their_masks():
    truth, found, _ = make_case(1)
    keep = found.scores > 0.5
    assert found.select(keep).masks.areas.tolist() == found.masks.areas[keep].tolist()
    part = truth.only(truth.image_ids[[2, 0]])
    assert part.masks.areas.tolist() == truth.masks.areas[np.isin(truth.image, [0, 2])].tolist()
    assert part.sizes.tolist() == [list(SIZE)] * 2
    with pytest.raises(ValueError, match="150 masks to go with boxes, got 75"):
        replace(found, masks=found.masks.select(np.arange(75)))
    with pytest.raises(ValueError, match=r"sizes must be \(4, 2\)"):
        replace(truth, sizes=np.zeros((3, 2)))


def compact(count, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 30
    boxes[:, 2:] += boxes[:, :2] + 3
    masks = torch.nn.functional.interpolate(torch.rand(count, 1, 4, 4, generator=generator), 14)[:, 0]
    return Instances(boxes, torch.zeros(count, dtype=torch.int64), torch.rand(count, generator=generator), masks)


def test_the_collector_draws_masks(monkeypatch):
    images = [compact(3, 0), compact(5, 1), compact(2, 2)]
    truth = replace(make_case(0, images=4)[0], image_ids=np.array([5, 6, 7, 8]))
    whole, parts = DetectionCollector(), [DetectionCollector(), DetectionCollector()]
    sizes = [SIZE, (40, 50), SIZE]
    whole.update(Instances.collate(images), [5, 6, 7], sizes)
    parts[0].update(images[:1], [5], sizes[:1])
    monkeypatch.setattr("sightline.evaluation.collector._WAITING", 1)  # drawn at once
    parts[1].update(images[1:], [6, 7], sizes[1:])
    parts[1].update(images[:1], [5], sizes[:1])  # again, to even out processes
    found, merged = whole.detections(truth), parts[0].merge(parts[1:]).detections(truth)
    assert found.masks.sizes.tolist() == [list(SIZE)] * 3 + [[40, 50]] * 5 + [list(SIZE)] * 2
    for name in ("edges", "offsets", "sizes"):
        np.testing.assert_array_equal(getattr(found.masks, name), getattr(merged.masks, name))
    assert (found.masks.boxes[:, :2] >= np.floor(found.boxes[:, :2])).all()
    assert (found.masks.boxes[:, 2:] <= np.ceil(found.boxes[:, 2:])).all()
    assert (found.masks.areas > 0).all()
    boxes_alone = DetectionCollector()
    boxes_alone.update(images, [5, 6, 7])
    assert boxes_alone.detections(truth).masks is None


@pytest.mark.parametrize("polygons", [False, True], ids=["runs", "polygons"])
def test_results_are_written_and_read(tmp_path, polygons):
    truth, found, names = make_case(2)
    path, truth_path = tmp_path / "results.json", tmp_path / "instances.json"
    truth_path.write_text(json.dumps(dataset(truth, names)))
    again, _, category_ids = read_coco_truth(truth_path, masks=True)
    rows = again.rows_of(truth.image_ids[found.image])
    write_results(path, replace(found, image=rows), again.image_ids, category_ids, polygons=polygons)
    read = read_results(path, again, category_ids, masks=True)
    np.testing.assert_array_equal(read.masks.edges, found.masks.edges)
    np.testing.assert_array_equal(read.boxes, found.boxes)
    assert evaluate_masks(again, read, names).summary() == pytest.approx(evaluate_masks(truth, found, names).summary())
    assert read_results(path, again, category_ids).masks is None
    records = json.loads(path.read_text())
    assert isinstance(records[0]["segmentation"], list if polygons else dict)
    path.write_text(json.dumps([{k: v for k, v in record.items() if k != "bbox"} for record in records]))
    np.testing.assert_array_equal(read_results(path, again, category_ids, masks=True).boxes, read.masks.boxes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segmentation": {"size": [9, 9], "counts": [81]}},
            "record 1: its segmentation cannot be used: .*for \\[9, 9\\]",
        ),
        ({"segmentation": [[1, 2, 3]]}, "record 1: its segmentation cannot be used: a polygon"),
        ({"segmentation": None, "bbox": [0, 0, -1, 2]}, "record 1: bbox must be"),
    ],
    ids=["size", "polygon", "box"],
)
def test_bad_results_are_refused(tmp_path, change, message):
    truth, _, _ = make_case(0)
    good = {"image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good, good | change]))
    with pytest.raises(DataError, match=message):
        read_results(path, truth, [1], masks=True)
    path.write_text(json.dumps([{k: v for k, v in good.items() if k != "segmentation"}]))
    with pytest.raises(DataError, match="record 0 has no 'segmentation'"):
        read_results(path, truth, [1], masks=True)


def test_bad_truth_is_refused(tmp_path):
    truth, _, names = make_case(0)
    content = dataset(truth, names)
    path = tmp_path / "instances.json"
    del content["images"][2]["height"]
    path.write_text(json.dumps(content))
    assert read_coco_truth(path)[0].masks is None
    with pytest.raises(DataError, match="record 2 has no 'height'"):
        read_coco_truth(path, masks=True)


def test_regions_by_pascals_rule():
    """Against a slow loop over detections, at every overlap."""
    truth, found, names = make_case(5, objects=40, count=200)
    result = evaluate_regions(truth, found, names)
    overlaps = mask_overlap(replace(truth, crowd=np.zeros(40, bool)), found)
    means = {}
    for iou, part in result.by_overlap.items():
        expected = [slow_ap(truth, found, overlaps, label, iou) for label in range(2)]
        np.testing.assert_allclose(part.ap, expected, atol=1e-12)
        means[iou] = np.mean(expected)
    summary = result.summary()
    assert summary["APr50"] == pytest.approx(means[0.5])
    assert summary["APr70"] == pytest.approx(means[0.7])
    assert summary["APr_vol"] == pytest.approx(np.mean(list(means.values())))
    assert summary["APr50"] > summary["APr70"] > 0
    assert np.mean([row["APr70"] for row in result.per_class()]) == pytest.approx(means[0.7])
    assert evaluate_voc(truth, found, names).ap.tolist() != result.by_overlap[0.5].ap.tolist()


def slow_ap(truth, found, overlaps, label, iou):
    own = np.flatnonzero(truth.labels == label)
    taken, right = set(), []
    for d in sorted(np.flatnonzero(found.labels == label), key=lambda d: -found.scores[d]):
        near = own[truth.image[own] == found.image[d]]
        values = overlaps(np.full(len(near), d), near)
        best = near[values.argmax()] if len(near) and values.max() >= iou else None
        if best is not None and truth.crowd[best]:
            continue
        right.append(best is not None and best not in taken)
        taken.add(best)
    hits = np.cumsum(right)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / (~truth.crowd[own]).sum()
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return (np.diff(recall, prepend=0) * envelope).sum()


def test_report(tmp_path):
    truth, found, names = make_case(4)
    result = evaluate_instances(truth, found, names)
    inputs = ReportInputs(load_image=lambda row: np.full((*SIZE, 3), 128, np.uint8), pictures=2)
    text = write_report(tmp_path, truth, found, result, inputs).read_text()
    assert text.index("By masks") < text.index("By boxes") < text.index("Confusion matrix")
    summary = result.summary()
    for name in ("AP", "mask_AP"):
        assert f"{100 * summary[name]:.1f}" in text
    assert len(list((tmp_path / "report").glob("image_*.jpg"))) >= 2
