"""Pooling of regions against torchvision's operators (https://github.com/pytorch/vision, torchvision/ops)."""

import math

import pytest
import torch
from torchvision import ops
from torchvision.ops.poolers import LevelMapper

from sightline.detectors.roi_pool import RoIAlign, RoIPool, assign_levels

FRAME = (160, 224)
PYRAMID = (4, 8, 16, 32)

# name: strides, bins a side, samples a bin and side, canonical size (less than 224, so that small boxes use all levels)
POOLS = {
    "pyramid": (PYRAMID, 7, 2, 56.0),
    "pyramid of two": ((8, 16), 7, 2, 56.0),
    "one map": ((16,), 7, 2, 224.0),
    "one map, 14 bins": ((16,), 14, 2, 224.0),
    "masks": (PYRAMID, 14, 2, 56.0),
    "one sample a bin": (PYRAMID, 3, 1, 56.0),
    "three samples a bin": (PYRAMID, 2, 3, 56.0),
}

HEIGHT, WIDTH = FRAME
AWKWARD = torch.tensor(
    [
        [0, 0, WIDTH, HEIGHT],  # all of it
        [0, 0, 10, 10],  # corners
        [WIDTH - 10, HEIGHT - 10, WIDTH, HEIGHT],
        [WIDTH - 1, 0, WIDTH, HEIGHT],  # a border
        [-40, -30, 20, 25],  # partly outside
        [WIDTH - 20, HEIGHT - 25, WIDTH + 30, HEIGHT + 40],
        [-200, -200, -100, -100],  # wholly outside
        [WIDTH + 100, 0, WIDTH + 200, 50],
        [50.2, 60.3, 50.4, 60.5],  # less than a pixel
        [33, 44, 33, 44],  # a point
        [10, 20, 90, 20],  # a line
        [0, 0, 0, 0],  # what stands for a missing proposal
        [-4, -4, WIDTH + 4, HEIGHT + 4],  # samples up to a cell outside still count
    ],
    dtype=torch.float64,
)


def maps(strides, batch=2, channels=3):
    return [torch.randn(batch, channels, HEIGHT // s, WIDTH // s, dtype=torch.float64) for s in strides]


def random_boxes(batch, number):
    """Of sides from 4 to 130 pixels, evenly in log scale, partly across the border."""
    side = 4 * 32 ** torch.rand(batch, number, 2, dtype=torch.float64)
    centre = torch.rand(batch, number, 2, dtype=torch.float64) * torch.tensor([WIDTH, HEIGHT])
    return torch.cat([centre - side / 2, centre + side / 2], dim=-1)


def regions(batch=2):
    return torch.cat([AWKWARD.expand(batch, -1, -1), random_boxes(batch, 40)], dim=1)


def torchvisions_align(features, rois, strides, bins, samples, canonical_size):
    pool = ops.MultiScaleRoIAlign(
        [str(i) for i in range(len(strides))], bins, samples, canonical_scale=canonical_size, canonical_level=4
    )
    named = {str(i): level for i, level in enumerate(features)}
    return pool(named, list(rois), [FRAME] * len(rois))


@pytest.mark.parametrize("name", POOLS)
def test_align_equals_torchvisions_in_values_and_gradients(name):
    strides, bins, samples, canonical_size = POOLS[name]
    features, rois = maps(strides), regions()
    for level in features:
        level.requires_grad_()
    pool = RoIAlign(strides, output_size=bins, sampling_ratio=samples, canonical_size=canonical_size)
    ours, peers = pool(features, rois), torchvisions_align(features, rois, *POOLS[name])
    assert ours.shape == (rois.shape[0] * rois.shape[1], 3, bins, bins)
    torch.testing.assert_close(ours, peers)
    weights = torch.randn_like(ours)
    our_gradients = torch.autograd.grad((ours * weights).sum(), features)
    peer_gradients = torch.autograd.grad((peers * weights).sum(), features)
    for mine, wanted in zip(our_gradients, peer_gradients, strict=True):
        assert wanted.abs().sum() > 0  # every level was used
        torch.testing.assert_close(mine, wanted)


def test_align_equals_torchvisions_in_float32():
    features, rois = [level.float() for level in maps(PYRAMID)], regions().float()
    ours = RoIAlign(PYRAMID, canonical_size=56.0)(features, rois)
    torch.testing.assert_close(ours, torchvisions_align(features, rois, PYRAMID, 7, 2, 56.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(16,), (4, 8)])
def test_align_has_gradients_to_features_and_boxes(strides):
    """Unlike torchvision's operator. Boxes keep away from sizes and places where a sample meets a cell's edge."""
    features = [level[..., :4, :5].clone().requires_grad_() for level in maps(strides, batch=1, channels=2)]
    rois = torch.tensor([[[5.3, 3.1, 21.9, 25.7], [17.77, 9.31, 36.13, 41.3]]], dtype=torch.float64, requires_grad=True)
    pool = RoIAlign(strides, output_size=2, canonical_size=20.0)
    assert torch.autograd.gradcheck(lambda rois, *features: pool(features, rois), (rois, *features))


def with_every_level(rois):
    """The regions, the first four of each image so large that each level of the pyramid has one."""
    middle = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]) / 2
    for place, side in enumerate((40, 150, 300, 600)):
        rois[:, place] = middle + side / 2 * torch.tensor([-1, -1, 1, 1])
    return rois


