"""CSPDarknet and PAFPN: what they give, and their parts against slow obvious versions."""

import pytest
import torch
from torch import nn

from sightline.backbone import BACKBONES, BackboneWithPAFPN, build_backbone, norm_layer
from sightline.backbone.csp_darknet import SIZES, SPP, ConvNormAct, CSPDarknet, CSPLayer, Focus
from sightline.backbone.pafpn import PAFPN
from sightline.backbone.resnet import BasicBlock, ResNet, resnet18

NANO = SIZES["nano"]
# Channels at strides 8, 16 and 32: 256, 512 and 1024 of the "l" size by the width.
CHANNELS = {
    "nano": (64, 128, 256),
    "tiny": (96, 192, 384),
    "s": (128, 256, 512),
    "m": (192, 384, 768),
    "l": (256, 512, 1024),
    "x": (320, 640, 1280),
}
# Bottlenecks of dark2 to dark5: 3, 9, 9 and 3 of the "l" size by the depth.
BLOCKS = {
    "nano": [1, 3, 3, 1],
    "tiny": [1, 3, 3, 1],
    "s": [1, 3, 3, 1],
    "m": [2, 6, 6, 2],
    "l": [3, 9, 9, 3],
    "x": [4, 12, 12, 4],
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    with torch.device("meta"):
        neck = BACKBONES[f"csp_darknet_{size}_pafpn"](norm=norm_layer("batch"))
        body = BACKBONES[f"csp_darknet_{size}"](norm=norm_layer("batch"))
        maps = neck(torch.empty(1, 3, 64, 96))
    assert body.channels == neck.channels == CHANNELS[size] == tuple(m.shape[1] for m in maps)
    assert [m.shape[2:] for m in maps] == [(8, 12), (4, 6), (2, 3)]
    assert [len(csp.m) for csp in body.modules() if isinstance(csp, CSPLayer)] == BLOCKS[size]
    assert {len(csp.m) for csp in neck.fpn.modules() if isinstance(csp, CSPLayer)} == {BLOCKS[size][0]}


def test_pixels_go_in_as_they_are():
    assert build_backbone("csp_darknet_nano_pafpn").mean == (0, 0, 0)
    assert build_backbone("csp_darknet_nano_pafpn").std == (1 / 255,) * 3


@pytest.mark.parametrize("name", ["batch", "frozen", "group"])
def test_norms_have_the_papers_constants(name):
    norms = [m.bn for m in build_backbone("csp_darknet_nano_pafpn", norm=name).modules() if isinstance(m, ConvNormAct)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert {getattr(norm, "momentum", 0.03) for norm in norms} == {0.03}


def test_focus_moves_each_square_of_pixels_into_a_cell():
    focus = Focus(3, 4, norm=nn.BatchNorm2d)
    seen = []
    focus.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(2, 3, 6, 10)
    focus(image)
    for channel in range(12):
        patch, colour = divmod(channel, 3)
        row, column = patch % 2, patch // 2  # upper left, lower left, upper right, lower right
        assert torch.equal(seen[0][:, channel], image[:, colour, row::2, column::2])


@pytest.mark.parametrize("shape", [(64, 64), (65, 64), (64, 95), (33, 47)])
def test_maps_of_any_size(shape):
    maps = build_backbone("csp_darknet_nano_pafpn").eval()(torch.rand(1, 3, *shape))
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-n // stride) for n in shape) for stride in (8, 16, 32)]


def test_spp_sees_the_maxima_around_each_cell():
    spp = SPP(8, norm=nn.BatchNorm2d).eval()
    seen = []
    spp.conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.rand(1, 8, 9, 16)
    spp(x)
    inner = spp.conv1(x)
    pooled = seen[0].unflatten(1, (4, 4))
    for i, radius in enumerate((0, 2, 4, 6)):
        for row, column in ((0, 0), (4, 7), (8, 15)):
            rows, columns = (
                slice(max(row - radius, 0), row + radius + 1),
                slice(max(column - radius, 0), column + radius + 1),
            )
            assert torch.equal(pooled[:, i, :, row, column], inner[..., rows, columns].amax((2, 3)))


def test_half_the_channels_go_round_the_blocks():
    csp = CSPLayer(8, 8, 2, depthwise=False, norm=nn.BatchNorm2d, shortcut=True).eval()
    x = torch.rand(1, 8, 5, 5)
    through = csp.conv1(x)
    for block in csp.m:
        through = through + block.conv2(block.conv1(through))
    torch.testing.assert_close(csp(x), csp.conv3(torch.cat([through, csp.conv2(x)], dim=1)))


@torch.no_grad()
def test_the_neck_carries_news_both_ways():
    """Each of its maps depends on each of the body's."""
    neck = PAFPN(CHANNELS["nano"], size=NANO).eval()
    maps = [torch.rand(1, channels, 32 // 2**i, 32 // 2**i) for i, channels in enumerate(CHANNELS["nano"])]
    before = neck(maps)
    for changed in range(3):
        after = neck([m + (i == changed) for i, m in enumerate(maps)])
        assert not any(torch.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_a_neck_on_another_body():
    body = ResNet(BasicBlock, (1, 1, 1, 1), width=8, out_stages=(3, 4, 5))
    backbone = BackboneWithPAFPN(body, PAFPN(body.channels, size=NANO))
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert tuple(m.shape[1] for m in maps) == backbone.channels == body.channels
    assert (backbone.strides, backbone.mean) == (body.strides, body.mean)


def test_a_neck_needs_three_maps_of_its_channels():
    body = CSPDarknet(NANO)
    with pytest.raises(ValueError, match=r"the neck takes channels \(8, 16, 32\), the body gives \(64, 128, 256\)"):
        BackboneWithPAFPN(body, PAFPN((8, 16, 32), size=NANO))
    with pytest.raises(ValueError, match="takes 3 feature map"):
        BackboneWithPAFPN(resnet18(), PAFPN((8, 16, 32), size=NANO))


def test_stages_freeze_from_the_pixels_upwards():
    backbone = build_backbone("csp_darknet_nano_pafpn", trainable_stages=2)
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad and "body" in name}
    assert trained == {"dark4", "dark5"}
    assert all(p.requires_grad for p in backbone.fpn.parameters())
    assert set(backbone.body.stage_prefixes) == {"stem", "dark2", "dark3", "dark4", "dark5"}
