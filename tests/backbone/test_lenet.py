"""LeNet-5 against its paper's numbers (http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf, section II.B) and slow loops."""

import gzip

import pytest
import torch
from torch import nn

from sightline.backbone import build_backbone, build_classifier
from sightline.backbone.lenet import TABLE, ScaledTanh, Subsample, TableConv2d, lenet

# Trainable parameters as the paper gives them, layer by layer.
PAPER = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "fc6": 10164}


def test_parameters_are_the_papers():
    model = build_classifier("lenet", 10)
    counted = {
        stage: sum(p.numel() for key, p in model.named_parameters() if key.startswith(tuple(f"{x}." for x in prefixes)))
        for stage, prefixes in model.stage_prefixes.items()
    }
    assert counted == PAPER
    assert sum(PAPER.values()) == 60_000
    assert sum(p.numel() for p in model.parameters()) == 60_000 + 85 * 10


def test_maps_are_the_papers():
    model = lenet(out_stages=("c1", "s2", "c3", "s4", "c5"))
    shapes = [tuple(x.shape[1:]) for x in model(torch.randn(1, 3, 32, 32))]
    assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1)]
    assert (model.strides, model.channels) == ((1, 2, 2, 4, 4), (6, 6, 16, 16, 120))
    assert lenet(out_stages="s2").stage_prefixes.keys() == {"c1", "s2"}


def test_the_table_is_the_papers():
    """Its rules in words: six maps of 3 neighbours, six of 4, three of 4 that are not neighbours, one of all."""
    assert [len(set(row)) for row in TABLE] == [3] * 6 + [4] * 9 + [6]
    seen_by = [sum(i in row for row in TABLE) for i in range(6)]
    assert seen_by == [10] * 6, "every map of S2 is seen ten times: the column sums of table I"
    for row, start in [(row, i % 6) for i, row in enumerate(TABLE[:12])]:
        assert set(row) == {(start + k) % 6 for k in range(len(row))}
    assert len(set(map(frozenset, TABLE))) == 16, "no two maps see the same"


def test_table_convolution_equals_separate_ones():
    layer, x = TableConv2d(TABLE, 5), torch.randn(2, 6, 9, 8)
    start, expected = 0, []
    for i, row in enumerate(TABLE):
        weight = layer.weight[start : start + len(row)][None]
        expected.append(nn.functional.conv2d(x[:, list(row)], weight, layer.bias[i : i + 1]))
        start += len(row)
    torch.testing.assert_close(layer(x), torch.cat(expected, 1))


def test_own_layers_have_right_gradients():
    x = torch.randn(2, 3, 6, 6, dtype=torch.double, requires_grad=True)
    for layer in (TableConv2d(((0, 1), (2,)), 3), Subsample(3), ScaledTanh()):
        assert torch.autograd.gradcheck(layer.double(), (x,))
        for parameter in layer.parameters():
            layer(x).sum().backward()
            assert parameter.grad.abs().sum() > 0


def test_subsampling_sums_scales_and_shifts():
    layer, x = Subsample(2), torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(layer(x), nn.functional.avg_pool2d(x, 2))
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 3.0)
    expected = 2 * x.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2)) + 3
    torch.testing.assert_close(layer(x), expected)


def test_squashing_keeps_one():
    torch.testing.assert_close(ScaledTanh()(torch.tensor([-1.0, 0, 1])), torch.tensor([-1.0, 0, 1]), atol=1e-4, rtol=0)


def test_colour_is_taken_as_grey():
    model = build_classifier("lenet", 10)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), model(images.mean(1, keepdim=True)))


def test_normalisation_is_the_papers():
    model = build_backbone("lenet")
    ink, paper = (1 - model.mean[0]) / model.std[0], (0 - model.mean[0]) / model.std[0]
    assert (ink, paper) == (pytest.approx(1.175), pytest.approx(-0.1))


def test_the_signal_lives_at_the_start():
    model = lenet(out_stages=("c1", "s2", "c3", "s4", "c5"))
    assert all(0.2 < x.std() < 1.5 for x in model(torch.randn(64, 1, 32, 32)))


def test_small_pictures_are_refused_with_a_reason():
    with pytest.raises(ValueError, match=r"at least 32x32 pixels, got 28x28; pad or enlarge them"):
        build_classifier("lenet", 10)(torch.zeros(1, 1, 28, 28))


def test_learns_the_digits_of_one_batch(real_data):
    pixels = first_bytes(real_data("mnist") / "train-images-idx3-ubyte.gz", 16, 64 * 784)
    labels = first_bytes(real_data("mnist") / "train-labels-idx1-ubyte.gz", 8, 64).long()
    model = build_classifier("lenet", 10)
    digits = nn.functional.pad(pixels.view(64, 1, 28, 28) / 255, (2, 2, 2, 2))
    images = (digits - model.mean[0]) / model.std[0]
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (model(images).argmax(1) == labels).all()


def first_bytes(path, header: int, count: int) -> torch.Tensor:
    with gzip.open(path) as file:
        return torch.frombuffer(bytearray(file.read(header + count)[header:]), dtype=torch.uint8)
