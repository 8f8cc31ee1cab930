"""Boxes with names on pictures, over masks where there are any: one picture annotated, or truth on the left and predictions
on the right.

Drawn with Pillow: a video frame takes milliseconds, and names may have any of DejaVu Sans's letters (Latin, Greek,
Cyrillic and more).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_rgb
from PIL import Image, ImageDraw, ImageFont

from ..datasets.run_lengths import RunLengths
from ..datasets.structures import Instances
from . import lettering
from .mask_drawing import masks_of, paint_masks
from .plots import COLOURS, INK, MUTED

MAX_LABELS = 12  # objects in a panel above which names go to a legend and leave the picture clear
SIDE, GAP, TEXT = 640, 12, 14  # pixels: a panel's longer side, what is left free around it, letters beside it
CASING = (255, 255, 255, 170)  # a pale line around every box keeps it visible on any ground

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1 in whole pixels, the last ones included


def annotate(
    image: np.ndarray,
    instances: Instances,
    names: Sequence[str],
    *,
    dashed: np.ndarray | None = None,
    named: bool = True,
) -> np.ndarray:
    """A picture with masks, boxes and landmarks; lines and letters grow with the picture.

    Colours stand for categories; for ids where objects have any, so that one sees which are the same.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        instances: N objects in its pixels; ids and scores are written where there are any.
        names: C names.
        dashed: (N,) bool, objects drawn dashed; none by default.
        named: write names and scores too.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the image is not (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    boxes, labels = instances.boxes.float().cpu().numpy(), instances.labels.tolist()
    ids = None if instances.ids is None else instances.ids.tolist()
    colours = [colour_of(number) for number in (labels if ids is None else ids)]
    if instances.masks is not None:
        image = paint_masks(image, masks_of(instances, image.shape[:2]), colours)
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture, "RGBA")  # blends what is drawn; the picture stays RGB
    side = math.sqrt(image.shape[0] * image.shape[1])
    line, font = max(2, round(side / 320)), lettering.font(max(11, round(side / 46)))
    # Large boxes first, so that small ones and their names stay on top.
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable").tolist()
    places = [_whole(box) for box in boxes]
    for i in order:
        _outline(pen, places[i], colours[i], line, dashed=dashed is not None and bool(dashed[i]))
    for i in order if instances.landmarks is not None else ():
        _dots(pen, instances.landmarks[i].tolist(), colours[i], 2 * line)
    taken: list[Rectangle] = []
    for i in order if named else ():
        track = "" if ids is None else f" {ids[i]}"
        score = "" if instances.scores is None else f" {float(instances.scores[i]):.2f}"
        _write(pen, _name(names, labels[i]) + track + score, places[i], colours[i], font, taken)
    return np.array(picture)


def colour_of(label: int) -> Colour:
    """A category's colour, or an id's: the ten of the charts, then hues a golden section apart, so that neighbours differ."""
    if label < len(COLOURS):
        colour = to_rgb(COLOURS[label])
    else:
        colour = hsv_to_rgb((label * 0.618034 % 1, (0.85, 0.55)[label % 2], (0.6, 0.9, 0.75)[label % 3]))
    return tuple(round(255 * float(part)) for part in colour)


def legible(ground: Colour) -> str:
    """The colour of letters on a coloured ground."""
    return "white" if np.dot(ground, (0.299, 0.587, 0.114)) < 0.6 * 255 else INK


def _whole(box: np.ndarray) -> Rectangle:
    """The pixels that a box (4,) covers, at least one."""
    x0, y0, x1, y1 = (round(float(side)) for side in box)
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


