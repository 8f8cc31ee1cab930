"""Fast R-CNN: what is sampled and lost against slow loops, where fc6 and fc7 come from, padding, learning."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from sightline import backbone as backbones
from sightline.backbone import LastMap, build_backbone
from sightline.backbone.chain import Chain, ChainClassifier, Stage
from sightline.datasets import shapes
from sightline.datasets.proposals import Boxes, Proposer
from sightline.datasets.structures import Instances
from sightline.detectors import FastRCNN, fast_rcnn, faster_rcnn_c5, load, save
from sightline.detectors.assignment import Matches, match, sample
from sightline.detectors.boxes import encode
from sightline.detectors.roi_head import RoIHead, TwoLayerHead
from sightline.detectors.roi_pool import RoIAlign
from sightline.detectors.wide_head import gaussian_predictor

CLASSES, K = 3, 24
SMALL = {"num_classes": CLASSES, "detections": 30, "proposals": K, "proposer": "sliding_window", "head_width": 48}
MODELS = {
    "max pooling": lambda: fast_rcnn("resnet10_narrow", norm="batch", **SMALL),
    "RoIAlign": lambda: fast_rcnn("resnet10_narrow", norm="batch", align=True, **SMALL),
    "a pyramid": lambda: fast_rcnn("resnet10_narrow_fpn", norm="batch", align=True, **SMALL),
    "max pooling on a pyramid": lambda: fast_rcnn("resnet18_fpn", norm="batch", **SMALL),
    "VGG-16": lambda: fast_rcnn("vgg16", **SMALL),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def batch():
    sizes = torch.tensor([[64, 96], [50, 70]])
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    images[1, :, 50:], images[1, :, :, 70:] = 0, 0
    return images, sizes


def targets():
    objects = [
        Instances(torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 20.0, 90.0, 60.0]]), torch.tensor([2, 0])),
        Instances(torch.tensor([[10.0, 2.0, 60.0, 45.0]]), torch.tensor([1])),
    ]
    return Instances.collate(objects)


def around(boxes, number, spread=10):
    """Boxes near one, of every degree of overlap, and some anywhere: (number, 4)."""
    near = boxes[torch.randint(len(boxes), (number,))] + spread * torch.randn(number, 4)
    near[::4] = 96 * torch.rand(len(near[::4]), 4)
    low, high = near[:, :2].minimum(near[:, 2:]), near[:, :2].maximum(near[:, 2:]) + 1
    return torch.cat([low, high], dim=1).clamp(min=0)


def proposals(number=K):
    truth = targets()
    found = [Instances(b := around(truth[i].boxes, number), torch.zeros(len(b), dtype=torch.int64)) for i in range(2)]
    return Instances.collate([found[0], found[1][: number - 5]], size=number)


def total(losses):
    return torch.stack(list(losses.values())).sum()


def draw_everything(model):
    """No region is left out, so that chance decides nothing."""
    model.roi_heads.samples, model.roi_heads.foreground_share = 10**6, 1.0
    return model


def test_three_verbs_and_a_gradient_for_every_parameter(model):
    (images, sizes), regions, truth = batch(), proposals(), targets()
    for mode in (True, False):
        model.train(mode).zero_grad()
        outputs = model(images, sizes, regions)
        losses = model.losses(outputs, truth)
        assert set(losses) == {"loss_cls", "loss_box"}
        assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
        found = model.decode(outputs, sizes)
        assert found.boxes.shape == (2, 30, 4)
        assert (found.boxes[..., 2:] <= sizes.flip(1)[:, None]).all()
        total(losses).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # A pyramid's extra level proposes in other detectors; its levels without regions learn nothing.
        assert [name for name in without if "fpn.layer_blocks" not in name and "fpn.inner_blocks" not in name] == []


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(model):
    model.double().eval()
    (images, sizes), regions = batch(), proposals()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=3.0)
    found = model.detect(images, sizes, regions)
    assert (found.labels >= 0).any()
    for i in range(2):
        one = slice(i, i + 1)
        own = model.detect(images[one], sizes[one], regions.map(lambda value, one=one: value[one]))
        torch.testing.assert_close(found.boxes[one], own.boxes)
        torch.testing.assert_close(found.scores[one], own.scores)
        assert torch.equal(found.labels[one], own.labels)


@pytest.mark.parametrize("garbage", [-1e4, 1e30, torch.inf, torch.nan])
def test_padded_proposals_change_no_loss_and_no_gradient(garbage):
    model = draw_everything(MODELS["RoIAlign"]().double().eval())
    (images, sizes), regions, truth = batch(), proposals(), targets()
    results = []
    for more in (0, 40):
        padded = regions.map(lambda value, more=more: F.pad(value, (0, 0) * (value.ndim - 2) + (0, more)))
        padded.labels[:, K:] = -1
        padded.boxes = torch.where(padded.labels[..., None] >= 0, padded.boxes, garbage)
        model.zero_grad()
        losses = model.losses(model(images, sizes, padded), truth)
        total(losses).backward()
        found = model.detect(images, sizes, padded)
        results.append([*losses.values(), found.boxes, *(p.grad.clone() for p in model.parameters())])
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)


@dataclass(frozen=True)
class Thirds(Proposer):
    """Three boxes a picture, which tell its size and brightest channel."""

    limit: int = 4

    def __call__(self, image):
        height, width = image.shape[:2]
        cut = 2.0 + image.mean(axis=(0, 1)).argmax()
        boxes = [[0, 0, width / cut, height], [0, 0, width, height / cut], [0, 0, width, height]]
        return Boxes(np.array(boxes, np.float32), np.array([3, 2, 1], np.float32))


def test_pictures_without_proposals_ask_the_proposer():
    """Of each picture without its padding; the same as if its boxes had been given."""
    model = MODELS["RoIAlign"]().eval()
    model.proposer = Thirds()
    images, sizes = batch()
    images[0, 2], images[1, 0] = 255, 255  # blue, red
    outputs = model(images, sizes)
    assert outputs.valid.tolist() == [[True, True, True, False]] * 2
    assert outputs.boxes[0, :3].tolist() == [[0, 0, 24, 64], [0, 0, 96, 16], [0, 0, 96, 64]]
    assert outputs.boxes[1, :3].tolist() == [[0, 0, 35, 50], [0, 0, 70, 25], [0, 0, 70, 50]]
    given = Instances(outputs.boxes, outputs.valid.long() - 1)
    assert torch.equal(model.detect(images, sizes).boxes, model.detect(images, sizes, given).boxes)


def sorted_by_hand(rois, truth):
    """Numbers of the foreground and background regions of one image by the words of section 2.3."""
    overlaps = box_iou(rois, truth.boxes)
    best = [max(row) for row in overlaps.tolist()]
    foreground = [i for i, value in enumerate(best) if value >= 0.5]
    return foreground, [i for i, value in enumerate(best) if 0.1 <= value < 0.5], overlaps.argmax(dim=1)


@pytest.mark.parametrize("number", [16, 64])
def test_samples_are_the_papers(number):
    """A quarter foreground, as far as there is any; the rest background; every eligible region is drawn in the end."""
    truth = targets()[0]
    rois = torch.cat([around(truth.boxes, 300), truth.boxes])
    foreground, background, _ = sorted_by_hand(rois, truth)
    assert len(foreground) > number / 4
    assert len(background) > number
    assert len(foreground) + len(background) < len(rois)  # there is what overlaps too little
    matches = match(
        rois[None], Instances.collate([truth]), foreground_iou=0.5, background_iou=0.5, background_floor=0.1
    )
    seen = set(), set()
    for _ in range(300):
        drawn = sample(matches, number, 0.25)
        assert drawn.valid.all()
        for kind, wanted in enumerate((drawn.foreground, ~drawn.foreground)):
            rows = drawn.idxs[wanted].tolist()
            assert len(rows) == len(set(rows)) == (number // 4, number - number // 4)[kind]
            seen[kind].update(rows)
    assert seen[0] == set(foreground)
    assert seen[1] == set(background)


def test_losses_equal_a_slow_loop():
    """Equation 1 for one image: cross-entropy of every region, smooth L1 of the foreground's own category, over their number."""
    model = draw_everything(MODELS["RoIAlign"]().double().eval())
    (images, sizes), regions, truth = batch(), proposals(), targets()
    images, sizes, regions, truth = images[:1], sizes[:1], regions.map(lambda v: v[:1]), truth.map(lambda v: v[:1])
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.5)  # offsets on both sides of beta
    outputs = model(images, sizes, regions)
    found = model.losses(outputs, truth)
    rois = torch.cat([regions.boxes[0], truth.boxes[0]])
    logits, deltas = (value[0] for value in model.roi_heads(outputs.features, rois[None]))
    foreground, background, best = sorted_by_hand(rois, truth[0])
    cls = sum(-logits[i].log_softmax(0)[truth.labels[0, best[i]] + 1] for i in foreground)
    cls += sum(-logits[i].log_softmax(0)[0] for i in background)
    box, large = 0.0, 0
    for i in foreground:
        wanted = encode(truth.boxes[0, best[i]], rois[i], (10.0, 10.0, 5.0, 5.0))
        for difference in (deltas[i, truth.labels[0, best[i]] + 1] - wanted).abs():
            box += 0.5 * difference**2 if difference < 1 else difference - 0.5
            large += int(difference >= 1)
    assert 0 < large < 4 * len(foreground)
    number = len(foreground) + len(background)
    torch.testing.assert_close(found["loss_cls"], cls / number)
    torch.testing.assert_close(found["loss_box"], (box / number).double())


