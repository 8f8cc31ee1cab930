"""Pictures and their objects seen through any affine or projective map, in one interpolation.

A map is a (3, 3) float64 matrix that takes (x, y, 1) in a scene to the same in the frame that is cut out of it, both in
continuous pixels: pixel i reaches from i to i + 1.

Letters: N objects, H, W pixels of the frame, M cells along a mask's side, P landmarks of an object.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from .masks import cell_centres, resample
from .structures import Instances

FILL = 114  # of RGB, where there is no picture: the gray that YOLOX pads with
LEAST_SHARE = 0.2  # of an object's area, or its mask's, that must be left in the frame for it to stay
LEAST_SIDE = 2.0  # pixels that its box must then have along both sides
_NEAREST = 0.1  # share of its distance at which a point that is nearer, or behind, is taken to lie; in no frame any is
_COVERED = 0.1  # share of a mask's cell from which some of the object is there; less is what resampling leaves
_PROBES = 8  # along each side of a box, by which its share in the frame is told


def warp(image: np.ndarray, matrix: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    """The frame (H, W, 3) uint8 that is seen of a picture (h, w, 3) uint8, gray beside it; bilinear."""
    out = np.full((*frame, 3), FILL, np.uint8)
    height, width = image.shape[:2]
    ends = project(matrix, np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64))
    low = np.maximum(np.floor(ends.min(axis=0) - 1), 0).astype(int)
    high = np.minimum(np.ceil(ends.max(axis=0) + 1), frame[::-1]).astype(int)
    if (high > low).all():  # the gray around need not be computed
        # OpenCV means pixels' centres by whole numbers.
        matrix = move(-0.5 - low[0], -0.5 - low[1]) @ matrix @ move(0.5, 0.5)
        options = {"dsize": (high - low).tolist(), "flags": cv2.INTER_LINEAR, "borderValue": (FILL,) * 3}
        # With a fourth channel, OpenCV 5 makes the same pixels in less than half the time.
        image, affine = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), is_affine(matrix)
        part = cv2.warpAffine(image, matrix[:2], **options) if affine else cv2.warpPerspective(image, matrix, **options)
        out[low[1] : high[1], low[0] : high[0]] = cv2.cvtColor(part, cv2.COLOR_RGBA2RGB)
    return out


def seen(instances: Instances, matrix: np.ndarray, frame: tuple[int, int]) -> Instances:
    """A scene's objects in the frame; those of which too little is left there (see `LEAST_SHARE`, `LEAST_SIDE`) go.

    A box becomes the one around its corners' images, clipped, and with masks the one around its mask's image, as far as
    that is smaller: as tight as a turned box can be. Of a crowd any part stays. A landmark outside is no longer known.
    """
    boxes, share = _boxes_seen(instances.boxes.double().numpy(), matrix, frame)
    boxes, share = torch.from_numpy(boxes).float(), torch.from_numpy(share)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    instances, boxes, share = instances[inside], boxes[inside], share[inside]
    if instances.masks is not None:
        boxes, share = tightened(boxes, instances, matrix, frame)
    sides = boxes[:, 2:] - boxes[:, :2]
    stays = (share >= LEAST_SHARE) & (sides >= LEAST_SIDE).all(dim=1)
    if instances.crowd is not None:
        stays |= instances.crowd & (sides > 0).all(dim=1)
    return moved(instances[stays], boxes[stays], matrix, frame)


def moved(instances: Instances, boxes: Tensor, matrix: np.ndarray, frame: tuple[int, int]) -> Instances:
    """A scene's objects in the frame, with these boxes there (N, 4); their masks and landmarks follow."""
    masks, landmarks = instances.masks, instances.landmarks
    if masks is not None and len(masks):
        points = project(np.linalg.inv(matrix), cell_centres(boxes, masks.shape[-1]).double().numpy())
        low, high = instances.boxes[:, None, None, :2], instances.boxes[:, None, None, 2:]
        masks = resample(masks, (torch.from_numpy(points).float() - low) / (high - low))
    if landmarks is not None:
        points = torch.from_numpy(project(matrix, landmarks.double().numpy())).float()
        inside = ((points >= 0) & (points <= points.new_tensor(frame[::-1]))).all(dim=-1, keepdim=True)
        landmarks = torch.where(inside, points, torch.nan)
    return replace(instances, boxes=boxes, masks=masks, landmarks=landmarks)


