"""ResNet against torchvision's (https://github.com/pytorch/vision, models/resnet.py), with its state dicts copied."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from sightline.backbone import resnet

LAYERS = {"layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5}


def pretend_trained(model: nn.Module) -> nn.Module:
    """Norms away from their initial values, so that swapping two of them shows."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def test_shapes():
    """Keys and shapes of all five depths, made without memory."""
    for depth in (18, 34, 50, 101, 152):
        with torch.device("meta"):
            theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
            ours = getattr(resnet, f"resnet{depth}_classifier")(7)
        expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected, depth


@pytest.mark.parametrize("depth", [18, 50])
def test_classifier_equals_torchvision(depth):
    theirs = pretend_trained(getattr(torchvision.models, f"resnet{depth}")(num_classes=10))
    ours = getattr(resnet, f"resnet{depth}_classifier")(10).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 65, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


DILATED = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}


@pytest.mark.parametrize("output_stride", DILATED)
def test_maps_equal_torchvision(output_stride):
    theirs = pretend_trained(
        torchvision.models.resnet50(replace_stride_with_dilation=DILATED[output_stride], num_classes=2)
    )
    ours = resnet.resnet50(output_stride=output_stride).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = IntermediateLayerGetter(theirs, {name: name for name in LAYERS})(images)
        maps = ours(images)
    for ours_map, their_map, stride in zip(maps, expected.values(), ours.strides, strict=True):
        torch.testing.assert_close(ours_map, their_map, rtol=1e-5, atol=1e-5)
        assert ours_map.shape[-2:] == (64 // stride, 96 // stride)
    assert ours.strides == tuple(min(stride, output_stride) for stride in (4, 8, 16, 32))


def test_dilated_basic_blocks_see_as_far_as_strided_ones():
    """c5 at stride 8 holds at every fourth cell what the strided network computes from the same pixels."""
    strided, dilated = resnet.resnet18().eval(), resnet.resnet18(output_stride=8).eval()
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        coarse, fine = strided(images)[-1], dilated(images)[-1]
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=1e-3, atol=1e-4)


def test_out_stages_build_no_more_than_they_give():
    model = resnet.resnet18(out_stages=(1, 4))
    assert (model.strides, model.channels) == ((2, 16), (64, 256))
    assert [tuple(x.shape) for x in model(torch.randn(1, 3, 64, 64))] == [(1, 64, 32, 32), (1, 256, 4, 4)]
    assert not list(model.layer4.parameters())
    assert list(model.stage_prefixes) == ["stem", "layer1", "layer2", "layer3"]


@pytest.mark.parametrize("out_stages", [(2, 3, 4, 5), (5,), (2, 5)])
def test_the_last_stage_taken_off_makes_c5_of_c4(out_stages):
    whole = resnet.resnet18(out_stages=out_stages).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        c5 = whole(images)[-1]
        stage = whole.take_last_stage()
        (c4,) = whole(images)
        torch.testing.assert_close(stage(c4), c5)
    assert (whole.strides, whole.channels, c4.shape[1]) == ((16,), (256,), 256)
    assert list(whole.stage_prefixes)[-1] == "layer3"
    with pytest.raises(ValueError, match="only a body that ends in stage 5"):
        whole.take_last_stage()


def test_zero_init_makes_blocks_identities():
    block = resnet.ResNet(resnet.BasicBlock, (2, 1, 1, 1), width=8, zero_init=True).layer1[1]
    x = torch.rand(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x)
    assert resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), width=8, zero_init=True).layer1[0].bn3.weight.abs().sum() == 0


@pytest.mark.parametrize("out_stages", [(), (5, 4), (0, 1), (2, 2), (6,)])
def test_out_stages_are_checked(out_stages):
    with pytest.raises(ValueError, match="out_stages must be ascending"):
        resnet.resnet18(out_stages=out_stages)


def test_output_stride_is_checked():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        resnet.resnet18(output_stride=4)