@pytest.mark.parametrize("least", [0.0, 0.1, 0.3])
def test_background_has_a_floor(least):
    """At the border itself a region counts; with no floor the regions that touch nothing do too."""
    truth = Instances(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[0]]))
    rois = torch.tensor([[[50.0, 50, 60, 60], [0, 0, 1, 9], [0, 0, 1, 10], [0, 0, 3, 10], [0, 0, 9, 10]]])
    found = match(rois, truth, foreground_iou=0.5, background_iou=0.5, background_floor=least)
    assert found.foreground.tolist() == [[False] * 4 + [True]]
    wanted = {0.0: [True, True, True, True], 0.1: [False, False, True, True], 0.3: [False, False, False, True]}
    assert found.background[0, :4].tolist() == wanted[least]


def test_an_image_without_background_learns_from_its_objects_alone():
    """All other regions are too far away: nothing fills their places, and nothing is divided by them."""
    model = MODELS["RoIAlign"]().eval()
    images, sizes = batch()
    far = Instances(torch.tensor([[[90.0, 0, 96, 5]], [[0.0, 46, 4, 50]]]), torch.zeros(2, 1, dtype=torch.int64))
    outputs, truth = model(images, sizes, far), targets()
    losses = model.losses(outputs, truth)
    wanted = []
    for i in range(2):
        logits = model.roi_heads([level[i : i + 1] for level in outputs.features], truth[i].boxes[None])[0][0]
        wanted.append(F.cross_entropy(logits, truth[i].labels + 1))
    torch.testing.assert_close(losses["loss_cls"], torch.stack(wanted).mean())


