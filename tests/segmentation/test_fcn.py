"""FCN-32s, 16s and 8s: sizes, alignment, the bilinear start, stages, and what a classifier's weights become."""

from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightline.backbone import WeightsError, build_backbone
from sightline.backbone.alexnet import alexnet_classifier
from sightline.backbone.chain import Chain, Stage
from sightline.backbone.fully_convolutional import to_convolutional
from sightline.backbone.mobilenet_v2 import TFPadConv2d
from sightline.backbone.protocol import Backbone
from sightline.datasets.structures import LabelMaps
from sightline.segmentation import SEGMENTERS, fcn8s, fcn16s, fcn32s, load, save
from sightline.segmentation.alignment import Grid, Upsample, layout
from sightline.segmentation.fcn import FCN
from sightline.segmentation.fcn_head import SmallHead

BUILDERS = {"fcn32s": fcn32s, "fcn16s": fcn16s, "fcn8s": fcn8s}
tiny = {name: partial(build, "resnet10_narrow", 3, head_width=8) for name, build in BUILDERS.items()}


def frame(height, width, batch=1):
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    return images, torch.tensor([[height, width]] * batch)


def narrow_vgg():
    """VGG's arrangement with four channels."""
    stages, channels = [], 3
    for i in range(1, 6):
        stages.append(Stage(f"conv{i}", [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU()], 4, 2 ** (i - 1)))
        stages.append(Stage(f"pool{i}", [nn.MaxPool2d(2, stride=2)], 4, 2**i))
        channels = 4
    return Chain(stages, ("pool3", "pool4", "pool5"))


def scored(model):
    """As after some training: score layers start at zero."""
    for layer in (model.score, *model.skips):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)
    return model


BODIES = {"cells between pixels": narrow_vgg, "cells on pixels": lambda: build_backbone("resnet10_narrow")}


@pytest.mark.parametrize("body", BODIES)
def test_output_size_is_input_size(body):
    """Heights 33 to 257, all of them, with widths 257 to 33."""
    backbone = BODIES[body]()
    head = SmallHead(backbone.channels[-1], 4, "batch")
    model = FCN(backbone, head, 3, skip_scales=(1, 1), learned_upsampling="all", auxiliary=True).eval()
    with torch.inference_mode():
        for height in range(33, 258):
            outputs = model(*frame(height, 290 - height))
            assert {tuple(x.shape) for x in (outputs.logits, *outputs.auxiliary)} == {(1, 3, height, 290 - height)}


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2_tf", "csp_darknet_nano", "googlenet", "alexnet"])
@pytest.mark.parametrize("size", [(33, 50), (5, 3), (64, 131)])
def test_any_backbone_and_size(name, size):
    model = fcn8s(name, 3, head_width=4).eval()
    with torch.inference_mode():
        assert model(*frame(*size, batch=2)).logits.shape == (2, 3, *size)


# Alignment: bilinear interpolation leaves a ramp as it is if, and only if, every cell's value is put where the cell lies.


class Blur(Backbone):
    """Maps of one channel at strides 8, 16 and 32, each the mean of pixels around its cells: a ramp of itself."""

    mean, std, stage_prefixes = (0.0,) * 3, (1.0,) * 3, {}
    strides, channels = (8, 16, 32), (1, 1, 1)

    def __init__(self, half):
        super().__init__()
        self.halves = nn.ModuleList(half() for _ in range(5))

    def forward(self, images):
        x, maps = images[:, :1], []
        for half in self.halves:
            x = half(x)
            maps.append(x)
        return maps[2:]


def smooth(kind, padding=1):
    conv = kind(1, 1, 3, stride=2, padding=padding, bias=False)
    nn.init.constant_(conv.weight, 1 / 9)
    return conv


HALVES = {
    "pooling": lambda: nn.AvgPool2d(2),
    "odd kernels": lambda: smooth(nn.Conv2d),
    "TensorFlow's padding": lambda: smooth(TFPadConv2d),
    "no padding": lambda: smooth(nn.Conv2d, padding=0),
    "a wide kernel": lambda: nn.Sequential(nn.ZeroPad2d((3, 0, 3, 0)), nn.AvgPool2d(4, 2)),
}


