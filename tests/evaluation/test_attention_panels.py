"""The picture once a word, light where the attention was; sentences in a band below."""

import itertools

import numpy as np
import pytest

from sightline.datasets.images import read_image
from sightline.evaluation import lettering
from sightline.evaluation.attention_panels import SIDE, attention_panels, illuminated, smooth
from sightline.evaluation.drawing import colour_of
from sightline.evaluation.lettering import font, shortened, wrapped
from sightline.evaluation.sentence_band import Note, with_band


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def at(row, column, grid=(5, 7), words=1):
    """All attention on one cell."""
    attention = np.zeros((words, *grid), np.float32)
    attention[:, row, column] = 1
    return attention


def panels_of(sheet, shape):
    """Where pictures of `shape` stand on a sheet of grey ones: their top left corners, row by row."""
    drawn = (np.ptp(sheet.astype(int), axis=2) + 255 - sheet.min(2)) > 60  # neither white nor nearly
    corners = []
    for y in range(sheet.shape[0] - shape[0] + 1):
        if drawn[y].sum() < shape[1]:
            continue
        for x in range(sheet.shape[1] - shape[1] + 1):
            window = drawn[y : y + shape[0], x : x + shape[1]]
            if drawn[y, x] and not drawn[y, x - 1] and not drawn[y - 1, x] and window.all():
                corners.append((y, x))
    return corners


@pytest.mark.parametrize("cell", [(0, 0), (2, 3), (4, 6), (4, 0)], ids=str)
def test_light_falls_on_the_cell_looked_at(cell):
    light = smooth(at(*cell)[0], (100, 140))
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert light.max() == 1
    assert abs((row + 0.5) / 20 - (cell[0] + 0.5)) <= 0.55  # of a cell; at the border it may lean outwards
    assert abs((column + 0.5) / 20 - (cell[1] + 0.5)) <= 0.55
    assert light.min() >= 0
    far = light[(cell[0] + 3) % 5 * 20 + 10, (cell[1] + 3) % 7 * 20 + 10]
    assert far < 0.05


def test_even_attention_lights_everything():
    light = smooth(np.full((5, 7), 1 / 35), (90, 120))
    np.testing.assert_allclose(light, 1, atol=1e-5)
    assert not smooth(np.zeros((5, 7)), (90, 120)).any()


def test_there_are_no_edges_between_cells():
    light = smooth(np.random.default_rng(0).random((7, 7)), (224, 224))
    assert max(np.abs(np.diff(light, axis=axis)).max() for axis in (0, 1)) < 2.5 / 32


def test_dark_is_grey_and_light_is_bright():
    image = np.full((4, 4, 3), (40, 120, 200), np.uint8)
    assert np.ptp(illuminated(image, np.zeros((4, 4))), axis=2).max() == 0
    brightness = [float(illuminated(image, np.full((4, 4), light)).mean()) for light in (0, 0.25, 0.5, 1)]
    assert brightness == sorted(brightness)
    assert brightness[-1] > 3 * brightness[0]


@pytest.mark.parametrize(
    ("shape", "words", "rows"),
    [((200, 300), 3, 1), ((300, 200), 12, 2), ((160, 160), 20, 5), ((40, 600), 1, 1)],
    ids=str,
)
def test_every_word_has_its_panel(shape, words, rows):
    """Of the picture's proportions, none overlapping, beneath each other and beside each other."""
    ratio = SIDE / max(shape)
    size = tuple(round(side * ratio) for side in shape)
    attention = np.ones((words, 7, 7)) / 49
    sheet = attention_panels(grey(*shape), ["word"] * words, attention, title="a title")
    corners = panels_of(sheet, size)
    assert len(corners) == words + 1
    assert len({y for y, _ in corners}) == rows
    columns = sorted({x for _, x in corners})
    assert all(right - left >= size[1] for left, right in itertools.pairwise(columns))
    assert columns[-1] + size[1] <= sheet.shape[1]
    assert max(y for y, _ in corners) + size[0] <= sheet.shape[0]


