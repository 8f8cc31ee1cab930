"""What is minimised over label maps: cross-entropy, focal, Dice and Lovász losses, and sums of them.

All on fixed shapes, without a look at any value: pixels of label -1 (void, padding) have no part in any sum, and a batch without
a labelled pixel has loss 0 and gradient 0. All sums run over the whole batch of one process, as in Berman et al.'s code.

Letters: B pictures, C categories, H, W pixels, N = B * H * W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets.table import nearest

FOCUS = 2.0  # gamma, the paper's best
SMOOTHING = 0.1  # Szegedy et al.'s


class MapLoss(nn.Module):
    """The mean loss of the labelled pixels, in float32 whatever the logits' type.

    Args:
        num_classes: C.
        kind: one of `LOSSES`, or several with "+" between them, which are summed: "cross_entropy+dice".

    Attributes:
        weights: (C,) float32, how much each category counts; ones unless training puts others there, see `median_frequency`.
            They are a matter of training and no part of a checkpoint.

    Raises:
        ValueError: no such kind.
    """

    def __init__(self, num_classes: int, *, kind: str = "cross_entropy") -> None:
        super().__init__()
        self.kinds = tuple(name.strip() for name in kind.split("+"))
        for name in self.kinds:
            if name not in LOSSES:
                known = f"there are {', '.join(LOSSES)}, and sums of them, such as cross_entropy+dice"
                raise ValueError(f"no loss {name!r} of label maps{nearest(name, LOSSES)}; {known}")
        self.register_buffer("weights", torch.ones(num_classes), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A scalar of logits (B, C, H, W) and labels (B, H, W), 0..C-1 or -1."""
        with torch.autocast(logits.device.type, enabled=False):
            logits, labels = logits.float(), labels.long()
            return torch.stack([LOSSES[name](logits, labels, self.weights) for name in self.kinds]).sum()

    def extra_repr(self) -> str:
        return f"num_classes={len(self.weights)}, kind={'+'.join(self.kinds)!r}"


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """The weighted mean of -log p over labelled pixels: `F.cross_entropy`, but 0 where there are none.

    Args:
        logits: (B, C, H, W), of any float type.
        labels: (B, H, W) int64, 0..C-1 or -1.
        weights: (C,).
        smoothing: the share of a pixel's truth that is spread over all categories alike.
    """
    options = {"weight": weights.to(logits.dtype), "ignore_index": -1, "label_smoothing": smoothing}
    return _ratio(F.cross_entropy(logits, labels, reduction="sum", **options), _weights_of(labels, weights).sum())


def smooth_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with a tenth of the truth spread over all categories (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567, section 7); arguments as for `cross_entropy`."""
    return cross_entropy(logits, labels, weights, smoothing=SMOOTHING)


def focal(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of -(1 - p)^2 log p over labelled pixels (Lin et al. 2017, https://arxiv.org/abs/1708.02002, section 3).

    With a softmax where the paper has a sigmoid for each category, the mean where it divides by the number of objects, and
    the categories' weights as its alpha. Arguments as for `cross_entropy`.
    """
    surprise = F.cross_entropy(logits, labels, reduction="none", ignore_index=-1)  # 0 where nothing is labelled
    weights = _weights_of(labels, weights)
    return _ratio((weights * (-torch.expm1(-surprise)) ** FOCUS * surprise).sum(), weights.sum())


