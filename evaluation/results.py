"""COCO's files for scoring: reading and writing results.json, and truth exactly as COCO's scorer reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..datasets.mask_encoding import SegmentationError, from_coco
from ..datasets.run_lengths import RunLengths
from ..datasets.table import DataError
from .json_records import check, column, is_finite, is_whole, kind, load_json
from .records import Detections, Truth


def read_results(
    path: str | Path, truth: Truth, category_ids: Sequence[int] | np.ndarray, *, masks: bool = False
) -> Detections:
    """Detections from a results.json: a list of {image_id, category_id, bbox: [x, y, width, height], score}.

    Boxes stay in float64, and areas are width times height as written, so that scores equal those of COCO's own code.

    Args:
        path: the file.
        truth: whose images the detections are of.
        category_ids: (C,) the file's id of each label.
        masks: read `segmentation` too, run lengths or polygons; then a file may leave out every bbox, and boxes are
            those around the masks.

    Raises:
        DataError: the file is not there, no JSON or no such list, or a record lacks a key, names an unknown image or
            category, has a box that is not four finite numbers of no negative size, a score that is no finite number,
            or a segmentation that cannot be used.
    """
    path = Path(path)
    records = load_json(path)
    if not isinstance(records, list):
        raise DataError(
            f"{path}: expected a list of detections, got a JSON {kind(records)}. Results files hold a list; "
            "an object with images and annotations is truth"
        )
    image_ids, given = (_whole(path, records, key) for key in ("image_id", "category_id"))
    scores = column(path, records, "score")
    check(path, scores, "score", is_finite, "a finite number")
    image = truth.rows_of(image_ids)
    _check_known(path, image, image_ids, "image_id", f"the truth has {len(truth.image_ids)} images")
    labels = _labels(given, np.asarray(category_ids, np.int64))
    _check_known(path, labels, given, "category_id", f"the truth has {_some(category_ids)}")
    drawn = _masks(path, records, _sizes_of(truth, image)) if masks else None
    without_boxes = drawn is not None and not any("bbox" in record for record in records)
    xywh = _boxes_around(drawn) if without_boxes else _boxes(path, records)
    return Detections(image, _to_xyxy(xywh), labels, np.array(scores, np.float64), xywh[:, 2] * xywh[:, 3], masks=drawn)


def _whole(path: Path, records: list[dict], key: str) -> np.ndarray:
    """(N,) int64, each checked."""
    values = column(path, records, key)
    check(path, values, key, is_whole, "a whole number")
    return np.array(values, np.int64)


def _boxes(path: Path, records: list[dict]) -> np.ndarray:
    """(N, 4) float64, xywh, each checked."""
    boxes = column(path, records, "bbox")
    check(path, boxes, "bbox", _is_box, "[x, y, width, height], finite, of no negative size")
    return np.array(boxes, np.float64).reshape(-1, 4)


def _boxes_around(masks: RunLengths) -> np.ndarray:
    """(N, 4) float64, xywh."""
    boxes = masks.boxes.astype(np.float64)
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _masks(path: Path, records: list[dict], sizes: np.ndarray) -> RunLengths:
    """The masks of records of pictures of these (N, 2) sizes."""
    try:
        return from_coco(column(path, records, "segmentation"), sizes)
    except SegmentationError as error:
        raise DataError(f"{path}: record {error.row}: its segmentation cannot be used: {error}") from None


def _sizes_of(truth: Truth, image: np.ndarray) -> np.ndarray:
    if truth.sizes is None:
        raise ValueError("to read masks the truth must know its pictures' sizes; read it with masks, too")
    return truth.sizes[image]


def write_results(
    path: str | Path,
    detections: Detections,
    truth_image_ids: Sequence[int] | np.ndarray,
    category_ids: Sequence[int] | np.ndarray,
    *,
    polygons: bool = False,
) -> None:
    """Writes detections as COCO's results.json, which `read_results` and COCO's own code read.

    Args:
        path: the file; replaced if there is one.
        detections: D detections; masks are written where there are any, as COCO's strings of run lengths.
        truth_image_ids: (I,) ids by `detections.image`.
        category_ids: (C,) ids by `detections.labels`.
        polygons: write masks as polygons instead, along the edges of their pixels; COCO's own code scores no such results.
    """
    boxes = detections.boxes
    columns = zip(
        np.asarray(truth_image_ids)[detections.image].tolist(),
        np.asarray(category_ids)[detections.labels].tolist(),
        np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist(),
        detections.scores.tolist(),
        strict=True,
    )
    records = [{"image_id": i, "category_id": c, "bbox": box, "score": score} for i, c, box, score in columns]
    if detections.masks is not None:
        segmentations = detections.masks.to_polygons() if polygons else detections.masks.to_coco()
        records = [record | {"segmentation": one} for record, one in zip(records, segmentations, strict=True)]
    Path(path).write_text(json.dumps(records), encoding="utf-8")


def read_coco_truth(path: str | Path, *, masks: bool = False) -> tuple[Truth, list[str], np.ndarray]:
    """Truth from a COCO instances.json, unrepaired: no box is clipped or dropped, all stay in float64.

    A data set's table repairs boxes for training, which moves scores a little; these are the ones that COCO's code
    gives.

    Args:
        path: the file.
        masks: with the objects' masks, drawn exactly as COCO's code draws them.

    Returns:
        The truth, C category names and (C,) category ids, both by ascending id.

    Raises:
        DataError: the file is not there, no JSON, or lacks images, annotations, categories or a record's key, or an
            id, a box, an area or a segmentation cannot be used.
    """
    path = Path(path)
    content = load_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        got = "one without" if isinstance(content, dict) else f"a {kind(content)}"
        raise DataError(f"{path}: expected a COCO object with images, annotations and categories, got {got}")
    categories, images, annotations = (content[key] for key in ("categories", "images", "annotations"))
    for key in ("images", "annotations", "categories"):
        if not isinstance(content[key], list):
            raise DataError(f"{path}: {key} must be a list, got a JSON {kind(content[key])}")
    names = dict(zip(_whole(path, categories, "id").tolist(), column(path, categories, "name"), strict=True))
    category_ids = np.array(sorted(names), np.int64)
    image_ids, first = np.unique(_whole(path, images, "id"), return_index=True)
    xywh = _boxes(path, annotations)
    given_image, given_label = (_whole(path, annotations, key) for key in ("image_id", "category_id"))
    image, labels = _labels(given_image, image_ids), _labels(given_label, category_ids)
    _check_known(path, image, given_image, "image_id", f"the file has {len(image_ids)} images")
    _check_known(path, labels, given_label, "category_id", f"the file has {_some(category_ids)}")
    box_area = xywh[:, 2] * xywh[:, 3]
    areas = [a.get("area") for a in annotations]
    areas = [own if given is None else given for given, own in zip(areas, box_area.tolist(), strict=True)]
    check(path, areas, "area", is_finite, "a finite number")
    area = np.array(areas, np.float64)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    truth = Truth(image_ids, image, _to_xyxy(xywh), labels, area, crowd, np.zeros_like(crowd), box_area)
    if masks:
        sizes = _picture_sizes(path, images)[first]
        truth = replace(truth, masks=_masks(path, annotations, sizes[image]), sizes=sizes)
    return truth, [str(names[i]) for i in sorted(names)], category_ids


def _picture_sizes(path: Path, images: list[dict]) -> np.ndarray:
    """(I, 2) int64, (H, W), in the file's order."""
    sides = [column(path, images, key) for key in ("height", "width")]
    for key, values in zip(("height", "width"), sides, strict=True):
        check(
            path, values, key, lambda value: is_whole(value) and value > 0, "a positive whole number, to draw masks in"
        )
    return np.array(sides, np.int64).T.reshape(-1, 2)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_finite, value)) and min(value[2:]) >= 0


def _labels(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each id in `known` (any order, unique), or -1."""
    if not len(known):
        return np.full(len(ids), -1)
    order = np.argsort(known)
    place = order[np.searchsorted(known, ids, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[place] == ids, place, -1)


def _check_known(path: Path, rows: np.ndarray, ids: np.ndarray, key: str, known: str) -> None:
    if (rows < 0).any():
        row = int(np.flatnonzero(rows < 0)[0])
        others = len(np.unique(ids[rows < 0])) - 1
        more = f" (and {others} other ids)" if others else ""
        raise DataError(f"{path}: record {row}: {key} {ids[row]} is unknown{more}; {known}. Is it the same split?")


def _some(ids: Sequence[int] | np.ndarray) -> str:
    values = [int(i) for i in ids]
    return "the categories " + ", ".join(map(str, values[:10])) + (" …" if len(values) > 10 else "")


def _to_xyxy(xywh: np.ndarray) -> np.ndarray:
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
