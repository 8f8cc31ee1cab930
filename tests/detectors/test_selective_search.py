"""Selective search: grouping against the paper's algorithm as plain loops, similarities against their formulas, order and
content the same in every process, recall on drawn shapes, and pictures with nothing to group."""

from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

import cv2
import numpy as np
import pytest

from sightline.datasets.proposals import Regions
from sightline.datasets.shapes import draw, read_shapes, shapes_table
from sightline.detectors.region_grouping import Grouping, group, grouped
from sightline.detectors.selective_search import MODES, SelectiveSearch, reduce
from sightline.detectors.superpixels import (
    COLOUR_SPACES,
    STEEPEST,
    Segments,
    describe,
    segment,
    texture_bins,
    to_colour_space,
)
from sightline.evaluation.recall import proposal_recall

PICTURE = draw(0, 3, 96).image
MEASURES = ["C", "T", "S", "F", "CTSF", "TSF"]


def segments_of(image, space="lab", k=30):
    picture = to_colour_space(image, space)
    return describe(segment(picture, k), picture, texture_bins(picture))


# -- Superpixels --


def test_segments_describe_each_label():
    """Against loops over labels and pixels."""
    picture = to_colour_space(PICTURE, "hsv")
    labels, textures = segment(picture, 30), texture_bins(picture)
    found = describe(labels, picture, textures)
    assert len(found.sizes) > 5
    pairs = set()
    for y, x in np.ndindex(labels.shape):
        for v, u in ((y, x + 1), (y + 1, x - 1), (y + 1, x), (y + 1, x + 1)):
            if 0 <= u < labels.shape[1] and v < labels.shape[0] and labels[y, x] != labels[v, u]:
                pairs.add(tuple(sorted((int(labels[y, x]), int(labels[v, u])))))
    assert [tuple(pair) for pair in found.pairs.tolist()] == sorted(pairs)
    for label, (size, box) in enumerate(zip(found.sizes, found.boxes, strict=True)):
        mask = labels == label
        rows, columns = np.nonzero(mask)
        assert size == mask.sum()
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        colours = [np.histogram(picture[mask][:, c] / 256, 25, (0, 1))[0] for c in range(3)]
        assert found.colour[label] == pytest.approx(np.concatenate(colours) / (3 * size))
        bins = [np.bincount(channel[mask.ravel()], minlength=10) for channel in textures]
        assert found.texture[label] == pytest.approx(np.concatenate(bins) / (24 * size))


def test_texture_bins_tell_directions():
    """A ramp that rises by 20 levels a pixel falls into one bin; opposite it is none, and across half the slope is less."""
    ramp = np.tile((np.arange(12) * 20).astype(np.uint8), (12, 1))[..., None]
    middle = np.s_[:, 5, 5]
    bins = texture_bins(ramp).reshape(8, 12, 12)[middle]
    slopes = 20 * np.cos(
        np.array([0, np.pi, np.pi / 4, 5 * np.pi / 4, np.pi / 2, 3 * np.pi / 2, 3 * np.pi / 4, -np.pi / 4])
    )
    assert bins.tolist() == np.clip(slopes * 10 / STEEPEST, 0, 9).astype(int).tolist()
    assert bins.max() == 3


@pytest.mark.parametrize("space", COLOUR_SPACES)
def test_colour_spaces(space):
    """All are uint8 of the picture's size; grey has equal shares of red and green, and hue 0."""
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for image in (PICTURE, grey):
        converted = to_colour_space(image, space)
        assert converted.dtype == np.uint8
        assert converted.shape == (*image.shape[:2], 1 if space in "hi" else 3)
    if space == "rgi":
        assert np.all(np.abs(converted[0, :, :2].astype(int) - 85) <= 1)
    if space in ("hsv", "h"):
        assert not converted[..., 0].any()
    if space in ("rgi", "i"):
        assert converted[0, :, -1].tolist() == list(range(256))


# -- Grouping --


