"""Several looks at one picture: windows, scales, mirrors and superpixels, averaged within each picture's valid part."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.datasets.structures import LabelMaps
from sightline.detectors.superpixels import segment as superpixels
from sightline.segmentation.augmented import View, _brought_back, augmented, windowed
from sightline.segmentation.inference import segment
from sightline.segmentation.losses import MapLoss
from sightline.segmentation.model import Outputs, Segmenter
from sightline.segmentation.smoothing import mean_over, smoothed


class Colours(Segmenter):
    """Logits are a pixel's colour, so that what it says of a view is known."""

    def __init__(self):
        super().__init__(mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=3)
        self.layer, self.resize, self.seen = nn.Linear(1, 1), (64, 96), []

    def forward(self, images, sizes):
        self.seen.append((tuple(images.shape[-2:]), sizes.tolist()))
        return Outputs(self.normalize(images, sizes) * 4)


class Blurred(Colours):
    """It also looks to the right, so that a mirrored picture gets another answer."""

    def forward(self, images, sizes):
        logits = super().forward(images, sizes).logits
        return Outputs(logits + logits.roll(-1, 3))


class Places(Segmenter):
    """Of each pixel, where it lies in the window: rows and columns, whatever the picture shows."""

    def __init__(self):
        super().__init__(mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=2)
        self.layer, self.sizes = nn.Linear(1, 1), []

    def forward(self, images, sizes):
        self.sizes.append(sizes.tolist())
        rows = torch.arange(images.shape[2]).view(1, 1, -1, 1) * torch.ones(len(images), 1, 1, images.shape[3])
        return Outputs(torch.cat([rows / 16, torch.zeros_like(rows)], 1))


