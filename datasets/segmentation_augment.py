"""Random changes to a picture and its label map alike: scale, crop, mirror, colour."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from .augment import jitter_colour
from .structures import LabelMaps, Sample
from .transforms import from_hwc, resize_image, to_hwc


@dataclass(frozen=True)
class SegmentationAugment:
    """Scale, crop, mirror and recolour at random: `augment(sample, shape, rng)` is a sample no larger than the crop.

    The sample is an original picture; `shape` is the (height, width) that it would have in evaluation. Times a factor drawn
    log-uniformly from `scale` that is its new shape, of which a window is cut out anywhere, up to whole pixels of the
    original. Cut out before it is scaled, and scaled once: no pixel is resampled twice. Where the new shape is smaller than
    the window the sample is, too: its batch pads it right and below, as in evaluation, so that a network sees what it sees
    in any padding (zero, once normalised), and its label is -1 there.

    An equal `rng` gives an equal result in every process. `info` still names the picture, but maps nothing back.

    Attributes:
        scale: range of the factor.
        crop: (height, width) of the window in pixels; None takes `shape`, as large as in evaluation.
        flip: probability of mirroring left to right.
        colour: strength of the jitter of brightness, contrast and saturation: 0.4 means factors from 0.6 to 1.4.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] | None = None
    flip: float = 0.5
    colour: float = 0.4

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"augment.scale must be (low, high) with 0 < low <= high, got {self.scale}")
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise ValueError(f"augment.crop must be (height, width), both at least 1, or null, got {self.crop}")
        for name in ("flip", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must lie in [0, 1], got {getattr(self, name)}")

    def __call__(self, sample: Sample, shape: tuple[int, int], rng: np.random.Generator) -> Sample:
        size, mirrored, *place = rng.random(4).tolist()
        low, high = self.scale
        factor = low * (high / low) ** size
        sample = _scaled_crop(sample, [factor * side for side in shape], self.crop or shape, place)
        if mirrored < self.flip:
            sample = mirror(sample)
        if self.colour > 0:
            sample = jitter_colour(sample, self.colour, int(rng.integers(2**32)))
        return sample


def _scaled_crop(sample: Sample, scaled: list[float], crop: tuple[int, int], place: list[float]) -> Sample:
    """A window of at most `crop` of the sample brought to the size `scaled`; `place` (y, x) in [0, 1) says where."""
    window, starts, out = [], [], []
    for old, new, limit, where in zip(sample.image.shape[1:], scaled, crop, place, strict=True):
        new = max(1, round(new))
        out.append(min(new, limit))
        window.append(min(old, max(1, round(old * out[-1] / new))))
        starts.append(int(where * (old - window[-1] + 1)))
    rows, columns = (slice(start, start + length) for start, length in zip(starts, window, strict=True))
    # As in evaluation, also where that skips pixels: a network should learn from pictures like those it will see.
    image = resize_image(sample.image[:, rows, columns], (out[0], out[1]))
    labels = resize_labels(sample.label_map.labels[rows, columns], (out[0], out[1]))
    return replace(sample, image=image, label_map=LabelMaps(labels))


def resize_labels(labels: Tensor, shape: tuple[int, int]) -> Tensor:
    """A label map (H, W) int16 at `shape` (height, width): each pixel takes the label that lies beneath its centre."""
    if tuple(labels.shape) == tuple(shape):
        return labels
    # By hand: OpenCV's nearest neighbours lie up to a pixel to the left and above, and its exact ones round ties by chance.
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(shape, labels.shape, strict=True))
    return torch.from_numpy(labels.numpy().take(columns, axis=1).take(rows, axis=0))


def mirror(sample: Sample) -> Sample:
    """The sample mirrored left to right, picture and label map."""
    image = from_hwc(cv2.flip(to_hwc(sample.image), 1))
    info = sample.info._replace(flipped=not sample.info.flipped)
    return replace(sample, image=image, label_map=sample.label_map.map(lambda labels: labels.flip(-1)), info=info)