def direct_similarity(a, b, area, measures):
    """Equations 2, 4, 5 and 6 of two regions (size, box, colour, texture)."""
    x0, y0, x1, y1 = (min(a[1][0], b[1][0]), min(a[1][1], b[1][1]), max(a[1][2], b[1][2]), max(a[1][3], b[1][3]))
    terms = {
        "C": float(np.minimum(a[2], b[2]).sum()),
        "T": float(np.minimum(a[3], b[3]).sum()),
        "S": 1 - (a[0] + b[0]) / area,
        "F": 1 - ((x1 - x0) * (y1 - y0) - a[0] - b[0]) / area,
    }
    return [terms[letter] for letter in measures]


def regions_of(segments):
    """Number: (size, box, colour, texture) with float64 histograms."""
    boxes, colour, texture = segments.boxes.tolist(), segments.colour.astype(float), segments.texture.astype(float)
    return {i: (int(size), boxes[i], colour[i], texture[i]) for i, size in enumerate(segments.sizes)}


def merged(a, b):
    total = a[0] + b[0]
    box = [min(a[1][0], b[1][0]), min(a[1][1], b[1][1]), max(a[1][2], b[1][2]), max(a[1][3], b[1][3])]
    return total, box, (a[0] * a[2] + b[0] * b[2]) / total, (a[0] * a[3] + b[0] * b[3]) / total


def grouped_slowly(segments, measures):
    """Algorithm 1 of the paper with dicts and sets, all similarities looked through in each round."""
    regions, area = regions_of(segments), int(segments.sizes.sum())
    boxes = [region[1] for region in regions.values()]
    similarities = {
        (i, j): sum(direct_similarity(regions[i], regions[j], area, measures)) for i, j in segments.pairs.tolist()
    }
    while similarities:
        i, j = max(sorted(similarities), key=lambda pair: round(similarities[pair], 6))
        around = {k for pair in similarities if i in pair or j in pair for k in pair} - {i, j}
        similarities = {pair: value for pair, value in similarities.items() if i not in pair and j not in pair}
        new = len(boxes)
        regions[new] = merged(regions.pop(i), regions.pop(j))
        boxes.append(regions[new][1])
        for k in around:
            similarities[k, new] = sum(direct_similarity(regions[k], regions[new], area, measures))
    return boxes


@pytest.mark.parametrize("measures", MEASURES)
@pytest.mark.parametrize("space", ["lab", "i"])
def test_grouping_is_the_papers(space, measures):
    segments = segments_of(PICTURE, space)
    assert len(segments.sizes) > 15
    assert group(segments, measures).tolist() == grouped_slowly(segments, measures)


@pytest.mark.parametrize("measures", MEASURES)
def test_similarities_are_the_formulas(measures):
    """Of superpixels and of regions made of two, neighbours or not; in [0, 1] each where no pixel is in both regions."""
    segments = segments_of(PICTURE)
    regions, grouping = regions_of(segments), Grouping(segments, measures)
    members = [{i} for i in regions]
    for i, j in ((0, 1), (2, 3)):
        assert grouping.merge(i, j) == len(regions)
        regions[len(regions)] = merged(regions[i], regions[j])
        members.append({i, j})
    area = int(segments.sizes.sum())
    for i in regions:
        others = np.array([j for j in regions if not members[i] & members[j]])
        terms = np.array([direct_similarity(regions[i], regions[j], area, measures) for j in others])
        assert np.all((terms >= 0) & (terms <= 1 + 1e-6))
        assert grouping.similarity(i, others) == pytest.approx(terms.sum(axis=1), abs=1e-5)
        assert grouping.similarity(others, np.full(len(others), i)) == pytest.approx(terms.sum(axis=1), abs=1e-5)


def test_hierarchy_ends_with_the_picture():
    segments = segments_of(PICTURE)
    boxes = group(segments, "CTSF")
    assert len(boxes) == 2 * len(segments.sizes) - 1
    assert boxes[: len(segments.sizes)].tolist() == segments.boxes.tolist()
    assert boxes[-1].tolist() == [0, 0, 96, 96]


