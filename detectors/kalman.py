"""A Kalman filter of boxes that move at constant velocity, all tracks at once (SORT, Bewley et al. 2016,
https://arxiv.org/abs/1602.00763; the noise is that of DeepSORT, Wojke et al. 2017, https://arxiv.org/abs/1703.07402).

Of each box four numbers are filtered: centre x, centre y, width and height. Each moves by itself:

    number'   = number + velocity       the model, from one update to the next
    measured  = number + noise

Deviations are shares of the box's height, so that a near object may err by more pixels than a far one. Since the share
is one for all four numbers, so is their covariance, and three values a track stand for DeepSORT's 8 x 8 matrix. That
filter has the aspect ratio for a width, with noise of its own; a width needs no division by the height.

Letters: T tracks. Everything is float64; time counts updates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Deviations as shares of the height, DeepSORT's: of a place, of what is measured, and of a velocity.
PLACE = MEASURED = 1 / 20
VELOCITY = 1 / 160


class Motion(NamedTuple):
    """Where T objects are believed to be and how they move.

    Attributes:
        place: (T, 4), centre x, centre y, width and height in pixels.
        velocity: (T, 4), the same per update.
        covariance: (T, 3), in square pixels: the variance of a place, its covariance with its velocity, and the
            variance of the velocity; the same for each of the four.
    """

    place: np.ndarray
    velocity: np.ndarray
    covariance: np.ndarray

    @property
    def boxes(self) -> np.ndarray:
        """(T, 4), xyxy; one that was to shrink below nothing is empty."""
        half = self.place[:, 2:].clip(min=0) / 2
        return np.concatenate([self.place[:, :2] - half, self.place[:, :2] + half], axis=1)


def start(boxes: np.ndarray) -> Motion:
    """Objects seen for the first time, at rest as far as one knows.

    Args:
        boxes: (T, 4), xyxy in pixels.
    """
    place = _measured(boxes)
    height = _height(place)
    variances = [(2 * PLACE * height) ** 2, np.zeros_like(height), (10 * VELOCITY * height) ** 2]
    return Motion(place, np.zeros_like(place), np.stack(variances, axis=1))


def predict(motion: Motion) -> Motion:
    """One update later, before anything is seen: places move on, and are less certain."""
    place, covariance, velocity = motion.covariance.T
    height = _height(motion.place)
    variances = [
        place + 2 * covariance + velocity + (PLACE * height) ** 2,
        covariance + velocity,
        velocity + (VELOCITY * height) ** 2,
    ]
    return Motion(motion.place + motion.velocity, motion.velocity, np.stack(variances, axis=1))


def correct(motion: Motion, boxes: np.ndarray) -> Motion:
    """What is believed after the objects were seen at these boxes.

    Args:
        motion: of T tracks, predicted for this update.
        boxes: (T, 4), xyxy in pixels, of the same tracks.
    """
    place, covariance, velocity = motion.covariance.T
    noise = (MEASURED * _height(motion.place)) ** 2
    gain_place, gain_velocity = place / (place + noise), covariance / (place + noise)
    surprise = _measured(boxes) - motion.place
    variances = [noise * gain_place, noise * gain_velocity, velocity - gain_velocity * covariance]
    return Motion(
        motion.place + gain_place[:, None] * surprise,
        motion.velocity + gain_velocity[:, None] * surprise,
        np.stack(variances, axis=1),
    )


def _measured(boxes: np.ndarray) -> np.ndarray:
    """(T, 4), centre and size of xyxy boxes."""
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def _height(place: np.ndarray) -> np.ndarray:
    """(T,), what noise is a share of: a pixel at least, since without noise nothing could be weighed."""
    return place[:, 3].clip(min=1)
