"""Pictures from files: whatever kind Pillow opens becomes (H, W, 3) uint8 RGB, upright; anything else is a `DataError`.

What is decided, kind by kind (the size that `image_size` reads from the header always agrees):

- EXIF rotation is applied. A PNG's counts where it stands before the pixels, so that no header read has to decode.
- Alpha is dropped, the colours beneath it stay, as in torchvision and OpenCV.
- Grayscale, 1-bit, palette, CMYK, YCbCr: converted. Of an animation, the first frame.
- 16-bit gray is divided by 257, so 65535 becomes 255 (16-bit colour: Pillow keeps the high byte, at most one level
  off).
- Float pixels must lie in [0, 1] and become 0..255; 32-bit integers have no agreed range and are refused.
- A file that ends early is refused, never filled up with gray.

JPEGs of 8 bits go through OpenCV: the same pixels as Pillow's, in 1.0 ms against 2.3 ms for 640x480 on one core. It
fills up a truncated file without a word, so that is looked for first.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from .table import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
LOSSLESS = frozenset({"PNG", "BMP", "TIFF", "GIF", "PPM"})  # Pillow's formats that give back each number written
_ORIENTATION = 0x0112  # the EXIF tag


class Header(NamedTuple):
    """What a picture's first bytes say: its (height, width) once upright, and whether that takes a quarter turn."""

    size: tuple[int, int]
    turned: bool


def changes_numbers(picture: Image.Image) -> bool:
    """Whether Pillow gives other numbers than stand in an opened file, unasked: of colours of 16 bits the upper eight, and in
    PGM and PPM those of another maximum than 255, or of gray 65535, stretched to that."""
    wide = picture.mode.startswith("I")
    codec, *_, options = picture.tile[0] if picture.tile else ("", "")
    if codec.startswith("ppm") and isinstance(options, tuple):
        return options[1] != (65535 if wide else 255)
    return not wide and ";16" in raw_mode(picture)


def raw_mode(picture: Image.Image) -> str:
    """How numbers stand in an opened file, in Pillow's words ("L;4", "RGB;16B"); "" once it is loaded."""
    raw = picture.tile[0][3] if picture.tile else ""
    raw = raw[0] if isinstance(raw, tuple) else raw
    return raw if isinstance(raw, str) else ""


def is_picture(name: str) -> bool:
    """Whether a file of this name is a picture; hidden ones, such as a Mac leaves beside each file, are not."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def pictures_below(folder: str | PathLike) -> Iterator[str]:
    """The paths of all pictures in a folder and below it, but for hidden folders; sorted, folder by folder."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(files) if is_picture(name))


def read_image(path: str | PathLike) -> np.ndarray:
    """The picture in a file.

    Returns:
        (H, W, 3) uint8 RGB, upright, writable, contiguous.

    Raises:
        DataError: not there, not a picture, cut short, too large to be honest, or of a kind that has no 8-bit meaning.
    """
    return decode_image(_bytes(path), str(path))


def image_size(path: str | PathLike) -> tuple[int, int]:
    """A picture's (height, width) after its EXIF rotation, from the file's header alone; raises as `read_image`."""
    return read_header(path).size


def read_header(path: str | PathLike) -> Header:
    """A picture's size and rotation from the first bytes of its file; raises as `read_image`."""
    try:
        with Image.open(path) as picture:
            if picture.format == "TIFF" and picture.getexif().get(_ORIENTATION, 1) > 4:
                picture.load()  # Pillow turns TIFFs itself, some versions on opening and some on loading
                return Header((picture.height, picture.width), True)
            turned = _orientation(picture) > 4
            size = (picture.width, picture.height) if turned else (picture.height, picture.width)
            return Header(size, turned)
    except (
        Exception
    ) as error:  # decoders raise whatever comes on hostile bytes: OSError, SyntaxError, struct.error, ...
        raise refusal(error, str(path)) from error


def decode_image(data: bytes, name: str) -> np.ndarray:
    """The picture in an encoded file's bytes, as `read_image` returns it; `name` is for the error message."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format in ("JPEG", "MPO") and picture.mode in ("RGB", "L"):
                pixels = _decode_jpeg(data)
            else:
                pixels = _to_rgb(picture)
            return _upright(pixels, _orientation(picture))
    except Exception as error:
        raise refusal(error, name) from error


def write_image(path: str | PathLike, image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB in the form of the suffix (JPEG: quality 95); makes the folder if need be."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: cannot write this kind of picture; name it .jpg or .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}))


def _bytes(path: str | PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _decode_jpeg(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB as the pixels are stored, not turned upright."""
    if not _reaches_its_end(data):
        raise ValueError("truncated")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("broken JPEG data")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # not the escaped 0xff, nor the restarts, of compressed data


def _reaches_its_end(data: bytes) -> bool:
    """Whether a JPEG's end marker comes after its pixels (ITU T.81, appendix B); OpenCV would fill up with gray."""
    if data.endswith(b"\xff\xd9"):  # almost always; within compressed data these two bytes never meet
        return True
    position = 2
    while marker := _MARKER.search(data, position):
        if data[marker.end() - 1] == 0xD9:
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")  # over that segment
    return False


def _to_rgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 from any mode of Pillow's; undoes no rotation except a TIFF's, which Pillow does by itself."""
    picture.load()
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        gray = (np.asarray(picture).astype(np.uint32) + 128) // 257
    elif picture.mode == "F":
        gray = np.asarray(picture)
        if not (np.all(gray >= 0) and np.all(gray <= 1)):  # false for NaN too
            raise ValueError(f"float pixels must lie in [0, 1], not {gray.min():g} to {gray.max():g}: rescale")
        gray = np.rint(gray * 255)
    elif picture.mode == "I":
        raise ValueError("32-bit integer pixels have no agreed range: save the picture with 8 or 16 bits")
    else:
        return np.array(picture.convert("RGB"))
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def _orientation(picture: Image.Image) -> int:
    """EXIF's 1..8; 1 where there is none or it cannot be read."""
    if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
        return 1  # getexif() would decode a whole PNG in search of it
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not spoil the picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes EXIF's orientation (EXIF 2.3, section 4.6.4): 5..8 swap the sides, then the picture is mirrored."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def refusal(error: Exception, name: str) -> DataError:
    """What a decoder raised for the file `name`, in plain words."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such picture")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{name}: a folder, not a picture")
    if isinstance(error, Image.UnidentifiedImageError):
        return DataError(f"{name}: not a picture, or of a kind that is not known here")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(f"{name}: refused as too large: {error}")
    reason = str(error).split("\n")[0]
    if "truncated" in reason or "Truncated" in reason:
        return DataError(f"{name}: the file is cut short; copy or download it again")
    return DataError(f"{name}: cannot be decoded ({reason or type(error).__name__})")
