"""Colours, against the standard library's one pixel at a time."""

import colorsys

import numpy as np
import pytest

from sightline.datasets.colour import change_hsv


def picture():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (18, 20, 3), np.uint8)
    colours[0] = np.arange(20)[:, None] * 13  # grays
    colours[1, :6] = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0), (255, 255, 255)]
    return colours


def by_hand(image, hue, saturation, value):
    out = []
    for pixel in image.reshape(-1, 3) / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        out.append(colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1, s * saturation), min(1, v * value)))
    return 255 * np.array(out).reshape(image.shape)


@pytest.mark.parametrize(
    ("hue", "saturation", "value"),
    [(0, 1.5, 1), (0, 0.4, 1), (0, 1, 1.5), (0, 1, 0.3), (45, 1, 1), (-90, 1, 1), (170, 0.7, 1.2), (-5, 1.3, 0.8)],
)
def test_colours_are_those_of_the_standard_library(hue, saturation, value):
    image = picture()
    error = np.abs(
        change_hsv(image, hue=hue, saturation=saturation, value=value) - by_hand(image, hue, saturation, value)
    )
    assert error.max() < 9  # a hue is held to 1.4 degrees, twice: 6 levels of a pure colour, and all is rounded
    assert error.mean() < 1.5


def test_a_third_of_the_circle_makes_green_of_red():
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    np.testing.assert_allclose(change_hsv(red, hue=120), [[(0, 255, 0)]], atol=6)
    np.testing.assert_allclose(change_hsv(red, hue=-120), [[(0, 0, 255)]], atol=6)


def test_nothing_changes_nothing():
    image = picture()
    np.testing.assert_array_equal(change_hsv(image), image)


def test_grays_stay_gray_and_the_input_as_it_was():
    image = picture()
    before = image.copy()
    changed = change_hsv(image, hue=77, saturation=3, value=0.5)
    assert (np.ptp(changed[0], axis=-1) == 0).all()
    np.testing.assert_array_equal(image, before)
