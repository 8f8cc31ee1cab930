"""R-CNN: what it has beyond Fast R-CNN, whose losses and decoding it shares."""

import copy

import pytest
import torch
from torchvision.ops import box_iou

from sightline.backbone import build_backbone, build_classifier
from sightline.datasets.structures import Instances
from sightline.detectors import DETECTORS, load, save
from sightline.detectors.rcnn import rcnn

CLASSES = 3
NAMES = {"loss_cls", "loss_box"}


def tiny(backbone="resnet10_narrow", *, norm="batch", size=32, samples=8, machines=False):
    return rcnn(
        backbone,
        CLASSES,
        norm=norm,
        size=size,
        context=3,
        samples=samples,
        proposer="sliding_window",
        proposals=40,
        detections=10,
        machines=machines,
    )


def batch(count=20, frame=(64, 96), sizes=((64, 96), (50, 70))):
    """Noise, zero beyond each image's size, and proposals: `count` in the first image, half as many in the second."""
    sizes = torch.tensor(sizes)
    images = torch.randint(0, 256, (len(sizes), 3, *frame), dtype=torch.uint8)
    found = []
    for i, (image, (height, width)) in enumerate(zip(images, sizes.tolist(), strict=True)):
        image[:, height:], image[:, :, width:] = 0, 0
        low = torch.rand(count // (i + 1), 2) * torch.tensor([width - 20, height - 20])
        boxes = torch.cat([low, low + 5 + torch.rand(len(low), 2) * 15], dim=1)
        found.append(Instances(boxes, torch.zeros(len(boxes), dtype=torch.int64), torch.rand(len(boxes))))
    return images, sizes, Instances.collate(found)


def targets(proposals):
    """Two objects in the first image, one in the second, each near a proposal."""
    near = proposals.boxes + torch.tensor([1.0, 0, 0, 1])
    objects = [
        Instances(near[0, :2], torch.tensor([2, 0])),
        Instances(near[1, :1], torch.tensor([1])),
    ]
    return Instances.collate(objects)


def total(losses):
    return torch.stack(list(losses.values())).sum()


def same(one, other, **tolerance):
    torch.testing.assert_close(one.boxes, other.boxes, **tolerance)
    torch.testing.assert_close(one.scores, other.scores, **tolerance)
    assert torch.equal(one.labels, other.labels)


# The smallest of each way in which a network ends. name: (size, width of the vectors)
NETWORKS = {
    "resnet10_narrow": (32, 128),  # a body, averaged
    "lenet": (32, 84),
    "squeezenet1_1": (64, 512),  # its last layer is a convolution
    "mobilenet_v2": (32, 1280),
    "googlenet": (32, 1024),  # it has auxiliary classifiers
}


@pytest.mark.parametrize("name", NETWORKS)
def test_three_verbs_and_a_gradient_for_every_parameter(name):
    size, width = NETWORKS[name]
    model = tiny(name, size=size)
    images, sizes, proposals = batch()
    for mode in (True, False):
        model.train(mode)
        outputs = model(images, sizes, proposals)
        assert model.roi_heads.vectors(outputs.features, outputs.boxes).shape == (2, 20, width)
        losses = model.losses(outputs, targets(proposals))
        assert set(losses) == NAMES
        assert all(loss.isfinite() and loss > 0 for loss in losses.values())
        found = model.decode(outputs, sizes)
        assert found.boxes.shape == (2, 10, 4)
        assert (found.labels >= 0).any()
        model.zero_grad()
        total(losses).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", ["alexnet", "lenet", "mobilenet_v2", "googlenet", "resnet18"])
def test_vectors_are_what_goes_into_the_last_layer(name, tmp_path):
    torch.manual_seed(0)
    whole = build_classifier(name, 1000).eval()
    torch.save(whole.state_dict(), tmp_path / "classifier.pth")
    model = rcnn(name, CLASSES, norm="batch", backbone_weights=str(tmp_path / "classifier.pth")).eval()
    crops = torch.randn(2, 3, 227 if name == "alexnet" else 64, 227 if name == "alexnet" else 64)
    if name == "lenet":
        crops = crops[..., :32, :32]
    with torch.no_grad():
        torch.testing.assert_close(
            whole.get_submodule(whole.head_name)(model.backbone.describe(crops)), whole(crops), rtol=1e-4, atol=1e-5
        )


@torch.inference_mode()
def test_each_region_alone_gives_the_same():
    """Cut out, described and named one by one; boxes from eq. 1 to 4 of appendix C."""
    model = tiny().double().eval()
    images, sizes, proposals = batch()
    outputs = model(images, sizes, proposals)
    logits, deltas = model.roi_heads(outputs.features, outputs.boxes)
    pixels = model.normalize(images, sizes)
    for i in range(2):
        for k in range(int((proposals.labels[i] >= 0).sum())):
            crop = model.roi_heads.pool([pixels[i : i + 1]], proposals.boxes[i : i + 1, k : k + 1])
            vector = model.backbone.body(crop)[-1].mean((2, 3))
            own_logits, own_deltas = model.roi_heads.box_predictor(vector)
            torch.testing.assert_close(logits[i, k], own_logits[0])
            torch.testing.assert_close(deltas[i, k].flatten(), own_deltas[0])


@pytest.mark.parametrize("chunk", [1, 7, 64])
@torch.inference_mode()
def test_results_do_not_depend_on_the_chunk(chunk):
    model = tiny().double().eval()
    inputs = batch()
    wanted = model.detect(*inputs)
    model.roi_heads.chunk = chunk
    same(model.detect(*inputs), wanted)


@torch.inference_mode()
def test_two_thousand_regions_in_bounded_memory():
    model = tiny().eval()
    seen = []
    model.backbone.body.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images, sizes, proposals = batch(2000)
    found = model.detect(images, sizes, proposals)
    assert (found.labels >= 0).sum() == 20
    assert sum(seen) == 4000
    assert max(seen) == model.roi_heads.chunk == 128


@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone():
    model = tiny().double().eval()
    images, sizes, proposals = batch()
    found = model.detect(images, sizes, proposals)
    for i in range(2):
        one = slice(i, i + 1)
        alone = model.detect(images[one], sizes[one], proposals.map(lambda value, one=one: value[one]))
        same(found[i], alone[0])


@torch.inference_mode()
def test_what_lies_in_the_padding_is_not_seen():
    model = tiny().eval()
    images, sizes, proposals = batch()
    other = images.clone()
    other[1, :, 50:], other[1, :, :, 70:] = 255, 77
    same(model.detect(images, sizes, proposals), model.detect(other, sizes, proposals))


@torch.inference_mode()
def test_pictures_without_proposals_are_looked_over():
    model = tiny().eval()
    images, sizes, _ = batch()
    same(model.detect(images, sizes), model.detect(images, sizes, model.propose(images, sizes)))


def test_boxes_do_not_change_the_network():
    model = tiny()
    images, sizes, proposals = batch()
    model.losses(model(images, sizes, proposals), targets(proposals))["loss_box"].backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {"roi_heads.box_predictor.bbox_pred.weight", "roi_heads.box_predictor.bbox_pred.bias"}


def test_batches_are_the_papers():
    """32 of 128 regions, 64 from each of two images, are objects; all others are background, however far from one."""
    head = tiny(samples=64).roi_heads
    assert (head.samples, head.foreground_share, head.foreground_iou, head.background_iou) == (64, 0.25, 0.5, 0.5)
    assert (head.background_floor, head.iou_threshold) == (0.0, 0.3)


def test_scores_are_a_softmax_or_squashed_margins():
    logits = torch.tensor([[[9.0, -1.0, 0.0, 2.0]]])
    torch.testing.assert_close(tiny().roi_heads.scores(logits), logits.softmax(-1)[..., 1:])
    scores = tiny(machines=True).roi_heads.scores(logits)
    assert scores[0, 0, 1] == 0.5
    assert (scores.diff() > 0).all()
    torch.testing.assert_close(scores, tiny(machines=True).roi_heads.scores(logits - torch.tensor([50.0, 0, 0, 0])))


@torch.inference_mode()
def test_detections_of_a_category_overlap_little():
    model = tiny(machines=True).eval()
    found = model.detect(*batch(200, sizes=((64, 96), (64, 96))))
    for i in range(2):
        boxes, labels = found[i].boxes, found[i].labels
        overlaps = box_iou(boxes, boxes) * (labels[:, None] == labels)
        assert (overlaps.triu(1) <= 0.3).all()


@pytest.mark.parametrize("machines", [False, True])
@torch.inference_mode()
def test_saved_and_loaded(machines, tmp_path):
    model = tiny(machines=machines).eval()
    save(model, tmp_path / "rcnn.ckpt")
    inputs = batch()
    again = load(tmp_path / "rcnn.ckpt", device="cpu")
    assert again.roi_heads.machines == machines
    same(again.detect(*inputs), model.detect(*inputs))
    assert not [key for key in model.state_dict() if key.startswith("roi_heads.box_head")]  # weights are there once


@torch.inference_mode()
def test_a_copy_has_its_own_network():
    """As the moving average of weights makes one."""
    model = tiny().eval()
    inputs = batch()
    before = model.detect(*inputs)
    other = copy.deepcopy(model)
    for parameter in other.backbone.parameters():
        parameter.fill_(0.0)
    same(model.detect(*inputs), before)
    assert not torch.equal(other.detect(*inputs).scores, before.scores)


def test_its_network_may_become_another_detectors(tmp_path):
    model = tiny()
    save(model, tmp_path / "rcnn.ckpt")
    body = build_backbone("resnet10_narrow", weights=tmp_path / "rcnn.ckpt")
    for one, other in zip(body.parameters(), model.backbone.body.parameters(), strict=True):
        assert torch.equal(one, other)


def test_freezing():
    model = rcnn("resnet18", CLASSES, trainable_stages=1, size=32, context=3, proposer="sliding_window", samples=8)
    images, sizes, proposals = batch()
    total(model.losses(model(images, sizes, proposals), targets(proposals))).backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and name.startswith("backbone.")}
    assert learnt
    assert all(name.startswith("backbone.body.layer4") for name in learnt)
    assert set(model.backbone.stage_prefixes) == {"stem", "layer1", "layer2", "layer3", "layer4"}


def test_images_without_objects():
    model = tiny()
    images, sizes, proposals = batch()
    empty = Instances(torch.full((2, 3, 4), torch.nan), torch.full((2, 3), -1))
    losses = model.losses(model(images, sizes, proposals), empty)
    assert losses["loss_box"] == 0 < losses["loss_cls"]
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_autocast_to_bfloat16():
    model = tiny().eval()
    images, sizes, proposals = batch()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images, sizes, proposals)
        losses, found = model.losses(outputs, targets(proposals)), model.decode(outputs, sizes)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert found.boxes.dtype == found.scores.dtype == torch.float32


# name: what is built, what the message says
MISTAKES = {
    "misspelt network": ({"backbone": "alexnt"}, "alexnet"),
    "misspelt proposer": ({"proposer": "selective_serch"}, "selective_search"),
    "no room for the region": ({"size": 32}, "context 16, size 32"),
    "too many stages": ({"backbone": "resnet18", "trainable_stages": 9}, "9"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    arguments, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        rcnn(**arguments)


def test_is_listed():
    assert DETECTORS["rcnn"] is rcnn
