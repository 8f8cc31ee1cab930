"""The chart of proposals' recall, from what they cover to a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from .plots import COLOURS, INK, MUTED, clean, dress_axes, save_figure
from .recall import Coverage

STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # by turns, where there are more curves than colours


def plot_recall(covered: Mapping[str, Coverage], path: str | Path, *, count: int = 1000) -> None:
    """Recall at the least IoU against the number of proposals, beside recall of the best `count` against the IoU.

    A curve against numbers ends where its proposals do; curves of no objects are left out.

    Args:
        covered: what each proposer's boxes cover, by name, in the order of the legend. All were asked for the same overlaps.
        path: the PNG.
        count: of the second panel.
    """
    covered = {name: coverage for name, coverage in covered.items() if len(coverage.labels)}
    figure = Figure(figsize=(11.2, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    least = next((coverage.ious[0] for coverage in covered.values()), 0.5)
    dress_axes(left, f"Recall at IoU {least:g}", "proposals a picture", "share of objects found")
    dress_axes(right, f"Recall of {count:,} proposals a picture", "IoU asked for", "")
    left.set_ylim(0, 1.02)
    if not covered:
        left.text(0.5, 0.5, "no objects to find", ha="center", transform=left.transAxes, color=MUTED, fontsize=11)
    for place, (name, coverage) in enumerate(covered.items()):
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": STYLES[place // len(COLOURS) % len(STYLES)]}
        counts = _counts(coverage.longest)
        left.plot(counts, coverage.recall(counts)[0], marker="o", markersize=4, markevery=[-1], linewidth=2, **style)
        label = f"{clean(_end(name))}  {coverage.average_recall([count])[0]:.3f}"
        at_count = coverage.recall([count])[:, 0]
        right.plot(coverage.ious, at_count, marker="o", markersize=4, linewidth=2, label=label, **style)
    _number_axis(left, max([10, *(coverage.longest for coverage in covered.values())]), count)
    if covered:
        _legend(right, f"average recall at {count:,}")
    save_figure(figure, path)


def _counts(longest: int) -> np.ndarray:
    """Whole numbers from 1 to `longest`, evenly spread on a log axis."""
    return np.unique(np.geomspace(1, max(1, longest), 400).round().astype(np.int64))


def _end(name: str, width: int = 28) -> str:
    """A name that is no longer than others; long ones are paths, which differ at their ends."""
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _number_axis(axes: Axes, most: int, count: int) -> None:
    axes.set_xscale("log")
    axes.set_xlim(1, most)
    ticks = [step * 10**power for power in range(8) for step in (1, 3) if step * 10**power <= most]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if count < most:
        axes.axvline(count, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))


def _legend(axes: Axes, title: str) -> None:
    legend = axes.legend(
        title=title, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9, labelcolor=INK
    )
    legend.set_alignment("left")
    legend.get_title().set(color=MUTED, fontsize=9)
