"""Label maps with the borders of superpixels (Farabet et al. 2013, https://doi.org/10.1109/TPAMI.2012.231, section 4.1).

    model = smoothed(load("best.ckpt"))

Every pixel gets the mean probabilities of its superpixel, one of Felzenszwalb and Huttenlocher's. They are made on the CPU, one
picture after another, so that such a model is neither compiled nor exported.

Letters: B pictures, C categories, H, W pixels of the frame, h, w those of a picture in it, S superpixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..detectors.superpixels import segment
from .augmented import Wrapper
from .model import Segmenter


class Smoothed(Wrapper):
    """See `smoothed`."""

    def __init__(self, model: Segmenter, k: int) -> None:
        super().__init__(model)
        self.k = k

    @torch.compiler.disable
    def probabilities(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The mean of the model's own over each superpixel of each picture; as the model says in the padding."""
        found = self.asked(images, sizes)
        result = found.clone()
        for i, (height, width) in enumerate(
            sizes.tolist()
        ):  # reads the sizes, and the pictures below: two stalls of a GPU
            picture = images[i, :, :height, :width].round().to(torch.uint8).permute(1, 2, 0)
            superpixels = torch.from_numpy(segment(picture.contiguous().cpu().numpy(), self.k)).to(found.device)
            result[i, :, :height, :width] = mean_over(superpixels, found[i, :, :height, :width])
        return result


def mean_over(superpixels: Tensor, values: Tensor) -> Tensor:
    """(C, h, w): of values (C, h, w) the mean over all pixels of the same superpixel, (h, w) int64, 0..S-1."""
    flat = superpixels.flatten()
    count = torch.bincount(flat)
    total = values.new_zeros(len(values), len(count)).index_add_(1, flat, values.flatten(1))
    return (total / count)[:, flat].view_as(values)


def smoothed(model: Segmenter, *, k: int = 50) -> Smoothed:
    """A model whose label maps have the borders of superpixels.

    Args:
        model: any segmenter; it is held, not copied.
        k: of the superpixels, and their least size in pixels of the frame: the greater, the fewer.

    Raises:
        ValueError: `k` below 1.
    """
    if k < 1:
        raise ValueError(f"superpixels need a scale k of at least 1, got {k}")
    return Smoothed(model, k)
