"""The built-in data set: coloured shapes on textured grounds, drawn on demand, so that nothing need be downloaded.

A picture follows from (seed, index, size) alone, on every platform: randomness is a counter-based generator's numbers,
and drawing is elementwise arithmetic (no drawing library, rounded sines). Boxes and masks are those of what is visible,
after occlusion and the picture's edge, and so are the four extreme points, an object's landmarks; the sentence names all
objects from left to right.

Letters: N objects, H, W pixels of the picture, h, w pixels of an object's patch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from .outlines import encode
from .table import DataError, Table

CATEGORIES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (215, 45, 45), "green": (45, 165, 60), "blue": (40, 85, 215), "yellow": (240, 215, 50),
    "purple": (150, 50, 185), "cyan": (60, 205, 215), "white": (240, 240, 240), "black": (22, 22, 22),
}  # fmt: skip
DIAMETERS = {"small": (0.15, 0.23), "large": (0.31, 0.50)}  # of the circle around the shape, in picture sides
MAX_OBJECTS = 5
MIN_VISIBLE = 0.4  # share of an object's pixels that must show; a newcomer that would hide more is not placed
SPLITS = ("train", "val", "test")
LANDMARKS = ("top", "right", "bottom", "left")  # extreme points (Papadopoulos et al. 2017, arXiv 1708.02750)


@dataclass
class ShapesPicture:
    """One picture and all that is known of it, N objects from the farthest to the nearest."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (N, 4) float32 xyxy, of the visible pixels
    labels: np.ndarray  # (N,) int64, index into CATEGORIES
    masks: np.ndarray  # (N, H, W) uint8, 1 where the object is visible
    landmarks: np.ndarray  # (N, 4, 2) float32, (x, y) of LANDMARKS
    sentence: str


def draw(seed: int, index: int, size: int) -> ShapesPicture:
    """Picture `index` of the series `seed`, `size` pixels high and wide, with 1 to 5 objects."""
    rng = _generator(seed, index)
    objects, masks = _place(rng, size)
    labels = np.array([thing.label for thing in objects], np.int64)
    extents, extremes = _extents(masks), _extremes(masks)
    return ShapesPicture(_paint(rng, objects, size), extents, labels, masks, extremes, _sentence(objects))


