"""Deterministic geometry of samples: resizing as torchvision's detectors do it, and flipping.

Pictures are (3, H, W) tensors whose memory is (H, W, 3), as decoders, OpenCV and channels-last networks have it; the
functions here take any memory layout and return that one.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .structures import Instances, Sample

# How pictures are brought to size: the arguments of `resize_shape` after the first two; none leave them as they are.
Resize = tuple[int, int] | tuple[int, int, bool] | tuple[()]


def resize_shape(
    height: int, width: int, min_size: int | None = None, max_size: int | None = None, exact: bool = False
) -> tuple[int, int]:
    """(height, width) at which the short side is `min_size`, or the long side `max_size` if that is smaller.

    With `exact` it is (min_size, max_size) whatever the picture's shape, for networks of one input size; without sizes it is
    the picture's own. Else it rounds as `torchvision.models.detection.transform.GeneralizedRCNNTransform` does: down, after a
    float64 product.
    """
    if min_size is None or max_size is None:
        return height, width
    if exact:
        return min_size, max_size
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def resize(sample: Sample, min_size: int | None = None, max_size: int | None = None, exact: bool = False) -> Sample:
    """The sample at `resize_shape`'s size: the picture by OpenCV's bilinear interpolation, within 1 of torchvision."""
    height, width = sample.image.shape[1:]
    return resize_to(sample, resize_shape(height, width, min_size, max_size, exact))


def resize_to(sample: Sample, shape: tuple[int, int]) -> Sample:
    """The sample at `shape` (height, width); boxes and `info.scale` change by the exact ratio along each axis."""
    old = tuple(sample.image.shape[1:])
    scale = tuple(s * new / before for s, new, before in zip(sample.info.scale, shape, old, strict=True))
    image, info = resize_image(sample.image, shape), sample.info._replace(scale=scale)
    return sample.moved(image, lambda instances: resize_instances(instances, old, shape), info)


def resize_image(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """A picture (3, H, W) uint8 at `shape` (height, width); the picture itself if it is of that shape."""
    if tuple(image.shape[1:]) == tuple(shape):
        return image
    pixels = image.permute(1, 2, 0).numpy()  # of a crop, whose rows OpenCV skips through, not `to_hwc`'s copy
    return from_hwc(cv2.resize(pixels, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))


def resize_instances(instances: Instances, old: tuple[int, int], new: tuple[int, int]) -> Instances:
    """Objects of a picture of size `old` (height, width) in one of size `new`; compact masks need no change."""
    # Divided in float32, as torchvision does, so that boxes agree to the last bit.
    ratio = torch.tensor([new[1], new[0]] * 2, dtype=torch.float32) / torch.tensor([old[1], old[0]] * 2)
    landmarks = None if instances.landmarks is None else instances.landmarks * ratio[:2]
    return replace(instances, boxes=instances.boxes * ratio, landmarks=landmarks)


def resize_exact(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """A picture (3, H, W) resized in floating point with torchvision's numbers; to compare networks, too slow to train them.

    Returns:
        (3, h, w) in the input's units; float32 unless the input is of another floating type.
    """
    shape = resize_shape(*image.shape[1:], min_size, max_size)
    image = image if image.is_floating_point() else image.float()
    return F.interpolate(image[None], size=shape, mode="bilinear", align_corners=False)[0]


def flip(sample: Sample) -> Sample:
    """The sample mirrored left to right: x becomes W - x. Twice is the identity, up to rounding of the boxes."""
    image = from_hwc(cv2.flip(to_hwc(sample.image), 1))
    info = sample.info._replace(flipped=not sample.info.flipped)
    return sample.moved(image, lambda instances: flip_instances(instances, sample.image.shape[2]), info)


def flip_instances(instances: Instances, width: int) -> Instances:
    """One image's or a batch's objects mirrored left to right in a picture `width` pixels wide, masks and landmarks too.

    Landmarks keep their order; `landmarks.mirrored` tells which change their names.
    """
    x0, y0, x1, y1 = instances.boxes.unbind(-1)
    boxes, masks, landmarks = (
        torch.stack([width - x1, y0, width - x0, y1], dim=-1),
        instances.masks,
        instances.landmarks,
    )
    masks = None if masks is None else masks.flip(-1)
    landmarks = None if landmarks is None else torch.stack([width - landmarks[..., 0], landmarks[..., 1]], dim=-1)
    return replace(instances, boxes=boxes, masks=masks, landmarks=landmarks)


def to_hwc(image: Tensor) -> np.ndarray:
    """(H, W, 3) array of a picture (3, H, W), without a copy where the memory is (H, W, 3) already."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def from_hwc(image: np.ndarray) -> Tensor:
    """(3, H, W) tensor that shares the memory of an array (H, W, 3)."""
    return torch.from_numpy(image).permute(2, 0, 1)