class Through(nn.Module):
    """Hands the map on."""

    width, shift = 1, Fraction(0)

    def forward(self, x):
        return x


@pytest.mark.parametrize("learned", ["none", "all"])
@pytest.mark.parametrize("skips", [0, 1, 2])
@pytest.mark.parametrize("half", HALVES)
def test_every_score_comes_out_on_its_pixels(half, skips, learned):
    model = FCN(Blur(HALVES[half]), Through(), 1, skip_scales=(1.0,) * skips, learned_upsampling=learned).eval()
    for layer in (model.score, *model.skips):
        nn.init.constant_(layer.weight, 1 / (1 + skips))
    height, width = 301, 290
    ramp = (torch.arange(height)[:, None] * 0.3 + torch.arange(width) * 0.5).expand(1, 3, -1, -1)
    with torch.no_grad():
        logits = model(ramp, torch.tensor([[height, width]])).logits * 255
    inside = (..., slice(96, 192), slice(96, 192))  # zeros around the picture reach further in than this
    torch.testing.assert_close(logits[inside], ramp[:, :1][inside], rtol=0, atol=0.01)


PLACES = {
    "resnet10_narrow": ((0, 0, 0, 0), 1),
    "mobilenet_v2_tf": ((0, 0, 0, 0), 1),
    "resnet10_narrow_fpn": ((0, 0, 0, 0), 1),
    "csp_darknet_nano": ((0.5, 0.5, 0.5), 0),
    "squeezenet1_1": ((3, 7, 15), 0),
}


@pytest.mark.parametrize("name", PLACES)
def test_where_cells_lie(name):
    found = layout(build_backbone(name))
    assert (tuple(float(grid.start) for grid in found.grids), found.extra) == PLACES[name]


def test_where_cells_lie_in_vgg():
    found = layout(narrow_vgg())
    assert found.grids == (Grid(8, Fraction(7, 2)), Grid(16, Fraction(15, 2)), Grid(32, Fraction(31, 2)))
    assert (found.multiple, found.extra, found.least) == (32, 0, 32)
    assert found.pad(torch.ones(1, 3, 33, 64)).shape == (1, 3, 64, 64)


class Whole(Blur):
    """Each cell looks at the whole picture."""

    def forward(self, images):
        return [x * x.mean((2, 3), keepdim=True) for x in super().forward(images)]


def test_cells_that_cannot_be_followed_are_taken_to_lie_in_the_middle():
    found = layout(Whole(HALVES["odd kernels"]))
    assert (tuple(float(grid.start) for grid in found.grids), found.extra) == ((3.5, 7.5, 15.5), 0)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("stride", "align_corners"), [(2, False), (8, False), (32, False), (2, True), (16, True)])
def test_bilinear_start_is_torchs_interpolation(stride, align_corners, learned):
    """Border and all, for the map is continued there."""
    x = torch.randn(2, 3, 5, 4)
    start = Fraction(0) if align_corners else Fraction(stride - 1, 2)
    size = [(n - 1) * stride + 1 if align_corners else n * stride for n in (5, 4)]
    found = Upsample(3, Grid(stride, start), learned=learned)(x, size)
    expected = F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("halves", range(-8, 20))
@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_upsampling_between_any_two_grids(factor, halves):
    """Against numbers one by one; of an odd factor, half cells are rounded down."""
    upsample = Upsample(1, Grid(factor, Fraction(halves, 2)), Grid(1))
    start = halves // 2 if factor % 2 else halves / 2
    x, size = torch.randn(1, 1, 4, 1), 25
    found = upsample(x, (size, 1))[0, 0, :, 0]
    for j in range(size):
        place = min(max((j - start) / factor, 0), 3)
        low = min(int(place), 2)
        expected = x[0, 0, low] + (place - low) * (x[0, 0, low + 1] - x[0, 0, low])
        torch.testing.assert_close(found[j], expected[0], rtol=1e-4, atol=1e-5)


# What is learned.


LEARNED = {"none": [], "between": ["between.0", "between.1"], "all": ["between.0", "between.1", "to_pixels"]}


