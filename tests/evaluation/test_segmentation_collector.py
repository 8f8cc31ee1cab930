"""Counting label maps: the same however pictures are spread over batches and processes, each picture once."""

import pickle

import numpy as np
import pytest
import torch

from sightline.datasets.structures import LabelMaps
from sightline.evaluation import SegmentationCollector, segmentation_collector

NAMES = ["a", "b", "c"]


@pytest.fixture
def maps():
    """Prediction and truth of seven pictures, each unlike the others."""
    generator = torch.Generator().manual_seed(0)
    found, truth = torch.randint(-1, 3, (2, 7, 12, 15), generator=generator).short()
    return found, truth


def counted(maps, rows, *, boundary=True, batch_size=7):
    """A collector that saw these rows; the id of row i is 10 + i."""
    collector, (found, truth) = SegmentationCollector(3, boundary=boundary), maps
    for start in range(0, len(rows), batch_size):
        chosen = list(rows)[start : start + batch_size]
        collector.update(LabelMaps(found[chosen]), LabelMaps(truth[chosen]), [10 + row for row in chosen])
    return collector


def everything(collector):
    """All of a result, as values that compare."""
    result = collector.result(NAMES)
    parts = [result.matrix, *result.pictures, *(result.boundary or ()), result.image_ids]
    return result.to_dict(), [part.tolist() for part in parts]


@pytest.mark.parametrize("boundary", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_make_no_difference(maps, batch_size, boundary):
    at_once = everything(counted(maps, range(7), boundary=boundary))
    assert everything(counted(maps, range(7), boundary=boundary, batch_size=batch_size)) == at_once
    assert everything(counted(maps, [3, 6, 0, 5, 1, 4, 2], boundary=boundary, batch_size=batch_size)) == at_once


def test_pictures_have_their_own_scores(maps):
    whole = counted(maps, range(7)).result(NAMES)
    for row in range(7):
        alone = counted(maps, [row]).result(NAMES)
        assert alone.summary()["mean_IoU"] == whole.picture_iou[row]
        assert alone.summary()["pixel_accuracy"] == whole.picture_accuracy[row]
    for areas, total in zip(whole.pictures, whole.areas, strict=True):
        np.testing.assert_array_equal(areas.sum(0), total)
    wrong = counted(maps, range(7)).result(NAMES, void_is_wrong=True)
    np.testing.assert_array_equal(wrong.pictures.found.sum(0), wrong.areas.found)
    assert (wrong.areas.found > whole.areas.found).all()


def test_counts_are_fetched_now_and_then(maps, monkeypatch):
    """When many categories' squares would fill the device's memory; that changes nothing."""
    at_once = everything(counted(maps, range(7)))
    monkeypatch.setattr(segmentation_collector, "HELD", 60)
    collector = counted(maps, range(7), batch_size=2)
    assert not collector._chunks
    assert everything(collector) == at_once


def test_a_repeated_picture_counts_once(maps):
    at_once = everything(counted(maps, range(7)))
    assert everything(counted(maps, [0, 1, 1, 2, 0, 3, 4, 5, 6, 6], batch_size=3)) == at_once


def test_order_of_pictures(maps):
    collector = counted(maps, [4, 1, 2])
    assert collector.image_ids.tolist() == [14, 11, 12]
    assert collector.result(NAMES).image_ids.tolist() == [11, 12, 14]
    result = collector.result(NAMES, image_ids=[16, 12, 14, 11, 10])
    assert result.image_ids.tolist() == [12, 14, 11]
    ascending = collector.result(NAMES)
    np.testing.assert_array_equal(result.pictures.true, ascending.pictures.true[[1, 2, 0]])
    with pytest.raises(ValueError, match="picture 14 was counted, but is not among the 2"):
        collector.result(NAMES, image_ids=[12, 11])


@pytest.mark.parametrize(
    "split", [([0, 1, 2, 3], [4, 5, 6]), ([0, 2, 4], [1, 3, 4, 0], [5, 6, 5]), ([], list(range(7)))]
)
def test_processes_are_gathered(maps, split, monkeypatch):
    """Each ends with what one process has; pictures that several saw, to even out their work, count once."""
    at_once = everything(counted(maps, range(7)))
    parts = [counted(maps, rows, batch_size=2) for rows in split]
    assert parts[0].gather() is parts[0]  # one process

    def all_gather_object(found, own):
        assert everything(pickle.loads(pickle.dumps(own))) == everything(own)
        found[:] = [part.cpu() for part in parts]

    for name, value in {
        "is_initialized": lambda: True,
        "get_world_size": lambda: len(parts),
        "all_gather_object": all_gather_object,
    }.items():
        monkeypatch.setattr(torch.distributed, name, value)
    for part in parts:
        assert everything(part.gather()) == at_once


def test_what_does_not_go_together(maps):
    for other in (SegmentationCollector(4, boundary=True), SegmentationCollector(3)):
        with pytest.raises(ValueError, match=r"counts of . categories do not go with those of 3"):
            counted(maps, [0]).merge([other])


def test_the_callers_buffers_are_free(maps):
    """Nothing of them is kept: compiled models write every batch into the same memory."""
    found, truth = (part.clone() for part in maps)
    collector = counted((found, truth), range(7))
    found.zero_(), truth.zero_()
    assert everything(collector) == everything(counted(maps, range(7)))


@pytest.mark.parametrize(
    ("found", "truth", "ids"), [((2, 4, 5), (2, 4, 6), 2), ((2, 4, 5), (2, 4, 5), 3), ((4, 5), (4, 5), 4)]
)
def test_refuses(found, truth, ids):
    with pytest.raises(ValueError, match=r"expected label maps \(B, H, W\) .* and . ids"):
        SegmentationCollector(3).update(LabelMaps(torch.zeros(found)), LabelMaps(torch.zeros(truth)), range(ids))
