"""The filter of boxes at constant velocity, held against the textbook's matrices, track by track."""

import numpy as np
import pytest

from sightline.detectors.kalman import Motion, correct, predict, start


class Matrices:
    """One track in textbook form (Welch and Bishop, "An introduction to the Kalman filter", eq. 1.9 to 1.13).

    The state is (x, y, width, height, and their velocities), DeepSORT's noise on each in shares of the height.
    """

    transition = np.block([[np.eye(4), np.eye(4)], [np.zeros((4, 4)), np.eye(4)]])
    observation = np.eye(4, 8)

    def __init__(self, measured):
        self.mean = np.concatenate([measured, np.zeros(4)])
        self.covariance = self.noise(2 / 20, 10 / 160)

    def noise(self, place, velocity):
        return np.diag([place * self.mean[3]] * 4 + [velocity * self.mean[3]] * 4) ** 2

    def predict(self):
        noise = self.noise(1 / 20, 1 / 160)
        self.mean = self.transition @ self.mean
        self.covariance = self.transition @ self.covariance @ self.transition.T + noise

    def correct(self, measured):
        observed = self.observation @ self.covariance @ self.observation.T + self.noise(1 / 20, 0)[:4, :4]
        gain = self.covariance @ self.observation.T @ np.linalg.inv(observed)
        self.mean = self.mean + gain @ (measured - self.observation @ self.mean)
        self.covariance = (np.eye(8) - gain @ self.observation) @ self.covariance


def boxes_of(measured):
    x, y, width, height = measured.T
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)


def test_as_the_matrices():
    """Five tracks through thirty updates, some of which are missed."""
    rng = np.random.default_rng(0)
    speed = rng.normal(0, 2, (5, 4))
    place = rng.uniform(100, 200, (5, 4))
    motion, tracks = start(boxes_of(place)), [Matrices(row) for row in place]
    for step in range(1, 31):
        measured = place + step * speed * (1, 1, 0.3, 0.3) + rng.normal(0, 3, (5, 4))
        motion = predict(motion)
        for track in tracks:
            track.predict()
        if step % 4:
            motion = correct(motion, boxes_of(measured))
            for track, row in zip(tracks, measured, strict=True):
                track.correct(row)
        for i, track in enumerate(tracks):
            np.testing.assert_allclose(motion.place[i], track.mean[:4], rtol=1e-10)
            np.testing.assert_allclose(motion.velocity[i], track.mean[4:], atol=1e-10)
            expected = np.block(
                [[np.eye(4) * motion.covariance[i, 0], np.eye(4) * motion.covariance[i, 1]],
                 [np.eye(4) * motion.covariance[i, 1], np.eye(4) * motion.covariance[i, 2]]]
            )  # fmt: skip
            np.testing.assert_allclose(expected, track.covariance, rtol=1e-9, atol=1e-9)


def test_a_steady_object_is_foreseen():
    """Of a box that moves 7 pixels an update, the velocity is learnt, and the place known while it is not seen."""
    box = np.array([[100.0, 50, 140, 130]])
    motion = start(box)
    for step in range(1, 21):
        motion = correct(predict(motion), box + np.array([7, 0, 7, 0]) * step)
    np.testing.assert_allclose(motion.velocity[0], [7, 0, 0, 0], atol=0.15)
    for _ in range(10):
        motion = predict(motion)
    np.testing.assert_allclose(motion.boxes[0], box[0] + np.array([210, 0, 210, 0]), atol=2)


def test_noise_is_smoothed():
    rng = np.random.default_rng(1)
    truth = np.array([[100.0, 50, 140, 130]])
    motion, errors = start(truth), []
    for _ in range(200):
        seen = truth + rng.normal(0, 4, (1, 4))
        motion = correct(predict(motion), seen)
        errors.append((np.abs(motion.boxes - truth).mean(), np.abs(seen - truth).mean()))
    filtered, raw = np.mean(errors[20:], axis=0)
    assert filtered < 0.85 * raw


def test_unseen_things_become_uncertain():
    motion = start(np.array([[0.0, 0, 40, 80]]))
    variances = [motion.covariance[0, 0]]
    for _ in range(5):
        motion = predict(motion)
        variances.append(motion.covariance[0, 0])
    assert np.all(np.diff(variances) > 0)
    assert correct(motion, np.array([[0.0, 0, 40, 80]])).covariance[0, 0] < variances[-1]


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (0, 0, 100, 0), (0, 0, 0, 100)], ids=["point", "flat", "thin"])
def test_empty_boxes_give_numbers(box):
    boxes = np.array([box], float)
    motion = start(boxes)
    for _ in range(40):
        motion = correct(predict(motion), boxes)
    assert all(np.isfinite(values).all() for values in motion)
    np.testing.assert_allclose(motion.boxes, boxes, atol=1e-9)


def test_a_box_never_turns_inside_out():
    shrinking = Motion(np.array([[50.0, 50, 10, 10]]), np.array([[0.0, 0, -4, -4]]), np.ones((1, 3)))
    for _ in range(5):
        shrinking = predict(shrinking)
    assert shrinking.boxes.tolist() == [[50, 50, 50, 50]]


def test_no_tracks():
    motion = start(np.zeros((0, 4)))
    motion = correct(predict(motion), np.zeros((0, 4)))
    assert [values.shape for values in (*motion, motion.boxes)] == [(0, 4), (0, 4), (0, 3), (0, 4)]


def test_what_is_given_is_not_changed():
    boxes = np.array([[0.0, 0, 40, 80]])
    motion = start(boxes)
    before = [values.copy() for values in motion]
    correct(predict(motion), boxes + 5)
    assert all(np.array_equal(values, was) for values, was in zip(motion, before, strict=True))
    assert boxes.tolist() == [[0, 0, 40, 80]]
