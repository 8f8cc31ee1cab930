"""Both stages on random feature maps and scores against torchvision's (https://github.com/pytorch/vision, models/detection).

Everything is in float64, where rounding decides nothing.
"""

import pytest
import torch
from torch import nn
from torchvision.models.detection import roi_heads as peer_roi_heads
from torchvision.models.detection import rpn as peer_rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from sightline.datasets.structures import Instances
from sightline.detectors.anchors import Anchors
from sightline.detectors.assignment import Samples
from sightline.detectors.roi_head import RoIHead
from sightline.detectors.rpn import RPN, RPNHead

FRAME, SIZES = (128, 160), [(128, 160), (100, 90)]
STRIDES, ANCHORS, RATIOS = (8, 16, 32), ((16,), (32,), (64,)), (0.5, 1.0, 2.0)

LEARNT_FROM = 150  # in training
# name: candidates a level, proposals, least score, convolutions, spread of the offsets
PROPOSALS = {
    "as many as there are": (2000, 2000, 0.0, 1, 0.3),
    "fewer candidates than anchors": (50, 100, 0.0, 1, 0.3),
    "fewer proposals than candidates": (100, 20, 0.0, 1, 0.3),
    "only the sure": (2000, 500, 0.9, 1, 0.3),
    "none": (2000, 100, 1.0, 1, 0.3),
    "two convolutions": (100, 100, 0.0, 2, 0.3),
    "wild offsets": (2000, 100, 0.0, 1, 5.0),
}


