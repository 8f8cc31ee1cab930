"""The constants pictures are normalised with, and the padding that stays zero."""

import pytest
import torch

from sightline.backbone.normalize import Normalize


def test_own_constants_replace_those_of_the_weights():
    normalize = Normalize((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    normalize.adopt([0.1, 0.2, 0.3], [0.5, 0.25, 0.2])
    images = torch.full((1, 3, 2, 4), 51.0)  # 0.2
    out = normalize(images, torch.tensor([[2, 3]]))
    expected = torch.tensor([(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 0.2])
    torch.testing.assert_close(out[0, :, :, :3], expected[:, None, None].expand(3, 2, 3))
    assert not out[..., 3].any()
    assert set(normalize.state_dict()) == {"mean", "std"}  # a checkpoint carries them


@pytest.mark.parametrize("std", [[1.0], [1.0, 1.0, 0.0]])
def test_constants_that_cannot_serve_are_refused(std):
    with pytest.raises(ValueError, match="three"):
        Normalize((0.5,) * 3, (1.0,) * 3).adopt([0.0] * len(std), std)


def test_padding_of_a_grey():
    """What is painted grey and what is padded are the same to the network, whatever its constants."""
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.5), padding=114)
    images = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8)
    painted = images.clone()
    painted[1, :, 3:], painted[1, :, :, 2:] = 114, 114
    out = normalize(images, torch.tensor([[4, 6], [3, 2]]))
    assert torch.equal(out, normalize(painted, torch.tensor([[4, 6]] * 2)))
    normalize.adopt([0.1, 0.2, 0.3], [0.5, 0.25, 0.2])
    assert torch.equal(
        normalize(images, torch.tensor([[4, 6], [3, 2]])), normalize(painted, torch.tensor([[4, 6]] * 2))
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_layout_becomes_channels_last(layout):
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.25, 0.5))
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    out = normalize(images.to(memory_format=layout), torch.tensor([[5, 7], [3, 2]]))
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = (images / 255 - normalize.mean) / normalize.std
    expected[1, :, 3:], expected[1, :, :, 2:] = 0, 0
    assert torch.equal(out, expected)


def test_a_callers_floats_stay_and_learn():
    images = torch.full((1, 3, 2, 2), 51.0, requires_grad=True)
    Normalize((0.5,) * 3, (0.25,) * 3)(images, torch.tensor([[2, 1]])).sum().backward()
    assert (images == 51).all()
    torch.testing.assert_close(images.grad[0, 0], torch.tensor([[4 / 255, 0.0], [4 / 255, 0.0]]))
