"""Masks as run lengths: against COCO's own code (https://github.com/cocodataset/cocoapi), and there and back."""

import json

import numpy as np
import pytest
import torch

from sightline.datasets.mask_encoding import SegmentationError, from_coco, from_compact, from_ids, from_windows
from sightline.datasets.masks import to_pixels
from sightline.datasets.polygons import trace
from sightline.datasets.run_lengths import RunLengths
from sightline.datasets.run_strings import pack, unpack, unpack_one


@pytest.fixture
def coco():
    return pytest.importorskip("pycocotools.mask")


def reference(coco, segmentation, size):
    """The string and the mask that COCO's own code makes of a segmentation."""
    rle = coco.frPyObjects(segmentation, *map(int, size))
    return coco.merge(rle) if isinstance(rle, list) else rle


def random_polygons(seed, count):
    """Of every kind: on a grid of pixels, of tenths, tiny, and far out of their pictures; one to three an object."""
    rng = np.random.default_rng(seed)
    kinds = [
        lambda n: rng.uniform(-30, 150, (n, 2)),
        lambda n: rng.integers(-5, 60, (n, 2)).astype(float),
        lambda n: rng.uniform(0, 50, (n, 2)).round(1),
        lambda n: rng.uniform(10, 12, (n, 2)),
        lambda n: rng.uniform(-1e4, 1e4, (n, 2)),
        lambda n: np.repeat(rng.uniform(0, 40, (1, 2)), n, axis=0),
    ]
    sizes = rng.integers(1, 120, (count, 2))
    parts = [[kinds[rng.integers(len(kinds))](rng.integers(3, 9)) for _ in range(rng.integers(1, 4))] for _ in sizes]
    return [[part.ravel().tolist() for part in several] for several in parts], sizes


def random_masks(seed, count, largest=14):
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, largest, (count, 2)).tolist()
    return [(rng.random(shape) < rng.choice([0, 0.1, 0.5, 0.9, 1])).astype(np.uint8) for shape in shapes]


def of(masks):
    return from_windows(masks, np.zeros((len(masks), 2)), [mask.shape for mask in masks])


def assert_same(one, other):
    for name in ("edges", "offsets", "sizes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_polygons_are_drawn_as_coco_draws_them(coco):
    polygons, sizes = random_polygons(0, 3000)
    masks = from_coco(polygons, sizes)
    expected = [reference(coco, one, size) for one, size in zip(polygons, sizes, strict=True)]
    assert [one["counts"].encode() for one in masks.to_coco()] == [one["counts"] for one in expected]
    assert masks.areas.tolist() == [int(coco.area(one)) for one in expected]
    boxes = np.array([coco.toBbox(one) for one in expected])
    np.testing.assert_array_equal(masks.boxes, np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))
    assert 0.05 < np.mean(masks.areas == 0) < 0.5


def test_every_object_of_the_coco_sample(coco, real_data):
    document = json.loads((real_data("coco") / "instances_val2017.json").read_text())
    shapes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    sizes = np.array([shapes[one["image_id"]] for one in document["annotations"]])
    segmentations = [one["segmentation"] for one in document["annotations"]]
    assert any(isinstance(one, dict) for one in segmentations)
    found = from_coco(segmentations, sizes).to_coco()
    for one, segmentation, size in zip(found, segmentations, sizes, strict=True):
        assert one["counts"].encode() == reference(coco, segmentation, size)["counts"]


def test_strings_are_those_of_coco(coco):
    masks = random_masks(1, 300, largest=60)
    expected = [coco.encode(np.asfortranarray(mask)) for mask in masks]
    assert [one["counts"].encode() for one in of(masks).to_coco()] == [one["counts"] for one in expected]
    assert_same(from_coco(expected, [one["size"] for one in expected]), of(masks))


def test_strings_hold_large_and_small_numbers():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 400)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    runs = (2.0 ** rng.uniform(0, 31, offsets[-1])).astype(np.int64) - 1
    again, starts = unpack(pack(runs, offsets))
    np.testing.assert_array_equal(again, runs)
    np.testing.assert_array_equal(starts, offsets)
    for string, run in zip(pack(runs, offsets), np.split(runs, offsets[1:-1]), strict=True):
        np.testing.assert_array_equal(unpack_one(string), run)


@pytest.mark.parametrize("string", ["", "P", "0~", "0é", "PPPPPPPP0"])
def test_one_string_is_refused_as_many_are(string):
    with pytest.raises(ValueError, match="its run lengths are") as many:
        unpack(["`0", string, "`0"])
    with pytest.raises(ValueError, match="its run lengths are") as one:
        unpack_one(string)
    assert string == "P" or str(one.value) == str(many.value)  # of many, one that does not end runs into the next
    assert [part.tolist() for part in unpack([])] == [[], [0]]


