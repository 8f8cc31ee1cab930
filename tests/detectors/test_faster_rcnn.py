"""What holds for every Faster R-CNN: three verbs, gradients, padding, learning. Its numbers are in the parity test."""

import inspect

import pytest
import torch
from torchvision.ops import box_iou

from sightline.datasets import shapes
from sightline.datasets.structures import Instances
from sightline.detectors import (
    DETECTORS,
    faster_rcnn,
    faster_rcnn_c4,
    faster_rcnn_c5,
    faster_rcnn_mobilenet_v3,
    faster_rcnn_v2,
)

CLASSES = 3
NAMES = {"loss_objectness", "loss_rpn_box", "loss_cls", "loss_box"}
ANCHORS = ((16,), (32,), (64,), (128,))
SMALL = {"num_classes": CLASSES, "proposals": 16, "detections": 30}


def tiny(num_classes=CLASSES, *, norm="batch", samples=512):
    return faster_rcnn(
        "resnet10_narrow_fpn",
        num_classes,
        norm=norm,
        anchor_sizes=ANCHORS,
        proposals=40,
        samples=samples,
        detections=30,
        head_width=128,
    )


MODELS = {
    "faster_rcnn on a narrow pyramid": tiny,
    "faster_rcnn": lambda: faster_rcnn("resnet18_fpn", norm="batch", head_width=64, **SMALL),
    "faster_rcnn_v2": lambda: faster_rcnn_v2("resnet18_fpn", **SMALL),
    "faster_rcnn_mobilenet_v3": lambda: faster_rcnn_mobilenet_v3(norm="batch", **SMALL),
    "faster_rcnn_c4": lambda: faster_rcnn_c4("resnet18", norm="batch", **SMALL),
    "faster_rcnn_c5": lambda: faster_rcnn_c5("resnet18", norm="batch", head_width=64, **SMALL),
    "faster_rcnn_c5 on VGG-16": lambda: faster_rcnn_c5(head_width=64, **SMALL),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def batch(frame=(64, 96), sizes=((64, 96), (64, 96))):
    """Noise in frames of (height, width), zero outside each image's size."""
    sizes = torch.tensor(sizes)
    images = torch.randint(0, 256, (len(sizes), 3, *frame), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return images, sizes


def targets(dtype=torch.float32, padding=0, garbage=0.0):
    """Two objects in the first image, one in the second, and padding after them."""
    objects = [
        Instances(torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 20.0, 90.0, 60.0]]), torch.tensor([2, 0])),
        Instances(torch.tensor([[10.0, 2.0, 70.0, 60.0]]), torch.tensor([1])),
    ]
    together = Instances.collate(objects, size=2 + padding)
    boxes = torch.where(together.labels[..., None] >= 0, together.boxes, garbage)
    return Instances(boxes.to(dtype), together.labels)


def total(losses):
    return torch.stack(list(losses.values())).sum()


def draw_everything(model):
    """No anchor and no region is left out, so that chance decides nothing."""
    model.rpn.samples = model.roi_heads.samples = 10**6
    model.rpn.foreground_share = model.roi_heads.foreground_share = 1.0
    return model


def test_every_builder_is_listed_and_tested():
    assert {name.split(" ")[0] for name in MODELS} == {name for name in DETECTORS if name.startswith("faster_rcnn")}
    for name, builder in DETECTORS.items():
        assert name.startswith(
            getattr(builder, "func", builder).__name__
        )  # a YOLOX of one size is a part of its builder


def test_three_verbs_and_a_gradient_for_every_parameter(model):
    images, sizes = batch(sizes=((64, 96), (50, 70)))
    truth = targets()
    given = [value.clone() for value in (images, sizes, truth.boxes, truth.labels)]
    seen, proposed = [], []
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses = model.losses(outputs, truth)
        found = model.decode(outputs, sizes)
        assert set(losses) == NAMES
        assert all(loss.ndim == 0 and loss.isfinite() and loss >= 0 for loss in losses.values())
        check_detections(found, sizes)
        seen.append((type(outputs), found.boxes.shape))
        proposed.append(outputs.proposals.boxes.shape[1])
        model.zero_grad()
        total(losses).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert without == []
    assert seen[0] == seen[1]  # train() and eval() return the same
    assert proposed[0] > proposed[1] == model.rpn.post_nms  # but for more proposals to learn from
    for before, after in zip(given, (images, sizes, truth.boxes, truth.labels), strict=True):
        assert torch.equal(before, after)


