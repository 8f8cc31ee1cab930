"""YOLOX: its sizes, the three verbs, decoding against a slow obvious loop, compiling and exporting."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from sightline.backbone.checkpoint import save
from sightline.backbone.layer_table import layer_table
from sightline.datasets.structures import ImageInfo, Instances, Sample
from sightline.datasets.transforms import resize
from sightline.detectors import load, yolox
from sightline.detectors.yolo_head import Predictions, YOLOHead, decode_boxes, points
from sightline.detectors.yolox import Outputs, best_pairs

CLASSES = 3
TERMS = {"loss_box", "loss_objectness", "loss_cls"}
SINGLE_TERMS = {"loss_single_box", "loss_single_objectness", "loss_single_cls"}


@pytest.fixture(params=[False, True], ids=["one head", "one-to-one"])
def one_to_one(request):
    return request.param


@pytest.fixture
def model(one_to_one):
    return sure(yolox("nano", CLASSES, one_to_one=one_to_one))


def sure(model):
    """A new network believes in nothing; this one finds something everywhere, and different things at different points."""
    for head in (model.head, model.single_head):
        for conv in () if head is None else (*head.obj_preds, *head.cls_preds, *head.reg_preds):
            nn.init.zeros_(conv.bias)
            nn.init.normal_(conv.weight)
    return model


def batch(frame=(64, 96), sizes=((64, 96), (50, 70))):
    """Noise in frames of (height, width), zero outside each image's size."""
    sizes = torch.tensor(sizes)
    images = torch.randint(0, 256, (len(sizes), 3, *frame), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:], image[:, :, width:] = 0, 0
    return images, sizes


def targets():
    """Two objects in the first image, one in the second."""
    objects = [
        Instances(torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 20.0, 90.0, 60.0]]), torch.tensor([2, 0])),
        Instances(torch.tensor([[10.0, 2.0, 60.0, 48.0]]), torch.tensor([1])),
    ]
    return Instances.collate(objects)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "labels", "scores"))


# The paper's tables 3 and 4: millions of parameters, and 10^9 operations at the size's own resolution.
PAPER = {
    "nano": (0.91, 1.08),
    "tiny": (5.06, 6.45),
    "s": (9.0, 26.8),
    "m": (25.3, 73.8),
    "l": (54.2, 155.6),
    "x": (99.1, 281.9),
}


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_parameters_and_operations(size):
    with torch.device("meta"):
        model = yolox(size)
    network = nn.Sequential(OrderedDict(backbone=model.backbone, head=model.head))
    table = layer_table(network, model.resize)
    # The paper counts multiplications and additions apart, and four operations for each number that a norm makes.
    norms = sum(math.prod(row.shape) for row in table.rows if row.kind == "BatchNorm2d")
    operations = 2 * table.multiply_adds + 4 * norms
    digits = [len(str(number).split(".")[1]) for number in PAPER[size]]
    assert model.resize == ((416, 416) if size in ("nano", "tiny") else (640, 640))
    assert (round(table.parameters / 1e6, digits[0]), round(operations / 1e9, digits[1])) == PAPER[size]


def test_points_are_corners_of_cells_row_by_row():
    features = [torch.empty(1, 8, 2, 3), torch.empty(1, 8, 1, 2)]
    expected = [(x, y, 8) for y in (0, 8) for x in (0, 8, 16)] + [(0, 0, 16), (16, 0, 16)]
    assert points(features, (8, 16)).tolist() == [list(map(float, row)) for row in expected]


def test_boxes_by_hand():
    where = torch.tensor([[24.0, 8.0, 8.0], [32.0, 64.0, 32.0]])
    deltas = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, -0.25, math.log(2), math.log(0.5)]])
    expected = [[24.0, 8.0, 32.0, 16.0], [32.0, 48.0, 96.0, 64.0]]
    torch.testing.assert_close(decode_boxes(deltas, where), torch.tensor(expected))
    torch.testing.assert_close(decode_boxes(deltas.expand(5, 2, 4), where)[3], torch.tensor(expected))


def test_no_delta_makes_infinite_boxes():
    boxes = decode_boxes(torch.tensor([[0.0, 0.0, 1e4, -1e4]]), torch.tensor([[0.0, 0.0, 32.0]]))
    assert boxes.isfinite().all()
    assert boxes[0, 2] - boxes[0, 0] > 1e5


def test_a_new_head_believes_in_nothing():
    head = YOLOHead((8, 16), CLASSES, width=8, norm=nn.BatchNorm2d)
    said = head([torch.zeros(1, 8, 4, 4), torch.zeros(1, 16, 2, 2)])
    assert said.logits.shape == (1, 20, CLASSES)
    assert said.objectness.shape == (1, 20)
    assert said.deltas.shape == (1, 20, 4)
    for logits in (said.logits, said.objectness):
        torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01))


