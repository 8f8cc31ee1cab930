"""The chart of cost against work, from points to a PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sightline.evaluation.plots import COLOURS, INK, MUTED, clean, dress_axes, save_figure

DECADE = 10.0  # what a cost's axis spans at least: a smaller one makes mountains of noise
STYLES = {"inference": "-", "training": (0, (5, 2))}


class Curve(NamedTuple):
    """One model's work at ascending values.

    Attributes:
        times: ms.
        memory: MiB; None where it cannot be had.
    """

    model: str
    work: str
    values: list[int]
    times: list[float]
    memory: list[float | None]


def plot_sweep(curves: Sequence[Curve], path: str | Path, *, name: str, work: Callable[[int], int]) -> None:
    """Time, and beside it memory where it was measured, both axes logarithmic, with a line that grows with the work.

    Args:
        curves: in the order of the legend; a model's have one colour, and each kind of work its dashes.
        path: the PNG.
        name: of the values.
        work: how much of it a value stands for; 0 stands at the left edge.
    """
    panels = [("Time of a batch", "ms", [curve.times for curve in curves])]
    if any(cost is not None for curve in curves for cost in curve.memory):
        memory = [[math.nan if cost is None else cost for cost in curve.memory] for curve in curves]
        panels.append(("Memory at its peak", "MiB", memory))
    figure = Figure(figsize=(3.4 + 4.5 * len(panels), 4.4), layout="constrained")
    places = _places(sorted({value for curve in curves for value in curve.values}), work)
    models = list(dict.fromkeys(curve.model for curve in curves))
    for axes, (title, unit, costs) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        dress_axes(axes, title, name, unit)
        for curve, cost in zip(curves, costs, strict=True):
            style = {"color": COLOURS[models.index(curve.model) % len(COLOURS)], "linestyle": STYLES[curve.work]}
            style |= {
                "marker": "o",
                "markersize": 4,
                "linewidth": 2,
                "label": f"{clean(curve.model, 52)}, {curve.work}",
            }
            axes.plot([places[value] for value in curve.values], cost, **style)
        _log_axes(axes, places)
        _slope(axes)
    if curves:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def _places(values: Sequence[int], work: Callable[[int], int]) -> dict[int, float]:
    """Where values stand on a logarithmic axis; 0 left of all others."""
    least = min((work(value) for value in values if value > 0), default=1)
    return {value: float(work(value)) if value > 0 else least / 4 for value in values}


def _slope(axes: Axes) -> None:
    """What grows as the work does, through the end of the highest curve."""
    ends = [line.get_xydata()[-1] for line in axes.lines if math.isfinite(line.get_ydata()[-1])]
    if not ends:
        return
    x, y = max(ends, key=lambda end: end[1])
    low, high = axes.get_ylim()
    first = min(line.get_xdata()[0] for line in axes.lines)
    start = max(first, x * low / y)
    axes.set_ylim(low, high)
    axes.plot([start, x], [y * start / x, y], color=MUTED, linewidth=1.2, linestyle=":", label="as the work grows")


def _log_axes(axes: Axes, places: Mapping[int, float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wider = max(1.0, DECADE / (high / low)) ** 0.5
    axes.set_ylim(low / wider, high * wider)
    axes.set_xticks(list(places.values()), [f"{value:,}" for value in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
