"""What numbers and colours stand for, and the files that say so."""

import numpy as np
import pytest
from PIL import Image

from sightline.datasets.label_categories import find_legend, read_legend, write_categories
from sightline.datasets.label_files import VOID_COLOUR, Mask, read_mask
from sightline.datasets.label_legend import Legend, found_legend
from sightline.datasets.table import DataError

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def numbered(rows, palette=None):
    return Mask(np.array(rows, np.uint8), palette)


def test_numbers():
    legend = Legend.of(["sky", "void", "road"])
    assert legend.categories == ("sky", "road")
    labels = legend.labels(numbered([[0, 1, 2], [255, 2, 0]]), "x")
    assert labels.tolist() == [[0, -1, 1], [-1, 1, 0]]
    assert labels.dtype == np.int16


@pytest.mark.parametrize("seed", range(3))
def test_colours_equal_a_loop(seed):
    rng = np.random.default_rng(seed)
    colours = [tuple(colour) for colour in rng.integers(0, 256, (20, 3)).tolist()]
    legend = Legend.of([f"c{k}" for k in range(20)], colours)
    expected = rng.integers(-1, 20, (7, 9))
    pixels = np.array([[VOID_COLOUR if k < 0 else colours[k] for k in row] for row in expected], np.uint8)
    assert np.array_equal(legend.labels(Mask(pixels), "x"), expected)


def test_a_palette_counts_by_its_colours_where_categories_have_some():
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = GREEN, RED, BLUE
    mask = numbered([[0, 1, 255]], palette)
    assert Legend.of("ab", [RED, GREEN]).labels(mask, "x").tolist() == [[1, 0, -1]]
    assert Legend.of("ab", [RED, GREEN], coded=False).labels(mask, "x").tolist() == [[0, 1, -1]]
    assert Legend.of("ab").labels(mask, "x").tolist() == [[0, 1, -1]]
    with pytest.raises(DataError, match=r"m.png: colour \(0, 0, 255\) at row 0, column 1 .*names no category"):
        Legend.of("ab", [RED, GREEN]).labels(numbered([[0, 2]], palette), "m.png")


BAD = [
    ("number", Legend.of("abc"), numbered([[0, 1], [2, 9]]), r"m.png: value 9 at row 1, column 1 .*known are 0, 1, 2, and 255"),
    ("void's own number", Legend.of(["a", "void"]), numbered([[7]]), "and 1, 255 for void"),
    ("many", Legend.of([f"c{k}" for k in range(30)]), numbered([[99]]), "… 30 in all"),
    ("how often", Legend.of("a"), numbered([[5, 0], [6, 5]]), "value 5 at row 0, column 0 .*3 such pixels"),
    ("colour", Legend.of("a", [RED]), Mask(np.array([[RED, BLUE]], np.uint8)), r"colour \(0, 0, 255\) at row 0, column 1"),
    ("colours unexplained", Legend.of("a"), Mask(np.array([[RED]], np.uint8)), r"write categories\.csv with lines name,r,g,b"),
]  # fmt: skip


@pytest.mark.parametrize(("_", "legend", "mask", "message"), BAD, ids=[row[0] for row in BAD])
def test_what_names_no_category_is_named(_, legend, mask, message):
    with pytest.raises(DataError, match=message):
        legend.labels(mask, "m.png")


# -- Files of categories --

