"""DeepLabV3+: sizes, alignment, the mean over the picture alone, and the contract of all models."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightline.backbone import build_backbone
from sightline.datasets.structures import LabelMaps
from sightline.segmentation import SEGMENTERS, deeplabv3_plus, load, save
from sightline.segmentation.alignment import Grid
from sightline.segmentation.pyramid import ASPP, DeepLabV3Plus, Join

tiny = partial(deeplabv3_plus, "resnet10_narrow", 3, output_stride=None, width=8, rates=(1, 2))


def frame(height, width, batch=1):
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    return images, torch.tensor([[height, width]] * batch)


@pytest.mark.parametrize("size", [(33, 33), (360, 480), (5, 70), *((n, 290 - n) for n in range(34, 258, 17))])
def test_output_size_is_input_size(size):
    model = tiny(auxiliary=True).eval()
    with torch.inference_mode():
        outputs = model(*frame(*size))
    assert {tuple(x.shape) for x in (outputs.logits, *outputs.auxiliary)} == {(1, 3, *size)}


OTHERS = {
    "mobilenet_v2_tf": {},
    "mobilenet_v2": {"output_stride": 8, "skips": (4, 2), "auxiliary": True},
    "resnet18": {"skips": (4,)},
    "vgg11": {"output_stride": None, "skips": (8, 4, 2)},
    "alexnet": {"output_stride": None},
    "csp_darknet_nano": {"output_stride": None, "skips": (16, 8)},
    "squeezenet1_1": {"output_stride": None, "skips": ()},
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_backbone(name):
    model = deeplabv3_plus(name, 2, width=8, **OTHERS[name]).eval()
    with torch.inference_mode():
        assert model(*frame(33, 70, batch=2)).logits.shape == (2, 2, 33, 70)


def test_the_context_leaves_padding_out():
    """The mean over the picture: what lies outside its size changes nothing."""
    aspp = ASPP(4, 3, (2,), Grid(16), norm=nn.BatchNorm2d)
    x, sizes = torch.randn(2, 4, 6, 5), torch.tensor([[96, 80], [40, 33]])
    found = aspp._mean(x, sizes)
    torch.testing.assert_close(found[0], x[0].mean((1, 2), keepdim=True))
    torch.testing.assert_close(found[1], x[1, :, :3, :3].mean((1, 2), keepdim=True))
    assert torch.isfinite(aspp._mean(x, torch.tensor([[0, 0], [1, 1]]))).all()


def test_context_is_one_convolution_several_dilated_ones_and_the_mean():
    aspp = ASPP(4, 3, (1, 3), Grid(16), norm=nn.BatchNorm2d).eval()
    x, sizes = torch.randn(1, 4, 9, 9), torch.tensor([[144, 144]])
    point, one, three = aspp.branches

    def separable(branch, dilation):
        spatial, mixed = branch[0][0].weight, branch[1][0].weight
        norm = (1 + 1e-5) ** -0.5  # of a batch norm at its start
        inner = F.relu(F.conv2d(x, spatial, padding=dilation, dilation=dilation, groups=4) * norm)
        return F.relu(F.conv2d(inner, mixed) * norm)

    with torch.no_grad():
        seen = [
            F.relu(F.conv2d(x, point[0].weight) * (1 + 1e-5) ** -0.5),
            separable(one, 1),
            separable(three, 3),
            F.relu(aspp.picture[0](x.mean((2, 3), keepdim=True))).expand(-1, -1, 9, 9),
        ]
        torch.testing.assert_close(aspp(x, sizes), aspp.mix(torch.cat(seen, 1)), rtol=1e-4, atol=1e-5)


def test_a_coarse_map_joins_where_the_finer_ones_cells_lie():
    """Cells of ResNet's maps lie on every second one of the next finer map."""
    coarse_grid, fine_grid = Grid(16), Grid(8)
    join = Join(2, 3, coarse_grid, fine_grid, norm=nn.BatchNorm2d)
    coarse = torch.randn(1, 2, 4, 3)
    up = join.upsample(coarse, (7, 5))
    torch.testing.assert_close(up[..., ::2, ::2], coarse)
    torch.testing.assert_close(up[..., 1::2, ::2], (coarse[..., 1:, :] + coarse[..., :-1, :]) / 2)


