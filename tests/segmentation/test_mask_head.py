"""The mask branch alone: which regions it learns, from what truth, against torchvision's functions and slow loops."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_loss, project_masks_on_boxes

from sightline.datasets.masks import from_pixels, recrop
from sightline.datasets.structures import Instances
from sightline.detectors.assignment import Samples
from sightline.detectors.roi_head import BoxPredictor, TwoLayerHead
from sightline.detectors.roi_pool import RoIAlign
from sightline.segmentation.mask_head import MaskHead, MaskPredictor, MaskRoIHead, coverage, foreground_slots

CLASSES = 3


def head(samples=16, side=14):
    """A small one on a single map of 8 channels and stride 4."""
    box_head, mask_head = TwoLayerHead(8, width=16), MaskHead(8, depth=2, width=12)
    predictors = BoxPredictor(16, CLASSES), MaskPredictor(12, CLASSES, width=10)
    pools = RoIAlign([4]), RoIAlign([4], output_size=side)
    model = MaskRoIHead(pools[0], box_head, predictors[0], pools[1], mask_head, predictors[1], samples=samples)
    return model.double()


def scene(dtype=torch.float64):
    """Two pictures of 128 x 128: maps, regions (2, 8, 4), two objects and one, which region goes with which, and is one."""
    features = [torch.randn(2, 8, 32, 32, dtype=dtype)]
    rois = torch.tensor([8.0, 12, 64, 96]).repeat(2, 8, 1) + 6 * torch.rand(2, 8, 4)
    boxes = torch.tensor([[[8.0, 12, 64, 96], [40, 30, 110, 100]], [[10, 10, 66, 94], [0, 0, 0, 0]]])
    targets = Instances(
        boxes.to(dtype), torch.tensor([[2, 0], [1, -1]]), masks=torch.rand(2, 2, 28, 28).round().to(dtype)
    )
    foreground = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0]], dtype=torch.bool)
    sampled = Samples(torch.arange(8).expand(2, -1), foreground, torch.ones_like(foreground))
    return features, rois.to(dtype), targets, torch.zeros(2, 8, dtype=torch.int64), sampled


# Truth.


def slow_coverage(mask, box, roi, side):
    """Cell by cell: the areas that each region's cell has in common with each of the mask's."""
    cells, out = mask.shape[-1], np.zeros((side, side))
    lines = [np.linspace(box[k], box[k + 2], cells + 1) for k in (0, 1)]
    for i in range(side):
        for j in range(side):
            y0, y1 = (roi[1] + (i + e) * (roi[3] - roi[1]) / side for e in (0, 1))
            x0, x1 = (roi[0] + (j + e) * (roi[2] - roi[0]) / side for e in (0, 1))
            height = (np.minimum(lines[1][1:], y1) - np.maximum(lines[1][:-1], y0)).clip(0)
            width = (np.minimum(lines[0][1:], x1) - np.maximum(lines[0][:-1], x0)).clip(0)
            out[i, j] = height @ mask @ width / ((y1 - y0) * (x1 - x0))
    return out


def test_coverage_is_the_common_area():
    masks, boxes = torch.rand(6, 9, 9).double(), torch.tensor([10.0, 20, 50, 44]).double().repeat(6, 1)
    rois = boxes + 12 * torch.randn(6, 4)
    rois[5] = torch.tensor([60.0, 20, 90, 44])  # beside the object
    found = coverage(masks, boxes, rois, 7)
    for mask, box, roi, mine in zip(masks, boxes, rois, found, strict=True):
        np.testing.assert_allclose(mine, slow_coverage(mask.numpy(), box.numpy(), roi.numpy(), 7), atol=1e-12)
    assert (found[5] == 0).all()


def test_coverage_of_its_own_box_is_the_mask_itself():
    masks = torch.rand(3, 28, 28)
    boxes = torch.tensor([[3.3, 4.1, 60.7, 90.2]]).expand(3, -1)
    torch.testing.assert_close(coverage(masks, boxes, boxes, 28), masks, rtol=0, atol=1e-4)
    halves = masks.view(3, 14, 2, 14, 2).mean(dim=(2, 4))
    torch.testing.assert_close(coverage(masks, boxes, boxes, 14), halves, rtol=0, atol=1e-4)


def test_coverage_keeps_areas_and_is_near_bilinear_resampling():
    rows, columns = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    disc = ((rows - 13.5) ** 2 + (columns - 13.5) ** 2 <= 169).float()[None]
    box, roi = torch.tensor([[10.0, 10, 66, 66]]), torch.tensor([[2.0, 6, 76, 70]])
    found = coverage(disc, box, roi, 28)
    assert found.sum().item() * (74 / 28) * (64 / 28) == pytest.approx(disc.sum().item() * 4, rel=1e-5)
    own, other = found[0] >= 0.5, recrop(disc, box, roi)[0] >= 0.5
    assert (own ^ other).sum() <= 0.02 * other.sum()


@pytest.mark.parametrize("degenerate", [[30.0, 30, 30, 50], [30.0, 30, 20, 10]])
def test_boxes_without_area_give_numbers(degenerate):
    whole, none = torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([degenerate])
    for box, roi in ((whole, none), (none, whole), (none, none)):
        assert coverage(torch.ones(1, 28, 28), box, roi, 28).isfinite().all()


def picture_of(name, box, size=160):
    """(H, W) of an object that fills a part of a box."""
    x0, y0, x1, y1 = box
    picture = torch.zeros(size, size)
    halves = {"left": (y0, y1, x0, (x0 + x1) // 2), "lower": ((y0 + y1) // 2, y1, x0, x1), "all": (y0, y1, x0, x1)}
    if name in halves:
        top, bottom, left, right = halves[name]
        picture[top:bottom, left:right] = 1
        return picture
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    u, v = (columns - (x0 + x1) / 2) / (x1 - x0), (rows - (y0 + y1) / 2) / (y1 - y0)
    return (u**2 + v**2 <= 0.25).float()


# Regions whose cells are whole pixels, as torchvision's samples then cover each alike.
EXACT = [[20, 24, 76, 108], [20, 24, 104, 80], [30, 20, 58, 104], [10, 20, 94, 132]]


@pytest.mark.parametrize("name", ["left", "lower", "all"])
def test_truth_is_torchvisions_where_a_compact_mask_is_exact(name):
    box = [20, 24, 76, 108]
    picture, rois = picture_of(name, box), torch.tensor(EXACT, dtype=torch.float64)
    expected = project_masks_on_boxes(picture[None].double(), rois, torch.zeros(4), 28)
    compact = torch.from_numpy(from_pixels(picture.numpy() > 0, np.array(box, np.float32), 28)).double()
    boxes = torch.tensor(box, dtype=torch.float64).expand(4, -1)
    found = coverage(compact.expand(4, -1, -1), boxes, rois + 0.5, 28)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# Cells along a mask's side: the mean difference of a cell, and the share of cells on the other side of a half.
NEAR = {28: (0.011, 0.006), 56: (0.003, 0.002)}


@pytest.mark.parametrize("side", NEAR)
def test_truth_is_near_torchvisions_elsewhere(side):
    """Of an ellipse, in regions at fractions of pixels."""
    box = [20, 24, 76, 108]
    picture = picture_of("ellipse", box)
    rois = torch.tensor(box, dtype=torch.float64) + 8 * torch.randn(40, 4).double()
    expected = project_masks_on_boxes(picture[None].double(), rois, torch.zeros(40), 28)
    compact = torch.from_numpy(from_pixels(picture.numpy() > 0, np.array(box, np.float32), side)).double()
    boxes = torch.tensor(box, dtype=torch.float64).expand(40, -1)
    found = coverage(compact.expand(40, -1, -1), boxes, rois + 0.5, 28)
    assert (found - expected).abs().mean() < NEAR[side][0]
    assert ((found >= 0.5) != (expected >= 0.5)).double().mean() < NEAR[side][1]


# Which regions are learnt.


def test_slots_hold_the_foreground_first_and_then_again():
    foreground = torch.tensor([[0, 1, 0, 1, 1, 0, 0, 0], [0] * 8, [1] * 8], dtype=torch.bool)
    idxs, counted = foreground_slots(foreground, 5)
    assert counted.tolist() == [[True] * 3 + [False] * 2, [False] * 5, [True] * 5]
    assert set(idxs[0, :3].tolist()) == {1, 3, 4}
    assert idxs[0, 3:].tolist() == idxs[0, :2].tolist()
    assert len(set(idxs[2].tolist())) == 5


def test_loss_is_torchvisions_given_the_same_logits():
    """On objects drawn in full, of whole cells; both pictures' regions count alike, however many a picture has."""
    model, (features, _, targets, matched, sampled) = head(samples=32), scene()
    model.truth_shift = 0.5
    boxes = [[20, 24, 76, 108], [40, 30, 96, 86]]
    pictures = torch.stack([picture_of("left", boxes[0]), picture_of("lower", boxes[1])]).double()
    rois = torch.tensor([EXACT, [[40, 30, 96, 86], [40, 30, 68, 58], [30, 20, 86, 104], [40, 40, 96, 96]]]).double()
    compact = [
        from_pixels(picture.numpy() > 0, np.array(box, np.float32), 28)
        for picture, box in zip(pictures, boxes, strict=True)
    ]
    masks = torch.from_numpy(np.stack(compact)).double()[:, None]
    targets = Instances(torch.tensor(boxes).double()[:, None], torch.tensor([[2], [0]]), masks=masks)
    foreground = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
    sampled = Samples(torch.arange(4).expand(2, -1), foreground, torch.ones_like(foreground))
    losses = model.sampled_losses(features, rois, targets, matched[:, :4], sampled)

    labels, proposals, logits = [torch.tensor([3]), torch.tensor([1])], [], []
    for i, own in enumerate(foreground):
        proposals.append(rois[i][own])
        hidden = model.mask_head(model.mask_pool([features[0][i : i + 1]], rois[i : i + 1, own]))
        hidden = model.mask_predictor.conv5_mask(hidden).relu()
        logits.append(model.mask_predictor.mask_fcn_logits(hidden))
    idxs = [torch.zeros(len(own), dtype=torch.int64) for own in proposals]
    expected = maskrcnn_loss(torch.cat(logits), proposals, list(pictures[:, None]), labels, idxs)
    torch.testing.assert_close(losses["loss_mask"], expected, rtol=1e-7, atol=1e-7)


