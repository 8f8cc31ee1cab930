"""The pyramid against torchvision's FeaturePyramidNetwork and detectors, with copied state dicts."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from sightline.backbone import FPN, P6P7, BackboneWithFPN, MaxPoolP6, build_backbone
from sightline.backbone.resnet import resnet50

CHANNELS = (8, 16, 24)
CASES = {
    "plain": (None, None, None),
    "norm": (None, None, nn.BatchNorm2d),
    "max-pooled p6": (MaxPoolP6(), LastLevelMaxPool(), None),
    "p6 p7 from p5": (P6P7(32), LastLevelP6P7(32, 32), None),
    "p6 p7 from c5": (P6P7(32, c5_channels=24), LastLevelP6P7(24, 32), None),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_torchvision(case):
    extra, their_extra, norm = CASES[case]
    theirs = FeaturePyramidNetwork(list(CHANNELS), 32, extra_blocks=their_extra, norm_layer=norm).eval()
    ours = FPN(CHANNELS, 32, extra=extra, norm=norm).eval()
    ours.load_state_dict(theirs.state_dict())
    sizes = ((25, 33), (13, 17), (7, 9))  # odd ones: maps do not halve exactly
    features = [torch.randn(2, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]
    originals = [feature.clone() for feature in features]
    expected = list(theirs(OrderedDict((str(i), feature) for i, feature in enumerate(features))).values())
    pyramid = ours(features)
    assert len(pyramid) == len(expected)
    for our_map, their_map in zip(pyramid, expected, strict=True):
        torch.testing.assert_close(our_map, their_map, rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(features, originals, strict=True)), "the inputs were changed"


DETECTORS = {"resnet50_fpn": fasterrcnn_resnet50_fpn, "resnet50_fpn_v2": fasterrcnn_resnet50_fpn_v2}


@pytest.mark.parametrize("name", DETECTORS)
def test_backbone_equals_a_torchvision_detectors(name):
    theirs = DETECTORS[name](weights=None, weights_backbone=None, num_classes=2).backbone.eval()
    ours = build_backbone(name).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for our_map, their_map in zip(ours(images), theirs(images).values(), strict=True):
            torch.testing.assert_close(our_map, their_map, rtol=1e-5, atol=1e-5)
    assert ours.strides == (4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("detector", "c5_channels"),
    [("retinanet_resnet50_fpn", None), ("retinanet_resnet50_fpn_v2", 2048), ("fcos_resnet50_fpn", None)],
)
def test_keys_of_dense_detectors(detector, c5_channels):
    with torch.device("meta"):
        build = getattr(torchvision.models.detection, detector)
        theirs = build(weights=None, weights_backbone=None, num_classes=2).backbone
        body = resnet50(out_stages=(3, 4, 5))
        ours = BackboneWithFPN(body, FPN(body.channels, 256, extra=P6P7(256, c5_channels=c5_channels)))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours.strides == (8, 16, 32, 64, 128)


def test_a_pyramid_for_another_body_is_refused():
    body = build_backbone("resnet18")
    with pytest.raises(ValueError, match=r"takes channels \(256, 512\), the body gives \(64, 128, 256, 512\)"):
        BackboneWithFPN(body, FPN((256, 512)))
