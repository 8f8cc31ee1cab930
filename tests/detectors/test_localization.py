"""Localization: three verbs, losses equal to a loop over all assignments, gradients, padding, learning, files."""

from itertools import permutations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from sightline.backbone import build_backbone, norm_layer
from sightline.backbone.resnet import BasicBlock, ResNet
from sightline.datasets import shapes
from sightline.datasets.structures import Instances
from sightline.detectors import Localization, load, localization, save
from sightline.detectors.localization import PENALTIES, GridPool, Predictor, smooth_l1, squared
from sightline.detectors.roi_head import TwoLayerHead

CLASSES = 3
# name: arguments of the builder, the losses that come of them
VARIANTS = {
    "one object": ({}, {"loss_cls", "loss_box"}),
    "class-agnostic": ({"class_specific": False}, {"loss_cls", "loss_box"}),
    "L2": ({"penalty": "l2"}, {"loss_cls", "loss_box"}),
    "three objects": ({"objects": 3}, {"loss_cls", "loss_box"}),
    "five, class-agnostic, L2": (
        {"objects": 5, "class_specific": False, "penalty": "l2"},
        {"loss_cls", "loss_box"},
    ),
    "boxes and landmarks": ({"landmarks": 4}, {"loss_cls", "loss_box", "loss_landmarks"}),
    "landmarks alone": ({"boxes": False, "landmarks": 4}, {"loss_cls", "loss_landmarks"}),
    "two objects with landmarks": ({"objects": 2, "landmarks": 4}, {"loss_cls", "loss_box", "loss_landmarks"}),
}


def tiny(num_classes=CLASSES, *, width=8, norm="batch", penalty="smooth_l1", **options):
    """Built from its parts, on a narrow body without a pyramid, so that every parameter matters."""
    body = ResNet(BasicBlock, (1, 1, 1, 1), width=width, norm=norm_layer(norm), out_stages=(5,))
    head, predictor = TwoLayerHead(8 * width, 2, 8 * width), Predictor(8 * width, num_classes, **options)
    return Localization(body, GridPool(2), head, predictor, penalty=PENALTIES[penalty])


def narrow(num_classes=CLASSES, *, norm="group", **options):
    return localization("resnet10_narrow", num_classes, norm=norm, head_width=128, **options)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def batch(frame=(64, 96), sizes=((64, 96), (50, 70))):
    """Noise in frames of (height, width), zero outside each image's size."""
    sizes = torch.tensor(sizes)
    images = torch.randint(0, 256, (len(sizes), 3, *frame), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return images, sizes


def targets(padding=2, garbage=torch.nan):
    """Four objects in the first image, among them a crowd; one in the second, half of its landmarks unknown."""
    boxes = [[[4, 6, 40, 50], [30, 20, 90, 60], [0, 0, 96, 64], [10, 10, 20, 20]], [[10, 2, 70, 46]]]
    labels, crowd = [[2, 0, 1, 1], [1]], [[False, False, True, False], [False]]
    images = []
    for own, names, crowds in zip(boxes, labels, crowd, strict=True):
        own = torch.tensor(own, dtype=torch.float32)
        x0, y0, x1, y1 = own.unbind(-1)
        points = torch.stack([x0 + 3, y0, x1, y0 + 5, x1 - 4, y1, x0, y1 - 6], dim=-1).view(-1, 4, 2)
        images.append(Instances(own, torch.tensor(names), crowd=torch.tensor(crowds), landmarks=points))
    images[1].landmarks[0, 1] = images[1].landmarks[0, 3] = torch.nan
    together = Instances.collate(images, size=4 + padding)
    together.boxes[together.labels < 0] = garbage
    return together


def total(losses):
    return torch.stack(list(losses.values())).sum()


def test_three_verbs_and_a_gradient_for_every_parameter(variant):
    options, names = variant
    model = tiny(**options)
    images, sizes = batch()
    truth, seen = targets(), []
    given = [value.clone() for value in (images, sizes, truth.boxes, truth.labels)]
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses, found = model.losses(outputs, truth), model.decode(outputs, sizes)
        assert set(losses) == names
        assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
        check_answers(found, sizes, options)
        seen.append((type(outputs), outputs.points.shape, found.boxes.shape))
        model.zero_grad()
        total(losses).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert seen[0] == seen[1]
    for before, after in zip(given, (images, sizes, truth.boxes, truth.labels), strict=True):
        assert torch.equal(before.nan_to_num(), after.nan_to_num())


def check_answers(found, sizes, options):
    """Best first, inside their pictures; the box of landmarks alone is the one around them."""
    assert found.boxes.shape == (2, CLASSES if options.get("objects", 1) == 1 else options["objects"], 4)
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert ((found.labels >= 0) & (found.labels < CLASSES)).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= sizes.flip(1).repeat(1, 2)[:, None]).all()
    assert (found.boxes[..., 2:] >= found.boxes[..., :2]).all()
    if options.get("objects", 1) == 1:
        assert found.labels.sort(dim=1).values.tolist() == [list(range(CLASSES))] * 2
    if not options.get("landmarks"):
        assert found.landmarks is None
    elif not options.get("boxes", True):
        around = torch.cat([found.landmarks.amin(dim=2), found.landmarks.amax(dim=2)], dim=-1)
        assert torch.equal(found.boxes, around)