@pytest.mark.parametrize("which", LEARNED)
def test_learned_upsampling(which):
    model = tiny["fcn8s"](learned_upsampling=which)
    assert [name.split(".learned")[0] for name, _ in model.named_parameters() if "learned" in name] == LEARNED[which]
    if which == "none":
        return
    fixed = tiny["fcn8s"](learned_upsampling="none")
    fixed.load_state_dict(scored(model).state_dict(), strict=False)
    inputs = frame(70, 45)
    with torch.no_grad():
        torch.testing.assert_close(fixed.eval()(*inputs).logits, model.eval()(*inputs).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_scores_start_at_zero_and_gradients_reach_everything(name):
    model = tiny[name](learned_upsampling="all", **({} if name == "fcn32s" else {"auxiliary": True})).train()
    inputs, targets = frame(64, 96, batch=2), LabelMaps(torch.randint(-1, 3, (2, 64, 96), dtype=torch.int16))
    assert model(*inputs).logits.abs().max() == 0
    sum(scored(model).losses(model(*inputs), targets).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_skips_are_scaled():
    """The scale stands before the score: small features with large weights are the same scores."""
    model, scaled = scored(tiny["fcn8s"]()).eval(), tiny["fcn8s"](skip_scales=(0.01, 0.0001)).eval()
    scaled.load_state_dict(model.state_dict())
    for skip, scale in zip(scaled.skips, (0.01, 0.0001), strict=True):
        skip.weight.data /= scale
    inputs = frame(65, 80)
    with torch.no_grad():
        torch.testing.assert_close(scaled(*inputs).logits, model(*inputs).logits, rtol=1e-3, atol=1e-4)


def test_auxiliary_logits_look_at_one_map_each():
    model = tiny["fcn8s"](auxiliary=True).eval()
    images, sizes = frame(64, 64)
    with torch.no_grad():
        outputs = model(images, sizes)
        maps = model.backbone(model.layout.pad(model.normalize(images, sizes)))
    for logits, auxiliary, x in zip(outputs.auxiliary, model.auxiliary, (maps[2], maps[1]), strict=True):
        coarse = F.conv2d(x, auxiliary.score.weight, auxiliary.score.bias)
        stride = 64 // (x.shape[-1] - 1)
        torch.testing.assert_close(logits[..., ::stride, ::stride], coarse[..., :-1, :-1], rtol=1e-4, atol=1e-5)
    losses = model.losses(outputs, LabelMaps(torch.zeros(1, 64, 64, dtype=torch.int16)))
    assert losses.keys() == {"loss_map", "loss_auxiliary"}


# Stages: FCN-32s, then 16s from it, then 8s from that.


def test_stages_start_from_one_another(tmp_path):
    inputs = frame(129, 97)
    model, path = scored(tiny["fcn32s"]()).eval(), tmp_path / "32s.ckpt"
    save(model, path)
    for name in ("fcn16s", "fcn8s"):
        finer = tiny[name](weights=str(path)).eval()
        with torch.no_grad():
            # Cells on pixels: doubling and then the rest is interpolation in one step.
            torch.testing.assert_close(finer(*inputs).logits, model(*inputs).logits, rtol=1e-4, atol=1e-5)
        path = tmp_path / f"{name}.ckpt"
        save(finer, path)


def test_a_stage_starts_from_the_coarser_ones_scores_doubled():
    coarse = FCN(narrow_vgg(), SmallHead(4, 4, "batch"), 3)
    fine = FCN(narrow_vgg(), SmallHead(4, 4, "batch"), 3, skip_scales=(1.0,))
    missing, unexpected = fine.load_state_dict(scored(coarse).state_dict(), strict=False)
    assert (missing, unexpected) == (["skips.0.weight", "skips.0.bias", "between.0.learned.weight"], [])
    scores, inputs = [], frame(96, 64)
    fine.eval().score.register_forward_hook(lambda module, inputs, output: scores.append(output))
    with torch.no_grad():
        found = fine(*inputs).logits
    expected = F.interpolate(
        F.interpolate(scores[0], scale_factor=2, mode="bilinear"), scale_factor=16, mode="bilinear"
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_another_number_of_classes_keeps_all_but_the_scores(tmp_path):
    model, path = scored(tiny["fcn8s"]()), tmp_path / "8s.ckpt"
    save(model, path)
    other = fcn8s("resnet10_narrow", 5, head_width=8, weights=str(path))
    torch.testing.assert_close(other.head.state_dict(), model.head.state_dict())
    assert other.score.weight.abs().max() == 0


def test_weights_of_another_backbone_do_not_fit(tmp_path):
    save(tiny["fcn32s"](), tmp_path / "32s.ckpt")
    with pytest.raises(WeightsError, match="do not fit"):
        fcn16s("mobilenet_v2", 3, weights=str(tmp_path / "32s.ckpt"))


# Fully connected layers.


def test_fc6_and_fc7_are_the_classifiers(tmp_path, caplog):
    """At the trained size, against `to_convolutional`; AlexNet's fc6 is 6 x 6, so its cell sees half a cell up and left."""
    with torch.device("meta"):
        classifier = alexnet_classifier(2)
        classifier.classifier[1], classifier.classifier[4] = nn.Linear(256 * 36, 16), nn.Linear(16, 16)
        classifier.classifier[6] = nn.Linear(16, 2)
    classifier = classifier.to_empty(device="cpu").eval()
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, std=0.05)
    torch.save(classifier.state_dict(), tmp_path / "alexnet.pth")
    model = fcn32s("alexnet", 2, head_width=16, backbone_weights=str(tmp_path / "alexnet.pth")).eval()
    assert "fc6 and fc7 start from classifier.1 and classifier.4" in caplog.text
    peer = to_convolutional(classifier)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = model.head(model.backbone(images)[-1])
        expected = peer.head[:-1](peer.body(images))
    assert expected.max() > 0.1
    torch.testing.assert_close(found[..., 3:4, 3:4], expected, rtol=1e-4, atol=1e-4)
    assert (model.head.width, model.head.shift) == (16, Fraction(-1, 2))


def test_vggs_head_is_as_wide_as_the_classifiers_and_centred():
    with torch.device("meta"):
        head = fcn32s("vgg16").head
    assert (head.fc6.weight.shape, head.fc7.weight.shape) == ((4096, 512, 7, 7), (4096, 4096, 1, 1))
    assert (head.shift, head.dropout.p) == (0, 0.5)


# The contract of all models.


def test_a_batch_gives_what_its_pictures_give_alone():
    model = scored(tiny["fcn8s"]()).eval()
    images, sizes = frame(64, 96, batch=2)
    before = images.clone()
    with torch.no_grad():
        both, one = model(images, sizes).logits, model(images[1:], sizes[1:]).logits
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", BUILDERS)
def test_checkpoint_round_trip(name, tmp_path):
    model = scored(tiny[name](norm="group", loss="dice")).eval()
    save(model, tmp_path / "best.ckpt")
    again = load(tmp_path / "best.ckpt", device="cpu")
    assert again.architecture == model.architecture
    inputs = frame(50, 40)
    with torch.no_grad():
        assert torch.equal(again.segment(*inputs).labels, model.segment(*inputs).labels)


def test_bfloat16_and_channels_last():
    model = scored(tiny["fcn8s"](learned_upsampling="all", auxiliary=True)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(*frame(45, 70))
        losses = model.losses(outputs, LabelMaps(torch.zeros(1, 45, 70, dtype=torch.int16)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_compiles_into_one_graph():
    model = scored(tiny["fcn8s"]()).eval()
    inputs = frame(45, 70)
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend="eager")(*inputs)
        torch.testing.assert_close(found.logits, model(*inputs).logits)


def test_learns_two_pictures():
    model = tiny["fcn8s"]().train()
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
    "backbone": (partial(fcn8s, "vgg61"), "no backbone 'vgg61'; did you mean"),
    "one map": (
        partial(fcn16s, "lenet"),
        r"needs 2 maps of different strides up to 32, the backbone gives strides \(4,\)",
    ),
    "upsampling": (partial(tiny["fcn8s"], learned_upsampling="some"), "must be one of none, between, all, got 'some'"),
    "scales": (partial(tiny["fcn8s"], skip_scales=(1,)), r"skip_scales must be 2 number\(s\)"),
    "loss": (partial(tiny["fcn8s"], loss="cros_entropy"), "cross_entropy"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    build, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        build()


def test_they_are_listed():
    assert all(SEGMENTERS[name] is build for name, build in BUILDERS.items())
