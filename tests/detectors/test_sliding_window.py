"""The sliding window: as many boxes as asked for, over all of the picture and all sizes, and none far from an object."""

import numpy as np
import pytest

from sightline.detectors.sliding_window import SlidingWindow


def picture(height, width):
    return np.zeros((height, width, 3), np.uint8)


def best_overlaps(objects, boxes):
    """(N,) each object's greatest IoU with any box."""
    low = np.maximum(objects[:, None, :2], boxes[None, :, :2])
    high = np.minimum(objects[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [(some[:, 2:] - some[:, :2]).prod(-1) for some in (objects, boxes)]
    return (common / (areas[0][:, None] + areas[1] - common)).max(axis=1)


def objects_in(height, width, *, count=200):
    """(N, 4) boxes anywhere in the picture, of the windows' scales and aspects and all between."""
    rng = np.random.default_rng(0)
    side = np.sqrt(height * width) * np.exp(rng.uniform(np.log(0.125), 0, count))
    stretch = np.exp(rng.uniform(-np.log(2) / 2, np.log(2) / 2, count))
    sizes = np.minimum(np.stack([side * stretch, side / stretch], axis=1), (width, height))
    corners = rng.random((count, 2)) * ((width, height) - sizes)
    return np.concatenate([corners, corners + sizes], axis=1)


SIZES = {"square": (300, 300), "wide": (200, 500), "tall": (640, 427), "small": (40, 60)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("limit", "least", "mean"), [(500, 0.3, 0.6), (2000, 0.5, 0.7), (8000, 0.6, 0.75)])
def test_every_object_has_its_window(size, limit, least, mean):
    found = SlidingWindow(limit)(picture(*SIZES[size]))
    overlaps = best_overlaps(objects_in(*SIZES[size]), found.boxes)
    assert overlaps.min() >= least
    assert overlaps.mean() >= mean


@pytest.mark.parametrize("limit", [300, 1000, 2000, 10_000])
@pytest.mark.parametrize("size", SIZES)
def test_about_as_many_as_allowed(size, limit):
    count = len(SlidingWindow(limit)(picture(*SIZES[size])).boxes)
    assert 0.8 * limit <= count <= limit


STRANGE = {**SIZES, "one pixel": (1, 1), "a line": (1, 30), "ten": (10, 10), "thin": (600, 2)}


@pytest.mark.parametrize("size", STRANGE)
@pytest.mark.parametrize("limit", [1, 7, 2000])
def test_boxes_are_sound(size, limit):
    height, width = STRANGE[size]
    window = SlidingWindow(limit)
    boxes, scores, _ = window(picture(height, width))
    assert boxes.dtype == scores.dtype == np.float32
    assert 1 <= len(boxes) == len(scores) <= limit
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= (width, height)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert scores[0] == 1
    assert (np.diff(scores) < 0).all()
    again = window(picture(height, width))
    assert np.array_equal(again.boxes, boxes)
    assert np.array_equal(again.scores, scores)


def test_the_first_are_of_every_size():
    """Nine sizes of 3 scales and 3 aspects on a square: the first nine boxes are one of each, the whole picture first."""
    window = SlidingWindow(1000, scales=(0.5, 0.25, 0.125))
    boxes = window(picture(256, 256)).boxes
    sizes = np.rint(boxes[:, 2:] - boxes[:, :2])
    assert len(np.unique(sizes[:9], axis=0)) == 9
    assert len(np.unique(sizes, axis=0)) == 9
    assert (np.diff(sizes[:9].prod(axis=1)) <= 0.03 * 128**2).all()  # largest first, up to rounding
    assert SlidingWindow()(picture(256, 256)).boxes[0].tolist() == [0, 0, 256, 256]


def test_the_first_lie_all_over_the_picture():
    """Each quarter of the picture has its share of the centres of the first 200 of 2000."""
    boxes = SlidingWindow(2000, scales=(0.125,))(picture(400, 400)).boxes[:200]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 > 200
    counts = np.bincount(centres @ (1, 2), minlength=4)
    assert counts.min() >= 35


BAD = {
    "limit": {"limit": 0},
    "no scales": {"scales": ()},
    "negative": {"scales": (-1.0,)},
    "aspects": {"aspects": (0.0,)},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    with pytest.raises(ValueError, match=r"must be (at least 1|positive numbers), got"):
        SlidingWindow(**BAD[name])


def test_keys_tell_settings_apart():
    settings = [{}, {"limit": 1}, {"scales": (1.0,)}, {"aspects": (1.0,)}]
    keys = {SlidingWindow(**some).key for some in settings}
    assert len(keys) == len(settings)
    assert all("format 1" in key for key in keys)