def slow_losses(model, outputs, truth, options):
    """Image by image, assignment by assignment, answer by answer; the cheapest assignment's losses."""
    objects, corners = outputs.logits.shape[1], 2 if options.get("boxes", True) else 0
    rows = []
    for i in range(len(truth)):
        size, image = outputs.sizes[i].flip(0), truth[i]
        image = image[~image.crowd]
        areas = (image.boxes[:, 2:] - image.boxes[:, :2]).prod(dim=1)
        chosen = areas.argsort(descending=True)[:objects].tolist()
        best = None
        for order in permutations(range(objects)):
            costs = dict.fromkeys(("loss_cls", "loss_box", "loss_landmarks"), 0.0)
            for k, t in enumerate(order):
                label = image.labels[chosen[t]].item() if t < len(chosen) else CLASSES
                costs["loss_cls"] += F.cross_entropy(outputs.logits[i, k][None], torch.tensor([label])) / objects
                if t >= len(chosen):
                    continue
                points = outputs.points[i, k][label if options.get("class_specific", True) else 0]
                pairs = {"loss_box": (points[:corners], image.boxes[chosen[t]].view(2, 2)[:corners])}
                pairs["loss_landmarks"] = (points[corners:], image.landmarks[chosen[t]][: len(points) - corners])
                for name, (mine, wanted) in pairs.items():
                    errors = []
                    for one, other in zip(mine, wanted, strict=True):
                        gap = (one - other / size).abs() / 0.1
                        linear = (gap - 0.5) if options.get("penalty") != "l2" else 0.5 * gap**2
                        errors.append(torch.where(gap < 1, 0.5 * gap**2, linear).mean())
                    errors = [error for error in errors if error.isfinite()]
                    costs[name] += sum(errors) / max(len(errors), 1) / objects
            if best is None or sum(costs.values()) < sum(best.values()):
                best = costs
        rows.append(best)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def test_losses_equal_a_loop_over_all_assignments(variant):
    options, names = variant
    model = tiny(**options).double().eval()
    images, sizes = batch()
    outputs = model(images, sizes)
    spread = outputs._replace(logits=3 * torch.randn_like(outputs.logits), points=torch.rand_like(outputs.points))
    expected = slow_losses(model, spread, targets(), options)
    for name, loss in model.losses(spread, targets()).items():
        torch.testing.assert_close(loss, expected[name], check_dtype=False, rtol=1e-6, atol=1e-7)
    assert {name for name, value in expected.items() if value > 0} == names


def test_penalties():
    gap = torch.tensor([-3.0, -0.5, 0.0, 1.0, 2.0])
    assert squared(gap).tolist() == [4.5, 0.125, 0, 0.5, 2]
    assert smooth_l1(gap).tolist() == [2.5, 0.125, 0, 0.5, 1.5]


def test_the_order_of_objects_and_padding_change_nothing():
    model = tiny(objects=3, landmarks=4).eval()
    images, sizes = batch()
    outputs, order = model(images, sizes), torch.tensor([4, 2, 0, 3, 1, 5])
    expected = model.losses(outputs, targets(garbage=0.0))
    for truth in (targets(), targets(padding=30), targets().map(lambda value: value[:, order])):
        losses = model.losses(outputs, truth)
        assert all(torch.equal(losses[name], expected[name]) for name in expected)


