"""Mask files: which kinds are read as what, which are refused, and that what is written reads back equal."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.instance_files import read_ids, tells_objects_apart
from sightline.datasets.label_files import (
    VOID_COLOUR,
    default_colours,
    read_mask,
    read_mask_header,
    write_label_map,
)
from sightline.datasets.label_legend import Legend
from sightline.datasets.table import DataError

NUMBERS = np.array([[0, 1, 2, 3], [3, 2, 1, 255], [7, 7, 0, 0]], np.uint8)
COLOURS = np.stack([NUMBERS, 255 - NUMBERS, NUMBERS // 2], axis=-1)


def saved(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def paletted():
    image = Image.fromarray(NUMBERS)
    image.putpalette(bytes(range(30)) + bytes(246 * 3))
    return image


KINDS = [
    ("gray", "png", Image.fromarray(NUMBERS), NUMBERS),
    ("gray and alpha", "png", Image.merge("LA", [Image.fromarray(NUMBERS), Image.new("L", (4, 3), 9)]), NUMBERS),
    ("one bit", "png", Image.fromarray(NUMBERS > 2), (NUMBERS > 2).astype(np.uint8)),
    ("palette", "png", paletted(), NUMBERS),
    ("palette", "gif", paletted(), None),  # GIF may number its colours anew
    ("gray", "bmp", Image.fromarray(NUMBERS), NUMBERS),
    ("gray", "tif", Image.fromarray(NUMBERS), NUMBERS),
    ("gray", "pgm", Image.fromarray(NUMBERS), NUMBERS),
    ("colours", "png", Image.fromarray(COLOURS), COLOURS),
    ("colours and alpha", "png", Image.fromarray(np.dstack([COLOURS, NUMBERS])), COLOURS),
]


@pytest.mark.parametrize(("kind", "suffix", "image", "expected"), KINDS, ids=[f"{k[0]}, {k[1]}" for k in KINDS])
def test_kinds_that_are_read(tmp_path, kind, suffix, image, expected):
    path = saved(tmp_path / f"mask.{suffix}", image)
    mask = read_mask(path)
    assert read_mask_header(path).size == (3, 4)
    assert mask.values.dtype == np.uint8
    if expected is not None:
        assert np.array_equal(mask.values, expected)
    if kind == "palette":
        shown = mask.palette[mask.values]
        assert np.array_equal(shown[NUMBERS < 10], np.arange(30).reshape(10, 3)[NUMBERS[NUMBERS < 10]])
    else:
        assert mask.palette is None


def png_of(numbers, bits, kind=0):
    """The bytes of a PNG that Pillow does not write.

    `numbers` are (H, W, …), `bits` of each, whose rows fill whole bytes; kind 0 is gray, 2 colours, 4 gray with alpha.
    """
    binary = ((numbers[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(numbers), -1).astype(np.uint8)
    rows = np.pad(np.packbits(binary, axis=1), ((0, 0), (1, 0)))  # each begins with its filter, 0
    header = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], bits, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_numbers_of_few_bits_are_those_in_the_file(tmp_path, bits):
    numbers = np.arange(16).reshape(2, 8) % 2**bits
    (tmp_path / "mask.png").write_bytes(png_of(numbers, bits))
    mask = read_mask(tmp_path / "mask.png")
    assert mask.values.dtype == np.uint8
    assert np.array_equal(mask.values, numbers)  # Pillow alone makes 255, void, of the 3 of 2 bits


CHANGED = {  # what Pillow reads as other numbers than stand there
    "gray with alpha of 16 bits": ("png", png_of(np.arange(0, 1600, 100).reshape(2, 4, 2), 16, kind=4)),
    "colours of 16 bits": ("png", png_of(np.arange(0, 2400, 100).reshape(2, 4, 3), 16, kind=2)),
    "PGM up to 20": ("pgm", b"P5 2 2 20\n\x00\x01\x02\x14"),
    "PPM up to 65535": ("ppm", b"P6 1 1 65535\n\x01\x02\x03\x04\x05\x06"),
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("read", [read_mask, read_mask_header, read_ids])
def test_numbers_that_would_be_read_changed_are_refused(tmp_path, name, read):
    suffix, data = CHANGED[name]
    (tmp_path / f"mask.{suffix}").write_bytes(data)
    with pytest.raises(DataError, match="read changed"):
        read(tmp_path / f"mask.{suffix}")


@pytest.mark.parametrize("data", [b"P5 2 1 255\n\x07\x08", b"P2 2 1 255\n7 8\n", b"P5 2 1 65535\n\x00\x07\x00\x08"])
def test_pgm_of_the_usual_maxima(tmp_path, data):
    (tmp_path / "mask.pgm").write_bytes(data)
    assert read_ids(tmp_path / "mask.pgm").tolist() == [[7, 8]]
    if b"255" in data:
        assert read_mask(tmp_path / "mask.pgm").values.tolist() == [[7, 8]]


BAD = [
    ("JPEG", "jpg", Image.fromarray(NUMBERS), "JPEG mask may have lost digits"),
    ("JPEG named PNG", "png", "jpg", "JPEG mask may have lost digits"),
    ("WebP", "webp", Image.fromarray(COLOURS), "WEBP mask may have lost digits"),
    ("16 bits", "png", Image.fromarray(NUMBERS.astype(np.uint16) * 257), "tells objects apart"),
    ("32 bits", "tif", Image.fromarray(NUMBERS.astype(np.int32)), "tells objects apart"),
    ("float", "tif", Image.fromarray(NUMBERS.astype(np.float32)), "mode F holds no categories"),
    ("CMYK", "tif", Image.fromarray(COLOURS).convert("CMYK"), "mode CMYK holds no categories"),
]


@pytest.mark.parametrize(("_", "suffix", "image", "message"), BAD, ids=[row[0] for row in BAD])
@pytest.mark.parametrize("read", [read_mask, read_mask_header])
def test_kinds_that_are_refused(tmp_path, _, suffix, image, message, read):
    path = tmp_path / f"mask.{suffix}"
    if image == "jpg":
        Image.fromarray(NUMBERS).save(path, format="JPEG")
    else:
        saved(path, image)
    with pytest.raises(DataError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert tells_objects_apart(path) == (message == "tells objects apart")


@pytest.mark.parametrize(("keep", "message"), [(0.6, "cut short|decoded"), (0, "not a picture"), (None, "no such")])
def test_files_that_are_not_whole(tmp_path, keep, message):
    path = saved(tmp_path / "mask.png", Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40), np.uint8)))
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=message):
        read_mask(path)
    assert not tells_objects_apart(path)


@pytest.mark.parametrize("colours", [None, [(9, 8, 7), (1, 2, 3), (250, 0, 0), (0, 0, 250)]], ids=["none", "given"])
def test_what_is_written_reads_back(tmp_path, colours):
    labels = np.array([[0, 1, -1], [3, 2, 2]], np.int16)
    path = tmp_path / "new" / "map.png"
    write_label_map(path, labels, colours)
    mask = read_mask(path)
    assert np.array_equal(mask.values, np.where(labels < 0, 255, labels))
    shown = np.array(Image.open(path).convert("RGB"))
    for label, colour in enumerate(colours or default_colours(4)):
        assert (shown[labels == label] == colour).all()
    assert (shown[labels < 0] == VOID_COLOUR).all()
    for legend in (Legend.of("abcd"), Legend.of("abcd", colours or default_colours(4))):
        assert np.array_equal(legend.labels(mask, "x"), labels)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match=r"written as \.png"):
        write_label_map(tmp_path / "map.jpg", np.zeros((2, 2)))
    with pytest.raises(DataError, match="label 255 does not fit"):
        write_label_map(tmp_path / "map.png", np.full((2, 2), 255))
    write_label_map(tmp_path / "map.png", np.full((2, 2), 254), default_colours(300 - 45))
    assert read_mask(tmp_path / "map.png").values.max() == 254


def test_default_colours_are_pascal_vocs():
    """As its devkit makes them (VOCdevkit/VOCcode/VOClabelcolormap.m)."""
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0), 15: (192, 128, 128),
                20: (0, 64, 128), 21: (128, 64, 128), 255: VOID_COLOUR}  # fmt: skip
    colours = default_colours(256)
    assert {number: colours[number] for number in expected} == expected
    assert len(set(colours)) == 256