def test_images_without_objects_teach_nothing():
    """No region has an IoU of 0.1 with anything, so none is background."""
    model = MODELS["max pooling"]()
    images, sizes = batch()
    empty = Instances(torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -1))
    losses = model.losses(model(images, sizes, proposals()), empty)
    assert losses["loss_cls"] == losses["loss_box"] == 0
    total(losses).backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_no_proposals_at_all():
    model = MODELS["RoIAlign"]().eval()
    images, sizes = batch()
    none = Instances(torch.full((2, 5, 4), torch.nan), torch.full((2, 5), -1))
    assert (model.detect(images, sizes, none).labels == -1).all()
    assert total(model.losses(model(images, sizes, none), targets())).isfinite()


def test_matches_of_regions_that_are_not_there_are_never_drawn():
    nothing = torch.zeros(1, 10, dtype=torch.bool)
    drawn = sample(Matches(torch.zeros(1, 10, dtype=torch.int64), nothing, nothing), 8, 0.25)
    assert not drawn.valid.any()
    assert not drawn.foreground.any()


def test_vggs_last_map_is_conv5_at_stride_16():
    body = LastMap(build_backbone("vgg16"))
    assert (body.strides, body.channels) == ((16,), (512,))
    assert isinstance(body.body.features[-1], nn.ReLU)  # and no pooling after it
    (features,) = body(torch.zeros(1, 3, 64, 96))
    assert features.shape == (1, 512, 4, 6)


