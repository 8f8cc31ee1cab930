"""What learns in each of the four steps, and what each takes from the one before: exactly that, to the bit."""

import copy

import pytest
import torch

from sightline.datasets.structures import Instances
from sightline.detectors import faster_rcnn_c4, faster_rcnn_v2
from sightline.training.alternating import STEPS, prepare
from sightline.training.optimizer import configure
from sightline.training.schedules import Schedule

PARTS = ("backbone", "rpn", "roi_heads")
LEARNS = {
    "step1_rpn": {"backbone", "rpn"},
    "step2_head": {"backbone", "roi_heads"},
    "step3_rpn": {"rpn"},
    "step4_head": {"roi_heads"},
}
SMALL = {"num_classes": 3, "norm": "batch", "proposals": 16, "detections": 10}
MODELS = {  # both with batch norms in the head, too
    "pyramid": lambda: faster_rcnn_v2("resnet18_fpn", **SMALL),
    "one map": lambda: faster_rcnn_c4("resnet18", anchor_sizes=(16, 32), **SMALL),
}


def state(model, part):
    return {name: value for name, value in model.state_dict().items() if name.startswith(f"{part}.")}


def equal(one, other):
    return {name: torch.equal(value, other[name]) for name, value in one.items()}


def learn(model, steps=2):
    """Some steps as a training takes them."""
    images, sizes = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]] * 2)
    targets = Instances(torch.tensor([[[5.0, 5, 42, 50]], [[10, 2, 60, 40]]]), torch.tensor([[2], [0]]))
    proposals = Instances(targets.boxes + 1, torch.zeros(2, 1, dtype=torch.int64))
    optimizer = configure(
        model, lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1), Schedule(), steps, 1.0
    )["optimizer"]
    model.train()
    for _ in range(steps):
        losses = model.losses(model(images, sizes, None if "rpn" in model.learns else proposals), targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("number", range(4), ids=[step.name for step in STEPS])
def test_what_learns_moves_and_nothing_else(build, number):
    step, before, model = STEPS[number], build(), build()
    with torch.no_grad():
        for parameter in (*before.parameters(), *model.parameters()):
            parameter += 1e-3  # what is not zero decays, even where small pictures give no gradient
    prepare(model, step, before if number else None)
    start = copy.deepcopy(model.state_dict())
    learn(model)
    after = model.state_dict()
    for part in PARTS:
        same = equal({name: value for name, value in start.items() if name.startswith(f"{part}.")}, after)
        if part not in LEARNS[step.name]:
            assert all(same.values())  # buffers of batch norms among them
        else:
            assert [name for name, unmoved in same.items() if unmoved] == []


def test_what_each_step_begins_with():
    build = MODELS["one map"]
    fresh, before = build(), build()
    taken = {"step1_rpn": set(), "step2_head": {"rpn"}, "step3_rpn": set(PARTS), "step4_head": set(PARTS)}
    for number, step in enumerate(STEPS):
        model = copy.deepcopy(fresh)
        prepare(model, step, before if number else None)
        for part in PARTS:
            source = before if part in taken[step.name] else fresh
            assert all(equal(state(model, part), state(source, part)).values())


def test_a_recipe_s_frozen_stages_stay_frozen():
    model = faster_rcnn_c4("resnet18", trainable_stages=2, **SMALL)
    prepare(model, STEPS[0], None)
    frozen = {name for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert frozen
    assert any(p.requires_grad for p in model.backbone.parameters())
