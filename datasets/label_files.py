"""Label maps in picture files, read and written: index, palette and colour-coded masks.

What is decided, kind by kind:

- Gray of 8 bits or fewer and palettes number the categories; a palette's colours come along. Numbers are those in the file:
  of 1 bit 0 and 1, of 2 bits 0 to 3, where viewers spread them over 0 to 255.
- Colours stand for categories; alpha is dropped.
- JPEG and everything else that may lose a digit is refused: near the edges its pixels are of no category at all.
- 16 bits and more are refused: such numbers tell objects apart, seldom categories. So are PGM and PPM of another maximum
  than 255, which Pillow stretches to that.
- A file that ends early is refused. EXIF rotation is not applied, for who writes a mask writes its pixels as they are.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .images import LOSSLESS, changes_numbers, raw_mode, refusal
from .table import DataError

Colour = tuple[int, int, int]  # (red, green, blue), 0 to 255
VOID = 255  # the number of void in files, where there are no 256 categories
VOID_COLOUR: Colour = (224, 224, 192)  # Pascal VOC's
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})
_SPREAD = {"L;2": 85, "L;4": 17}  # by what Pillow multiplies gray of 2 and 4 bits


class Mask(NamedTuple):
    """A mask file's pixels, not yet categories.

    Attributes:
        values: (H, W) uint8 numbers, or (H, W, 3) uint8 colours.
        palette: (256, 3) uint8, the colours of numbers, black where the file has fewer; None where it has none.
    """

    values: np.ndarray
    palette: np.ndarray | None = None


class MaskHeader(NamedTuple):
    """What a mask file's first bytes say: its (height, width), and its mode in Pillow's words."""

    size: tuple[int, int]
    mode: str


def read_mask(path: str | PathLike) -> Mask:
    """The mask in a file.

    Raises:
        DataError: not there, not a picture, cut short, or of a kind that cannot hold categories, see above.
    """
    try:
        with Image.open(path) as picture:
            _require_kind(picture, str(path))
            spread = _spread(picture)  # Pillow forgets on loading
            mask = _mask(picture)
            return mask if spread == 1 else mask._replace(values=mask.values // spread)
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever comes on hostile bytes
        raise refusal(error, str(path)) from error


def read_mask_header(path: str | PathLike) -> MaskHeader:
    """A mask's size and mode from the first bytes of its file; raises as `read_mask`."""
    try:
        with Image.open(path) as picture:
            _require_kind(picture, str(path))
            return MaskHeader((picture.height, picture.width), picture.mode)
    except DataError:
        raise
    except Exception as error:
        raise refusal(error, str(path)) from error


def _require_kind(picture: Image.Image, path: str) -> None:
    if picture.format not in LOSSLESS:
        raise DataError(
            f"{path}: a {picture.format} mask may have lost digits, which no category can be read from: make it anew as PNG"
        )
    if picture.mode.startswith("I"):
        raise DataError(
            f"{path}: a mask of 16 bits or more tells objects apart, not categories: save the categories' numbers with 8 bits"
        )
    if changes_numbers(picture):
        raise DataError(
            f"{path}: a mask whose numbers do not go up to 255 in 8 bits could be read changed: make it anew as PNG of 8 bits"
        )
    if picture.mode not in _MODES:
        raise DataError(
            f"{path}: a mask of mode {picture.mode} holds no categories: save it as gray, palette or RGB PNG"
        )


def _spread(picture: Image.Image) -> int:
    """What the numbers in a file will have been multiplied with once it is decoded."""
    return _SPREAD.get(raw_mode(picture), 1)


def _mask(picture: Image.Image) -> Mask:
    picture.load()
    if picture.mode in ("RGB", "RGBA"):
        return Mask(np.array(picture.convert("RGB")))
    if picture.mode not in ("P", "PA"):
        return Mask(np.array(picture if picture.mode in ("1", "L") else picture.getchannel(0)).astype(np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(colours)] = colours
    return Mask(np.array(picture if picture.mode == "P" else picture.getchannel(0)), palette)


def write_label_map(path: str | PathLike, labels: np.ndarray, colours: list[Colour] | None = None) -> None:
    """Writes a label map as a PNG of numbers with a palette, void as 255; makes the folder if need be.

    Args:
        path: ends in .png.
        labels: (H, W) whole numbers, 0..254, negative for void.
        colours: of the categories; None takes Pascal VOC's. Numbers beyond them are drawn black.

    Raises:
        DataError: another suffix, or a label that 8 bits do not hold.
    """
    path, labels = Path(path), np.asarray(labels)
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: label maps are written as .png, which loses nothing")
    if labels.size and labels.max() >= VOID:
        raise DataError(
            f"{path}: label {labels.max()} does not fit: a label map's PNG holds the labels 0 to {VOID - 1}"
        )
    palette = np.zeros((256, 3), np.uint8)
    chosen = default_colours(VOID) if colours is None else colours[:VOID]
    palette[: len(chosen)] = np.array(chosen, np.uint8).reshape(-1, 3)
    palette[VOID] = VOID_COLOUR
    picture = Image.fromarray(np.where(labels < 0, VOID, labels).astype(np.uint8))
    picture.putpalette(palette.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def default_colours(count: int) -> list[Colour]:
    """Pascal VOC's colours of so many categories, at most 256: three bits of a number make one of each channel, from the top."""
    channels = [[sum((k >> 3 * bit + c & 1) << 7 - bit for bit in range(3)) for c in range(3)] for k in range(count)]
    return [tuple(channel) for channel in channels]
