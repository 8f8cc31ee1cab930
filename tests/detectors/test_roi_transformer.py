"""Rotated regions against RoIAlign (angle 0), turned pictures (quarter turns) and a slow loop (any angle)."""

import math

import pytest
import torch

from sightline.detectors.roi_pool import RoIAlign
from sightline.detectors.roi_transformer import RoITransformer, box_to_affine, upright_to_rotated

HEIGHT, WIDTH = FRAME = (96, 128)

# name: strides, bins a side, samples a bin and side
POOLS = {
    "one map": ((8,), 7, 1),
    "one map, two samples": ((8,), 7, 2),
    "pyramid": ((4, 8, 16), 7, 1),
    "pyramid, two samples": ((4, 8, 16), 5, 2),
}


def maps(strides, batch=2, channels=3, dtype=torch.float64):
    return [torch.randn(batch, channels, HEIGHT // s, WIDTH // s, dtype=dtype) for s in strides]


def random_boxes(batch, number, least=17.0):
    """xyxy, partly across the border; of sides over a cell, less than which RoIAlign widens."""
    side = least + 60 * torch.rand(batch, number, 2, dtype=torch.float64)
    centre = torch.rand(batch, number, 2, dtype=torch.float64) * torch.tensor([WIDTH, HEIGHT])
    return torch.cat([centre - side / 2, centre + side / 2], dim=-1)


@pytest.mark.parametrize("name", POOLS)
def test_an_upright_box_gives_what_roi_align_gives(name):
    strides, bins, samples = POOLS[name]
    options = {"output_size": bins, "sampling_ratio": samples, "canonical_size": 56.0}
    features, boxes = maps(strides), random_boxes(2, 30)
    found = RoITransformer(strides, **options)(features, upright_to_rotated(boxes))
    torch.testing.assert_close(found, RoIAlign(strides, **options)(features, boxes))


def test_wholly_outside_is_zero():
    box = torch.tensor([[[-200.0, -200, 30, 30, 0.5]]])
    assert (RoITransformer((8,))(maps((8,), 1, dtype=torch.float32), box) == 0).all()


def slow(level, stride, box, bins):
    """One sample a bin, one number at a time."""
    cx, cy, w, h, angle = box
    out = torch.zeros(level.shape[0], bins, bins, dtype=level.dtype)
    for i in range(bins):
        for j in range(bins):
            along, down = ((j + 0.5) / bins - 0.5) * w, ((i + 0.5) / bins - 0.5) * h
            x = (cx + along * math.cos(angle) - down * math.sin(angle)) / stride
            y = (cy + along * math.sin(angle) + down * math.cos(angle)) / stride
            out[:, i, j] = bilinear(level, x, y)
    return out


def bilinear(level, x, y):
    rows, columns = level.shape[1:]
    if not (-1 <= x <= columns and -1 <= y <= rows):
        return 0
    x, y = min(max(x, 0), columns - 1), min(max(y, 0), rows - 1)
    total = 0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(x - column)) * (1 - abs(y - row))
            if weight > 0:
                total = total + weight * level[:, row, column]
    return total


def test_any_angle_against_a_loop():
    (level,) = maps((8,))
    boxes = torch.cat([random_boxes(2, 6)[..., :4], 3 * torch.randn(2, 6, 1, dtype=torch.float64)], dim=-1)
    boxes[..., 2:4] = 10 + 50 * torch.rand(2, 6, 2)
    found = RoITransformer((8,), output_size=4, sampling_ratio=1)([level], boxes).view(2, 6, 3, 4, 4)
    for image in range(2):
        for region in range(6):
            expected = slow(level[image], 8, boxes[image, region].tolist(), 4)
            torch.testing.assert_close(found[image, region], expected)


def test_angles_are_clockwise():
    """A bright spot right of the centre is, for a box turned by a quarter clockwise, at its top: x points down in it."""
    level = torch.zeros(1, 1, 9, 9)
    level[0, 0, 4, 7] = 1.0
    boxes = torch.tensor([[[4.0, 4, 9, 9, 0], [4.0, 4, 9, 9, math.pi / 2]]])
    upright, turned = RoITransformer((1,), output_size=9, sampling_ratio=1)([level], boxes)[:, 0]
    assert divmod(upright.argmax().item(), 9) == (4, 7)
    assert divmod(turned.argmax().item(), 9) == (1, 4)
    torch.testing.assert_close(turned, upright.rot90(1), rtol=0, atol=1e-5)


def test_turning_by_half_exchanges_nothing_but_the_ends():
    (level,) = maps((8,))
    box = torch.tensor([[[60.0, 50, 40, 24, 0.7]]] * 2, dtype=torch.float64)
    half = box + torch.tensor([0, 0, 0, 0, math.pi], dtype=torch.float64)
    pool = RoITransformer((8,))
    torch.testing.assert_close(pool([level], half), pool([level], box).flip(-2, -1))


def test_gradients_to_features_and_boxes():
    features = [torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)]
    boxes = torch.tensor([[[20.3, 21.1, 18.2, 13.7, 0.4], [27.4, 18.9, 15.1, 22.3, -1.3]]], dtype=torch.float64)
    pool = RoITransformer((8,), output_size=3, sampling_ratio=2)
    assert torch.autograd.gradcheck(
        lambda level, rois: pool([level], rois), (features[0], boxes.requires_grad_()), eps=1e-7, atol=1e-5
    )


