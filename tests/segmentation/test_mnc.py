"""MNC: gradients through boxes and masks, the two kinds of objects, the five stages, learning."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightline.backbone.chain import Chain, Stage
from sightline.datasets.batching import collate
from sightline.datasets.detection import DetectionDataset
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Instances
from sightline.detectors.assignment import Samples
from sightline.detectors.boxes import clip, decode
from sightline.detectors.faster_rcnn import rpn_over
from sightline.detectors.roi_head import TwoLayerHead
from sightline.detectors.roi_pool import RoIAlign
from sightline.segmentation import INSTANCE_SEGMENTERS, load, mnc, save
from sightline.segmentation.mnc import MNC, boxes_with_gradients
from sightline.segmentation.mnc_cascade import Cascade, CategoryStage, MaskStage, masked, weakly
from sightline.segmentation.region_masks import overlap

CLASSES = 3
NAMES = {"loss_objectness", "loss_rpn_box", "loss_mask", "loss_cls", "loss_cls_box", "loss_box"}
ANCHORS = ((16,), (32,), (64,), (128,))


def tiny(backbone="resnet10_narrow_fpn", *, num_classes=CLASSES, stages=5, norm="batch", anchors=ANCHORS, samples=16):
    return mnc(
        backbone,
        num_classes,
        norm=norm,
        anchor_sizes=anchors,
        proposals=12,
        stages=stages,
        samples=samples,
        detections=10,
        head_width=32,
    )


MODELS = {
    "five stages": tiny,
    "three stages": lambda: tiny(stages=3),
    "a single map": lambda: tiny("resnet10_narrow", anchors=((32, 64),)),
    "MobileNetV2": lambda: tiny("mobilenet_v2", anchors=((32, 64),)),
}


def batch():
    sizes = torch.tensor([[64, 96], [50, 70]])
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    images[1, :, 50:], images[1, :, :, 70:] = 0, 0
    return images, sizes


def targets():
    """Two objects in the first image, one in the second; discs of 20 x 20 cells."""
    at = torch.arange(20) - 9.5
    disc = (at.square() + at[:, None].square() <= 100).float().expand(2, 20, 20)
    objects = [
        Instances(torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 20.0, 90.0, 60.0]]), torch.tensor([2, 0]), masks=disc),
        Instances(torch.tensor([[10.0, 2.0, 60.0, 45.0]]), torch.tensor([1]), masks=disc[:1]),
    ]
    return Instances.collate(objects)


def total(losses):
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("name", MODELS)
def test_three_verbs_and_a_gradient_for_every_parameter(name):
    model, (images, sizes), truth = MODELS[name](), batch(), targets()
    for mode in (True, False):
        model.train(mode).zero_grad()
        outputs = model(images, sizes)
        losses = model.losses(outputs, truth)
        assert set(losses) == NAMES
        assert all(loss.ndim == 0 and loss.isfinite() and loss >= 0 for loss in losses.values())
        total(losses).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
        found = model.decode(outputs, sizes)
        assert found.boxes.shape == (2, 10, 4)
        assert found.masks.shape == (2, 10, 28, 28)
        present = found.labels >= 0
        assert present.any()
        assert (found.boxes[..., 2:] <= sizes.flip(1)[:, None]).all()
        assert ((found.masks[present] > 0) & (found.masks[present] < 1)).all()
        assert (found.masks[~present] == 0).all()


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone():
    model = tiny().double().eval()
    images, sizes = batch()
    found = model.detect(images, sizes)
    for i in range(2):
        one = slice(i, i + 1)
        own = model.detect(images[one], sizes[one])
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(getattr(found, name)[one], getattr(own, name))


@pytest.mark.parametrize("name", ["five stages", "a single map"])
def test_boxes_with_gradients_are_the_proposals(name):
    model, (images, sizes) = MODELS[name]().double().eval(), batch()
    proposals = model(images, sizes).proposals
    boxes = boxes_with_gradients(proposals, sizes)
    assert proposals.valid.any()
    assert not proposals.boxes.requires_grad
    assert boxes.requires_grad
    torch.testing.assert_close(boxes.detach(), proposals.boxes)
    every = clip(decode(proposals.deltas, proposals.anchors), sizes)
    assert torch.equal(boxes[0, 0], every[0, proposals.idxs[0, 0]])


def test_losses_of_masks_and_categories_teach_stage_1():
    """Section 3.4; nothing but the boxes leads from them to the network's offsets. The boxes of objects alone learn."""
    for share in (0.0, 0.1, 1.0):
        model = tiny(stages=3, samples=10**6)
        model.cascade.foreground_share, model.cascade.box_gradient = 1.0, share
        model.cascade.foreground_iou = model.cascade.background_iou = 0.1  # so that some proposals are objects
        losses = model.losses(model(*batch()), targets())
        weight = model.rpn.head.bbox_pred.weight
        for name in ("loss_mask", "loss_cls_box"):
            (gradient,) = torch.autograd.grad(losses[name], weight, retain_graph=True)
            assert (gradient.abs().sum() > 0) == (share > 0)
        model.cascade.foreground_iou = 1.1
        losses = model.losses(model(*batch()), targets())
        (gradient,) = torch.autograd.grad(losses["loss_cls_box"], weight)
        assert (gradient == 0).all()


