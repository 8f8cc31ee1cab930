"""Pictures with boxes: truth on the left, predictions on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..datasets.structures import Instances
from .plots import COLOURS, INK, MUTED, clean, save_figure

MAX_LABELS = 12  # objects in a panel above which names go to a legend and leave the picture clear
SIDE = 4.5  # inches, the longer side of each panel


def draw_comparison(
    image: np.ndarray,
    truth: Instances,
    predictions: Instances,
    names: Sequence[str],
    path: str | Path,
    *,
    missed: np.ndarray | None = None,
    wrong: np.ndarray | None = None,
) -> None:
    """One picture twice, with its objects and with what was found. Colours stand for categories.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: one image's objects in its pixels.
        predictions: one image's detections; choose by score before.
        names: C names.
        path: the PNG.
        missed: (N,) bool, true objects drawn dashed; none by default.
        wrong: (N,) bool, predictions drawn dashed; none by default.

    Raises:
        ValueError: the image is not (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    legend = max(len(truth), len(predictions)) > MAX_LABELS
    labels = sorted({*truth.labels.tolist(), *predictions.labels.tolist()}) if legend else []
    figure, panels = _panels(height, width, labels, names)
    for axes, instances, dashed, words in zip(
        panels, (truth, predictions), (missed, wrong), (("truth", "missed"), ("prediction", "wrong")), strict=True
    ):
        axes.imshow(image, interpolation="auto")
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        dashed = np.zeros(len(instances), bool) if dashed is None else np.asarray(dashed, bool)
        _draw(axes, instances, names, dashed, with_names=not legend)
        title = f"{words[0]}: {len(instances)}" + (f", {dashed.sum()} {words[1]} (dashed)" if dashed.any() else "")
        axes.set_title(title, fontsize=9, color=MUTED, pad=4)
    save_figure(figure, path)


def _panels(height: int, width: int, labels: list[int], names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Two panels of the picture's shape side by side, and beneath them a legend of these labels."""
    scale = SIDE / max(height, width)
    panel_width, panel_height = max(width * scale, 2.2), max(height * scale, 1.2)
    gap, title = 0.1, 0.3
    total_width = 2 * panel_width + 3 * gap
    columns = max(1, int(total_width / 1.5))
    foot = gap + 0.2 * -(-len(labels) // columns)
    total_height = title + panel_height + foot
    # Placed by hand: a layout engine would draw everything twice.
    figure = Figure(figsize=(total_width, total_height))
    panels = []
    for place in range(2):
        left = (gap + place * (panel_width + gap)) / total_width
        box = (left, foot / total_height, panel_width / total_width, panel_height / total_height)
        panels.append(figure.add_axes(box))
        panels[-1].set_axis_off()
    if labels:
        handles = [Rectangle((0, 0), 1, 1, color=colour_of(label)) for label in labels]
        style = {"loc": "lower center", "frameon": False, "fontsize": 8, "labelcolor": INK, "borderaxespad": 0.1}
        figure.legend(handles, [_name(names, label) for label in labels], ncols=min(columns, len(labels)), **style)
    return figure, panels


def colour_of(label: int) -> tuple[float, float, float]:
    """A category's colour: the ten of the charts, then hues a golden section apart, so that neighbours differ most."""
    if label < len(COLOURS):
        return to_rgb(COLOURS[label])
    return tuple(hsv_to_rgb((label * 0.618034 % 1, (0.85, 0.55)[label % 2], (0.6, 0.9, 0.75)[label % 3])).tolist())


def _draw(axes: Axes, instances: Instances, names: Sequence[str], dashed: np.ndarray, *, with_names: bool) -> None:
    boxes, labels = instances.boxes.float().cpu().numpy(), instances.labels.cpu().tolist()
    scores = None if instances.scores is None else instances.scores.float().cpu().numpy()
    # Large boxes first, so that small ones and their names stay on top.
    for i in np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable"):
        (x0, y0, x1, y1), colour = boxes[i], colour_of(labels[i])
        # A white line beneath keeps the box visible on any ground.
        for edge, line in (((1, 1, 1, 0.7), 3.2), (colour, 1.8)):
            style = (0, (3, 2)) if dashed[i] and edge is colour else "solid"
            axes.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=edge, linewidth=line, linestyle=style)
            )
        if with_names:
            text = _name(names, labels[i]) + ("" if scores is None else f" {scores[i]:.2f}")
            _write(axes, text, x0, y0, colour)


def _write(axes: Axes, text: str, x: float, y: float, colour: tuple[float, float, float]) -> None:
    """A name above its box, or inside it where the picture ends."""
    top = axes.get_ylim()[1]
    room = 0.04 * max(axes.get_ylim()[0], axes.get_xlim()[1])
    inside = y - room < top
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    axes.text(
        max(x, 0), max(y, top), text, fontsize=7, va="top" if inside else "bottom", ha="left", clip_on=True,
        color="white" if luminance < 0.6 else INK, bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2},
    )  # fmt: skip


def _name(names: Sequence[str], label: int) -> str:
    return clean(names[label], 20) if label < len(names) else str(label)