def test_a_box_finds_its_angle_by_gradient():
    """The crop of a bar, compared with the bar lying flat, turns the box to the bar's angle."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    angle = 0.5
    across = -(x - 24) * math.sin(angle) + (y - 24) * math.cos(angle)
    level = torch.exp(-(across**2) / 18)[None, None]
    pool = RoITransformer((1,), output_size=15, sampling_ratio=1)
    wanted = pool([level], torch.tensor([[[24.0, 24, 30, 30, angle]]]))
    turn = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([turn], 0.05)
    for _ in range(100):
        box = torch.cat([torch.tensor([24.0, 24, 30, 30]), turn])[None, None]
        loss = (pool([level], box) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert turn.item() == pytest.approx(angle, abs=0.02)


def test_an_image_is_cropped_for_its_own_boxes():
    """A batch gives what its images give alone."""
    features, boxes = maps((4, 8)), upright_to_rotated(random_boxes(2, 5))
    boxes[..., 4] = torch.randn(2, 5)
    pool = RoITransformer((4, 8), canonical_size=40.0, canonical_level=3)
    alone = [pool([level[i : i + 1] for level in features], boxes[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(pool(features, boxes), torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps(dtype):
    """Boxes keep their full precision; what comes back is of the maps' type."""
    features, boxes = maps((8,), dtype=torch.float32), upright_to_rotated(random_boxes(2, 4)).float()
    pool = RoITransformer((8,))
    half = [level.to(dtype) for level in features]
    found = pool(half, boxes)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), pool([level.float() for level in half], boxes), rtol=0.01, atol=0.01)


def test_no_boxes():
    assert RoITransformer((8,))(maps((8,)), torch.zeros(2, 0, 5, dtype=torch.float64)).shape == (0, 3, 7, 7)


def test_upright_boxes_are_refused():
    with pytest.raises(ValueError, match=r"rois must be \(B, K, 5\).*got \(2, 3, 4\)"):
        RoITransformer((8,))(maps((8,)), torch.zeros(2, 3, 4))


def test_the_whole_map_is_the_identity():
    """A box from half a cell before the first cell to half a cell behind the last."""
    stride, size = 8, (6, 10)
    box = torch.tensor([stride * (size[1] - 1) / 2, stride * (size[0] - 1) / 2, stride * size[1], stride * size[0], 0])
    torch.testing.assert_close(box_to_affine(box, stride, size), torch.tensor([1.0, 0, 0, 0, 1, 0]))
