"""Compact masks: drawn as pycocotools draws them, cut as their pixels are cut, and back to pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from sightline.datasets.augment import Augment, crop
from sightline.datasets.crops import ScaleCrop
from sightline.datasets.detection import DetectionDataset, loader_for
from sightline.datasets.masks import from_pixels, recrop, to_pixels
from sightline.datasets.outlines import Outlines, decode, encode
from sightline.datasets.readers import read
from sightline.datasets.run_strings import unpack_one
from sightline.datasets.shapes import draw, shapes_table
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.table import DataError
from sightline.datasets.transforms import flip

SIDE = 56


def iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def with_segmentations(segmentations, boxes, size=(40, 50)):
    """A table of one picture."""
    table = shapes_table("train", 1, size[0]).select_objects(np.zeros(len(boxes), np.int64))
    return replace(
        table,
        sizes=np.array([size]),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        segmentations=segmentations,
        image=np.zeros(len(boxes), np.int64),
    )


def masks_of(segmentation, box, size=(40, 50), side=SIDE):
    table = with_segmentations([segmentation], [box], size)
    return torch.from_numpy(Outlines(table).masks(range(1), table.boxes, side))


def random_pictures(count=60):
    rng = np.random.default_rng(0)
    for k in range(count):
        height, width = rng.integers(1, 50, 2)
        picture = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        yield picture if k % 4 else np.full((height, 700), k % 8 == 0, np.uint8)  # long runs too


def test_run_lengths_are_pycocotools():
    for picture in random_pictures():
        packed = coco.encode(np.asfortranarray(picture))
        for counts in (packed["counts"], packed["counts"].decode()):
            np.testing.assert_array_equal(decode(unpack_one(counts), picture.shape), picture)
        plain = encode(picture)
        assert coco.frPyObjects(plain, *picture.shape)["counts"] == packed["counts"]
        np.testing.assert_array_equal(decode(np.array(plain["counts"]), picture.shape), picture)


@pytest.mark.parametrize("packed", [False, True])
def test_a_mask_of_run_lengths_shows_the_object_again(packed):
    picture = np.zeros((40, 50), np.uint8)
    picture[5:25, 10:40] = 1
    picture[5:12, 10:22] = 0
    runs = coco.encode(np.asfortranarray(picture)) if packed else encode(picture)
    shown = to_pixels(masks_of(runs, (10, 5, 40, 25)), torch.tensor([[10.0, 5, 40, 25]]), (40, 50))[0]
    assert (shown.numpy() != picture).sum() <= 1  # where the notch has its corner


def test_polygons_cover_their_exact_area():
    triangle = masks_of([[3.25, 4.5, 43.25, 4.5, 3.25, 34.5]], (3.25, 4.5, 43.25, 34.5), side=28)[0]
    assert abs(triangle.mean() - 0.5) < 0.1 / 28
    rows, columns = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    assert (triangle[rows + columns < 26] >= 0.75).all()  # half of the outline's samples
    assert (triangle[rows + columns > 28] == 0).all()


def test_parts_that_overlap_are_one_object():
    parts = [[10, 10, 30, 10, 30, 20, 10, 20], [20, 10, 40, 10, 40, 20, 20, 20], [40, 20, 40, 30, 30, 30, 30, 20]]
    mask = masks_of(parts, (10, 10, 40, 30), side=12)[0]
    expected = torch.zeros(12, 12)
    expected[:6], expected[6:, 8:] = 1, 1
    torch.testing.assert_close(mask, expected, atol=0.26, rtol=0)  # a sample's row along the outline


def test_coco_objects_are_those_of_pycocotools(real_data):
    table = read(real_data("coco"), "val")
    outlines, found = Outlines(table), []
    for k in range(0, len(table.image), 3):
        height, width = size = tuple(table.sizes[table.image[k]].tolist())
        given = coco.frPyObjects(table.segmentations[k], height, width)
        packed = coco.merge(given) if isinstance(given, list) else given
        truth = decode(unpack_one(packed["counts"]), size).astype(bool)
        mask = outlines.masks(range(k, k + 1), table.boxes[k : k + 1], SIDE)
        mine = to_pixels(torch.from_numpy(mask), torch.from_numpy(table.boxes[k : k + 1]), size)[0].numpy()
        if truth.sum() >= 200:  # of smaller ones the rules for pixels on the outline decide
            found.append(iou(mine, truth))
    assert len(found) > 150
    assert np.median(found) > 0.98
    assert np.quantile(found, 0.02) > 0.9


def test_an_object_without_a_segmentation_has_its_whole_box():
    table = with_segmentations([None, [], [[1, 1, 2, 2]]], [(1, 1, 9, 9)] * 3)
    assert (Outlines(table).masks(range(3), table.boxes, 7) == 1).all()
    assert (Outlines(replace(table, segmentations=None)).masks(range(1), table.boxes[:1], 7) == 1).all()
    assert Outlines(table).masks(range(0), table.boxes[:0], 7).shape == (0, 7, 7)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [1, 2, 3, 4, 5, 6],
        [["a", 2, 3, 4, 5, 6]],
        [[2**1024, 2, 3, 4, 5, 6]],
        {"size": [9, 9], "counts": [81]},
        {"size": [40, 50], "counts": [81]},
        {"size": [40, 50], "counts": [2010, -10]},
        {"size": [40, 50], "counts": ""},
        {"size": [40, 50], "counts": "oo"},
        {"size": [40, 50], "counts": "\n"},
        {"counts": [2000]},
        {"size": [40, 50]},
        "polygon",
        7,
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_segmentation_is_named(segmentation):
    table = with_segmentations([None, segmentation], [(1, 1, 9, 9)] * 2)
    with pytest.raises(DataError, match=r"shapes:0/40/0, object 1 .*masks: null"):
        Outlines(table)


def test_huge_polygons_of_tiny_boxes():
    mask = masks_of([[-1e7, -1e7, 1e7, -1e7, 1e7, 1e7, -1e7, 1e7]], (3, 3, 3.001, 3.001), side=4)
    assert (mask == 1).all()


def test_from_pixels_to_pixels():
    """Where cells are no larger than pixels, the same pixels come back, at any place of the box."""
    for seed in range(20):
        picture = draw(seed, 0, 48).masks[-1]
        rows, columns = (np.flatnonzero(picture.any(axis)) for axis in (1, 0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        mask = torch.from_numpy(from_pixels(picture, box, SIDE))[None]
        back = to_pixels(mask, torch.from_numpy(box)[None], (48, 48))[0].numpy()
        assert iou(back, picture != 0) > 0.97
        assert not to_pixels(mask, torch.from_numpy(box)[None] + 100, (48, 48)).any()


def test_recrop_to_its_own_box_changes_nothing_and_to_a_part_shows_that():
    masks, old = torch.rand(3, 8, 8), torch.tensor([[2.0, 3, 18, 11]]).repeat(3, 1)
    torch.testing.assert_close(recrop(masks, old, old), masks)
    stripes = torch.zeros(1, 8, 8)
    stripes[..., 4:] = 1
    right = recrop(stripes, old[:1], torch.tensor([[10.0, 3, 18, 11]]))
    assert (right[..., 1:] == 1).all()
    assert (recrop(stripes, old[:1], torch.tensor([[20.0, 3, 28, 11]])) == 0).all()
    flat = torch.tensor([[20.0, 3, 20, 11]])
    assert (recrop(stripes, flat, flat) == 0).all()


def shapes_sample(index, size=96):
    """Picture `index` of the shapes, and its objects' pixels (N, H, W)."""
    picture = draw(0, index, size)
    target = Instances(
        torch.from_numpy(picture.boxes),
        torch.from_numpy(picture.labels),
        masks=torch.from_numpy(
            np.stack([from_pixels(m, b, SIDE) for m, b in zip(picture.masks, picture.boxes, strict=True)])
        ),
        crowd=torch.zeros(len(picture.labels), dtype=torch.bool),
        ids=torch.arange(len(picture.labels)),
    )
    image = torch.from_numpy(picture.image).permute(2, 0, 1)
    return Sample(image, target, ImageInfo(1, "shapes", (size, size))), torch.from_numpy(picture.masks).bool()


