"""Charts of scores, each from data to a PNG. Matplotlib's object interface only: no pyplot, no global state.

Letters: C categories, R recall points, S score thresholds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .accumulate import RECALLS
from .coco import CocoResult
from .confidence import ConfidenceCurves

INK, MUTED, FAINT, ACCENT = "#1f2933", "#52606d", "#d9dee5", "#0b63b8"
# Told apart with any colour vision (M. Okabe and K. Ito, "Color Universal Design", 2008); without
# the yellow, too pale on white, and with some more.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a5a2b", "#6a51a3", "#5f6b76", "#b0122b")
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", "#cfe1f2", "#6aaed6", "#1764ab", "#08306b"])


def plot_precision_recall(result: CocoResult, path: str | Path) -> None:
    """Precision against recall at IoU 0.5, the mean over categories and each; of more than ten the lowest stand out."""
    curves = result.precision[0, :, :, 0, -1].T  # (C, R)
    known = np.flatnonzero(result.positives[:, 0])
    ap = curves.mean(1)
    figure, axes = _figure(7.6, 4.8, "Precision and recall", "recall", "precision")
    shown = known if len(known) <= len(COLOURS) else known[np.argsort(ap[known], kind="stable")[:5]]
    for c in np.setdiff1d(known, shown):
        axes.plot(RECALLS, curves[c], color=FAINT, linewidth=0.8)
    handles, labels = [], []
    for c, colour in zip(shown[np.argsort(-ap[shown], kind="stable")], COLOURS, strict=False):
        handles += axes.plot(RECALLS, curves[c], color=colour, linewidth=1.3)
        labels.append(f"{clean(result.categories[c])}  {ap[c]:.3f}")
    if len(known):
        mean = curves[known].mean(0)
        handles = axes.plot(RECALLS, mean, color=INK, linewidth=2.8) + handles
        labels = [f"mean of {len(known)}  {mean.mean():.3f}", *labels]
        _legend(
            axes, handles, labels, "AP at IoU 0.5" if len(shown) == len(known) else "AP at IoU 0.5, the five lowest"
        )
    else:
        _nothing(axes, "no objects to find")
    _unit_axes(axes)
    save_figure(figure, path)


def plot_confidence(curves: ConfidenceCurves, path: str | Path) -> None:
    """F1, precision and recall against the score threshold, as means over categories, and the best threshold."""
    figure, axes = _figure(
        7.6, 4.8, "Choosing a score threshold", "score threshold", "at IoU 0.5, mean over categories"
    )
    known = ~np.isnan(curves.f1[:, 0])
    if known.any():
        rows = {"F1": curves.f1, "precision": curves.precision, "recall": curves.recall}
        means = {name: _column_mean(values[known]) for name, values in rows.items()}
        styles = ((ACCENT, 2.8), (COLOURS[1], 1.5), (COLOURS[2], 1.5))
        handles = [
            axes.plot(curves.scores, mean, color=colour, linewidth=width)[0]
            for mean, (colour, width) in zip(means.values(), styles, strict=True)
        ]
        best = int(np.searchsorted(curves.scores, curves.best_score))
        at_best = [f"{name}  {mean[best]:.3f}".replace("nan", "none") for name, mean in means.items()]
        axes.axvline(curves.best_score, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot([curves.best_score], [means["F1"][best]], "o", color=ACCENT, markersize=7)
        _legend(axes, handles, at_best, f"at threshold {curves.best_score:.2f}")
    else:
        _nothing(axes, "no objects to find")
    _unit_axes(axes)
    save_figure(figure, path)


def _column_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each column's numbers; nan where there are none."""
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def plot_confusion(
    matrix: np.ndarray, categories: Sequence[str], path: str | Path, *, title: str = "Confusion at IoU 0.5"
) -> None:
    """A confusion matrix, coloured by each row's shares; counts are written in where they fit.

    Args:
        matrix: (C + 1, C + 1), rows true, columns predicted, background last; or (C, C + 1) without background's row; or
            (C, C) where nothing is background and nothing missed.
        categories: C names.
        path: the PNG.
        title: what stands above.
    """
    rows, size = matrix.shape
    names = [clean(name, 22) for name in categories]
    columns = [*names, "missed"][:size]
    side = float(np.clip(0.42 * size, 3.2, 14))
    font = float(np.clip(72 * side / size * 0.66, 3.5, 9))
    figure = Figure(figsize=(side + 2.6, side + 2.2), layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, title, "predicted", "true")
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    upright = max(map(len, ["", *columns])) * font * 0.65 > 72 * side / size
    axes.set_xticks(range(size), columns, rotation=90 if upright else 0, fontsize=font)
    axes.set_yticks(range(rows), [*names, "background"][:rows], fontsize=font)
    axes.grid(False)
    if size > len(names):
        axes.axvline(size - 1.5, color=MUTED, linewidth=0.8)
    if rows > len(names):
        axes.axhline(size - 1.5, color=MUTED, linewidth=0.8)
    if size <= 25:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if shares[row, column] > 0.5 else INK
            axes.text(column, row, _short(matrix[row, column]), ha="center", va="center", fontsize=font, color=colour)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("share of the row", color=MUTED, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    save_figure(figure, path)


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def clean(name: str, width: int = 28) -> str:
    """A name as matplotlib should show it: short, in one line, with dollars no formula and a first underscore shown."""
    name = " ".join(str(name).split())
    name = name if len(name) <= width else name[: width - 1] + "…"
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _figure(width: float, height: float, title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, title, x, y)
    return figure, axes


def dress_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(x, color=MUTED, fontsize=9.5)
    axes.set_ylabel(y, color=MUTED, fontsize=9.5)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def _unit_axes(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)


def _legend(axes: Axes, handles: list, labels: list[str], title: str) -> None:
    style = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False, "fontsize": 9, "labelcolor": INK}
    legend = axes.legend(handles, labels, title=title, **style)
    legend.set_alignment("left")
    legend.get_title().set(color=MUTED, fontsize=9)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=MUTED, fontsize=11)


def save_figure(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    photo = Path(path).suffix.lower() in (".jpg", ".jpeg")
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as an empty square; the report's tables have it right.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        quality = {"quality": 88} if photo else None
        figure.savefig(path, dpi=130, facecolor="white", bbox_inches=None if photo else "tight", pil_kwargs=quality)
