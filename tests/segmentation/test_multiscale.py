"""Farabet et al.'s network: its pyramid, what it sees, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from sightline.backbone import WeightsError
from sightline.datasets.structures import LabelMaps
from sightline.segmentation import farabet, load, save
from sightline.segmentation.multiscale import laplacian_pyramid, normalized_pyramid

SMALL = {"widths": (4, 6, 8), "hidden": 12}


def pictures(*sizes, frame):
    """Random pictures of these sizes in [0, 1], 0 in the padding, and the sizes."""
    images = torch.zeros(len(sizes), 3, *frame)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.rand(3, height, width)
    return images, torch.tensor(sizes)


def test_the_pyramid_adds_up():
    maps = torch.rand(2, 3, 32, 48)
    bands = laplacian_pyramid(maps, [torch.ones(2, 1, 32 >> i, 48 >> i) for i in range(3)])
    assert [tuple(band.shape[-2:]) for band in bands] == [(32, 48), (16, 24), (8, 12)]
    total = bands[2]
    for band in bands[1::-1]:
        total = band + F.interpolate(total, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(total, maps)


def test_levels_are_smoothed_and_halved():
    """With (1, 3, 3, 1) / 8 along both axes, in the middle of four pixels."""
    maps = torch.rand(1, 1, 16, 20)
    coarse = laplacian_pyramid(maps, [torch.ones(1, 1, 16, 20), torch.ones(1, 1, 8, 10)])[1]
    ramp = torch.tensor([1.0, 3, 3, 1]) / 8
    expected = F.conv2d(maps, (ramp[:, None] * ramp).view(1, 1, 4, 4), stride=2, padding=1)
    torch.testing.assert_close(coarse[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_neighbourhoods_have_mean_0_and_deviation_1():
    """A loop over 15 x 15 pixels; the mean is that of the picture, the deviation that of what was left."""
    images, sizes = pictures((24, 29), frame=(32, 32))
    (found,) = normalized_pyramid(images, sizes, 1)
    plane = images[0, 1]

    def around(values, y, x):
        return values[max(0, y - 7) : min(24, y + 8), max(0, x - 7) : min(29, x + 8)]

    centred = torch.zeros(24, 29)
    for y in range(24):
        for x in range(29):
            centred[y, x] = plane[y, x] - around(plane, y, x).mean()
    for y, x in ((0, 0), (5, 20), (12, 14), (23, 28), (23, 0)):
        expected = centred[y, x] / around(centred, y, x).square().mean().sqrt()
        torch.testing.assert_close(found[0, 1, y, x], expected, atol=1e-4, rtol=1e-4)
    assert found[0, :, 24:].eq(0).all()
    assert found[0, :, :, 29:].eq(0).all()


def test_a_picture_without_anything_to_see_stays_flat():
    bands = normalized_pyramid(torch.full((1, 3, 32, 32), 0.7), torch.tensor([[32, 32]]), 3)
    assert max(band.abs().max() for band in bands) < 1e-3


def test_levels_of_a_picture_are_the_same_in_every_frame():
    images, sizes = pictures((45, 61), (64, 64), frame=(64, 64))
    wider = F.pad(images, (0, 32, 0, 16), value=0.5)
    together, apart = normalized_pyramid(images, sizes, 3), normalized_pyramid(wider, sizes, 3)
    for level, (one, other) in enumerate(zip(together, apart, strict=True)):
        height, width = one.shape[-2:]
        torch.testing.assert_close(other[..., :height, :width], one, atol=1e-4, rtol=1e-4)
        assert other[..., height:, :].eq(0).all()
        shown = -(-45 // 2**level), -(-61 // 2**level)
        assert one[0, :, shown[0] :].eq(0).all()
        assert one[0, :, : shown[0], : shown[1]].ne(0).any(0).all()


def test_grey_has_no_colour():
    """Of a grey picture the network sees the first plane alone, of a red one also the others."""
    model, seen = farabet(3, norm=None, **SMALL).eval(), []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    grey = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8).repeat(1, 3, 1, 1)
    for images in (grey, grey * torch.tensor([1, 0, 0], dtype=torch.uint8).view(3, 1, 1)):
        model(images, torch.tensor([[32, 32]]))
    assert [tuple(planes.abs().amax((0, 2, 3)).gt(0.01).tolist()) for planes in seen[::3]] == [
        (True, False, False),
        (True, True, True),
    ]


def test_the_network_sees_46_pixels():
    network = farabet(norm=None).network.eval()
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    network(image)[..., 12, 12].sum().backward()
    # Max pooling passes one of two: the union over pictures is the field, of one picture at most that.
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.min() >= 12 * 4 - 21
    assert rows.max() <= 12 * 4 + 24
    assert rows.max() - rows.min() >= 40


def test_answers_are_as_large_as_the_picture():
    """Every size from 33 to 257."""
    model = farabet(5, widths=(2, 2, 2), hidden=None).eval()
    with torch.inference_mode():
        for size in range(33, 258):
            shape = (size, 33 + size % 32)
            images = torch.zeros(1, 3, *shape, dtype=torch.uint8)
            assert model(images, torch.tensor([shape])).logits.shape == (1, 5, *shape)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (33, 34), (64, 64)], ids=str)
def test_answers_of_small_pictures(size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    logits = farabet(5, **SMALL).eval()(images, torch.tensor([size] * 2)).logits
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


def test_checkpoint(tmp_path):
    model = farabet(3, levels=2, norm="group", **SMALL).eval()
    model.categories, model.resize = ["a", "b", "c"], (50, 70)
    save(model, tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt", device="cpu")
    assert (again.categories, again.resize, again.levels) == (["a", "b", "c"], (50, 70), 2)
    images, sizes = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8), torch.tensor([[40, 50]])
    assert torch.equal(again(images, sizes).logits, model(images, sizes).logits)
    other = farabet(7, levels=2, norm="group", weights=tmp_path / "model.ckpt", **SMALL)
    assert torch.equal(other.network[0].weight, model.network[0].weight)
    assert torch.equal(other.classifier[0].weight, model.classifier[0].weight)
    with pytest.raises(WeightsError, match="do not fit"):
        farabet(3, levels=3, norm="group", weights=tmp_path / "model.ckpt", **SMALL)


@pytest.mark.parametrize(("options", "message"), [({"levels": 0}, "one level"), ({"widths": (4, 6)}, "three widths")])
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        farabet(**options)


@pytest.mark.parametrize(("norm", "hidden"), [("batch", 12), (None, None)])
def test_it_learns_two_pictures(norm, hidden):
    """Stripes across against stripes along, which differ in texture alone; every weight has a part in it."""
    stripes = (torch.arange(48) // 3 % 2 * 200).to(torch.uint8).expand(48, 48)
    along = torch.where(torch.arange(48) < 24, stripes, stripes.T)
    images = torch.stack([along, along.flip(1)])[:, None].repeat(1, 3, 1, 1)
    labels = (torch.arange(48) < 24).to(torch.int16).expand(48, 48)
    labels = torch.stack([labels, labels.flip(1)])
    sizes = torch.tensor([[48, 48]] * 2)
    model = farabet(2, norm=norm, widths=(6, 8, 8), hidden=hidden).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        loss = sum(model.losses(model(images, sizes), LabelMaps(labels)).values())
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    found = model.eval().segment(images, sizes).labels
    assert (found == labels).float().mean() > 0.9