def _outline(pen: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int, *, dashed: bool) -> None:
    x0, y0, x1, y1 = box
    rim = max(1, line // 3)
    pen.rectangle((x0 - rim, y0 - rim, x1 + rim, y1 + rim), outline=CASING, width=line + 2 * rim)
    if not dashed:
        pen.rectangle(box, outline=colour, width=line)
        return
    dash, period, thick = 3 * line, 5 * line, line - 1
    for x in range(x0, x1, period):
        for y in (y0, y1 - thick):
            pen.rectangle((x, y, min(x + dash, x1), y + thick), fill=colour)
    for y in range(y0, y1, period):
        for x in (x0, x1 - thick):
            pen.rectangle((x, y, x + thick, min(y + dash, y1)), fill=colour)


def _dots(pen: ImageDraw.ImageDraw, points: Sequence[Sequence[float]], colour: Colour, radius: int) -> None:
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            pen.ellipse(
                (x - radius, y - radius, x + radius, y + radius), fill=colour, outline=CASING, width=radius // 3
            )


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: Rectangle,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    taken: list[Rectangle],
) -> None:
    """A name at its box, where it hides no other: above, within, below; within the picture in any case."""
    edge = max(2, font.size // 6)
    width = math.ceil(font.getlength(text)) + 2 * edge
    height = sum(font.getmetrics()) + edge
    most_x, most_y = max(0, pen.im.size[0] - width), max(0, pen.im.size[1] - height)
    x0, y0, x1, y1 = box
    spots = [(x0, y0 - height), (x0, y0), (x0, y1 + 1), (x1 + 1 - width, y0 - height), (x0, y1 - height)]
    inside = [(x, y) for x, y in spots if 0 <= y <= most_y] or [(x0, min(max(y0, 0), most_y))]
    places = [(x, y, x + width, y + height) for x, y in ((min(max(x, 0), most_x), y) for x, y in inside)]
    place = next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])
    taken.append(place)
    pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
    pen.text((place[0] + edge, place[1] + edge // 2), text, fill=legible(colour), font=font)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _name(names: Sequence[str], label: int) -> str:
    name = " ".join(str(names[label]).split()) if label < len(names) else str(label)
    return name if len(name) <= 20 else name[:19] + "…"


def draw_comparison(
    image: np.ndarray,
    truth: Instances,
    predictions: Instances,
    names: Sequence[str],
    path: str | Path,
    *,
    missed: np.ndarray | None = None,
    wrong: np.ndarray | None = None,
    true_masks: RunLengths | None = None,
    found_masks: RunLengths | None = None,
) -> None:
    """One picture twice, with its objects and with what was found. Colours stand for categories.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: one image's objects in its pixels.
        predictions: one image's detections; choose by score before.
        names: C names.
        path: the PNG or JPEG.
        missed: (N,) bool, true objects drawn dashed; none by default.
        wrong: (N,) bool, predictions drawn dashed; none by default.
        true_masks, found_masks: of the objects and of the detections; by default those that they have themselves.

    Raises:
        ValueError: the image is not (H, W, 3) uint8.
    """
    legend = max(len(truth), len(predictions)) > MAX_LABELS
    titles, panels = [], []
    for instances, masks, dashed, (title, fault) in (
        (truth, true_masks, missed, ("truth", "missed")),
        (predictions, found_masks, wrong, ("prediction", "wrong")),
    ):
        faults = 0 if dashed is None else int(np.sum(dashed))
        titles.append(f"{title}: {len(instances)}" + (f", {faults} {fault} (dashed)" if faults else ""))
        ground = (
            image if masks is None else paint_masks(image, masks, [colour_of(k) for k in instances.labels.tolist()])
        )
        panels.append(annotate(*_scaled(ground, instances), names, dashed=dashed, named=not legend))
    labels = sorted({*truth.labels.tolist(), *predictions.labels.tolist()}) if legend else []
    _side_by_side(titles, panels, {_name(names, label): colour_of(label) for label in labels}).save(path, quality=90)


def _scaled(image: np.ndarray, instances: Instances) -> tuple[np.ndarray, Instances]:
    """The picture and its objects at a panel's size."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    ratio = SIDE / max(height, width)
    picture = Image.fromarray(image).resize((max(1, round(width * ratio)), max(1, round(height * ratio))))
    landmarks = None if instances.landmarks is None else instances.landmarks * ratio
    return np.asarray(picture), replace(instances, boxes=instances.boxes * ratio, landmarks=landmarks)


def _side_by_side(titles: Sequence[str], panels: Sequence[np.ndarray], legend: dict[str, Colour]) -> Image.Image:
    """Two panels of one shape with their titles, and beneath them what the colours mean."""
    font, row = lettering.font(TEXT), 3 * TEXT // 2
    height = panels[0].shape[0]
    column = GAP + max(panels[0].shape[1], *(math.ceil(font.getlength(title)) for title in titles))
    columns = max(1, (2 * column) // (13 * TEXT))
    foot = GAP + row * -(-len(legend) // columns)
    sheet = Image.new("RGB", (GAP + 2 * column, GAP + row + height + foot), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        pen.text((GAP + i * column, GAP // 2), title, fill=MUTED, font=font)
        sheet.paste(Image.fromarray(panel), (GAP + i * column, GAP + row))
    for i, (name, colour) in enumerate(legend.items()):
        x, y = GAP + i % columns * 13 * TEXT, GAP + row + height + GAP // 2 + i // columns * row
        pen.rectangle((x, y, x + TEXT, y + TEXT), fill=colour)
        pen.text((x + 3 * TEXT // 2, y - 1), name, fill=INK, font=font)
    return sheet
