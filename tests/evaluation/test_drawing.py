"""Boxes and names on pictures of any size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.datasets.mask_encoding import from_windows
from sightline.datasets.structures import Instances
from sightline.evaluation.drawing import annotate, colour_of
from sightline.evaluation.mask_drawing import OPACITY, paint_masks

NAMES = ["person", "Straßenbahn", "велосипед"]


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def objects(*boxes):
    count = len(boxes)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(boxes, torch.arange(count) % len(NAMES), torch.full((count,), 0.87))


@pytest.mark.parametrize("scale", [1, 3, 13], ids=lambda scale: f"{300 * scale} pixels")
def test_lines_and_letters_grow_with_the_picture(scale):
    found = objects([100 * scale, 60 * scale, 200 * scale, 150 * scale])
    image = annotate(grey(200 * scale, 300 * scale), found, NAMES)
    colour = colour_of(0)
    across = (image[120 * scale] == colour).all(-1)  # a row through the box: its two sides
    columns = np.flatnonzero(across)
    assert columns[0] == 100 * scale
    assert columns[-1] == 200 * scale - 1
    assert len(columns) / 2 >= max(2, 200 * scale / 420)
    letters = (image[: 60 * scale] == 255).all(-1)  # white, above the box
    assert np.ptp(np.flatnonzero(letters.any(1))) + 1 >= max(7, 200 * scale / 60)


@pytest.mark.parametrize(
    "box", [(0, 0, 300, 200), (-5, -5, 20, 20), (290, 190, 300, 200), (150, 0, 150, 0), (280, 100, 299, 101)], ids=str
)
def test_names_stay_within_the_picture(box):
    alone = annotate(grey(200, 300), objects(box), NAMES, named=False)
    named = annotate(grey(200, 300), objects(box), NAMES)
    label = (alone != named).any(-1)
    rows, columns = np.flatnonzero(label.any(1)), np.flatnonzero(label.any(0))
    assert np.ptp(rows) + 1 >= 11
    # As long as in the middle of the picture, so nothing of it is cut off.
    middle = objects((60, 100, 150, 150))
    free = (annotate(grey(200, 300), middle, NAMES) != annotate(grey(200, 300), middle, NAMES, named=False)).any(-1)
    assert abs(int(label.any(0).sum()) - int(free.any(0).sum())) <= 4
    assert columns[-1] < 300


def test_names_do_not_hide_each_other_where_there_is_room():
    found = objects(*[[100, 100, 220, 160 + i] for i in range(3)])
    image = annotate(grey(200, 300), found, NAMES)
    ink = [(image == colour_of(label)).all(-1).sum() for label in range(3)]
    alone = [
        (annotate(grey(200, 300), found[i], NAMES) == colour_of(i)).all(-1).sum() - 2 * (120 + 60) * 2 for i in range(3)
    ]
    assert all(together > 0.8 * least for together, least in zip(ink, alone, strict=True))


def test_the_picture_given_is_not_changed():
    image = grey(60, 90)
    drawn = annotate(image, objects([10, 30, 50, 50]), NAMES)
    assert (image == 128).all()
    assert drawn.shape == image.shape
    assert drawn.flags.writeable
    assert np.array_equal(annotate(image, objects(), NAMES), image)


def test_dashed_boxes_have_gaps():
    solid = annotate(grey(60, 90), objects([10, 10, 80, 50]), NAMES, named=False)
    dashed = annotate(grey(60, 90), objects([10, 10, 80, 50]), NAMES, named=False, dashed=np.array([True]))
    share = (dashed == colour_of(0)).all(-1).sum() / (solid == colour_of(0)).all(-1).sum()
    assert 0.4 < share < 0.9


def test_colours_differ():
    colours = np.array([colour_of(label) for label in range(80)])
    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(80, dtype=int)
    assert distance[:20, :20].min() > 40
    assert distance.min() > 0


def test_landmarks_are_dots():
    """A dot in the category's colour at each point that is known."""
    found = objects([100, 60, 200, 150])
    found.landmarks = torch.tensor([[[130.0, 100.0], [torch.nan, torch.nan], [170.0, 80.0]]])
    without = annotate(grey(200, 300), objects([100, 60, 200, 150]), NAMES)
    image = annotate(grey(200, 300), found, NAMES)
    dots = (image != without).any(-1)
    assert (image[[100, 80], [130, 170]] == colour_of(0)).all()
    assert dots[100, 130]
    assert dots[80, 170]
    assert 20 < dots.sum() < 200


def test_ids_have_colours_and_stand_by_the_name():
    """Two of one category are told apart, and the label is longer by the id."""
    plain = objects([40, 60, 120, 150], [160, 60, 240, 150])
    plain.labels = torch.tensor([0, 0])
    tracked = replace(plain, ids=torch.tensor([3, 4]))
    without, image = annotate(grey(200, 300), plain, NAMES), annotate(grey(200, 300), tracked, NAMES)
    assert (without[100, [40, 160]] == colour_of(0)).all()
    assert (image[100, 40] == colour_of(3)).all()
    assert (image[100, 160] == colour_of(4)).all()
    # The name stands above its box, as wide as it is long.
    assert (image[55, :150] != 128).any(-1).sum() > (without[55, :150] != 128).any(-1).sum() + 5


def test_masks_are_tinted_within_a_line():
    """What is under a mask shines through; the ground beside it stays."""
    found = objects([100, 60, 200, 150])
    found.masks = torch.zeros(1, 10, 10)
    found.masks[:, :, :5] = 1  # the left half
    without = annotate(grey(200, 300), objects([100, 60, 200, 150]), NAMES, named=False)
    image = annotate(grey(200, 300), found, NAMES, named=False)
    expected = np.round(128 * (1 - OPACITY) + np.array(colour_of(0)) * OPACITY)
    np.testing.assert_allclose(image[90, 120], expected, atol=1)
    assert (image[90, 180] == 128).all()
    edge = np.abs(image[90, 145:152].astype(int) - colour_of(0)).sum(-1)
    assert edge.min() < 20  # a line in the full colour
    changed = (image != without).any(-1)
    assert not changed[:, 153:].any()
    assert changed[65:145, 105:148].all()


def test_small_masks_lie_over_large_ones():
    square = np.ones((40, 40), np.uint8)
    masks = from_windows([square[:10, :10], square], [(10, 10), (0, 0)], [(40, 60)] * 2)
    for order in ([0, 1], [1, 0]):
        image = paint_masks(grey(40, 60), masks.select(np.array(order)), [[(255, 0, 0), (0, 255, 0)][k] for k in order])
        assert image[15, 15, 0] > image[30, 30, 0]
    assert (paint_masks(grey(40, 60), masks.select(np.zeros(0, int)), []) == 128).all()
