"""The warp against the obvious: paste the picture on a wide zero ground, cut the dilated region out, resize it."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sightline.detectors.warp import Warp


def pictures(batch=2, height=60, width=80):
    """Smooth noise, as pictures are: without it two ways to interpolate have little in common."""
    coarse = torch.randn(batch, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")


def by_hand(image, box, size, context, *, margin=200):
    """The region and its context, resized by OpenCV: the area's mean where it shrinks, bilinear where it grows.

    Beyond a crop OpenCV repeats its edge, where the warp sees the picture; so the edge is only right inside.
    """
    x0, y0, x1, y1 = box
    step_x, step_y = (x1 - x0) / (size - 2 * context), (y1 - y0) / (size - 2 * context)
    left, top = round(x0 - context * step_x) + margin, round(y0 - context * step_y) + margin
    width, height = round(size * step_x), round(size * step_y)
    padded = F.pad(image, [margin] * 4).permute(1, 2, 0).numpy()
    crop = padded[top : top + height, left : left + width]
    mode = cv2.INTER_AREA if step_x >= 1 and step_y >= 1 else cv2.INTER_LINEAR
    return torch.from_numpy(cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=mode)).permute(2, 0, 1)


# name: a box whose dilated form has whole pixels at size 24, context 4 (an inner part of 16), and the tolerance
BOXES = {
    "as it is": ((20, 12, 36, 28), 1e-5),
    "at another place": ((31, 40, 47, 56), 1e-5),
    "halved": ((24, 16, 56, 48), 1e-5),
    "a quarter": ((8, -2, 72, 62), 1e-5),
    "halved along one axis": ((24, 16, 56, 32), 1e-5),
    "halved and quartered, beyond the border": ((50, -8, 82, 56), 1e-5),
    "enlarged": ((20, 12, 28, 20), 2e-5),
    "enlarged unevenly": ((20, 12, 28, 16), 2e-5),
    "enlarged at the border": ((76, 52, 80, 60), 2e-5),
    "three to one": ((16, 4, 64, 52), 0.15),
    "five to two": ((16, 4, 56, 44), 0.15),
}


@pytest.mark.parametrize(("box", "tolerance"), BOXES.values(), ids=BOXES.keys())
def test_equals_crop_and_resize(box, tolerance):
    images = pictures()
    found = Warp(24, 4)([images], torch.tensor([[box]] * 2, dtype=torch.float32))
    for image, crop in zip(images, found, strict=True):
        wanted = by_hand(image, box, 24, 4)
        inside = (slice(None), slice(2, -2), slice(2, -2))
        torch.testing.assert_close(crop[inside], wanted[inside], rtol=0, atol=tolerance)
        assert (crop - wanted)[inside].abs().mean() < tolerance / 5


@pytest.mark.parametrize("step", [0.25, 0.5, 1, 2, 4])
@pytest.mark.parametrize("context", [0, 3, 16])
def test_the_region_fills_all_but_the_context(step, context):
    """A white region on black: the rim is black, all within is white, but for the blend where enlarging."""
    inner = 32
    width = int(inner * step)
    images = torch.zeros(1, 3, 300, 300)
    images[:, :, 100 : 100 + width, 60 : 60 + width] = 1
    box = torch.tensor([[[60.0, 100.0, 60 + width, 100 + width]]])
    (crop,) = Warp(inner + 2 * context, context)([images], box)
    wanted = F.pad(torch.ones(3, inner, inner), [context] * 4)
    blend = 0 if step >= 1 else int(0.5 / step)
    apart = (crop - wanted).abs() > 1e-4
    assert not apart[:, context + blend : context + inner - blend, context + blend : context + inner - blend].any()
    if context > blend:
        outside = F.pad(torch.zeros(inner + 2 * blend, inner + 2 * blend), [context - blend] * 4, value=1).bool()
        assert not apart[:, outside].any()
        assert crop.sum().item() == pytest.approx(wanted.sum().item(), rel=1e-4)


def test_beyond_the_picture_is_zero_and_padding_is_as_if_not_there():
    images = pictures(1) + 5
    box = torch.tensor([[[60.0, 40.0, 100.0, 80.0]]])
    (crop,) = Warp(20, 0)([images], box)
    assert (crop[:, 12:].abs() < 1e-6).all()
    assert (crop[:, :, 12:].abs() < 1e-6).all()
    assert (crop[:, :8, :8] > 0).all()
    torch.testing.assert_close(Warp(20, 0)([F.pad(images, [0, 32, 0, 64])], box)[0], crop, rtol=1e-4, atol=1e-4)


def test_regions_come_picture_by_picture():
    images = pictures()
    boxes = torch.rand(2, 5, 4) * 30
    boxes[..., 2:] += boxes[..., :2] + 4
    together = Warp(16, 2)([images], boxes)
    assert together.shape == (10, 3, 16, 16)
    for i in range(2):
        for k in range(5):
            alone = Warp(16, 2)([images[i : i + 1]], boxes[i : i + 1, k : k + 1])
            torch.testing.assert_close(together[5 * i + k], alone[0])


def test_moves_with_the_picture():
    images = F.pad(pictures(1), [0, 10, 0, 7])
    box = torch.tensor([[[10.3, 12.1, 55.0, 40.7]]])
    moved = Warp(19, 3)([images.roll((7, 10), (2, 3))], box + torch.tensor([10.0, 7.0, 10.0, 7.0]))
    torch.testing.assert_close(moved, Warp(19, 3)([images], box), rtol=1e-3, atol=1e-4)


def test_boxes_without_area_give_numbers():
    boxes = torch.tensor([[[0.0, 0, 0, 0], [10, 10, 10, 30], [-500, -500, -400, -400], [40, 40, 20, 20]]])
    assert Warp(16, 2)([pictures(1)], boxes).isfinite().all()


@pytest.mark.parametrize(("size", "context"), [(32, 16), (32, -1), (0, 0)])
def test_no_room(size, context):
    with pytest.raises(ValueError, match="context must be at least 0 and below half of size"):
        Warp(size, context)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moves_no_region(dtype):
    """Between 512 and 1024 bfloat16 has only every fourth whole pixel."""
    images = torch.zeros(1, 3, 8, 1000)
    images[..., 701:709] = 1
    crops = Warp(8, 0)([images.to(dtype)], torch.tensor([[[701.0, 0.0, 709.0, 8.0]]]))
    assert crops.dtype == dtype
    torch.testing.assert_close(crops, torch.ones_like(crops))