@pytest.mark.parametrize("width", [1, 3])
def test_images_without_objects(variant, width):
    """A legal negative: the answers learn that there is nothing, and no place; fewer columns than answers are enough."""
    options, _ = variant
    model = tiny(**options)
    empty = Instances(torch.full((2, width, 4), torch.nan), torch.full((2, width), -1))
    empty.landmarks = torch.full((2, width, 4, 2), torch.nan)
    losses = model.losses(model(*batch()), empty)
    assert losses["loss_cls"] > 0
    assert all(loss == 0 for name, loss in losses.items() if name != "loss_cls")
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(variant):
    options, _ = variant
    model = tiny(**options).double().eval()
    images, sizes = batch()
    together = model.detect(images, sizes)
    for i in range(2):
        alone = model.detect(images[i : i + 1], sizes[i : i + 1])
        torch.testing.assert_close(together.boxes[i : i + 1], alone.boxes)
        torch.testing.assert_close(together.scores[i : i + 1], alone.scores)
        assert torch.equal(together.labels[i : i + 1], alone.labels)


@torch.inference_mode()
def test_what_lies_in_the_padding_is_not_seen():
    model = narrow().eval()
    images, sizes = batch(sizes=((64, 96), (40, 50)))
    other = images.clone()
    other[1, :, 40:], other[1, :, :, 50:] = 255, 77
    assert torch.equal(model.detect(images, sizes).boxes, model.detect(other, sizes).boxes)


@pytest.mark.parametrize("bins", [1, 2, 3])
def test_pooling_equals_a_loop_and_forgets_the_padding(bins):
    """Each part's mean, cells counted by how much of them lies in it, here by cutting every cell into 60 x 60."""
    features, valid = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.tensor([[1.0, 1.0], [0.5, 0.6]])
    features[1, :, 2:], features[1, :, :, 3:] = 1e9, 1e9
    pooled = GridPool(bins)(features, valid)
    assert pooled.shape == (2, 3, bins, bins)
    for own, got, (rows, columns) in zip(features, pooled, ((4, 5), (2, 3)), strict=True):
        fine = own[:, :rows, :columns].repeat_interleave(60, 1).repeat_interleave(60, 2)
        expected = fine.unfold(1, rows * 60 // bins, rows * 60 // bins).unfold(
            2, columns * 60 // bins, columns * 60 // bins
        )
        torch.testing.assert_close(got, expected.mean(dim=(-2, -1)), rtol=1e-5, atol=0)


@torch.inference_mode()
def test_boxes_are_relative_to_the_valid_size():
    """The same numbers mean the same part of every picture, whatever the frame; outside is clipped, corners are sorted."""
    model = tiny(class_specific=False).eval()
    outputs = model(*batch())
    outputs.points[:] = torch.tensor([[0.75, 0.5], [0.25, 1.5]])
    found = model.decode(outputs, outputs.sizes)
    assert found.boxes[:, 0].tolist() == [[24, 32, 72, 64], [17.5, 25, 52.5, 50]]


@torch.inference_mode()
def test_numbers_that_are_none_are_no_answers():
    model = narrow(objects=2).eval()
    outputs = model(*batch())
    outputs.points[0, 1] = torch.nan
    outputs.logits[1] = torch.nan
    found = model.decode(outputs, outputs.sizes)
    assert (found.labels >= 0).sum(dim=1).tolist() == [1, 0]
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()


def test_autocast_to_bfloat16():
    model = narrow(landmarks=4)
    images, sizes = batch()
    exact = total(model.losses(model(images, sizes), targets()))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, sizes)
        losses, found = model.losses(outputs, targets()), model.decode(outputs, sizes)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(total(losses), exact, rtol=0.1, atol=0)