def test_gradients_through_the_warp_are_those_of_moved_boxes():
    """A cascade's answer as a function of one corner: the derivative against a difference quotient."""
    torch.manual_seed(3)
    head = [TwoLayerHead(2, bins=3, width=8) for _ in range(2)]
    cascade = Cascade(RoIAlign((4,), output_size=6), MaskStage(2, 6), CategoryStage(*head, CLASSES)).double()
    features = [torch.randn(1, 2, 24, 24).double()]
    boxes = torch.tensor([[[13.3, 20.2, 61.7, 70.9], [30.1, 9.6, 77.4, 50.3]]]).double().requires_grad_()
    weights = torch.randn(1, 2, 28, 28).double(), torch.randn(1, 2, CLASSES + 1).double()

    def value(boxes):
        answer = cascade(features, boxes)
        return (answer.masks * weights[0]).sum() + (answer.logits * weights[1]).sum() * 100

    (gradient,) = torch.autograd.grad(value(boxes), boxes)
    assert (gradient.abs() > 1e-4).all()
    with torch.no_grad():
        for k in range(2):
            for side in range(4):
                step = torch.zeros_like(boxes)
                step[0, k, side] = 1e-6
                quotient = (value(boxes + step) - value(boxes - step)) / 2e-6
                torch.testing.assert_close(gradient[0, k, side], quotient, rtol=1e-3, atol=1e-6)


