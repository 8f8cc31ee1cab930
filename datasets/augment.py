"""Random changes to training samples. Only this module knows albumentations, and imports it (a second) on first use."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch

from .perspective import move, moved, tightened
from .structures import Instances, Sample
from .transforms import flip, from_hwc, resize_to, to_hwc


@dataclass(frozen=True)
class Augment:
    """Zoom, flips and colour jitter: `augment(sample, rng)` is a changed sample, no larger than the one that came in.

    An equal `rng` gives an equal result in every process. `info` still names the picture, but maps no boxes back: a
    crop moves the origin.

    Attributes:
        flip: probability of mirroring left to right.
        vertical_flip: probability of mirroring top to bottom.
        scale: range of the zoom, drawn log-uniformly. Above 1 the picture grows and a window of its old size is cut
            out, which holds at least one object's centre; an object stays, clipped, if its centre does. Below 1 the
            picture shrinks.
        colour: strength of the jitter of brightness, contrast and saturation: 0.2 means factors from 0.8 to 1.2.
        short_sides: instead of the zoom, a picture is shrunk until its short side is one of these numbers of pixels, drawn
            at random (Fast R-CNN, section 5.2: 480, 576, 688, 864, 1200, with min_size 1200); one that is as short
            already stays as it is. None zooms.
    """

    flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (0.8, 1.25)
    colour: float = 0.2
    short_sides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"augment.scale must be (low, high) with 0 < low <= high, got {self.scale}")
        if self.short_sides is not None and (not self.short_sides or min(self.short_sides) < 1):
            raise ValueError(f"augment.short_sides must be numbers of pixels from 1, or null, got {self.short_sides}")
        for name in ("flip", "vertical_flip", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must lie in [0, 1], got {getattr(self, name)}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        horizontal, vertical, size = rng.random(3).tolist()
        sample = self._sized(sample, size, rng)
        if horizontal < self.flip:
            sample = flip(sample)
        if vertical < self.vertical_flip:
            sample = _flip_vertically(sample)
        if self.colour > 0:
            sample = jitter_colour(sample, self.colour, int(rng.integers(2**32)))
        return sample

    def _sized(self, sample: Sample, size: float, rng: np.random.Generator) -> Sample:
        """The sample at another scale; `size` in [0, 1) says which."""
        if self.short_sides is None:
            low, high = self.scale
            return _zoom(sample, low * (high / low) ** size, rng)
        side = self.short_sides[int(size * len(self.short_sides))]
        return _zoom(sample, min(1.0, side / min(sample.image.shape[1:])), rng)


def _zoom(sample: Sample, factor: float, rng: np.random.Generator) -> Sample:
    height, width = sample.image.shape[1:]
    if factor <= 1:
        return resize_to(sample, (max(1, round(height * factor)), max(1, round(width * factor))))
    window = max(1, round(height / factor)), max(1, round(width / factor))
    return resize_to(crop(sample, _corner(sample, window, rng), window), (height, width))


def _corner(sample: Sample, window: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """A random (y, x) whose window holds the centre of a random object, if there is any that is no crowd."""
    ends = np.array(sample.image.shape[1:]) - window  # the corner lies in 0..ends
    low, high, u = np.zeros(2), ends.astype(np.float64), rng.random(3)
    boxes = sample.target.boxes if sample.target.crowd is None else sample.target.boxes[~sample.target.crowd]
    if len(boxes):
        x0, y0, x1, y1 = boxes[int(u[0] * len(boxes))].tolist()
        centre = np.array([y0 + y1, x0 + x1]) / 2
        low, high = np.clip(np.ceil(centre - window), 0, ends), np.clip(np.floor(centre), 0, ends)
    y, x = (low + np.floor(u[1:] * (high - low + 1))).astype(int).tolist()
    return y, x


def crop(sample: Sample, corner: tuple[int, int], window: tuple[int, int]) -> Sample:
    """The part of a sample from `corner` (y, x) on, `window` (height, width) pixels large and within the picture.

    An object or proposal stays, clipped, if its centre lies inside (a crowd: if any of it does) and it keeps some area. With
    masks the box of one that is cut shrinks to what is left of its mask. A landmark outside is no longer known.
    """
    (y, x), (height, width) = corner, window
    image = sample.image[:, y : y + height, x : x + width]
    return sample.moved(image, lambda instances: _crop_instances(instances, corner, window))


def _crop_instances(target: Instances, corner: tuple[int, int], window: tuple[int, int]) -> Instances:
    shift = move(-corner[1], -corner[0])
    shifted = target.boxes - target.boxes.new_tensor(corner[::-1] * 2)
    limit = shifted.new_tensor(window[::-1] * 2)
    clipped = shifted.clamp(min=0).minimum(limit)
    if target.masks is not None:
        clipped, _ = tightened(clipped, target, shift, window)
    centre = (shifted[:, :2] + shifted[:, 2:]) / 2
    inside = ((centre >= 0) & (centre <= limit[:2])).all(dim=1)
    if target.crowd is not None:
        inside |= target.crowd
    inside &= (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    return moved(target[inside], clipped[inside], shift, window)


def _flip_vertically(sample: Sample) -> Sample:
    height = sample.image.shape[1]
    info = sample.info._replace(upturned=not sample.info.upturned)
    image = from_hwc(cv2.flip(to_hwc(sample.image), 0))
    return sample.moved(image, lambda instances: _upturn_instances(instances, height), info)


def _upturn_instances(instances: Instances, height: int) -> Instances:
    (x0, y0, x1, y1), points, masks = instances.boxes.unbind(-1), instances.landmarks, instances.masks
    masks = None if masks is None else masks.flip(-2)
    boxes = torch.stack([x0, height - y1, x1, height - y0], dim=-1)
    landmarks = None if points is None else torch.stack([points[..., 0], height - points[..., 1]], dim=-1)
    return replace(instances, boxes=boxes, masks=masks, landmarks=landmarks)


def jitter_colour(sample: Sample, strength: float, seed: int) -> Sample:
    """The sample with its brightness, contrast and saturation changed at random; boxes and landmarks stay.

    Args:
        sample: of any size.
        strength: 0.2 means factors from 0.8 to 1.2; 0 to 1.
        seed: of the factors and their order, 0 to 2^32 - 1.
    """
    jitter = _colour_jitter(strength)
    jitter.set_random_seed(seed)
    return replace(sample, image=from_hwc(jitter(image=to_hwc(sample.image).copy())["image"]))


@lru_cache
def _colour_jitter(strength: float) -> Any:
    span = (1 - strength, 1 + strength)
    # No hue: its way through HSV takes longer than decoding, resizing and all the rest together.
    jitter = _albumentations().ColorJitter(brightness=span, contrast=span, saturation=span, hue=(0, 0), p=1.0)
    # Its own ones copy the picture, or paint it gray, five times, which takes twice as long; these differ by rounding.
    jitter.transforms[:3] = _change_brightness, _change_contrast, _change_saturation
    return _albumentations().Compose([jitter])


_GRAY = np.array([0.299, 0.587, 0.114])  # of R, G and B (ITU-R BT.601), OpenCV's and torchvision's weights


def _change_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Changes a picture (H, W, 3) uint8 in place: every value is `factor` times as large."""
    return _albucore().multiply_add(image, factor, 0.0, inplace=True)


