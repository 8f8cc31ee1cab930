"""Crops of one size out of pictures of any: random ones to train a classifier on, and sets of them to average over.

Papers: AlexNet (Krizhevsky et al. 2012, https://papers.nips.cc/paper/4824), section 4.1; VGG
(https://arxiv.org/abs/1409.1556), section 3.1; ResNet (https://arxiv.org/abs/1512.03385), sections 3.4 and 4.1.

Letters: H, W pixels of a picture, h, w of a crop, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from .augment import crop, jitter_colour
from .masks import recrop
from .statistics import Statistics
from .structures import Sample
from .table import DataError
from .transforms import flip, from_hwc, resize_image, resize_to, to_hwc

# Of the covariance of ImageNet's colours in 0..1, as ImageNet recipes have passed them on since Torch7's: eigenvalues, and
# eigenvectors in columns. `statistics.compute` gives 0.198, 0.016, 0.004 for a part of COCO, and nearly the same vectors.
IMAGENET_VALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class ScaleCrop:
    """Scale, crop, mirror and recolour at random: `crop(sample, rng)` is a sample of exactly `size`.

    The short side is brought to a length drawn from `scale`, and a window of `size` is cut out anywhere, up to whole
    pixels of the sample (VGG, section 3.1; ResNet, section 3.4). A picture that would be smaller than the window is
    scaled up to it. An object stays, clipped, if its centre does; a label of the whole picture, that is an object whose
    box is the whole picture, stays in any case and becomes one of the whole crop.

    An equal `rng` gives an equal result in every process. `info` still names the picture, but maps no boxes back.

    Attributes:
        size: (height, width) of the crop in pixels.
        scale: range of the short side in pixels, both ends included, drawn uniformly.
        flip: probability of mirroring left to right.
        colour: strength of the jitter of brightness, contrast and saturation: 0.2 means factors from 0.8 to 1.2.
        lighting: standard deviation of the colour noise along the principal components of the data's colours (AlexNet,
            section 4.1); 0 for none.
        statistics: a file from `sightline inspect --statistics` with these components; None takes ImageNet's.
    """

    size: tuple[int, int] = (224, 224)
    scale: tuple[int, int] = (256, 480)
    flip: float = 0.5
    colour: float = 0.2
    lighting: float = 0.1
    statistics: str | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"crop.size must be (height, width), both at least 1, got {self.size}")
        if len(self.scale) != 2 or not 1 <= self.scale[0] <= self.scale[1]:
            raise ValueError(f"crop.scale must be (low, high) with 1 <= low <= high, got {self.scale}")
        for name in ("flip", "colour", "lighting"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"crop.{name} must lie in [0, 1], got {getattr(self, name)}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        side = int(rng.integers(self.scale[0], self.scale[1] + 1))
        mirrored = rng.random() < self.flip
        sample = _random_crop(sample, side, tuple(self.size), rng)
        if mirrored:
            sample = flip(sample)
        if self.colour > 0:
            sample = jitter_colour(sample, self.colour, int(rng.integers(2**32)))
        if self.lighting > 0:
            shift = _components(self.statistics) @ rng.normal(0, self.lighting, 3)
            sample = replace(sample, image=shift_colour(sample.image, shift))
        return sample


def _random_crop(sample: Sample, side: int, size: tuple[int, int], rng: np.random.Generator) -> Sample:
    """A window anywhere in the sample, brought to `size`, where the whole would have the short side `side`.

    Cut out before it is resized: of a long, narrow picture only the window is ever enlarged.
    """
    height, width = sample.image.shape[1:]
    factor = _factor((height, width), side, size)
    window = min(height, max(1, round(size[0] / factor))), min(width, max(1, round(size[1] / factor)))
    y, x = rng.integers(0, np.array([height, width]) - window + 1).tolist()
    boxes, masks = sample.target.boxes, sample.target.masks
    # Half a pixel of tolerance, as resizing rounds. `crop` drops what has its centre outside, as a whole picture may.
    whole = ((boxes - boxes.new_tensor([0, 0, width, height])).abs() <= 0.5).all(dim=1, keepdim=True)
    new = torch.where(whole, boxes.new_tensor([x, y, x + window[1], y + window[0]]), boxes)
    masks = None if masks is None else recrop(masks, boxes, new)
    target = replace(sample.target, boxes=new, masks=masks)
    return resize_to(crop(replace(sample, target=target), (y, x), window), size)


def _factor(shape: tuple[int, int], side: int, least: tuple[int, int]) -> float:
    """By how much a picture of `shape` grows so that its short side is `side`, or more so that it holds `least`."""
    return max(side / min(shape), least[0] / shape[0], least[1] / shape[1])


@lru_cache
def _components(statistics: str | None) -> np.ndarray:
    """(3, 3): eigenvectors in columns, each times its eigenvalue."""
    if statistics is None:
        return np.array(IMAGENET_VECTORS) * np.array(IMAGENET_VALUES)
    found = Statistics.load(statistics)
    if len(found.mean) != 3:
        raise DataError(f"{statistics}: of gray pictures, which have no colours to vary; compute it in RGB")
    return (found.colour_vectors * found.colour_values).numpy().astype(np.float64)


def shift_colour(image: Tensor, shift: np.ndarray) -> Tensor:
    """A picture (3, H, W) uint8 with (3,) added to every pixel's RGB, in units of the full range; clipped to it."""
    table = np.rint(np.arange(256)[:, None] + 255 * np.asarray(shift)).clip(0, 255).astype(np.uint8)  # (256, 3)
    return from_hwc(cv2.LUT(to_hwc(image), table[None]))


