"""The built-in pictures: repeatable, boxes and sentences that are true, and enough of everything to learn from."""

import hashlib
import re
import tracemalloc

import numpy as np
import pytest

from sightline.datasets import shapes
from sightline.datasets.shapes import CATEGORIES, COLOURS, MIN_VISIBLE, draw, read_shapes, shapes_table
from sightline.datasets.table import DataError


def test_equal_arguments_equal_pictures_and_others_differ():
    one, again = draw(3, 5, 96), draw(3, 5, 96)
    for name in ("image", "boxes", "labels", "masks"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert one.sentence == again.sentence
    assert (draw(4, 5, 96).image != one.image).any()
    assert (draw(3, 6, 96).image != one.image).any()


def test_known_picture():
    """Pins the drawing over platforms and versions; if it changes, all numbers measured on the shapes are void."""
    picture = draw(0, 1, 64)
    assert picture.sentence == "a large yellow triangle left of a small yellow star above a large white square"
    assert hashlib.sha256(picture.image.tobytes()).hexdigest()[:16] == "9bde6f9a26359592"


@pytest.mark.parametrize("size", [32, 128, 200])
def test_boxes_are_the_extents_of_the_visible_masks(size):
    for index in range(30):
        picture = draw(1, index, size)
        assert picture.image.shape == (size, size, 3)
        assert picture.image.dtype == np.uint8
        assert 1 <= len(picture.labels) <= shapes.MAX_OBJECTS
        assert picture.masks.shape == (len(picture.labels), size, size)
        assert picture.masks.sum(0).max() == 1, "visible masks overlap"
        for box, mask in zip(picture.boxes, picture.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_objects_stay_visible():
    """Every placed object keeps its share of visible pixels, counted against its own outline drawn alone."""
    for index in range(60):
        objects, masks = shapes._place(shapes._generator(7, index), 128)
        for thing, mask in zip(objects, masks, strict=True):
            assert mask.sum() >= MIN_VISIBLE * (thing.alpha >= 0.5).sum()


def test_an_object_has_its_colour():
    """The median visible pixel is nearest to the named colour: painting, masks and words agree."""
    names, palette = list(COLOURS), np.array(list(COLOURS.values()))
    right = total = 0
    for index in range(40):
        objects, _ = shapes._place(shapes._generator(2, index), 128)
        picture = draw(2, index, 128)
        for thing, mask in zip(objects, picture.masks, strict=True):
            median = np.median(picture.image[mask > 0], axis=0)
            right += names[np.abs(palette - median).sum(1).argmin()] == thing.colour
            total += 1
    assert right / total > 0.97


def test_the_sentence_names_all_objects_in_order():
    for index in range(50):
        picture = draw(5, index, 128)
        parts = re.split(r" (?:above|below|left of) ", picture.sentence)
        words = [re.fullmatch(r"a (small|large) (\w+) (\w+)", part).groups() for part in parts]
        assert sorted(CATEGORIES.index(shape) for _, _, shape in words) == sorted(picture.labels.tolist())


def test_the_sentence_is_true():
    near = {"centre": (20.0, 50.0), "label": 0, "colour": "red", "extent": "small"}
    rest = {"radius": 8.0, "rows": slice(0), "columns": slice(0), "alpha": np.zeros((0, 0))}
    cases = {(60.0, 55.0): "left of", (30.0, 90.0): "above", (30.0, 10.0): "below"}
    for centre, relation in cases.items():
        one = shapes._Object(**near, **rest)
        other = shapes._Object(**{**near, "centre": centre, "label": 3, "colour": "blue", "extent": "large"}, **rest)
        expected = f"a small red circle {relation} a large blue star"
        assert shapes._sentence([one, other]) == shapes._sentence([other, one]) == expected


def test_table_and_pictures_agree():
    table = shapes_table("val", 12, 64, seed=2)
    offsets = table.offsets
    for row, path in enumerate(table.paths):
        seed, size, index = map(int, path.removeprefix("shapes:").split("/"))
        picture = draw(seed, index, size)
        objects = slice(offsets[row], offsets[row + 1])
        np.testing.assert_array_equal(table.boxes[objects], picture.boxes)
        np.testing.assert_array_equal(table.labels[objects], picture.labels)
        np.testing.assert_array_equal(table.area[objects], picture.masks.sum((1, 2)))
        np.testing.assert_array_equal(read_shapes(path), picture.image)
        assert table.captions[row] == [picture.sentence]


def test_splits_and_seeds_share_no_picture():
    paths = [
        path for seed in (0, 1) for split in ("train", "val", "test") for path in shapes_table(split, 4, 32, seed).paths
    ]
    assert len(set(paths)) == len(paths)


def test_balance():
    table = shapes_table("train", 400, 128)
    assert np.bincount(table.labels).min() > 0.12 * len(table.labels), "a class is rare"
    sides = (table.boxes[:, 2:] - table.boxes[:, :2]).max(1)
    assert np.percentile(sides, 2) >= 15
    assert sides.max() <= 66
    counts = np.bincount(table.image, minlength=len(table))
    assert (np.bincount(counts, minlength=6)[1:] > 20).all(), "some count of objects is rare"


@pytest.mark.parametrize("path", ["shapes:", "shapes:1/2", "shapes:a/b/c", "shapes:-1/64/0"])
def test_bad_paths_are_named(path):
    with pytest.raises(DataError, match=re.escape(path)):
        read_shapes(path)


def test_bad_split():
    with pytest.raises(DataError, match="validation"):
        shapes_table("validation", 1, 32)


def test_pictures_of_few_objects_are_those_of_the_series_that_have_so_few():
    every, few = shapes_table("val", 60, 96), shapes_table("val", 20, 96, most=2)
    counts = np.bincount(every.image, minlength=60)
    wanted = [path for path, count in zip(every.paths, counts, strict=True) if count <= 2][:20]
    assert few.paths[: len(wanted)] == wanted
    assert len(few) == 20
    assert np.bincount(few.image).max() == 2
    assert few.captions[0] == every.captions[every.paths.index(few.paths[0])]


@pytest.mark.parametrize("most", [0, 6])
def test_a_number_of_objects_that_no_picture_has_is_refused(most):
    with pytest.raises(DataError, match="1 to 5"):
        shapes_table("val", 3, 96, most=most)


def test_a_table_holds_the_masks_of_one_picture_at_a_time():
    tracemalloc.start()
    try:
        shapes_table("train", 60, 256)
        assert (
            tracemalloc.get_traced_memory()[1] < 30 * 256**2
        )  # one object's mask in each of 60 pictures takes twice as much
    finally:
        tracemalloc.stop()
