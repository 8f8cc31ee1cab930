"""Masks at their picture's resolution against torchvision's loop and a slow one; all ways give the same."""

import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from sightline.datasets.mask_encoding import from_compact
from sightline.datasets.masks import from_pixels, to_pixels, to_pixels_everywhere, whole_pixels

SIZE = (60, 90)
WAYS = {"in windows": to_pixels, "everywhere": to_pixels_everywhere}


def boxes_within(number, size=SIZE):
    """Of all sides up to the picture's, at fractions of pixels."""
    ends = torch.rand(number, 2, 2).sort(dim=1).values * torch.tensor(size[::-1])
    return torch.cat([ends[:, 0], ends[:, 1]], dim=1)


def smooth(number, side):
    """Blobs, whose values are seldom exactly on the threshold."""
    coarse = torch.rand(number, 1, 4, 4)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)[:, 0]


# name: boxes, sides of masks
CASES = {
    "anywhere": (boxes_within(40), 28),
    "whole pixels": (torch.tensor([[3.0, 5, 40, 31], [0, 0, 90, 60], [88, 58, 90, 60]]), 28),
    "out of the picture": (
        torch.tensor([[-20.3, -11.2, 30.7, 40.1], [70, 50, 131.5, 99.9], [-500, -300, 700, 800]]),
        14,
    ),
    "less than a pixel": (torch.tensor([[10.2, 10.3, 10.9, 10.7], [50.4, 20.4, 50.6, 40.0]]), 7),
    "no width": (torch.tensor([[10.0, 10, 10, 30], [10, 10, 10, 10]]), 28),
    "a single cell": (torch.tensor([[10.0, 10, 30, 30]]), 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_whole_pixels_are_torchvisions(name, way):
    boxes, side = CASES[name]
    masks = smooth(len(boxes), side)
    expected = paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0]
    found = WAYS[way](*whole_pixels(masks, boxes), SIZE, threshold=None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def slow(mask, box, size):
    """Pixel by pixel: bilinear between the centres of cells, within the box."""
    x0, y0, x1, y1 = box.tolist()
    side = len(mask)
    frame = torch.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            if x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1:
                u, v = (
                    min(max((c + 0.5 - a) / (b - a) * side - 0.5, 0), side - 1)
                    for c, a, b in ((x, x0, x1), (y, y0, y1))
                )
                i, j = min(int(v), max(side - 2, 0)), min(int(u), max(side - 2, 0))
                below, right = min(i + 1, side - 1), min(j + 1, side - 1)
                upper = mask[i, j] * (1 - u + j) + mask[i, right] * (u - j)
                lower = mask[below, j] * (1 - u + j) + mask[below, right] * (u - j)
                frame[y, x] = upper * (1 - v + i) + lower * (v - i)
    return frame


@pytest.mark.parametrize("way", WAYS)
def test_values_are_bilinear_between_centres_of_cells(way):
    boxes, masks = boxes_within(4, (12, 17)), torch.rand(4, 5, 5)
    expected = torch.stack([slow(mask, box, (12, 17)) for mask, box in zip(masks, boxes, strict=True)])
    torch.testing.assert_close(WAYS[way](masks, boxes, (12, 17), threshold=None), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_what_is_scored_and_written_is_the_same(name):
    """To the pixel, also where a pixel's value is next to the threshold."""
    boxes, side = CASES[name]
    masks = smooth(len(boxes), side)
    shown, drawn = to_pixels(masks, boxes, SIZE), from_compact(masks.numpy(), boxes.numpy(), [SIZE] * len(boxes))
    assert torch.equal(shown, to_pixels(masks, boxes, SIZE, threshold=None) >= 0.5)
    for k in range(len(boxes)):
        assert torch.equal(torch.from_numpy(drawn.pixels(k)) > 0, shown[k])


@pytest.mark.parametrize("name", CASES)
def test_every_way_says_the_same(name):
    boxes, side = CASES[name]
    masks = smooth(len(boxes), side)
    values = to_pixels(masks, boxes, SIZE, threshold=None)
    everywhere = to_pixels_everywhere(masks, boxes, SIZE, threshold=None)
    torch.testing.assert_close(everywhere, values, rtol=0, atol=1e-5)
    own = to_pixels(masks, boxes, SIZE, threshold=0.4)
    assert own.dtype == torch.bool
    assert torch.equal(own, values >= 0.4)


def test_chunks_change_nothing(monkeypatch):
    masks, boxes = smooth(7, 28), boxes_within(7)
    expected = to_pixels_everywhere(masks, boxes, SIZE)
    monkeypatch.setattr("sightline.datasets.masks.AT_ONCE", 2 * SIZE[0] * SIZE[1])
    assert torch.equal(to_pixels_everywhere(masks, boxes, SIZE), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_no_masks(way, threshold):
    found = WAYS[way](torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE, threshold=threshold)
    assert found.shape == (0, *SIZE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_masks_of_any_type_are_read_in_float32(dtype, way):
    masks, boxes = smooth(3, 28).to(dtype), boxes_within(3)
    found, expected = (WAYS[way](some, boxes, SIZE, threshold=None) for some in (masks, masks.float()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_small_objects_come_back_whole():
    """The reason for fractions of pixels: torchvision's way adds a fifth to a disc of ten pixels."""
    rows, columns = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    radii = torch.linspace(4, 6, 9)[:, None, None]
    discs = (rows - 20) ** 2 + (columns - 19) ** 2 <= radii**2
    boxes = []
    for disc in discs:
        y, x = torch.where(disc)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    boxes = torch.tensor(boxes, dtype=torch.float32)
    masks = [from_pixels(disc.numpy(), box.numpy(), 28) for disc, box in zip(discs, boxes, strict=True)]
    masks = torch.stack([torch.from_numpy(mask) for mask in masks])
    ours = to_pixels(masks, boxes, (40, 40))
    theirs = to_pixels(*whole_pixels(masks, boxes), (40, 40))
    ious = [((p & discs).sum((1, 2)) / (p | discs).sum((1, 2))).mean() for p in (ours, theirs)]
    assert ious[0] > 0.99
    assert ious[1] < 0.85
