"""Label maps on pictures: each category in its colour, what the colours mean, and truth beside prediction and errors.

Letters: C categories, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .drawing import Colour
from .lettering import font, line_height, shortened
from .plots import INK, MUTED

SIDE, GAP, TEXT = 640, 12, 14  # pixels: a panel's longer side, what is left free around it, letters beside it
OPACITY = 0.6  # of categories on a picture: 1 hides it
LIGHTER = 0.35  # of the way to white that rims are from their category's colour, for there are dark ones
WRONG: Colour = (224, 36, 48)
BACKGROUND: Colour = (0, 0, 0)
ENTRY = 11 * TEXT  # pixels: the least width of a category in the legend


def label_colours(names: Sequence[str], given: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """(C, 3) uint8 RGB, a colour for each category: the data's where these are `given`, else always the same by number.

    A category called "background" is black, so that what stands out on a picture is all else.
    """
    if len(given) == len(names) and len(names):
        return np.array(given, np.uint8).reshape(-1, 3)
    colours = distinct_colours(len(names)).copy()
    colours[[name.lower() == "background" for name in names]] = BACKGROUND
    return colours


@lru_cache
def distinct_colours(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB, each as unlike those before it as can be; the first n are the same whatever the count.

    Glasbey et al. 2007 ("Colour displays for categorical images", https://doi.org/10.1002/col.20327): of a cube of
    colours the one farthest in CIELAB from all chosen, and from the greys and the red that mean something else here.
    """
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab, taken = _lab(cube), _lab(np.array([*([grey] * 3 for grey in (0, 64, 128, 192, 255)), WRONG], np.uint8))
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    vivid = (
        (chroma > 35) & (chroma < 75) & (lab[:, 0] > 45) & (lab[:, 0] < 85)
    )  # neither grey nor garish, dark nor pale
    cube, lab = cube[vivid], lab[vivid]
    distance = np.linalg.norm(lab[:, None] - taken, axis=-1).min(1)
    chosen = []
    for _ in range(count):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=-1))
    return cube[chosen]


def _lab(colours: np.ndarray) -> np.ndarray:
    """(N, 3) float32 CIELAB of (N, 3) uint8 RGB."""
    return cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


def draw_labels(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, *, opacity: float = OPACITY) -> np.ndarray:
    """A picture tinted by category, with each category's rim in its full colour, or lighter; void is hatched.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        labels: (H, W) integers below C; what is negative is void.
        colours: (C, 3) uint8 RGB.
        opacity: of the tint, from 0 (rims alone) to 1.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the picture is not (H, W, 3) uint8, the map is of another size, or a label has no colour.
    """
    _check(image, labels)
    _check_colours(labels, colours)
    void = labels < 0
    paint = colours[np.where(void, 0, labels)].astype(np.float32) if len(colours) else image
    rims = _rims(labels, max(1, round(math.sqrt(labels.size) / 320)))[..., None]
    tinted = np.where(rims, paint + LIGHTER * (255 - paint), image + opacity * (paint - image))
    tinted = np.where(void[..., None], image, tinted)
    return _hatched(tinted, void)


