"""Proposals made elsewhere: every kind of file, what is repaired, and what is refused.

The .mat's convention is that of Fast R-CNN's reader (https://github.com/rbgirshick/fast-rcnn, `roidb`): columns 1, 0, 3, 2,
minus one; there the last pixel is included, here boxes are continuous and end after it.
"""

import json
import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.io import savemat

from sightline.datasets.proposal_files import read_proposals, write_proposals
from sightline.datasets.proposals import Boxes, Regions, pack, unpack
from sightline.datasets.shapes import shapes_table
from sightline.datasets.table import DataError

PATHS = ("/data/voc/images/000005.jpg", "/data/voc/images/000007.jpg", "/data/voc/images/000012.jpg")


def table(paths=PATHS, size=(40, 60)):
    """Pictures of one size, of ids 11, 12, …; their files need not be there."""
    shapes = shapes_table("train", len(paths), 32)
    shapes.paths, shapes.image_ids = list(paths), np.arange(len(paths)) + 11
    shapes.sizes = np.tile(np.array(size), (len(paths), 1))
    return shapes


def regions(*counts):
    rng = np.random.default_rng(0)
    pictures = []
    for count in counts:
        corners = np.sort(rng.random((count, 2, 2)), axis=1) * (60, 40)
        pictures.append(
            Boxes(corners.reshape(-1, 4).astype(np.float32), np.sort(rng.random(count))[::-1].astype(np.float32))
        )
    return Regions.of(pictures)


def assert_same(one, other):
    for name in ("boxes", "scores", "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


def write_npz(path, **changes):
    """One box of each picture, (0, 0, n, n) with n from 1, of scores 1, 2, 3."""
    sides = np.arange(1, len(PATHS) + 1)
    arrays = {
        "names": np.array(["000005", "000007", "000012"]),
        "boxes": np.stack([0 * sides, 0 * sides, sides, sides], axis=1).astype(np.float32),
        "scores": sides.astype(np.float32),
        "offsets": np.arange(len(PATHS) + 1),
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_results(path, records):
    path.write_text(json.dumps(records))
    return path


def result(image_id=11, bbox=(1, 2, 3, 4), score=0.5, **more):
    return {"image_id": image_id, "bbox": list(bbox), "score": score} | more


def cells(values, shape):
    array = np.empty(len(values), object)
    for place, value in enumerate(values):
        array[place] = value
    return array.reshape(shape)


def test_what_is_written_reads_back_equal(tmp_path):
    ours = table()
    ours.regions = regions(4, 0, 3)
    write_proposals(tmp_path / "deep" / "found.npz", ours)
    assert_same(read_proposals(tmp_path / "deep" / "found.npz", table()).regions, ours.regions)


def with_masks(regions, side=10, seed=0):
    masks = np.random.default_rng(seed).random((len(regions.boxes), side, side)) < 0.5
    return replace(regions, masks=pack(masks))


def test_masks_read_back_equal(tmp_path):
    ours = table()
    ours.regions = with_masks(regions(4, 0, 3))
    write_proposals(tmp_path / "found.npz", ours)
    found = read_proposals(tmp_path / "found.npz", table()).regions
    assert_same(found, ours.regions)
    np.testing.assert_array_equal(found.masks, ours.regions.masks)


def test_masks_are_sorted_and_cut_with_their_boxes(tmp_path):
    """The second comes first; of the other, which sticks out by half, the right half is left, twice as wide."""
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, 4:6], masks[1, 0] = True, True
    boxes = np.array([[-8, 0, 8, 8], [0, 0, 8, 8]])
    options = {"boxes": boxes, "scores": np.array([1, 2]), "offsets": [0, 2, 2, 2], "masks": pack(masks)}
    found = read_proposals(write_npz(tmp_path / "a.npz", **options), table()).regions
    assert found.boxes.tolist() == [[0, 0, 8, 8], [0, 0, 8, 8]]
    first, second = unpack(found.masks)
    assert np.array_equal(first, masks[1])
    assert second[:, :4].all()
    assert not second[:, 4:].any()


def test_masks_of_other_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="3 packed masks are"):
        read_proposals(write_npz(tmp_path / "a.npz", masks=np.zeros((3, 8, 8), np.uint8)), table())