def _change_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Changes a picture (H, W, 3) uint8 in place: every difference from its mean gray is `factor` times as large."""
    mean = float(_GRAY @ cv2.mean(image)[:3])
    return _albucore().multiply_add(image, factor, (1 - factor) * mean, inplace=True)


def _change_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Changes a picture (H, W, 3) uint8 in place: every pixel's difference from its own gray is `factor` times as large."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * _GRAY, dst=image)


def _albucore() -> ModuleType:
    import albucore  # albumentations' arithmetic, whose tables of levels are several times as fast as OpenCV's

    return albucore


class Albumentations:
    """Any albumentations transforms as augmentation: `Albumentations([A.RandomRain(p=0.2), A.HorizontalFlip()])`.

    Boxes go through albumentations, which keeps them to about 1e-4 pixels; crowds and labels follow their boxes.
    Landmarks are left out, for who can tell which of them a transform makes change their names. The picture may not
    grow, since batches are planned for the size that it has.
    """

    def __init__(self, transforms: list, *, min_visibility: float = 0.25) -> None:
        """
        Args:
            transforms: albumentations transforms, applied in this order.
            min_visibility: share of its area that a box must keep to stay.
        """
        albumentations = _albumentations()
        boxes = albumentations.BboxParams(
            format="pascal_voc", label_fields=["rows"], min_visibility=min_visibility, clip=True
        )
        self.compose = albumentations.Compose(transforms, bbox_params=boxes)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if sample.target.masks is not None:
            raise ValueError("Albumentations does not change compact masks; turn augmentation off to train with masks")
        if sample.proposals is not None:
            raise ValueError("Albumentations does not change proposals; train on them with data.augment, or with none")
        valid = _valid(sample.target)  # albumentations raises on a box without area
        self.compose.set_random_seed(int(rng.integers(2**32)))
        out = self.compose(image=to_hwc(sample.image), bboxes=valid.boxes.numpy(), rows=np.arange(len(valid)))
        boxes = torch.from_numpy(np.array(out["bboxes"], np.float32).reshape(-1, 4))
        (height, width), limit = out["image"].shape[:2], tuple(sample.image.shape[1:])
        if height > limit[0] or width > limit[1]:
            raise ValueError(
                f"augmentation made {sample.info.path} {height}x{width}, over its {limit}; end it with a crop"
            )
        kept = valid[torch.as_tensor(np.array(out["rows"], np.int64))]
        target = replace(kept, boxes=boxes, landmarks=None)
        return Sample(from_hwc(np.ascontiguousarray(out["image"])), target, sample.info)


def _valid(instances: Instances) -> Instances:
    boxes = instances.boxes
    return instances[boxes.isfinite().all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)]


def _albumentations() -> ModuleType:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for its newest version
    import albumentations

    return albumentations
