import pytest
import torch
import torchvision
from torchvision.models.detection.backbone_utils import _mobilenet_extractor, _resnet_fpn_extractor

from sightline.backbone import BACKBONES, build_backbone, freeze_stages, stages
from sightline.backbone.last_map import LastMap
from sightline.backbone.mobilenet_v2 import MobileNetV2Classifier
from sightline.backbone.protocol import body_stages
from sightline.backbone.resnet import resnet18_classifier


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def torchvision_backbone(name: str, count: int):
    if name == "resnet18_fpn":
        return _resnet_fpn_extractor(torchvision.models.resnet18(), count)
    return _mobilenet_extractor(torchvision.models.mobilenet_v3_large(), True, count)


@pytest.mark.parametrize("name", ["resnet18_fpn", "mobilenet_v3_large_fpn"])
def test_same_parameters_as_torchvision(name):
    with torch.device("meta"):
        count = 5 if name == "resnet18_fpn" else 6
        theirs = [trainable(torchvision_backbone(name, i)) for i in range(count + 1)]
    ours = build_backbone(name)
    # mobilenet_v3's body has two maps, hence two stages to freeze: up to block 13, and from there to block 16.
    pairs = [(i, i) for i in range(count + 1)] if name == "resnet18_fpn" else [(0, 0), (2, 6)]
    for our_count, their_count in pairs:
        freeze_stages(ours, our_count)
        assert trainable(ours) == theirs[their_count], their_count


def test_mobilenet_v2_stages_are_torchvisions():
    ours = MobileNetV2Classifier()
    for count in range(7):
        theirs = torchvision.models.mobilenet_v2()
        _mobilenet_extractor(theirs, False, count)
        freeze_stages(ours, count)
        assert trainable(ours) == trainable(theirs), count


def test_thawing_from_the_head_downwards():
    model = resnet18_classifier(10)
    names = [name for name, _ in stages(model)]
    assert names == ["head", "layer4", "layer3", "layer2", "layer1", "stem"]
    seen = []
    for count in range(6):
        freeze_stages(model, count)
        seen.append(len(trainable(model)))
    # fc 2; layers 4 to 2: 4 convolutions, a shortcut, 5 norms of two; layer 1: no shortcut; the stem 3.
    assert seen == [2, 17, 32, 47, 59, 62]


@pytest.mark.parametrize("name", BACKBONES)
def test_groups_hold_every_parameter_once(name):
    with torch.device("meta"):
        model = BACKBONES[name]()
    grouped = [id(parameter) for _, group in stages(model) for parameter in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    assert all(group for _, group in stages(model))


def test_a_wrong_number_of_stages_is_refused():
    with pytest.raises(ValueError, match=r"0 to 5 \(stem, layer1, layer2, layer3, layer4\), got 6"):
        freeze_stages(build_backbone("resnet18"), 6)


def test_norms_of_frozen_stages_are_held_still():
    model = build_backbone("resnet10_narrow", trainable_stages=1)
    assert moved(model) == set(norms_of(model, "layer4"))
    freeze_stages(model, 2)
    assert moved(model) == set(norms_of(model, "layer3", "layer4"))
    freeze_stages(model.eval(), 5)
    assert moved(model) == set()


def norms_of(model, *prefixes):
    names = [name for name, _ in model.named_buffers() if name.endswith(("mean", "var"))]
    return [name for name in names if name.startswith(prefixes)]


def moved(model):
    """The norms' statistics that are others after a batch."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64))
    names = [name for name in before if name.endswith(("mean", "var"))]
    return {name for name in names if not model.get_buffer(name).equal(before[name])}


def test_frozen_stages_get_no_gradient():
    model = build_backbone("resnet10_narrow_fpn", trainable_stages=2)
    sum(x.mean() for x in model(torch.randn(2, 3, 64, 64))).backward()
    assert model.body.layer2[0].conv1.weight.grad is None
    assert model.body.layer3[0].conv1.weight.grad.abs().sum() > 0


def test_stages_of_a_body_within_another_module():
    body = build_backbone("lenet")
    expected = {name: tuple(f"body.{prefix}" for prefix in prefixes) for name, prefixes in body.stage_prefixes.items()}
    wrapped = LastMap(body)
    assert wrapped.stage_prefixes == body_stages(body) == expected
    named = dict(wrapped.named_modules())
    assert all(prefix in named for prefixes in expected.values() for prefix in prefixes)