def test_each_panel_shows_its_own_word():
    """And the first one the photo as it is."""
    attention = np.concatenate([at(1, 1, (4, 4)), at(1, 2, (4, 4)), at(2, 1, (4, 4))])
    sheet = attention_panels(grey(SIDE, SIDE), ["a", "b", "c"], attention)
    corners = panels_of(sheet, (SIDE, SIDE))
    y, x = corners[0]
    assert (sheet[y : y + SIDE, x : x + SIDE] == 128).all()
    quarter = SIDE // 4
    for (y, x), (row, column) in zip(corners[1:], [(1, 1), (1, 2), (2, 1)], strict=True):
        panel = sheet[y : y + SIDE, x : x + SIDE].astype(int).sum(2)
        found = np.unravel_index(panel.argmax(), panel.shape)
        assert (found[0] // quarter, found[1] // quarter) == (row, column)


def test_cells_beyond_the_picture_are_cut_off():
    """Cells that cover twice the picture's width: the left half of them is all there is to see."""
    inside = attention_panels(grey(64, 64), ["a"], at(1, 1, (4, 4)), extent=(64, 128))
    y, x = panels_of(inside, (SIDE, SIDE))[1]
    panel = inside[y : y + SIDE, x : x + SIDE].astype(int).sum(2)
    row, column = np.unravel_index(panel.argmax(), panel.shape)
    assert abs(row / SIDE - 1.5 / 4) < 0.05
    assert abs(column / SIDE - 2 * 1.5 / 4) < 0.05
    edge = attention_panels(grey(64, 64), ["a"], at(1, 3, (4, 4)), extent=(64, 128))
    assert edge.astype(int).sum() < inside.astype(int).sum()  # the light is beside the picture


@pytest.mark.parametrize("word", ["Straßenbahnhaltestellenschildbürgermeister", "орёл", "ἀετός", "naïve"], ids=str)
def test_any_letters_fit_above_their_panel(word):
    plain = attention_panels(grey(300, 100), ["", ""], np.ones((2, 3, 3)))
    sheet = attention_panels(grey(300, 100), [word, ""], np.ones((2, 3, 3)))
    assert sheet.shape == plain.shape
    changed = np.flatnonzero((sheet != plain).any((0, 2)))
    corners = panels_of(sheet, (SIDE, round(SIDE / 3)))
    assert len(changed) > 5
    assert corners[1][1] <= changed[0] + 1
    assert changed[-1] < corners[2][1]


def test_a_long_title_is_wrapped():
    short, long = (
        attention_panels(grey(100, 100), ["a"], np.ones((1, 3, 3)), title=" ".join(["word"] * n)) for n in (2, 40)
    )
    assert long.shape[1] == short.shape[1]
    assert long.shape[0] > short.shape[0] + 60
    assert (long[:, -5:] == 255).all()


def test_a_sentence_of_no_words_is_the_picture_alone():
    sheet = attention_panels(grey(100, 100), [], np.zeros((0, 7, 7)))
    assert len(panels_of(sheet, (SIDE, SIDE))) == 1


@pytest.mark.parametrize(
    ("image", "words", "attention", "message"),
    [
        (np.zeros((4, 4)), ["a"], np.ones((1, 2, 2)), "image must be"),
        (grey(4, 4), ["a"], np.ones((2, 2, 2)), "attention must be .* of 1 words"),
        (grey(4, 4), ["a"], np.ones((1, 4)), "attention must be"),
        (grey(4, 4), ["a"], -np.ones((1, 2, 2)), "not negative"),
    ],
    ids=["image", "words", "flat", "negative"],
)
def test_mistakes(image, words, attention, message):
    with pytest.raises(ValueError, match=message):
        attention_panels(image, words, attention)


def test_a_photograph(real_data):
    image = read_image(real_data("demo") / "dog.jpg")
    sheet = attention_panels(image, ["a", "dog"], np.concatenate([np.ones((1, 7, 7)), at(4, 1, (7, 7))]), title="a dog")
    assert sheet.shape[0] < sheet.shape[1]
    assert sheet.dtype == np.uint8


@pytest.mark.parametrize("size", [13, 40])
@pytest.mark.parametrize("text", ["", "a", "ein Straßenbahnhaltestellenschild am Weg", "犬" * 30, "a  b\nc"], ids=repr)
def test_wrapped_lines_hold_all_letters(text, size):
    letters = font(size)
    lines = wrapped(text, letters, 150)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(letters.getlength(line) <= 150 for line in lines)
    assert len(lines) == 1 or all(lines)
    assert wrapped(text, letters, 1e6) == [" ".join(text.split())]


def test_shortened_texts_say_so():
    letters = font(20)
    assert shortened("dog", letters, 200) == "dog"
    assert shortened("dog", letters, 200, cut=True) == "dog…"
    for width in (30, 60, 90):
        text = shortened("Straßenbahn", letters, width)
        assert text.endswith("…")
        assert letters.getlength(text) <= width


def test_the_picture_stands_above_its_band():
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    before = image.copy()
    sheet = with_band(image, [Note("a dog on the grass")])
    assert np.array_equal(sheet[:120], before)
    assert np.array_equal(image, before)
    band = sheet[120:]
    assert (band[[0, -1]] == 255).all()
    assert (band[:, [0, -1]] == 255).all()
    assert band.min() < 60
    assert len(with_band(image, [Note("a dog on the grass " * 4)])) > len(sheet)


@pytest.mark.parametrize("width", [1, 40, 200, 3000], ids=lambda width: f"{width} pixels")
def test_a_band_of_so_many_lines_is_always_as_high(width):
    shapes = {
        with_band(grey(20, width), [Note(text)] * number, lines=3).shape
        for text in ("", "dog", "a dog on the grass " * 9)
        for number in (0, 1, 5)
    }
    assert len(shapes) == 1


def test_a_narrow_picture_leaves_its_sentence_room():
    image = grey(50, 1)
    sheet = with_band(image, [Note("a dog on the grass")])
    assert np.array_equal(sheet[:50, :1], image)
    assert (sheet[:50, 1:] == 255).all()
    assert len(sheet) - 50 == len(with_band(grey(50, 156), [Note("a dog on the grass")])) - 50 < 50


def test_letters_grow_with_the_picture():
    small, large = (with_band(grey(100, width), [Note("dog")]).shape[0] - 100 for width in (800, 2400))
    assert large == pytest.approx(3 * small, rel=0.1)


def test_marks_stand_before_their_notes():
    sheet = with_band(grey(50, 400), [Note("all"), Note("one", "1", colour_of(0)), Note("ten", "10", colour_of(1))])
    rows = [np.flatnonzero((sheet[50:] == colour_of(i)).all(-1).any(1)) for i in range(2)]
    assert rows[0][-1] < rows[1][0]
    columns = np.flatnonzero((sheet[50:] == colour_of(1)).all(-1).any(0))
    assert columns[-1] < 60


def test_letters_that_the_usual_font_lacks(monkeypatch, tmp_path):
    """Come from a font of the machine that has them all; where there is none, the usual one draws its squares."""
    usual = font(20)
    lettering._further_fonts.cache_clear()
    # STIX has mathematical letters that DejaVu Sans lacks, and comes with matplotlib too.
    other, broken = str(lettering.DEJAVU / "STIXGeneral.ttf"), tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(lettering, "findSystemFonts", lambda: [other, str(broken)])
    odd = chr(next(iter(sorted(lettering._letters(other) - lettering._letters(usual.path)))))
    assert font(20, f"dog {odd}").path == other
    assert font(20, "dog кот").path == usual.path
    assert font(20, "\U0010fffd").path == usual.path
    heights = {with_band(grey(20, 200), [Note(text)], lines=2).shape for text in ("dog", odd)}
    assert len(heights) == 1
    lettering._further_fonts.cache_clear()