@pytest.mark.parametrize("options", [{}, {"objects": 3, "penalty": "l2"}, {"boxes": False, "landmarks": 4}], ids=str)
@pytest.mark.slow
def test_learns_a_few_pictures(options):
    """From nothing to the class and place of every object, or of the largest."""
    torch.manual_seed(0)
    model = tiny(len(shapes.CATEGORIES), width=16, norm="group", **options)
    pictures = [shapes.draw(seed=0, index=i, size=96) for i in range(3)]
    images = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1) for p in pictures])
    sizes, objects = torch.tensor([[96, 96]] * 3), options.get("objects", 1)
    truth = [
        Instances(*map(torch.from_numpy, (p.boxes, p.labels)), landmarks=torch.from_numpy(p.landmarks))
        for p in pictures
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        loss = total(model.losses(model(images, sizes), Instances.collate(truth)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().detect(images, sizes)
    for i, wanted in enumerate(truth):
        areas = (wanted.boxes[:, 2:] - wanted.boxes[:, :2]).prod(dim=1)
        wanted = wanted[areas.argsort(descending=True)[:objects]]
        sure = found[i][found[i].scores > 0.5]
        assert len(sure) == len(wanted)  # where there are fewer objects than answers, the others say so
        overlaps = box_iou(wanted.boxes, sure.boxes) * (wanted.labels[:, None] == sure.labels)
        assert overlaps.max(dim=1).values.min() > 0.5


def test_round_trip(tmp_path, variant):
    options, _ = variant
    model = narrow(**options).eval()
    model.categories, model.resize = ["cat", "dog", "mouse"], (64, 96, True)
    save(model, tmp_path / "m.ckpt")
    again = load(tmp_path / "m.ckpt", device="cpu")
    assert isinstance(again, Localization)
    assert again.task == "localization"
    assert again.description() == model.description()
    images, sizes = batch()
    with torch.inference_mode():
        assert torch.equal(again.detect(images, sizes).boxes, model.detect(images, sizes).boxes)


def test_weights_of_a_model_of_other_classes(tmp_path):
    model = narrow()
    save(model, tmp_path / "m.ckpt")
    other = narrow(5, objects=2, weights=str(tmp_path / "m.ckpt"))
    assert torch.equal(other.head.fc6.weight, model.head.fc6.weight)
    assert other.architecture["arguments"]["weights"] is None


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_fixed_backbone_stays_as_it_is(norm):
    """Weights and statistics, after steps in training mode; the head learns."""
    model = localization("resnet10_narrow", 3, norm=norm, trainable_stages=0, head_width=16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        total(model.losses(model(*batch()), targets())).backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("head.", "predictor.")) for name in changed)


def test_any_backbone_will_do():
    """The class takes built parts."""
    body = build_backbone("mobilenet_v2_tf")
    head, predictor = TwoLayerHead(body.channels[-1], 1, 16), Predictor(16, 2)
    model = Localization(body, GridPool(1), head, predictor, penalty=squared)
    assert model.normalize.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert model.detect(*batch()).boxes.shape == (2, 2, 4)


def test_predict_maps_back_to_the_picture():
    model = narrow(landmarks=4)
    model.resize = (64, 64, True)
    (found,) = model.predict(torch.randint(0, 256, (50, 200, 3), dtype=torch.uint8).numpy(), score=0.0)
    assert len(found) == CLASSES
    assert found.landmarks.shape == (CLASSES, 4, 2)
    assert (found.boxes[:, 2] <= 200).all()


# name: what is built, what the message says
MISTAKES = {
    "six objects": (lambda: narrow(objects=6), "1 to 5"),
    "no object": (lambda: narrow(objects=0), "1 to 5"),
    "nothing to regress": (lambda: narrow(boxes=False), "nothing to regress"),
    "unknown penalty": (lambda: narrow(penalty="l1"), "smooth_l1"),
    "a pyramid": (lambda: localization("resnet10_narrow_fpn"), "take 'resnet10_narrow'"),
    "misspelt backbone": (lambda: localization("resnet81"), "resnet18"),
    "data without landmarks": (
        lambda: (model := narrow(landmarks=3)).losses(model(*batch()), Instances(torch.rand(2, 1, 4), torch.zeros(2, 1).long())),
        "3 landmarks of an object, the data have 0",
    ),
    "other landmarks": (lambda: (model := narrow(landmarks=3)).losses(model(*batch()), targets()), "the data have 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    build, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        build()
