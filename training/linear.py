"""Linear classifiers on fixed features: support vector machines and softmax regression, exact and deterministic.

Both are convex and are solved by L-BFGS in float64, on any device that has it (Apple's GPUs do not: bring the features to
the CPU), to the same optimum as scikit-learn's solvers (LinearSVC with `dual=False`, and LogisticRegression): a parity
that tests hold. The features are first rotated to their principal axes and scaled there, which leaves the optimum where it
is and takes tens of steps instead of thousands.

They treat the bias differently, as the references do: the machines' is one more weight (of a feature that is always 1)
and is kept small with the others; softmax regression's is free. With features far from zero on average that matters at
a small C only.

Letters: N examples, D features, C classes, R principal axes (at most N and D).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

TOLERANCE = 1e-7  # of the largest entry of the gradient, as a share of that at zero weights
STEPS = 1000
CANDIDATES = (
    1e-2,
    1e-1,
    1.0,
    10.0,
    100.0,
)  # of c, over the features' total variance: their unit then makes no difference


class LinearModel(NamedTuple):
    """Scores are `features @ weight.T + bias`.

    Attributes:
        weight: (C, D) float64.
        bias: (C,) float64.
    """

    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) float64 from (N, D)."""
        return F.linear(features.to(self.weight), self.weight, self.bias)


# (features (N, D), labels (N,), num_classes, c) to a model.
Fit = Callable[[Tensor, Tensor, int, float], LinearModel]


def fit_svm(
    features: Tensor, labels: Tensor, num_classes: int, c: float = 1.0, *, weights: Tensor | None = None
) -> LinearModel:
    """One machine a class, against all the others; scores are signed distances in units of the margin.

    Args:
        features: (N, D).
        labels: (N,) int64, 0..C-1.
        num_classes: C; a class without examples gets a machine that says no.
        c: see `fit_svms`.
        weights: (N,), not negative: how much each example counts; None for 1. See `balanced`.
    """
    signs = 2 * F.one_hot(labels, num_classes) - 1
    return fit_svms(features, signs, c, weights=weights)


def fit_svms(features: Tensor, signs: Tensor, c: float = 1.0, *, weights: Tensor | None = None) -> LinearModel:
    """Independent two-class machines on the same examples, each of which may leave examples out.

    Each minimises 0.5 (|w|^2 + b^2) + c * sum of weights * max(0, 1 - sign * (w x + b))^2: scikit-learn's LinearSVC with
    its default loss, and `intercept_scaling` of 1.

    Args:
        features: (N, D).
        signs: (N, C): 1 where an example is of the machine's class, -1 where it is not, 0 where the machine ignores it.
        c: positive; the larger, the more the errors count and the less small weights do.
        weights: (N,), not negative: how much each example counts; None for 1.

    Raises:
        ValueError: shapes that do not go together, or a `c` that is not positive.
    """
    x, weights = _checked(features, len(signs), c, weights)
    y = signs.to(x)

    def loss(scores: Tensor) -> Tensor:
        lacking = (1 - y * scores).clamp(min=0) * y.abs()
        return c * (weights[:, None] * lacking.square()).sum()

    z, axes = _principal(F.pad(x, (0, 1), value=1.0))  # the bias is the weight of the last feature
    weight = _minimise(loss, z, signs.shape[1], penalty=z.new_ones(z.shape[1]), curvature=2 * c) @ axes.T
    return LinearModel(weight[:, :-1].contiguous(), weight[:, -1].contiguous())


def fit_softmax(
    features: Tensor, labels: Tensor, num_classes: int, c: float = 1.0, *, weights: Tensor | None = None
) -> LinearModel:
    """Multinomial logistic regression: minimises 0.5 |W|^2 + c * sum of weights * cross-entropy; the bias is free.

    That is scikit-learn's LogisticRegression for three classes or more. Of two it has only the difference between the
    weights, whose penalty is then twice ours: it takes a C of 2 c to give the same. Biases are shifted to a mean of zero,
    which no probability depends on.

    Args:
        features: (N, D).
        labels: (N,) int64, 0..C-1.
        num_classes: C, at least 2. A class without examples has a bias that would fall for ever: it ends where the
            gradient is small.
        c: positive; the larger, the more the errors count and the less small weights do.
        weights: (N,), not negative: how much each example counts; None for 1. See `balanced`.

    Raises:
        ValueError: shapes that do not go together, or a `c` that is not positive.
    """
    x, weights = _checked(features, len(labels), c, weights)
    labels, mean = labels.to(x.device), x.mean(0)

    def loss(scores: Tensor) -> Tensor:
        return c * (weights * F.cross_entropy(scores, labels, reduction="none")).sum()

    z, axes = _principal(x - mean)
    penalty = F.pad(z.new_ones(z.shape[1]), (0, 1))  # none of the bias
    solution = _minimise(loss, F.pad(z, (0, 1), value=1.0), num_classes, penalty=penalty, curvature=c / 4)
    weight = solution[:, :-1] @ axes.T
    bias = solution[:, -1] - weight @ mean
    return LinearModel(weight, bias - bias.mean())