def test_only_sampled_objects_of_the_own_category_are_learnt():
    model, (features, rois, targets, matched, sampled) = head(), scene()
    features[0].requires_grad_()
    model.sampled_losses(features, rois, targets, matched, sampled)["loss_mask"].backward()
    grad = model.mask_predictor.mask_fcn_logits.weight.grad.flatten(1).abs().sum(dim=1)
    assert (grad > 0).tolist() == [False, False, True, True]  # objects 0 of the pictures are of categories 2 and 1
    others = scene()[1]
    moved = torch.where(sampled.foreground[..., None], rois, others)
    one, other = (
        model.sampled_losses(features, some, targets, matched, sampled)["loss_mask"] for some in (rois, moved)
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -1e30])
def test_what_is_not_sampled_is_not_read(garbage):
    model, (features, rois, targets, matched, sampled) = head(), scene()
    results = []
    for value in (0.0, garbage):
        padded = targets.map(torch.clone)
        padded.boxes[1, 1], padded.masks[1, 1], padded.masks[0, 1], padded.labels[1, 1] = value, value, value, -1
        model.zero_grad()
        loss = model.sampled_losses(
            features, rois, padded, matched.clone().masked_fill_(~sampled.foreground, 1), sampled
        )
        loss["loss_mask"].backward()
        results.append([loss["loss_mask"], *(p.grad for p in model.mask_head.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_objects_without_a_mask_are_not_learnt():
    model, (features, rois, targets, matched, sampled) = head(), scene()
    both = model.sampled_losses(features, rois, targets, matched, sampled)["loss_mask"]
    targets.masks[0, 0] = 0
    second = model.sampled_losses(features, rois, targets, matched, sampled)["loss_mask"]
    sampled.foreground[0] = False
    torch.testing.assert_close(model.sampled_losses(features, rois, targets, matched, sampled)["loss_mask"], second)
    assert both != second


def test_no_objects_at_all():
    model, (features, rois, targets, matched, sampled) = head(), scene()
    sampled.foreground.zero_()
    loss = model.sampled_losses(features, rois, targets, matched, sampled)["loss_mask"]
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.mask_head.parameters())


def test_targets_without_masks_are_an_error():
    model, (features, rois, targets, matched, sampled) = head(), scene()
    targets.masks = None
    with pytest.raises(ValueError, match=r"the targets have none.*masks=28"):
        model.sampled_losses(features, rois, targets, matched, sampled)


def test_the_order_of_samples_does_not_matter():
    model, (features, rois, targets, matched, sampled) = head(), scene()
    one = model.sampled_losses(features, rois, targets, matched, sampled)["loss_mask"]
    order = torch.randperm(8)
    mixed = Samples(*(values[:, order] for values in sampled))
    other = model.sampled_losses(features, rois[:, order], targets, matched, mixed)["loss_mask"]
    torch.testing.assert_close(one, other)


def test_batch_norm_sees_the_objects_and_no_background():
    """As in torchvision, whose second version has norms here: an empty slot repeats an object."""
    model, (features, rois, targets, matched, sampled) = head(samples=32), scene()
    model.mask_head = MaskHead(8, depth=1, width=12, norm=True).double()
    norm, seen = model.mask_head[0][1], []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.sampled_losses(features, rois, targets, matched, sampled)
    assert len(seen[0]) == 2 * 8
    distinct = [seen[0][:8].flatten(1).unique(dim=0), seen[0][8:].flatten(1).unique(dim=0)]
    assert [len(rows) for rows in distinct] == [2, 1]


# Layers.


@pytest.mark.parametrize("norm", [False, True])
def test_layers_are_torchvisions(norm):
    theirs = nn.ModuleDict(
        {
            "mask_head": MaskRCNNHeads(16, (8, 8, 8), 1, norm_layer=nn.BatchNorm2d if norm else None),
            "mask_predictor": MaskRCNNPredictor(8, 6, 5),
        }
    ).eval()
    ours = nn.ModuleDict(
        {"mask_head": MaskHead(16, depth=3, width=8, norm=norm), "mask_predictor": MaskPredictor(8, 4, width=6)}
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    pooled, columns = torch.randn(7, 16, 14, 14), torch.tensor([0, 1, 2, 3, 4, 4, 1])
    expected = theirs["mask_predictor"](theirs["mask_head"](pooled))[torch.arange(7), columns]
    torch.testing.assert_close(
        ours["mask_predictor"](ours["mask_head"](pooled), columns), expected, rtol=1e-5, atol=1e-5
    )
