"""Pictures that tell objects apart: a number for each pixel, 0 where there is no object.

What is decided, kind by kind:

- Gray of 1, 8, 16 or 32 bits and palettes are numbers as they stand.
- A colour is the number R + 256 G + 65536 B, as in COCO's panoptic PNGs; gray saved as colours is that gray. Alpha is
  dropped.
- JPEG and everything else that may lose a digit is refused: near the edges its numbers are of no object at all.
- Colours of 16 bits, PGM of another maximum than 255 or 65535, floating point and a file that ends early are refused. EXIF
  rotation is not applied, for who writes a mask writes its pixels as they are.
"""

from __future__ import annotations

from os import PathLike

import numpy as np
from PIL import Image

from .images import LOSSLESS, changes_numbers, refusal
from .table import DataError


def read_ids(path: str | PathLike) -> np.ndarray:
    """(H, W) whole numbers, what each pixel of a mask file belongs to.

    Raises:
        DataError: not there, not a picture, cut short, or of a kind that cannot hold numbers, see above.
    """
    try:
        with Image.open(path) as picture:
            _require_kind(picture, str(path))
            picture.load()
            return _numbers(picture, str(path))
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever comes on hostile bytes
        raise refusal(error, str(path)) from error


def _require_kind(picture: Image.Image, path: str) -> None:
    if picture.format not in LOSSLESS:
        raise DataError(
            f"{path}: a {picture.format} mask may have lost digits, which no object can be read from: make it anew as PNG"
        )
    if changes_numbers(picture):
        raise DataError(
            f"{path}: a mask with colours of 16 bits, or a PGM of another maximum than 255 or 65535, could be read changed: "
            "save its numbers as gray PNG of 16 bits, without alpha"
        )


def _numbers(picture: Image.Image, path: str) -> np.ndarray:
    if picture.mode in ("RGB", "RGBA"):
        red, green, blue = np.moveaxis(np.asarray(picture)[..., :3].astype(np.int64), -1, 0)
        return red if (red == green).all() and (green == blue).all() else red + 256 * green + 65536 * blue
    if picture.mode in ("LA", "PA"):
        return np.asarray(picture.getchannel(0))
    values = np.asarray(picture)
    if values.dtype.kind not in "bui":
        raise DataError(
            f"{path}: a mask of mode {picture.mode} holds no whole numbers: save it as gray PNG of 8 or 16 bits"
        )
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        raise DataError(f"{path}: a mask's numbers must not be negative, got {values.min()}")
    return values


def tells_objects_apart(path: str | PathLike) -> bool:
    """Whether a mask file numbers objects, not categories, going by its pixels.

    It does if it has 16 bits or more; with fewer, or in colours, there is no telling.
    """
    try:
        with Image.open(path) as picture:
            return picture.mode.startswith("I")
    except Exception:
        return False