def check_detections(found, sizes):
    """Best first, padding last, boxes inside their image and not empty, of the right types."""
    assert found.boxes.shape == (2, 30, 4)
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (found.scores.diff(dim=1) <= 0).all()
    valid = found.labels >= 0
    assert valid.any()
    assert found.labels.max() < CLASSES
    assert torch.equal(found.scores > 0, valid)
    assert (found.boxes[~valid] == 0).all()
    boxes, limits = found.boxes, sizes.flip(1)[:, None]
    assert (boxes >= 0).all()
    assert (boxes[..., 2:] <= limits).all()
    assert (boxes[valid][:, 2:] > boxes[valid][:, :2]).all()


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(model):
    model.double().eval()
    images, sizes = batch(sizes=((64, 96), (50, 70)))
    together = model(images, sizes)
    found = model.decode(together, sizes)
    for i in range(2):
        one = slice(i, i + 1)
        alone = model(images[one], sizes[one])
        torch.testing.assert_close(together.proposals.boxes[one], alone.proposals.boxes)
        own = model.decode(alone, sizes[one])
        torch.testing.assert_close(found.boxes[one], own.boxes)
        torch.testing.assert_close(found.scores[one], own.scores)
        assert torch.equal(found.labels[one], own.labels)


@torch.inference_mode()
def test_detect_is_decode_after_forward_and_bytes_equal_floats(model):
    model.eval()
    images, sizes = batch()
    found, again = model.detect(images, sizes), model.decode(model(images.float(), sizes), sizes)
    for one, other in ((found.boxes, again.boxes), (found.labels, again.labels), (found.scores, again.scores)):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_what_lies_in_the_padding_is_not_seen():
    model = tiny().eval()
    images, sizes = batch(sizes=((64, 96), (40, 50)))
    other = images.clone()
    other[1, :, 40:], other[1, :, :, 50:] = 255, 77
    assert torch.equal(model.detect(images, sizes).boxes, model.detect(other, sizes).boxes)


@pytest.mark.parametrize("garbage", [0.0, -1e4, 1e30, torch.inf, torch.nan])
def test_padded_objects_change_no_loss_and_no_gradient(garbage):
    model = draw_everything(tiny().double().eval())
    images, sizes = batch()
    results = []
    for truth in (targets(torch.float64), targets(torch.float64, padding=62, garbage=garbage)):
        model.zero_grad()
        losses = model.losses(model(images, sizes), truth)
        total(losses).backward()
        results.append([*losses.values(), *(p.grad.clone() for p in model.parameters())])
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)


def test_padded_objects_change_no_loss_when_samples_are_drawn():
    """The first stage draws the same anchors from the same seed, however many objects there are."""
    model = tiny().eval()
    images, sizes = batch()
    losses = []
    for truth in (targets(padding=6), targets(padding=62)):
        outputs = model(images, sizes)
        torch.manual_seed(5)
        losses.append(model.rpn.losses(outputs.proposals, truth))
    assert losses[0] == losses[1]


def test_images_without_objects(model):
    """A legal negative: everything is background, no box is learnt."""
    images, sizes = batch()
    empty = Instances(torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -1))
    losses = model.losses(model(images, sizes), empty)
    assert losses["loss_rpn_box"] == losses["loss_box"] == 0
    assert losses["loss_objectness"] > 0
    assert losses["loss_cls"] > 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_order_of_objects_does_not_matter():
    model = draw_everything(tiny().double().eval())
    images, sizes = batch()
    truth = targets(torch.float64, padding=3)
    order = torch.tensor([4, 1, 3, 0, 2])
    outputs = model(images, sizes)
    one, other = model.losses(outputs, truth), model.losses(outputs, truth.map(lambda value: value[:, order]))
    for name in NAMES:
        torch.testing.assert_close(one[name], other[name])


def test_crowds_are_not_learnt():
    """Only a crowd: no box to learn, and what lies in it is not background."""
    model = draw_everything(tiny().eval())
    images, sizes = batch()
    everywhere = torch.tensor([[[0.0, 0.0, 96.0, 64.0]]] * 2)
    crowd = Instances(everywhere, torch.zeros(2, 1, dtype=torch.int64), crowd=torch.ones(2, 1, dtype=torch.bool))
    outputs = model(images, sizes)
    losses = model.losses(outputs, crowd)
    assert losses["loss_rpn_box"] == losses["loss_box"] == losses["loss_cls"] == 0
    nothing = model.losses(outputs, Instances(everywhere, torch.full((2, 1), -1)))
    assert losses["loss_objectness"] != nothing["loss_objectness"]
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_boxes_without_area_and_outside_give_finite_losses():
    """They should not come this far; if they do, they match nothing and break nothing."""
    model = tiny()
    images, sizes = batch()
    boxes = torch.tensor([[10.0, 10, 10, 30], [500, 500, 600, 600], [-500, -500, -400, -400], [30, 30, 20, 20]])
    losses = model.losses(model(images, sizes), Instances(boxes.expand(2, 4, 4), torch.zeros(2, 4, dtype=torch.int64)))
    assert losses["loss_rpn_box"] == 0
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_outputs_that_are_no_numbers_are_no_detections():
    model = tiny().eval()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    found = model.detect(*batch())
    assert (found.labels == -1).all()
    assert (found.boxes == 0).all()
    assert (found.scores == 0).all()


