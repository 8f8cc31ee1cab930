"""Superpixels of a picture in some colour space, and what selective search knows of each: size, box, colours, texture,
neighbours (Uijlings et al. 2013, "Selective Search for Object Recognition", IJCV 104, sections 3.1 and 3.2).

The superpixels are Felzenszwalb and Huttenlocher's (2004, "Efficient Graph-Based Image Segmentation"), scikit-image's
implementation. Texture is Gaussian derivatives at sigma 1 in eight directions, as in the paper; the paper leaves open how
their values are put into ten bins.

Letters: H, W pixels of the picture, C channels of the colour space (3 or 1), S superpixels, E pairs of neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

COLOUR_SPACES = ("hsv", "lab", "rgi", "h", "i")
SIGMA = 0.8  # of the smoothing before the segmentation, in pixels: the authors'
COLOUR_BINS, TEXTURE_BINS, DIRECTIONS = 25, 10, 8
# Levels a pixel, at which the last bin of texture ends; an edge from 0 to 255 has 102. It is the same for all pictures, so that
# one sharp edge does not push all other texture of its picture into the first bins.
STEEPEST = 64


class Segments(NamedTuple):
    """The superpixels of one segmentation.

    Attributes:
        sizes: (S,) int64, in pixels.
        boxes: (S, 4) int64, xyxy; the last row and column lie before x1 and y1.
        colour: (S, 25 C) float32, a histogram a row, which sums to 1.
        texture: (S, 80 C) float32, likewise.
        pairs: (E, 2) int64, those that touch, corners too; first < second, sorted.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    pairs: np.ndarray


def to_colour_space(image: np.ndarray, space: str) -> np.ndarray:
    """(H, W, C) uint8 from (H, W, 3) uint8 RGB, each channel over 0..255.

    `space` is one of COLOUR_SPACES: "rgi" are the shares of red and green in the sum of the channels, and the intensity;
    "h" is the hue of "hsv", "i" the intensity alone. Grey has hue 0, black has shares 1/3.
    """
    if space == "hsv":
        return cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    if space == "lab":
        return cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    if space == "h":
        return cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)[..., :1].copy()
    total = image.sum(axis=2, dtype=np.uint16)
    intensity = (total // 3).astype(np.uint8)
    if space == "i":
        return intensity[..., None]
    shares = (image[..., :2] * np.float32(255) + 85) / (total[..., None] + 1)  # the 85 is black's: a third of 255
    return np.dstack([shares.astype(np.uint8), intensity])


def segment(picture: np.ndarray, k: int) -> np.ndarray:
    """Felzenszwalb and Huttenlocher's superpixels of a picture (H, W, C) uint8, as (H, W) int64 labels 0..S-1.

    `k` is the paper's, for channels over 0..255: the greater, the fewer superpixels. It is the least size in pixels too, as
    in Uijlings' code.
    """
    from skimage.segmentation import felzenszwalb

    if min(picture.shape[:2]) < 2:  # no grid of edges
        return np.zeros(picture.shape[:2], np.int64)
    return felzenszwalb(picture, scale=k, sigma=SIGMA, min_size=k)


def describe(labels: np.ndarray, picture: np.ndarray, textures: np.ndarray) -> Segments:
    """What is known of superpixels: labels (H, W), a picture (H, W, C) uint8, and its `texture_bins`."""
    count = int(labels.max()) + 1
    flat = labels.ravel()
    colours = (picture.reshape(len(flat), -1).T * np.uint16(COLOUR_BINS)) >> 8
    return Segments(
        sizes=np.bincount(flat, minlength=count),
        boxes=_boxes(labels, count),
        colour=_histograms(flat, colours, count, COLOUR_BINS),
        texture=_histograms(flat, textures, count, TEXTURE_BINS),
        pairs=_touching(labels, count),
    )


def texture_bins(picture: np.ndarray) -> np.ndarray:
    """(8 C, H W) uint8 in 0..9: the bin of the Gaussian derivative in each direction of each channel, at each pixel.

    Negative values are those of the opposite direction and fall into bin 0, and those above STEEPEST into the last.
    """
    across, along = (_derivative(picture, axis) for axis in (1, 0))
    bins = []
    for angle in np.arange(DIRECTIONS // 2) * (2 * np.pi / DIRECTIONS):
        values = np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * along  # the filter is steerable
        bins += [_quantised(values), _quantised(-values)]
    return np.concatenate(bins)


def _derivative(picture: np.ndarray, axis: int) -> np.ndarray:
    """(C, H W) float32: the derivative along an axis after a Gaussian of sigma 1."""
    x = np.arange(-4, 5, dtype=np.float32)
    smooth = np.exp(-x * x / 2)
    smooth /= smooth.sum()
    kernels = (x * smooth, smooth) if axis == 1 else (smooth, x * smooth)
    values = cv2.sepFilter2D(picture, cv2.CV_32F, *kernels, borderType=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(values.reshape(-1, picture.shape[2]).T)


def _quantised(values: np.ndarray) -> np.ndarray:
    return np.clip(values * (TEXTURE_BINS / STEEPEST), 0, TEXTURE_BINS - 1).astype(np.uint8)


def _histograms(labels: np.ndarray, channels: np.ndarray, count: int, bins: int) -> np.ndarray:
    """(S, channels * bins) float32 histograms, of sum 1, of `channels` (channels, pixels) with values 0..bins-1."""
    base = labels * bins
    counts = [np.bincount(base + channel, minlength=count * bins).reshape(count, bins) for channel in channels]
    histograms = np.concatenate(counts, axis=1)
    return (histograms / histograms.sum(axis=1, keepdims=True)).astype(np.float32)


def _boxes(labels: np.ndarray, count: int) -> np.ndarray:
    """(S, 4) int64 xyxy around each label."""
    height, width = labels.shape
    ends = []
    for index, length in ((np.arange(width)[None], width), (np.arange(height)[:, None], height)):
        low, high = np.full(count, length), np.zeros(count, np.int64)
        places = np.broadcast_to(index, labels.shape).ravel()
        np.minimum.at(low, labels.ravel(), places)
        np.maximum.at(high, labels.ravel(), places + 1)
        ends.append((low, high))
    (x0, x1), (y0, y1) = ends
    return np.stack([x0, y0, x1, y1], axis=1)


def _touching(labels: np.ndarray, count: int) -> np.ndarray:
    """(E, 2) int64, the labels of pixels that share an edge or a corner."""
    shifts = ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:]),
              (labels[:-1, :-1], labels[1:, 1:]), (labels[1:, :-1], labels[:-1, 1:]))  # fmt: skip
    keys = []
    for one, other in shifts:
        border = one != other
        a, b = one[border], other[border]
        keys.append(np.minimum(a, b) * count + np.maximum(a, b))
    return np.stack(np.divmod(np.unique(np.concatenate(keys)), count), axis=1)