def test_heads_are_the_papers():
    """Widths, cells and dropout by network; VGG-16's own widths would take half a gigabyte here."""
    vgg, alexnet = (fast_rcnn(name, **SMALL).roi_heads for name in ("vgg16", "alexnet"))
    assert vgg.box_head.fc6.in_features == 512 * 7 * 7
    assert alexnet.box_head.fc6.in_features == 256 * 6 * 6
    assert alexnet.pool.output_size == 6
    assert vgg.box_head.dropout.p == 0.5
    assert MODELS["max pooling"]().roi_heads.box_head.dropout.p == 0.0
    pyramid = fast_rcnn("resnet10_narrow_fpn", CLASSES, norm="batch", proposer="sliding_window").roi_heads
    assert pyramid.box_head.width == 1024
    assert pyramid.pool.strides == (4, 8, 16, 32)
    assert fast_rcnn("resnet18_fpn", **SMALL).roi_heads.pool.strides == (4, 8, 16, 32)  # stride 64 is left out


def test_dropout_in_training_alone():
    """Half of fc7's outputs are zero besides those that the ReLU makes zero, and the others twice as large."""
    head, pooled = TwoLayerHead(4, bins=2, width=400, dropout=0.5), torch.randn(50, 4, 2, 2)
    whole = head.eval()(pooled)
    assert torch.equal(whole, head(pooled))
    nn.init.eye_(head.fc7.weight)
    nn.init.zeros_(head.fc7.bias)
    whole, some = head(pooled), head.train()(pooled)
    kept = (some[whole > 0] != 0).float().mean().item()
    assert kept == pytest.approx(0.25, abs=0.02)  # after fc6, and again after fc7
    torch.testing.assert_close(some[some != 0], 4 * whole[some != 0])


def test_last_layers_start_from_the_papers_gaussians():
    predictor = fast_rcnn("resnet10_narrow", 200, head_width=256, proposer="sliding_window").roi_heads.box_predictor
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(layer.weight.mean().item()) < deviation / 50
        assert (layer.bias == 0).all()


CELLS, CHANNELS, WIDTH = 3, 4, 10


def small_stages():
    return [
        Stage("conv1", [nn.Conv2d(3, CHANNELS, 4, stride=4), nn.ReLU(inplace=True)], CHANNELS, 4),
        Stage("pool1", [nn.MaxPool2d(2)], CHANNELS, 8),
    ]


