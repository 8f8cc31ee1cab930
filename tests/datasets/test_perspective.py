"""Maps of pictures and their objects: what the boxes enclose is what the picture shows."""

import math

import cv2
import numpy as np
import pytest
import torch

from sightline.datasets.perspective import FILL, move, project, seen, warp
from sightline.datasets.structures import Instances

FRAME = (70, 90)


def instances(*boxes, crowd=None, **fields):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    return Instances(boxes, torch.arange(len(boxes)), crowd=crowd, **fields)


def turned(degrees, centre=(45, 35), zoom=1.0):
    angle = math.radians(degrees)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    return move(*centre) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ move(-centre[0], -centre[1])


def leaning(x, y):
    return np.array([[1, x, 0], [y, 1, 0], [0, 0, 1]], np.float64)


def nearer(x, y):
    return move(45, 35) @ np.array([[1, 0, 0], [0, 1, 0], [x / 90, y / 70, 1]]) @ move(-45, -35)


MAPS = {
    "nothing": np.eye(3),
    "shift": move(-31, 12.5),
    "mirror": move(90, 0) @ np.diag([-1, 1, 1]),
    "zoom in": turned(0, zoom=2.3),
    "zoom out": turned(0, zoom=0.6),
    "turn": turned(25),
    "turn upside down": turned(160, zoom=1.4),
    "lean": leaning(0.4, -0.2),
    "perspective": nearer(0.4, -0.3),
    "all": nearer(-0.3, 0.4) @ turned(-40, zoom=1.5) @ leaning(0.2, 0.1),
}


def extents(mask):
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


@pytest.mark.parametrize("name", MAPS)
def test_boxes_enclose_what_is_seen(name):
    """One rectangle at a time, white on black, of any place and size; whole and cut by the frame."""
    rng, matrix, kept = np.random.default_rng(0), MAPS[name], 0
    for _ in range(40):
        (x, y), (width, height) = rng.integers(0, (70, 50)).tolist(), rng.integers(6, 45, 2).tolist()
        box = (x, y, min(x + width, 90), min(y + height, 70))
        picture = np.zeros((*FRAME, 3), np.uint8)
        picture[box[1] : box[3], box[0] : box[2]] = 255
        shown = warp(picture, matrix, FRAME)[..., 0] > 180  # FILL is no part of it
        found = seen(instances(box), matrix, FRAME)
        if len(found):
            kept += 1
            # Sharp corners that turn cover less than half of their last pixels.
            tolerance = 1.0 if name in ("nothing", "shift", "mirror", "zoom in", "zoom out") else 3.0
            np.testing.assert_allclose(found.boxes[0].numpy(), extents(shown), atol=tolerance)
        elif shown.any():
            part = project(np.linalg.inv(matrix), np.argwhere(shown)[:, ::-1] + 0.5)  # pixels, where they come from
            hull = cv2.contourArea(cv2.convexHull(part.astype(np.float32)))
            sides = extents(shown)[2:] - extents(shown)[:2]
            assert hull < 0.25 * (box[2] - box[0]) * (box[3] - box[1]) or sides.min() < 4
    assert kept >= 15


