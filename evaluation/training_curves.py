"""Training curves from the metrics.csv that Lightning's CSVLogger writes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..datasets.table import DataError
from .plots import COLOURS, MUTED, clean, dress_axes, save_figure

Series = dict[str, tuple[np.ndarray, np.ndarray]]


def read_metrics(path: str | Path) -> Series:
    """Each logged number as (steps, values); cells that are empty, and numbers that are nan or infinite, are left out.

    Raises:
        DataError: the file is not there, or has no column "step".
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if "step" not in names:
        raise DataError(
            f"{path}: has no column 'step'; expected the metrics.csv of Lightning's CSVLogger, got {names[:8]}"
        )
    steps = [_number(row["step"]) for row in rows]
    series = {}
    for name in names:
        points = [(step, _number(row[name])) for step, row in zip(steps, rows, strict=True)]
        points = [point for point in points if all(map(math.isfinite, point))]
        if points and name not in ("step", "epoch"):
            series[name] = tuple(np.array(points).T)
    return series


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def plot_training(metrics: str | Path, path: str | Path) -> None:
    """One panel for each quantity, with training and validation together (train/loss and val/loss, or with _).

    Args:
        metrics: the metrics.csv.
        path: the PNG.

    Raises:
        DataError: as `read_metrics`.
    """
    panels: dict[str, Series] = {}
    for name, points in read_metrics(metrics).items():
        if all(value == -1 for value in points[1]):  # a score of objects that the data do not have, such as APl
            continue
        stage, quantity = _split(name)
        panels.setdefault(quantity, {})[stage] = points
    columns = min(3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.2), layout="constrained")
    if not panels:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color=MUTED, fontsize=11)
    for place, (quantity, stages) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        dress_axes(axes, clean(quantity), "step", "")
        axes.title.set_fontsize(10.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for (steps, values), colour in zip(stages.values(), COLOURS, strict=False):
            marker = "o" if len(steps) < 25 else None
            axes.plot(steps, values, color=colour, linewidth=1.5, marker=marker, markersize=3.5)
        if len(stages) > 1:
            axes.legend([clean(stage) for stage in stages], frameon=False, fontsize=8.5)
    save_figure(figure, path)


def _split(name: str) -> tuple[str, str]:
    """("train", "loss") from train/loss, train_loss and train_loss_epoch."""
    for stage in ("train", "val", "test"):
        for mark in ("/", "_"):
            if name.startswith(stage + mark):
                return stage, name[len(stage) + 1 :].removesuffix("_epoch")
    return "", name
