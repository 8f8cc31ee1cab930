"""Proposals as columns, and as the objects that networks take."""

import numpy as np
import pytest
import torch

from sightline.datasets.proposals import Boxes, Regions, as_instances, pack, unpack
from sightline.datasets.shapes import shapes_table


def boxes(*counts, seed=0):
    """Random `Boxes`, so many for each picture."""
    rng = np.random.default_rng(seed)
    return [
        Boxes(rng.random((count, 4), np.float32), -np.sort(-rng.random(count, np.float32)).astype(np.float32))
        for count in counts
    ]


def test_pictures_come_back():
    pictures = boxes(3, 0, 5)
    regions = Regions.of(pictures)
    assert len(regions) == 3
    assert regions.offsets.tolist() == [0, 3, 3, 8]
    assert regions.boxes.dtype == regions.scores.dtype == np.float32
    for row, picture in enumerate(pictures):
        np.testing.assert_array_equal(regions[row].boxes, picture.boxes)
        np.testing.assert_array_equal(regions[row].scores, picture.scores)


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 2], []], ids=str)
def test_select_equals_a_loop(rows):
    pictures = boxes(3, 0, 5)
    part, expected = Regions.of(pictures).select(np.array(rows, int)), [pictures[row] for row in rows]
    assert len(part) == len(rows)
    for row, picture in enumerate(expected):
        np.testing.assert_array_equal(part[row].boxes, picture.boxes)
        np.testing.assert_array_equal(part[row].scores, picture.scores)


def test_columns_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"3 proposals need boxes \(3, 4\) and scores \(3,\), got \(2, 4\) and \(3,\)"):
        Regions(np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.array([0, 3]))


@pytest.mark.parametrize("rows", [[4, 1], [0], [], [3, 3]], ids=str)
def test_a_table_keeps_them_in_step(rows):
    table, pictures = shapes_table("train", 5, 32), boxes(1, 2, 3, 4, 5)
    table.regions = Regions.of(pictures)
    part = table.select(np.array(rows, int))
    assert part.paths == [table.paths[row] for row in rows]
    assert [len(part.regions[row].boxes) for row in range(len(part))] == [row + 1 for row in rows]
    assert table.select_objects(np.arange(3)).regions is table.regions


def test_the_largest_objects_leave_pictures_their_proposals():
    table = shapes_table("train", 6, 32)
    table.regions = Regions.of(boxes(*range(1, 7)))
    table.crowd[table.image == 2] = True  # a picture of crowds alone is left out
    part = table.largest(1)
    assert [len(part.regions[row].boxes) for row in range(5)] == [1, 2, 4, 5, 6]


def test_a_table_refuses_those_of_other_pictures():
    table = shapes_table("train", 3, 32)
    with pytest.raises(ValueError, match="regions must be those of 3 pictures, got those of 2"):
        type(table)(**{**vars(table), "regions": Regions.of(boxes(1, 1))})


def test_as_objects_of_one_class():
    (picture,) = boxes(4)
    found = as_instances(picture)
    assert torch.equal(found.boxes, torch.from_numpy(picture.boxes))
    assert torch.equal(found.scores, torch.from_numpy(picture.scores))
    assert found.labels.tolist() == [0, 0, 0, 0]
    found.boxes += 1
    assert not torch.equal(found.boxes, torch.from_numpy(picture.boxes)), "it changes the table's own numbers"
    assert as_instances(boxes(0)[0]).boxes.shape == (0, 4)


def regions_with_masks(*counts, side=5):
    rng = np.random.default_rng(1)
    return [each._replace(masks=rng.random((len(each.boxes), side, side)) < 0.5) for each in boxes(*counts)]


@pytest.mark.parametrize("side", [1, 5, 8, 28])
def test_packed_masks_come_back(side):
    masks = np.random.default_rng(0).random((7, side, side)) < 0.5
    assert pack(masks).nbytes <= 7 * side * (side // 8 + 1)
    np.testing.assert_array_equal(unpack(pack(masks)), masks)


def test_masks_stay_with_their_boxes():
    pictures = regions_with_masks(3, 0, 5)
    regions = Regions.of(pictures)
    for row, picture in enumerate(pictures):
        np.testing.assert_array_equal(regions[row].masks, picture.masks)
        np.testing.assert_array_equal(regions.best(2)[row].masks, picture.masks[:2])
    np.testing.assert_array_equal(regions.select(np.array([2, 0]))[0].masks, pictures[2].masks)
    found = as_instances(regions[2])
    assert found.masks.dtype == torch.float32
    assert torch.equal(found.masks, torch.from_numpy(pictures[2].masks).float())


def test_pictures_of_boxes_alone_leave_no_masks():
    assert Regions.of([*regions_with_masks(2), *boxes(1)]).masks is None
    assert as_instances(boxes(2)[0]).masks is None


def test_masks_that_do_not_go_with_their_boxes():
    with pytest.raises(ValueError, match=r"2 packed masks are \(P, M, ceil\(M / 8\)\) uint8, got \(2, 5, 5\)"):
        Regions(np.zeros((2, 4)), np.zeros(2), np.array([0, 2]), np.zeros((2, 5, 5), np.uint8))