def dice(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """1 - 2 sum(p t) / (sum(p) + sum(t)), the weighted mean over the categories that the batch shows (Drozdzal et al. 2016,
    https://arxiv.org/abs/1608.04117, section 3.2).

    p is a pixel's probability of the category, t its truth, 0 or 1. Of a category without a pixel the quotient is 0 whatever
    p is: nothing to be learnt. Arguments as for `cross_entropy`.
    """
    probabilities, truth = _by_category(logits, labels)
    common, sizes = (probabilities * truth).sum(1), truth.sum(1)
    losses = 1 - 2 * common / (probabilities.sum(1) + sizes).clamp(
        min=1
    )  # the sizes of those that count are at least 1
    return _mean_of_shown(losses, sizes, weights)


def lovasz(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss, 1 - IoU, at the errors |t - p|: the weighted mean over the categories that the
    batch shows (Berman et al. 2018, https://arxiv.org/abs/1705.08790, section 2 and equation 12).

    From the greatest error down, each pixel counts by how much the Jaccard loss grows when it, too, is mistaken. That growth
    has a closed form, without the cancellation of the paper's differences. Arguments as for `cross_entropy`.
    """
    probabilities, truth = _by_category(logits, labels)
    # Pixels without a label have p = t = 0, so no error: they come last, or among others without error, and count 0.
    errors, order = (truth - probabilities).abs().sort(dim=1, descending=True)
    return _mean_of_shown((errors * _growth(truth.gather(1, order))).sum(1), truth.sum(1), weights)


def _growth(truth: Tensor) -> Tensor:
    """(C, N): what each pixel adds to 1 - IoU when those before it are mistaken already, of truth (C, N), 0 or 1."""
    mistaken = truth.cumsum(1, dtype=torch.int32)  # whole numbers: beyond 2^24 floats could not count
    total = mistaken[:, -1:]
    union = total + torch.arange(1, truth.shape[1] + 1, device=truth.device, dtype=torch.int32) - mistaken
    left, union = (total - mistaken).to(truth.dtype), union.to(truth.dtype).clamp(min=1)
    # A pixel of the category leaves one less in common, of another one is one more in the union: I/(U - 1) - I/U.
    return torch.where(truth > 0, 1 / union, left / (union * (union - 1).clamp(min=1)))


def _by_category(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(C, N) probabilities and truth, both 0 where nothing is labelled."""
    categories = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    truth = (labels[:, None] == categories).to(logits.dtype)
    probabilities = torch.where(labels[:, None] >= 0, logits.softmax(1), 0)
    return probabilities.transpose(0, 1).flatten(1), truth.transpose(0, 1).flatten(1)


def _mean_of_shown(losses: Tensor, sizes: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of (C,) losses over categories of at least one pixel."""
    weights = weights * (sizes > 0)
    return _ratio((weights * losses).sum(), weights.sum())


def _weights_of(labels: Tensor, weights: Tensor) -> Tensor:
    """(B, H, W): that of each pixel's category, 0 without one."""
    return weights[labels.clamp(min=0)] * (labels >= 0)


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, or 0 where both are."""
    return total / torch.where(count > 0, count, 1)


LOSSES = {
    "cross_entropy": cross_entropy,
    "smooth_cross_entropy": smooth_cross_entropy,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
}


def median_frequency(pixels: Tensor, seen: Tensor) -> Tensor:
    """Weights that make up for categories being rare: median frequency over frequency (Eigen and Fergus 2015,
    https://arxiv.org/abs/1411.4734, section 6.3.2).

    Args:
        pixels: (C,), how many pixels each category has in all pictures.
        seen: (C,), how many labelled pixels there are in the pictures that show it.

    Returns:
        (C,) float32. The median is over the categories that have pixels; others have no frequency, and weight 0, so that they
        do not count in a smoothed truth either.

    Raises:
        ValueError: no category has any pixel, or there are fewer pixels in pictures than in a category.
    """
    pixels, seen = pixels.double(), seen.double()
    if pixels.shape != seen.shape or not (pixels > 0).any() or (pixels > seen).any():
        raise ValueError(
            "median frequencies need pixels of at least one category, and of each no more than its pictures have; "
            f"got {pixels.tolist()} of {seen.tolist()}"
        )
    frequencies = pixels / seen.clamp(min=1)
    shown = pixels > 0
    return torch.where(shown, frequencies[shown].quantile(0.5) / frequencies, 0).float()