def _check(image: np.ndarray, labels: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels must be {image.shape[:2]} to go with the picture, got {labels.shape}")


def _check_colours(labels: np.ndarray, colours: np.ndarray) -> None:
    if labels.size and labels.max() >= len(colours):
        raise ValueError(f"label {labels.max()} has no colour; there are {len(colours)}")


def _rims(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool, pixels up to `width` from one of another label."""
    square = np.ones((2 * width + 1,) * 2, np.uint8)
    values = labels.astype(np.int16)
    return cv2.dilate(values, square) != cv2.erode(values, square)


def _hatched(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, grey and striped where (H, W) bool says so."""
    rows, columns = np.indices(where.shape)
    period = max(6, round(math.sqrt(where.size) / 60))
    stripe = np.where((rows + columns) % period < period / 2, 90, 50)[..., None]
    hatched = 0.45 * image.mean(-1, keepdims=True) + stripe
    return np.where(where[..., None], hatched, image).round().clip(0, 255).astype(np.uint8)


def draw_errors(image: np.ndarray, truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A picture in pale grey, red where the prediction is not the truth; void is hatched.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth, found: (H, W) labels; what is negative in the truth is void.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ.
    """
    for labels in (truth, found):
        _check(image, labels)
    grey = np.broadcast_to(128 + image.mean(-1, keepdims=True) / 2, image.shape)
    red = 0.25 * grey + 0.75 * np.float32(WRONG)
    return _hatched(np.where((truth != found)[..., None], red, grey), truth < 0)


class Swatch(NamedTuple):
    """What a colour means; None stands for what is hatched."""

    name: str
    colour: Colour | None


def label_legend(labels: np.ndarray, names: Sequence[str], colours: np.ndarray) -> list[Swatch]:
    """What the colours of the categories that occur among (…) labels mean, in the categories' order.

    Raises:
        ValueError: a label has no colour.
    """
    _check_colours(labels, colours)
    present = np.unique(labels)
    return [Swatch(names[i], tuple(colours[i].tolist())) for i in present[present >= 0].tolist()]


def with_legend(image: np.ndarray, legend: Sequence[Swatch]) -> np.ndarray:
    """A picture (H, W, 3) uint8 above a white band with a legend; letters grow with the picture's width."""
    size = max(TEXT, round(image.shape[1] / 50))
    return np.vstack([image, _legend(legend, image.shape[1], size, size // 2)])


def _legend(legend: Sequence[Swatch], width: int, size: int, edge: int) -> np.ndarray:
    """(height, width, 3) uint8, swatches with names in columns, letters of `size` pixels, `edge` pixels from the sides."""
    letters = font(size, "".join(entry.name for entry in legend))
    row = round(1.35 * line_height(letters))
    columns = max(1, (width - edge) // (ENTRY * size // TEXT))
    column = (width - edge) // columns
    sheet = Image.new("RGB", (width, 2 * edge + row * math.ceil(len(legend) / columns)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, entry in enumerate(legend):
        x, y = edge + i % columns * column, edge + i // columns * row
        sheet.paste(Image.fromarray(_swatch(entry.colour, size)), (x, y + (row - size) // 2))
        name = shortened(entry.name, letters, column - 2 * size - edge)
        pen.text((x + 3 * size // 2, y + row // 2), name, fill=INK, font=letters, anchor="lm")
    return np.asarray(sheet)


def _swatch(colour: Colour | None, size: int) -> np.ndarray:
    square = np.full((size, size, 3), 128 if colour is None else colour, np.uint8)
    return square if colour is not None else _hatched(square, np.ones((size, size), bool))


def draw_label_comparison(
    image: np.ndarray, truth: np.ndarray, found: np.ndarray, names: Sequence[str], colours: np.ndarray
) -> np.ndarray:
    """One picture four times, as it is, with its true and its predicted categories, and with errors, above a legend.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) labels; what is negative is void.
        found: (H, W) labels that were predicted.
        names: C names.
        colours: (C, 3) uint8 RGB.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: the sizes differ, or a label has no colour.
    """
    for labels in (truth, found):
        _check(image, labels)
    judged = truth >= 0
    wrong = 100 * float((truth != found)[judged].mean()) if judged.any() else 0.0
    legend = label_legend(np.stack([truth, found]), names, colours)
    legend += [Swatch("wrong", WRONG)] if wrong else []
    legend += [] if judged.all() else [Swatch("void", None)]
    image, truth, found = _at_panel_size(image, truth, found)
    panels = {
        "picture": image,
        "truth": draw_labels(image, truth, colours),
        "prediction": draw_labels(image, found, colours),
        f"errors: {wrong:.1f} % of pixels": draw_errors(image, truth, found),
    }
    sheet = _grid(panels)
    return np.vstack([sheet, _legend(legend, sheet.shape[1], TEXT, GAP)])


def _at_panel_size(image: np.ndarray, *maps: np.ndarray) -> list[np.ndarray]:
    """The picture and its label maps with a longer side of SIDE, before anything is drawn: lines stay crisp."""
    ratio = SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * ratio)) for side in reversed(image.shape[:2]))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
    return [picture, *(cv2.resize(m.astype(np.int16), size, interpolation=cv2.INTER_NEAREST_EXACT) for m in maps)]


def _grid(panels: dict[str, np.ndarray]) -> np.ndarray:
    """Panels of one shape under their titles: two in a row, or all where they are upright."""
    height, width = next(iter(panels.values())).shape[:2]
    letters, columns = font(TEXT), 2 if width >= height else len(panels)
    title = round(1.6 * TEXT)
    row, column = title + height + GAP, max(width, 11 * TEXT) + GAP
    sheet = Image.new("RGB", (GAP + columns * column, row * math.ceil(len(panels) / columns)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, panel) in enumerate(panels.items()):
        x, y = GAP + i % columns * column, i // columns * row
        pen.text((x, y + title // 2), name, fill=MUTED, font=letters, anchor="lm")
        sheet.paste(Image.fromarray(panel), (x, y + title))
    return np.asarray(sheet)
