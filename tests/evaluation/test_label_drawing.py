"""Label maps on pictures: colours, rims, void, errors and legends."""

import numpy as np
import pytest

from sightline.evaluation import (
    draw_errors,
    draw_label_comparison,
    draw_labels,
    label_colours,
    label_legend,
    with_legend,
)
from sightline.evaluation.label_drawing import LIGHTER, Swatch

RED, BLUE = (200, 0, 0), (0, 0, 200)
COLOURS = np.array([RED, BLUE], np.uint8)
LEFT, RIGHT = np.s_[8:-8, 4:10], np.s_[8:-8, 30:36]


@pytest.fixture
def picture():
    return np.full((40, 40, 3), 100, np.uint8)


@pytest.fixture
def halves():
    """Category 0 on the left, 1 on the right."""
    return np.repeat([[0] * 20 + [1] * 20], 40, axis=0).astype(np.int16)


def test_colours_are_the_datas():
    assert label_colours(["a", "b"], [RED, BLUE]).tolist() == [list(RED), list(BLUE)]
    assert label_colours([]).shape == (0, 3)


def test_colours_stay_with_their_numbers():
    many = label_colours([str(i) for i in range(150)])
    assert len(np.unique(many, axis=0)) == 150
    np.testing.assert_array_equal(label_colours(["a", "b", "c"]), many[:3])
    named = label_colours(["Background", "b"])
    assert named[0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(named[1], many[1])


def test_few_colours_are_far_apart():
    few = label_colours([str(i) for i in range(20)]).astype(int)
    apart = np.abs(few[:, None] - few).max(-1)
    assert apart[~np.eye(20, dtype=bool)].min() >= 30
    assert (few.max(1) - few.min(1) > 40).all()  # none is grey


@pytest.mark.parametrize("opacity", [0, 0.5, 1])
def test_tint_and_rims(picture, halves, opacity):
    before = picture.copy()
    drawn = draw_labels(picture, halves, COLOURS, opacity=opacity)
    for place, colour in ((LEFT, RED), (RIGHT, BLUE)):
        expected = 100 + opacity * (np.array(colour) - 100)
        np.testing.assert_array_equal(drawn[place], np.broadcast_to(expected, drawn[place].shape))
    rim = np.rint(np.array(RED) + LIGHTER * (255 - np.array(RED)))
    np.testing.assert_array_equal(drawn[20, 19], rim)
    np.testing.assert_array_equal(drawn[0, 5], drawn[20, 5])  # a picture's edge is no rim
    np.testing.assert_array_equal(picture, before)


def test_void_is_hatched_in_grey(picture, halves):
    halves[:, :20] = -1
    drawn = draw_labels(picture, halves, COLOURS)[LEFT].astype(int)
    assert np.ptp(drawn, axis=-1).max() == 0
    assert len(np.unique(drawn)) == 2


def test_errors(picture, halves):
    found, truth = halves.copy(), halves.copy()
    found[:, :20], truth[:, 25:] = 1, -1
    drawn = draw_errors(picture, truth, found).astype(int)
    assert (drawn[LEFT][..., 0] - drawn[LEFT][..., 1] > 100).all()  # wrong: red
    assert np.ptp(drawn[8:-8, 21:24], axis=-1).max() == 0  # right: grey
    assert len(np.unique(drawn[RIGHT])) == 2  # void: hatched, whatever was predicted


def test_legend_has_what_occurs(picture, halves):
    halves[:, :20] = -1
    assert label_legend(halves, ["a", "b"], COLOURS) == [("b", BLUE)]
    drawn = with_legend(
        picture, [Swatch("b", BLUE), Swatch("a rather long name that is cut", RED), Swatch("void", None)]
    )
    np.testing.assert_array_equal(drawn[:40], picture)
    assert drawn.shape[0] > 60
    assert drawn.shape[1:] == (40, 3)
    below = drawn[40:].reshape(-1, 3)
    assert {BLUE, RED} <= set(map(tuple, below.tolist()))


@pytest.mark.parametrize("shape", [(30, 50), (90, 20), (700, 900)], ids=str)
def test_comparison(shape):
    """Two panels in a row, or four of upright pictures; all of one size whatever the picture's."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*shape, 3), np.uint8)
    truth, found = rng.integers(-1, 2, (2, *shape))
    drawn = draw_label_comparison(image, truth, found, ["a", "b"], COLOURS)
    height, width = (round(side * 640 / max(shape)) for side in shape)
    rows, columns = (2, 2) if width > height else (1, 4)
    assert drawn.dtype == np.uint8
    assert rows * height < drawn.shape[0] < rows * (height + 60) + 80
    assert drawn.shape[1] == 12 + columns * (max(width, 154) + 12)


def test_comparison_of_void_alone(picture):
    nothing = np.full((40, 40), -1)
    assert draw_label_comparison(picture, nothing, nothing, ["a"], COLOURS[:1]).shape[2] == 3


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.zeros((4, 5, 3)), np.zeros((4, 5), int), r"image must be \(H, W, 3\) uint8"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), int), r"labels must be \(4, 5\)"),
        (np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 2), "label 2 has no colour; there are 2"),
    ],
)
def test_refuses(image, labels, message):
    with pytest.raises(ValueError, match=message):
        draw_labels(image, labels, COLOURS)
    with pytest.raises(ValueError, match=message):
        draw_label_comparison(image, labels, labels, ["a", "b"], COLOURS)