def test_equally_similar_pairs_merge_the_oldest_first():
    """Four equal cells in a row: 0 and 1 first, then 2 and 3, whose pair is older than that of 2 and the new region."""
    cells = Segments(
        sizes=np.full(4, 4), boxes=np.array([[2 * i, 0, 2 * i + 2, 2] for i in range(4)]), colour=np.ones((4, 1), np.float32),
        texture=np.ones((4, 1), np.float32), pairs=np.array([[0, 1], [1, 2], [2, 3]]),
    )  # fmt: skip
    assert group(cells, "C")[4:].tolist() == [[0, 0, 4, 2], [4, 0, 8, 2], [0, 0, 8, 2]]


@pytest.mark.parametrize("measures", ["", "CX"])
def test_unknown_measures(measures):
    with pytest.raises(ValueError, match='letters of "CTSF"'):
        group(segments_of(PICTURE), measures)


# -- The search --


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_run_and_process_gives_the_same(monkeypatch):
    """Two new interpreters, with other hashes of strings and more threads than this one."""
    first = [SelectiveSearch(seed=seed)(PICTURE) for seed in (0, 1)]
    assert len(first[0].boxes) > 50
    assert not same(*first)
    assert same(first[0], SelectiveSearch(seed=0)(PICTURE))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        others = [pool.submit(SelectiveSearch(seed=seed), PICTURE) for seed in (0, 1)]
        for other, known in zip(others, first, strict=True):
            assert same(other.result(), known)


def test_threads_do_not_matter():
    before = cv2.getNumThreads()
    found = []
    for threads in (1, 4):
        cv2.setNumThreads(threads)
        found.append(SelectiveSearch(side=60)(PICTURE))
    cv2.setNumThreads(before)
    assert same(*found)


def sound(found, image):
    """Whether boxes and scores are as every proposer's must be."""
    height, width = image.shape[:2]
    boxes, scores, _ = found
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (width, height)).all()
    return (
        boxes.dtype == scores.dtype == np.float32
        and boxes.shape == (len(scores), 4)
        and inside
        and (boxes[:, 2:] > boxes[:, :2]).all()
        and all(a >= b for a, b in pairwise(scores.tolist()))
    )


@pytest.mark.parametrize("mode", MODES)
def test_boxes_are_sound(mode):
    found = SelectiveSearch(mode)(PICTURE)
    assert sound(found, PICTURE)
    assert len(np.unique(found.boxes, axis=0)) == len(found.boxes)
    assert np.min(found.boxes[:, 2:] - found.boxes[:, :2]) >= 8
    before = PICTURE.copy()
    fewer = SelectiveSearch(mode, limit=10)(PICTURE)
    assert same(fewer, (found.boxes[:10], found.scores[:10], None))
    assert np.array_equal(PICTURE, before)


def test_quality_finds_more_boxes():
    fast, quality = (SelectiveSearch(mode, limit=10**6)(PICTURE) for mode in ("fast", "quality"))
    assert len(quality.boxes) > 1.5 * len(fast.boxes)
    assert {*map(tuple, fast.boxes.tolist())} <= {*map(tuple, quality.boxes.tolist())}