@pytest.fixture
def features():
    return [torch.randn(2, 32, FRAME[0] // s, FRAME[1] // s, dtype=torch.float64) for s in STRIDES]


@pytest.fixture(params=PROPOSALS)
def pair(request, features):
    """Our RPN and torchvision's with the same weights, scaled so that scores spread over (0, 1)."""
    candidates, number, score, depth, spread = PROPOSALS[request.param]
    head, peer_head = RPNHead(32, 3, depth=depth).double(), peer_rpn.RPNHead(32, 3, conv_depth=depth).double()
    logits, deltas = head(features)
    head.cls_logits.weight.data *= 2 / torch.cat(logits, 1).std()
    head.bbox_pred.weight.data *= spread / torch.cat(deltas, 1).std()
    peer_head.load_state_dict(head.state_dict())
    counts = {"pre_nms": candidates, "post_nms": number, "training_nms": LEARNT_FROM}
    ours = RPN(head, Anchors(ANCHORS, RATIOS), **counts, score_threshold=score)
    counts = [{"training": LEARNT_FROM, "testing": n} for n in (candidates, number)]
    generator = AnchorGenerator(ANCHORS, (RATIOS,) * len(ANCHORS))
    peer = peer_rpn.RegionProposalNetwork(generator, peer_head, 0.7, 0.3, 256, 0.5, *counts, 0.7, score)
    return ours.eval(), peer.eval()


@pytest.mark.parametrize("training", [False, True])
@torch.inference_mode()
def test_proposals_equal_torchvisions(pair, features, training):
    ours, peer = (each.train(training) for each in pair)
    images = ImageList(torch.zeros(2, 3, *FRAME), SIZES)
    targets = [{"boxes": torch.tensor([[10.0, 10.0, 40.0, 40.0]], dtype=torch.float64)}] * 2  # losses are made, too
    expected, _ = peer(images, {str(i): level for i, level in enumerate(features)}, targets)
    found = ours(features, torch.tensor(SIZES), FRAME)
    for i, wanted in enumerate(expected):
        assert found.valid[i].sum() == len(wanted)
        assert found.valid[i][: len(wanted)].all()  # padding comes last
        torch.testing.assert_close(found.boxes[i][found.valid[i]], wanted)
        assert (found.boxes[i][~found.valid[i]] == 0).all()


def test_the_cases_are_what_their_names_say(pair, features, request):
    valid = pair[0](features, torch.tensor(SIZES), FRAME).valid.sum(1)
    least, most = {
        "none": (0, 0),
        "fewer proposals than candidates": (20, 20),
        "only the sure": (5, 499),
        "as many as there are": (300, 1999),
    }.get(request.node.callspec.params["pair"], (30, 100))
    assert least <= valid.min()
    assert valid.max() <= most


class Given(nn.Module):
    """Stands for a layer whose outputs are known: B * K rows of logits and of deltas."""

    def __init__(self, logits, deltas):
        super().__init__()
        self.values, self.num_classes = (logits, deltas), logits.shape[1] - 1

    def forward(self, vectors):
        return self.values


class Nothing(nn.Module):
    """Stands for pooling and head, whose outputs nobody looks at."""

    def forward(self, *inputs):
        return inputs[0]


def second_stage(logits, deltas, **settings):
    return RoIHead(Nothing(), Nothing(), Given(logits.flatten(0, 1), deltas.flatten(0, 1)), **settings).double()


def torchvisions_second_stage(score=0.05, iou=0.5, detections=100):
    return peer_roi_heads.RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, score, iou, detections)


def regions(number):
    """Around three places, so that there is something to suppress; every tenth is moved out of the picture."""
    places = torch.rand(2, 3, 2) * torch.tensor([100.0, 90.0])
    centres = places[:, torch.randint(3, (number,))] + 4 * torch.randn(2, number, 2)
    sides = 20 + 20 * torch.rand(2, number, 2)
    away = 500.0 * (torch.arange(number) % 10 == 9)
    return (torch.cat([centres - sides / 2, centres + sides / 2], dim=2) + away[:, None]).double()


# name: regions, classes, settings of ours, those of torchvision's
DETECTIONS = {
    "few": (40, 4, {}, {}),
    "more than the limit": (200, 4, {"detections": 10}, {"detections": 10}),
    "one class": (60, 1, {}, {}),
    "many classes": (30, 60, {"score_threshold": 0.01}, {"score": 0.01}),
    "another overlap": (100, 4, {"iou_threshold": 0.2}, {"iou": 0.2}),
    "none": (20, 4, {"score_threshold": 1.0}, {"score": 1.0}),
    "one region": (1, 4, {}, {}),
}


@pytest.mark.parametrize("name", DETECTIONS)
def test_detections_equal_torchvisions(name):
    number, classes, settings, peer_settings = DETECTIONS[name]
    rois, valid = regions(number), torch.rand(2, number) < 0.8
    valid[:, 0] = True
    logits = 2 * torch.randn(2, number, classes + 1).double()
    deltas = torch.randn(2, number, 4 * (classes + 1)).double()
    found = second_stage(logits, deltas, **settings).decode([], rois, valid, torch.tensor(SIZES))
    peer = torchvisions_second_stage(**peer_settings)
    for i in range(2):
        args = logits[i][valid[i]], deltas[i][valid[i]], [rois[i][valid[i]]], [SIZES[i]]
        (boxes,), (scores,), (labels,) = peer.postprocess_detections(*args)
        own = found[i]
        assert len(own) == len(boxes)
        assert (len(own) == 0) == (name == "none")
        torch.testing.assert_close(own.boxes, boxes)
        torch.testing.assert_close(own.scores, scores)
        assert torch.equal(own.labels + 1, labels)


def test_only_the_best_candidates_enter_the_suppression():
    number = 50
    logits, deltas = torch.randn(2, number, 5).double(), torch.zeros(2, number, 20).double()
    rois, valid = regions(number) + 100, torch.ones(2, number, dtype=torch.bool)
    head = second_stage(logits, deltas, candidates=7, iou_threshold=1.0, score_threshold=0.0)
    found = head.decode([], rois, valid, torch.tensor([[900, 900]] * 2))
    best = logits.softmax(-1)[..., 1:].flatten(1).topk(7).values
    torch.testing.assert_close(found.scores[:, :7], best)
    assert (found.labels[:, 7:] == -1).all()


def test_losses_equal_torchvisions():
    """Of given samples, of which both images have as many."""
    number, classes = 30, 4
    rois = regions(number)
    logits = torch.randn(2, number, classes + 1).double()
    deltas = torch.randn(2, number, 4 * (classes + 1)).double()
    boxes, labels = regions(3), torch.randint(0, classes, (2, 3))
    matched, foreground = torch.randint(0, 3, (2, number)), torch.rand(2, number) < 0.4
    samples = Samples(torch.zeros_like(matched), foreground, torch.ones_like(foreground))
    found = second_stage(logits, deltas).sampled_losses([], rois, Instances(boxes, labels), matched, samples)

    wanted = [torch.where(foreground[i], labels[i][matched[i]] + 1, 0) for i in range(2)]
    coder = torchvisions_second_stage().box_coder
    offsets = coder.encode([boxes[i][matched[i]] for i in range(2)], list(rois))
    cls, box = peer_roi_heads.fastrcnn_loss(logits.flatten(0, 1), deltas.flatten(0, 1), wanted, list(offsets))
    torch.testing.assert_close(found["loss_cls"], cls)
    torch.testing.assert_close(found["loss_box"], box)
