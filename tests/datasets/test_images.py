"""Pictures of every kind: what they become, and that size from the header and size once decoded never disagree."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from sightline.datasets.images import decode_image, image_size, read_header, read_image, write_image
from sightline.datasets.table import DataError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GRAY = COLOUR[..., 0]


def saved(path, picture, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"x.{suffix}", COLOUR, exif=exif)
    with Image.open(path) as picture:
        picture.load()  # turns a TIFF already
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    image = read_image(path)
    np.testing.assert_array_equal(image, expected)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert image_size(path) == image.shape[:2] == ((30, 20) if orientation > 4 else (20, 30))
    assert read_header(path).turned == (orientation > 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_the_picture(tmp_path):
    path = saved(tmp_path / "x.jpg", COLOUR, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(path).shape == (20, 30, 3)
    assert image_size(path) == (20, 30)


def expected_gray(levels):
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=2)


SIXTEEN = np.array([[0, 128, 129, 257, 40000], [65535, 65406, 65407, 32896, 300]], np.uint16)
CMYK = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
KINDS = {
    "gray.png": (GRAY, expected_gray(GRAY)),
    "one-bit.png": (Image.fromarray(GRAY > 100), expected_gray((GRAY > 100) * 255)),
    "palette.png": (Image.fromarray(GRAY // 16).convert("P"), expected_gray(GRAY // 16)),
    "alpha.png": (np.dstack([COLOUR, GRAY]), COLOUR),  # dropped: the colours beneath stay
    "gray-alpha.png": (Image.merge("LA", [Image.fromarray(GRAY)] * 2), expected_gray(GRAY)),
    "sixteen.png": (SIXTEEN, expected_gray(np.rint(SIXTEEN / 257))),
    "sixteen.tiff": (SIXTEEN, expected_gray(np.rint(SIXTEEN / 257))),
    "float.tiff": (np.array([[0, 0.5, 1]], np.float32), expected_gray([[0, 128, 255]])),
    "cmyk.tiff": (Image.fromarray(CMYK, "CMYK"), [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]]),
    "colour.bmp": (COLOUR, COLOUR),
    "colour.webp": (COLOUR, COLOUR),
    "colour.gif": (Image.fromarray(GRAY // 16), expected_gray(GRAY // 16)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_kinds(tmp_path, name):
    picture, expected = KINDS[name]
    path = saved(tmp_path / name, picture, **({"lossless": True} if name.endswith("webp") else {}))
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)
    assert image_size(path) == image.shape[:2]


def test_sixteen_bit_colour(tmp_path):
    cv2 = pytest.importorskip("cv2")
    colour = RNG.integers(0, 65536, (20, 30, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "x.png"), colour[..., ::-1])
    difference = read_image(tmp_path / "x.png") - np.rint(colour / 257)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_agree_with_pillow(tmp_path, mode):
    path = saved(tmp_path / "x.jpg", Image.fromarray(COLOUR).convert(mode), quality=95)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(read_image(path), np.asarray(picture.convert("RGB")))


def test_real_jpegs_agree_with_pillow(real_data):
    for path in sorted(real_data("demo").glob("*.jpg")):
        with Image.open(path) as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected)
        assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tiff"])
@pytest.mark.parametrize("left", [0.02, 0.5, 0.9, 0.99])
def test_truncated(tmp_path, suffix, left):
    path = saved(tmp_path / f"x.{suffix}", COLOUR.repeat(10, 0))
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data))])
    with pytest.raises(DataError, match=rf"x\.{suffix}: "):
        read_image(path)


def test_jpeg_without_its_last_bytes_is_truncated(tmp_path):
    data = saved(tmp_path / "x.jpg", COLOUR).read_bytes()
    with pytest.raises(DataError, match=r"upload\.jpg: the file is cut short"):
        decode_image(data[:-2], "upload.jpg")
    assert decode_image(data + b"\0\0more", "upload.jpg").shape == (20, 30, 3)


def test_only_a_whole_jpeg_is_taken_for_whole(real_data):
    """Cut anywhere, also just behind a thumbnail's end marker, with bytes behind it or without."""
    data = (real_data("demo") / "dog.jpg").read_bytes()
    thumbnail = b"\xff\xe1\x00\x06\xff\xd9\x00\x00"  # a segment that holds an end marker
    data = data[:2] + thumbnail + data[2:]
    assert decode_image(data + b"\0", "x").shape == decode_image(data, "x").shape
    for end in [6, 8, 200, *range(1000, len(data), 5000), len(data) - 1]:
        with pytest.raises(DataError):
            decode_image(data[:end] + b"\0\0", "x")


BAD = [
    ("missing", None, "no such picture|cannot be read"),
    ("empty", b"", "not a picture"),
    ("text", b"hello there", "not a picture"),
    ("jpeg start only", b"\xff\xd8\xff\xe0", "x.jpg: "),
]


@pytest.mark.parametrize("read", [read_image, image_size])
@pytest.mark.parametrize(("name", "data", "message"), BAD, ids=[row[0] for row in BAD])
def test_not_a_picture(tmp_path, read, name, data, message):
    path = tmp_path / "x.jpg"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(path)
    with pytest.raises(DataError, match=str(path.parent)):
        read(path.parent)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.png", COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"x\.png: refused as too large"):
            read(path)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 255]], np.float32), r"not 0 to 255"),
        (np.array([[0, np.nan]], np.float32), "float pixels"),
        (np.array([[0, 70000]], np.int32), "32-bit integer"),
    ],
)
def test_pixels_without_an_8_bit_meaning(tmp_path, pixels, message):
    path = saved(tmp_path / "x.tiff", pixels)
    with pytest.raises(DataError, match=message):
        read_image(path)


def test_one_bit_board(real_data):
    path = next((real_data("deeppcb") / "PCBData").rglob("*_test.png"))
    image = read_image(path)
    assert image.shape == (640, 640, 3)
    assert set(np.unique(image)) == {0, 255}


def test_write(tmp_path):
    write_image(tmp_path / "new" / "x.png", COLOUR)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "x.png"), COLOUR)
    smooth = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    write_image(tmp_path / "x.jpg", smooth)
    np.testing.assert_allclose(read_image(tmp_path / "x.jpg"), smooth, atol=3)
    with pytest.raises(DataError, match=r"\.jpg or \.png"):
        write_image(tmp_path / "x.xyz", COLOUR)
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8"):
        write_image(tmp_path / "x.png", COLOUR / 255)


def test_header_of_a_png_is_not_decoded(tmp_path, monkeypatch):
    stream = io.BytesIO()
    Image.fromarray(COLOUR).save(stream, "png")
    (tmp_path / "x.png").write_bytes(stream.getvalue()[:60])  # the header, and too little of the pixels
    assert image_size(tmp_path / "x.png") == (20, 30)
