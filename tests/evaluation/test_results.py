"""COCO's results.json and instances.json: what is read, what is refused, and the way there and back."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sightline.datasets.table import DataError
from sightline.evaluation import Truth, evaluate_coco, read_coco_truth, read_results, write_results

TRUTH = Truth([42, 7], [0], [[0, 0, 10, 10]], [0], [100], [False], [False])
GOOD = {"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4.5], "score": 0.5}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_columns(tmp_path):
    path = write(tmp_path / "results.json", [GOOD, GOOD | {"image_id": 42, "category_id": 1, "segmentation": {}}])
    found = read_results(path, TRUTH, [1, 18])
    assert found.image.tolist() == [1, 0]
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[1, 2, 4, 6.5]] * 2
    assert found.area.tolist() == [13.5] * 2


def test_no_detections_are_legal(tmp_path):
    assert len(read_results(write(tmp_path / "results.json", []), TRUTH, [1])) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ({"images": []}, "expected a list of detections, got a JSON object"),
        ([GOOD, 3], "record 1 has no 'image_id': 3"),
        ([{key: GOOD[key] for key in ("image_id", "category_id", "bbox")}], "record 0 has no 'score'"),
        ([GOOD | {"image_id": 8}], "record 0: image_id 8 is unknown; the truth has 2 images"),
        ([GOOD | {"image_id": "7"}], "record 0: image_id must be a whole number, got 7"),
        ([GOOD | {"image_id": 2**70}], "record 0: image_id must be a whole number"),
        ([GOOD | {"score": 10**400}], "record 0: score must be a finite number"),
        ([GOOD, GOOD | {"category_id": 99}], "record 1: category_id 99 is unknown; the truth has the categories 1, 18"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"record 0: bbox must be \[x, y, width, height\].*got \[1, 2, 3\]"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], "of no negative size"),
        ([GOOD | {"bbox": [1, 2, float("inf"), 4]}], "bbox must be"),
        ([GOOD | {"score": float("nan")}], "record 0: score must be a finite number, got nan"),
        ([GOOD | {"score": None}], "score must be a finite number, got None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(tmp_path, content, message):
    path = write(tmp_path / "results.json", content)
    with pytest.raises(DataError, match=message) as error:
        read_results(path, TRUTH, [1, 18])
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "nowhere.json", TRUTH, [1])


def test_writes_what_it_reads(tmp_path, random_case):
    case = random_case(3, objects=30, count=80, num_classes=3)
    category_ids = [90, 3, 17]
    write_results(tmp_path / "results.json", case.detections, case.truth.image_ids, category_ids)
    found = read_results(tmp_path / "results.json", case.truth, category_ids)
    np.testing.assert_array_equal(found.image, case.detections.image)
    np.testing.assert_array_equal(found.labels, case.detections.labels)
    np.testing.assert_array_equal(found.scores, case.detections.scores)
    np.testing.assert_allclose(found.boxes, case.detections.boxes, rtol=0, atol=1e-12)
    names = ["a", "b", "c"]
    first, second = (evaluate_coco(case.truth, d, names).summary() for d in (case.detections, found))
    assert first == pytest.approx(second)


def one_object(**changes):
    """A truth of one image, one category and one object."""
    found = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 3]} | changes
    return {"images": [{"id": 7}], "categories": [{"id": 1, "name": "cat"}], "annotations": [found]}


@pytest.mark.parametrize("area", [{}, {"area": None}], ids=["left out", "null"])
def test_an_area_that_is_not_given_is_the_boxs(tmp_path, area):
    truth, names, ids = read_coco_truth(write(tmp_path / "instances.json", one_object(**area)))
    assert truth.area.tolist() == [6]
    assert (names, ids.tolist()) == (["cat"], [1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a COCO object with images, annotations and categories, got a list"),
        ({"images": []}, "expected a COCO object with images, annotations and categories, got one without"),
        (
            {"images": [], "categories": [], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            "record 0: image_id 1 is unknown",
        ),
        ({"images": [{}], "categories": [], "annotations": []}, "record 0 has no 'id'"),
        (one_object() | {"images": {"id": 7}}, "images must be a list, got a JSON object"),
        (one_object() | {"images": [{"id": None}]}, "record 0: id must be a whole number, got None"),
        (one_object() | {"categories": [{"id": "a", "name": "cat"}]}, "record 0: id must be a whole number, got a"),
        (one_object(image_id="7"), "record 0: image_id must be a whole number, got 7"),
        (one_object(category_id=[1]), "record 0: category_id must be a whole number"),
        (one_object(area="12"), "record 0: area must be a finite number, got 12"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_truth(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_coco_truth(write(tmp_path / "instances.json", content))


def test_truth_from_a_table_and_from_the_file(tmp_path):
    boxes = [[1, 2, 3, 4], [5, 6, 7, 8]]
    content = {
        "images": [{"id": 9}, {"id": 4}],
        "categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}],
        "annotations": [
            {"image_id": 9, "category_id": 5, "bbox": boxes[0], "area": 7, "iscrowd": 1},
            {"image_id": 4, "category_id": 2, "bbox": boxes[1]},
        ],
    }
    truth, names, ids = read_coco_truth(write(tmp_path / "instances.json", content))
    assert names == ["a", "b"]
    assert ids.tolist() == [2, 5]
    assert truth.image_ids[truth.image].tolist() == [9, 4]
    assert truth.labels.tolist() == [1, 0]
    assert truth.area.tolist() == [7, 56]
    assert truth.crowd.tolist() == [True, False]

    columns = ("image_ids", "image", "boxes", "labels", "area", "crowd", "difficult", "landmarks")
    table = SimpleNamespace(**{name: getattr(truth, name) for name in columns}, sizes=None)
    copy = Truth.from_table(table)
    assert all(np.array_equal(getattr(copy, name), getattr(truth, name)) for name in columns)


def test_part_of_a_truth():
    zeros = np.zeros(3, int)
    truth = Truth([4, 5, 6], [0, 1, 2], [[0, 0, i, i] for i in range(1, 4)], [0, 1, 2], zeros, zeros, zeros)
    part = truth.only([6, 4])
    assert part.image_ids.tolist() == [6, 4]
    assert part.image.tolist() == [1, 0]
    assert part.labels.tolist() == [0, 2]
    with pytest.raises(ValueError, match="image id 9 is not in the truth"):
        truth.only([9])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1, 1], [0], [[0, 0, 1, 1]], [0], [1], [0], [0]), r"image_ids must be unique; \[1\]"),
        (([1], [1], [[0, 0, 1, 1]], [0], [1], [0], [0]), "image must hold rows 0..0"),
        (([1], [0], [[0, 0, 1]], [0], [1], [0], [0]), r"boxes must be \(N, 4\)"),
        (([1], [0], [[0, 0, 1, 1]], [0, 1], [1], [0], [0]), r"labels must be \(1,\)"),
    ],
    ids=["ids", "row", "boxes", "labels"],
)
def test_wrong_columns(columns, message):
    with pytest.raises(ValueError, match=message):
        Truth(*columns)
