"""What a captioner looked at for each word (Xu et al. 2015, https://arxiv.org/abs/1502.03044, figure 5): the picture in a
panel per word, bright where its attention was and dark elsewhere.

Letters: T words, h, w cells of attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .lettering import font, line_height, shortened, wrapped
from .plots import INK, MUTED

SIDE, GAP = 256, 14  # pixels: a panel's longer side, and what is left free around it
TEXT, TITLE = 17, 20  # pixels: letters above panels and of the title
WIDEST = 1500  # pixels of a row of panels
DARK = 0.22  # the share of its light that the picture keeps where nobody looks
GLOW = np.float32([255, 214, 120])  # mixed in where attention is: it tells light in the picture from attention
STRENGTH = 0.35


def attention_panels(
    image: np.ndarray,
    words: Sequence[str],
    attention: np.ndarray,
    *,
    extent: tuple[float, float] | None = None,
    title: str = "",
) -> np.ndarray:
    """The picture itself, and then for each word once more under its attention, in rows.

    Each word's attention is scaled by its own maximum: an even one leaves the whole picture bright.

    Args:
        image: (H, W, 3) uint8 RGB.
        words: T of them; what is too long for its panel is shortened.
        attention: (T, h, w), not negative, of any scale.
        extent: (height, width) in the picture's pixels that the h x w cells cover from its top left corner; the whole
            picture by default.
        title: the sentence, wrapped above the panels.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, or the attention is not of these words.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if attention.ndim != 3 or len(attention) != len(words) or (not attention.size == 0 and attention.min() < 0):
        raise ValueError(f"attention must be (T, h, w) of {len(words)} words and not negative, got {attention.shape}")
    ratio = SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * ratio)) for side in image.shape[:2])
    panel = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
    reach = size if extent is None else tuple(max(1, round(side * ratio)) for side in extent)
    lit = [illuminated(panel, smooth(one, reach)[: size[0], : size[1]]) for one in attention]
    return _sheet(["", *words], [panel, *lit], title)


def smooth(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) attention at `size` (height, width) without edges between cells, in [0, 1]: 1 where it is largest."""
    large = cv2.resize(attention.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    cell = max(size[0] / attention.shape[0], size[1] / attention.shape[1])
    large = cv2.GaussianBlur(large, (0, 0), sigmaX=0.35 * cell, borderType=cv2.BORDER_REPLICATE).clip(min=0)
    return large / max(float(large.max()), np.finfo(np.float32).tiny)


def illuminated(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 in light (H, W) of [0, 1]: dark and grey at 0, itself with a warm glow at 1."""
    light = light[..., None]
    grey = image.mean(axis=2, keepdims=True, dtype=np.float32)
    glowing = image + STRENGTH * light * (GLOW - image)
    return (DARK * grey * (1 - light) + glowing * light).round().clip(0, 255).astype(np.uint8)


def _sheet(words: Sequence[str], panels: Sequence[np.ndarray], title: str) -> np.ndarray:
    height, width = panels[0].shape[:2]
    letters, bold = font(TEXT, "".join(words)), font(TITLE, title, bold=True)
    column, row = max(width, 5 * TEXT) + GAP, height + line_height(letters) + GAP  # narrow panels leave room for a word
    columns = _columns(len(panels), column)
    wide = GAP + column * max(columns, min(3, -(-400 // column)))
    lines = wrapped(title, bold, wide - 2 * GAP) if title else []
    head = GAP // 2 + len(lines) * line_height(bold) + (GAP // 2 if lines else 0)
    sheet = Image.new("RGB", (wide, head + row * math.ceil(len(panels) / columns) + GAP // 2), "white")
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        pen.text((GAP, GAP // 2 + i * line_height(bold)), line, fill=INK, font=bold)
    for i, (word, panel) in enumerate(zip(words, panels, strict=True)):
        x, y = GAP + i % columns * column, head + i // columns * row
        pen.text((x, y), shortened(word, letters, column - GAP // 2), fill=INK if word else MUTED, font=letters)
        sheet.paste(Image.fromarray(panel), (x, y + line_height(letters)))
    return np.array(sheet)


def _columns(count: int, column: int) -> int:
    """As many beside each other as fit, the rows filled alike."""
    most = max(1, WIDEST // column)
    return math.ceil(count / math.ceil(count / most))