def torchvisions_pool(features, rois, strides):
    """Of each region's own level, one region at a time."""
    levels = assign_levels(rois, strides)
    return torch.cat(
        [
            ops.roi_pool(features[level][i : i + 1], [box[None]], 7, 1 / strides[level])
            for i in range(len(rois))
            for box, level in zip(rois[i], levels[i].tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("strides", [(16,), PYRAMID])
def test_pool_equals_torchvisions_in_values_and_gradients(strides):
    features, rois = maps(strides), with_every_level(regions())
    for level in features:
        level.requires_grad_()
    ours, peers = RoIPool(strides)(features, rois), torchvisions_pool(features, rois, strides)
    assert torch.equal(ours, peers)
    weights = torch.randn_like(ours)
    our_gradients = torch.autograd.grad((ours * weights).sum(), features)
    peer_gradients = torch.autograd.grad((peers * weights).sum(), features)
    for mine, wanted in zip(our_gradients, peer_gradients, strict=True):
        assert wanted.abs().sum() > 0
        torch.testing.assert_close(mine, wanted)


def pooled_by_hand(features, box, stride, bins=7):
    """Fast R-CNN, section 2.1, for one region: whole cells, split into bins that overlap where cells do not divide evenly."""
    channels, height, width = features.shape
    left, top, right, bottom = (math.floor(abs(v) / stride + 0.5) * (1 if v >= 0 else -1) for v in box.tolist())
    rows, columns = max(bottom - top + 1, 1) / bins, max(right - left + 1, 1) / bins
    out = torch.zeros(channels, bins, bins, dtype=features.dtype)
    for i in range(bins):
        for j in range(bins):
            y0, y1 = top + math.floor(i * rows), top + math.ceil((i + 1) * rows)
            x0, x1 = left + math.floor(j * columns), left + math.ceil((j + 1) * columns)
            cells = features[:, max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)]
            if cells.numel():
                out[:, i, j] = cells.amax(dim=(1, 2))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strides", [(16,), (8, 32)])
def test_pool_equals_a_slow_loop(strides, dtype):
    """Boxes outside, without area and over the whole picture among them, in two images."""
    features, rois = [level.to(dtype) for level in maps(strides)], regions().to(dtype)
    levels = assign_levels(rois, strides)
    ours = RoIPool(strides)(features, rois).view(*rois.shape[:2], 3, 7, 7)
    for i, boxes in enumerate(rois):
        for box, level, mine in zip(boxes, levels[i].tolist(), ours[i], strict=True):
            assert torch.equal(mine, pooled_by_hand(features[level][i], box, strides[level]))


@pytest.mark.parametrize("strides", [(16,), PYRAMID])
def test_pool_equals_torchvisions_in_float32(strides):
    features, rois = [level.float().requires_grad_() for level in maps(strides)], with_every_level(regions()).float()
    ours, peers = RoIPool(strides)(features, rois), torchvisions_pool(features, rois, strides)
    assert torch.equal(ours, peers)
    weights = torch.randn_like(ours)
    gradients = (torch.autograd.grad((value * weights).sum(), features) for value in (ours, peers))
    for mine, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("strides", [(16,), (4, 8)])
def test_pools_gradients_are_the_differences_quotients(strides):
    """A bin's gradient goes to its largest cell alone; regions outside and without area have none, or one."""
    features = [level[..., :4, :5].clone().requires_grad_() for level in maps(strides, batch=2, channels=2)]
    boxes = [[0, 0, 70, 60], [-20, 5, 30, 90], [300, 300, 400, 400], [9, 9, 9, 9]]
    rois = torch.tensor([boxes, boxes[::-1]], dtype=torch.float64)
    pool = RoIPool(strides, output_size=3)
    assert torch.autograd.gradcheck(lambda *features: pool(features, rois), features)


@pytest.mark.parametrize("pool", [RoIAlign(PYRAMID, canonical_size=56.0), RoIPool(PYRAMID)], ids=["align", "pool"])
class TestBoth:
    def test_a_batch_gives_what_its_images_give_alone(self, pool):
        features, rois = maps(PYRAMID, batch=3), regions(3)
        together = pool(features, rois).view(3, -1, 3, 7, 7)
        for i in range(3):
            torch.testing.assert_close(together[i], pool([level[i : i + 1] for level in features], rois[i : i + 1]))

    def test_inputs_are_not_changed(self, pool):
        features, rois = maps(PYRAMID), regions()
        before = [value.clone() for value in (*features, rois)]
        pool(features, rois)
        assert all(torch.equal(a, b) for a, b in zip(before, (*features, rois), strict=True))

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_the_boxes_exact(self, pool, dtype, layout):
        """Beyond pixel 512 bfloat16 knows only multiples of four."""
        features = [torch.randn(1, 2, 256 // s, 1024 // s).to(dtype, memory_format=layout) for s in PYRAMID]
        low = torch.rand(1, 200, 2) * torch.tensor([900.0, 200.0])
        rois = torch.cat([low, low + 100 * torch.rand(1, 200, 2)], dim=-1)
        ours, exact = pool(features, rois), pool([level.float() for level in features], rois)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("strides", [PYRAMID, (8, 16, 32), (16,), (4,)])
def test_levels_equal_torchvisions(strides):
    """Borders between levels (112, 224, 448 pixels) and boxes without area included."""
    sides = torch.cat(
        [torch.tensor([0.0, 1e-3, 1.0, 56, 111.99, 112, 224, 447.99, 448, 896, 5000]), 800 * torch.rand(500)]
    )
    rois = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    finest, coarsest = int(strides[0]).bit_length() - 1, int(strides[-1]).bit_length() - 1
    expected = LevelMapper(finest, coarsest, canonical_scale=224, canonical_level=4)([rois])
    assert torch.equal(assign_levels(rois, strides), expected)
    assert torch.equal(assign_levels(rois.view(7, 73, 4), strides), expected.view(7, 73))


def test_level_of_a_canonical_box():
    """224 pixels pool from stride 16, half of it from 8, twice from 32 (FPN, eq. 1)."""
    rois = torch.tensor([[0.0, 0, side, side] for side in (50, 112, 224, 448, 900)])
    assert assign_levels(rois, PYRAMID).tolist() == [0, 1, 2, 3, 3]