def assert_masks_are(sample, truth):
    """Each object's mask is `truth[id]` (N, H, W) of the changed picture, and its box is tight around that.

    A cell of a mask lies across the line that cuts it, so edges nearly along that line are off by more than a pixel.
    """
    target, checked = sample.target, 0
    shown = to_pixels(target.masks, target.boxes, tuple(sample.image.shape[1:]))
    for k, row in enumerate(target.ids.tolist()):
        pixels = truth[row]
        if pixels.sum() < 60:
            continue
        ys, xs = torch.nonzero(pixels, as_tuple=True)
        tight = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        torch.testing.assert_close(target.boxes[k], tight, atol=2.5, rtol=0)
        assert iou(shown[k].numpy(), pixels.numpy()) > 0.9
        checked += 1
    return checked


def test_flips_and_crops_cut_masks_as_pixels():
    rng, checked = np.random.default_rng(0), 0
    for index in range(40):
        sample, truth = shapes_sample(index)
        assert_masks_are(flip(sample), truth.flip(-1))
        y, x = rng.integers(0, 40, 2).tolist()
        checked += assert_masks_are(crop(sample, (y, x), (50, 56)), truth[:, y : y + 50, x : x + 56])
    assert checked > 40


def test_augment_and_scale_crop_take_masks():
    sample, truth = shapes_sample(3)
    upturned = Augment(flip=0, vertical_flip=1, scale=(1, 1), colour=0)(sample, np.random.default_rng(0))
    assert assert_masks_are(upturned, truth.flip(-2)) > 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        zoomed = Augment(scale=(0.5, 2))(sample, rng)
        assert zoomed.target.masks.shape == (len(zoomed.target), SIDE, SIDE)
        cut = ScaleCrop(size=(64, 64), scale=(64, 128))(sample, rng)
        assert cut.target.masks.shape == (len(cut.target), SIDE, SIDE)