def test_predictions_of_each_cell_stand_at_its_point():
    """A head that repeats a map shows that rows and columns keep their order."""
    head = YOLOHead((1, 1), 1, width=1, norm=nn.BatchNorm2d).eval()
    for i in range(2):
        head.stems[i] = head.cls_convs[i] = nn.Identity()
        nn.init.ones_(head.cls_preds[i].weight)
        nn.init.zeros_(head.cls_preds[i].bias)
    maps = [torch.rand(2, 1, 3, 5), torch.rand(2, 1, 2, 3)]
    where = points(maps, (8, 16))
    said = head(maps).logits[..., 0]
    for row, (x, y, stride) in enumerate(where.long().tolist()):
        level = 0 if stride == 8 else 1
        assert torch.equal(said[:, row], maps[level][:, 0, y // stride, x // stride])


def test_three_verbs_and_a_gradient_for_every_parameter(model, one_to_one):
    images, sizes = batch()
    truth = targets()
    given = [value.clone() for value in (images, sizes, truth.boxes, truth.labels)]
    learnt: dict[str, bool] = {}
    seen = []
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes)
        losses = model.losses(outputs, truth)
        assert set(losses) == TERMS | (SINGLE_TERMS if one_to_one else set())
        assert all(loss.ndim == 0 and loss.isfinite() and loss >= 0 for loss in losses.values())
        found = model.decode(outputs, sizes)
        check_detections(found, sizes)
        seen.append((type(outputs), found.boxes.shape))
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        # Towers of a level on which no object was found this time learn nothing of boxes and categories.
        learnt |= {name: True for name, p in model.named_parameters() if p.grad.abs().sum() > 0}
    assert seen[0] == seen[1]  # train() and eval() return the same
    assert all(name in learnt for name, _ in model.named_parameters() if name.startswith("backbone") or "obj_" in name)
    assert {name.split(".")[0] for name in learnt if "cls_preds" in name} == {"head", "single_head"}.intersection(
        dict(model.named_children())
    )
    for before, after in zip(given, (images, sizes, truth.boxes, truth.labels), strict=True):
        assert torch.equal(before, after)


def check_detections(found, sizes):
    """Best first, padding last, boxes inside their image and not empty, of the right types."""
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (found.scores.diff(dim=1) <= 0).all()
    valid = found.labels >= 0
    assert valid.any(dim=1).all()
    assert found.labels.max() < CLASSES
    assert torch.equal(found.scores > 0, valid)
    assert (found.boxes[~valid] == 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes[..., 2:] <= sizes.flip(1)[:, None]).all()
    assert (found.boxes[valid][:, 2:] > found.boxes[valid][:, :2]).all()


def test_the_l1_loss_joins_in_the_last_epochs(model):
    images, sizes = batch()
    outputs = model(images, sizes)
    before = set(model.losses(outputs, targets()))
    model.refining = True
    assert set(model.losses(outputs, targets())) - before == {"loss_l1"}


def test_the_backbone_learns_nothing_from_the_second_head():
    model = yolox("nano", CLASSES, one_to_one=True)
    images, sizes = batch()
    losses = model.losses(model(images, sizes), targets())
    sum(losses[name] for name in SINGLE_TERMS).backward()
    assert all(p.grad is None for part in (model.backbone, model.head) for p in part.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.single_head.parameters())


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(model):
    model.double().eval()
    images, sizes = batch()
    found = model.detect(images, sizes)
    for i in range(2):
        one = slice(i, i + 1)
        alone = model.detect(images[one], sizes[one])
        torch.testing.assert_close(found.boxes[one], alone.boxes)
        torch.testing.assert_close(found.scores[one], alone.scores)
        assert torch.equal(found.labels[one], alone.labels)


@torch.inference_mode()
def test_what_lies_in_the_padding_never_matters(model):
    model.eval()
    images, sizes = batch()
    other = images.clone()
    other[1, :, 50:], other[1, :, :, 70:] = 255, 7
    assert same(model.detect(images, sizes), model.detect(other, sizes))


@torch.inference_mode()
def test_the_padding_is_grey():
    """A picture in its frame is what a picture is whose grey was painted on."""
    model = sure(yolox("nano", CLASSES)).eval()
    images, sizes = batch()
    painted = images.clone()
    painted[1, :, 50:], painted[1, :, :, 70:] = 114, 114
    whole = torch.tensor([[64, 96]] * 2)
    for ours, theirs in zip(model(images, sizes).dense, model(painted, whole).dense, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.inference_mode()
def test_detect_is_decode_after_forward_and_bytes_equal_floats(model):
    model.eval()
    images, sizes = batch()
    expected = model.decode(model(images, sizes), sizes)
    assert same(model.detect(images, sizes), expected)
    assert same(model.detect(images.float(), sizes), expected)


def test_detecting_runs_one_head_alone(model, one_to_one):
    idle = model.head if one_to_one else nn.Module()
    idle.register_forward_hook(lambda *_: pytest.fail("both heads ran"))
    model.eval().detect(*batch())


def slowly(model, predictions, where, sizes, *, suppress):
    """One image's detections as (score, label, box), pair by pair and label by label."""
    pairs = []
    for a, (x, y, stride) in enumerate(where.tolist()):
        dx, dy, dw, dh = predictions.deltas[a].tolist()
        half = (stride * math.exp(dw) / 2, stride * math.exp(dh) / 2)
        box = (
            x + dx * stride - half[0],
            y + dy * stride - half[1],
            x + dx * stride + half[0],
            y + dy * stride + half[1],
        )
        height, width = sizes.tolist()
        box = [min(max(v, 0), limit) for v, limit in zip(box, (width, height) * 2, strict=True)]
        for label in range(CLASSES):
            score = float(predictions.objectness[a].sigmoid() * predictions.logits[a, label].sigmoid())
            if score > model.score_threshold and min(box[2] - box[0], box[3] - box[1]) >= model.min_side:
                pairs.append((score, label, box))
    kept: list[tuple] = []
    for score, label, box in sorted(pairs, reverse=True):
        rivals = [k[2] for k in kept if k[1] == label]
        if (
            not suppress
            or not rivals
            or box_iou(torch.tensor([box]), torch.tensor(rivals)).max() <= model.iou_threshold
        ):
            kept.append((score, label, box))
    return kept[: model.detections]


def said(count, images=2):
    deltas = torch.randn(images, count, 4) * torch.tensor([0.5, 0.5, 0.3, 0.3])
    return Predictions(3 * torch.randn(images, count, CLASSES), 3 * torch.randn(images, count), deltas)


def test_decoding_against_a_slow_loop(model, one_to_one):
    where = points([torch.empty(8, 10), torch.empty(4, 5), torch.empty(2, 3)], (8, 16, 32))
    sizes = torch.tensor([[64, 80], [40, 61]])
    predictions = said(len(where))
    single = said(len(where)) if one_to_one else None
    found = model.decode(Outputs(predictions, single, where), sizes)
    assert found.boxes.shape == (2, model.detections, 4)
    for i in range(2):
        asked = Predictions(*(value[i] for value in single or predictions))
        expected = slowly(model, asked, where, sizes[i], suppress=not one_to_one)
        if one_to_one:  # boxes outside the picture take a place among the D
            expected = expected[: int((found.labels[i] >= 0).sum())]
        valid = found[i]
        assert len(valid) == len(expected) > 50
        torch.testing.assert_close(valid.scores, torch.tensor([score for score, _, _ in expected]))
        assert valid.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(valid.boxes, torch.tensor([box for _, _, box in expected]))


@pytest.mark.parametrize("count", [1, 7, 60, 10**6])
def test_best_pairs_are_the_best_of_all(count):
    predictions = said(40)
    scores, idxs, labels = best_pairs(predictions, count)
    everything = predictions.objectness.sigmoid()[..., None] * predictions.logits.sigmoid()
    expected = everything.flatten(1).sort(descending=True).values[:, :count]
    torch.testing.assert_close(scores, expected)
    for i in range(2):
        torch.testing.assert_close(everything[i, idxs[i], labels[i]], expected[i])
        assert len(set(zip(idxs[i].tolist(), labels[i].tolist(), strict=True))) == expected.shape[1]


def test_nothing_above_the_threshold(model):
    where = points([torch.empty(2, 3)], (32,))
    nothing = Predictions(torch.full((1, 6, CLASSES), -20.0), torch.full((1, 6), -20.0), torch.zeros(1, 6, 4))
    found = model.decode(Outputs(nothing, nothing if model.single_head else None, where), torch.tensor([[64, 96]]))
    assert (found.labels == -1).all()
    assert (found.scores == 0).all()
    assert (found.boxes == 0).all()


# Original (height, width), and what pictures are brought to.
LETTERBOXES = {
    "a wide picture": ((427, 640), (416, 416)),
    "a tall picture": ((640, 361), (416, 416)),
    "a small picture": ((97, 113), (640, 640)),
    "a large picture": ((1733, 2311), (640, 640)),
    "one of that size": ((640, 640), (640, 640)),
}


@pytest.mark.parametrize("case", LETTERBOXES)
def test_boxes_return_to_the_original_pixels(model, case):
    """What the network would say of objects that it sees exactly comes back as those objects."""
    (height, width), size = LETTERBOXES[case]
    low = torch.rand(5, 2) * torch.tensor([width, height]) * 0.6
    objects = torch.cat([low, low + 4 + torch.rand(5, 2) * torch.tensor([width, height]) * 0.35], dim=1)
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    info = ImageInfo(1, "picture.jpg", (height, width))
    sample = resize(Sample(picture, Instances(objects, torch.arange(5) % CLASSES), info), *size)
    assert max(sample.image.shape[1:]) == max(size)
    where = points([torch.empty(80, 80)], (8,))
    found = model.decode(Outputs(*[perfect(sample.target, where)] * 2, where), torch.tensor([sample.image.shape[1:]]))
    back = found[0].to_original(sample.info)
    assert len(back) == 5
    order = back.boxes[:, None].sub(objects).abs().sum(-1).argmin(1)
    assert sorted(order.tolist()) == list(range(5))
    torch.testing.assert_close(back.boxes, objects[order], rtol=0, atol=2e-3)
    assert torch.equal(back.labels, order % CLASSES)


def perfect(target, where):
    """Predictions of one image in which point i knows object i."""
    said = Predictions(
        torch.full((1, len(where), CLASSES), -20.0), torch.full((1, len(where)), -20.0), torch.zeros(1, len(where), 4)
    )
    for i, (box, label) in enumerate(zip(target.boxes, target.labels, strict=True)):
        x, y, stride = where[i]
        centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        said.logits[0, i, label] = said.objectness[0, i] = 10 - i
        said.deltas[0, i] = torch.cat([(centre - torch.stack([x, y])) / stride, (size / stride).log()])
    return said


class Detect(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, sizes):
        return self.model.detect(images, sizes)


@torch.no_grad()
def test_compiles_into_one_graph_and_exports(model):
    model.eval()
    images, sizes = batch()
    expected = model.detect(images, sizes)
    assert (expected.labels >= 0).any()
    assert same(torch.compile(model.detect, fullgraph=True, backend="eager")(images, sizes), expected)
    exported = torch.export.export(Detect(model), (images, sizes)).module()
    assert same(exported(images, sizes), expected)
    others = batch(sizes=((64, 50), (31, 96)))
    assert same(exported(*others), model.detect(*others))


@torch.no_grad()
def test_asks_for_no_value_on_its_way(one_to_one):
    """On the meta device there are none."""
    with torch.device("meta"):
        model = yolox("nano", CLASSES, one_to_one=one_to_one).eval()
        images, sizes = torch.empty(2, 3, 64, 96, dtype=torch.uint8), torch.empty(2, 2, dtype=torch.int64)
        found = model.detect(images, sizes)
        assert model.decode(model(images, sizes), sizes).boxes.shape == found.boxes.shape == (2, 100, 4)


def test_half_precision_networks_predict_in_full(model):
    images, sizes = batch()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.eval()(images, sizes)
        found = model.decode(outputs, sizes)
    assert {value.dtype for value in outputs.dense} == {torch.float32}
    assert found.boxes.dtype == torch.float32


@torch.inference_mode()
def test_boxes_are_not_rounded_to_half_precision():
    """A log width of 3 is good to 1/128 in bfloat16, the width to two pixels of 256; numbers from it are not on its grid."""
    model = sure(yolox("nano", CLASSES)).eval()
    images, sizes = batch()
    with torch.autocast("cpu", torch.bfloat16):
        deltas = model(images, sizes).dense.deltas
    assert deltas.dtype == torch.float32
    assert (deltas != deltas.bfloat16().float()).float().mean() > 0.9


def test_a_checkpoint_is_complete(model, tmp_path):
    model.eval()
    model.categories = ["a", "b", "c"]
    save(model, tmp_path / "yolox.ckpt")
    loaded = load(tmp_path / "yolox.ckpt", device="cpu").eval()
    assert (loaded.categories, loaded.resize, loaded.normalize.padding) == (["a", "b", "c"], (416, 416), 114)
    inputs = batch()
    with torch.inference_mode():
        assert same(loaded.detect(*inputs), model.detect(*inputs))


@pytest.mark.parametrize("name", ["resnet10_narrow_fpn", "csp_darknet_nano", "resnet10_narrow"])
def test_on_another_backbone(name):
    model = sure(yolox("nano", CLASSES, backbone=name)).eval()
    images, sizes = batch()
    assert torch.equal(model.normalize.mean.flatten(), torch.tensor(model.backbone.mean))
    assert model.normalize.padding == 114
    check_detections(model.detect(images, sizes), sizes)


def test_an_unknown_size():
    with pytest.raises(
        ValueError, match=r"size must be one of nano, tiny, s, m, l, x, got 'nanno'; did you mean 'nano'\?"
    ):
        yolox("nanno")
