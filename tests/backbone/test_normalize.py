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