def test_last_maps_of_their_strides_join():
    """A body dilated to stride 8 has three maps of that stride: the last is the context's, the one of stride 4 joins."""
    body = build_backbone("resnet18", output_stride=8)
    model = DeepLabV3Plus(body, 2, skips=(4,), width=8)
    assert model.levels == [0]
    with pytest.raises(ValueError, match=r"skips must be some of the strides \[4\], in this order, got \(8, 4\)"):
        DeepLabV3Plus(body, 2, skips=(8, 4))


def test_gradients_reach_everything():
    model = tiny(auxiliary=True).train()
    targets = LabelMaps(torch.randint(-1, 3, (2, 64, 96), dtype=torch.int16))
    losses = model.losses(model(*frame(64, 96, batch=2)), targets)
    assert losses.keys() == {"loss_map", "loss_auxiliary"}
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_one_small_picture_trains():
    """Batch norm refuses one value a channel, which a mean over one picture would be."""
    model = tiny().train()
    assert torch.isfinite(model(*frame(64, 64)).logits).all()


def test_a_batch_gives_what_its_pictures_give_alone():
    model = tiny().eval()
    images, sizes = frame(64, 96, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images, sizes).logits[1:], model(images[1:], sizes[1:]).logits, rtol=1e-4, atol=1e-5
        )


def test_bfloat16_and_channels_last():
    model = tiny(auxiliary=True).to(memory_format=torch.channels_last).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(model(*frame(45, 70)), LabelMaps(torch.zeros(1, 45, 70, dtype=torch.int16)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_checkpoint_round_trip(tmp_path):
    model = tiny(norm="group", auxiliary=True, loss="cross_entropy+dice").eval()
    save(model, tmp_path / "best.ckpt")
    again = load(tmp_path / "best.ckpt", device="cpu")
    assert again.architecture == model.architecture
    inputs = frame(50, 40)
    with torch.no_grad():
        assert torch.equal(again.segment(*inputs).labels, model.segment(*inputs).labels)
    other = deeplabv3_plus(
        "resnet10_narrow", 5, norm="group", output_stride=None, width=8, rates=(1, 2), auxiliary=True,
        weights=str(tmp_path / "best.ckpt"),
    )  # fmt: skip
    torch.testing.assert_close(other.context.state_dict(), model.context.state_dict())


def test_learns_two_pictures():
    model = tiny().train()
    labels = torch.zeros(2, 32, 33, dtype=torch.int16)
    labels[0, :, 16:], labels[1, 8:], labels[:, :4] = 1, 2, -1
    images = (labels.clamp(min=0)[:, None] * 100).expand(-1, 3, -1, -1).to(torch.uint8)
    sizes, targets = torch.tensor([[32, 33]] * 2), LabelMaps(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = sum(model.losses(model(images, sizes), targets).values())
        loss.backward()
        optimizer.step()
    assert loss < 0.2


MISTAKES = {
    "backbone": (partial(deeplabv3_plus, "mobilenet_v3"), "no backbone 'mobilenet_v3'; did you mean"),
    "no choice of stride": (
        partial(deeplabv3_plus, "vgg11"),
        "vgg11 has no output_stride to choose, got output_stride=16",
    ),
    "stride": (partial(deeplabv3_plus, "mobilenet_v2", output_stride=4), "output_stride must be 8, 16 or 32, got 4"),
    "skips": (
        partial(tiny, skips=(4, 8)),
        r"skips must be some of the strides \[16, 8, 4\], in this order, got \(4, 8\)",
    ),
    "norm": (partial(tiny, norm="bach"), "norm must be one of"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    build, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        build()


def test_it_is_listed():
    assert SEGMENTERS["deeplabv3_plus"] is deeplabv3_plus
