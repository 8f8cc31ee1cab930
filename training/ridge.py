"""Ridge regression on more examples than fit into memory: sums over blocks of rows, solved exactly.

It equals scikit-learn's Ridge. Letters: N examples, D features, T targets.
"""

from __future__ import annotations

import numpy as np
import torch

from .linear import LinearModel

ROWS = 4096  # held in memory at a time


def fit_ridge(
    features: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    penalty: float,
    *,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> LinearModel:
    """The weights of least sum |W scale x + b - y|^2 + penalty |W|^2; the bias is free.

    Args:
        features: (·, D), perhaps mapped from the disk.
        rows: (N,) int64, the examples' rows in it; ascending reads fastest.
        targets: (N, T).
        penalty: positive.
        scale: features are multiplied with it first; the model is for features as they were.
        device: where to compute; one that has float64.

    Returns:
        W (T, D) and b (T,); zeros where there are no examples.

    Raises:
        ValueError: shapes that do not go together, or a penalty that is not positive.
    """
    if len(rows) != len(targets) or not penalty > 0:
        raise ValueError(
            f"need as many targets as rows and a positive penalty, got {len(rows)} rows, {len(targets)} targets and "
            f"penalty {penalty}"
        )
    device = torch.device(device)
    y = torch.from_numpy(np.array(targets)).to(device, torch.float64)
    x_mean, y_mean = _mean(features, rows, device), y.sum(0) / max(1, len(y))
    squares = penalty / scale**2 * torch.eye(len(x_mean), dtype=torch.float64, device=device)
    products = squares.new_zeros(len(x_mean), y.shape[1])
    for start in range(0, len(rows), ROWS):
        x = _block(features, rows[start : start + ROWS], device) - x_mean
        squares += x.T @ x
        products += x.T @ (y[start : start + ROWS] - y_mean)
    weight = torch.cholesky_solve(products, torch.linalg.cholesky(squares)).T.contiguous()
    return LinearModel(weight, y_mean - weight @ x_mean)


def _mean(features: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for start in range(0, len(rows), ROWS):
        total += _block(features, rows[start : start + ROWS], device).sum(0)
    return total / max(1, len(rows))


def _block(features: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(features[rows])).to(device, torch.float64)