def smooth_pictures(frame=(96, 128)):
    """Two smooth pictures of different sizes in one frame, with noise where it does not count."""
    sizes = torch.tensor([[96, 128], [71, 83]])
    images = torch.randint(0, 256, (2, 3, *frame), dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        rough = 255 * torch.rand(1, 3, 4, 5)
        image[:, :height, :width] = F.interpolate(rough, (height, width), mode="bicubic")[0].clamp(0, 255)
    return images, sizes


def valid(maps, sizes):
    """The pictures of a batch of maps, without their padding."""
    return [one[:, :h, :w] for one, (h, w) in zip(maps, sizes.tolist(), strict=True)]


def said(model, images, sizes):
    with torch.no_grad():
        return model(images, sizes).logits.softmax(1)


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# Windows


@pytest.mark.parametrize("window", [(32, 32), (40, 48), (96, 50), (96, 128), (200, 200)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_windows_of_a_model_without_context_are_the_model(window, overlap):
    """Where a pixel's answer does not depend on its surroundings, any cutting gives the same."""
    images, sizes = smooth_pictures()
    model = Colours()
    found, own = said(windowed(model, window, overlap=overlap), images, sizes), said(model, images, sizes)
    assert found.shape == own.shape
    assert_same(valid(found, sizes), valid(own, sizes))
    assert found.isfinite().all()


def test_one_window_is_exact():
    images, sizes = smooth_pictures()
    model = Blurred()
    found = windowed(model, (96, 128))(images, sizes)
    torch.testing.assert_close(found.logits, model(images, sizes).logits.log_softmax(1))
    assert [seen[0] for seen in model.seen] == [(96, 128)] * 2


def test_windows_are_spread_over_each_picture_alone():
    """Lengths of 96 and 71 in windows of 40 that share a half: four of them at 0, 19, 37, 56 and at 0, 10, 21, 31."""
    model = Places()
    images, sizes = smooth_pictures()
    found = said(windowed(model, (40, 128), overlap=0.5), images, sizes)[:, 0]
    for i, starts in enumerate([(0, 19, 37, 56), (0, 10, 21, 31)]):
        height, width = sizes[i].tolist()
        total, count = np.zeros(height), np.zeros(height)
        for start in starts:
            total[start : start + 40] += 1 / (1 + np.exp(-np.arange(40) / 16))
            count[start : start + 40] += 1
        np.testing.assert_allclose(found[i, :height, 0], total / count, rtol=1e-5)
        assert found[i, :height, :width].std(1).max() < 1e-6
    assert model.sizes == [[[40, 128], [40, 83]]] * 4


def test_a_window_of_a_small_picture_says_what_of_it_is_valid():
    model = Places()
    said(windowed(model, 64), torch.zeros(2, 3, 64, 128, dtype=torch.uint8), torch.tensor([[50, 128], [64, 40]]))
    assert model.sizes == [[[50, 64], [64, 40]]] * 3


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [(16, 0.5, "at least 32 pixels"), ((64, 8), 0.5, r"got \(64, 8\)"), (64, 0.95, "0 to 0.9"), (64, -0.1, "-0.1")],
)
def test_windows_that_cannot_be(window, overlap, message):
    with pytest.raises(ValueError, match=message):
        windowed(Colours(), window, overlap=overlap)


# Scales and mirrors


def test_one_view_is_the_model():
    images, sizes = smooth_pictures()
    model = Blurred()
    torch.testing.assert_close(augmented(model)(images, sizes).logits, model(images, sizes).logits.log_softmax(1))


def test_mirrored_within_each_picture():
    images, sizes = smooth_pictures()
    model = Blurred()
    mirrored = images.clone()
    for one, (_, width) in zip(mirrored, sizes.tolist(), strict=True):
        one[:, :, :width] = one[:, :, :width].flip(2)
    there = valid(said(model, mirrored, sizes), sizes)
    here = valid(said(model, images, sizes), sizes)
    expected = [(one + other.flip(2)) / 2 for one, other in zip(here, there, strict=True)]
    assert_same(valid(said(augmented(model, flip=True), images, sizes), sizes), expected)
    assert any((one - other).abs().max() > 0.05 for one, other in zip(here, expected, strict=True))


@pytest.mark.parametrize("scales", [(1, 0.5), (1, 0.75), (1.5, 1), (0.61, 1.37, 2)], ids=str)
@pytest.mark.parametrize("flip", [False, True])
def test_scales_of_a_smooth_picture_agree(scales, flip):
    """Up to its borders, where the noise of the padding would show."""
    images, sizes = smooth_pictures()
    model = Colours()
    found = said(augmented(model, scales=scales, flip=flip), images, sizes)
    assert found.shape == (2, 3, 96, 128)
    assert_same(valid(found, sizes), valid(said(model, images, sizes), sizes), atol=0.04, rtol=0)
    shapes = [seen[0] for seen in model.seen]
    assert len(shapes) == len(scales) * (1 + flip) + 1
    assert (96, 128) in shapes[:-1]


@pytest.mark.parametrize("flip", [False, True])
def test_a_picture_looks_alike_in_every_frame(flip):
    images, sizes = smooth_pictures()
    model = augmented(Colours(), scales=(1, 0.7, 0.5), flip=flip)
    together = valid(said(model, images, sizes), sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        alone = said(model, images[i : i + 1, :, :height, :width], sizes[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("scale", [0.5, 0.8])
def test_a_ramp_comes_back_where_it_was(scale, flipped):
    """Pixel u of a view shows x = (u + 0.5) / scale - 0.5. Back, a ramp of x is the ramp again, but at its very ends."""
    sizes, frame = torch.tensor([[40, 60]]), (48, 64)
    wide = (sizes * scale - 1e-3).ceil().long()
    u = torch.arange(int(64 * scale + 0.999)).float()
    ramp = ((u + 0.5) / scale - 0.5).where(u < wide[0, 1], 999)  # the padding must not come in
    view = ramp.expand(1, 1, int(48 * scale + 0.999), -1)
    back = _brought_back(view, wide, sizes, View(scale, flipped), frame)[0, 0, :40, :60]
    expected = torch.arange(60.0)
    back = back.flip(1) if flipped else back
    torch.testing.assert_close(back[:, 1:-1], expected[1:-1].expand(40, -1), atol=1e-4, rtol=0)
    assert (back - expected).abs().max() < 0.6


def test_pictures_come_at_the_largest_scale():
    assert augmented(Colours(), scales=(0.5, 1.5)).resize == (96, 144)
    fixed = Colours()
    fixed.resize = (50, 60, True)
    assert augmented(fixed, scales=(0.5, 1.5), flip=True).resize == (75, 90, True)


@pytest.mark.parametrize(
    ("scales", "message"),
    [((), "one or more"), ((1, 0), "above 0"), ((float("nan"),), "nan"), ((1, 1), "counts once"), ((11,), "up to 10")],
)
def test_scales_that_cannot_be(scales, message):
    with pytest.raises(ValueError, match=message):
        augmented(Colours(), scales=scales)


def test_pictures_as_they_are_have_no_larger_view():
    model = windowed(Colours(), 64)
    model.resize = ()
    assert augmented(model, scales=(0.5, 1)).resize == ()
    with pytest.raises(ValueError, match=r"up to 1, got \[1, 1.25\]"):
        augmented(model, scales=(1, 1.25))


# Superpixels


def test_means_over_superpixels_are_a_loop_s():
    values, regions = torch.rand(3, 6, 7), torch.randint(0, 5, (6, 7))
    found = mean_over(regions, values)
    for y, x in np.ndindex(6, 7):
        torch.testing.assert_close(found[:, y, x], values[:, regions == regions[y, x]].mean(1))


def test_smoothed_maps_are_even_within_superpixels_of_the_picture_alone():
    images, sizes = smooth_pictures()
    model = Colours()
    found, own = said(smoothed(model, k=30), images, sizes), said(model, images, sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        regions = superpixels(images[i, :, :height, :width].permute(1, 2, 0).contiguous().numpy(), 30)
        assert regions.max() > 3
        expected = mean_over(torch.from_numpy(regions), own[i, :, :height, :width])
        torch.testing.assert_close(found[i, :, :height, :width], expected)
    with pytest.raises(ValueError, match="at least 1"):
        smoothed(model, k=0)


# All of them


WRAPPED = {
    "windows": lambda model: windowed(model, 48),
    "views": lambda model: augmented(model, scales=(1, 0.5), flip=True),
    "superpixels": lambda model: smoothed(model),
    "all": lambda model: smoothed(augmented(windowed(model, 64), scales=(1.25, 1), flip=True)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_verbs(wrap):
    """Losses are the model's own of the mean probabilities; decoding and predicting are as ever."""
    model = Colours()
    model.loss, model.categories, model.colours = MapLoss(3, kind="dice"), ["a", "b", "c"], [(1, 2, 3)] * 3
    model.loss.weights.copy_(torch.tensor([1.0, 2, 3]))
    wrapped = wrap(model.eval())
    assert not wrapped.training
    assert (wrapped.task, wrapped.categories, wrapped.colours) == ("segmentation", model.categories, model.colours)
    images, sizes = smooth_pictures()
    outputs = wrapped(images, sizes)
    assert outputs.logits.dtype == torch.float32
    assert outputs.logits.isfinite().all()
    found = wrapped.decode(outputs, sizes)
    assert found.labels.shape == (2, 96, 128)
    assert (found.labels[1, 71:] == -1).all()
    assert (found.labels[1, :71, 83:] == -1).all()
    assert (found.labels[1, :71, :83] >= 0).all()
    losses = wrapped.losses(outputs, LabelMaps(found.labels))
    torch.testing.assert_close(losses["loss_map"], model.loss(outputs.logits, found.labels))
    assert segment(wrapped, images[1, :, :71, :83].contiguous()).labels.shape == (71, 83)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_pictures_are_not_changed(wrap):
    images, sizes = smooth_pictures()
    before = images.clone()
    said(wrap(Colours()), images, sizes)
    assert torch.equal(images, before)


@pytest.mark.parametrize("wrap", [lambda model: windowed(model, (96, 80)), WRAPPED["views"]], ids=["windows", "views"])
def test_the_graph_can_be_exported(wrap):
    """No shape depends on what is in the pictures."""
    images, sizes = smooth_pictures()
    program = torch.export.export(wrap(Colours()).eval(), (images, sizes))
    torch.testing.assert_close(program.module()(images, sizes).logits, wrap(Colours()).eval()(images, sizes).logits)
