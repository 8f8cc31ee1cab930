"""Charts of captions' scores and lengths, each from data to a PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .caption_tokens import caption_tokens
from .captions import CaptionResult
from .plots import ACCENT, COLOURS, INK, dress_axes, save_figure

BINS = 40


def plot_caption_scores(result: CaptionResult, path: str | Path) -> None:
    """How many captions have which CIDEr-D, with the mean and the median."""
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, "CIDEr-D of captions", "CIDEr-D", "captions")
    scores = result.cider_d
    axes.hist(scores, bins=np.linspace(0, max(1.0, scores.max()), BINS + 1), color=ACCENT)
    axes.axvline(scores.mean(), color=COLOURS[1], linewidth=2, label=f"mean {scores.mean():.3f}")
    median = float(np.median(scores))
    axes.axvline(median, color=INK, linewidth=1.5, linestyle=(0, (4, 3)), label=f"median {median:.3f}")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def plot_caption_words(result: CaptionResult, path: str | Path) -> None:
    """How long captions and references are, in words: shares of each."""
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, "Lengths of captions and references", "words", "share")
    said = result.lengths[:, 0]
    true = np.array([len(caption_tokens(sentence)) for group in result.references for sentence in group])
    longest = int(max(said.max(), np.quantile(true, 0.995)))  # a few very long references would squeeze all others
    for lengths, colour, title in ((true, COLOURS[1], "references"), (said, ACCENT, "captions")):
        shares = np.bincount(lengths, minlength=longest + 1)[: longest + 1] / len(lengths)
        label = f"{title}, mean {lengths.mean():.1f}"
        axes.stairs(shares, np.arange(longest + 2) - 0.5, color=colour, fill=False, linewidth=2, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)