def test_pixels_come_back():
    masks = random_masks(2, 200)
    encoded = of(masks)
    for row, mask in enumerate(masks):
        np.testing.assert_array_equal(encoded.pixels(row), mask)
        assert encoded.areas[row] == mask.sum()
        y, x = np.nonzero(mask)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4
        assert encoded.boxes[row].tolist() == box
        rows, columns = slice(len(mask) // 3, len(mask)), slice(mask.shape[1] // 2, mask.shape[1])
        np.testing.assert_array_equal(encoded.part(row, rows, columns), mask[rows, columns])


def test_polygons_around_pixels_give_them_back():
    """Holes, pieces and pixels that touch at corners alone included."""
    masks = of(random_masks(3, 400))
    assert_same(from_coco(masks.to_polygons(), masks.sizes), masks)


def test_outlines_have_corners_alone():
    square = np.zeros((9, 9), np.uint8)
    square[2:7, 3:8] = 1
    (outline,) = trace(square)
    assert sorted(zip(outline[::2], outline[1::2], strict=True)) == [(3, 2), (3, 7), (8, 2), (8, 7)]
    assert trace(np.zeros((4, 4))) == []


def test_parts_of_pictures():
    masks, rng = random_masks(4, 200), np.random.default_rng(0)
    corners, margins = rng.integers(0, 5, (200, 2)), rng.integers(0, 3, (200, 2))
    whole = [np.pad(m, ((a, c), (b, d))) for m, (a, b), (c, d) in zip(masks, corners, margins, strict=True)]
    assert_same(from_windows(masks, corners, [mask.shape for mask in whole]), of(whole))
    assert_same(from_windows([np.zeros((0, 3))], [(2, 2)], [(9, 9)]), of([np.zeros((9, 9))]))


def test_objects_of_a_picture_of_numbers():
    picture = np.random.default_rng(0).choice([0, 3, 7, 65535], (40, 30)).astype(np.uint16)
    ids, masks = from_ids(picture)
    assert ids.tolist() == [3, 7, 65535]
    for row, number in enumerate(ids):
        np.testing.assert_array_equal(masks.pixels(row), picture == number)
    assert len(from_ids(np.zeros((5, 5), np.uint8))[1]) == 0


def test_compact_masks():
    generator = torch.Generator().manual_seed(0)
    masks = torch.nn.functional.interpolate(torch.rand(40, 1, 5, 5, generator=generator), 28, mode="bicubic")[:, 0]
    boxes = torch.rand(40, 4, generator=generator) * 60 - 10
    boxes[:, 2:] = boxes[:, :2] + torch.rand(40, 2, generator=generator) * 50
    boxes[3, 2:], boxes[4], boxes[5] = boxes[3, :2], torch.tensor([90.0, 90, 95, 95]), torch.nan
    drawn = from_compact(masks.numpy(), boxes.numpy(), np.tile((64, 50), (40, 1)))
    expected = to_pixels(masks, torch.where(boxes.isnan(), 0, boxes), (64, 50)).numpy()
    expected[[3, 5]] = False
    for row in range(40):
        np.testing.assert_array_equal(drawn.pixels(row), expected[row])
    assert drawn.areas[[3, 4, 5]].tolist() == [0, 0, 0]


def test_rows_are_chosen_and_put_together():
    masks = of(random_masks(5, 20))
    rows = np.array([7, 0, 7, 19])
    chosen = masks.select(rows)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(chosen.pixels(place), masks.pixels(row))
    assert_same(masks.select(np.arange(20) % 2 == 0), masks.select(np.arange(0, 20, 2)))
    assert_same(RunLengths.concatenate([masks.select(np.arange(8)), masks.select(np.arange(8, 20))]), masks)
    assert len(RunLengths.concatenate([])) == 0


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 4, 0, 4]], "list of finite"),
        ([[0, 0, 4, 0, 4, float("nan")]], "list of finite"),
        ([["a", "b"]], "list of x0"),
        ([0, 0, 4, 0, 4, 4], "list of finite"),
        (5, "list of x0"),
        ({"size": [4, 5], "counts": [20]}, "the picture has"),
        ({"counts": [16]}, "the picture has"),
        ({"size": None, "counts": [16]}, "the picture has"),
        ([[10**400, 0, 4, 0, 4, 4]], "list of x0"),
        ({"size": [4, 4], "counts": [10, 5]}, "not of 16 pixels"),
        ({"size": [4, 4], "counts": [20, -4]}, "not of 16 pixels"),
        ({"size": [4, 4], "counts": []}, "neither a string nor"),
        ({"size": [4, 4], "counts": [[16]]}, "neither a string nor"),
        ({"size": [4, 4], "counts": ["x"]}, "neither a string nor"),
        ({"size": [4, 4], "counts": "0~"}, "no string of COCO's"),
        ({"size": [4, 4], "counts": ""}, "no string of COCO's"),
        ({"size": [4, 4], "counts": "P"}, "no string of COCO's"),
        ({"size": [4, 4], "counts": "PPPPPPPP0"}, "longer than any"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(segmentation, message):
    good = [[[0, 0, 4, 0, 4, 4]], {"size": [4, 4], "counts": "`0"}, None, []]
    with pytest.raises(SegmentationError, match=message) as error:
        from_coco([*good, segmentation, *good], np.full((9, 2), 4))
    assert error.value.row == 4


def test_runs_of_no_length_say_nothing():
    """Writers that never end a run before the column does leave some."""
    odd = {"size": [4, 4], "counts": [0, 2, 0, 2, 12, 0]}
    assert_same(from_coco([odd], [(4, 4)]), from_coco([{"size": [4, 4], "counts": [0, 4, 12]}], [(4, 4)]))


def test_many_at_once_are_read_in_portions(monkeypatch):
    polygons, sizes = random_polygons(6, 40)
    whole = from_coco(polygons, sizes)
    monkeypatch.setattr("sightline.datasets.mask_encoding._AT_ONCE", 7)
    assert_same(from_coco(polygons, sizes), whole)
    with pytest.raises(SegmentationError) as error:
        from_coco([*polygons, [[1]]], np.vstack([sizes, [[1, 1]]]))
    assert error.value.row == 40


def test_columns_must_go_together():
    with pytest.raises(ValueError, match="need sizes"):
        RunLengths(np.zeros(2, np.int64), np.array([0, 2]), np.zeros((2, 2), np.int64))