@pytest.mark.parametrize("name", MAPS)
def test_boxes_are_those_of_opencv_polygons(name):
    """The part of a quadrilateral in the frame, by `cv2.intersectConvexConvex`."""
    rng, matrix = np.random.default_rng(1), MAPS[name]
    frame = np.array([[0, 0], [90, 0], [90, 70], [0, 70]], np.float32)
    for _ in range(40):
        x, y, width, height = rng.uniform((-20, -20, 10, 10), (80, 60, 80, 80)).astype(np.float32).tolist()
        found = seen(instances((x, y, x + width, y + height)), matrix, FRAME)
        corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
        _, common = cv2.intersectConvexConvex(project(matrix, corners).astype(np.float32), frame)
        if len(found):
            expected = np.concatenate([common[:, 0].min(0), common[:, 0].max(0)])
            np.testing.assert_allclose(found.boxes[0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["shift", "mirror", "zoom in", "zoom out"])
def test_upright_maps_move_corners_exactly(name):
    boxes = [(20, 20, 60, 50), (30.5, 22.25, 44, 41)]
    found = seen(instances(*boxes), MAPS[name], (1000, 1000))
    corners = project(MAPS[name], np.array(boxes).reshape(-1, 2, 2))
    whole = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    kept = found.labels.numpy()
    np.testing.assert_allclose(found.boxes.numpy(), np.clip(whole[kept], 0, None), atol=1e-4)


def test_affine_boxes_are_albumentations():
    """https://albumentations.ai/docs/api-reference/albumentations/augmentations/geometric/transforms/#Affine"""
    albumentations = pytest.importorskip("albumentations")
    boxes = np.array([(20, 20, 60, 50), (30, 22, 44, 41)], np.float32)
    affine = albumentations.Affine(rotate=(17, 17), scale=(0.8, 0.8), translate_px=(4, 4), p=1.0)
    compose = albumentations.Compose([affine], bbox_params=albumentations.BboxParams("pascal_voc", label_fields=[]))
    theirs = compose(image=np.zeros((*FRAME, 3), np.uint8), bboxes=boxes)
    matrix = move(4, 4) @ turned(17, zoom=0.8)
    mine = seen(instances(*boxes.tolist()), matrix, FRAME).boxes.numpy()
    other = seen(instances(*boxes.tolist()), move(4, 4) @ turned(-17, zoom=0.8), FRAME).boxes.numpy()
    error = min(np.abs(m - np.array(theirs["bboxes"])).max() for m in (mine, other))  # their sense of turning
    assert error < 1.0  # they turn about the middle of pixels


def test_warp_leaves_a_picture_as_it_is_and_fills_with_gray():
    picture = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    np.testing.assert_array_equal(warp(picture, np.eye(3), (31, 47)), picture)
    shown = warp(picture, move(5, 3), (40, 60))
    np.testing.assert_array_equal(shown[3:34, 5:52], picture)
    shown[3:34, 5:52] = FILL
    assert (shown == FILL).all()
    assert (warp(picture, move(500, 0), (10, 10)) == FILL).all()
    np.testing.assert_array_equal(warp(picture, MAPS["mirror"] @ move(43, 0), (31, 47)), picture[:, ::-1])


@pytest.mark.parametrize("name", MAPS)
def test_warp_is_opencv_s_of_three_channels(name):
    """By its rule for whole pixels' centres; nearest its borders the two may take other neighbours."""
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8), (90, 70))
    matrix = move(-0.5, -0.5) @ MAPS[name] @ move(0.5, 0.5)
    options = {"dsize": FRAME[::-1], "flags": cv2.INTER_LINEAR, "borderValue": (FILL,) * 3}
    expected = cv2.warpPerspective(picture, matrix, **options).astype(int)
    away = np.abs(warp(picture, MAPS[name], FRAME) - expected)
    assert (away <= 1).mean() > 0.99
    assert away.reshape(-1, 3).mean(axis=0).max() < 0.5, "channels are swapped"


def test_perspective_and_affine_agree_where_both_can():
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8), (9, 9), 3)
    near = turned(10)
    near[2, 0] = 1e-9
    difference = np.abs(warp(picture, turned(10), FRAME).astype(int) - warp(picture, near, FRAME))
    assert difference.max() <= 3


def test_objects_go_with_too_little_left_and_crowds_stay():
    boxes = [(-38, 10, 2, 30), (-30, 10, 10, 30), (-38, 10, 2, 30), (200, 10, 240, 30)]
    found = seen(instances(*boxes, crowd=[False, False, True, True]), np.eye(3), FRAME)
    assert found.labels.tolist() == [1, 2]
    assert found.boxes.tolist() == [[0, 10, 10, 30], [0, 10, 2, 30]]
    assert len(seen(instances((10, 10, 11, 40)), np.eye(3), FRAME)) == 0, "thinner than LEAST_SIDE"


def test_what_lies_behind_the_horizon_is_not_seen():
    matrix = nearer(0.5, 0)
    found = seen(instances((-400, 10, -300, 60), (-400, 10, 60, 60), (20, 10, 60, 60)), matrix, FRAME)
    assert 2 in found.labels.tolist()
    assert 0 not in found.labels.tolist()
    assert torch.isfinite(found.boxes).all()


def test_masks_make_turned_boxes_tight():
    """A disc's box does not grow when it turns, where a box alone would."""
    at = torch.arange(56) + 0.5 - 28
    disc = ((at**2 + at[:, None] ** 2) <= 28**2).float()[None]
    matrix = turned(45)
    alone = seen(instances((30, 20, 60, 50)), matrix, FRAME).boxes[0]
    target = seen(instances((30, 20, 60, 50), masks=disc), matrix, FRAME)
    assert ((alone[2:] - alone[:2]) > 42).all()
    torch.testing.assert_close(target.boxes[0], torch.tensor([30.0, 20, 60, 50]), atol=1.0, rtol=0)
    assert ((target.masks[0] >= 0.5) == (disc[0] >= 0.5)).float().mean() > 0.95


def test_an_object_whose_mask_is_not_seen_goes():
    masks = torch.zeros(1, 8, 8)
    masks[..., :2] = 1  # only its left quarter, which lies outside
    assert len(seen(instances((-20, 10, 40, 40), masks=masks), np.eye(3), FRAME)) == 0
    assert len(seen(instances((-20, 10, 40, 40)), np.eye(3), FRAME)) == 1


def test_landmarks_move_and_are_forgotten_outside():
    points = torch.tensor([[[10.0, 20], [80, 20], [torch.nan, torch.nan]]])
    found = seen(instances((5, 5, 85, 40), landmarks=points), move(15, 0), FRAME)
    torch.testing.assert_close(found.landmarks[0, 0], torch.tensor([25.0, 20]))
    assert found.landmarks[0, 1:].isnan().all()


def test_no_objects():
    for masks in (None, torch.zeros(0, 7, 7)):
        for matrix in MAPS.values():
            assert len(seen(instances(masks=masks), matrix, FRAME)) == 0