def test_the_second_round_teaches_the_first_ones_offsets():
    """Section 3.5: its boxes are decoded from them."""
    cascade = tiny(samples=10**6).cascade
    features = [torch.randn(1, 64, 96 // s, 96 // s) for s in (4, 8, 16, 32)]
    first = cascade(features, torch.tensor([[[10.0, 10, 60, 60]]]))
    boxes = cascade.regressed(first, torch.tensor([[96, 96]]))
    second = cascade(features, boxes)
    (gradient,) = torch.autograd.grad(second.masks.sum(), first.deltas)
    column = int(first.logits[0, 0, 1:].argmax()) + 1
    assert gradient[0, 0, column].abs().sum() > 0
    gradient[0, 0, column] = 0
    assert (gradient == 0).all()  # of the other categories nothing was asked
    wanted = decode(first.deltas[0, 0, column], first.boxes[0, 0], (10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(boxes[0, 0], wanted.clamp(0, 96))


def test_weakly():
    values = torch.randn(5, requires_grad=True)
    out = weakly(values, 0.25)
    assert torch.equal(out, values)
    out.sum().backward()
    torch.testing.assert_close(values.grad, torch.full((5,), 0.25))


def test_features_are_weighted_by_the_mask():
    pooled, masks = torch.randn(3, 4, 14, 14), torch.rand(3, 28, 28)
    found = masked(pooled, masks)
    for k in range(3):
        for i in range(14):
            for j in range(14):
                share = masks[k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
                torch.testing.assert_close(found[k, :, i, j], pooled[k, :, i, j] * share)
    assert torch.equal(masked(pooled, torch.ones(3, 28, 28)), pooled)


def test_the_mask_pathway_sees_nothing_outside_the_mask():
    paths = [TwoLayerHead(4, bins=7, width=8) for _ in range(2)]
    stage = CategoryStage(*paths, CLASSES)
    pooled, masks = torch.rand(1, 4, 14, 14), torch.zeros(1, 28, 28)
    masks[:, :, :14] = 1
    other = pooled.clone()
    other[..., 7:] = torch.rand(1, 4, 14, 7)
    with torch.no_grad():
        for parameter in paths[0].parameters():  # the box pathway says nothing
            parameter.zero_()
        for one, two in zip(stage(pooled, masks), stage(other, masks), strict=True):
            torch.testing.assert_close(one, two)
        assert not torch.equal(stage(pooled, 1 - masks)[0], stage(other, 1 - masks)[0])


def slow_losses(model, answer, truth, matched, foreground):
    """Of one image, region by region."""
    mask, cls, cls_box = [], [], []
    for k, box in enumerate(answer.boxes[0]):
        label = truth.labels[matched[k]] + 1 if foreground[k] else torch.tensor(0)
        covering = torch.tensor(0)
        if foreground[k]:
            drawn, (own, own_box) = (answer.masks[0, k] > 0).float(), (truth.masks[matched[k]], truth.boxes[matched[k]])
            inside = torch.zeros(28, 28)
            for i in range(28):
                for j in range(28):
                    inside[i, j] = sampled_at(own, own_box, box, (i, j))
            mask.append(F.binary_cross_entropy_with_logits(answer.masks[0, k], inside))
            if overlap(drawn, box, own, own_box) >= 0.5:
                covering = label
        cls.append(F.cross_entropy(answer.logits[0, k], covering))
        cls_box.append(F.cross_entropy(answer.box_logits[0, k], label))
    return sum(mask) / len(mask), sum(cls) / len(cls), sum(cls_box) / len(cls_box)


def sampled_at(mask, own, box, cell, samples=12):
    """The share of a box's cell that a mask covers, by many points."""
    at = (torch.arange(samples) + 0.5) / samples
    y = box[1] + (cell[0] + at) / 28 * (box[3] - box[1])
    x = box[0] + (cell[1] + at) / 28 * (box[2] - box[0])
    row = ((y - own[1]) / (own[3] - own[1]) * len(mask)).floor().long()
    column = ((x - own[0]) / (own[2] - own[0]) * len(mask)).floor().long()
    inside = ((row >= 0) & (row < len(mask)))[:, None] & ((column >= 0) & (column < len(mask)))
    return (mask[row.clamp(0, len(mask) - 1)][:, column.clamp(0, len(mask) - 1)] * inside).mean()


def test_losses_equal_a_slow_loop():
    """One object whose mask is found and one whose is not: the second is a box's object, but no mask's."""
    model = tiny(stages=3, samples=10**6).eval()
    model.cascade.foreground_share = 1.0
    truth = targets().map(lambda value: value[:1])
    features = [torch.randn(1, 64, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    boxes = torch.cat([truth.boxes + 1.0, torch.tensor([[[60.0, 0, 90, 12]]])], dim=1)
    every = torch.cat([boxes, truth.boxes], dim=1)
    answer = model.cascade(features, every)
    flags = torch.tensor([[8.0], [-8], [0], [8], [-8]])
    answer = answer._replace(masks=(answer.masks + flags[..., None]).detach())
    model.cascade.forward = lambda features, boxes: answer
    torch.manual_seed(0)
    found = ordered(model, features, boxes, truth)
    matched, foreground = [0, 1, 0, 0, 1], [True, True, False, True, True]
    mask, cls, cls_box = slow_losses(model, answer, truth[0], matched, foreground)
    torch.testing.assert_close(found["loss_mask"], mask, rtol=0.02, atol=0)
    torch.testing.assert_close(found["loss_cls"], cls)
    torch.testing.assert_close(found["loss_cls_box"], cls_box)


def ordered(model, features, boxes, truth):
    """The cascade's losses with regions sampled in their own order, all of them."""

    def everything(matches, number, share):
        idxs = torch.arange(matches.idxs.shape[1])[None]
        return Samples(idxs, matches.foreground, matches.foreground | matches.background)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightline.segmentation.mnc_cascade.sample", everything)
        sizes = torch.tensor([[64, 96]])
        return model.cascade.losses(features, boxes, torch.ones(1, 3, dtype=torch.bool), sizes, truth)


def test_both_rounds_answer():
    """Detections are the best of all rounds; with three stages, of one."""
    model, (images, sizes) = tiny().eval(), batch()
    with torch.no_grad():
        outputs = model(images, sizes)
        first = model.cascade(outputs.features, clip(outputs.boxes, sizes))
        second = model.cascade(outputs.features, model.cascade.regressed(first, sizes))
        found = model.decode(outputs, sizes)
        model.cascade.rounds = 1
        fewer = model.decode(outputs, sizes)
    highest = [answer.logits.softmax(-1)[..., 1:].amax((1, 2)) for answer in (first, second)]
    torch.testing.assert_close(found.scores[:, 0], torch.maximum(*highest))
    torch.testing.assert_close(fewer.scores[:, 0], highest[0])


@pytest.mark.parametrize("garbage", [-1e4, torch.inf, torch.nan])
def test_padded_objects_change_nothing(garbage):
    model, (images, sizes), truth = tiny().eval(), batch(), targets()
    found = []
    for fill in (0.0, garbage):
        present = truth.labels >= 0
        given = Instances(
            torch.where(present[..., None], truth.boxes, fill),
            truth.labels,
            masks=torch.where(present[..., None, None], truth.masks, fill),
        )
        torch.manual_seed(0)
        model.zero_grad()
        losses = model.losses(model(images, sizes), given)
        total(losses).backward()
        found.append([*losses.values(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_images_without_objects():
    model = tiny()
    empty = Instances(
        torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -1), masks=torch.full((2, 3, 8, 8), torch.nan)
    )
    losses = model.losses(model(*batch()), empty)
    assert losses["loss_mask"] == losses["loss_box"] == 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_objects_without_a_mask_teach_no_mask_and_are_objects_all_the_same():
    model, truth = tiny(stages=3, samples=10**6).eval(), targets().map(lambda value: value[:1])
    features = [torch.randn(1, 64, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    boxes = torch.cat([truth.boxes + 1.0, torch.tensor([[[60.0, 0, 90, 12]]])], dim=1)
    answer = model.cascade(features, torch.cat([boxes, truth.boxes], dim=1))
    model.cascade.forward = lambda features, boxes: answer._replace(box_logits=answer.logits)
    losses = ordered(model, features, boxes, replace(truth, masks=torch.zeros_like(truth.masks)))
    assert losses["loss_mask"] == 0
    assert losses["loss_cls"] == losses["loss_cls_box"]  # both classifiers have the same objects
    losses = ordered(model, features, boxes, truth)
    assert losses["loss_mask"] > 0
    assert losses["loss_cls"] != losses["loss_cls_box"]  # those whose masks are not found are none of the first's


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="3 or 5 stages, got 4"):
        tiny(stages=4)
    model, truth = tiny(), targets()
    truth.masks = None
    with pytest.raises(ValueError, match="the targets have none"):
        model.losses(model(*batch()), truth)


def test_a_checkpoint_gives_the_same(tmp_path):
    model, inputs = tiny(stages=3).eval(), batch()
    save(model, tmp_path / "mnc.ckpt")
    again = load(tmp_path / "mnc.ckpt", device="cpu")
    assert again.cascade.rounds == 1
    with torch.inference_mode():
        one, other = model.detect(*inputs), again.detect(*inputs)
    assert torch.equal(one.masks, other.masks)
    assert torch.equal(one.boxes, other.boxes)
    assert INSTANCE_SEGMENTERS["mnc"] is mnc


def learner(num_classes):
    """A cascade over three convolutions of stride 8."""
    layers = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
    body = Chain([Stage("conv3", layers, 32, 8)], ("conv3",))
    category_stage = CategoryStage(TwoLayerHead(32, width=32), TwoLayerHead(32, width=32), num_classes)
    cascade = Cascade(RoIAlign((8,), output_size=14), MaskStage(32, 14), category_stage, samples=16)
    return MNC(body, rpn_over(body, ((16, 32, 48),), proposals=60), cascade)


@pytest.mark.slow
def test_learns_a_picture():
    """From nothing to the mask of a picture's object."""
    table = shapes_table("train", 1, 64, masks=True)
    data = collate([DetectionDataset(table, resize=(64, 64, True), masks=28)[0]], (64, 64))
    torch.manual_seed(0)
    model = learner(len(table.categories))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = best_overlap(model, data)
    for _ in range(50):
        loss = total(model.losses(model(*data.inputs), data.targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.3
    assert best_overlap(model, data) > 0.65


@torch.no_grad()
def best_overlap(model, data):
    """The IoU, pixel by pixel, of the picture's object with the best mask of its category."""
    found, truth = model.detect(*data.inputs)[0], data.targets[0]
    own = found[found.labels == truth.labels[0]]
    shapes = (value.expand(len(own), *value.shape[1:]) for value in (truth.masks, truth.boxes))
    return overlap((own.masks >= 0.5).float(), own.boxes, *shapes).tolist()[0] if len(own) else 0.0
