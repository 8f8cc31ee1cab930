"""Letters for what is drawn with Pillow: a font that has them, and texts brought to a width."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

DEJAVU = Path(matplotlib.get_data_path(), "fonts/ttf")  # Latin, Greek, Cyrillic and more; there wherever matplotlib is


def font(size: int, text: str = "", *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font `size` pixels high for this text: DejaVu Sans, or where that lacks a letter, one of this machine's that has all."""
    path = str(DEJAVU / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))
    wanted = {ord(letter) for letter in text if not letter.isspace()}
    if not wanted <= _letters(path):
        path = next((further for letters, further in _further_fonts() if wanted <= letters), path)
    return _opened(path, size)


_opened = lru_cache(ImageFont.truetype)


@lru_cache
def _letters(path: str) -> frozenset[int]:
    """The code points that a font has."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError):  # damaged, or of a kind that FreeType does not read
        return frozenset()


@lru_cache
def _further_fonts() -> tuple[tuple[frozenset[int], str], ...]:
    """This machine's fonts with their letters, one for all that have the same ones (bold, italic): looked for once."""
    fonts: dict[frozenset[int], str] = {}
    for path in sorted(findSystemFonts()):
        fonts.setdefault(_letters(path), path)
    return tuple(fonts.items())


def line_height(letters: ImageFont.FreeTypeFont) -> int:
    """From one line of a text to the next, in pixels."""
    return sum(letters.getmetrics())


def wrapped(text: str, letters: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Lines of at most `width` pixels, broken between words, and within those that are wider; one empty line of no words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and letters.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def shortened(text: str, letters: ImageFont.FreeTypeFont, width: float, *, cut: bool = False) -> str:
    """The text, ended by "…" where it is wider than `width` pixels, or in any case where it was `cut` before."""
    if not cut and letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