def test_an_image_smaller_than_a_cell():
    """Hardly any anchors, one cell a level: top-k takes what there is."""
    model = tiny().eval()
    images, sizes = batch(frame=(32, 32), sizes=((9, 5), (1, 1)))
    outputs = model(images, sizes)
    small = Instances(torch.tensor([[[1.0, 1, 4, 8]], [[0, 0, 1, 1]]]), torch.tensor([[0], [2]]))
    assert total(model.losses(outputs, small)).isfinite()
    found = model.decode(outputs, sizes)
    assert (found.boxes[..., 2:] <= sizes.flip(1)[:, None]).all()


@pytest.mark.parametrize("name", ["faster_rcnn on a narrow pyramid", "faster_rcnn_c5"])
def test_autocast_to_bfloat16(name):
    model = MODELS[name]()
    images, sizes = batch()
    exact = total(draw_everything(model).losses(model(images, sizes), targets()))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, sizes)
        losses = model.losses(outputs, targets())
        found = model.decode(outputs, sizes)
    total(losses).backward()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(total(losses), exact, rtol=0.1, atol=0)


def test_same_seed_same_loss():
    images, sizes = batch()
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        model = tiny(samples=16)
        losses.append(total(model.losses(model(images, sizes), targets())).item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
def test_learns_two_pictures():
    """From nothing to every object of two pictures, in seconds."""
    torch.manual_seed(0)
    model = tiny(len(shapes.CATEGORIES), norm="group", samples=64)
    pictures = [shapes.draw(seed=0, index=i, size=128) for i in range(2)]
    images = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1) for p in pictures])
    sizes = torch.tensor([[128, 128]] * 2)
    truth = [Instances(torch.from_numpy(p.boxes), torch.from_numpy(p.labels)) for p in pictures]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(140):
        loss = total(model.losses(model(images, sizes), Instances.collate(truth)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-10:]) / 10 < history[0] / 5
    with torch.no_grad():
        found = model.eval().detect(images, sizes)
    for i, wanted in enumerate(truth):
        sure = found[i][found[i].scores > 0.5]
        assert len(sure) == len(wanted)
        overlaps = box_iou(wanted.boxes, sure.boxes) * (wanted.labels[:, None] == sure.labels)
        assert overlaps.max(dim=1).values.min() > 0.7


# name: what is built, what the message says
MISTAKES = {
    "no pyramid": (lambda: faster_rcnn("resnet18", 3), "one number of channels.*_fpn"),
    "rows of anchors": (lambda: faster_rcnn("resnet10_narrow_fpn", 3), "5 rows of anchor sizes .* 4 feature maps"),
    "uneven rows": (
        lambda: faster_rcnn("resnet10_narrow_fpn", 3, anchor_sizes=((16,), (32,), (64,), (64, 128))),
        "same number of anchor sizes",
    ),
    "c4 without a ResNet": (lambda: faster_rcnn_c4("vgg16", 3), "needs a ResNet"),
    "misspelt backbone": (lambda: faster_rcnn("resnet18_fnp", 3), "resnet18_fpn"),
    "too many stages": (lambda: faster_rcnn("resnet18_fpn", 3, trainable_stages=9), "9"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    build, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_misspelt_argument_is_an_error(name):
    assert not [p for p in inspect.signature(DETECTORS[name]).parameters.values() if p.kind is p.VAR_KEYWORD]
    with pytest.raises(TypeError, match="num_clases"):
        DETECTORS[name](num_clases=3)


def test_freezing():
    model = faster_rcnn("resnet18_fpn", CLASSES, trainable_stages=1, head_width=16)
    total(model.losses(model(*batch()), targets())).backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and name.startswith("backbone.body")}
    assert learnt
    assert all(name.startswith("backbone.body.layer4") for name in learnt)
