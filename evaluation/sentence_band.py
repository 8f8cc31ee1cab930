"""Sentences under a picture: it is extended below by a band in which they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .drawing import Colour, legible
from .lettering import font, line_height, shortened, wrapped
from .plots import INK, MUTED

SMALLEST = 13  # pixels: the height of letters on narrow pictures
NARROWEST = 12 * SMALLEST  # a sentence needs room, however narrow the picture is
ACROSS = 36  # letters on others are so many times smaller than the picture is wide


class Note(NamedTuple):
    """One sentence.

    Attributes:
        text: it is wrapped.
        mark: what stands before it, as it is drawn at the thing that is meant; "" for nothing.
        colour: of the mark's ground.
        weak: pale, for what matters less.
    """

    text: str
    mark: str = ""
    colour: Colour = (0, 0, 0)
    weak: bool = False


def with_band(image: np.ndarray, notes: Sequence[Note], *, lines: int | None = None) -> np.ndarray:
    """The picture above a white band with notes; letters grow with its width.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        notes: one beneath the other.
        lines: how many lines the band is high, such as for all frames of a video; what does not fit ends in "…". None for
            as many as there are.

    Returns:
        (H + band, W, 3) uint8 RGB, white to the right of a picture narrower than a band can be; the band's height depends
        on W and `lines` alone, where they are given.

    Raises:
        ValueError: the image is not (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[0], max(image.shape[1], NARROWEST)
    size = max(SMALLEST, round(width / ACROSS))
    letters = font(size, "".join(note.text for note in notes))
    edge, row = size // 2, round(1.1 * line_height(font(size)))  # whatever the letters: frames of a video are alike
    rows = _rows(notes, letters, width - 2 * edge)
    if lines is not None:
        rows = _cut(rows, lines, letters, width - 2 * edge)
    sheet = Image.new("RGB", (width, height + 2 * edge + row * (len(rows) if lines is None else lines)), "white")
    sheet.paste(Image.fromarray(image), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(rows):
        _write(pen, line, (edge, height + edge + i * row), letters)
    return np.array(sheet)


class _Row(NamedTuple):
    """One line of the band: a mark, if any, and text `indent` pixels from the band's edge."""

    note: Note
    text: str
    mark: str
    indent: int


def _rows(notes: Sequence[Note], letters: ImageFont.FreeTypeFont, width: int) -> list[_Row]:
    marks = max((font(letters.size).getlength(note.mark) for note in notes if note.mark), default=0)
    indent = round(marks + letters.size) if marks else 0
    return [
        _Row(note, text, note.mark if i == 0 else "", indent if note.mark else 0)
        for note in notes
        for i, text in enumerate(wrapped(note.text, letters, width - (indent if note.mark else 0)))
    ]


def _cut(rows: list[_Row], lines: int, letters: ImageFont.FreeTypeFont, width: int) -> list[_Row]:
    if len(rows) <= lines:
        return rows
    last = rows[lines - 1]
    return [*rows[: lines - 1], last._replace(text=shortened(last.text, letters, width - last.indent, cut=True))]


def _write(pen: ImageDraw.ImageDraw, row: _Row, place: tuple[int, int], letters: ImageFont.FreeTypeFont) -> None:
    x, y = place
    usual = font(letters.size)
    base = y + usual.getmetrics()[0]
    if row.mark:
        end = x + usual.getlength(row.mark) + usual.size // 2
        pen.rectangle((x, y, end, y + line_height(usual) - 1), fill=row.note.colour)
        pen.text((x + usual.size // 4, base), row.mark, fill=legible(row.note.colour), font=usual, anchor="ls")
    pen.text((x + row.indent, base), row.text, fill=MUTED if row.note.weak else INK, font=letters, anchor="ls")