def centre_crop(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The middle of a picture.

    Args:
        image: (..., H, W).
        size: (h, w), or one number for both.

    Returns:
        (..., h, w), a view. Where the margins cannot be equal, they are rounded as torchvision does.

    Raises:
        ValueError: the picture is smaller.
    """
    height, width = _checked(image, size)
    y, x = round((image.shape[-2] - height) / 2), round((image.shape[-1] - width) / 2)
    return image[..., y : y + height, x : x + width]


def ten_crop(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """A picture's four corners and centre, and the same of its mirror image (AlexNet, section 4.1).

    Args:
        image: (C, H, W).
        size: (h, w), or one number for both.

    Returns:
        (10, C, h, w), in the order of `torchvision.transforms.v2.functional.ten_crop`: top left, top right, bottom left,
        bottom right, centre, then five of the mirror image.

    Raises:
        ValueError: the picture is smaller.
    """
    height, width = _checked(image, size)
    top, bottom, left, right = slice(height), slice(-height, None), slice(width), slice(-width, None)
    corners = ((top, left), (top, right), (bottom, left), (bottom, right))
    crops = []
    for picture in (image, image.flip(-1)):
        crops += [picture[:, rows, columns] for rows, columns in corners]
        crops.append(centre_crop(picture, (height, width)))
    return torch.stack(crops)


def multi_scale_crops(
    image: Tensor, scales: Sequence[int] = (224, 256, 384, 480, 640), size: int | tuple[int, int] = 224
) -> Tensor:
    """Ten crops at each of several scales, whose scores are averaged (ResNet, section 3.4).

    Args:
        image: (3, H, W) uint8.
        scales: S lengths of the short side in pixels; larger where that would not hold a crop.
        size: (h, w) of a crop, or one number for both.

    Returns:
        (S * 10, 3, h, w) uint8, scale by scale.
    """
    least, crops = _pair(size), []
    for scale in scales:
        factor = _factor(tuple(image.shape[1:]), scale, least)
        height, width = (max(low, round(side * factor)) for low, side in zip(least, image.shape[1:], strict=True))
        crops.append(ten_crop(resize_image(image, (height, width)), least))
    return torch.cat(crops)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _checked(image: Tensor, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = _pair(size)
    if not 1 <= height <= image.shape[-2] or not 1 <= width <= image.shape[-1]:
        raise ValueError(f"a picture of {tuple(image.shape[-2:])} holds no crop of {(height, width)}; resize it first")
    return height, width