def read_shapes(path: str) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB that a path `shapes:SEED/SIZE/INDEX` stands for.

    Raises:
        DataError: the path is not of that form.
    """
    try:
        seed, size, index = (int(part) for part in path.removeprefix("shapes:").split("/"))
        rng = _generator(seed, index)
    except ValueError:
        raise DataError(
            f"{path!r} is no built-in picture; those are shapes:SEED/SIZE/INDEX, say shapes:0/128/7"
        ) from None
    return _paint(rng, _place(rng, size)[0], size)


def shapes_table(
    split: str, count: int, size: int, seed: int = 0, *, masks: bool = False, most: int = MAX_OBJECTS
) -> Table:
    """The annotations of `count` pictures of `size` pixels; splits and seeds share no picture.

    Nothing is painted here: the paths are read by `read_shapes` when a loader asks for them. With `masks` there are
    segmentations, as run lengths. With `most` below 5, pictures of more objects are passed over.

    Raises:
        DataError: no such split, or no such number of objects.
    """
    if split not in SPLITS:
        raise DataError(f"the built-in shapes have the splits {', '.join(SPLITS)}; got {split!r}")
    if not 1 <= most <= MAX_OBJECTS:
        raise DataError(f"the built-in pictures have 1 to {MAX_OBJECTS} objects; at most {most} cannot be asked for")
    series = len(SPLITS) * seed + SPLITS.index(split)
    drawn = ((index, _place(_generator(series, index), size)) for index in itertools.count())
    # One scene at a time is held: its masks are thousands of times as large as what is kept of it.
    fitting = (_annotated(index, *scene, outlined=masks) for index, scene in drawn if len(scene[0]) <= most)
    fitting = itertools.islice(fitting, count)
    # Of 100,000 pictures it takes minutes.
    chosen = list(tqdm(fitting, "shapes", count, unit="picture", disable=None, delay=2, leave=False))
    labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in chosen)])
    return Table(
        categories=list(CATEGORIES),
        paths=[f"shapes:{series}/{size}/{one.index}" for one in chosen],
        image_ids=np.arange(1, count + 1),
        sizes=np.full((count, 2), size, np.int64),
        image=np.repeat(np.arange(count), [len(one.labels) for one in chosen]),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in chosen)]),
        labels=labels,
        area=np.concatenate([np.zeros(0), *(one.areas for one in chosen)]),
        crowd=np.zeros(len(labels), bool),
        difficult=np.zeros(len(labels), bool),
        category_ids=np.arange(1, len(CATEGORIES) + 1),
        segmentations=[outline for one in chosen for outline in one.outlines] if masks else None,
        captions=[[one.sentence] for one in chosen],
        landmarks=np.concatenate([np.zeros((0, 4, 2), np.float32), *(one.landmarks for one in chosen)]),
        landmark_names=list(LANDMARKS),
    )


class _Annotated(NamedTuple):
    """What a table keeps of a picture, N objects from the farthest to the nearest."""

    index: int
    labels: np.ndarray  # (N,) int64
    boxes: np.ndarray  # (N, 4) float32
    areas: np.ndarray  # (N,) float64
    landmarks: np.ndarray  # (N, 4, 2) float32
    sentence: str
    outlines: list[dict[str, Any]]  # N run lengths, or none


def _annotated(index: int, objects: list[_Object], masks: np.ndarray, *, outlined: bool) -> _Annotated:
    return _Annotated(
        index,
        np.array([thing.label for thing in objects], np.int64),
        _extents(masks),
        _areas(masks).astype(np.float64),
        _extremes(masks),
        _sentence(objects),
        [encode(mask) for mask in masks] if outlined else [],
    )


@dataclass
class _Object:
    label: int
    colour: str
    extent: str  # "small" or "large"
    centre: tuple[float, float]  # (x, y), of the whole shape
    radius: float
    rows: slice  # of its patch in the picture
    columns: slice
    alpha: np.ndarray  # (h, w) float32, coverage in [0, 1]


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))


# -- Geometry --


def _place(rng: np.random.Generator, size: int) -> tuple[list[_Object], np.ndarray]:
    """The objects, farthest first, and their visible masks (N, H, W) uint8."""
    objects: list[_Object] = []
    masks = np.zeros((0, size, size), np.uint8)
    least = np.zeros(0)  # pixels of each object that must stay visible
    for _ in range(1 + int(rng.random() * MAX_OBJECTS)):
        candidate = _propose(rng, size)
        mask = np.zeros((1, size, size), np.uint8)
        mask[0, candidate.rows, candidate.columns] = candidate.alpha >= 0.5
        rest = masks & (1 - mask)
        if np.all(_areas(rest) >= least) and all(_distinct(candidate, other) for other in objects):
            objects, masks = [*objects, candidate], np.concatenate([rest, mask])
            least = np.append(least, MIN_VISIBLE * _areas(mask))
    return objects, masks


def _propose(rng: np.random.Generator, size: int) -> _Object:
    label, colour, extent, diameter, angle, x, y = rng.random(7).tolist()
    extent = list(DIAMETERS)[int(extent * len(DIAMETERS))]
    low, high = DIAMETERS[extent]
    radius = 0.5 * size * (low + (high - low) * diameter)
    # A shape may reach over the picture's edge by a tenth of its diameter.
    centre_x, centre_y = (0.8 * radius + v * (size - 1.6 * radius) for v in (x, y))
    columns, rows = (slice(max(0, int(c - radius)), min(size, int(c + radius) + 1)) for c in (centre_x, centre_y))
    label, colour = int(label * len(CATEGORIES)), list(COLOURS)[int(colour * len(COLOURS))]
    dx = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - centre_x)
    dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - centre_y)
    cos, sin = _direction(2 * math.pi * angle)
    distance = _distance(CATEGORIES[label], dx * cos + dy * sin, dy * cos - dx * sin, radius)
    alpha = np.clip(np.float32(0.5) - distance, 0, 1)
    return _Object(label, colour, extent, (centre_x, centre_y), radius, rows, columns, alpha)


def _distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """(h, w) signed distance in pixels to the outline, negative inside, of a shape that fits a circle of `radius`."""
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.707 * radius)
    if shape == "cross":
        near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return np.maximum(near - np.float32(0.3 * radius), far - np.float32(0.95 * radius))
    if shape == "triangle":
        return _outside_lines(u, v, 3).max(axis=0) - np.float32(0.5 * radius)
    if shape == "star":  # a pentagram: the points outside at most one of its five lines
        return np.partition(_outside_lines(u, v, 5), 3, axis=0)[3] - np.float32(0.309 * radius)
    rho = np.sqrt(u * u + v * v)
    disc = rho - np.float32(radius)
    return disc if shape == "circle" else np.maximum(disc, np.float32(0.55 * radius) - rho)


def _outside_lines(u: np.ndarray, v: np.ndarray, count: int) -> np.ndarray:
    """(count, h, w): how far each point lies in each of `count` evenly spread directions."""
    directions = [_direction(2 * math.pi * k / count) for k in range(count)]
    return np.stack([u * cos + v * sin for cos, sin in directions])


def _direction(angle: float) -> tuple[np.float32, np.float32]:
    # Rounded, because mathematical libraries differ in the last bit.
    return np.float32(round(math.cos(angle), 5)), np.float32(round(math.sin(angle), 5))


def _distinct(one: _Object, other: _Object) -> bool:
    """Whether the centres are apart enough for two boxes to be told from each other and for "left of" to be clear."""
    dx, dy = (abs(a - b) for a, b in zip(one.centre, other.centre, strict=True))
    return max(dx, dy) > 0.5 * max(one.radius, other.radius) and dx >= 1


def _areas(masks: np.ndarray) -> np.ndarray:
    return np.count_nonzero(masks, axis=(1, 2))


def _extents(masks: np.ndarray) -> np.ndarray:
    """(N, 4) float32 xyxy, the tight boxes of masks (N, H, W), none of which is empty."""
    columns, rows = masks.any(axis=1), masks.any(axis=2)
    ends = [columns.argmax(1), rows.argmax(1)]
    ends += [along.shape[1] - along[:, ::-1].argmax(1) for along in (columns, rows)]
    return np.stack(ends, axis=1).astype(np.float32)


def _extremes(masks: np.ndarray) -> np.ndarray:
    """(N, 4, 2) float32, (x, y) of the LANDMARKS of masks (N, H, W): on an edge of the box, at the middle pixel there."""
    x0, y0, x1, y1 = _extents(masks).T.astype(np.int64)
    each = np.arange(len(masks))
    top, bottom = (_middle(masks[each, row]) for row in (y0, y1 - 1))
    left, right = (_middle(masks[each, :, column]) for column in (x0, x1 - 1))
    points = [(top, y0), (x1, right), (bottom, y1), (x0, left)]
    return np.stack([np.stack(point, axis=1) for point in points], axis=1).astype(np.float32)


def _middle(lines: np.ndarray) -> np.ndarray:
    """(N,) centre of the middle one among each line's set pixels; lines (N, L), none of which is empty."""
    counts = lines.astype(np.int64).cumsum(axis=1)
    return (counts >= (counts[:, -1:] + 1) // 2).argmax(axis=1) + 0.5


# -- Colour --


def _paint(rng: np.random.Generator, objects: list[_Object], size: int) -> np.ndarray:
    canvas = _ground(rng, size)
    for thing in objects:
        jitter, (shade,) = rng.random(3) * 30 - 15, rng.random(1) * 0.4 - 0.2
        colour = (np.array(COLOURS[thing.colour]) + jitter).astype(np.float32)
        patch = canvas[thing.rows, thing.columns]
        ramp = np.linspace(1 - shade, 1 + shade, patch.shape[0], dtype=np.float32)[:, None, None]
        patch += thing.alpha[..., None] * (ramp * colour - patch)
    grain = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape)
    canvas += (grain.astype(np.float32) - 127.5) * np.float32(0.15 * rng.random())
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W, 3) float32: two dull tones mixed by a gradient, stripes, checkers or clouds; duller than any object."""
    kind, period, slope = rng.random(3).tolist()
    tones = (85 + 75 * rng.random((2, 1)) + 40 * rng.random((2, 3)) - 20).astype(np.float32)
    x, y = np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32)[:, None]
    cell = np.float32(size * (0.04 + 0.12 * period))
    cos, sin = _direction(math.pi * slope)
    if kind < 0.25:
        mix = (x * np.float32(slope) + y * np.float32(1 - slope)) / np.float32(size)
    elif kind < 0.5:
        mix = np.floor((x * cos + y * sin) / cell) % 2
    elif kind < 0.75:
        mix = (np.floor((x * cos + y * sin) / cell) + np.floor((y * cos - x * sin) / cell)) % 2
    else:
        coarse = np.frombuffer(rng.bytes(64), np.uint8).reshape(8, 8)
        mix = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR_EXACT) / np.float32(255)
    canvas = np.empty((size, size, 3), np.float32)
    for channel, (low, high) in enumerate(tones.T):  # numpy is slow along an axis of three
        canvas[..., channel] = low + mix * (high - low)
    return canvas


# -- Words --


def _sentence(objects: list[_Object]) -> str:
    """All objects from left to right, each seen from the next: "a large red star above a small white ring"."""
    objects = sorted(objects, key=lambda thing: thing.centre[0])
    words = [f"a {thing.extent} {thing.colour} {CATEGORIES[thing.label]}" for thing in objects]
    for k, (one, other) in enumerate(itertools.pairwise(objects)):
        words[k] += f" {_relation(one, other)}"
    return " ".join(words)


def _relation(one: _Object, other: _Object) -> str:
    (x0, y0), (x1, y1) = one.centre, other.centre
    if abs(y1 - y0) <= x1 - x0:
        return "left of"
    return "above" if y0 < y1 else "below"
