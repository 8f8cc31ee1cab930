"""Where the time goes: stages of ours and of torchvision's, by a clock that only moves where a test says so."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from sightline.detectors import faster_rcnn, nms
from sightline.segmentation import mask_rcnn
from sightline.tools.benchmark_detection import detect
from sightline.tools.benchmark_models import build
from sightline.tools.stages import OPERATORS, STAGES, shown, split
from sightline.tools.timing import pictures

SMALL = {"norm": "batch", "anchor_sizes": ((8,), (16,), (32,), (64,)), "proposals": 20, "head_width": 32}


@pytest.fixture
def clock(monkeypatch):
    """Every look at it takes a millisecond."""
    looks = []
    monkeypatch.setattr("sightline.tools.timing.now", lambda _: looks.append(None) or float(len(looks)))
    return looks


def peer(name):
    """One of torchvision's that is quick."""
    torch.manual_seed(0)
    model = build(f"torchvision:{name}", "cpu")
    if hasattr(model.network, "rpn"):
        model.network.rpn._post_nms_top_n["testing"] = 20
    model.network.score_thresh = 0.0  # of those of one stage: random weights find nothing else
    return model


MODELS = {
    "ours": (lambda: faster_rcnn("resnet10_narrow_fpn", 6, **SMALL), {"proposals", "pooling", "neck", "NMS"}),
    "ours, masks": (
        lambda: mask_rcnn("resnet10_narrow_fpn", 6, **SMALL, mask_width=8, mask_layers=1),
        {"proposals", "pooling", "neck", "NMS"},
    ),
    "ours, one stage": (lambda: build("yolox_nano", "cpu"), {"neck", "NMS"}),
    "theirs": (lambda: peer("fasterrcnn_mobilenet_v3_large_fpn"), {"proposals", "pooling", "neck", "NMS"}),
    "theirs, one stage": (lambda: peer("fcos_resnet50_fpn"), {"neck", "NMS"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_stages_add_up_to_the_whole(name, clock):
    make, some = MODELS[name]
    model = make().eval()
    stages = split(model, partial(detect, model, pictures(None, 1, (64, 64))))()
    assert set(stages) == some | {"input", "backbone", "head"}
    assert sum(stages.values()) == len(clock) - 1  # from the first look to the last
    assert min(stages.values()) > 0
    assert shown([{}, stages]) == [stage for stage in STAGES if stage in stages]


@pytest.mark.parametrize(("name", "owner"), [("ours", nms), ("theirs", torch.ops.torchvision)])
def test_suppression_is_caught_wherever_it_happens(name, owner, monkeypatch):
    """Each call takes five milliseconds, and nothing else takes any."""
    time, calls = [0.0], []
    monkeypatch.setattr("sightline.tools.timing.now", lambda _: time[0])
    attribute = dict(OPERATORS)[owner]
    operator = getattr(owner, attribute)

    def slow(*arguments):
        time[0] += 5
        calls.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(owner, attribute, slow)
    model = MODELS[name][0]().eval()
    stages = split(model, partial(detect, model, pictures(None, 2, (64, 64))))()
    assert len(calls) >= 2  # of proposals, and at the end
    assert stages.pop("NMS") == 5 * len(calls)
    assert set(stages.values()) == {0.0}
    assert getattr(owner, attribute) is slow  # all is as it was


def test_operators_work_as_before_while_they_are_watched():
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]]), torch.tensor([0.9, 0.8, 0.7])
    found = []

    def job():
        found.append(nms.nms(boxes[None], torch.ones(1, 3, dtype=torch.bool), 0.5)[0].nonzero().flatten())
        found.append(torchvision.ops.batched_nms(boxes, scores, torch.zeros(3, dtype=torch.int64), 0.5))

    times = split(nn.Linear(1, 1), job)()
    assert [each.tolist() for each in found] == [[0, 2], [0, 2]]
    assert set(times) == {"input", "NMS"}


def test_hooks_do_not_stay_after_an_error():
    model = MODELS["ours"][0]().eval()
    before = [getattr(owner, name) for owner, name in OPERATORS]
    with pytest.raises(ValueError, match="stop"):
        split(model, lambda: (_ for _ in ()).throw(ValueError("stop")))()
    assert [getattr(owner, name) for owner, name in OPERATORS] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