FILES = [
    ("classes.txt", "sky\nroad\n\ncar\n", ["sky", "road", "car"], None),
    ("classes.txt", "sky, 1, 2, 3\nroad,4,5,6", ["sky", "road"], [(1, 2, 3), (4, 5, 6)]),
    ("categories.csv", "name,r,g,b\nsky,1,2,3\nvoid,0,0,0\nroad,4,5,6\n", ["sky", "road"], [(1, 2, 3), (4, 5, 6)]),
    ("class_dict.csv", "\ufeffname,red,green,blue\n\"traffic, other\",1,2,3", ["traffic, other"], [(1, 2, 3)]),
    ("categories.csv", "name\nsky", ["name", "sky"], None),  # one word is no line of column names
    ("categories.json", '["sky", "unlabeled", "road"]', ["sky", "road"], None),
    ("classes.json", '[{"name": "sky", "color": [1, 2, 3]}, {"name": "road", "colour": [4, 5, 6]}]', ["sky", "road"],
     [(1, 2, 3), (4, 5, 6)]),
    ("classes.json", '{"sky": [1, 2, 3]}', ["sky"], [(1, 2, 3)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "names", "colours"), FILES)
def test_files_of_categories(tmp_path, name, text, names, colours):
    (tmp_path / name).write_text(text, encoding="utf-8")
    legend = find_legend([tmp_path / "nowhere", tmp_path])
    assert list(legend.categories) == names
    assert legend.colours == (None if colours is None else tuple(colours))
    void = next((k for k, line in enumerate(["sky", "void"]) if "void" in text and line == "void"), None)
    if void is not None:
        assert legend.numbers == {255: -1, 0: 0, 1: -1, 2: 1}
        assert legend.shades == {VOID_COLOUR: -1, (1, 2, 3): 0, BLACK: -1, (4, 5, 6): 1}


BAD_FILES = [
    ("classes.txt", "", "names no category"),
    ("classes.txt", "void\nIgnore", "names no category"),
    ("classes.txt", "sky\nroad\nsky", r"classes.txt:3: name 'sky' is that of 'sky', too"),
    ("classes.csv", "sky,1,2,3\nroad,1,2,3", r"classes.csv:2: colour \(1, 2, 3\) is that of 'sky', too"),
    ("classes.csv", "sky,1,2,3\nroad", r"classes.csv:2: 'road' has no colour, and others have one"),
    ("classes.csv", "sky,1,2", r"classes.csv:1: \['1', '2'\] is no colour"),
    ("classes.csv", "sky,1,2,256", "from 0 to 255"),
    ("classes.csv", "sky,1,2,blue", "from 0 to 255"),
    ("classes.json", "[", "broken json"),
    ("classes.json", "7", "neither a name nor an object"),
    ("classes.json", '["sky", 7]', "entry 1 from 0 is neither a name"),
    ("classes.json", '[{"name": "sky", "colour": "#ff0000"}]', "is no colour"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES)
def test_bad_files_of_categories(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_legend(tmp_path / name)


@pytest.mark.parametrize("colours", [None, [RED, GREEN]])
def test_categories_are_written_and_read_back(tmp_path, colours):
    write_categories(tmp_path / "new", ['a, "b"', "c"], colours)
    legend = find_legend([tmp_path / "new"])
    assert legend.categories == ('a, "b"', "c")
    assert legend.colours == (colours and tuple(colours))


# -- Without such a file --


def masks_at(folder, *arrays, palette=None):
    paths = []
    for number, array in enumerate(arrays):
        image = Image.fromarray(np.array(array, np.uint8))
        if palette is not None:
            image.putpalette(palette)
        paths.append(str(folder / f"{number}.png"))
        image.save(paths[-1])
    return paths


def test_categories_from_what_is_found(tmp_path):
    paths = masks_at(tmp_path, [[0, 7]], [[255, 3]])
    (tmp_path / "bad.png").write_bytes(b"nothing")
    legend = found_legend([*paths, str(tmp_path / "bad.png")], "here")
    assert (legend.categories, legend.colours) == (("0", "3", "7"), None)
    assert [legend.labels(read_mask(path), path).tolist() for path in paths] == [[[0, 2]], [[-1, 1]]]


def test_white_on_black_is_two_categories(tmp_path):
    paths = masks_at(tmp_path, [[0, 255]], [[0, 0]])
    legend = found_legend(paths, "here")
    assert legend.categories == ("0", "255")
    assert legend.labels(read_mask(paths[0]), "x").tolist() == [[0, 1]]


def test_palettes_give_colours(tmp_path):
    paths = masks_at(tmp_path, [[0, 2]], [[1, 255]], palette=bytes([*BLACK, *RED, *GREEN]) + bytes(253 * 3))
    legend = found_legend(paths, "here")
    assert legend.categories == ("0", "1", "2")
    assert legend.colours == (BLACK, RED, GREEN)
    assert legend.labels(read_mask(paths[1]), "x").tolist() == [[1, -1]]


def test_colours_that_are_found(tmp_path):
    paths = masks_at(tmp_path, [[RED, BLACK]], [[VOID_COLOUR, GREEN]])
    legend = found_legend(paths, "here")
    assert legend.categories == ("#000000", "#00ff00", "#ff0000")
    assert legend.colours == (BLACK, GREEN, RED)
    assert legend.labels(read_mask(paths[0]), "x").tolist() == [[2, 0]]
    assert legend.labels(read_mask(paths[1]), "x").tolist() == [[-1, 1]]


def test_what_cannot_be_numbered(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    for folder, arrays, message in (
        ("mixed", [[[0, 1]], [[RED, BLACK]]], "some masks hold numbers and some colours"),
        ("noise", [noise], "more than 255 colours"),
        ("void", [[[255]]], "no mask that can be read has any category in it$"),
    ):
        (tmp_path / folder).mkdir()
        with pytest.raises(DataError, match=message):
            found_legend(masks_at(tmp_path / folder, *arrays), "here")


def test_masks_that_all_cannot_be_read_say_why(tmp_path):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"category in it; one that cannot is .*a\.jpg: a JPEG mask"):
        found_legend([str(tmp_path / "a.jpg")], "here")