def small_classifier(num_classes=5, *, norm=None):
    layers = [nn.Linear(CHANNELS * CELLS**2, WIDTH), nn.ReLU(), nn.Dropout(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return ChainClassifier(small_stages(), nn.Sequential(*layers, nn.Linear(WIDTH, num_classes)), cells=CELLS)


@pytest.fixture
def small_network(monkeypatch):
    """A network like VGG, of which a region's vectors can be computed by its classifier."""
    monkeypatch.setitem(backbones.BACKBONES, "small", lambda *, norm: Chain(small_stages(), ("conv1",)))
    monkeypatch.setitem(backbones.CLASSIFIERS, "small", small_classifier)


def built(build, path, width=WIDTH):
    more = {"proposer": "sliding_window"} if build is fast_rcnn else {}
    return build("small", CLASSES, backbone_weights=str(path), head_width=width, proposals=10, **more)


@pytest.mark.parametrize("build", [fast_rcnn, faster_rcnn_c5])
@pytest.mark.parametrize("prefix", ["", "detector.backbone."])
@torch.inference_mode()
def test_fc6_and_fc7_are_the_classifiers(build, prefix, small_network, tmp_path, caplog):
    """A region of the whole picture gives the vector below the classifier's last layer: pooling stands for the last one."""
    classifier = small_classifier().eval()
    state = {f"{prefix}{key}": value for key, value in classifier.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "classifier.pth")
    model = built(build, tmp_path / "classifier.pth").eval()
    assert f"fc6 and fc7 start from classifier.0 and classifier.3 of {tmp_path}" in caplog.text
    images = torch.randn(2, 3, 24, 24)
    wanted = classifier.classifier[:-1](classifier.features(images).flatten(1))
    # Cells 0 to 5 of six: torchvision's pooling counts the cell that a region ends in.
    whole = torch.tensor([0.0, 0, 20, 20]).expand(2, 1, 4)
    pooled = model.roi_heads.pool(model.backbone(images), whole)
    torch.testing.assert_close(model.roi_heads.box_head(pooled), wanted)


# name: what the file holds of the classifier, the head's width
RANDOM = {
    "a body alone": (lambda key: key.startswith("features"), WIDTH),
    "one of the two": (lambda key: not key.startswith("classifier.3"), WIDTH),
    "another width": (lambda key: True, WIDTH + 1),
}


@pytest.mark.parametrize("name", RANDOM)
def test_fc6_and_fc7_start_at_random_together_and_say_so(name, small_network, tmp_path, caplog):
    keep, width = RANDOM[name]
    classifier = small_classifier()
    torch.save({k: v for k, v in classifier.state_dict().items() if keep(k)}, tmp_path / "some.pth")
    model = built(fast_rcnn, tmp_path / "some.pth", width)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.endswith("wide_head")]
    assert "fc6 and fc7 start from random weights" in warning
    assert "some.pth" in warning
    if width == WIDTH:
        assert not torch.equal(model.roi_heads.box_head.fc6.weight, classifier.classifier[0].weight)
    assert torch.equal(model.backbone.body.features[0].weight, classifier.features[0].weight)


def test_networks_without_such_layers_say_so(tmp_path, caplog):
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "body.pth")
    with caplog.at_level(logging.INFO, "sightline"):
        fast_rcnn("resnet18", backbone_weights=str(tmp_path / "body.pth"), **SMALL)
    assert "the classifier of resnet18 has no such layers" in caplog.text
    assert all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("name", ["max pooling", "a pyramid"])
def test_saved_and_loaded_again(name, tmp_path):
    model = MODELS[name]().eval()
    model.categories = ["a", "b", "c"]
    save(model, tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt", device="cpu")
    assert again.proposer == model.proposer
    assert again.proposer.limit == K
    (images, sizes), regions = batch(), proposals()
    with torch.inference_mode():
        assert torch.equal(model.detect(images, sizes, regions).boxes, again.detect(images, sizes, regions).boxes)


def tiny_body():
    """Three convolutions, 64 channels at stride 8."""
    layers = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
    return Chain([Stage("conv3", layers, 64, 8)], ("conv3",))


def test_learns_two_pictures():
    """From nothing to every object, from given regions, in seconds.

    With RoIAlign: to quantised pooling, regions within a cell of each other are one, whatever their boxes have to learn.
    """
    predictor = gaussian_predictor(128, len(shapes.CATEGORIES))
    head = TwoLayerHead(64, width=128)
    roi_heads = RoIHead(RoIAlign((8,)), head, predictor, samples=32, background_floor=0.1, box_beta=1.0)
    model = FastRCNN(tiny_body(), roi_heads, Thirds())
    pictures = [shapes.draw(seed=0, index=i, size=96) for i in range(2)]
    images = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1) for p in pictures])
    sizes = torch.tensor([[96, 96]] * 2)
    truth = [Instances(torch.from_numpy(p.boxes), torch.from_numpy(p.labels)) for p in pictures]
    regions = torch.stack([around(objects.boxes, 20, spread=4).clamp(max=96) for objects in truth])
    regions, together = Instances(regions, torch.zeros(2, 20, dtype=torch.int64)), Instances.collate(truth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(80):
        loss = total(model.losses(model(images, sizes, regions), together))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-10:]) / 10 < history[0] / 20
    with torch.no_grad():
        found = model.eval().detect(images, sizes, regions)
    for i, wanted in enumerate(truth):
        sure = found[i][found[i].scores > 0.5]
        overlaps = box_iou(wanted.boxes, sure.boxes) * (wanted.labels[:, None] == sure.labels)
        assert overlaps.max(dim=1).values.min() > 0.6