def test_files_of_a_folder_have_masks_alike(tmp_path):
    for name, row, masks in (("a", 0, None), ("b", 1, pack(np.ones((1, 8, 8), bool)))):
        one = {"names": np.array([PATHS[row]]), "boxes": np.array([[0, 0, 5, 5]]), "scores": None, "offsets": [0, 1]}
        write_npz(tmp_path / f"{name}.npz", masks=masks, **one)
    with pytest.raises(DataError, match="some of its files have masks"):
        read_proposals(tmp_path, table())


def test_other_orders_and_parts_and_places(tmp_path):
    """Each picture gets its own boxes in any other table of the same data, and when the data have been moved."""
    ours = table(["/data/a/x/1.jpg", "/data/a/y/1.jpg", "/data/a/y/2.jpg"])
    ours.regions = regions(4, 2, 3)
    write_proposals(tmp_path / "found.npz", ours)
    with np.load(tmp_path / "found.npz") as file:
        assert file["names"].tolist() == ["a/x/1.jpg", "a/y/1.jpg", "a/y/2.jpg"]
    other = table(["C/a/y/2.jpg", "C/a/x/1.jpg"])
    assert_same(read_proposals(tmp_path / "found.npz", other).regions, ours.regions.select([2, 0]))
    with pytest.raises(DataError, match="none of its 3 pictures"):
        read_proposals(tmp_path / "found.npz", table(["/data/b/x/1.jpg"]))


def test_built_in_pictures_are_not_mixed_up(tmp_path):
    train, val = shapes_table("train", 3, 64), shapes_table("val", 3, 64)
    train.regions = regions(1, 2, 3)
    write_proposals(tmp_path / "found.npz", train)
    assert_same(read_proposals(tmp_path / "found.npz", train).regions, train.regions)
    with pytest.raises(DataError, match=r"'shapes:0/64/0', here shapes:1/64/0 \(id 1\)"):
        read_proposals(tmp_path / "found.npz", val)


def test_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match="no proposals to write"):
        write_proposals(tmp_path / "found.npz", table())


def test_our_format_by_ids_and_without_scores(tmp_path):
    """Ids in any order; boxes without scores stay as they are, best first."""
    boxes = np.array([[0, 0, 9, 9], [0, 0, 5, 5], [0, 0, 7, 7]])
    options = {"names": None, "scores": None, "boxes": boxes, "offsets": [0, 2, 3], "image_ids": [13, 11]}
    found = read_proposals(write_npz(tmp_path / "a.npz", **options), table()).regions
    assert found.boxes[:, 2].tolist() == [7, 9, 5]
    assert found.offsets.tolist() == [0, 1, 1, 3]
    assert (np.diff(found[2].scores) < 0).all()


def test_results_of_coco(tmp_path):
    records = [
        result(13, (10, 20, 5, 6), 0.2),
        result(11, (1, 2, 3, 4), 0.5, category_id=7),
        result(13, (0, 0, 60, 40), 0.9),
        result(13, (1, 1, 2, 2), 0.9, segmentation=[]),
        result(99, (0, 0, 5, 5), 1),
    ]
    found = read_proposals(write_results(tmp_path / "a.json", records), table()).regions
    assert found.offsets.tolist() == [0, 1, 1, 4]
    assert found.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 60, 40], [1, 1, 3, 3], [10, 20, 15, 26]], "not stable by score"
    np.testing.assert_allclose(found.scores, [0.5, 0.9, 0.9, 0.2])


@pytest.mark.parametrize("dtype", [np.float64, np.uint16], ids=str)
@pytest.mark.parametrize("names", ["cells", "characters"])
def test_selective_search_s_mat(tmp_path, dtype, names):
    listed = ["000012", "000005"]
    boxes = [np.array([[1, 2, 40, 60], [3, 4, 5, 4]], dtype), np.zeros((0, 4), dtype)]
    images = cells(listed, (2, 1)) if names == "cells" else np.array(listed)
    savemat(tmp_path / "voc.mat", {"images": images, "boxes": cells(boxes, (1, 2))})
    found = read_proposals(tmp_path / "voc.mat", table()).regions
    assert found.offsets.tolist() == [0, 0, 0, 2]
    assert found.boxes.tolist() == [[1, 0, 60, 40], [3, 2, 4, 5]]  # y1 x1 y2 x2 from 1: the second is 1 wide, 3 high
    assert found.scores[0] > found.scores[1]