def balanced(labels: Tensor, num_classes: int) -> Tensor:
    """(N,) weights under which all classes with examples count the same, 1 on average: scikit-learn's "balanced"."""
    counts = torch.bincount(labels, minlength=num_classes)
    return (len(labels) / ((counts > 0).sum() * counts.clamp(min=1)).to(torch.float64))[labels]


def choose_c(
    fit: Fit,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    candidates: Sequence[float] | None = None,
    folds: int = 3,
) -> tuple[float, dict[float, float]]:
    """The `c` that is right most often on examples held out in turn; the least where several are.

    The k-th example of each class is held out in fold k modulo `folds`, so each fold has all classes' shares.

    Args:
        fit: `fit_svm` or `fit_softmax`.
        features: (N, D).
        labels: (N,) int64, 0..C-1.
        num_classes: C.
        candidates: to choose from, all positive; None for `CANDIDATES`.
        folds: how many parts, at least 2 and at most N.

    Returns:
        The best, and each candidate's accuracy.
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(f"cross-validation of {len(labels)} examples needs 2 to {len(labels)} folds, got {folds}")
    order = torch.argsort(labels, stable=True)
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels), device=labels.device) % folds
    if candidates is None:
        variance = features.double().var(0).sum().item() or 1.0
        candidates = [float(f"{share / variance:.1g}") for share in CANDIDATES]
    accuracies = {}
    for c in sorted(candidates):
        right = 0
        for held_out in range(folds):
            out = fold == held_out
            scores = fit(features[~out], labels[~out], num_classes, c).scores(features[out])
            right += int((scores.argmax(1) == labels[out].to(scores.device)).sum())
        accuracies[c] = right / len(labels)
    return max(accuracies, key=lambda c: (accuracies[c], -c)), accuracies


def _checked(features: Tensor, count: int, c: float, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or len(features) != count or not count:
        raise ValueError(
            f"features must be ({count}, D), at least one and as many as labels, got {tuple(features.shape)}"
        )
    if not c > 0:
        raise ValueError(f"c must be positive, got {c}")
    if weights is not None and weights.shape != (count,):
        raise ValueError(f"weights must be ({count},), one an example, got {tuple(weights.shape)}")
    x = features.detach().to(torch.float64)
    return x, x.new_ones(count) if weights is None else weights.to(x)


def _principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, R) along the principal axes of (N, D), and the axes (D, R): what lies outside them no weight needs."""
    if len(x) >= x.shape[1]:
        squares, axes = torch.linalg.eigh(x.T @ x)
    else:
        squares, left = torch.linalg.eigh(x @ x.T)
        axes = x.T @ left / squares.clamp(min=torch.finfo(x.dtype).tiny).sqrt()
    axes = axes[:, squares > 1e-12 * squares[-1]]
    return x @ axes, axes


def _minimise(
    loss: Callable[[Tensor], Tensor], z: Tensor, classes: int, *, penalty: Tensor, curvature: float
) -> Tensor:
    """The weights (C, R) of least 0.5 * sum of penalty * weights^2 + loss(scores), from zero.

    Args:
        loss: scores (N, C) to a number, convex.
        z: (N, R), of which each column differs from zero, orthogonal to one another.
        classes: C.
        penalty: (R,), not negative.
        curvature: about the second derivative of an example's loss.
    """
    scale = (penalty + curvature * z.square().sum(0)).rsqrt()
    scaled = torch.zeros(classes, z.shape[1], dtype=z.dtype, device=z.device, requires_grad=True)

    def closure() -> Tensor:
        weight = scaled * scale
        value = 0.5 * (penalty * weight.square()).sum() + loss(F.linear(z, weight))
        (scaled.grad,) = torch.autograd.grad(value, [scaled])
        return value

    closure()
    goal = TOLERANCE * scaled.grad.abs().amax().item() if scaled.numel() else 0.0
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=STEPS, tolerance_grad=goal, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    optimizer.step(closure)
    closure()
    if scaled.numel() and scaled.grad.abs().amax().item() > 100 * goal:
        log.warning("a linear model was not found to full precision in %d steps; a smaller c is easier", STEPS)
    return (scaled * scale).detach()
