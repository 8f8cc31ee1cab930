"""A Faster R-CNN's two parts apart: proposals given to the head, proposals taken from the network, losses of one part."""

import numpy as np
import pytest
import torch

from sightline.datasets.detection import DetectionDataset
from sightline.datasets.proposal_files import read_proposals, write_proposals
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Instances
from sightline.detectors import fast_rcnn, faster_rcnn
from sightline.training.network_proposals import network_proposals

RPN, HEAD = {"loss_objectness", "loss_rpn_box"}, {"loss_cls", "loss_box"}


@pytest.fixture
def model():
    anchors = ((16,), (32,), (64,), (96,))
    return faster_rcnn("resnet10_narrow_fpn", 6, norm="group", anchor_sizes=anchors, proposals=20, head_width=32).eval()


def batch():
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])


def given():
    """Three proposals in the first picture, one in the second; padding is undefined."""
    return Instances.collate(
        [
            Instances(
                torch.tensor([[4.0, 6, 40, 50], [30, 20, 90, 60], [0, 0, 9, 9]]), torch.zeros(3, dtype=torch.int64)
            ),
            Instances(torch.tensor([[10.0, 2, 70, 50]]), torch.zeros(1, dtype=torch.int64)),
        ],
        size=5,
    )


def targets():
    return Instances(
        torch.tensor([[[5.0, 5, 42, 50], [30, 20, 90, 60]], [[10, 2, 60, 40], [0, 0, 0, 0]]]),
        torch.tensor([[2, 0], [5, -1]]),
    )


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip((one.boxes, one.labels, one.scores), other, strict=True))


def test_given_proposals_are_what_the_head_looks_at(model):
    images, sizes = batch()
    boxes = given()
    boxes.boxes[boxes.labels < 0] = torch.nan
    features = model.backbone(model.normalize(images, sizes))[: len(model.roi_heads.pool.strides)]
    valid = torch.tensor([[True, True, True, False, False], [True, False, False, False, False]])
    # Not the padding, whose place must not matter.
    rois = torch.where(valid[..., None], given().boxes, 7.0)
    wanted = model.roi_heads.decode(features, rois, valid, sizes)
    found = model.detect(images, sizes, boxes)
    assert same(found, (wanted.boxes, wanted.labels, wanted.scores))
    assert (found.labels >= 0).any()
    own, other = model(images, sizes).proposals, model(images, sizes, boxes).proposals
    assert torch.equal(own.logits, other.logits)
    assert torch.equal(own.deltas, other.deltas)
    assert not torch.equal(own.boxes[:, :5], other.boxes)


def test_its_own_proposals_given_back_change_nothing(model):
    images, sizes = batch()
    proposals = model.propose(images, sizes)
    outputs, again = model(images, sizes), model(images, sizes, proposals)
    for value, other in zip(outputs.proposals[:-1], again.proposals[:-1], strict=True):
        assert torch.equal(value, other)
    assert again.proposals.idxs is None  # from which anchors they come is not known any more
    torch.manual_seed(1)
    losses = model.losses(outputs, targets())
    torch.manual_seed(1)
    assert losses == model.losses(again, targets())


@pytest.mark.parametrize(("part", "names"), [("rpn", RPN), ("head", HEAD)])
def test_losses_of_one_part(model, part, names):
    images, sizes = batch()
    model.rpn.samples = model.roi_heads.samples = 10**6  # all of them, so that chance decides nothing
    model.rpn.foreground_share = model.roi_heads.foreground_share = 1.0
    joint = model.losses(model(images, sizes), targets())
    assert set(joint) == RPN | HEAD
    model.learns = (part,)
    alone = model.losses(model(images, sizes), targets())
    torch.testing.assert_close(alone, {name: joint[name] for name in names})
    torch.stack(list(alone.values())).sum().backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"backbone", "rpn" if part == "rpn" else "roi_heads"}


def test_proposals_are_the_anchors_that_the_network_likes_best(model):
    images, sizes = batch()
    proposals, outputs = model.propose(images, sizes), model(images, sizes).proposals
    assert torch.equal(proposals.boxes, outputs.boxes)
    valid = proposals.labels == 0
    assert valid.any(dim=1).all()
    assert torch.equal(proposals.labels[~valid], torch.full(((~valid).sum(),), -1))
    for scores, used, logits in zip(proposals.scores, valid, outputs.logits, strict=True):
        scores = scores[used]
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert scores[0] == pytest.approx(logits.sigmoid().max().item())  # the best of all is never suppressed
        assert (scores[:, None] - logits.sigmoid()).abs().amin(dim=1).max() < 1e-6


def test_a_tables_proposals_are_its_pictures_in_their_own_pixels(model, tmp_path):
    model.resize = (96, 160)
    table = shapes_table("val", 5, 64, seed=3)
    proposed = network_proposals(model, table, batch_size=2, progress=False)
    dataset = DetectionDataset(table, resize=model.resize)
    for row in range(len(table)):
        sample, found = dataset[row], proposed.regions[row]
        alone = model.propose(sample.image[None], torch.tensor([sample.image.shape[1:]]))
        boxes = (alone.boxes[0] / 1.5)[alone.labels[0] >= 0].detach().numpy()
        assert len(found.boxes) > 5
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, alone.scores[0][alone.labels[0] >= 0].detach(), atol=1e-5)
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= 64
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert table.regions is None
    write_proposals(tmp_path / "proposals.npz", proposed)
    again = read_proposals(tmp_path / "proposals.npz", table).regions
    for row in range(len(table)):
        np.testing.assert_array_equal(again[row].boxes, proposed.regions[row].boxes)


def test_proposing_leaves_the_model_in_its_mode(model):
    network_proposals(model.train(), shapes_table("val", 1, 64, seed=0), progress=False)
    assert model.training
    assert model.rpn.training


def test_only_a_network_that_proposes_can():
    with pytest.raises(ValueError, match="this is a FastRCNN; name a checkpoint of a faster_rcnn recipe"):
        network_proposals(fast_rcnn("resnet18", head_width=8), shapes_table("val", 1, 64, seed=0))