def test_a_folder_of_splits(tmp_path):
    one = {"names": np.array(["000005"]), "boxes": np.array([[0, 0, 1, 1]]), "scores": None, "offsets": [0, 1]}
    write_npz(tmp_path / "trainval.npz", **one)
    write_results(tmp_path / "test.json", [result(12, (0, 0, 2, 2)), result(99)])
    (tmp_path / "README").write_text("about them")
    (tmp_path / "._test.json").write_bytes(b"\x00\x05")  # a Mac leaves such
    assert read_proposals(tmp_path, table()).regions.boxes[:, 2].tolist() == [1, 2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no proposals in this folder; they come as an \.npz"):
        read_proposals(tmp_path / "empty", table())


def test_bad_boxes_are_repaired_and_told_in_one_line(tmp_path, caplog):
    nan, inf = float("nan"), float("inf")
    boxes = [
        [-5, 3, 70, 50],  # clipped
        [0, 0, 60.001, 40],  # rounding: clipped without a word
        [10, 10, 10, 20],  # no width
        [20, 20, 10, 30],  # upside down
        [70, 5, 80, 9],  # outside
        [nan, 0, 5, 5],
        [0, 0, inf, 5],
        [1, 1, 2, 2],  # of no score
        [3, 3, 4, 4],
    ]
    scores = [1, 2, 3, 4, 5, 6, 7, nan, 8]
    options = {"boxes": np.array(boxes), "scores": np.array(scores), "offsets": [0, 0, 9, 9]}
    with caplog.at_level(logging.INFO):
        found = read_proposals(write_npz(tmp_path / "a.npz", **options), table()).regions
    assert found.boxes.tolist() == [[3, 3, 4, 4], [0, 0, 60, 40], [0, 3, 60, 40]]
    assert found.scores.tolist() == [8, 2, 1]
    assert found.offsets.tolist() == [0, 0, 3, 3]
    (line,) = caplog.messages
    assert line.endswith(
        "a.npz: 3 proposals; 2 beyond their picture (clipped); 6 without area, or no numbers (dropped); 2 of 3 pictures have "
        "none, /data/voc/images/000005.jpg for one"
    )


def test_nothing_is_said_of_good_files(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        read_proposals(write_npz(tmp_path / "a.npz"), table())
    assert caplog.messages == []


def test_boxes_all_bad(tmp_path):
    with pytest.raises(DataError, match="not one of its boxes has an area within its picture"):
        read_proposals(write_npz(tmp_path / "a.npz", boxes=np.zeros((3, 4))), table())


AMBIGUOUS = (
    "/d/train/1.jpg",
    "/d/val/1.jpg",
)
NAMES = {
    "with suffix": ("000005.jpg", PATHS, 0),
    "with a folder": ("images/000005", PATHS, 0),
    "whole": ("/data/voc/images/000005.jpg", PATHS, 0),
    "another suffix": ("000007.png", PATHS, 1),
    "a folder decides": ("val/1", AMBIGUOUS, 1),
    "dots": ("b.c", ("/d/a.b", "/d/b.c.png"), 1),
}


@pytest.mark.parametrize(("name", "paths", "row"), NAMES.values(), ids=NAMES.keys())
def test_names(tmp_path, name, paths, row):
    one = {"names": np.array([name]), "boxes": np.array([[0, 0, 1, 1]]), "scores": np.ones(1), "offsets": [0, 1]}
    found = read_proposals(write_npz(tmp_path / "a.npz", **one), table(paths)).regions
    assert np.diff(found.offsets).tolist() == [int(i == row) for i in range(len(paths))]


def mat(**content):
    return lambda path: savemat(path, content)


def npz(**changes):
    return lambda path: write_npz(path, **changes)


def results(*records):
    return lambda path: write_results(path, list(records))


def raw(data):
    return lambda path: path.write_bytes(data)


REFUSED = {
    "pickled": ("a.pkl", raw(pickle.dumps({"boxes": []})), "is not. If you trust it, load it with pickle and write it by"),
    "pickled under another name": ("a.npz", raw(pickle.dumps([1])), "a pickled file may run code"),
    "pickled inside": ("a.npz", npz(names=np.array(["000005", None, ""], object)), "allow_pickle=False"),
    "not there": ("a.npz", lambda path: None, r"a\.npz: cannot be read \(No such file"),
    "of no kind": ("a.txt", raw(b"1 2 3 4"), "of no known kind; proposals come as an .npz of ours"),
    "empty": ("a.mat", raw(b""), "of no known kind"),
    "cut npz": ("a.npz", raw(b"PK\x03\x04 and no more"), "cannot be read as .* make or download it again"),
    "cut json": ("a.json", raw(b'[{"image_id": 11, '), "cannot be read as"),
    "cut mat": ("a.mat", raw(b"MATLAB 5.0 MAT-file, and no more"), "cannot be read as"),
    "new mat": ("a.mat", raw(b"MATLAB 7.3 MAT-file"), "save it with -v7"),
    "other mat": ("a.mat", mat(rois=[1]), "it has no boxes and no images"),
    "other npz": ("a.npz", npz(offsets=None), r"needs arrays names \(or image_ids\), boxes and offsets, and has names, boxes"),
    "ids that are none": ("a.npz", npz(names=np.array([1.5, 2, 3])), "names must be text, image_ids and offsets whole"),
    "boxes of five": ("a.npz", npz(boxes=np.zeros((3, 5))), r"boxes must be \(P, 4\) and scores \(P,\), got \(3, 5\)"),
    "too few scores": ("a.npz", npz(scores=np.ones(2)), r"got \(3, 4\) and \(2,\)"),
    "offsets that fall": ("a.npz", npz(offsets=[0, 2, 1, 3]), "offsets must be 4 rising numbers"),
    "offsets too short": ("a.npz", npz(offsets=[0, 1, 2, 2]), "one more than pictures, from 0 to 3"),
    "truth": ("a.json", raw(b'{"images": []}'), "a list of results .* truth has no scores"),
    "no score": ("a.json", results(result(), {"image_id": 1, "bbox": [1, 2, 3, 4]}), "result 1 is .* must have image_id"),
    "three numbers": ("a.json", results(result(bbox=(1, 2, 3))), r"result 0 is .*bbox \[x, y, width, height\]"),
    "an id in words": ("a.json", results(result("11")), "a whole number"),
    "no results": ("a.json", results(), "none of its 0 pictures"),
    "other ids": ("a.json", results(result(1), result(2)), r"none of its 2 pictures .* called 1, here .*/000005.jpg \(id 11\)"),
    "other names": ("a.npz", npz(names=np.array(["a", "b", "5"])), "called 'a', here"),
    "twice": ("a.npz", npz(names=np.array(["000005", "000007", "000005.jpg"])), "two lists of proposals for .*000005.jpg; keep"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        read_proposals(tmp_path / name, table())
    assert str(error.value).startswith(str(tmp_path / name))


def test_a_name_of_two_pictures(tmp_path):
    one = {"names": np.array(["1"]), "boxes": np.array([[0, 0, 1, 1]]), "scores": np.ones(1), "offsets": [0, 1]}
    with pytest.raises(DataError, match=r"'1' may be /d/train/1\.jpg or /d/val/1\.jpg; write names with the folders"):
        read_proposals(write_npz(tmp_path / "a.npz", **one), table(AMBIGUOUS))


def test_no_code_of_a_pickle_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb()))
    np.savez(tmp_path / "b.npz", names=np.array([Bomb()], object), boxes=np.zeros((0, 4)), offsets=[0, 0])
    for name in ("a.pkl", "b.npz"):
        with pytest.raises(DataError):
            read_proposals(tmp_path / name, table())
    assert not (tmp_path / "ran").exists()