def test_scale_crop_of_a_label_of_the_whole_picture():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    whole = Instances(torch.tensor([[0.0, 0, 64, 64]]), torch.zeros(1, dtype=torch.int64), masks=torch.ones(1, 8, 8))
    cut = ScaleCrop(size=(32, 32), scale=(64, 64))(
        Sample(image, whole, ImageInfo(1, "", (64, 64))), np.random.default_rng(0)
    )
    assert cut.target.boxes.tolist() == [[0, 0, 32, 32]]
    assert (cut.target.masks == 1).all()


def test_the_data_set_makes_masks_only_when_asked():
    table = shapes_table("train", 4, 64, masks=True)
    assert DetectionDataset(table, resize=(96, 96))[1].target.masks is None
    sample = DetectionDataset(table, resize=(96, 96), masks=SIDE)[1]
    truth = torch.from_numpy(draw(0, 1, 64).masks).bool()
    shown = to_pixels(sample.target.masks, sample.target.boxes * 64 / 96, (64, 64))
    assert all(iou(a.numpy(), b.numpy()) > 0.95 for a, b in zip(shown, truth, strict=True))
    batch = next(iter(loader_for(DetectionDataset(table, resize=(96, 96), masks=14), 4)))
    assert batch.targets.masks.shape == (4, 8, 14, 14)
    assert batch.targets.masks.dtype == torch.float32


def test_shapes_have_no_segmentations_unless_asked():
    assert shapes_table("train", 2, 32).segmentations is None
    table = shapes_table("train", 2, 32, masks=True)
    assert [sum(s["counts"][1::2]) for s in table.segmentations] == table.area.tolist()