def tightened(boxes: Tensor, instances: Instances, matrix: np.ndarray, frame: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes in the frame, shrunk to what is seen of the objects' masks there, up to a mask's cell.

    One that is neither cut nor turned stays as it is, to the last bit; one of which nothing is seen has no positive
    width.

    Args:
        boxes: (N, 4), xyxy in the frame.
        instances: N objects of the scene, with masks.
        matrix: from scene to frame.
        frame: (H, W).

    Returns:
        (N, 4), and (N,), the share of each mask's area that is seen.
    """
    masks, old = instances.masks.numpy(), instances.boxes.double().numpy()
    at = np.arange(masks.shape[-1] + 1) / masks.shape[-1]
    at = np.stack(np.broadcast_arrays(at, at[:, None]), axis=-1)
    corners = project(matrix, old[:, None, None, :2] + at * (old[:, 2:] - old[:, :2])[:, None, None])
    x, y = np.moveaxis(corners, -1, 0).copy()  # (N, M + 1, M + 1) each
    x0, x1, y0, y1 = (_over_cells(least, axis) for axis in (x, y) for least in (np.minimum, np.maximum))
    height, width = frame
    middle_x, middle_y = abs(x0 + x1 - width) <= width, abs(y0 + y1 - height) <= height  # of the cell, in the frame
    share = (masks * (middle_x & middle_y)).sum(axis=(1, 2)) / np.maximum(masks.sum(axis=(1, 2)), 1e-9)
    covered = masks > _COVERED
    # A cell across the frame's upper edge reaches up to that, but may well be empty at its sides below it.
    across, along = covered & middle_y & (x1 > 0) & (x0 < width), covered & middle_x & (y1 > 0) & (y0 < height)
    low = [np.where(there, end, np.inf).min(axis=(1, 2)) for there, end in ((across, x0), (along, y0))]
    high = [np.where(there, end, -np.inf).max(axis=(1, 2)) for there, end in ((across, x1), (along, y1))]
    extents = torch.from_numpy(np.stack([*low, *high], axis=1)).float()
    tight = torch.cat([boxes[:, :2].maximum(extents[:, :2]), boxes[:, 2:].minimum(extents[:, 2:])], dim=1)
    share = torch.from_numpy(share)
    changed = (share < 1) | (not is_straight(matrix))
    return torch.where(changed[:, None], tight, boxes), share


def _over_cells(least: np.ufunc, corners: np.ndarray) -> np.ndarray:
    """(N, M, M), the least, or largest, of the four corners of each cell; corners (N, M + 1, M + 1)."""
    pairs = least(corners[:, 1:], corners[:, :-1])
    return least(pairs[:, :, 1:], pairs[:, :, :-1])


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Images (..., 2) of points (..., 2); what lies at the horizon or behind it goes far out, but stays finite."""
    images = points.reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2]
    if is_affine(matrix):
        return images[:, :2].reshape(points.shape)
    return (images[:, :2] / np.maximum(images[:, 2:], _NEAREST)).reshape(points.shape)


def is_affine(matrix: np.ndarray) -> bool:
    """Whether parallels stay parallel."""
    return bool((matrix[2] == (0, 0, 1)).all())


def is_straight(matrix: np.ndarray) -> bool:
    """Whether upright rectangles stay upright rectangles."""
    return bool(matrix[0, 1] == matrix[1, 0] == 0) and is_affine(matrix)


def move(x: float, y: float) -> np.ndarray:
    """The map that shifts by so many pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _boxes_seen(boxes: np.ndarray, matrix: np.ndarray, frame: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float64, the boxes around what is in the frame of boxes' images, and the share (N,) of each box that this is.

    Outside the frame a box has no positive width and height.
    """
    corners = project(matrix, boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]])  # (N, 4, 2), around the box
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    limit = np.array(frame[::-1], np.float64)
    clipped = np.concatenate([whole[:, :2].clip(0, None), np.minimum(whole[:, 2:], limit)], axis=1)
    cut, share = np.flatnonzero((clipped != whole).any(axis=1)), np.ones(len(boxes))
    at = (np.arange(_PROBES) + 0.5) / _PROBES
    at = np.stack(np.broadcast_arrays(at, at[:, None]), axis=-1).reshape(-1, 2)
    probes = project(matrix, boxes[cut, None, :2] + at * (boxes[cut, None, 2:] - boxes[cut, None, :2]))
    share[cut] = ((probes >= 0) & (probes <= limit)).all(axis=-1).mean(axis=1)
    if not is_straight(matrix):
        clipped[cut] = _extents_within(corners[cut], limit).clip(0, np.tile(limit, 2))  # but for rounding they are
    return clipped, share


def _extents_within(corners: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """(N, 4), the boxes around what quadrilaterals (N, 4, 2) have in common with a frame from (0, 0) to `limit` (x, y).

    That is spanned by the parts of the quadrilaterals' edges within the frame (Liang and Barsky 1984) and by those of the
    frame's corners that lie within them. Reversed boxes where there is neither.
    """
    edges = np.roll(corners, -1, axis=1) - corners
    steps = np.where(np.abs(edges) < 1e-12, 1e-12, edges)
    crossings = np.sort(np.stack([-corners / steps, (limit - corners) / steps]), axis=0)  # of each axis' two lines
    start, stop = crossings[0].max(axis=-1).clip(0, None), crossings[1].min(axis=-1).clip(None, 1)
    ends = [corners + t[..., None] * edges for t in (start, stop)]
    frame = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * limit
    to_frame = frame[None, :, None] - corners[:, None]  # (N, frame's corner, quadrilateral's corner, 2)
    side = edges[:, None, :, 0] * to_frame[..., 1] - edges[:, None, :, 1] * to_frame[..., 0]
    within = (side >= 0).all(axis=-1) | (side <= 0).all(axis=-1)
    points = np.concatenate([*ends, np.broadcast_to(frame, corners.shape)], axis=1)
    valid = np.concatenate([start <= stop, start <= stop, within], axis=1)[..., None]
    return np.concatenate([np.where(valid, points, np.inf).min(1), np.where(valid, points, -np.inf).max(1)], axis=1)