SIZES = {
    "one pixel": (1, 1),
    "a line": (1, 30),
    "two by two": (2, 2),
    "small": (10, 10),
    "wide": (3, 700),
    "tall": (600, 2),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_strange_sizes(size, mode):
    """Of noise and of one colour; where no box is large enough, the picture."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIZES[size], 3)).astype(np.uint8)
    for image in (noise, np.full_like(noise, 255), np.zeros_like(noise)):
        for least in (0, 8):
            found = SelectiveSearch(mode, least=least)(image)
            assert sound(found, image)
            assert len(found.boxes) >= 1
    height, width = SIZES[size]
    if min(height, width) < 8:
        assert found.boxes.tolist() == [[0, 0, width, height]]


def test_one_colour_gives_the_picture():
    image = np.full((40, 60, 3), 90, np.uint8)
    assert SelectiveSearch()(image).boxes.tolist() == [[0, 0, 60, 40]]


# -- Masks --


def test_members_are_the_superpixels_of_a_region():
    segments = segments_of(PICTURE)
    regions, parts = Grouping(segments, "C"), [{i} for i in range(len(segments.sizes))]
    for i, j in ((0, 1), (3, 2), (len(parts), 5), (len(parts) + 2, len(parts) + 1)):
        regions.merge(i, j)
        parts.append(parts[i] | parts[j])
    assert [set(np.flatnonzero(row)) for row in regions.members()] == parts


def test_masks_change_no_box():
    plain, masked = SelectiveSearch()(PICTURE), SelectiveSearch(masks=12)(PICTURE)
    assert np.array_equal(plain.boxes, masked.boxes)
    assert np.array_equal(plain.scores, masked.scores)
    assert plain.masks is None
    assert masked.masks.shape == (len(masked.boxes), 12, 12)
    assert masked.masks.dtype == bool
    assert masked.masks.any((1, 2)).all()


def test_masks_are_their_regions():
    """Against every region of every hierarchy drawn on the picture: some has the mask's box and its pixels."""
    found, side = SelectiveSearch(masks=16)(PICTURE), 16
    drawn = {}
    for space in MODES["fast"].spaces:
        picture = to_colour_space(PICTURE, space)
        for k in MODES["fast"].scales:
            labels = segment(picture, k)
            for measures in MODES["fast"].measures:
                regions = grouped(describe(labels, picture, texture_bins(picture)), measures)
                for box, members in zip(regions.boxes.tolist(), regions.members(), strict=True):
                    drawn.setdefault(tuple(box), []).append(members[labels])
    for box, mask in zip(found.boxes.astype(int).tolist(), found.masks, strict=True):
        x0, y0, x1, y1 = box
        rows = [y0 + int((i + 0.5) / side * (y1 - y0)) for i in range(side)]
        columns = [x0 + int((j + 0.5) / side * (x1 - x0)) for j in range(side)]
        assert any(np.array_equal(picture[np.ix_(rows, columns)], mask) for picture in drawn[tuple(box)])


def test_a_picture_that_cannot_be_cut_is_a_region_that_fills_it():
    assert SelectiveSearch(masks=5)(np.zeros((40, 50, 3), np.uint8)).masks.tolist() == np.ones((1, 5, 5), bool).tolist()


def test_grey_pictures():
    grey = cv2.cvtColor(cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    for mode in MODES:
        found = SelectiveSearch(mode)(grey)
        assert sound(found, grey)
        assert len(found.boxes) > 20


def test_large_pictures_are_reduced_first():
    """Boxes of a picture reduced beforehand, times the scale."""
    image = cv2.resize(PICTURE, (400, 300), interpolation=cv2.INTER_CUBIC)
    found = SelectiveSearch(side=100)(image)
    assert reduce(image, 100).shape == (75, 100, 3)
    inner = SelectiveSearch(side=100)(reduce(image, 100))
    assert sound(found, image)
    assert np.array_equal(found.boxes, inner.boxes * 4)
    assert reduce(PICTURE, 100) is PICTURE
    assert reduce(np.zeros((1, 1000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_shapes_are_found():
    """Measured: 98 % of 57 objects among 100 boxes, all among 2000."""
    table = shapes_table("val", 20, 128)
    found = Regions.of([SelectiveSearch()(read_shapes(path)) for path in table.paths])
    some, many = proposal_recall(found, table, (100, 2000))
    assert some >= 0.85
    assert many >= 0.98


def test_real_objects_are_found(real_data):
    """Raccoons are large: all of 40 pictures' are among 300 boxes."""
    from sightline.datasets.images import read_image
    from sightline.datasets.readers import read

    table = read(real_data("raccoon")).select(np.arange(4))
    found = Regions.of([SelectiveSearch(side=250)(read_image(path)) for path in table.paths])
    assert proposal_recall(found, table, [300])[0] == 1


BAD = {"mode": ({"mode": "fats"}, "did you mean 'fast'"), "limit": ({"limit": 0}, "at least 1"),
       "side": ({"side": 0}, "at least 1"), "least": ({"least": -1}, "at least 0")}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    settings, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        SelectiveSearch(**settings)


def test_keys_tell_settings_apart():
    settings = [{}, {"mode": "quality"}, {"limit": 1}, {"seed": 1}, {"side": 1}, {"least": 1}, {"masks": 7}]
    keys = {SelectiveSearch(**some).key for some in settings}
    assert len(keys) == len(settings)
    assert all("format 2" in key for key in keys)
    assert SelectiveSearch().key == SelectiveSearch("fast", 2000).key
